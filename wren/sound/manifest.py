"""Which sound there is: manifests of any size in flat arrays.

A row is a stretch of a recording: path, start, frames, sample_rate, domain, source, label, and stream:NAME for what
was measured beside the sound. Rows live in NumPy arrays and one block of path bytes, so that loader processes share
them: 2.23 million rows are about 180 MB, once. Where the sound lies in tar shards, each row knows its bytes too.
"""
import io
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from wren.cli import write_table
from wren.sound import audio
from wren.sound.entry import checksum, entry_bytes

DOMAINS = ("", "bio", "gen")  # "": not said, which counts as bio
GEN = DOMAINS.index("gen")
NUMBERS = {"start": np.int64, "frames": np.int64, "sample_rate": np.int32}
COLUMNS = ("path", *NUMBERS, "domain", "source", "label")
ENTRY = np.dtype([("offset", np.int64), ("size", np.int64), ("checksum", np.uint64)])  # of a row in a shard; bytes
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
    # of domain, source, label, stream:NAME and shard, those that are said: name -> (int32 [n], texts that it indexes)
    texts: dict = field(default_factory=dict)
    entry: np.ndarray | None = None  # ENTRY [n], where the sound lies in shards
    bases: tuple = (".",)  # folders in which relative paths are looked up, in this order
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

    def text(self, name):
        """A column of texts, row by row; "" where nothing is said."""
        codes, names = self.texts.get(name, (np.zeros(len(self), np.int32), [""]))
        return [names[code] for code in codes.tolist()]

    @property
    def domain(self):
        """uint8 [n], indices into DOMAINS."""
        codes, names = self.texts.get("domain", (np.zeros(len(self), np.int32), [""]))
        return np.array([DOMAINS.index(name) for name in names], np.uint8)[codes]

    @property
    def streams(self):
        """The names of the streams that rows have."""
        return [name.removeprefix(STREAM) for name in self.texts if name.startswith(STREAM)]

    def stream(self, i, name):
        """Where row i's stream of that name lies, or None."""
        codes, paths = self.texts.get(STREAM + name, (None, None))
        return self._place(paths[codes[i]]) if codes is not None and paths[codes[i]] else None

    def _place(self, path):
        if os.path.isabs(path):
            return path
        places = [os.path.join(base, path) for base in self.bases]
        return places[0] if len(places) == 1 else next(filter(os.path.exists, places), places[0])

    def select(self, rows):
        """The rows (indices or a mask), in that order. The path bytes are shared, not copied."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ("begin", "size", *NUMBERS)},
                       texts={name: (codes[rows], names) for name, (codes, names) in self.texts.items()},
                       entry=None if self.entry is None else self.entry[rows])

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

    def entry_bytes(self, i):
        """Row i's sound as it lies in its shard. Raises BadAudio unless it is whole."""
        codes, tars = self.texts["shard"]
        return entry_bytes(tars[codes[i]], int(self.entry["offset"][i]), int(self.entry["size"][i]))

    def verify(self, i):
        """Raise BadAudio unless row i's bytes in its shard are those that were packed."""
        if checksum(self.entry_bytes(i)) != int(self.entry["checksum"][i]):
            raise audio.BadAudio("checksum differs from the index: damaged shard", audio.printable(self.path(i)))

    def open(self, i):
        """Row i as an open `Clip`."""
        if self.entry is None:
            sound, first = audio.Sound(self.locate(i)), int(self.start[i])
        else:
            sound, first = audio.Sound(io.BytesIO(self.entry_bytes(i)), self.path(i)), 0
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


def build(paths, start=0, frames=-1, sample_rate=0, entry=None, bases=(".",), origin="", **texts):
    """A manifest from columns: paths (list of str); numbers, or one for all rows; lists of str; None: not said."""
    raw = [path.encode("utf-8", "surrogateescape") for path in paths]
    blob = np.frombuffer(b"".join(raw) + bytes(8), np.uint8)  # words of eight can be read from any byte
    size = np.fromiter(map(len, raw), np.int32, len(raw))
    numbers = [np.full(len(raw), column, kind) for column, kind in zip((start, frames, sample_rate), NUMBERS.values())]
    return Manifest(blob, np.cumsum(size, dtype=np.int64) - size, size, *numbers,
                    {name: coded(column) for name, column in texts.items() if column is not None}, entry, bases, origin)


def coded(values):
    """Strings -> (int32 codes [n], distinct strings in order of first appearance)."""
    table = {}
    codes = np.array([table.setdefault(value, len(table)) for value in values], np.int32)
    return codes, list(table)


def join(*parts):
    """The rows of several manifests, which share their folders."""
    shift, texts = np.cumsum([0, *(len(part.blob) for part in parts)]), {}
    for name in dict.fromkeys(name for part in parts for name in part.texts):
        columns = [part.texts.get(name, (np.zeros(len(part), np.int32), [""])) for part in parts]
        recode, names = coded(text for _, own in columns for text in own)
        firsts = np.cumsum([0, *(len(own) for _, own in columns)])
        texts[name] = np.concatenate([recode[first + codes] for first, (codes, _) in zip(firsts, columns)]), names

    def column(name):
        return np.concatenate([getattr(part, name) for part in parts])
    return replace(parts[0], blob=column("blob"), texts=texts,
                   entry=None if parts[0].entry is None else column("entry"),
                   begin=np.concatenate([part.begin + first for part, first in zip(parts, shift)]),
                   **{name: column(name) for name in ("size", *NUMBERS)})


def write_manifest(manifest, path, rows=None):
    """Write rows (default: all) as CSV, only the columns that say something; whole or not at all."""
    rows = range(len(manifest)) if rows is None else rows
    numbers = [getattr(manifest, name) for name in NUMBERS]
    names = [*(name for name in COLUMNS if name in manifest.texts), *(STREAM + name for name in manifest.streams)]
    texts = {name: manifest.text(name) for name in names}
    texts = {name: column for name, column in texts.items() if any(column)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_table(path, ("path", *NUMBERS, *texts), (
        (manifest.path(i), *(int(column[i]) for column in numbers), *(column[i] for column in texts.values()))
        for i in rows))
