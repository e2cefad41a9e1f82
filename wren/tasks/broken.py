"""Clips of a task that can't be read: all of them are found, and left out, before anything is embedded or trained."""
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from wren.cli import UserError, warn, write_table
from wren.sound.audio import printable
from wren.sound.quality import Memory, judge_file, judge_row
from wren.sound.scan import in_threads

_BROKEN = ("unreadable", "short", "non-finite", "stream")  # silence may be a class, a click of 5 ms a call


def without_broken(task, folder, max_bad=0.01, memory=None, quiet=False):
    """The task without what can't be read -> Task; for detection that is whole recordings, with their calls.

    What is left out of training and validation is said in one line, of the test split in a warning; all of it is
    listed in folder/TASK.unusable.csv. More than the share `max_bad` of the test split is an error. memory: a folder
    that keeps what was found, as long as no file changes; quiet: say and list nothing (other processes).
    """
    memory, path = Memory(memory and Path(memory) / "readable.csv"), Path(folder) / f"{task.name}.unusable.csv"
    found = {name: _sifted(split, f"{task.name}, {name} split", memory) for name, split in task.splits.items()}
    memory.save()
    listed = [(name, *row) for name, (_, lost) in found.items() for row in lost]
    if listed and not quiet:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, ("split", "path", "start", "problem", "detail"), listed)
    for name, (split, lost) in found.items():
        if not lost:
            continue
        what, total = ("clips", len(split)) if split.file_index is None else ("recordings", len(split.files))
        total += len(lost)
        text = (f"task {task.name}: {len(lost)} of {total} {what} of the {name} split can't be read, for example "
                f"{lost[0][0]}: {lost[0][3]}; listed in {path}")
        if not len(split):
            raise UserError(f"{text}: nothing is left")
        if name == "test" and len(lost) > max_bad * total:
            raise UserError(f"{text}: mend them, take them out of the table, or raise --max-bad {max_bad:g}")
        if not quiet and name == "test":
            warn(f"{text}: scores stand on the other {len(split)}")
        elif not quiet:
            print(f"{text}: left out")
    return replace(task, splits={name: split for name, (split, _) in found.items()})


def _sifted(split, what, memory):
    """The split without clips, or recordings with all their windows and calls, that can't be read, and
    [(path, start, problem, detail)] of these. A recording is judged by the first of its windows."""
    rows, index = split.rows, split.file_index

    def judge(i):
        if index is not None:
            return memory.judge(rows.locate(i), lambda: judge_file(rows.locate(i), 0))
        return memory.judge(rows.locate(i), lambda: judge_row(rows, i, min_seconds=0),
                            f" {rows.start[i]} {rows.frames[i]}")
    places = range(len(rows)) if index is None else np.unique(index, return_index=True)[1].tolist()
    verdicts = zip(places, in_threads(judge, places, os.cpu_count() or 1, what))
    bad = {i: verdict for i, verdict in verdicts if verdict.problem in _BROKEN}
    lost = [(rows.path(i), int(rows.start[i]), verdict) for i, verdict in bad.items()]
    lost += [(file, 0, verdict) for file, verdict in split.unreadable]
    lost = [(printable(file), start, verdict.problem, verdict.detail) for file, start, verdict in lost]
    if bad and index is None:
        split = split.select(np.setdiff1d(np.arange(len(split)), list(bad)))
    elif bad:
        left = np.setdiff1d(np.arange(len(split.files)), index[list(bad)])
        files = [split.files[k] for k in left]
        names = {file for file, *_ in files}
        split = split.select(np.isin(index, left))
        split = replace(split, files=files, events=[event for event in split.events if event.file in names],
                        file_index=np.searchsorted(left, split.file_index).astype(np.int32))
    return split, lost
