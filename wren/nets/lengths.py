"""Clips of different lengths side by side, and of any length: what is valid, windows cut and joined again."""
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F


def valid_until(lengths, size):
    """lengths (B,) -> bool (B, size), True before each clip's end; None (all clips are full) stays None."""
    return None if lengths is None else torch.arange(size, device=lengths.device) < lengths[:, None]


@dataclass
class Windows:
    """What a batch of clips was cut into before the encoder, window after window, those of a clip in order."""
    spec: torch.Tensor  # (M, F, T), or of raw waves (M, 1, S)
    extent: torch.Tensor | None  # int64 (M,): valid frames (samples) of each; None: all
    clip: torch.Tensor  # int64 (M,): which clip a window is of
    place: torch.Tensor  # int64 (M,): the how many-th window of its clip
    batch: int  # clips
    streams: dict | None = None  # what was recorded beside these windows

    def total(self, x):
        """Sums over the windows of each clip: (M, …) -> (B, …)."""
        return x.new_zeros(self.batch, *x.shape[1:]).index_add_(0, self.clip, x)

    def joined(self, x):
        """Something along the columns of each window (M, T', …), one window after the other -> (B, P · T', …)."""
        out = x.new_zeros(self.batch, int(self.place.max()) + 1, *x.shape[1:])
        out[self.clip, self.place] = x
        return out.flatten(1, 2)


@dataclass
class Encoded:
    """Windows after the encoder."""
    windows: Windows
    tokens: torch.Tensor  # (M, K + T'·F', D), K special tokens first
    valid: torch.Tensor  # bool (M, T', F'): tokens that hold sound, not padding, and no gap of a stream
    columns: torch.Tensor  # int64 (M,): token columns up to the clip's end

    @property
    def specials(self):
        """(M, K, D)"""
        return self.tokens[:, :self.tokens.shape[1] - self.valid[0].numel()]

    @property
    def grid(self):
        """(M, T', F', D)"""
        return self.tokens[:, self.tokens.shape[1] - self.valid[0].numel():].unflatten(1, self.valid.shape[1:])

    def with_tokens(self, tokens):
        """The same windows with other tokens (M, K + T'·F', D)."""
        return replace(self, tokens=tokens)

    def frames(self):
        """-> (B, T', D): each column's mean over its valid rows, 0 beyond a clip's end."""
        valid = self.valid[..., None]
        x = self.windows.joined((self.grid * valid).sum(2) / valid.sum(2).clamp(min=1))
        return x[:, :int((self.windows.place * self.valid.shape[1] + self.columns).max())]


def cut(x, extent, size, least=1):
    """Cut the last axis of x into windows of `size`; yields nothing that lies wholly beyond a clip's end, nor a later
    window of which less than `least` is valid.

    x (B, …, S), extent (B,) valid or None -> windows (M, …, S'), extent (M,) or None, clip (M,), place (M,).
    """
    batch, length = x.shape[0], x.shape[-1]
    if length <= size:
        clip = torch.arange(batch, device=x.device)
        return x, extent, clip, torch.zeros_like(clip)
    n = -(-length // size)
    ends = torch.full((batch,), length) if extent is None else extent.cpu()
    rest = (ends[:, None] - torch.arange(n) * size).clamp(0, size)  # (B, n) valid part of each window
    rest[:, 0].clamp_(min=1)
    rest[:, 1:][rest[:, 1:] < least] = 0
    clip, place = (rest > 0).nonzero(as_tuple=True)
    x = F.pad(x, (0, n * size - length)).unflatten(-1, (n, size)).movedim(-2, 1)  # (B, n, …, size)
    return x[clip, place], rest[clip, place].to(x.device), clip.to(x.device), place.to(x.device)


def cut_along(x, clip, place, size):
    """What was recorded beside waves, cut as `cut` has cut them: x (B, …, S) -> (M, …, size), NaN beyond."""
    count = int(place.max()) + 1
    x = F.pad(x, (0, max(0, count * size - x.shape[-1])), value=float("nan"))
    return x[..., :count * size].unflatten(-1, (count, size)).movedim(-2, 1)[clip, place]
