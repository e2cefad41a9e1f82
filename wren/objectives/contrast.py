"""Contrastive learning of clips (SimCLR, Chen et al. 2020; on sound COLA, Saeed et al. 2021): one clip, two voices."""
import torch
import torch.nn.functional as F
from torch import nn

from masking import uniform
from wren.nets.lengths import Windows, valid_until
from wren.objectives import views
from wren.objectives.atst import Head
from wren.objectives.common import Count, Pair, Positive, Share, spread
from wren.recipes.arithmetic import block_bytes, block_flops, embed_flops, view_tokens


class Contrast(nn.Module):
    """Two views of a clip are told from all views of the other clips in the batch.

    A view is a random part of the clip's spectrogram with another clip of the batch mixed in, its frequency axis moved
    and its bands and level filtered at random: another animal of the kind on another microphone. With clip vectors v as
    the encoder pools them, z = projector(v) / |projector(v)| (2 B of them) and z⁺ the other view of the same clip,

        loss = mean over views of -log( exp(z·z⁺ / τ) / Σ over all other views z' of exp(z·z' / τ) )

    Of the changes the moved frequency axis does most (docs/results.md). Clips of another process or micro-batch are
    not contrasted, so that a batch cut in other parts is another loss; with --rate any those of another rate are not.

    Settings:
        view_seconds: longest view, s
        shortest: shortest view, a share of the clip
        mix: largest share of another clip's power, brought to the same level
        pitch: largest shift of the frequency axis, a share of its bands, and largest change of its scale
        colour: deviation of a random filter over the bands, dB, and a third of the largest change of level
        temperature: τ of the softmax
        head_dim: hidden width of the projector
    """

    def __init__(self, encoder, view_seconds: Positive = 2.0, shortest: Share = 0.6, mix: Share = 0.15,
                 pitch: Pair = (0.06, 0.1), colour: float = 4.0, temperature: Positive = 0.2, head_dim: Count = 1024):
        super().__init__()
        c = encoder.config
        if c.frontend == "wave":
            raise ValueError("its views are of spectrograms, which this encoder of raw waves has none of")
        if c.streams:
            raise ValueError("streams are learned from with ssast and the masked autoencoders")
        self.encoder, self.view_seconds, self.mix, self.temperature = encoder, view_seconds, mix, temperature
        self.shortest, self.pitch, self.colour = shortest, tuple(pitch), colour
        self.projector = Head(c.width, head_dim, 256)

    def forward(self, x, lengths=None, seeds=None, rate=None):
        """x: wave (B, S) or spec (B, F, T); lengths (B,) valid samples or None (all); seeds (B,)."""
        layout = self.encoder.config.at_rate(rate)
        spec = self.encoder.frontend(x, lengths, rate) if x.dim() == 2 else x
        frames = None if lengths is None else layout.n_frames(lengths).clamp(max=spec.shape[2])
        pairs = [self.view(spec, frames, seeds, k, layout) for k in range(2)]
        spec, frames = (torch.cat(parts) for parts in zip(*pairs))
        clips = torch.arange(len(spec), device=spec.device)
        encoded = self.encoder.encode_windows(Windows(spec, frames, clips, clips * 0, len(spec)), rate=rate)
        vectors = self.encoder.pool(encoded)  # (2 B, D')
        with torch.autocast(spec.device.type, enabled=False):
            return self.losses(self.projector(vectors.float()), encoded.tokens[:, layout.specials:])

    def view(self, spec, frames, seeds, k, layout):
        """View k of each clip: spec (B, F, T), frames (B,) valid or None (all) -> (B, F, T'), frames (B,) valid."""
        longest = round(self.view_seconds / layout.hop)
        part, valid = views.crop_frames(spec, frames, longest, self.shortest, seeds, 50 + k)
        nats, here = views.nats(layout), valid_until(valid, part.shape[2])
        if self.mix and len(spec) > 1:
            other, there = (t.roll(1 + k, 0) for t in (part * nats, here))
            other = other + views.level(part * nats, here) - views.level(other, there)
            share = self.mix * uniform(seeds, 1, 58 + k)[:, 0]
            part = views.log_mix(part * nats, other, share, there) / nats
        if any(self.pitch):
            part = views.shift_bands(part, seeds, 60 + k, *self.pitch)
        if self.colour:
            part = views.recolour(part, seeds, 62 + k, self.colour / views.DECIBELS / nats)
        if layout.absent:
            part = F.pad(part[:, :-layout.absent], (0, 0, 0, layout.absent))
        return part.masked_fill(~here[:, None], 0), valid

    def losses(self, z, tokens):
        """z (2 B, D) of the first views, then the second, tokens (2 B, N, D) -> (loss, metrics)."""
        rows = torch.arange(len(z), device=z.device)
        partner = rows.roll(len(z) // 2)
        z = F.normalize(z, dim=1)
        similarity = (z @ z.T / self.temperature).masked_fill(rows[:, None] == rows, float("-inf"))
        loss = F.cross_entropy(similarity, partner)
        right = (similarity.detach().argmax(1) == partner).float().mean()
        count, chance = z.new_full((), len(z) // 2), z.new_full((), 1 / (len(z) - 1))
        return loss, {"count": count, "loss": loss.detach(), "accuracy": right, "spread": spread(tokens),
                      "chance": chance}

    @property
    def exported(self):
        return self.encoder

    def flops(self):
        c, n = self.encoder.config, view_tokens(self.encoder.config, self.view_seconds)
        heads = sum(2 * p.numel() for p in self.projector.parameters() if p.ndim > 1)
        return 2 * 3 * (n / c.n_tokens * embed_flops(c) + block_flops(c, n + c.specials) + heads)

    def kept(self):
        c, n = self.encoder.config, view_tokens(self.encoder.config, self.view_seconds)
        return 2 * block_bytes(c, n + c.specials, self.encoder.checkpoint_activations)
