"""Labelled clips for supervised training: reading, mixing and masking, each a pure function of (seed, epoch, place).

    loader: two different clips are mixed and their labels with them  ->  device: level and rotation (loading.augment)
    ->  front end of the window that is seen  ->  `mask_spectrogram` on that window  ->  `drop_patches` of its grid

So a mask always hides a share of what the encoder is given, and a mixed label always belongs to mixed sound.
"""
import numpy as np
import torch
from scipy.special import betaincinv

from wren.sound import loading
from wren.sound.manifest import unit
from masking import random_bits, uniform

_DRAW, _MIX, _SHARE, _PARTNER = 111, 112, 113, 114  # numbers of a sample's stream; data.py has 101 to 103
_TIME, _BAND, _LEVEL, _NOISE, _COLUMNS, _ROWS = range(41, 47)  # streams on the device; loading.augment has 31 to 34


# --------------------------------------------------------------------------------------------------------- loading

class Reader:
    """What a loader takes of a split's row: all of `split.read`, at `rate` Hz or (any_rate) at its own, if lower; with
    it `streams`, (name, channels, rate in Hz) of each."""

    def __init__(self, split, rate, any_rate=False, streams=()):
        self.split, self.rate, self.any_rate, self.streams = split, rate, any_rate, streams

    def __call__(self, manifest, i, seed=None, stream=None, rate=None):
        rate = rate or (min(manifest.rate(i), self.rate) if self.any_rate else self.rate)
        clip = {"wave": self.split.read(i, rate=rate), "rate": rate}
        return clip | {"streams": self.split.read_streams(i, self.streams)} if self.streams else clip


class LabelledLoader(loading.Loader):
    """Batches of labelled clips in loading.loader's order, the same for any number of workers and processes.

    split: rows, targets (int (n,) or bool (n, C)); rate: Hz; any_rate: rows keep their own, if lower; streams:
    what comes along; mixup: share of samples that are mixed with another clip, lambda ~ Beta(alpha, alpha); balanced:
    each class is drawn alike, clips without any label as one more class;
    frames: None, or a function row -> bool (T', C), the classes of each frame.

    Yields wave float32 [b, S], lengths int64 [b], seed int64 [b], index int64 [b], target float32 [b, C],
    frames float32 [b, T', C] if asked for, and bad.
    """

    def __init__(self, split, rate, n_classes, batch_size, seed, *, any_rate=False, streams=(), first=0,
                 steps=None, rank=0, world=1, workers=0, mixup=0.0, alpha=10.0, balanced=False, frames=None):
        super().__init__(split.rows, Reader(split, rate, any_rate, streams), batch_size, seed, first, steps, rank,
                         world, workers, False)
        self.targets = np.asarray(split.targets)
        if self.targets.ndim == 1:
            self.targets = np.eye(n_classes, dtype=np.float32)[self.targets]
        self.mixup, self.alpha, self.frames = mixup if len(split.rows) > 1 else 0.0, alpha, frames
        self.drawn = np.cumsum(balanced_weights(self.targets)) if balanced else None

    def batches(self):
        """Lists of (epoch, place, row): balanced draws are made afresh at each place of the endless order."""
        for samples in super().batches():
            yield [(epoch, place, place if self.drawn is None else
                    int(np.searchsorted(self.drawn, unit(self.seed, epoch, place, _DRAW) * self.drawn[-1], "right")))
                   for epoch, place in samples]

    def sample(self, epoch, place, row, bad):
        """A clip with target [C] and frames [T', C], or two of them mixed with their labels."""
        seed = loading.sample_seed(self.seed, epoch, place)
        clip, row = self.read(row, seed, None, bad)
        clip |= {"seed": seed, "index": row, "target": self.targets[row]}
        if self.frames:
            clip["frames"] = self.frames(row).astype(np.float32)
        if unit(seed, _MIX) >= self.mixup:
            return clip
        other = (row + 1 + int(unit(seed, _PARTNER) * (len(self.manifest) - 1))) % len(self.manifest)  # never `row`
        second, other = self.read(other, seed, None, bad, clip["rate"])
        share = float(betaincinv(self.alpha, self.alpha, unit(seed, _SHARE)))
        clip["wave"] = blend(clip["wave"], second["wave"], share)
        clip["target"] = share * clip["target"] + (1 - share) * self.targets[other]
        for name, values in clip.get("streams", {}).items():
            n = min(values.shape[1], second["streams"][name].shape[1])  # NaN, what one of them lacks, stays NaN
            clip["streams"][name] = share * values[:, :n] + (1 - share) * second["streams"][name][:, :n]
        if self.frames:
            clip["frames"] = blend(clip["frames"], self.frames(other).astype(np.float32), share)
        return clip

    def collate(self, clips):
        """Clips of one rate -> a batch, as long as its longest clip."""
        batch = {key: torch.tensor([clip[key] for clip in clips], dtype=torch.int64) for key in ("index", "seed")}
        batch |= loading.stack(clips)
        batch["target"] = torch.from_numpy(np.stack([clip["target"] for clip in clips]).astype(np.float32))
        if self.frames:
            frames = [torch.from_numpy(clip["frames"]) for clip in clips]
            batch["frames"] = torch.nn.utils.rnn.pad_sequence(frames, True)
        return batch


def blend(a, b, share):
    """share · a + (1 - share) · b of arrays [n, …] that may differ in length; zeros follow the shorter one."""
    out = np.zeros((max(len(a), len(b)), *a.shape[1:]), dtype=np.float32)
    out[:len(a)] += share * a
    out[:len(b)] += (1 - share) * b
    return out


def balanced_weights(targets):
    """targets (n, C) 0 or 1 -> (n,): how often a row should be drawn, the sum of 1 / count over its classes; rows
    without any label are one more class."""
    targets = np.column_stack([targets, ~targets.astype(bool).any(1)]).astype(float)
    return (targets / np.maximum(targets.sum(0), 1)).sum(1)


class InOrder(loading.Loader):
    """Every row once, for evaluation: this process's share in batches. What can't be read is an error."""

    def __init__(self, split, rate, batch_size, *, any_rate=False, streams=(), rank=0, world=1, workers=0):
        reader = Reader(split, rate, any_rate, streams)
        super().__init__(split.rows, reader, batch_size, 0, 0, None, rank, world, workers, False)

    def batches(self):
        mine = range(self.rank, len(self.manifest), self.world)
        for first in range(0, len(mine), self.batch_size):
            yield [(row,) for row in mine[first:first + self.batch_size]]

    def sample(self, row, bad):
        return self.cropper(self.manifest, row) | {"index": row}

    def collate(self, clips):
        return loading.stack(clips) | {"index": torch.tensor([clip["index"] for clip in clips])}


# --------------------------------------------------------------------------------------------- on the spectrogram

def mask_spectrogram(spec, frames, seeds, time=0.0, band=0.0, noise=0.0):
    """SpecAugment (Park et al. 2019) of the windows that the encoder sees: one mask of up to `time` of a window's
    valid frames, one of up to `band` of its mel bands, both filled with the window's mean; before that SSAST's noise,
    U(0, 1) times a level of up to `noise` in each cell.

    spec (M, F, T), frames (M,) valid of T, seeds int64 (M,) -> (M, F, T).
    """
    valid = torch.arange(spec.shape[2], device=spec.device) < frames[:, None]  # (M, T)
    if noise:
        cells = uniform(seeds, spec[0].numel(), _NOISE).view_as(spec)
        spec = torch.where(valid[:, None], spec + noise * uniform(seeds, 1, _LEVEL)[..., None] * cells, spec)
    mean = (spec * valid[:, None]).sum((1, 2)) / (frames * spec.shape[1])
    bands = torch.full_like(frames, spec.shape[1])
    hidden = stretch(seeds, _TIME, time, frames, spec.shape[2])[:, None]
    hidden = hidden | stretch(seeds, _BAND, band, bands, spec.shape[1])[:, :, None]
    return torch.where(hidden & valid[:, None], mean[:, None, None], spec)


def stretch(seeds, stream, share, extent, size):
    """A run of 0 to share · extent places anywhere within `extent` (M,) -> bool (M, size)."""
    u = uniform(seeds, 2, stream)
    width = (u[:, 0] * (torch.floor(share * extent) + 1)).long()
    start = (u[:, 1] * (extent - width + 1)).long()
    place = torch.arange(size, device=seeds.device)
    return (place >= start[:, None]) & (place < (start + width)[:, None])


def drop_patches(seeds, grid, share, columns=None):
    """Structured patch drop (AudioMAE, M2D): `share` of a window's valid columns and of its rows are left out.

    seeds (M,), grid (T', F'), columns (M,) valid or None -> bool (M, T', F'), True = left out.
    """
    columns = torch.full_like(seeds, grid[0]) if columns is None else columns
    out = torch.zeros(len(seeds), *grid, dtype=torch.bool, device=seeds.device)
    for stream, size, extent, axis in ((_COLUMNS, grid[0], columns, 2),
                                       (_ROWS, grid[1], torch.full_like(seeds, grid[1]), 1)):
        beyond = torch.arange(size, device=seeds.device) >= extent[:, None]
        bits = random_bits(seeds, size, stream).masked_fill(beyond, 1 << 24)
        rank = bits.argsort(dim=1, stable=True).argsort(dim=1)
        out |= (rank < (share * extent).long()[:, None]).unsqueeze(axis)
    return out
