"""Batches of labelled clips: in a training run's order, mixed with their labels or drawn by class; each row once.

A mixed label always belongs to mixed sound. What is drawn is a pure function of (seed, epoch, place).
"""
import numpy as np
import torch
from scipy.special import betaincinv

from wren.sound import loading
from wren.sound.manifest import unit

_DRAW, _MIX, _SHARE, _PARTNER = 111, 112, 113, 114  # numbers of a sample's seed; sound/loading.py has 101 to 105


class Whole:
    """What a loader takes of a split's row: all of `split.read`, at the rate that a Sampling gives, and its streams."""

    def __init__(self, split, sampling):
        self.split, self.sampling = split, sampling

    def __call__(self, manifest, i, seed=None, purpose=None, rate=None):
        rate = rate or (self.sampling.rate_for(manifest.rate(i)) if self.sampling.any_rate else
                        self.sampling.sample_rate)
        clip = {"wave": self.split.read(i, rate=rate), "rate": rate}
        if self.sampling.streams:
            clip["streams"] = self.split.read_streams(i, self.sampling.streams)
        return clip


class LabelledLoader(loading.Loader):
    """Batches of labelled clips in the order of loading.Loader, the same for any number of workers and processes.

    split: rows, targets (int (n,) or bool (n, C)); mixup: share of samples that are mixed with another clip, lambda ~
    Beta(alpha, alpha); balanced: each class is drawn alike, clips without any label as one more class; frames: None, or
    a function row -> bool (T', C), the classes of each frame.

    Yields wave float32 [b, S], lengths int64 [b], seed int64 [b], index int64 [b], target float32 [b, C],
    frames float32 [b, T', C] if asked for, and bad.
    """

    def __init__(self, split, sampling, n_classes, batch_size, seed, *, first=0, steps=None, rank=0, world=1,
                 workers=0, mixup=0.0, alpha=10.0, balanced=False, frames=None):
        super().__init__(split.rows, Whole(split, sampling), batch_size, seed, first, steps, rank, world, workers)
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

    def __init__(self, split, sampling, batch_size, *, rank=0, world=1, workers=0):
        super().__init__(split.rows, Whole(split, sampling), batch_size, rank=rank, world=world, workers=workers)

    def batches(self):
        share = range(self.rank, len(self.manifest), self.world)
        for first in range(0, len(share), self.batch_size):
            yield [(row,) for row in share[first:first + self.batch_size]]

    def sample(self, row, bad):
        return self.take(self.manifest, row) | {"index": row}

    def collate(self, clips):
        return loading.stack(clips) | {"index": torch.tensor([clip["index"] for clip in clips])}
