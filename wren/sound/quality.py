"""Whether sound can be used: one judgement of a file, or of a row's stretch of one, for all stages.

Sound is decoded whole, by portions. It can't be used if it doesn't open or decode, is shorter than 0.05 s, holds NaN
or infinite samples, or is silent or constant throughout. It is used, but named and never held out, if it ends before
its header says or if most of its channels are silent.
"""
import csv
import os
from dataclasses import astuple, dataclass

import numpy as np

from wren.cli import write_table
from wren.sound import audio, streams

MIN_SECONDS = 0.05
SILENT = 1 / 32768  # below 16-bit rounding noise
USED = ("truncated", "dead channels")  # problems of sound that is used all the same


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a piece of sound; problem "": nothing."""
    problem: str = ""  # unreadable, short, non-finite, silent, constant, stream, or one of USED
    detail: str = ""
    frames: int = 0  # that decode
    rate: int = 0  # Hz

    @property
    def usable(self):
        return not self.problem or self.problem in USED


def judge(blocks, rate, declared=0, min_seconds=MIN_SECONDS):
    """blocks: float32 [n, channels], one after another; declared: frames that a header or manifest promises -> Verdict.

    Raises BadAudio where decoding does."""
    frames, low, high = 0, np.inf, -np.inf
    for block in blocks:
        if not np.isfinite(block).all():
            return Verdict("non-finite", "holds NaN or infinite samples", frames, rate)
        if len(block):
            low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))  # [channels]
        frames += len(block)

    def verdict(problem="", detail=""):
        return Verdict(problem, detail, frames, rate)
    if not frames:
        return verdict("short", "holds no sound")
    if frames < min_seconds * rate:
        return verdict("short", f"{frames} samples at {rate} Hz are shorter than {min_seconds:g} s")
    if max(high.max(), -low.min()) <= SILENT:
        return verdict("silent", f"silent: no sample is above {SILENT:.0e} of full scale")
    still = high - low <= 2 * SILENT
    if still.all():
        return verdict("constant", f"all samples are {low[0]:g}" if len(low) == 1 else "all channels are constant")
    if declared > frames:
        return verdict("truncated", f"truncated: {frames / rate:.6g} of {declared / rate:.6g} s are there")
    if 2 * still.sum() > len(still):
        return verdict("dead channels", f"{still.sum()} of {len(still)} channels are silent")
    return verdict()


def judge_file(path, min_seconds=MIN_SECONDS):
    """The verdict on a whole file."""
    try:
        with audio.Sound(path) as sound:
            return judge(sound.blocks(), sound.rate, sound.declared, min_seconds)
    except audio.BadAudio as error:
        return Verdict("unreadable", error.reason)


def judge_row(rows, i, keep=None, min_seconds=MIN_SECONDS):
    """The verdict on row i of a manifest: its stretch, its streams, and in a shard its checksum.

    keep: a list to which the decoded blocks are added, for callers that need the samples too."""
    try:
        for name in rows.streams:
            if path := rows.stream(i, name):
                streams.load(path)
    except audio.BadAudio as error:
        return Verdict("stream", str(error))
    try:
        if rows.entry is not None:
            rows.verify(i)
        with rows.open(i) as clip:
            blocks = clip.blocks() if keep is None else (keep.append(block) or block for block in clip.blocks())
            whole = rows.entry is None and not rows.start[i] and rows.frames[i] < 0
            verdict = judge(blocks, clip.rate, clip.sound.declared if whole else 0, min_seconds)
    except audio.BadAudio as error:
        return Verdict("unreadable", error.reason)
    if verdict.usable and verdict.frames < rows.frames[i]:
        return Verdict("short", f"{rows.frames[i]} samples wanted, {verdict.frames} there: truncated, or a wrong "
                       "manifest", verdict.frames, verdict.rate)
    return verdict


# ------------------------------------------------------------------------------------------- lists of what is wrong

def list_problems(path, found, add=False):
    """Write the table of problems [(file, Verdict)], or take away an old one if there are none; add: to that table."""
    rows = [(audio.printable(file), verdict.problem, verdict.detail, "yes" if verdict.usable else "no")
            for file, verdict in found]
    if add and os.path.exists(path):
        with open(path, newline="", encoding="utf-8") as file:
            rows = [*map(tuple, list(csv.reader(file))[1:]), *rows]
    if rows:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        write_table(path, ("path", "problem", "detail", "used"), dict.fromkeys(rows))
    elif os.path.exists(path):
        os.remove(path)


def summary(found, total, what="files"):
    """One clause about problems [(file, Verdict)]: how many of `total` can't be used and how many are odd."""
    parts = []
    for usable in (False, True):
        files = [(file, verdict) for file, verdict in found if verdict.usable == usable]
        if files:
            file, verdict = files[0]
            text = f"{'is' if len(files) == 1 else 'are'} used although odd" if usable else "can't be used"
            parts.append(f"{len(files)} of {total} {what} {text}, for example {audio.printable(file)}: "
                         f"{verdict.detail}")
    return "; ".join(parts)


class Memory:
    """Verdicts on files that are kept from run to run in a table, by path, size and time of change."""

    def __init__(self, path=None):
        self.path, self.known, self.new = path, {}, False
        try:
            with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                for name, size, changed, problem, detail, frames, rate in list(csv.reader(file))[1:]:
                    self.known[name] = (int(size), int(changed)), Verdict(problem, detail, int(frames), int(rate))
        except (OSError, ValueError, TypeError):  # none yet, or not ours
            self.known = {}

    def judge(self, path, decode, part=""):
        """What `decode()` says of a file, or of a named part of it, or what is known since the file last changed."""
        name = os.path.realpath(path)
        try:
            about = os.stat(name)
        except OSError:
            return decode()
        name, stamp = f"{name}{part}", (about.st_size, about.st_mtime_ns)
        if self.known.get(name, (None,))[0] != stamp:
            self.known[name], self.new = (stamp, decode()), True
        return self.known[name][1]

    def save(self):
        if self.path and self.new:
            os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
            write_table(self.path, ("path", "size", "changed", "problem", "detail", "frames", "sample_rate"),
                        [(name, *stamp, *astuple(verdict)) for name, (stamp, verdict) in self.known.items()])
