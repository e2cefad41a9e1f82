"""Embeddings on disk: .npy arrays that can be memory-mapped, an index that says where each row comes from, search.

    OUT/settings.json    what made them; another checkpoint, window or dtype is refused
    OUT/index.csv        a line a row: file, start, end (s in the file), rate (Hz of the file), checkpoint (a hash of
                         its weights and settings), array and row (where the vector is), left (rows of the same
                         recording that follow; a recording is there once its line with 0 is)
    OUT/STEM.npy         an array a recording, or OUT/embeddings.npy, one for all

Both layouts grow by whole recordings. A killed run leaves a finished part that the next one goes on from.
"""
import csv
import fcntl
import json
import os
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from sklearn.preprocessing import StandardScaler, normalize

from wren import cli
from wren.cli import UserError

COLUMNS = ("file", "start", "end", "rate", "checkpoint", "array", "row", "left")
_CHUNK = 1 << 14  # rows compared at a time


class Rows:
    """A .npy file that grows by rows of one shape. numpy leaves room in the header for the number of rows, so that it
    can be written anew without moving them."""

    def __init__(self, path, shape, dtype, keep=0):
        """keep: rows of an existing file that stay, what comes after them is dropped; 0: a new file."""
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.file = open(path, "r+b" if keep else "w+b")
        self._cut(keep)

    def _cut(self, count):
        """Say that there are `count` rows, and drop all after them."""
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(self.file, {
            "descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (count, *self.shape)})
        self.file.seek(count * int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize, os.SEEK_CUR)
        self.file.truncate()

    def append(self, rows):
        """rows (n, *shape), any float type."""
        self.file.write(np.ascontiguousarray(rows, self.dtype).data)

    def close(self, count):
        """The first `count` rows count."""
        self.file.flush()
        self._cut(count)
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
        path = self.folder / "index.csv"
        self._index = open(path, "a", newline="", encoding="utf-8", errors="surrogateescape")
        try:
            fcntl.flock(self._index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--out {self.folder}: another process is writing to it; wait for it, or choose another "
                            "folder") from None
        self.done, self._arrays, self._count = self._recover(path)
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

    def _recover(self, index):
        """Forget what a killed run left unfinished -> ({recording that is there: its seconds}, arrays, rows)."""
        for path in self.folder.rglob(".*.npy.tmp"):
            path.unlink()
        if not index.stat().st_size:
            self._index.write(",".join(COLUMNS) + "\n")
            self._index.flush()
        done, arrays, count, first = {}, set(), 0, None
        with open(index, "rb") as file:
            end = len(file.readline())
            for number, line in enumerate(iter(file.readline, b""), 1):
                row = parse(line)
                if row is None:
                    break
                first = first or row
                if row["left"] == 0:
                    done[row["file"], first["start"]] = row["end"] - first["start"]
                    arrays.add(row["array"])
                    first, end, count = None, file.tell(), number
        os.truncate(index, end)
        return done, arrays, count

    def begin(self, file, rate, name):
        """A recording's rows follow: file (path), its rate in Hz, what its array is called if it has its own."""
        names = (f"{name}.npy", *(f"{name}-{k}.npy" for k in range(2, 3 + len(self._arrays))))
        array = "embeddings.npy" if self.one else next(choice for choice in names if choice not in self._arrays)
        path = self.folder / array
        self._path = path if self.one else path.with_name(f".{path.name}.tmp")
        self._current, self._times = (file, rate, array), []

    def add(self, rows, starts, ends):
        """rows (n, …) of the recording that was begun, and their times in seconds."""
        if self._rows is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._rows = Rows(self._path, np.shape(rows)[1:], self.dtype, self._count if self.one else 0)
        self._rows.append(rows)
        self._times += zip(starts, ends, strict=True)

    def commit(self):
        """The recording is whole."""
        (file, rate, array), base, n = self._current, self._count if self.one else 0, len(self._times)
        self._rows.close(base + n)
        if not self.one:
            os.replace(self._path, self.folder / array)
        csv.writer(self._index, lineterminator="\n").writerows(
            (file, f"{start:.6f}", f"{end:.6f}", rate, self.checkpoint, array, base + k, n - 1 - k)
            for k, (start, end) in enumerate(self._times))
        self._index.flush()
        self._arrays.add(array)
        self._count += n
        self._rows = self._current = None

    def discard(self):
        """The recording that was begun can't be read to its end: nothing of it stays."""
        if self._rows is not None:
            self._rows.close(self._count if self.one else 0)
            if not self.one:
                self._path.unlink()
        self._rows = self._current = None

    def close(self):
        self.discard()
        self._index.close()


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


def chunks(folder):
    """A folder in the order of its index: yields (lines of the index, their rows float32 (n, D)), a few thousand."""
    for name, lines in groupby(read_index(folder), lambda line: line["array"]):
        array = np.load(Path(folder) / name, mmap_mode="r")
        if array.ndim != 2:
            raise UserError(f"{Path(folder) / name} holds rows of shape {array.shape[1:]}, not vectors: extract with "
                            "--granularity clip or frame")
        while chunk := list(islice(lines, _CHUNK)):
            yield chunk, np.asarray(array[chunk[0]["row"]:chunk[-1]["row"] + 1], np.float32)


def nearest(folder, queries, top=20, without=None):
    """The rows of a folder that are most like any of the queries (Q, D) -> [(cosine, line of the index)], best first.

    Features get mean 0 and deviation 1 over the folder before, as in probes.knn. without: a file whose rows are left
    out. Chunk by chunk: memory does not grow with the folder.
    """
    scale = StandardScaler()
    for _, x in chunks(folder):
        scale.partial_fit(x)

    def unit(x):
        return normalize(scale.transform(np.asarray(x, float)))
    queries, best = unit(queries), []
    for lines, x in chunks(folder):
        likeness = (unit(x) @ queries.T).max(1)
        likeness[[line["file"] == without for line in lines]] = -np.inf
        best += [(float(likeness[k]), lines[k]) for k in np.argsort(-likeness, kind="stable")[:top]]
        best = sorted(best, key=lambda pair: -pair[0])[:top]
    return [(likeness, line) for likeness, line in best if likeness > -np.inf]
