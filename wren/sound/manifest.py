"""Which sound there is: manifests of any size in flat arrays, subsets of them, and a held-out part.

A row is a stretch of a recording: path, start, frames, sample_rate, domain, source, label, and stream:NAME for what
was measured beside the sound. Rows live in NumPy arrays and one block of path bytes, so that loader processes share
them: 2.23 million rows are about 180 MB, once.
"""
import csv
import gc
import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from wren.sound import audio
from wren.cli import UserError, warn

BIO, GEN = 1, 2  # domain codes; 0: not said, which counts as bio
DOMAINS = ("", "bio", "gen")
COLUMNS = ("path", "start", "frames", "sample_rate", "domain", "source", "label")
STREAM = "stream:"  # begins the names of the columns that name streams
BIO_DRAWS = {"0.12M": 120_000, "0.46M": 460_000, "0.80M": 800_000, "1.23M": 1_230_000}
GENERAL = {"2.23M": 2_230_000}
_CHUNK = 1 << 16  # rows parsed at a time


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
                                 audio.shown(self.path(i)))
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
    return _from_bytes(
        np.frombuffer(b"".join(raw), np.uint8), size, start=numbers(start, 0, np.int64),
        frames=numbers(frames, -1, np.int64), sample_rate=numbers(sample_rate, 0, np.int32),
        domain=numbers(None if domain is None else [DOMAINS.index(d) for d in domain], 0, np.uint8),
        source=source_codes, label=label_codes, sources=sources, labels=labels, **rest)


def _from_bytes(blob, size, **rest):
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


# ------------------------------------------------------------------------------------------------------- opening

def open_manifest(source, root=None, segment=10.0):
    """Everything that `--data` can name, as a Manifest.

    source: a folder of audio, a folder of tar shards, a CSV or TSV with a header (`path` and optional start, frames,
    sample_rate, domain, source, label, stream:NAME), a fairseq TSV (root, then path and samples) or an SSAST JSON.
    root: a second folder for relative paths. segment: seconds of the rows that a folder's long recordings are cut into.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(f"{source}: no such folder or manifest")
    if path.is_dir():
        return _open_folder(path, segment)
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
        raise UserError(f"{source} is not a text file in UTF-8: save it as CSV in UTF-8, or name a folder of audio")
    if not head.strip():
        raise UserError(f"{source} is empty: a manifest has a header line with the column path, and rows")
    bases = tuple(dict.fromkeys(str(base) for base in (path.parent, root) if base is not None))
    if path.suffix.lower() == ".json":
        return _open_json(path, bases)
    lines = head.decode("utf-8-sig", "surrogateescape").splitlines()
    if len(lines) > 1 and "\t" not in lines[0] and re.fullmatch(r"[^\t]+\t\d+", lines[1]):
        return _open_table(path, bases, fairseq=lines[0].strip())
    return _open_table(path, bases)


def _open_folder(folder, segment):
    """A folder of shards or of audio files."""
    if any(folder.glob("*.tar")):
        from wren.sound import shards
        return _from_bytes(**shards.rows(folder), bases=(str(folder),), origin=str(folder))
    from wren.sound.scan import scan
    rows, bad = scan([folder], segment)
    if bad:
        warn(f"{len(bad)} of the files under {folder} can't be used, for example {bad[0][0]}: {bad[0][1]}")
    if not rows:
        raise UserError(f"no audio files ({' '.join(audio.AUDIO_SUFFIXES[:4])} …) under {folder}" if not bad else
                        f"none of the {len(bad)} audio files under {folder} can be used")
    paths, start, frames, rate = zip(*rows)
    paths = [os.path.relpath(p, folder) for p in paths]
    return build(paths, start, frames, rate, bases=(str(folder),), origin=str(folder))


def _open_json(path, bases):
    """SSAST's {"data": [{"wav": path, "labels": text}]}."""
    try:
        data = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))["data"]
        paths, labels = [str(row["wav"]) for row in data], [str(row.get("labels", "")) for row in data]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is not SSAST\'s JSON, {{"data": [{{"wav": …, "labels": …}}]}} '
                        f"({type(error).__name__}: {error})") from None
    if not paths:
        raise UserError(f"{path} lists no recordings")
    return build(paths, label=labels, bases=bases, origin=str(path))


@contextmanager
def _without_collector():
    """Millions of short-lived lists wake Python's cycle collector all the time: 7.4, not 2.9 s for 2.23M rows."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_without_collector()
def _open_table(path, bases, fairseq=None):
    """A CSV or TSV, by chunks of rows, so that parsing needs little memory beside the result."""
    parts, codes = [], {"source": {}, "label": {}}
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        first = file.readline()
        delimiter = "\t" if fairseq or "\t" in first else ","
        header = ["path", "frames"] if fairseq else next(csv.reader([first], delimiter=delimiter), [])
        header = [name.strip().lower() for name in header]
        if "path" not in header:
            raise UserError(f"{path}: the first line names no column path (it reads {first.strip()[:80]!r}); a "
                            f"manifest has a header with some of {', '.join(COLUMNS)}")
        for name in header:
            if name.startswith(STREAM):
                codes[name] = {}
        reader, done = csv.reader(file, delimiter=delimiter), 1
        try:
            while rows := [row for row in islice(reader, _CHUNK) if row]:
                parts.append(_columns(path, header, rows, done, codes))
                done += len(rows)
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num + 1}: {error}") from None
    if not parts:
        raise UserError(f"{path} has a header but no rows")
    size = np.concatenate([part["size"] for part in parts])
    columns = {name: np.concatenate([part[name] for part in parts])
               for name in ("start", "frames", "sample_rate", "domain", "source")}
    return _from_bytes(
        np.frombuffer(b"".join([part["blob"] for part in parts]), np.uint8), size, **columns,
        label=np.concatenate([part["label"] for part in parts]) if "label" in header else None,
        streams={name.removeprefix(STREAM).strip(): (np.concatenate([part[name] for part in parts]), list(codes[name]))
                 for name in codes if name.startswith(STREAM)},
        sources=list(codes["source"]) or [""], labels=list(codes["label"]), origin=str(path),
        bases=tuple(dict.fromkeys([os.path.join(path.parent, fairseq), *bases])) if fairseq else bases)


def _columns(path, header, rows, done, codes):
    """Arrays of one chunk of table rows."""
    if set(map(len, rows)) != {len(header)}:
        k = next(k for k, row in enumerate(rows) if len(row) != len(header))
        raise UserError(f"{path}, row {done + k}: {len(rows[k])} fields, the header has {len(header)} (a name with a "
                        "comma needs double quotes)")
    table = dict(zip(header, zip(*rows)))
    if "" in table["path"]:
        raise UserError(f"{path}, row {done + table['path'].index('')}: the path is empty")
    joined = "".join(table["path"])
    blob = joined.encode("utf-8", "surrogateescape")
    lengths = map(len, table["path"]) if len(blob) == len(joined) else (
        len(p.encode("utf-8", "surrogateescape")) for p in table["path"])
    out = {"blob": blob, "size": np.fromiter(lengths, np.int32, len(rows))}
    for name, default, least, kind in (("start", 0, 0, np.int64), ("frames", -1, -1, np.int64),
                                       ("sample_rate", 0, 0, np.int32)):
        out[name] = _numbers(path, name, table.get(name), len(rows), default, least, done).astype(kind)
    domains = table.get("domain", ("",) * len(rows))
    try:
        known = {name: code for code, name in enumerate(DOMAINS)}
        out["domain"] = np.fromiter(map(known.__getitem__, domains), np.uint8, len(rows))
    except KeyError as error:
        raise UserError(f"{path}: domain {error.args[0]!r} is neither bio nor gen nor empty") from None
    for name, seen in codes.items():
        values = table.get(name, ("",) * len(rows) if name == "source" else ())
        out[name] = np.fromiter((seen.setdefault(value, len(seen)) for value in values), np.int32, len(values))
    return out


def _numbers(path, name, values, n, default, least, done):
    """Texts -> int64 [n]; an empty one is `default`."""
    if values is None:
        return np.full(n, default, np.int64)
    try:
        numbers = np.fromiter(map(int, values), np.int64, n)
    except (ValueError, OverflowError):
        numbers = np.empty(n, np.int64)
        for k, text in enumerate(values):
            try:
                numbers[k] = int(float(text)) if text.strip() else default  # tables often hold 160000.0
            except (ValueError, OverflowError):
                raise UserError(f"{path}, row {done + k}: {name} {text!r} is not a whole number") from None
    if len(wrong := np.flatnonzero(numbers < least)):
        raise UserError(f"{path}, row {done + wrong[0]}: {name} {numbers[wrong[0]]} is below {least}")
    return numbers


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


# ------------------------------------------------------------------------------------------------------- subsets

def subset(manifest, spec="all", domain=None):
    """The rows that `--subset` names, in an order that depends on the rows alone, never on their order in the file.

    spec: 0.12M 0.46M 0.80M 1.23M (nested draws of bio rows), 2.23M (the general domain), a count such as 400, 50k or
    1.5M, or all. domain: bio, gen or any, for counts and all.
    """
    if spec in BIO_DRAWS or spec in GENERAL:
        wanted = "bio" if spec in BIO_DRAWS else "gen"
        if domain not in (None, wanted):
            raise UserError(f"--subset {spec} is a draw of the {wanted} domain: leave --domain out, or give a count "
                            f"({(BIO_DRAWS | GENERAL)[spec] // 1000}k)")
        domain, count = wanted, (BIO_DRAWS | GENERAL)[spec]
    else:
        count = _count(spec)
    general = manifest.domain == GEN
    rows = manifest.select({"bio": ~general, "gen": general}.get(domain, slice(None)))
    if count is None:
        count = len(rows)
    if spec in GENERAL and 0.9 * count <= len(rows) < count:
        warn(f"--subset {spec}: the manifest holds {len(rows)} clips of the general domain, all are used")
        count = len(rows)
    if count > len(rows) or not count:
        kind = f" of domain {domain}" if domain in ("bio", "gen") else ""
        raise UserError(f"--subset {spec}: {count} clips wanted, {manifest.origin or 'the manifest'} holds "
                        f"{len(rows)}{kind}" + (f" (of {len(manifest)} in all)" if kind else "")
                        + ": add recordings, or ask for fewer")
    return rows.select(np.argsort(rows.keys(), kind="stable")[:count])


def _count(spec):
    """'50k' -> 50000; 'all' -> None."""
    if spec == "all":
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kM]?)", spec)
    count = round(float(match[1]) * {"": 1, "k": 1000, "M": 1_000_000}[match[2]]) if match else 0
    if not count or (match[2] == "" and "." in spec):
        raise UserError(f"--subset {spec}: give one of {' '.join(BIO_DRAWS | GENERAL)}, a count such as 400, 50k or "
                        "1.5M, or all")
    return count


def holdout(manifest, count):
    """(train, valid): about `count` rows for valid, whole recordings, in the order of a hash of their paths.

    All rows of one recording stay on one side. Recordings that would overshoot the count are passed over.
    """
    if not count:
        return manifest, manifest.select(slice(0, 0))
    keys, of_row, sizes = np.unique(manifest.recording_keys(seed=1), return_inverse=True, return_counts=True)
    chosen, total = np.zeros(len(keys), bool), 0
    for k, size in enumerate(sizes.tolist()):  # np.unique has sorted the keys: this is the order of the hash
        if total + size <= count:
            chosen[k], total = True, total + size
        if total == count:
            break
    if not total and 2 * sizes.min() <= len(manifest):  # long recordings: some rows of one, none of it in training
        chosen[np.argmin(sizes)] = True
    if not chosen.any():
        warn(f"nothing is held out: {manifest.origin or 'the data'} is all, or nearly all, one recording")
    valid = manifest.select(chosen[of_row])
    return manifest.select(~chosen[of_row]), valid.select(np.argsort(valid.keys(seed=1), kind="stable")[:count])
