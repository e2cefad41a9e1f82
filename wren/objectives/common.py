"""What the methods share: masks by name, tokens back in their places, errors of pixels, a measure of collapse."""
from typing import Literal

import torch
import torch.nn.functional as F

from masking import block_mask, frame_mask, group_mask, hash64, patch_mask, span_mask

MASKS = {"patch": patch_mask, "frame": frame_mask, "block": block_mask, "group": group_mask, "span": span_mask}

# the types of settings, from which pretrain.py makes flags
Masking = Literal["patch", "frame", "block", "group", "span"]
CountOrShare, Count, Positive, Share, Pair = int | float, int, float, float, tuple[float, float]


def draw_mask(kind, hidden, layout, seeds, lengths=None, clones=1, **options):
    """A mask for each clip, or `clones` of them in a row: bool (B · clones, T', F'). layout: the encoder's settings at
    the sample rate; lengths (B,) valid samples or None."""
    columns = layout.valid_columns(layout.extent(lengths))
    if clones > 1:
        numbers = hash64(torch.arange(clones, device=seeds.device))
        seeds = (seeds[:, None] ^ numbers).flatten()
        columns = None if columns is None else columns.repeat_interleave(clones)
    return MASKS[kind](seeds, layout.grid, hidden, columns, **options)


def shown(hidden, layout, grid):
    """How many tokens a full clip shows, or None where `grid` (B, T', F', D) is not as long as what masks are drawn
    for: `Encoder.contextual` then counts."""
    return layout.n_tokens - n_of(hidden, layout.n_tokens) if grid.shape[1] == layout.grid[0] else None


def scattered(x, visible, fill):
    """Visible tokens x (B, V, D) back to their places: visible (B, N) bool -> (B, N, D), `fill` elsewhere."""
    rank = (visible.cumsum(1) - 1).clamp(min=0)
    return torch.where(visible[..., None], x.gather(1, rank[..., None].expand(-1, -1, x.shape[2])), fill.to(x.dtype))


def spread(tokens):
    """How far apart a batch's clips lie: tokens (B, N, D) -> the deviation over clips of their L2-normalised mean
    tokens, times √D. 1: as scattered as can be; 0: collapsed to one point."""
    mean = F.normalize(tokens.detach().float().mean(1), dim=1)  # (B, D)
    return mean.std(0, correction=0).square().mean().sqrt() * mean.shape[1] ** 0.5


def pixel_error(prediction, target, valid=None):
    """Mean square over the valid pixels: (B, N, P) twice, valid None (all) or bool (F', P) -> (B, N)."""
    if valid is None:
        return (prediction - target).square().mean(-1)
    valid = valid.repeat(target.shape[1] // len(valid), 1)  # (N, P)
    return ((prediction - target).square() * valid).sum(-1) / valid.sum(-1)


def n_of(hidden, total):
    """How many tokens `hidden`, a count or a share, is."""
    return hidden if isinstance(hidden, int) else round(hidden * total)
