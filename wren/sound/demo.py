"""A synthetic stand-in for field work: made in seconds, the same samples for the same seed, nothing to download.

Fourteen species that are in tasks and four that are not call, sparsely, in wind, rain, hum and insect noise (see
scenes.py). Every file is a pure function of (seed, part, split, file number), so that the number of processes changes
nothing.

    demo.ensure()                 # data/demo, made if it isn't there
    demo.make("elsewhere", scale=0.05)   # a tiny one, for tests
"""
import csv
import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from wren.cli import DEMO, UserError
from wren.sound import scenes

RATES, RATE_SHARES = (8000, 16000, 22050, 44100, 48000), (0.44, 0.44, 0.08, 0.02, 0.02)  # low rates save disk
# ogg and mp3 decode slowly
FORMATS, FORMAT_SHARES = ("flac", "wav", "WAV", "ogg", "mp3"), (0.73, 0.08, 0.03, 0.08, 0.08)
SPLITS = ("train", "valid", "test")
SEGMENT_SECONDS = 4
RECORDINGS = 140  # unlabelled, 5–60 s each
CLIPS_PER_SPECIES = {"train": 30, "valid": 10, "test": 24}
CLIPS_PER_INDIVIDUAL = {"train": 16, "valid": 6, "test": 12}
DETECTION_RECORDINGS = {"train": 20, "valid": 8, "test": 14}
AT_LEAST = {"train": 2, "valid": 1, "test": 1}
COUNTS = {  # part: ({split: files of a class}, classes, the fewest files of a class however small the scale)
    "recordings": ({"train": RECORDINGS}, 1, {"train": 4}),
    "species": (CLIPS_PER_SPECIES, len(scenes.SPECIES), AT_LEAST),
    "individual": (CLIPS_PER_INDIVIDUAL, 12, AT_LEAST),
    "detection": (DETECTION_RECORDINGS, 1, dict.fromkeys(SPLITS, 2))}
VERSION = 2  # a corpus of another one is made anew
# Which of a species' endless list of individuals each use draws from: no range overlaps another.
INDIVIDUALS = {
    "train": (0, 8), "valid": (8, 12), "test": (12, 18), "individual": (20, 26),
    "detection-train": (30, 36), "detection-valid": (36, 40), "detection-test": (40, 46), "recordings": (50, 66)}
INDIVIDUAL_SPECIES = ("seesaw", "moaner")
DETECTION_SPECIES = ("valley", "uptrill", "faller", "barker", "starter")


def write(folder, name, scene, rate, rng):
    """Write scene [n] at a level and in a format drawn without regard to its content -> path."""
    scene = scenes.levelled(scene, rng)
    path = folder / f"{name}.{rng.choice(FORMATS, p=FORMAT_SHARES)}"
    folder.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", rate, 1, format=path.suffix[1:].upper()) as file:
        for start in range(0, len(scene), 65536):  # libsndfile's Vorbis encoder overflows its stack on long blocks
            file.write(scene[start:start + 65536])
    return path


# ---- the parts: (seed, split, file number, rate, rng) -> scene [n], row of the part's table

def draw(seed, species, use, rng):
    """One of the individuals of a species (index) set aside for `use` -> (number, voice)."""
    number = int(rng.integers(*INDIVIDUALS[use]))
    return number, scenes.individual(seed, species, number)


def species_clip(seed, split, number, rate, rng):
    """A clip of one animal; the species go round, the individual is one of the split's own."""
    species = number % len(scenes.SPECIES)
    animal, voice = draw(seed, species, split, rng)
    return clip(seed, split, species, voice, rate, rng), {
        "label": scenes.NAMES[species], "individual": f"{scenes.NAMES[species]}-{animal:02d}"}


def individual_clip(seed, split, number, rate, rng):
    """A clip of one of the individuals that all splits share; its background is its own."""
    first, last = INDIVIDUALS["individual"]
    species, animal = scenes.NAMES.index(INDIVIDUAL_SPECIES[number % 2]), first + number // 2 % (last - first)
    who = f"{scenes.NAMES[species]}-{animal:02d}"
    voice = scenes.individual(seed, species, animal)
    return clip(seed, split, species, voice, rate, rng), {"label": who, "individual": who}


def clip(seed, split, species, voice, rate, rng):
    """One to three calls of one animal in 2–3.2 s, now and then another species faintly behind -> scene [n]."""
    place = scenes.background(int(rng.uniform(2, 3.2) * rate), rate, rng)
    scene = place.copy()
    if rng.random() < 0.25:
        other = int((species + rng.integers(1, len(scenes.SPECIES))) % len(scenes.SPECIES))
        faint = scenes.call(draw(seed, other, split, rng)[1], rate, rng)
        scenes.add_call(scene, place, faint, rate, rng.random(), rng.uniform(-12, -4), rng)
    near = scenes.bout(voice, rate, len(scene), rng)
    scenes.add_call(scene, place, near, rate, rng.random(), scenes.signal_to_noise(rng), rng)
    return scene


def soundscape(seed, split, number, rate, rng):
    """A recording of 20–40 s with annotated calls of the detection task's species, wherever they fall, near and far,
    among calls of others that may be as loud."""
    place = scenes.background(int(rng.uniform(20, 40) * rate), rate, rng)
    scene = place.copy()
    others = [i for i, name in enumerate(scenes.NAMES) if name not in DETECTION_SPECIES]
    for _ in range(rng.integers(3, 10)):
        other = scenes.call(draw(seed, int(rng.choice(others)), f"detection-{split}", rng)[1], rate, rng)
        scenes.add_call(scene, place, other, rate, rng.random(), rng.uniform(-10, 10), rng)
    events = []
    for name in rng.choice(DETECTION_SPECIES, rng.integers(5, 10)):
        near = scenes.call(draw(seed, scenes.NAMES.index(name), f"detection-{split}", rng)[1], rate, rng)
        start, end = scenes.add_call(scene, place, near, rate, rng.random(), rng.uniform(-5, 15), rng)
        events.append({"st": round(start / rate, 3), "ed": round(end / rate, 3), "label": str(name)})
    events.sort(key=lambda event: event["st"])
    return scene, {"length": len(scene) / rate, "annotations": events}


def recording(seed, split, number, rate, rng):
    """An unlabelled recording of 5–60 s: a call every 3 s from one to three animals nearby, others faint."""
    seconds = 5 * 12 ** rng.random()
    place = scenes.background(int(seconds * rate), rate, rng)
    scene = place.copy()

    def anyone():
        return draw(seed, int(rng.integers(len(scenes.SPECIES + scenes.EXTRA_SPECIES))), "recordings", rng)[1]

    nearby = [anyone() for _ in range(rng.integers(1, 4))]
    for _ in range(rng.poisson(seconds / 12)):
        scenes.add_call(scene, place, scenes.call(anyone(), rate, rng), rate, rng.random(), rng.uniform(-10, 0), rng)
    for _ in range(1 + rng.poisson(seconds / 3)):
        near = scenes.call(nearby[rng.integers(len(nearby))], rate, rng)
        scenes.add_call(scene, place, near, rate, rng.random(), scenes.signal_to_noise(rng), rng)
    return scene, {}


PARTS = {"recordings": recording, "species": species_clip, "individual": individual_clip, "detection": soundscape}


def build(job):
    """Make one file -> (part, split, rows of its table, seconds)."""
    root, seed, part, split, number = job
    key = seed, list(PARTS).index(part), SPLITS.index(split), number
    name, rng = hashlib.blake2s(repr(key).encode(), digest_size=5).hexdigest(), np.random.default_rng(key)
    rate = int(rng.choice(RATES, p=RATE_SHARES))
    scene, row = PARTS[part](seed, split, number, rate, rng)
    if part != "recordings":
        path = write(root / part / "audio", name, scene, rate, rng)
        rows = [{"path": f"audio/{path.name}", **row}]
    else:
        path, size = write(root / part, name, scene, rate, rng), SEGMENT_SECONDS * rate
        rows = [{"path": f"recordings/{path.name}", "start": start, "frames": size, "sample_rate": rate,
                 "domain": "bio", "source": "demo"} for start in range(0, len(scene) - size + 1, size)]
    return part, split, rows, len(scene) / rate


# ---- the corpus

def make(out=None, seed=0, jobs=None, progress=True, scale=1.0):
    """Make the corpus in folder `out`, replacing one that is there, whole or not at all -> its path. `scale` shrinks
    the counts."""
    out, started = Path(out or DEMO), time.time()
    if out.exists() and not described(out) and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and isn't a demo corpus; give another folder or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    if progress:
        print(f"making the demo corpus in {out}", flush=True)
    prefix = f".{out.name}-being-made-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=out.parent, ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "corpus"
        todo = [(root, seed, part, split, k) for part, (of_class, classes, least) in COUNTS.items()
                for split, count in of_class.items() for k in range(max(least[split], round(count * scale)) * classes)]
        results = make_files(todo, jobs or (min(2, os.cpu_count() or 1) if len(todo) > 200 else 1), progress)
        counts = write_tables(root, results)
        about = {"version": VERSION, "seed": seed, "scale": scale, "counts": counts,
                 "hours": round(sum(result[3] for result in results) / 3600, 3)}
        (root / "demo.json").write_text(json.dumps(about, indent=1) + "\n")
        megabytes = sum(path.stat().st_size for path in root.rglob("*.*")) / 1e6
        put_in_place(root, out, started)
    if progress:
        print(f"made {out}: {about['hours']:.1f} h, {counts['recordings train']} segments to train on, "
              f"{len(todo)} files, {megabytes:.0f} MB, in {time.time() - started:.0f} s", flush=True)
    return out


def ensure(out=DEMO):
    """The corpus in folder `out`, made if it isn't there or is of another version -> its path."""
    out = Path(out)
    return out if described(out).get("version") == VERSION else make(out)


def write_tables(root, results):
    """The CSV and JSONL files of the parts; rows in order of file name, which is neutral."""
    tables = {}
    for part, split, rows, _ in results:
        tables.setdefault((part, split), []).extend(rows)
    for (part, split), rows in tables.items():
        rows.sort(key=lambda r: (r["path"], r.get("start", 0)))
        if part == "detection":
            (root / part / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            continue
        path, lines = root / "pretrain.csv", [list(rows[0]), *(list(row.values()) for row in rows)]
        if part != "recordings":  # as in BEANS, with a first column of numbers without a name
            path, lines = root / part / f"{split}.csv", [[k - 1 if k else "", *line] for k, line in enumerate(lines)]
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows(lines)
    return {" ".join(key): len(rows) for key, rows in sorted(tables.items())}


def described(out):
    """The contents of demo.json in folder `out`, or {}."""
    try:
        return json.loads((out / "demo.json").read_text())
    except (OSError, ValueError):
        return {}


def make_files(todo, jobs, progress):
    """Make the planned files in `jobs` processes -> the results of `build`, in any order."""
    bar = dict(total=len(todo), desc="demo corpus", unit="file", leave=False, disable=None if progress else True)
    if jobs == 1:
        return list(tqdm(map(build, todo), **bar))
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:  # a fork would not survive the caller's threads
        return list(tqdm(pool.imap_unordered(build, todo, chunksize=8), **bar))


def put_in_place(root, out, started):
    """Rename the finished folder `root` to `out`, unless another process has just put the same corpus there."""
    now = described(out)
    if now == described(root) and (out / "demo.json").stat().st_mtime >= started:
        return
    try:
        if out.exists():
            os.rename(out, root.parent / "old")
        os.rename(root, out)
    except OSError:  # the other process was a moment faster
        if not described(out):
            raise

