"""Tasks of recordings with annotated calls: windows of them, and which labels are on in each (BEANS's rule)."""
import os
from dataclasses import replace
from math import floor

import numpy as np

from wren.cli import UserError, warn
from wren.sound import audio
from wren.sound.manifest import STREAM, build
from wren.sound.quality import Verdict
from wren.sound.scan import find
from wren.tasks.annotations import meant, read_recordings, read_text, records, tables
from wren.tasks.task import Split, Task

WINDOW_SECONDS, HOP_SECONDS = 2.0, 1.0  # of own recordings; BEANS's for birds
_PAST_END = 0.1  # seconds by which an annotation may outlast its file: rounded times


def detection_task(source, lists, label=None):
    """A task whose items are the windows of recordings with annotated calls."""
    settings = source.settings
    width, hop = settings.seconds or WINDOW_SECONDS, settings.hop or HOP_SECONDS
    parts = {split: _recordings_in(path, label) if path.is_dir() else read_recordings(path, label)
             for split, path in lists.items()}
    labels = source.classes({split: {event.label for _, _, events in part for event in events}
                             for split, part in parts.items()})
    if not labels:
        raise UserError(f"{lists['train']} holds no annotation: there is nothing to learn")
    splits = {split: _windows(source, lists[split], part, labels, width, hop) for split, part in parts.items()}
    return Task(source.name, "detection", "map", settings.group, labels, splits, settings.sample_rate,
                window_seconds=float(width), hop_seconds=float(hop))


def _recordings_in(folder, label):
    """A folder of recordings with tables beside them -> [(path from the task's folder, None, events)].

    A table belongs to the recording that it names, else to the one whose name without suffix begins its own.
    """
    paths = {os.path.abspath(path): os.path.relpath(path, folder.parent) for path in find(folder)}
    events = {path: [] for path in paths.values()}
    for place in tables(folder):
        for file, _, found in read_recordings(place, label):
            named = [paths[path] for path in meant(file, place, list(paths))]
            if len(named) != 1:
                raise UserError(f"{place}: its recording {file or '(not named)'} is "
                                + (f"one of several: {', '.join(named[:3])}" if named else f"not in {folder}"))
            events[named[0]] += [replace(event, file=named[0]) for event in found]
    return [(path, None, calls) for path, calls in events.items()]


def _windows(source, path, recordings, labels, width, hop):
    """The Split of one list of recordings [(file, seconds or None, events)]."""
    names = [file for file, _, _ in recordings]
    if not names:
        raise UserError(f"{path} holds no recordings")
    if "" in names:
        raise UserError(f"{path} doesn't say in which recordings its calls are: it wants a column file (Raven's is "
                        "Begin Path)")
    whole = source.place(build(names, bases=(), origin=str(path), **_streams(path, names)), path)
    heard, unreadable = _headers(source, path, whole, recordings)
    whole, (frames, rates, seconds) = whole.select(list(heard)), zip(*heard.values())
    files = [(whole.path(i), *about) for i, about in enumerate(zip(seconds, rates))]
    calls = [[replace(event, file=file) for event in recordings[k][2]] for k, (file, *_) in zip(heard, files)]
    frames, rates = np.array(frames, np.int64), np.array(rates, np.int32)
    count = np.array([count_windows(s, width, hop) for s in seconds])
    if not count.sum():
        raise UserError(f"{path}: all {len(files)} recordings are too short for a window of {width:g} s")
    file_index = np.repeat(np.arange(len(files), dtype=np.int32), count)
    index = np.arange(len(file_index)) - (np.cumsum(count) - count)[file_index]  # of a window in its recording
    rows, rate = whole.select(file_index), rates[file_index]
    rows.sample_rate, rows.start = rate, np.rint(index * hop * rate).astype(np.int64)
    rows.frames = np.minimum(np.rint(width * rate).astype(np.int64), frames[file_index] - rows.start)
    events = [event for some in calls for event in some]
    codes = source.codes([event.label for event in events], labels, path)
    for event, k in zip(events, codes):
        event.label = labels[k]
    start, end = np.array([(event.start, event.end) for event in events]).reshape(-1, 2).T
    of_file = np.repeat(np.arange(len(files)), [len(some) for some in calls])
    targets = label_windows(start, end, codes, of_file, count, width, hop, len(labels))
    return Split(rows, targets, source.groups(whole)[file_index], events, files, file_index, unreadable=unreadable)


def _streams(path, files):
    """{column: list of str} of the streams that a CSV list of calls names in any row of each recording."""
    if path.suffix not in (".csv", ".tsv"):
        return {}
    (names, rows), out = records(read_text(path)), {}
    for name in names:
        if name.startswith(STREAM):
            said = {row["file"]: row[name] for _, row in rows if row[name]}
            out[STREAM + name.removeprefix(STREAM).strip()] = [said.get(file, "") for file in files]
    return out


def _headers(source, path, whole, recordings):
    """What recordings say of themselves -> {index: (frames, rate in Hz, seconds as listed or else counted)}, and
    [(path, Verdict)] of those that can't be read. Calls after the end are an error, but BEANS's are as they are."""
    heard, unreadable, outside = {}, [], 0
    for k, (_, listed, calls) in enumerate(recordings):
        file = audio.printable(whole.path(k))
        try:
            frames, rate, _ = audio.info(whole.locate(k))
            if not frames:
                raise audio.BadAudio("holds no sound")
        except audio.BadAudio as error:
            unreadable.append((whole.path(k), Verdict("unreadable", error.reason)))
            continue
        seconds = frames / rate
        if listed is not None and listed > seconds + _PAST_END:
            raise UserError(f"{path} says that {file} lasts {listed:g} s, the file has {seconds:g} s")
        late = [event for event in calls if event.end > seconds + _PAST_END]
        if late and not source.home:
            first = late[0]
            raise UserError(f"{path}: {first.label!r} from {first.start:g} to {first.end:g} s lies outside {file}, "
                            f"which ends at {seconds:g} s")
        outside += len(late)
        heard[k] = frames, rate, seconds if listed is None else listed
    if unreadable:
        lost = f"for example {audio.printable(unreadable[0][0])}: {unreadable[0][1].detail}"
        if not heard:
            raise UserError(f"{path}: none of its {len(whole)} recordings can be read, {lost}")
        warn(f"{path}: {len(unreadable)} of {len(whole)} recordings can't be read, {lost}: left out")
    if outside:
        warn(f"{path}: {outside} annotations end after their recording")
    return heard, unreadable


def count_windows(seconds, width, hop):
    """BEANS's number of windows: int((seconds - width) / hop) + 1. int() rounds towards zero, so a recording between
    width - hop and width has one, which is padded; a shorter one has none."""
    return max(0, int((seconds - width) / hop) + 1)


def label_windows(start, end, code, recording, count, width, hop, classes):
    """Which classes are on in which windows, by BEANS's rule -> bool (sum(count), classes).

    start, end (E,): annotations in seconds of their recording; code (E,): class; recording (E,): index into count;
    count (R,): windows of each recording, window k from k hop to k hop + width. A class is on if an annotation covers
    the window, or if one of its ends lies in it (borders count) and their overlap is more than 0.2 of the shorter of
    the two; annotations without length never count.
    """
    targets, first = np.zeros((int(np.sum(count)), classes), bool), np.cumsum(count) - count
    for a, b, k, r in zip(start.tolist(), end.tolist(), code, recording):
        # the windows that an annotation can touch, and one more on each side, so that rounding loses none
        for n in range(max(0, floor((a - width) / hop) - 1), min(count[r], floor(b / hop) + 2)):
            left, right = n * hop, n * hop + width
            end_inside = left <= a <= right or left <= b <= right
            shorter = min(right - left, b - a)
            if shorter > 0 and (a <= left and right <= b
                                or end_inside and (min(right, b) - max(left, a)) / shorter > 0.2):
                targets[first[r] + n, k] = True
    return targets
