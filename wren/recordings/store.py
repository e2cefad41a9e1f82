"""Embeddings on disk: .npy arrays that can be memory-mapped, an index that says where each row comes from, search.

    OUT/settings.json    what made them; another checkpoint, window or dtype is refused
    OUT/index.csv        a line a row: file, start, end (s in the file), rate (Hz of the file), checkpoint (a hash of
                         its weights and settings), array and row (where the vector is), left (rows of the same
                         recording that follow; a recording is there once its line with 0 is)
    OUT/STEM.npy         an array a recording, or OUT/embeddings.npy, one for all

Both layouts grow by whole recordings. A killed run leaves a finished part that the next one goes on from.
"""
import csv
import io
import json
import os
from itertools import islice
from pathlib import Path

import numpy as np

from wren import cli
from wren.cli import UserError

COLUMNS = ("file", "start", "end", "rate", "checkpoint", "array", "row", "left")
_CHUNK = 1 << 14  # rows compared at a time


class Rows:
    """A .npy file that grows by rows of one shape. numpy leaves room in the header for the number of rows, so that it
    can be written anew without moving them."""

    def __init__(self, path, shape, dtype, keep=0):
        """keep: rows of an existing file that stay, what comes after them is dropped; 0: a new file."""
        self.shape, self.dtype, self.count = tuple(shape), np.dtype(dtype), keep
        self.file = open(path, "r+b" if keep else "w+b")
        self._header()
        self.begin = self.file.tell()
        self.cut(keep)

    def _header(self):
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(self.file, {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False,
            "shape": (self.count, *self.shape)})

    def append(self, rows):
        """rows (n, *shape), any float type. They count once `commit` has been called."""
        rows = np.ascontiguousarray(rows, self.dtype)
        if rows.shape[1:] != self.shape:
            raise ValueError(f"rows of {rows.shape[1:]} in an array of {self.shape}")
        self.file.write(rows.data)

    def cut(self, count):
        """Drop all rows after the first `count`."""
        end = self.begin + count * int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self.file.truncate(end)
        self.file.seek(end)

    def commit(self, count):
        """Let the first `count` rows count."""
        self.count, end = count, self.file.tell()
        self._header()
        assert self.file.tell() == self.begin, "the header grew"
        self.file.seek(end)
        self.file.flush()

    def close(self):
        self.file.close()


class Output:
    """A folder that embeddings are written to, recording by recording: begin, add …, then commit or discard."""

    def __init__(self, folder, settings, dtype="float32", one=False):
        """settings: plain values that must be the same in every run into this folder; one: a single array for all."""
        self.folder, self.dtype, self.one = Path(folder), dtype, one
        self.checkpoint = settings["checkpoint"]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {folder}: can't be made ({error.strerror})") from None
        self._agree(json.loads(json.dumps(settings | {"dtype": dtype, "store": one})))
        self._lock = open(self.folder / "index.csv", "a+b")
        self._only_writer()
        self.done, self._taken, self._count = self._recover()
        self._index = open(self.folder / "index.csv", "a", newline="", encoding="utf-8", errors="surrogateescape")
        if not self._index.tell():
            self._index.write(",".join(COLUMNS) + "\n")
        self._rows = self._current = None

    def _agree(self, settings):
        """Write what made the embeddings, or refuse if it was something else."""
        path = self.folder / "settings.json"
        if not path.exists():
            if any(self.folder.glob("*.npy")):
                raise UserError(f"--out {self.folder}: holds arrays of something else; choose another folder")
            cli.write_text(path, json.dumps(settings, indent=1) + "\n")
            return
        old = read_settings(self.folder)
        for key in settings:  # in order: the checkpoint first
            if key != "source" and old.get(key) != settings[key]:
                of = f" ({old.get('source')}, now {settings.get('source')})" if key == "checkpoint" else ""
                raise UserError(f"--out {self.folder} was made with {key} {old.get(key)}, not {settings[key]}{of}: "
                                "choose another folder, or the same settings")

    def _only_writer(self):
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--out {self.folder}: another process is writing to it; wait for it, or choose another "
                            "folder") from None

    def _recover(self):
        """Forget what a killed run left unfinished -> (recordings that are there, their arrays, rows of the one)."""
        for path in self.folder.rglob(".*.npy.tmp"):
            path.unlink()
        store, room = self.folder / "embeddings.npy", None
        if self.one:
            room = len(np.load(store, mmap_mode="r")) if store.exists() and store.stat().st_size else 0
        done, taken, count, keep, first = {}, set(), 0, 0, None
        with open(self.folder / "index.csv", "rb") as file:
            end = len(file.readline())
            for line in iter(file.readline, b""):
                row = parse(line)
                if row is None or (room is not None and count >= room):
                    break
                first, count = first or row, count + 1
                if row["left"] == 0:
                    done[row["file"], first["start"]] = row["end"] - first["start"]
                    taken |= set() if self.one else {row["array"]}
                    first, end, keep = None, file.tell(), count
        os.truncate(self.folder / "index.csv", end)
        return done, taken, keep

    def begin(self, file, rate, name):
        """A recording's rows follow: file (path), its rate in Hz, what its array is called if it has its own."""
        choices = ("embeddings",) if self.one else (name, *(f"{name}-{k}" for k in range(2, 3 + len(self._taken))))
        array = next(f"{choice}.npy" for choice in choices if f"{choice}.npy" not in self._taken)
        self._current = {"file": file, "rate": rate, "array": array, "times": [], "rows": 0}

    def add(self, rows, starts, ends):
        """rows (n, …) of the recording that was begun, and their times in seconds."""
        c = self._current
        if self._rows is None:
            path = self.folder / c["array"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path = path if self.one else path.with_name(f".{path.name}.tmp")
            self._rows = Rows(path, np.shape(rows)[1:], self.dtype, self._count if self.one else 0)
        self._rows.append(rows)
        c["times"].append(np.stack([starts, ends], 1))
        c["rows"] += len(rows)

    def commit(self):
        """The recording is whole."""
        c, base = self._current, self._count if self.one else 0
        self._rows.commit(base + c["rows"])
        if self.one:
            self._count += c["rows"]
        else:
            self._rows.close()
            self._rows, path = None, self.folder / c["array"]
            os.replace(path.with_name(f".{path.name}.tmp"), path)
        text, times = io.StringIO(newline=""), np.concatenate(c["times"])
        out = csv.writer(text, lineterminator="\n")
        for k, (start, end) in enumerate(times.tolist()):
            out.writerow((c["file"], f"{start:.6f}", f"{end:.6f}", c["rate"], self.checkpoint, c["array"], base + k,
                          len(times) - 1 - k))
        self._index.write(text.getvalue())
        self._index.flush()
        self._taken |= set() if self.one else {c["array"]}
        self._current = None

    def discard(self):
        """The recording that was begun can't be read to its end: nothing of it stays."""
        if self._rows is not None and self.one:
            self._rows.cut(self._count)
        elif self._rows is not None:
            self._rows.close()
            self._rows, path = None, self.folder / self._current["array"]
            path.with_name(f".{path.name}.tmp").unlink()
        self._current = None

    def close(self):
        if self._current is not None:
            self.discard()
        if self._rows is not None:
            self._rows.close()
        self._index.close()
        self._lock.close()


# ------------------------------------------------------------------------------------------------------- reading

def read_settings(folder):
    """What made the embeddings in a folder."""
    try:
        return json.loads((Path(folder) / "settings.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder}: no embeddings here (settings.json is missing or damaged); make some with "
                        "python extract.py AUDIO --out FOLDER") from None


def parse(line):
    """A line of an index as a dict, or None if it is not whole."""
    text = line.decode("utf-8", "surrogateescape")
    fields = next(csv.reader([text]), ())
    if not text.endswith("\n") or len(fields) != len(COLUMNS):
        return None
    row = dict(zip(COLUMNS, fields))
    return row | {"start": float(row["start"]), "end": float(row["end"]), "rate": int(row["rate"]),
                  "row": int(row["row"]), "left": int(row["left"])}


def read_index(folder):
    """The lines of an index, one dict a row, in order."""
    with open(Path(folder) / "index.csv", "rb") as file:
        file.readline()
        for line in file:
            if (row := parse(line)) is not None:
                yield row


def arrays(folder):
    """[(array's name, rows)] that the index names, in its order."""
    counts = {}
    for row in read_index(folder):
        counts[row["array"]] = counts.get(row["array"], 0) + 1
    return list(counts.items())


def chunks(folder):
    """The rows of a folder, in the order of its index, as float32 arrays (n, D) of a few thousand."""
    folder = Path(folder)
    for name, count in arrays(folder):
        array = np.load(folder / name, mmap_mode="r")
        if array.ndim != 2:
            raise UserError(f"{folder / name} holds rows of shape {array.shape[1:]}, not vectors: extract with "
                            "--granularity clip or frame")
        for start in range(0, count, _CHUNK):
            yield np.asarray(array[start:min(start + _CHUNK, count)], np.float32)


def nearest(folder, queries, top=20, standardise=True, without=None):
    """The rows of a folder that are most like any of the queries (Q, D) -> [(cosine, line of the index)], best first.

    standardise: features get mean 0 and deviation 1 over the folder before, as in probes.knn; without: a file whose
    rows are left out. Chunk by chunk: memory does not grow with the folder.
    """
    mean, deviation = 0.0, 1.0
    if standardise:
        n, total, square = 0, 0.0, 0.0
        for x in chunks(folder):
            n, total, square = n + len(x), total + x.sum(0, dtype=float), square + np.square(x, dtype=float).sum(0)
        mean = total / max(n, 1)
        deviation = np.sqrt(np.maximum(square / max(n, 1) - mean ** 2, 1e-12))

    def unit(x):
        x = (x - mean) / deviation
        return x / np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-12)
    queries = unit(np.asarray(queries, float))
    best, at, files = [], 0, (row["file"] for row in read_index(folder))
    for x in chunks(folder):
        likeness = (unit(x) @ queries.T).max(1)
        likeness[[file == without for file in islice(files, len(x))]] = -np.inf
        rows = np.argsort(-likeness, kind="stable")[:top]
        best += [(float(likeness[k]), at + int(k)) for k in rows if likeness[k] > -np.inf]
        best = sorted(best, key=lambda pair: (-pair[0], pair[1]))[:top]
        at += len(x)
    wanted = dict((line, likeness) for likeness, line in best)
    found = {k: row for k, row in enumerate(read_index(folder)) if k in wanted}
    return [(likeness, found[line]) for likeness, line in best]
