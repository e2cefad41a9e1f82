"""A miniature of all twelve BEANS data sets: some seconds of synthetic sound in the folders, with the lists and
column names, that the BEANS scripts make. A class is a tone of its own, so that there is something to learn."""
import csv
import json

import numpy as np
import soundfile

from wren.tasks import beans

# A few classes of each set, and where the scripts put its clips: {} is the clip's number.
CLIPS = {
    "watkins": (["Beluga,_White_Whale", "Narwhal", "Walrus"], "data/watkins/audio/6102500{}.wav"),
    "bats": (["111", "216", "231"], "data/egyptian_fruit_bats/audio/1210{}.WAV"),
    "cbi": (["aldfly", "gocspa", "yetvir"], "data/cbi/wav/XC13{}.wav"),
    "dogs": (["Farley", "Luke", "Zoe"], "data/dogs/wav/dog_{}.wav"),
    "humbugdb": (["non-mosquito", "others", "an arabiensis"], "data/HumBugDB/data/audio/{}.wav"),
    "esc50": (["0", "10", "2"], None),
    "speech-commands": (["backward", "no", "zero"], None),
}
EVENTS = {  # labels as the scripts write them; the last of enabirds and of hainan-gibbons are unknown ones
    "dcase": ["AMRE", "Q", "WTSP"], "enabirds": ["AMCR", "OTHR", "XXXX"], "hiceas": [1], "rfcx": [0, 7, 23],
    "hainan-gibbons": [1.0, 2, 9]}
RECORDINGS = {"train": 3, "valid": 2, "test": 2}
CLIPS_PER_CLASS = {"train": 4, "valid": 2, "test": 2}


def tone(rate, seconds, pitch, rng):
    """A tone at a share `pitch` of half the rate in noise -> float32 [S]."""
    n = round(rate * seconds)
    wave = 0.02 * rng.standard_normal(n)
    return (wave + 0.3 * np.sin(np.pi * pitch * np.arange(n))).astype(np.float32)


def make(root, seed=0, clip_seconds=0.4):
    """Write data/… below `root` -> root."""
    rng = np.random.default_rng(seed)
    for name in CLIPS:
        make_clips(root, name, clip_seconds, rng)
    for name in EVENTS:
        make_recordings(root, name, rng)
    return root


def write_list(path, columns, rows):
    """A CSV as pandas writes it: the first column is an index without a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["", *columns], *([k, *row] for k, row in enumerate(rows))])


def make_clips(root, name, seconds, rng):
    """One classification set and its lists; all but cbi have a train-low list."""
    labels, pattern = CLIPS[name]
    columns, lists, number = ["path", "label"], {}, 0
    for split, count in CLIPS_PER_CLASS.items():
        for take in range(6 if name == "esc50" and split == "train" else count):
            for k, label in enumerate(labels):
                number, row = number + 1, []
                path = pattern.format(number) if pattern else None
                if name == "esc50":
                    fold = {"train": 1 + take // 2, "valid": 4, "test": 5}[split]
                    path, row = f"data/esc50/audio/{fold}-{100 + number // 2}-{'AB'[number % 2]}-{label}.wav", [fold]
                elif name == "speech-commands":
                    path = f"data/speech_commands/{label}/0a{take}b{len(split)}c_nohash_{k}.wav"
                elif name == "cbi":
                    row = [split]
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                rate = beans.BEANS[name].sample_rate
                soundfile.write(root / path, tone(rate, seconds, 0.02 + 0.05 * k, rng), rate)
                lists.setdefault(split, []).append([path, label, *row])
    columns += {"esc50": ["fold"], "cbi": ["split"]}.get(name, [])
    if name != "cbi":
        lists["train-low"] = lists["train"][:len(labels)]
    for split, rows in lists.items():
        write_list(root / "data" / beans.BEANS[name].lists.format(split), columns, rows)


def silence(root, name, split):
    """Take all annotations out of a list of recordings."""
    path = root / "data" / beans.BEANS[name].lists.format(split)
    rows = [json.loads(line) | {"annotations": []} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_recordings(root, name, rng):
    """One detection set and its lists: recordings of three windows, and one too short for any."""
    settings, labels = beans.BEANS[name], EVENTS[name]
    folder = root / "data" / settings.lists.split("/")[0] / "wav"
    folder.mkdir(parents=True)
    lists, number, rate = {}, 0, settings.sample_rate
    for split, count in RECORDINGS.items():
        for k in range(count):
            seconds = settings.seconds + 2 * settings.hop if k < count - 1 or split != "test" else settings.hop / 2
            wave, annotations = 0.02 * rng.standard_normal(round(rate * seconds)).astype(np.float32), []
            for j, label in enumerate(labels if seconds > settings.seconds else []):
                start, length = 0.3 * settings.hop + 0.9 * j * settings.hop, 0.6 * settings.hop
                call = slice(round(start * rate), round((start + length) * rate))
                wave[call] += tone(rate, length, 0.02 + 0.05 * j, rng)[:len(wave[call])]
                annotations.append({"st": round(start, 3), "ed": round(start + length, 3), "label": label})
            minute = f"recorder{k % 2}.{number:03d}" if settings.recording else f"{number:09x}"
            number += 1
            soundfile.write(folder / f"{minute}.wav", wave, rate)
            lists.setdefault(split, []).append(
                {"path": f"data/{settings.lists.split('/')[0]}/wav/{minute}.wav", "length": len(wave) / rate,
                 "annotations": annotations})
    lists["train-low"] = lists["train"][:1]
    for split, rows in lists.items():
        (root / "data" / settings.lists.format(split)).write_text("".join(json.dumps(row) + "\n" for row in rows))
