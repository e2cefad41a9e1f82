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
import time
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from wren.cli import Pulse, UserError, warn
from wren.sound import audio, quality
from wren.sound.ahead import ahead, sent
from wren.sound.loading import decode
from wren.sound.manifest import build
from wren.sound.opening import open_manifest
from wren.sound.scan import find

_PIECE = 1 << 20  # samples, at the recording's rate, that are decoded and resampled at a time
_UNIT = 1 << 20  # samples of the windows that a reader hands over at a time: 4 MB
CPU_TOKENS, GPU_TOKENS = 4096, 32768  # of a batch whose size nobody gave


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
                    for p in found:
                        files.setdefault(os.path.abspath(p), os.path.relpath(p, path))
                elif path.lower().endswith(audio.AUDIO_SUFFIXES):
                    files.setdefault(os.path.abspath(path), os.path.basename(path))
                else:
                    manifest = open_manifest(path)
                    self.rows += [(manifest, i) for i in range(len(manifest))]
                    self.names += [manifest.path(i) for i in range(len(manifest))]
        manifest = build(list(files), bases=("/",))
        self.rows += [(manifest, i) for i in range(len(files))]
        self.names += files.values()

    def __len__(self):
        return len(self.rows)

    def path(self, k):
        """Where recording k lies, as an absolute path (in shards: as the shard names it)."""
        manifest, i = self.rows[k]
        return manifest.path(i) if manifest.entry is not None else os.path.abspath(manifest.locate(i))

    def start(self, k):
        """Where its stretch begins, in seconds of the file."""
        manifest, i = self.rows[k]
        if not manifest.start[i]:
            return 0.0
        return round(int(manifest.start[i]) / (int(manifest.sample_rate[i]) or audio.info(self.path(k))[1]), 6)

    def open(self, k):
        manifest, i = self.rows[k]
        return manifest.open(i)

    def judge(self, k):
        """The verdict on recording k, as `data.py index` would give it: all of it is decoded."""
        return quality.judge_row(*self.rows[k])


@dataclass(frozen=True)
class Cut:
    """How recordings become windows: rate in Hz, window and hop in seconds, hop at most the window. any_rate: of a
    recording with a lower rate its own."""
    rate: int
    window: float
    hop: float
    any_rate: bool = False

    def of(self, recorded):
        return replace(self, rate=min(self.rate, recorded)) if self.any_rate else self

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
    """Samples start … stop of a recording as it is at `rate` Hz, decoding only what they take -> float32 [S].

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
    """Decodes units, in a reader process or here: (Stretch, first window, count) -> windows (count, S), or None where
    they can't be had, and with a recording's first windows the verdict on all of it.

    The last recording stays open, since the next unit mostly is of the same one.
    """

    def __init__(self, recordings):
        self.recordings, self.open = recordings, (None, None)

    def __getitem__(self, unit):
        stretch, first, count = unit
        verdict = self.recordings.judge(stretch.index) if first == 0 else quality.Verdict()
        if not verdict.usable:
            return stretch, first, None, verdict
        cut, end = stretch.cut, first + count - 1
        start, stop = first * cut.hop_samples, end * cut.hop_samples + stretch.length(end)
        try:
            wave = resampled(self._clip(stretch.index), stretch.frames, start, stop, cut.rate)
        except audio.BadAudio as error:
            return stretch, first, None, quality.Verdict("unreadable", error.reason)
        padded = np.zeros((count - 1) * cut.hop_samples + cut.samples, np.float32)
        padded[:len(wave)] = wave
        return stretch, first, torch.from_numpy(padded).unfold(0, cut.samples, cut.hop_samples).clone(), verdict

    def _clip(self, index):
        if self.open[0] != index:
            if self.open[1] is not None:
                self.open[1].sound.close()
            self.open = None, None
            self.open = index, self.recordings.open(index)
        return self.open[1]


def _units(recordings, cut, bad, skip):
    """What is to be decoded, in order. Headers are read here, as late as possible."""
    for k in range(len(recordings)):
        if skip(k):
            continue
        try:
            with recordings.open(k) as clip:
                stretch = Stretch(k, cut.of(clip.rate), clip.rate, clip.first, clip.frames)
            if not stretch.frames:
                raise audio.BadAudio("holds no sound")
        except audio.BadAudio as error:
            bad[k] = quality.Verdict("unreadable", error.reason)
            continue
        count = max(1, _UNIT // stretch.cut.samples)
        for first in range(0, len(stretch), count):
            if k in bad and not bad[k].usable:
                break
            yield stretch, first, min(count, len(stretch) - first)


def batches(recordings, cut, batch_size, workers=1, bad=None, skip=lambda k: False):
    """Windows of all recordings, in order -> wave float32 (B, S), lengths int64 (B,), places [(Stretch, n)] of B.

    A batch holds `batch_size` windows, of several recordings where they are short, all of one sample rate; S is its
    longest window. What is wrong goes to `bad` {index of the recording: Verdict}; one that can't be used gives no
    windows, unless it breaks while it is read. skip(k): recordings that are left out. What comes out does not depend on
    `workers`, the processes that decode meanwhile.
    """
    def batch(rows):
        longest = max(length for _, length, _ in rows)
        return (torch.stack([window[:longest] for window, _, _ in rows]),
                torch.tensor([length for _, length, _ in rows]), [place for *_, place in rows])
    bad, waiting = {} if bad is None else bad, []  # (window, valid samples, (Stretch, n))
    for stretch, first, windows, verdict in decode(_Reader(recordings), _units(recordings, cut, bad, skip), workers):
        if verdict.problem:
            bad[stretch.index] = verdict
        if windows is None or stretch.index in bad and not bad[stretch.index].usable:
            continue
        if waiting and waiting[0][2][0].cut.rate != stretch.cut.rate:
            yield batch(waiting)
            waiting = []
        waiting += [(window, stretch.length(n), (stretch, n)) for n, window in enumerate(windows, first)]
        while len(waiting) >= batch_size:
            yield batch(waiting[:batch_size])
            del waiting[:batch_size]
    if waiting:
        yield batch(waiting)


# ----------------------------------------------------------------------------------------------------- the model

class Run:
    """A model over recordings: windows in, what a function makes of each out, in order.

    model: an Encoder or FineTuned; autocast: makes the context in which it runs; window, hop in seconds, None: what
    the model was trained on; batch_size None: about as many tokens as the device likes.
    """

    def __init__(self, model, recordings, device, autocast, window=None, hop=None, batch_size=None, workers=1):
        self.model, self.config = model.to(device), getattr(model, "encoder", model).config
        self.recordings, self.device, self.autocast, self.workers = recordings, device, autocast, workers
        trained = min(self.config.clip_samples, self.config.chunk_samples) / self.config.sample_rate
        window = window or getattr(model, "window_seconds", None) or trained
        hop = hop or min(window, getattr(model, "hop_seconds", None) or window)
        if hop > window:
            raise UserError(f"--hop {hop:g} is longer than the window of {window:g} s: the sound between the windows "
                            "would be left out")
        self.cut = Cut(self.config.sample_rate, window, hop, self.config.rate == "any")
        tokens = self.config.n_tokens * max(1, window / self.config.clip_seconds)
        budget = GPU_TOKENS if device.type == "cuda" else CPU_TOKENS
        self.batch_size = batch_size or max(1, min(256, int(budget / tokens)))
        self.bad, self.done, self.seconds = {}, 0, 0.0  # {recording: what is wrong with it}; how much was read

    def __call__(self, function, skip=lambda k: False):
        """function (model, wave (B, S), lengths (B,) or None, rate=their sample rate) -> (B, …) tensor, over all
        windows: yields (stretch, number of the window, array (…)). Of a recording that turns out to be broken only the
        first windows may come."""
        def there(batch):
            wave, lengths, places = batch
            full = bool((lengths == wave.shape[1]).all())
            return sent(wave, self.device), None if full else sent(lengths, self.device), places

        read = batches(self.recordings, self.cut, self.batch_size, self.workers, self.bad, skip)
        read = ahead(read, there, self.device)
        began, heard, pulse = time.monotonic(), 0.0, Pulse("extraction", None, "recordings")
        for wave, lengths, places in tqdm(read, "batches", leave=False, disable=None):
            with torch.inference_mode(), self.autocast():
                rows = function(self.model, wave, lengths, rate=places[0][0].cut.rate)
            rows = rows.float().cpu().numpy()
            heard += sum(np.diff(stretch.own(n))[0] / stretch.cut.rate for stretch, n in places)
            stretch, n = places[-1]
            pulse.beat(self.done, f", {(n + 1) / len(stretch):.0%} of {os.path.basename(self.path(stretch))}, "
                                  f"{heard / 60:.1f} min of sound, "
                                  f"{heard / (time.monotonic() - began):.0f} × real time")
            for (stretch, n), row in zip(places, rows):
                yield stretch, n, row
                if n == len(stretch) - 1:
                    self.done, self.seconds = self.done + 1, self.seconds + stretch.frames / stretch.rate

    def path(self, stretch):
        return self.recordings.path(stretch.index)

    def unusable(self, stretch):
        return stretch.index in self.bad and not self.bad[stretch.index].usable

    def finish(self, folder, already=0):
        """List what could not be used, or is odd; an error if nothing came out at all."""
        listed = Path(folder) / "unusable.csv"
        found = [(self.recordings.path(k), verdict) for k, verdict in sorted(self.bad.items())]
        quality.list_problems(listed, found, add=already > 0)
        if found:
            text = f"{quality.summary(found, len(self.recordings), 'recordings')}; listed in {listed}"
            if not self.done and not already:
                raise UserError(text)
            warn(text)


def pooled(windows, highest=False):
    """(stretch, n, row (D,)) of windows -> (stretch, row) of whole recordings: the mean, weighted by the windows'
    lengths, or the highest of each column."""
    for stretch, n, row in windows:
        length = float(stretch.length(n))
        if highest:
            total, weight = row if n == 0 else np.maximum(total, row), 1
        else:
            total, weight = (row * length, length) if n == 0 else (total + row * length, weight + length)
        if n == len(stretch) - 1:
            yield stretch, total / weight


def features(encoder, wave, lengths, rate, granularity, depths, columns):
    """wave (B, S), lengths (B,) or None -> clip (B, D), frame (B, T', D), patch (B, T', F', D) or all (B, K + N, D).

    depths: after how many blocks, several side by side in D; None: all. columns: T' of "all", 0 where a clip ends.
    """
    if granularity in ("clip", "frame"):
        function = encoder.embed if granularity == "clip" else encoder.frames
        return torch.cat([function(wave, lengths, depth, rate) for depth in depths], -1)
    windows = encoder.cut(wave, lengths)
    encoded = [encoder.encode_windows(windows, depth) for depth in depths]
    x = torch.cat([one.grid for one in encoded], -1)
    if granularity == "patch":
        return x
    x = torch.nn.functional.pad(x * encoded[0].valid[..., None], (0, 0, 0, 0, 0, columns - x.shape[1]))
    return torch.cat([torch.cat([one.specials for one in encoded], -1), x.flatten(1, 2)], 1)


def token_columns(layout, samples):
    """Valid token columns of a wave of at most the training length; layout: the settings at its sample rate."""
    columns = layout.valid_columns(layout.extent(torch.tensor([samples])))
    return layout.grid[0] if columns is None else int(columns)


def embeddings(run, granularity, layers, by_window, skip=lambda k: False):
    """Rows of all recordings, in order: yields (stretch, array (n, …), starts (n,), ends (n,) in seconds, whether
    these are the recording's last). What can't be is refused at once, before anything is read."""
    c, cut = run.config, run.cut
    least = 1 + c.prenet * (c.features == "ffn")
    if layers and not least <= min(layers) <= max(layers) <= c.depth:
        raise UserError(f"--layers {' '.join(map(str, layers))}: this encoder has blocks {least} to {c.depth}")
    if granularity != "clip" and cut.samples > c.chunk_samples:
        raise UserError(f"--granularity {granularity} with --window {cut.window:g}: tokens have places within the "
                        f"{c.chunk_samples / c.sample_rate:g} s that this encoder hears at a time; give at most that")
    if granularity in ("patch", "all") and c.rate == "any":
        raise UserError(f"--granularity {granularity}: this encoder hears any rate, and has other tokens at each; give "
                        "clip or frame")
    columns = token_columns(run.config, cut.samples)

    def function(encoder, wave, lengths, rate):
        return features(encoder, wave, lengths, rate, granularity, layers or [None], columns)
    windows = run(function, skip)
    if granularity in ("frame", "patch"):
        return _by_column(run, windows)
    if granularity == "all" or by_window:
        return ((stretch, row[None], *np.array(stretch.span(n))[:, None], n == len(stretch) - 1)
                for stretch, n, row in windows)
    return ((stretch, row[None], stretch.seconds([0]), stretch.seconds([stretch.samples]), True)
            for stretch, row in pooled(windows))


def _by_column(run, windows):
    for stretch, n, row in windows:
        c = run.config.at_rate(stretch.cut.rate)
        own, starts, ends = stretch.columns(n, token_columns(c, stretch.length(n)), c.stride[1] * c.hop * c.sample_rate)
        yield stretch, row[own], starts, ends, n == len(stretch) - 1
