"""Batches of labelled clips: in a training run's order, mixed with their labels or drawn by class; each row once.

A mixed label always belongs to mixed sound. What is drawn is a pure function of (seed, epoch, place).
"""
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betaincinv

from wren.cli import UserError
from wren.sound import loading
from wren.sound.audio import BadAudio
from wren.sound.manifest import unit
from wren.tasks.task import Split

_DRAW, _MIX, _SHARE, _PARTNER = 111, 112, 113, 114  # numbers of a sample's seed; sound/loading.py has 101 to 105


@dataclass(frozen=True)
class Whole:
    """What a loader takes of a split's row: all that there is, at the rate that a Sampling gives, and its streams."""
    split: Split
    sampling: loading.Sampling

    def __call__(self, manifest, i, seed=None, purpose=None, rate=None):
        return self.split.take(i, lambda recorded: rate or self.sampling.rate_for(recorded), self.sampling.streams)

    def samples(self, rate):
        return None  # a batch is as long as its longest clip


class LabelledLoader(loading.Loader):
    """Batches of labelled clips in the order of loading.Loader, the same for any number of workers and processes.

    split: rows, targets (int (n,) or bool (n, C)); mixup: share of samples that are mixed with another clip, lambda ~
    Beta(alpha, alpha); balanced: each class is drawn alike, clips without any label as one more class; frames: None, or
    a function row -> bool (T', C), the classes of each frame; order: what else a Loader knows.

    Yields loading.Loader's batches with target float32 [b, C], and frames float32 [b, T', C] if asked for.
    """

    def __init__(self, split, sampling, n_classes, batch_size, seed, *, mixup=0.0, alpha=10.0, balanced=False,
                 frames=None, **order):
        super().__init__(split.rows, Whole(split, sampling), batch_size, seed, **order)
        self.targets = np.asarray(split.targets)
        if self.targets.ndim == 1:
            self.targets = np.eye(n_classes, dtype=np.float32)[self.targets]
        self.mixup, self.alpha, self.frames = mixup if len(split.rows) > 1 else 0.0, alpha, frames
        self.drawn = np.cumsum(_balanced_weights(self.targets)) if balanced else None

    def batches(self):
        """Lists of (epoch, place, row): balanced draws are made afresh at each place of the endless order."""
        for samples in super().batches():
            yield [(epoch, place, place if self.drawn is None else
                    int(np.searchsorted(self.drawn, unit(self.seed, epoch, place, _DRAW) * self.drawn[-1], "right")))
                   for epoch, place in samples]

    def _labelled(self, row, seed, bad, rate=None):
        clip, row = self.read(row, seed, None, bad, rate)
        frames = {"frames": self.frames(row).astype(np.float32)} if self.frames else {}
        return clip | frames | {"index": row, "target": self.targets[row].astype(np.float32)}

    def sample(self, epoch, place, row, bad):
        """A clip with its target [C] and frames [T', C], or two of them mixed with their labels."""
        seed = loading.sample_seed(self.seed, epoch, place)
        clip = self._labelled(row, seed, bad) | {"seed": seed}
        if unit(seed, _MIX) >= self.mixup:
            return clip
        other = clip["index"] + 1 + int(unit(seed, _PARTNER) * (len(self.manifest) - 1))  # never itself
        other = self._labelled(other % len(self.manifest), seed, bad, clip["rate"])
        share = float(betaincinv(self.alpha, self.alpha, unit(seed, _SHARE)))
        for name in {"wave", "target", "frames"} & clip.keys():
            clip[name] = _blend(clip[name], other[name], share)
        for name, values in clip.get("streams", {}).items():
            n = min(values.shape[1], other["streams"][name].shape[1])  # NaN, what one of them lacks, stays NaN
            clip["streams"][name] = share * values[:, :n] + (1 - share) * other["streams"][name][:, :n]
        return clip

    def collate(self, clips):
        batch = super().collate(clips) | {"target": torch.from_numpy(np.stack([clip["target"] for clip in clips]))}
        if self.frames:
            frames = [torch.from_numpy(clip["frames"]) for clip in clips]
            batch["frames"] = torch.nn.utils.rnn.pad_sequence(frames, True)
        return batch


def _blend(a, b, share):
    """share · a + (1 - share) · b of arrays [n, …] that may differ in length; zeros follow the shorter one."""
    out = np.zeros((max(len(a), len(b)), *a.shape[1:]), dtype=np.float32)
    out[:len(a)] += share * a
    out[:len(b)] += (1 - share) * b
    return out


def _balanced_weights(targets):
    """targets (n, C) 0 or 1 -> (n,): how often a row should be drawn, the sum of 1 / count over its classes; rows
    without any label are one more class."""
    targets = np.column_stack([targets, ~targets.astype(bool).any(1)]).astype(float)
    return (targets / np.maximum(targets.sum(0), 1)).sum(1)


class InOrder(loading.Loader):
    """Every row once, for evaluation: this process's share in batches. What can't be read is an error of one line."""

    def __init__(self, split, sampling, batch_size, **order):
        super().__init__(split.rows, Whole(split, sampling), batch_size, **order)

    def batches(self):
        share = range(self.rank, len(self.manifest), self.world)
        for first in range(0, len(share), self.batch_size):
            yield [(row,) for row in share[first:first + self.batch_size]]

    def sample(self, row, bad):
        try:
            return self.take(self.manifest, row) | {"index": row}
        except BadAudio as error:
            raise UserError(f"{error}: every clip of a task is needed; mend the file, or take it out of the "
                            "table") from None

    def collate(self, clips):
        return loading.stack(clips) | {"index": torch.tensor([clip["index"] for clip in clips])}
