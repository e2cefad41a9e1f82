"""Sound for training: clips in a reproducible order, from any number of processes, from any place on."""
import json
import os
import sys
import warnings
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path

import numpy as np

from wren.cli import UserError
from wren.sound import audio, streams
from wren.sound.manifest import mix, permutation, unit
from wren.sound.quality import MIN_SECONDS

# Which number of a sample's seed is for what; masks and augmentation on the device have numbers of their own.
_CROP, _PARTNER, _PARTNER_CROP, _DROP, _RATE = 101, 102, 103, 104, 105
_GIVE_UP = 100  # unreadable rows in a row after which something else must be wrong


# ---------------------------------------------------------------------------------------------------------- clips

@dataclass(frozen=True)
class Sampling:
    """At which rate an encoder is given recordings, and what comes along with the sound."""
    sample_rate: int  # Hz
    any_rate: bool = False  # at a recording's own rate, if that is lower
    lower: float = 0.0  # share of clips that with any_rate are taken at half their rate, or a quarter …, down to 8 kHz
    streams: tuple = ()  # (name, channels, rate in Hz) of each
    stream_drop: float = 0.0  # share of clips from which a stream is left out

    @classmethod
    def of(cls, config, lower=0.0, stream_drop=0.0):
        """As an encoder of this config wants it."""
        any_rate = config.rate == "any"
        return cls(config.sample_rate, any_rate, lower if any_rate else 0.0, config.stream_rates, stream_drop)

    def rate_for(self, recorded, seed=None):
        """Hz at which a recording of `recorded` Hz is taken; seed: of the clip, for `lower`."""
        rate = min(recorded, self.sample_rate) if self.any_rate else self.sample_rate
        halvings = int(log2(max(1, rate / 8000)))
        if self.lower and halvings and unit(seed, _RATE, 0) < self.lower:
            rate //= 2 ** (1 + int(halvings * unit(seed, _RATE, 1)))
        return rate


@dataclass(frozen=True)
class Cropper:
    """What is taken from a row: `clip_seconds` from a place that the clip's seed decides."""
    sampling: Sampling
    clip_seconds: float
    crop: str = "random"  # anywhere, or "start"

    def samples(self, rate):
        return round(self.clip_seconds * rate)

    def __call__(self, manifest, i, seed, purpose=_CROP, rate=None):
        """Row i -> {"wave": float32 [at most samples], "rate": its rate in Hz, `rate` if that is given}, and, if there
        are any, "streams" {name: float32 [channels, n]} of the same stretch. Raises BadAudio."""
        with manifest.open(i) as clip:
            if clip.frames < max(1, MIN_SECONDS * clip.rate):
                raise audio.BadAudio(f"{clip.frames} frames are shorter than {MIN_SECONDS} s",
                                     audio.printable(manifest.path(i)))
            start, wave = self._stretch(clip, seed, purpose)
            rate = rate or self.sampling.rate_for(clip.rate, seed)
            out = {"wave": audio.resample(wave, clip.rate, rate)[:self.samples(rate)], "rate": rate}
            if self.sampling.streams:
                seconds = min(self.clip_seconds, len(out["wave"]) / rate)
                out["streams"] = streams.cut(manifest, i, (clip.first + start) / clip.rate, seconds,
                                             self.sampling.streams)
                for k, values in enumerate(out["streams"].values()):
                    if unit(seed, _DROP, k) < self.sampling.stream_drop:
                        values[:] = np.nan
            return out

    def _stretch(self, clip, seed, purpose):
        """(start in samples, wave at the recording's rate)."""
        need = ceil(self.clip_seconds * clip.rate)
        room = clip.frames - need
        if room <= 0:
            return 0, clip.read()
        start = 0 if self.crop == "start" else int(unit(seed, purpose, 0) * (room + 1))
        return start, clip.read(start, need)


# -------------------------------------------------------------------------------------------------------- batches

def pad_batch(waves, length=None):
    """Waves float32 [S_i] -> (float32 [B, S] padded with zeros, int64 [B] valid samples); longer ones are cut to
    `length`. S is `length`, or the longest wave."""
    import torch
    length = length or max(len(wave) for wave in waves)
    batch = torch.zeros(len(waves), length)
    for row, wave in zip(batch.numpy(), waves):
        row[:len(wave)] = wave[:length]
    return batch, torch.tensor([min(len(wave), length) for wave in waves], dtype=torch.int64)


def by_rate(clips):
    """Clips (dicts) in groups of one sample rate: [(rate, clips)], lower rates first, clips in order."""
    return [(rate, [clip for clip in clips if clip["rate"] == rate]) for rate in sorted({c["rate"] for c in clips})]


def parts(batches):
    """Batches in which each has one sample rate."""
    for batch in batches:
        yield from batch.get("parts", [batch])


def stack(clips, samples=None):
    """Clips of one rate (as a Cropper gives them) -> {"wave" float32 [b, S], "lengths" int64 [b]}, and "streams" {name:
    float32 [b, channels, n]} if they have any, NaN after a clip's end. S is `samples`, or that of the longest."""
    import torch
    wave, lengths = pad_batch([clip["wave"] for clip in clips], samples)
    batch = {"wave": wave, "lengths": lengths}
    if "streams" in clips[0]:
        batch["streams"] = {}
        for name in clips[0]["streams"]:
            rows = [torch.from_numpy(clip["streams"][name].T) for clip in clips]
            batch["streams"][name] = torch.nn.utils.rnn.pad_sequence(rows, True, float("nan")).mT.contiguous()
    return batch


def sample_seed(seed, epoch, index):
    """What everything random about a sample follows from: int64."""
    return int(mix(seed, epoch, index, 7).view(np.int64)[0])


class Loader:
    """An endless or `steps` long sequence of batches, the same whatever the number of workers and processes and
    wherever one starts.

    take: a Cropper; batch_size: clips of all processes together; sample k of the run is row permutation(seed, epoch)[k
    mod n] of epoch k div n, and `first` is the number of samples already seen: all the state there is. partner: load
    another clip with each. Yields dicts: wave float32 [b, S], lengths int64 [b] (valid samples; the rest is zero),
    index int64 [b] (rows of the manifest), seed int64 [b] (a hash of (seed, epoch, row), for masks and augmentation),
    bad (list of {path, start, reason}, rows that were replaced by the next good one), and, asked for, partner [b, S]
    and partner_lengths [b], streams as `stack` gives them, value k at k / rate seconds of the wave.
    Where clips keep their own rate: {"parts", "bad"}, with a batch and its "rate" for each, lower rates first; they
    are the same clips in the same steps, only cut in another way.
    """

    def __init__(self, manifest, take, batch_size, seed=0, first=0, steps=None, rank=0, world=1, workers=0,
                 partner=False):
        if not len(manifest):
            raise UserError(f"{manifest.origin or 'the data'} holds no clips to load")
        self.manifest, self.take, self.batch_size, self.seed = manifest, take, batch_size, seed
        self.first, self.steps, self.rank, self.world = first, steps, rank, world
        self.workers, self.partner = workers, partner

    def batches(self):
        """Which samples this process takes, batch by batch: lists of (epoch, index). Batch k of the run holds samples
        first + k B … of the endless order; a process takes its contiguous part."""
        n, orders, step = len(self.manifest), {}, 0
        low, high = (self.batch_size * r // self.world for r in (self.rank, self.rank + 1))
        while self.steps is None or step < self.steps:
            places = range(self.first + step * self.batch_size + low, self.first + step * self.batch_size + high)
            orders = {epoch: orders[epoch] if epoch in orders else permutation(self.seed, epoch, n)
                      for epoch in {k // n for k in places}}
            yield [(k // n, int(orders[k // n][k % n])) for k in places]
            step += 1

    def __iter__(self):
        import torch
        load, error = decode(self, self.batches(), self.workers,
                             torch.cuda.is_available() and torch.cuda.is_initialized()), None
        for batch in load:
            if error := batch.get("error"):
                break
            yield batch
        del load  # the workers end here, not whenever the exception's traceback is collected
        if error:
            raise UserError(error)

    def __getitem__(self, samples):
        """One process's batch, in a worker: [(epoch, index)] -> dict."""
        bad = []
        try:
            clips = [self.sample(*sample, bad) for sample in samples]
        except UserError as error:  # a worker's exception would arrive as a traceback
            return {"error": str(error)}
        if not self.take.sampling.any_rate:
            return self.collate(clips) | {"bad": bad}
        return {"parts": [self.collate(group) | {"rate": rate} for rate, group in by_rate(clips)], "bad": bad}

    def sample(self, epoch, index, bad):
        """One clip, as `collate` takes it."""
        seed = sample_seed(self.seed, epoch, index)
        clip, row = self.read(index, seed, _CROP, bad)
        if self.partner:
            other = int(unit(seed, _PARTNER) * (len(self.manifest) - 1))
            other += other >= index  # any row but this one
            other = self.read(other % len(self.manifest), seed, _PARTNER_CROP, bad, clip["rate"])[0]
            clip["partner"] = other["wave"]
        return clip | {"index": row, "seed": seed}

    def collate(self, clips):
        """Clips of one rate -> a batch."""
        import torch
        size = self.take.samples(clips[0]["rate"])
        batch = {key: torch.tensor([clip[key] for clip in clips], dtype=torch.int64) for key in ("index", "seed")}
        if self.partner:
            batch["partner"], batch["partner_lengths"] = pad_batch([clip["partner"] for clip in clips], size)
        return batch | stack(clips, size)

    def read(self, index, seed, purpose, bad, rate=None):
        """Row `index`, or the next one that can be read -> (clip, its row). What can't be read goes to `bad`."""
        for k in range(min(_GIVE_UP, len(self.manifest))):
            row = (index + k) % len(self.manifest)
            try:
                return self.take(self.manifest, row, seed, purpose, rate), row
            except audio.BadAudio as error:
                bad.append({"path": audio.printable(self.manifest.path(row)), "start": int(self.manifest.start[row]),
                            "reason": error.reason})
        raise UserError(f"{len(bad)} clips one after another can't be read, for example {bad[-1]['path']}: "
                        f"{bad[-1]['reason']}. Do the manifest's paths start at {' or '.join(self.manifest.bases)}?")


def decode(dataset, order, workers, pin=False):
    """An iterator over dataset[unit] for each unit of `order`, which so many worker processes get meanwhile."""
    from torch.utils.data import DataLoader
    options = {}
    if workers:
        # fork shares the manifest with the workers; elsewhere than on Linux it is unsafe and the copies are small
        options = dict(multiprocessing_context="fork" if sys.platform == "linux" else None, prefetch_factor=2,
                       worker_init_fn=_leave_group)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # workers beyond cores: one's own choice
        return iter(DataLoader(dataset, batch_size=None, sampler=order, num_workers=workers, pin_memory=pin, **options))


def _leave_group(worker):
    """A loader's worker leaves the process group of its trainer. torchrun passes signals on to the whole group, and a
    worker that is ended takes the trainer with it before it can save."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


class BadLog:
    """Appends what couldn't be read to a JSON lines file and stops the run above a share of `max_bad`."""

    def __init__(self, path, max_bad=0.001):
        self.path, self.max_bad, self.bad, self.seen = Path(path), max_bad, 0, 0

    def add(self, rows, count, seen):
        """rows: this process's list; count, seen: unreadable clips and clips of all processes since the last call."""
        self.bad, self.seen = self.bad + count, self.seen + seen
        if rows:
            with open(self.path, "a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
        if self.bad >= 10 and self.bad > self.max_bad * self.seen:  # one among the first few is no share yet
            raise UserError(f"{self.bad} of {self.seen} clips could not be read, more than --max-bad "
                            f"{self.max_bad:g}; they are listed in {self.path}: mend or remove them (python data.py "
                            "check), or raise --max-bad")
