"""From a spectrogram, and what was recorded beside it, to a grid of tokens (B, T', F', D)."""
import torch
import torch.nn.functional as F
from torch import nn


class PatchEmbed(nn.Linear):
    """A linear layer on the pixels of each patch, in PyTorch's default initialisation, as SSAST's, or in that of the
    blocks where it is Xavier's, as MAE's.

    With frontend "octave" the highest row may reach above the Nyquist frequency: in these bands stands a learned value,
    which so is no silence.
    """

    def __init__(self, config):
        super().__init__(config.patch[0] * config.patch[1], config.dim)
        self.config = config
        if config.init == "xavier":
            nn.init.xavier_uniform_(self.weight)
        if config.frontend == "octave":
            self.absent = nn.Parameter(torch.full((config.patch[0],), -1.0))

    def pixels(self, spec, layout):
        """spec (B, F, T) -> (B, T', F', patch height × width), ordered (band, frame) within a patch."""
        (height, width), (down, along) = layout.patch, layout.stride
        frames = (layout.columns(spec.shape[2]) - 1) * along + width
        spec = F.pad(spec, (0, max(0, frames - spec.shape[2])))
        return spec.unfold(1, height, down).unfold(2, width, along).transpose(1, 2).flatten(3)

    def valid_pixels(self, layout):
        """Which pixels of a patch hold sound: None, all, or (octave) those below the Nyquist frequency, (F', P)."""
        if self.config.frontend != "octave":
            return None
        bands = torch.arange(layout.n_mels, device=self.weight.device) < layout.n_mels - layout.absent
        return bands.view(-1, layout.patch[0]).repeat_interleave(layout.patch[1], 1)

    def forward(self, spec, layout):
        """spec (B, F, T), layout: the settings at its sample rate -> (B, T', F', D)."""
        pixels, valid = self.pixels(spec, layout), self.valid_pixels(layout)
        if valid is not None:
            absent = self.absent.repeat_interleave(layout.patch[1]).to(pixels.dtype)
            pixels = torch.where(valid, pixels, absent)
        return super().forward(pixels)


class StreamEmbed(nn.Module):
    """What was recorded beside the sound, a row of tokens each: of each channel its level, what swings around it, and
    the log-power of that (else means over tokens forget how strongly something moves).

    streams: {name: values (B, channels, n)}, sampled as config.stream_rates says, as a loader gives them: NaN where
    there is nothing, and a name may be missing. From here on validity says so: a token with a gap is not valid.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.proj = nn.ModuleDict({name: nn.Linear((n + 2) * len(mean), config.dim)
                                   for name, n, mean, _ in config.streams})
        for name, _, mean, scale in config.streams:  # (channels, 1)
            self.register_buffer(f"mean_{name}", torch.tensor(mean)[:, None], persistent=False)
            self.register_buffer(f"scale_{name}", torch.tensor(scale)[:, None], persistent=False)

    def pixels(self, streams, batch, columns):
        """-> pixels (B, T', streams, P), a column's values first, channel after channel, then zeros; valid (B, T',
        streams)."""
        size, rows, valid = self.config.patch[0] * self.config.patch[1], [], []
        for name, n, mean, _ in self.config.streams:
            values = (streams or {}).get(name)
            if values is None:
                values = self.proj[name].weight.new_zeros(batch, len(mean), 0)
            known = ~values.isnan().any(1)  # (B, n)
            values = (values - getattr(self, f"mean_{name}")) / getattr(self, f"scale_{name}")
            values = values.masked_fill(~known[:, None], 0)
            room = columns * n - values.shape[2]  # negative: cut
            values = F.pad(values, (0, room)).unflatten(2, (columns, n)).transpose(1, 2).flatten(2)
            rows.append(F.pad(values, (0, size - values.shape[2])))
            valid.append(F.pad(known, (0, room)).unflatten(1, (columns, n)).all(2))
        return torch.stack(rows, 2), torch.stack(valid, 2)

    @property
    def device(self):
        return next(self.parameters()).device

    def valid_pixels(self):
        """bool (streams, P): how many values of a patch are a stream's."""
        place = torch.arange(self.config.patch[0] * self.config.patch[1], device=self.device)
        return torch.stack([place < n * len(mean) for _, n, mean, _ in self.config.streams])

    def forward(self, pixels):
        """(B, T', streams, P) -> (B, T', streams, D)."""
        out = []
        for row, (name, n, mean, _) in enumerate(self.config.streams):
            values = pixels[:, :, row, :n * len(mean)].unflatten(-1, (len(mean), n))
            level = values.mean(-1, keepdim=True)
            swing = ((values - level).square().mean(-1, keepdim=True) + 1e-3).log()
            out.append(self.proj[name](torch.cat([values - level, level, swing], -1).flatten(-2)))
        return torch.stack(out, 2)
