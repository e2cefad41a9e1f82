"""What was measured beside the sound: accelerometer, speed, depth … brought to the stretch that is heard.

A stream is a CSV with a header whose first column is `time`, in seconds from the start of the recording, and whose
other columns are channels; or a .npy of the same numbers, float (n, 1 + channels), of which only the wanted stretch is
read. Sampling may be uneven and have gaps; an empty field is a missing value. Manifests and lists of clips name a
row's stream in the column `stream:NAME`.
"""
import os
from bisect import bisect_left
from functools import lru_cache

import numpy as np
from scipy.interpolate import make_interp_spline

from wren.sound import audio
from wren.sound.audio import BadAudio

_GAP = 5  # sampling intervals without a sample after which nothing is known in between
_HEAD = 1000  # samples by which the interval is judged


def cut(rows, i, start, seconds, streams):
    """The stretch of `seconds` from `start` (s in the recording) of row i of a manifest.

    streams: (name, channels, rate in Hz) of each -> {name: float32 (channels, round(seconds rate))}; NaN where there
    is nothing, everywhere if the row has no such stream. Raises BadAudio.
    """
    out = {}
    for name, channels, rate in streams:
        path, found = rows.stream(i, name), None
        try:
            if path is not None:
                if (recorded := len(load(path)[1])) != channels:
                    raise BadAudio(f"has {recorded} channels, {channels} are wanted", audio.printable(path))
                found = read(path, start, seconds, rate)
        except BadAudio as error:
            raise BadAudio(f"stream {name}: {error}", audio.printable(rows.path(i))) from None
        out[name] = np.full((channels, round(seconds * rate)), np.nan, np.float32) if found is None else found
    return out


def read(path, start, seconds, rate):
    """A stream from `start` for `seconds`, at `rate` Hz -> float32 (channels, round(seconds rate)), or None.

    Value k belongs to the time start + k / rate, as sample k of the sound does. It is interpolated linearly, or the
    mean of the interpolation over 1 / rate around it where the stream is sampled faster. NaN: in gaps and beyond the
    ends by more than one interval. None: nothing of the stretch is there. Raises BadAudio.
    """
    time, values, interval = load(path)
    wanted = start + np.arange(round(seconds * rate)) / rate
    half = 0.5 / rate if interval < 0.99 / rate else 0.0
    margin = half + (_GAP + 1) * interval  # so that a gap at the border is seen as one
    low = max(0, bisect_left(time, start - margin) - 1)
    high = bisect_left(time, start + seconds + margin) + 1
    near, cells = np.asarray(time[low:high], np.float64), np.full((len(values), len(wanted)), np.nan, np.float32)
    for cell, channel in zip(cells, values):
        value = np.asarray(channel[low:high], np.float64)
        known = np.isfinite(value)
        if known.sum() > 1:
            cell[:] = _mean(near[known], value[known], wanted, half)
            cell[_unknown(near[known], wanted, interval)] = np.nan
    return cells if np.isfinite(cells).any() else None


def _mean(time, value, wanted, half):
    """Samples (n,) at rising times -> means (m,) of the line through them, over `half` on either side of the times
    `wanted` (m,), over less at the ends."""
    line = make_interp_spline(time, value, k=1)
    inside = np.clip(wanted, time[0], time[-1])
    half = np.clip(np.minimum(inside - time[0], time[-1] - inside), 0, half)
    area = line.antiderivative()
    mean = (area(inside + half) - area(inside - half)) / np.maximum(2 * half, 1e-6)
    return np.where(half > 1e-6, mean, line(inside))


def _unknown(time, wanted, interval):
    """Which times `wanted` are further than an interval from the samples around them, where those lie far apart."""
    after = np.searchsorted(time, wanted - 1e-9)
    left, right = np.append(-np.inf, time)[after], np.append(time, np.inf)[after]
    slack = interval * (1 + 1e-6)  # for rounding
    return (right - left > _GAP * slack) & (wanted - left > slack) & (right - wanted > slack)


def load(path):
    """A whole stream, sound in form -> times (n,) in s, channels (C, n), the usual interval between samples in s.
    Raises BadAudio."""
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError as error:
        raise BadAudio("no such file" if not os.path.exists(path) else error.strerror, audio.printable(path)) from None
    return _load(path, changed)


@lru_cache(maxsize=4)  # rows of one recording often follow one another; a file that has changed is read anew
def _load(path, changed):
    try:
        if str(path).endswith(".npy"):
            table = np.load(path, mmap_mode="r")
        else:
            table = _read_csv(path)
    except (OSError, EOFError, ValueError) as error:
        raise BadAudio(f"not readable as a stream: {str(error).splitlines()[0]}", audio.printable(path)) from None
    if table.ndim != 2 or table.shape[1] < 2 or len(table) < 2 or table.dtype.kind not in "fiu":
        raise BadAudio(f"holds {table.dtype} {table.shape}: a stream has at least two rows of numbers, the time in "
                       "seconds and its channels", audio.printable(path))
    time = table[:, 0]
    if len(wrong := np.flatnonzero(~(np.diff(time) > 0))):
        raise BadAudio(f"time doesn't rise after sample {wrong[0] + 1} ({time[wrong[0]]:g} s, then "
                       f"{time[wrong[0] + 1]:g})", audio.printable(path))
    return time, table[:, 1:].T, float(np.median(np.diff(time[:_HEAD].astype(np.float64))))


def _read_csv(path):
    with open(path, encoding="utf-8-sig") as file:
        first = file.readline()
        delimiter = "\t" if "\t" in first else ","
        if first.split(delimiter)[0].strip().strip('"').lower() != "time":
            raise ValueError(f"the first column is to be time, in seconds; the header reads {first.strip()[:60]!r}")
        lines = file.readlines()
    if not lines:
        return np.empty((0, 2))
    return np.loadtxt(lines, delimiter=delimiter, ndmin=2, converters=_number, encoding="utf-8")


def _number(text):
    return float(text) if text.strip() else np.nan
