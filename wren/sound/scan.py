"""What sound lies below some folders: files, their headers, the rows that long recordings are cut into."""
import os
from concurrent.futures import ThreadPoolExecutor

from wren.sound import audio
from wren.cli import UserError


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


def scan(folders, segment=10.0, min_seconds=0.05, threads=8, skip=frozenset()):
    """Headers of all audio below some folders -> (rows [(path, start, frames, rate)], bad [(path, reason)]).

    skip: real paths that are left out."""
    def header(path):
        try:
            frames, rate, _ = audio.info(path)
        except audio.BadAudio as error:
            return error.reason
        if frames < max(1, min_seconds * rate):
            return f"{frames} frames are shorter than {min_seconds:g} s"
        return [(path, start, n, rate) for start, n in segments(frames, rate, segment)]

    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"{folder}: no such folder")
    paths = {os.path.realpath(path): path for folder in folders for path in find(folder)}  # folders may overlap
    paths = [path for real, path in paths.items() if real not in skip]
    rows, bad = [], []
    for path, found in zip(paths, in_threads(header, paths, threads, "headers")):
        if isinstance(found, str):
            bad.append((audio.shown(path), found))
        else:
            rows += found
    return rows, bad


def in_threads(function, items, threads, what):
    """Results of a function over a sequence, in order, with a bar on a terminal. Work is handed out by portions: a
    million waiting calls would need a gigabyte."""
    from tqdm import tqdm
    with ThreadPoolExecutor(threads) as pool, tqdm(desc=what, total=len(items), leave=False, disable=None) as bar:
        for start in range(0, len(items), 1024):
            for result in pool.map(function, items[start:start + 1024]):
                yield result
                bar.update()
