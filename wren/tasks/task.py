"""What a task is: rows of sound with labels, in three splits."""
from dataclasses import dataclass, field, replace
from math import ceil

import numpy as np

from wren.sound import audio, streams
from wren.sound.manifest import Manifest

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
        with self.rows.open(i) as clip:
            frames = clip.frames
            if self.clip_seconds is not None:
                frames = min(frames, ceil(self.clip_seconds * clip.rate))
            wave = audio.resample(clip.read(0, frames), clip.rate, rate or clip.rate)
        return wave if self.clip_seconds is None else wave[:round(self.clip_seconds * (rate or clip.rate))]

    def read_streams(self, i, wanted):
        """What was measured beside the sound that `read` gives; wanted: (name, channels, rate in Hz) of each ->
        {name: float32 (channels, n)}, NaN where there is nothing. Raises BadAudio."""
        with self.rows.open(i) as clip:
            start, seconds = clip.first / clip.rate, clip.frames / clip.rate
        return streams.cut(self.rows, i, start, min(seconds, self.clip_seconds or seconds), wanted)

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
