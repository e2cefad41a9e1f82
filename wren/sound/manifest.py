"""Which sound there is: manifests of any size in flat arrays.

A row is a stretch of a recording: path, start, frames, sample_rate, domain, source, label, and stream:NAME for what
was measured beside the sound. Rows live in NumPy arrays and one block of path bytes, so that loader processes share
them: 2.23 million rows are about 180 MB, once.
"""
import csv
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from wren.sound import audio

BIO, GEN = 1, 2  # domain codes; 0: not said, which counts as bio
DOMAINS = ("", "bio", "gen")
COLUMNS = ("path", "start", "frames", "sample_rate", "domain", "source", "label")
STREAM = "stream:"  # begins the names of the columns that name streams


# ---------------------------------------------------------------------------------------------------- randomness

def mix(*keys):
    """A 64-bit hash of integers or integer arrays (splitmix64, chained), -> uint64, broadcast over the arrays.

    Everything random about data comes from here: a pure function, no state, the same on any machine.
    """
    h = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            key = np.atleast_1d(np.asarray(key))
            h = h ^ (key if key.dtype == np.uint64 else key.astype(np.int64).view(np.uint64))
            h = h + np.uint64(0x9E3779B97F4A7C15)
            h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            h = h ^ (h >> np.uint64(31))
    return h


def unit(*keys):
    """Like `mix`, but one float in [0, 1)."""
    return int(mix(*keys)[0] >> np.uint64(11)) / (1 << 53)


def permutation(seed, epoch, n):
    """The order of rows 0 … n-1 in one epoch -> int64 [n]."""
    return np.argsort(mix(seed, epoch, np.arange(n)), kind="stable")


# ------------------------------------------------------------------------------------------------------ manifest

@dataclass
class Manifest:
    """Rows of sound in flat arrays [n]. `start` and `frames` are in samples at the recording's own `sample_rate`."""
    blob: np.ndarray  # uint8, the UTF-8 bytes of all paths as written, and 8 more
    begin: np.ndarray  # int64, where a row's path begins in the blob
    size: np.ndarray  # int32, its bytes
    start: np.ndarray  # int64
    frames: np.ndarray  # int64, -1: to the recording's end
    sample_rate: np.ndarray  # int32 Hz, 0: not said
    domain: np.ndarray  # uint8, 0 not said, 1 bio, 2 gen
    source: np.ndarray  # int32, index into `sources`
    label: np.ndarray | None = None  # int32, index into `labels`
    sources: list = field(default_factory=lambda: [""])
    labels: list = field(default_factory=list)
    bases: tuple = (".",)  # folders in which relative paths are looked up, in this order
    streams: dict = field(default_factory=dict)  # name -> (int32 (n,), paths that it indexes; "": the row has none)
    entries: object = None  # shards.Entries where the sound lies in shards
    origin: str = ""  # what the user named, for messages

    def __len__(self):
        return len(self.begin)

    def raw_path(self, i):
        """The bytes of row i's path, as written."""
        return self.blob[self.begin[i]:self.begin[i] + self.size[i]].tobytes()

    def path(self, i):
        """Row i's path as written (names that aren't UTF-8 carry their bytes as surrogates, as in `os`)."""
        return self.raw_path(i).decode("utf-8", "surrogateescape")

    def locate(self, i):
        """Where row i's recording lies: the first folder that has it, else where it was expected first."""
        return self._place(self.path(i))

    def stream(self, i, name):
        """Where row i's stream of that name lies, or None."""
        codes, paths = self.streams.get(name, (None, None))
        return self._place(paths[codes[i]]) if codes is not None and paths[codes[i]] else None

    def _place(self, path):
        if os.path.isabs(path):
            return path
        if len(self.bases) == 1:
            return os.path.join(self.bases[0], path)
        places = [os.path.join(base, path) for base in self.bases]
        return next((place for place in places if os.path.exists(place)), places[0])

    def select(self, rows):
        """The rows (indices or a mask), in that order. The path bytes are shared, not copied."""
        def part(column):
            return None if column is None else column[rows]
        names = ("begin", "size", "start", "frames", "sample_rate", "domain", "source", "label")
        return replace(self, **{name: part(getattr(self, name)) for name in names},
                       streams={name: (codes[rows], paths) for name, (codes, paths) in self.streams.items()},
                       entries=None if self.entries is None else self.entries.select(rows))

    def recording_keys(self, seed=0):
        """A hash of each row's path -> uint64 [n]: the bytes in words of eight, chained; 40 ms a word for 2M rows."""
        words = np.ndarray(len(self.blob) - 7, dtype="<u8", buffer=self.blob.data, strides=(1,))
        h = np.broadcast_to(mix(seed), len(self)).copy()
        rows, at, left = np.arange(len(self)), self.begin, self.size.astype(np.int64)
        while len(rows):
            word = words[at]
            short = left < 8
            word[short] &= (np.uint64(1) << (8 * left[short]).astype(np.uint64)) - np.uint64(1)
            h[rows] = mix(h[rows], word, np.minimum(left, 8))
            keep = left > 8
            rows, at, left = rows[keep], at[keep] + 8, left[keep] - 8
        return h

    def keys(self, seed=0):
        """A hash of (seed, path, start) of each row -> uint64 [n]; what draws and orders go by."""
        return mix(self.recording_keys(seed), self.start)

    def fingerprint(self):
        """Names the rows and their order: which recordings from which sample, not where the files lie or what is in
        them, so that packing to shards changes nothing."""
        return f"{len(self)}-{int(mix(np.bitwise_xor.reduce(mix(self.keys(), np.arange(len(self)))))[0]):016x}"

    def rate(self, i):
        """Row i's sample rate in Hz, from the recording if the manifest doesn't say."""
        if not self.sample_rate[i]:
            with self.open(i) as clip:
                return clip.rate
        return int(self.sample_rate[i])

    def open(self, i):
        """Row i as an open `Clip`."""
        sound = self.entries.open(i) if self.entries is not None else audio.Sound(self.locate(i))
        first = 0 if self.entries is not None else int(self.start[i])
        frames, rate = int(self.frames[i]), int(self.sample_rate[i])
        if rate and rate != sound.rate:
            sound.close()
            raise audio.BadAudio(f"is sampled at {sound.rate} Hz, the manifest says {rate}: index it again",
                                 audio.printable(self.path(i)))
        return Clip(sound, first, frames)

    def read(self, i, offset=0, frames=-1, rate=None):
        """Row i, or `frames` from `offset` within it (at its own rate) -> float32 [S] at `rate` Hz."""
        with self.open(i) as clip:
            wave = clip.read(offset, frames)
            return audio.resample(wave, clip.rate, rate or clip.rate)


class Clip:
    """A row's stretch of an open recording."""

    def __init__(self, sound, first, frames):
        self.sound, self.first, self.rate, self._frames = sound, first, sound.rate, frames

    @property
    def frames(self):
        """Length in samples, counted if the manifest doesn't know it."""
        if self._frames < 0:
            self._frames = max(0, self.sound.count() - self.first)
        return self._frames

    def read(self, offset=0, frames=-1):
        """-> float32 [frames] at the recording's rate; -1: to the row's end."""
        if frames < 0 and self._frames >= 0:
            frames = self._frames - offset
        return self.sound.read(self.first + offset, frames)

    def blocks(self):
        """The whole stretch by portions, float32 [n, channels]."""
        return self.sound.blocks(self.first, self._frames)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sound.close()


def build(paths, start=None, frames=None, sample_rate=None, domain=None, source=None, label=None, **rest):
    """A manifest from columns: paths (list of str), integers, and lists of str for the others; None: not said."""
    raw = [path.encode("utf-8", "surrogateescape") for path in paths]
    size = np.fromiter(map(len, raw), np.int32, len(raw))
    source_codes, sources = _codes(source, len(raw))
    label_codes, labels = _codes(label, len(raw)) if label is not None else (None, [])

    def numbers(column, default, kind):
        return np.full(len(raw), default, kind) if column is None else np.asarray(column, kind)
    return from_bytes(
        np.frombuffer(b"".join(raw), np.uint8), size, start=numbers(start, 0, np.int64),
        frames=numbers(frames, -1, np.int64), sample_rate=numbers(sample_rate, 0, np.int32),
        domain=numbers(None if domain is None else [DOMAINS.index(d) for d in domain], 0, np.uint8),
        source=source_codes, label=label_codes, sources=sources, labels=labels, **rest)


def from_bytes(blob, size, **rest):
    """A manifest from the bytes of all its paths, one after another, and each one's size."""
    blob = np.concatenate([blob, np.zeros(8, np.uint8)])  # so that words of eight can be read from any byte
    return Manifest(blob, np.cumsum(size, dtype=np.int64) - size, size, **rest)


def _codes(column, n):
    """Strings -> (int32 codes [n], distinct strings in order of first appearance)."""
    table = {}
    if column is None:
        return np.zeros(n, np.int32), [""]
    codes = np.fromiter((table.setdefault(value, len(table)) for value in column), np.int32, n)
    return codes, list(table)


def join(one, two):
    """The rows of two manifests, which share their folder."""
    def texts(m, codes, names):
        return [names[c] for c in codes]

    def column(name):
        return np.concatenate([getattr(one, name), getattr(two, name)])
    source, sources = _codes(texts(one, one.source, one.sources) + texts(two, two.source, two.sources),
                             len(one) + len(two))
    label, labels = None, []
    if one.label is not None or two.label is not None:
        label, labels = _codes([text for m in (one, two) for text in (
            [""] * len(m) if m.label is None else texts(m, m.label, m.labels))], len(one) + len(two))
    streams = {}
    for name in {**one.streams, **two.streams}:
        streams[name] = _codes([text for m in (one, two) for text in (
            texts(m, *m.streams[name]) if name in m.streams else [""] * len(m))], len(one) + len(two))
    return replace(one, blob=np.concatenate([one.blob, two.blob]),
                   begin=np.concatenate([one.begin, two.begin + len(one.blob)]),
                   **{name: column(name) for name in ("size", "start", "frames", "sample_rate", "domain")},
                   source=source, sources=sources, label=label, labels=labels, streams=streams)


def write_manifest(manifest, path, rows=None):
    """Write rows (default: all) as CSV, only the columns that say something; whole or not at all."""
    rows = range(len(manifest)) if rows is None else rows
    columns = {"start": manifest.start, "frames": manifest.frames, "sample_rate": manifest.sample_rate}
    texts = {"domain": (manifest.domain, DOMAINS), "source": (manifest.source, manifest.sources)}
    if manifest.label is not None:
        texts["label"] = (manifest.label, manifest.labels)
    texts |= {STREAM + name: pair for name, pair in manifest.streams.items()}
    texts = {name: pair for name, pair in texts.items() if any(pair[1][c] for c in np.unique(pair[0]))}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(["path", *columns, *texts])
        for i in rows:
            out.writerow([manifest.path(i), *(int(c[i]) for c in columns.values()),
                          *(names[codes[i]] for codes, names in texts.values())])
    os.replace(temporary, path)
