"""What sound lies below some folders: files, what is wrong with them, the rows that long recordings are cut into."""
import os
from concurrent.futures import ThreadPoolExecutor

from wren.cli import Pulse, UserError
from wren.sound import audio, quality
from wren.sound.manifest import build


def find(folder):
    """Paths of all audio files below a folder, sorted, links followed once, hidden files (._x.wav) left out."""
    seen, found = set(), []
    for top, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(top)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if real not in seen else []
        if real not in seen:
            found += [os.path.join(top, f) for f in sorted(files)
                      if not f.startswith(".") and f.lower().endswith(audio.AUDIO_SUFFIXES)]
        seen.add(real)
    return found


def segments(frames, rate, segment):
    """Rows (start, frames) of a recording: `segment` seconds each (0: whole); a tail shorter than 1 s, or a quarter
    of a segment, is left out, unless it is all there is."""
    length = round(segment * rate) or frames
    shortest = min(rate, length // 4)
    return [(start, min(length, frames - start)) for start in range(0, frames, length)
            if start == 0 or frames - start >= max(1, shortest)]


def scan(folders, home, segment=10.0, min_seconds=quality.MIN_SECONDS, skip=frozenset(), memory=None):
    """Decode and judge all audio below some folders -> (Manifest of what can be used, problems [(path, Verdict)] of
    what can't, or is odd). The manifest's paths are from the folder `home`.

    skip: real paths that are left out; memory: of verdicts on files that haven't changed."""
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"{folder}: no such folder")
    memory = memory or quality.Memory()
    paths = {os.path.realpath(path): path for folder in folders for path in find(folder)}  # folders may overlap
    paths = [path for real, path in paths.items() if real not in skip]
    rows, problems = [], []

    def judge(path):
        return memory.judge(path, lambda: quality.judge_file(path, min_seconds))
    for path, verdict in zip(paths, in_threads(judge, paths, 8, "decoding")):
        if verdict.problem:
            problems.append((path, verdict))
        if verdict.usable:
            rows += [(os.path.relpath(path, home), start, n, verdict.rate)
                     for start, n in segments(verdict.frames, verdict.rate, segment)]
    memory.save()
    return build(*(zip(*rows) if rows else [[]]), bases=(str(home),), origin=str(home)), problems


def scan_folder(folder, segment=10.0, memory=None):
    """`scan` of one folder, all paths from there."""
    rows, problems = scan([folder], folder, segment, memory=memory)
    if not len(rows) and not problems:
        raise UserError(f"no audio files ({' '.join(audio.AUDIO_SUFFIXES[:4])} …) under {folder}")
    return rows, [(os.path.relpath(path, folder), verdict) for path, verdict in problems]


def in_threads(function, items, threads, what):
    """Results of a function over a sequence, in order, with a bar on a terminal and a line a minute elsewhere. Work is
    handed out by portions: a million waiting calls would need a gigabyte."""
    from tqdm import tqdm
    pulse, done = Pulse(what, len(items), "files"), 0
    with ThreadPoolExecutor(threads) as pool, tqdm(desc=what, total=len(items), leave=False, disable=None) as bar:
        for start in range(0, len(items), 1024):
            for result in pool.map(function, items[start:start + 1024]):
                yield result
                bar.update()
                done += 1
                pulse.beat(done)
