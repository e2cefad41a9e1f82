"""Long recordings as windows: streamed from disk, resampled on the way, batched across recordings.

    recordings = Recordings(["FOLDER", "a.wav", "b/*.flac", "manifest.csv"])
    for wave, lengths, places in batches(recordings, Cut(16000, window=10.24, hop=10.24), batch_size=8, workers=1):
        ...    # wave (B, S), lengths (B,), places: (Stretch, number of the window) of each row

A recording is never in memory as a whole: a reader decodes a few windows of it at a time, wherever they lie, and they
are the samples that resampling the whole recording would give. Its last window may reach beyond the end, and is then
filled up with zeros; no sound is left out.
"""
import glob
import os
import re
import warnings
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np

import audio
from cli import UserError
from corpus import find
from manifest import build, open_manifest

_PIECE = 1 << 20  # samples, at the recording's rate, that are decoded and resampled at a time
_UNIT = 1 << 20  # samples of the windows that a reader hands over at a time: 4 MB


# -------------------------------------------------------------------------------------------------- what is read

class Recordings:
    """What a command line names, as one list: audio files, folders (searched deeply), globs, manifests, shards."""

    def __init__(self, sources):
        self.rows, self.names, files = [], [], {}  # (manifest, row); path below what was named; path -> its name
        for source in map(str, sources):
            named = sorted(glob.glob(source, recursive=True)) if not os.path.exists(source) else [source]
            if not named:
                what = "matches no file" if re.search(r"[*?\[]", source) else "no such file, folder or manifest"
                raise UserError(f"{source}: {what}")
            for path in named:
                if os.path.isdir(path) and not any(Path(path).glob("*.tar")):
                    found = find(path)
                    if not found and path == source:
                        raise UserError(f"{path}: no audio files ({' '.join(audio.AUDIO_SUFFIXES[:4])} …) below it")
                    files |= {os.path.abspath(p): os.path.relpath(p, path) for p in found}
                elif path.lower().endswith(audio.AUDIO_SUFFIXES):
                    files.setdefault(os.path.abspath(path), os.path.basename(path))
                else:
                    self._add(open_manifest(path))
        if files:
            self._add(build(list(files), bases=("/",)), list(files.values()))

    def _add(self, manifest, names=None):
        self.rows += [(manifest, i) for i in range(len(manifest))]
        self.names += names or [manifest.path(i) for i in range(len(manifest))]

    def __len__(self):
        return len(self.rows)

    def path(self, k):
        """Where recording k lies, as an absolute path (in shards: as the shard names it)."""
        manifest, i = self.rows[k]
        return manifest.path(i) if manifest.entries is not None else os.path.abspath(manifest.locate(i))

    def start(self, k):
        """Where its stretch begins, in seconds of the file."""
        manifest, i = self.rows[k]
        if not manifest.start[i]:
            return 0.0
        return round(int(manifest.start[i]) / (int(manifest.sample_rate[i]) or audio.info(self.path(k))[1]), 6)

    def open(self, k):
        manifest, i = self.rows[k]
        return manifest.open(i)


@dataclass(frozen=True)
class Cut:
    """How recordings become windows: rate in Hz, window and hop in seconds, hop at most the window."""
    rate: int
    window: float
    hop: float

    @property
    def samples(self):
        return max(1, round(self.window * self.rate))

    @property
    def hop_samples(self):
        return max(1, round(self.hop * self.rate))


@dataclass(frozen=True)
class Stretch:
    """A recording, or a part of one, and its windows. Window n begins at sample n · hop at the rate of the cut."""
    index: int  # of the recording in Recordings
    cut: Cut
    rate: int  # Hz of the recording
    first: int  # its first sample in the file, at its own rate
    frames: int  # samples at its own rate

    @property
    def samples(self):
        """Its length at the rate of the cut."""
        old, new = audio.ratio(self.rate, self.cut.rate)
        return ceil(self.frames * new / old)

    def __len__(self):
        """Windows: as many as it takes to reach the end."""
        return 1 + max(0, ceil((self.samples - self.cut.samples) / self.cut.hop_samples))

    def length(self, n):
        """Valid samples of window n."""
        return min(self.cut.samples, self.samples - n * self.cut.hop_samples)

    def seconds(self, sample):
        """The time in the file of a sample at the rate of the cut, by the recording's own clock."""
        old, new = audio.ratio(self.rate, self.cut.rate)
        return (self.first + np.minimum(np.asarray(sample) * old / new, self.frames)) / self.rate

    def span(self, n):
        """(start, end) of window n in seconds of the file."""
        start = n * self.cut.hop_samples
        return float(self.seconds(start)), float(self.seconds(start + self.length(n)))

    def own(self, n):
        """The part (low, high) of window n, in samples from its start, that no other window has nearer its middle."""
        overlap = self.cut.samples - self.cut.hop_samples
        low = 0 if n == 0 else overlap / 2
        high = self.length(n) if n == len(self) - 1 else self.cut.samples - overlap / 2
        return low, high

    def columns(self, n, count, step):
        """Which of the `count` token columns of window n, one each `step` samples, are its own: a slice, and their
        starts and ends (T',) in seconds. The last one of a window reaches to its end, so that there are no gaps."""
        begin, length = n * self.cut.hop_samples, self.length(n)
        starts = np.arange(max(1, min(count, ceil(length / step - 1e-6)))) * step
        ends = np.append(starts[1:], length)
        low, high = self.own(n)
        own = np.flatnonzero(((starts + ends) / 2 >= low) & ((starts + ends) / 2 < high))
        own = slice(own[0], own[-1] + 1) if len(own) else slice(0, 0)
        return own, self.seconds(begin + starts[own]), self.seconds(begin + ends[own])


def resampled(clip, frames, start, stop, rate):
    """Samples start … stop of a recording as it is at `rate` Hz, decoding only what they take -> float32 [stop - start].

    clip: an open `manifest.Clip` of `frames` samples. The filter repeats itself every `old` samples in and `new` out:
    pieces that begin at such a place, with the filter's length around them, give what the whole would.
    """
    old, new = audio.ratio(clip.rate, rate)
    margin = 0 if old == new else 1 + ceil(7 * max(1, old / new) / old)  # in periods; the filter has 6 zero crossings
    step, parts = max(1, _PIECE * new // old), []
    for low in range(start, stop, step):
        high = min(low + step, stop)
        before = max(0, low // new - margin)
        after = min(frames, (ceil(high / new) + margin) * old)
        wave = audio.resample(clip.read(before * old, after - before * old), old, new)
        parts.append(wave[low - before * new:high - before * new])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


# ------------------------------------------------------------------------------------------------------- reading

class _Reader:
    """Decodes units, in a reader process or here: (Stretch, first window, windows) -> tensors, or the reason why not.

    The last recording stays open, since the next unit mostly is of the same one.
    """

    def __init__(self, recordings):
        self.recordings, self.open = recordings, (None, None)

    def __getitem__(self, unit):
        import torch
        stretch, first, count = unit
        cut, end = stretch.cut, first + count - 1
        start, stop = first * cut.hop_samples, end * cut.hop_samples + stretch.length(end)
        try:
            wave = resampled(self._clip(stretch.index), stretch.frames, start, stop, cut.rate)
        except audio.BadAudio as error:
            return stretch, first, error.reason, None
        lengths = torch.tensor([stretch.length(first + n) for n in range(count)])
        padded = np.zeros((count - 1) * cut.hop_samples + cut.samples, np.float32)
        padded[:len(wave)] = wave
        return stretch, first, torch.from_numpy(padded).unfold(0, cut.samples, cut.hop_samples).clone(), lengths

    def _clip(self, index):
        if self.open[0] != index:
            if self.open[1] is not None:
                self.open[1].sound.close()
            self.open = None, None
            self.open = index, self.recordings.open(index)
        return self.open[1]


def _units(recordings, cut, bad, skip):
    """What is to be decoded, in order. Headers are read here, as late as possible."""
    count = max(1, _UNIT // cut.samples)
    for k in range(len(recordings)):
        if skip(k):
            continue
        try:
            with recordings.open(k) as clip:
                stretch = Stretch(k, cut, clip.rate, clip.first, clip.frames)
            if not stretch.frames:
                raise audio.BadAudio("holds no sound")
        except audio.BadAudio as error:
            bad[k] = error.reason
            continue
        for first in range(0, len(stretch), count):
            if k in bad:
                break
            yield stretch, first, min(count, len(stretch) - first)


def batches(recordings, cut, batch_size, workers=1, bad=None, skip=lambda k: False):
    """Windows of all recordings, in order -> wave float32 (B, S), lengths int64 (B,), places [(Stretch, n)] of B.

    A batch holds `batch_size` windows, of several recordings where they are short; S is its longest window. What can't
    be read goes to `bad` {index of the recording: reason}, even if windows of it came before. skip(k): recordings that
    are left out. The result does not depend on `workers`, the processes that decode while the model runs.
    """
    import torch
    from torch.utils.data import DataLoader
    bad, several = {} if bad is None else bad, {}
    if workers:
        from sys import platform
        several = dict(multiprocessing_context="fork" if platform == "linux" else None, prefetch_factor=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # workers beyond cores: one's own choice
        units = DataLoader(_Reader(recordings), batch_size=None, sampler=_units(recordings, cut, bad, skip),
                           num_workers=workers, **several)
    waiting = []  # (window, valid samples, (Stretch, n))
    for stretch, first, windows, lengths in units:
        if stretch.index in bad:
            continue
        if isinstance(windows, str):
            bad[stretch.index] = windows
            continue
        waiting += [(windows[n], int(lengths[n]), (stretch, first + n)) for n in range(len(windows))]
        while len(waiting) >= batch_size:
            yield _batch(waiting[:batch_size])
            del waiting[:batch_size]
    if waiting:
        yield _batch(waiting)


def _batch(rows):
    import torch
    lengths = torch.tensor([length for _, length, _ in rows])
    return torch.stack([window[:int(lengths.max())] for window, _, _ in rows]), lengths, [place for *_, place in rows]
