"""Clips of a task that can't be read: all of them are found, and left out, before anything is embedded or trained."""
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from wren.cli import UserError, warn, write_table
from wren.sound import audio
from wren.sound.quality import Memory, judge_file, judge_row
from wren.sound.scan import in_threads

_BROKEN = ("unreadable", "short", "non-finite", "stream")  # silence may be a class, a click of 5 ms a call


def without_broken(task, folder, max_bad=0.01, memory=None, quiet=False):
    """The task without what can't be read -> Task; for detection that is whole recordings, with their calls.

    What is left out of training and validation is said in one line, of the test split in a warning; all of it is
    listed in folder/TASK.unusable.csv. More than the share `max_bad` of the test split is an error. memory: a folder
    that keeps what was found, as long as no file changes; quiet: say and list nothing (other processes).
    """
    splits, listed, path = {}, [], Path(folder) / f"{task.name}.unusable.csv"
    memory = Memory(memory and Path(memory) / "readable.csv")
    for name, split in task.splits.items():
        found = _find(split, f"{task.name}, {name} split", memory)
        splits[name] = _without(split, sorted(found)) if found else split
        listed += [(name, audio.printable(file), start, verdict.problem, verdict.detail)
                   for file, start, verdict in [*found.values(), *((f, 0, v) for f, v in split.unreadable)]]
    memory.save()
    if not listed:
        return task
    if not quiet:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, ("split", "path", "start", "problem", "detail"), listed)
    for name, split in splits.items():
        rows = [row for row in listed if row[0] == name]
        what, whole = ("recordings", split.files) if task.kind == "detection" else ("clips", split)
        total = len(whole) + len(rows)
        text = f"{len(rows)} of {total} {what} of the {name} split can't be read" + (
            f", for example {rows[0][1]}: {rows[0][4]}; listed in {path}" if rows else "")
        if not len(split):
            raise UserError(f"task {task.name}: {text}: nothing is left")
        if name == "test" and len(rows) > max_bad * total:
            raise UserError(f"task {task.name}: {text}: mend them, take them out of the table, or raise --max-bad "
                            f"{max_bad:g}")
        if rows and not quiet:
            outcome = f"scores stand on the other {len(split)}" if name == "test" else "left out"
            (warn if name == "test" else print)(f"task {task.name}: {text}: {outcome}")
    return replace(task, splits=splits)


def _find(split, what, memory):
    """{row: (path, start, Verdict)} of a split's clips that can't be read; of recordings, by their first window."""
    rows = split.rows

    def judge(i):
        if split.file_index is not None:
            return memory.judge(rows.locate(i), lambda: judge_file(rows.locate(i), 0))
        return memory.judge(rows.locate(i), lambda: judge_row(rows, i, min_seconds=0),
                            f" {rows.start[i]} {rows.frames[i]}")
    firsts = np.arange(len(rows)) if split.file_index is None else np.unique(split.file_index, return_index=True)[1]
    places = firsts.tolist()
    verdicts = in_threads(judge, places, os.cpu_count() or 1, what)
    return {i: (rows.path(i), int(rows.start[i]), verdict) for i, verdict in zip(places, verdicts)
            if verdict.problem in _BROKEN}


def _without(split, rows):
    """The split without some rows; where they are windows, without all windows and calls of their recordings."""
    if split.file_index is None:
        return split.select(np.setdiff1d(np.arange(len(split)), rows))
    lost = set(split.file_index[rows].tolist())
    left = [k for k in range(len(split.files)) if k not in lost]
    names = {split.files[k][0] for k in left}
    rest = split.select(np.isin(split.file_index, left))
    return replace(rest, files=[split.files[k] for k in left],
                   events=[event for event in split.events if event.file in names],
                   file_index=np.searchsorted(left, rest.file_index).astype(np.int32))
