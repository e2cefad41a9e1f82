"""The encoder: wave -> spectrogram -> patch tokens -> transformer, for every recipe and every published checkpoint.

    audio file ─> wave [B, S] ─frontend─> spec [B, F, T] ─patches─> grid [B, T', F', D]
               ─tokens─> [B, K + T'·F', D], special tokens first, then time-major (token K + t·F' + f)

    encoder = load_encoder("encoder.pt")           # a file, a run folder, a preset's name or a published checkpoint
    embedding = encoder(wave)                      # wave [B, S] in [-1, 1] at encoder.config.sample_rate -> [B, D]
"""
import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import convert
from cli import UserError
from recipes import PRESETS, EncoderConfig

VERSION = 1  # of our encoder files
LOG_FLOOR = 1.1920928955078125e-07  # float32 epsilon, Kaldi's floor under the logarithm


# ---------------------------------------------------------------------------------------------------- front end

def mel_filters(n_mels, n_fft, sample_rate, f_min, f_max):
    """Kaldi's triangular HTK-mel filters: float64 (n_fft / 2 + 1, n_mels); the Nyquist bin takes no part.

    Triangles are straight in mel, mel(f) = 1127 ln(1 + f / 700), so some narrow ones may hold no bin at all.
    """
    def mel(hertz):
        return 1127.0 * torch.log1p(torch.as_tensor(hertz, dtype=torch.float64) / 700.0)

    edges = torch.linspace(float(mel(f_min)), float(mel(f_max or sample_rate / 2)), n_mels + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = mel(torch.arange(n_fft // 2, dtype=torch.float64) * sample_rate / n_fft)[:, None]
    triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)
    return F.pad(triangles, (0, 0, 0, 1))


class KaldiFbank(nn.Module):
    """Kaldi-style log-mel spectrogram, batched: wave (B, S) -> (B, F, T), natural log, not normalised.

    Equals torchaudio.compliance.kaldi.fbank(htk_compat=True, window_type="hanning", use_energy=False, dither=0) after
    the mean of the clip is subtracted. Frames are transformed in float64: between a loud and a silent band float32
    rounds by up to 1e-2 in the log, torchaudio's included. On the CPU they pass in blocks that fit its cache.
    """

    def __init__(self, config):
        super().__init__()
        self.window, self.hop = config.window_samples, config.hop_samples
        self.n_fft = 1 << (self.window - 1).bit_length()
        with torch.device("cpu"):  # tables are real even when the encoder is only described, on "meta"
            hann = torch.hann_window(self.window, periodic=False, dtype=torch.float64)
            filters = mel_filters(config.n_mels, self.n_fft, config.sample_rate, config.f_min, config.f_max)
        self.register_buffer("hann", F.pad(hann, (0, self.n_fft - self.window)), persistent=False)
        self.register_buffer("filters", filters.float(), persistent=False)

    def forward(self, wave):
        block = len(wave) if wave.is_cuda else max(1, (1 << 18) // wave.shape[1])
        return torch.cat([self._log_mel(part.double()) for part in wave.split(block)]).transpose(1, 2)

    def _log_mel(self, wave):
        """wave (B, S) float64 -> (B, T, F) float32.

        Kaldi subtracts a frame's mean, then pre-emphasises within the frame. Here the wave is pre-emphasised and the
        means are subtracted after: the same, since the one sample of a frame whose predecessor lies outside of it,
        the first, has weight 0 in the window.
        """
        mean = F.avg_pool1d(wave[:, None], self.window, self.hop).transpose(1, 2)  # (B, T, 1)
        wave = F.pad(wave[:, 1:] - 0.97 * wave[:, :-1], (1, self.n_fft - self.window))
        frames = wave.unfold(1, self.n_fft, self.hop) * self.hann  # (B, T, n_fft)
        frames.addcmul_(mean, self.hann, value=0.97 - 1)
        real, imag = torch.view_as_real(torch.fft.rfft(frames)).float().unbind(-1)
        power = real.square().addcmul_(imag, imag)
        return (power @ self.filters).clamp_(min=LOG_FLOOR).log_()


def foreground(spec, margin, beyond=None):
    """What rises above the steady background: log-mel spec (B, F, T) -> max(0, spec - median over time - margin).

    A band's median over the clip is its background: wind, hum, insects, and the empty bands above a low sampling rate.
    beyond (B, 1, T) bool: frames of padding, which do not count.
    """
    if beyond is None:
        median = spec.median(2, keepdim=True).values
    else:
        median = spec.masked_fill(beyond, float("nan")).nanmedian(2, keepdim=True).values
    return (spec - median - margin).clamp(min=0)


# -------------------------------------------------------------------------------------------------- transformer

class Attention(nn.Module):
    """Multi-head self-attention; x (B, N, D), keep (B, 1, 1, N) bool or None: the tokens that may be attended."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, keep=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 × (B, H, N, D / H)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block, as timm's ViT."""

    def __init__(self, config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps)
        self.attn = Attention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps)
        self.mlp = Mlp(config.dim, int(config.dim * config.mlp_ratio))

    def forward(self, x, keep=None):
        x = x + self.attn(self.norm1(x), keep)
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """One encoder for all recipes; `config` says everything needed to use it (see recipes.EncoderConfig)."""

    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.checkpoint_activations = False
        self.fbank = KaldiFbank(c)
        self.patch = nn.Linear(c.patch[0] * c.patch[1], c.dim)  # PyTorch's default initialisation, as SSAST's
        self.mask_token = nn.Parameter(torch.randn(c.dim) * c.dim ** -0.5)
        self.positions = nn.Parameter(torch.empty(*c.grid, c.dim))
        if c.specials:
            self.specials = nn.Parameter(torch.empty(c.specials, c.dim))
            self.special_positions = nn.Parameter(torch.empty(c.specials, c.dim))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim, eps=c.eps)
        self._initialise()

    def _initialise(self):
        """Truncated normal of deviation 0.02 for linears, positions and special tokens, as DeiT."""
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters(recurse=False):
            if name != "mask_token":
                nn.init.trunc_normal_(parameter, std=0.02)

    def frontend(self, wave, lengths=None):
        """wave (B, S) float in [-1, 1], lengths (B,) valid samples -> normalised log-mel spec (B, F, T), float32.

        The mean of the valid samples is subtracted. With pad "masked" frames beyond a clip's valid length are 0 (the
        mean after normalisation) and nothing downstream looks at them; with "published" the log-mel is padded with
        zeros to the training length before normalisation, as the published code does.
        """
        c = self.config
        with torch.autocast(wave.device.type, enabled=False):
            wave = wave.float()
            if lengths is None:
                wave = wave - wave.mean(1, keepdim=True)
            else:
                valid = torch.arange(wave.shape[1], device=wave.device) < lengths[:, None]
                wave = wave.masked_fill(~valid, 0)
                mean = wave.sum(1, keepdim=True) / lengths[:, None].clamp(min=1)
                wave = (wave - mean).masked_fill(~valid, 0)
            if wave.shape[1] < c.window_samples:
                wave = F.pad(wave, (0, c.window_samples - wave.shape[1]))
            spec = self.fbank(wave)
            beyond = None
            if lengths is not None:
                beyond = (torch.arange(spec.shape[2], device=spec.device) >= c.n_frames(lengths)[:, None])[:, None]
            if c.denoise is not None:
                spec = foreground(spec, c.denoise, beyond)
            fill = 0.0 if c.pad == "masked" else -c.mean / c.scale
            spec = (spec - c.mean) / c.scale
            if beyond is not None:
                spec = spec.masked_fill(beyond, fill)
            if c.pad == "published" and spec.shape[2] < c.frames:
                spec = F.pad(spec, (0, c.frames - spec.shape[2]), value=fill)
            return spec

    def patches(self, spec):
        """spec (B, F, T) -> (B, T', F', patch height × width), pixels ordered (mel band, frame) within a patch."""
        c = self.config
        width = (c.columns(spec.shape[2]) - 1) * c.stride[1] + c.patch[1]
        spec = F.pad(spec, (0, max(0, width - spec.shape[2])))
        grid = spec.unfold(1, c.patch[0], c.stride[0]).unfold(2, c.patch[1], c.stride[1])  # (B, F', T', h, w)
        return grid.transpose(1, 2).flatten(3)

    def valid_columns(self, lengths):
        """lengths (B,) samples -> (B,) token columns that hold any of them; None stays None (all are valid)."""
        if lengths is None or self.config.pad == "published":
            return None
        return self.config.columns(self.config.n_frames(lengths))

    def tokens(self, spec, mask=None, lengths=None, visible_only=False, depth=None):
        """spec (B, F, T) -> normed tokens (B, K + N, D): K special tokens, then N = T'·F' patch tokens, time-major.

        mask (B, T', F') bool: hidden tokens are replaced by the mask token before positions are added (SSAST), or,
        with `visible_only`, left out (MAE); then N is the largest number of visible tokens of a clip, in order, and
        clips with fewer are filled up with tokens that nobody attends. lengths (B,) samples: columns beyond them are
        never attended. depth: run only the first blocks.
        """
        c = self.config
        x = self.patch(self.patches(spec))  # (B, T', F', D)
        batch, t, f, _ = x.shape
        if t > c.grid[0] or f != c.grid[1]:
            raise ValueError(f"spectrogram of {tuple(spec.shape[1:])} gives {t} × {f} tokens, the encoder's training "
                             f"length {c.grid[0]} × {c.grid[1]}: cut it into windows, or load with frames=…")
        if mask is not None and not visible_only:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = (x + self.positions[:t]).flatten(1, 2)  # (B, N, D)
        columns = self.valid_columns(lengths)
        keep = None
        if columns is not None:
            keep = (torch.arange(t, device=x.device) < columns[:, None]).repeat_interleave(f, dim=1)  # (B, N)
        if visible_only:
            x, keep = self._visible(x, mask.flatten(1), keep)
        if c.specials:
            x = torch.cat([(self.specials + self.special_positions).expand(batch, -1, -1), x], dim=1)
            keep = None if keep is None else F.pad(keep, (c.specials, 0), value=True)
        keep = None if keep is None else keep[:, None, None]
        for block in self.blocks[:depth]:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, x, keep, use_reentrant=False)
            else:
                x = block(x, keep)
        return self.norm(x)

    @staticmethod
    def _visible(x, hidden, keep):
        """Gather the visible tokens of each clip, in order. x (B, N, D), hidden (B, N) -> (B, V, D), keep (B, V)."""
        shown = ~hidden if keep is None else ~hidden & keep
        counts = shown.sum(1)
        most = int(counts.max())
        index = (~shown).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        rest = torch.arange(most, device=x.device) < counts[:, None]
        return x.gather(1, index[..., None].expand(-1, -1, x.shape[2])), None if bool(rest.all()) else rest

    def _windows(self, wave, lengths):
        """Cut waves into windows of the training length; yields nothing that lies wholly beyond a clip's end.

        wave (B, S), lengths (B,) or None -> windows (M, S'), lengths (M,) or None, clip (M,), place (M,).
        """
        batch, samples = wave.shape
        size = self.config.clip_samples
        if samples <= size:
            return wave, lengths, torch.arange(batch), torch.zeros(batch, dtype=torch.int64)
        n = -(-samples // size)
        ends = torch.full((batch,), samples) if lengths is None else lengths.cpu()
        rest = (ends[:, None] - torch.arange(n) * size).clamp(0, size)  # (B, n) valid samples of each window
        rest[:, 0].clamp_(min=1)
        clip, place = (rest > 0).nonzero(as_tuple=True)
        windows = F.pad(wave, (0, n * size - samples)).view(batch, n, size)[clip, place]
        return windows, rest[clip, place].to(wave.device), clip, place

    def _pieces(self, wave, lengths, depth):
        """(windows' tokens (M, K + N, D), valid columns (M,), clip (M,), place (M,)) of waves of any length."""
        windows, lengths, clip, place = self._windows(wave, lengths)
        spec = self.frontend(windows, lengths)
        tokens = self.tokens(spec, lengths=lengths, depth=depth)
        columns = self.valid_columns(lengths)
        if columns is None:
            columns = torch.full((len(windows),), self.config.columns(spec.shape[2]), device=wave.device)
        return tokens, columns, clip.to(wave.device), place.to(wave.device)

    def frames(self, wave, lengths=None, depth=None):
        """wave (B, S) of any length -> (B, T', D): patch tokens averaged over frequency, a column each stride × hop s.

        Columns beyond a clip's valid length are zero. Longer input is cut into windows of the training length.
        """
        tokens, columns, clip, place = self._pieces(wave, lengths, depth)
        x = tokens[:, self.config.specials:].unflatten(1, (-1, self.config.grid[1])).mean(2)  # (M, T', D)
        x = x * (torch.arange(x.shape[1], device=x.device) < columns[:, None])[..., None]
        out = x.new_zeros(len(wave), int(place.max()) + 1, *x.shape[1:])
        out[clip, place] = x
        return out.flatten(1, 2)[:, :int((place * x.shape[1] + columns).max())]

    def embed(self, wave, lengths=None, depth=None):
        """wave (B, S) of any length -> clip vectors (B, D): the mean of its valid patch tokens, or (pool "specials")
        of its special tokens, windows weighted by their valid columns."""
        tokens, columns, clip, _ = self._pieces(wave, lengths, depth)
        k, f = self.config.specials, self.config.grid[1]
        weight = columns.to(tokens.dtype)[:, None]
        if self.config.pool == "specials":
            x = tokens[:, :k].mean(1) * weight
        else:
            x = tokens[:, k:].unflatten(1, (-1, f)).mean(2)  # (M, T', D)
            x = (x * (torch.arange(x.shape[1], device=x.device) < columns[:, None])[..., None]).sum(1)
        total = x.new_zeros(len(wave), x.shape[1]).index_add_(0, clip, x)
        return total / x.new_zeros(len(wave), 1).index_add_(0, clip, weight)

    forward = embed


# ------------------------------------------------------------------------------------------- loading and saving

def resize_positions(table, grid):
    """Fit a learned table (T, F, D) to another grid (T', F'): cut where it is longer, else interpolate linearly.

    Along time the first T' columns stay, so that a clip keeps its positions whatever the batch around it; along
    frequency the centre is cut (upstream's cut of frequency by the time size is not reproduced). SSAST cuts time at
    the centre: `centre_positions` in its fine-tuning recipe.
    """
    t, f = min(table.shape[0], grid[0]), min(table.shape[1], grid[1])
    low = table.shape[1] // 2 - f // 2
    table = table[:t, low:low + f]
    if tuple(table.shape[:2]) != tuple(grid):
        table = F.interpolate(table.permute(2, 0, 1)[None], size=tuple(grid), mode="bilinear", align_corners=False)
        table = table[0].permute(1, 2, 0)
    return table.contiguous()


def newest_encoder(folder):
    """The encoder of a run folder, or of the newest run below it."""
    folder = Path(folder)
    found = [folder / "encoder.pt"] if (folder / "encoder.pt").exists() else list(folder.glob("*/encoder.pt"))
    if not found:
        raise UserError(f"{folder}: no encoder.pt in this folder; run python pretrain.py, or name a file or preset")
    return max(found, key=lambda p: p.stat().st_mtime)


def load_encoder(path_or_preset, format=None, **overrides):
    """An `Encoder` in eval mode from our file, a run folder, a preset's name (random weights) or a published file.

    Published formats are recognised by their keys; `format` names one where keys can't decide. `overrides` change the
    config (frames, stride, pad, pool, …); learned positions are fitted to the grid that results.
    """
    source = str(path_or_preset)
    if source in PRESETS:
        return Encoder(_override(PRESETS[source], overrides, source)).eval()
    path = Path(source)
    if path.is_dir():
        path = newest_encoder(path)
    found = convert.read(path, format)
    config = _override(found.config, overrides, path)
    encoder = Encoder(config)
    state = dict(found.state)
    if found.config.grid != config.grid:
        state["positions"] = resize_positions(state["positions"], config.grid)
    load_exactly(encoder, state, path)
    return encoder.eval()


def _override(config, overrides, name):
    try:
        return replace(config, **overrides)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from None


def load_exactly(module, state, name):
    """Load a state dict that must fit key by key and shape by shape, or say what does not in one line."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [f"{k} {tuple(state[k].shape)}, not {tuple(own[k].shape)}" for k in sorted(own.keys() & state.keys())
             if own[k].shape != state[k].shape]
    if missing or extra or wrong:
        parts = [f"{label} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
                 for label, keys in (("missing", missing), ("unknown", extra), ("wrong shape", wrong)) if keys]
        raise UserError(f"{name}: weights do not fit: {'; '.join(parts)}")
    module.load_state_dict(state)


def save_encoder(encoder, path):
    """Write {"version", "config", "model"} of plain types; a reader sees the old file or the new one, never half."""
    state = {k: v.detach().cpu() for k, v in encoder.state_dict().items()}
    write_atomically({"version": VERSION, "config": encoder.config.to_dict(), "model": state}, path)


def write_atomically(obj, path):
    """torch.save to a temporary name, fsync, rename, fsync the folder."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
