"""What a task is: rows of sound with labels, in three splits; and what its lists have in common, whatever they list."""
import os
import re
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

import numpy as np

from wren.cli import UserError, warn
from wren.sound import audio, streams
from wren.sound.manifest import STREAM, Manifest
from wren.tasks.beans import Beans

SPLITS = ("train", "valid", "test")


@dataclass
class Split:
    """One part of a task. What is read of row i is `clip_seconds` from its start, or less where there is less."""
    rows: Manifest  # one row a clip or window
    targets: np.ndarray  # int32 (n,): index into the task's labels; else bool (n, C)
    groups: np.ndarray  # int64 (n,): the recording each row comes from, as far as it is known
    events: list = field(default_factory=list)  # of the recordings; detection only, as are the next two
    files: list = field(default_factory=list)  # (path as in events, seconds, sample rate), in order of rows
    file_index: np.ndarray | None = None  # int32 (n,): index into `files`
    clip_seconds: float | None = None
    unreadable: list = field(default_factory=list)  # (path, Verdict) of recordings that were left out already

    def __len__(self):
        return len(self.rows)

    def read(self, i, rate=None):
        """Row i -> float32 [S] at `rate` Hz (None: its own), not padded."""
        return self.take(i, lambda recorded: rate or recorded)["wave"]

    def take(self, i, rate_for, wanted=()):
        """Row i as loaders take it -> {"wave": float32 [S], not padded, "rate": rate_for(its own rate) in Hz}, and
        "streams" {name: float32 (channels, n)}, NaN where there is nothing, if any are wanted: (name, channels, rate in
        Hz) of each. Raises BadAudio."""
        with self.rows.open(i) as clip:
            recorded, start, whole = clip.rate, clip.first / clip.rate, clip.frames / clip.rate
            seconds = min(whole, self.clip_seconds or whole)
            wave = clip.read(0, min(clip.frames, ceil(seconds * recorded)))
        rate = rate_for(recorded)
        out = {"wave": audio.resample(wave, recorded, rate), "rate": rate}
        if self.clip_seconds:
            out["wave"] = out["wave"][:round(self.clip_seconds * rate)]
        return out | ({"streams": streams.cut(self.rows, i, start, seconds, wanted)} if wanted else {})

    def select(self, rows):
        """Some rows (indices or a mask), with all events and files."""
        index = None if self.file_index is None else self.file_index[rows]
        return replace(self, rows=self.rows.select(rows), targets=self.targets[rows], groups=self.groups[rows],
                       file_index=index)

    def times(self):
        """Start and end of each row in its recording, seconds -> two float64 (n,); for windows."""
        rate = self.rows.sample_rate.astype(float)
        return self.rows.start / rate, (self.rows.start + self.rows.frames) / rate


@dataclass
class Task:
    """A labelled data set."""
    name: str
    kind: str  # "classification": one label a clip; "multilabel": any number; "detection": windows of recordings
    metric: str  # "accuracy" or "map"
    group: str | None  # BEANS's "classification", "detection", "auxiliary"
    labels: list
    splits: dict  # "train", "valid", "test" -> Split
    sample_rate: int | None = None  # Hz at which the set was published; None: any
    clip_seconds: float | None = None  # what is read of a clip; None: all
    window_seconds: float | None = None
    hop_seconds: float | None = None
    folds: list = field(default_factory=list)  # names of the folds, where there are any


@dataclass
class Source:
    """What the lists of a task share: its name and rules, and where its sound lies."""
    name: str
    settings: Beans
    home: Path | None  # BEANS's data/
    root: str | None

    def place(self, rows, path):
        """Look the rows of list `path` up in the right folders; BEANS writes paths from the folder above data/."""
        if self.home:
            skip = np.array([5 * rows.raw_path(i).startswith(b"data/") for i in range(len(rows))], rows.size.dtype)
            rows.begin, rows.size, rows.bases = rows.begin + skip, rows.size - skip, (str(self.home),)
        else:
            top = Path(self.root).resolve() if self.root else path.resolve().parent
            parents = [str(p) for p in path.resolve().parent.parents if p == top or top in p.parents]
            rows.bases = tuple(dict.fromkeys([*rows.bases, str(path.parent), *parents, "."]))
        for i in range(len(rows)):
            if not os.path.exists(rows.locate(i)):
                raise UserError(f"{path} names {audio.printable(rows.path(i))}, which is neither in "
                                f"{' nor in '.join(rows.bases)}")
        for name in rows.streams:
            for i in np.unique(rows.text(STREAM + name), return_index=True)[1]:
                if (stream := rows.stream(i, name)) and not os.path.exists(stream):
                    raise UserError(f"{path} names the stream {audio.printable(stream)}, which is not there")
        return rows

    def classes(self, seen):
        """The task's labels from those that the splits have: {split: labels}."""
        if self.settings.labels:
            return self.settings.labels.split(";")
        labels = sorted(seen["train"])
        for split in ("valid", "test"):
            if new := sorted(set(seen[split]) - set(labels)):
                warn(f"task {self.name}: the {split} split has labels that the training split lacks: "
                     f"{', '.join(new[:5])}{' …' * (len(new) > 5)}")
                labels += new
        return labels

    def codes(self, texts, labels, path):
        """Labels of list `path` as their indices into `labels`, by the set's rule for unknown ones -> int32 (n,)."""
        known = {label: k for k, label in enumerate(labels)}
        codes = [known.get(text, known.get(self.settings.unknown)) for text in texts]
        if None in codes:
            raise UserError(f"{path} has the unknown label {texts[codes.index(None)]!r}: {self.name} has the classes "
                            f"{', '.join(labels[:8])}{' …' * (len(labels) > 8)}")
        return np.array(codes, np.int32)

    def groups(self, rows):
        """Which rows come from one recording -> int64 (n,)."""
        keys, paths = rows.recording_keys(), [rows.path(i) for i in range(len(rows))]
        if self.settings.recording:
            keys = [match[1] if (match := re.search(self.settings.recording, path)) else path for path in paths]
        elif "recording" in rows.texts:
            keys = [said or path for said, path in zip(rows.text("recording"), paths)]
        return np.unique(keys, return_inverse=True)[1].astype(np.int64)
