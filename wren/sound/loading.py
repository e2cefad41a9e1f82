"""Sound for training: clips in a reproducible order, and changes of waves on their device."""
import json
import os
import warnings
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path

import numpy as np

from wren.sound import audio
from wren.sound import streams
from wren.cli import UserError
from wren.sound.manifest import mix, permutation, unit

# Which number of a sample's stream is for what; masks and augmentation on the device have streams of their own.
_CROP, _PARTNER, _PARTNER_CROP, _DROP, _RATE = 101, 102, 103, 104, 105
_GIVE_UP = 100  # unreadable rows in a row after which something else must be wrong


# ---------------------------------------------------------------------------------------------------------- clips

def pad_batch(waves, length=None):
    """Waves float32 [S_i] -> (float32 [B, S] padded with zeros, int64 [B] valid samples); longer ones are cut to
    `length`. S is `length`, or the longest wave."""
    import torch
    length = length or max(len(wave) for wave in waves)
    batch = torch.zeros(len(waves), length)
    for row, wave in zip(batch.numpy(), waves):
        row[:len(wave)] = wave[:length]
    return batch, torch.tensor([min(len(wave), length) for wave in waves], dtype=torch.int64)


def _apart(worker):
    """A loader's worker leaves the process group of its trainer. torchrun passes signals on to the whole group, and a
    worker that is ended takes the trainer with it before it can save."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


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
            rows = [torch.from_numpy(clip["streams"][name]) for clip in clips]
            batch["streams"][name] = out = torch.full((len(rows), len(rows[0]), max(r.shape[1] for r in rows)),
                                                      float("nan"))
            for one, row in zip(out, rows):
                one[:, :row.shape[1]] = row
    return batch


@dataclass
class Cropper:
    """What is taken from a row: `clip_seconds` at `sample_rate` Hz, from a place that `seed` decides.

    any_rate: at the recording's own rate, if that is lower.
    crop: "random" (anywhere), "start", or "active" (of `candidates` places the one with the most call-like activity).
    lower: share of clips that with any_rate are taken at half their rate, or a quarter …, down to 8 kHz.
    streams: (name, channels, rate in Hz) of what is taken along; stream_drop: how often each is left out.
    """
    sample_rate: int
    clip_seconds: float
    crop: str = "random"
    candidates: int = 4
    min_seconds: float = 0.05
    any_rate: bool = False
    lower: float = 0.0
    streams: tuple = ()
    stream_drop: float = 0.0

    def __post_init__(self):
        if self.crop not in ("random", "start", "active"):
            raise UserError(f"--crop {self.crop}: give random, start or active")

    def samples(self, rate):
        return round(self.clip_seconds * rate)

    def __call__(self, manifest, i, seed, stream=_CROP, rate=None):
        """Row i -> {"wave": float32 [at most samples], "rate": its rate in Hz, `rate` if that is given}, and, if it was
        asked for, "streams" {name: float32 [channels, n]} of the same stretch. Raises BadAudio."""
        with manifest.open(i) as clip:
            need = ceil(self.clip_seconds * clip.rate)
            room = clip.frames - need
            if clip.frames < max(1, self.min_seconds * clip.rate):
                raise audio.BadAudio(f"{clip.frames} frames are shorter than {self.min_seconds} s",
                                     audio.shown(manifest.path(i)))
            if room <= 0:
                start, wave = 0, clip.read()
            elif self.crop == "active":
                from wren.sound.activity import most_active
                starts = sorted(int(unit(seed, stream, k) * (room + 1)) for k in range(self.candidates))
                waves = [clip.read(start, need) for start in starts]
                wave = most_active(waves, clip.rate)
                start = next(start for start, one in zip(starts, waves) if one is wave)
            else:
                start = int(unit(seed, stream, 0) * (room + 1)) if self.crop == "random" else 0
                wave = clip.read(start, need)
            if rate is None:
                rate = min(clip.rate, self.sample_rate) if self.any_rate else self.sample_rate
                if unit(seed, _RATE, 0) < self.lower and (halvings := int(log2(max(1, rate / 8000)))):
                    rate //= 2 ** (1 + int(halvings * unit(seed, _RATE, 1)))
            out = {"wave": audio.resample(wave, clip.rate, rate)[:self.samples(rate)], "rate": rate}
            if self.streams:
                seconds = min(self.clip_seconds, len(out["wave"]) / rate)
                out["streams"] = streams.cut(manifest, i, (clip.first + start) / clip.rate, seconds, self.streams)
                for k, name in enumerate(out["streams"]):
                    if unit(seed, _DROP, k) < self.stream_drop:
                        out["streams"][name][:] = np.nan
            return out


def sample_seed(seed, epoch, index):
    """What everything random about a sample follows from: int64."""
    return int(mix(seed, epoch, index, 7).view(np.int64)[0])


class Loader:
    """An endless or `steps` long sequence of batches; see `loader`."""

    def __init__(self, manifest, cropper, batch_size, seed, first, steps, rank, world, workers, partner):
        if not len(manifest):
            raise UserError(f"{manifest.origin or 'the data'} holds no clips to load")
        self.manifest, self.cropper, self.batch_size, self.seed = manifest, cropper, batch_size, seed
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
        from sys import platform

        import torch
        from torch.utils.data import DataLoader
        several = {}
        if self.workers:
            # fork shares the manifest with the workers; elsewhere than on Linux it is unsafe and the copies are small
            context = "fork" if platform == "linux" else None
            several = dict(multiprocessing_context=context, prefetch_factor=2, worker_init_fn=_apart)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This DataLoader will create")  # workers beyond cores: one's own choice
            load = iter(DataLoader(self, batch_size=None, sampler=self.batches(), num_workers=self.workers,
                                   pin_memory=torch.cuda.is_available() and torch.cuda.is_initialized(), **several))
        error = None
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
        if not self.cropper.any_rate:
            return self.collate(clips) | {"bad": bad}
        return {"parts": [self.collate(some) | {"rate": rate} for rate, some in by_rate(clips)], "bad": bad}

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
        size = self.cropper.samples(clips[0]["rate"])
        batch = {key: torch.tensor([clip[key] for clip in clips], dtype=torch.int64) for key in ("index", "seed")}
        if self.partner:
            batch["partner"], batch["partner_lengths"] = pad_batch([clip["partner"] for clip in clips], size)
        return batch | stack(clips, size)

    def read(self, index, seed, stream, bad, rate=None):
        """Row `index`, or the next one that can be read -> (clip, its row). What can't be read goes to `bad`."""
        for k in range(min(_GIVE_UP, len(self.manifest))):
            row = (index + k) % len(self.manifest)
            try:
                return self.cropper(self.manifest, row, seed, stream, rate), row
            except audio.BadAudio as error:
                bad.append({"path": audio.shown(self.manifest.path(row)), "start": int(self.manifest.start[row]),
                            "reason": error.reason})
        raise UserError(f"{len(bad)} clips one after another can't be read, for example {bad[-1]['path']}: "
                        f"{bad[-1]['reason']}. Do the manifest's paths start at {' or '.join(self.manifest.bases)}?")


def loader(manifest, *, sample_rate, clip_seconds, batch_size, seed, first=0, steps=None, rank=0, world=1, workers=0,
           crop="random", candidates=4, min_seconds=0.05, partner=False, any_rate=False, lower=0.0,
           streams=(), stream_drop=0.0):
    """Batches of clips, the same whatever the number of workers and processes and wherever one starts.

    batch_size: clips of all processes together; sample k of the run is row permutation(seed, epoch)[k mod n] of epoch
    k div n, and `first` is the number of samples already seen: all the state there is. Yields dicts:
    wave float32 [b, S], lengths int64 [b] (valid samples; the rest is zero), index int64 [b] (rows of the manifest),
    seed int64 [b] (a hash of (seed, epoch, row), for masks and augmentation), bad (list of {path, start, reason},
    rows that were replaced by the next good one), and with `partner` partner [b, S] and partner_lengths [b]: another
    clip. With any_rate clips keep their own rate, if it is lower: {"parts", "bad"}, with a batch and its "rate" for
    each, lower rates first; they are the same clips in the same steps, only cut in another way; `lower` is the share
    of them that is heard at a lower rate still. With `streams`, each
    (name, channels, rate in Hz), there is streams {name: float32 [b, channels, n]} of the same stretch, value k at
    k / rate seconds of the wave, NaN where there is nothing.
    """
    cropper = Cropper(sample_rate, clip_seconds, crop, candidates, min_seconds, any_rate, lower, tuple(streams),
                      stream_drop)
    return Loader(manifest, cropper, batch_size, seed, first, steps, rank, world, workers, partner)


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


# --------------------------------------------------------------------------------------------------- augmentation

def augment(wave, lengths, seeds, partner=None, partner_lengths=None, gain=0.0, shift=False, mix_snr=None,
            polarity=False):
    """Batched changes of waves on their device, each a function of the clip's seed. Nothing is changed by default.

    wave [B, S] and lengths int64 [B] (valid samples, the rest stays zero); seeds int64 [B];
    mix_snr (low, high) dB: partner [B, S] (partner_lengths [B] valid) is added at a signal-to-noise ratio drawn
    from it; shift: the valid part turns around a circle by a drawn share of its length; polarity: half of the clips
    are negated; gain dB: a level drawn from -gain … +gain. -> wave [B, S], a new tensor if anything was changed.
    """
    import torch

    from masking import uniform
    draw = {name: uniform(seeds, 1, stream) for name, stream in
            (("snr", 31), ("shift", 32), ("polarity", 33), ("gain", 34))}  # [B, 1] each
    time = torch.arange(wave.shape[1], device=wave.device)
    lengths = lengths[:, None]
    if mix_snr is not None:
        if partner is None:
            raise UserError("mixing needs partners: load them with partner=True")
        low, high = mix_snr
        power = wave.square().sum(1, keepdim=True) / lengths
        noise = partner * (time < lengths)
        there = lengths if partner_lengths is None else torch.minimum(partner_lengths[:, None], lengths)
        noise_power = noise.square().sum(1, keepdim=True) / there
        snr = low + (high - low) * draw["snr"]
        scale = (power / noise_power.clamp(min=1e-12) * 10 ** (-snr / 10)).sqrt()
        wave = wave + scale * noise
    if shift:
        by = (draw["shift"].double() * lengths).long()  # float32 holds too few digits for a sample number
        wave = torch.where(time < lengths, wave.gather(1, (time - by) % lengths), wave)
    if polarity:
        wave = torch.where(draw["polarity"] < 0.5, -wave, wave)
    if gain:
        wave = wave * 10 ** (gain * (2 * draw["gain"] - 1) / 20)
    return wave
