"""Benchmark tasks of real sound from public Debian packages: `python examples/real_tasks.py --out DIR`.

Games and drawing programs ship recordings of animals. This script downloads such packages (`apt-get download`, no
account, no root), takes the sound out of them, finds the calls by their files' names, and writes

    DIR/animal-species/{train,valid,test}.csv   clips, path and label; recording says which clips belong together
    DIR/animal-events/{train,valid,test}.csv    recordings of 30 s with calls in wind, rain and water: file, start, …
    DIR/pretrain.csv                            all sound from which no validation or test clip was made
    DIR/sources.csv                             which file of which package is in which split, with its label

Train and test calls of a class, and train and test backdrops, come from different packages, so that a microphone, a
codec or a studio can't stand for a species. The same packages give the same files, byte for byte. The small packages
(0.6 GB) give 40 test clips, a first look; --large (2 GB more) gives 89, and is what to compare encoders on.
"""
import argparse
import csv
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from debian_sound import LARGE, PACKAGES, fetch, sounds, unpack, without_twins  # noqa: E402
from wren.sound import audio  # noqa: E402

# What a file is called, without folder and suffix, in any case -> its class. "": a backdrop without animals.
NAMES = {
    "big-cat": r"lion|lion_(attack|select)\d|tiger|tropical_lion_roar",
    "cat": r"cat|blackcat|kitten|meow",
    "chicken": r"rooster|hen|chickens?(_\d+)?",
    "cow": r"cow|cow_white|bull|(cattle|ox)_\d+",
    "cricket": r"crickets?(\d_\d+)?|grasshopper|night",
    "deer": r"caribou|deer|doe|(moose|stag)_\d+",
    "dog-wolf": r"dog\d?|civ_dog_\w+|lrbark_.*|(wolf|coyote)_\d+|wolfhowl|wolf-growl-\d",
    "elephant": r"elephant|elephant_(attack|death|order|select|trained)\d",
    "flying-insect": r"bee|hornet|mosquito",
    "frog": r"frog|lrfrogs.*",
    "gull": r"seagulls?",
    "crow": r"(misc_)?crow",
    "donkey": r"donkey",
    "camel": r"camel(_\d+)?|dromedary|death_camel_\d+",
    "sea-lion": r"sea_?lion",
    "horse": r"horse(_\d+)?|horse_(attack|death|idle|select)\d|horse-(hit-\d|die)|death_horse_\d+",
    "owl": r"owl",
    "pig": r"pig|pig_(golden2?|\d+|death|squeal_move)|boar|tusker-(hit|die)",
    "sheep-goat": r"sheep|sheep_(lamb|\d+)|sheepfield|goat(_\d+)?|mountaingoat|ram",
    "songbird": r"bird|bird\d_\d+|birds\d|blackbird|lark|cuckoo|tropical_bird_\d",
    "waterfowl": r"duck(_\d+)?|drake|gander|goose",
    "": r"(heavy_)?wind|wind(gust|leaves|storm)?_\d+|rain_\d+|lrrain_in_garden.*|snowstorm_\d+|strom|arctic|desert|"
        r"river_\w+|waterfall_\d+|wave(s|\w*_\d+)|water\d?|waterrunning|ripples|ship|campfire|fire\d|windmill\d?|"
        r"mill\d|traficlow\d|traffichigh\d|harbor\d|coalmine\d|parklandlake\d",
}
SHARES = {"train": 0.5, "valid": 0.15, "test": 0.35}  # of a class's clips, as far as whole packages allow
PER_FILE, PER_PACKAGE = 5, 1000  # clips of one recording in a task, and files of one package in pretrain.csv
RECORDINGS, SECONDS, RATE, LEVELS = {"train": 40, "valid": 12, "test": 16}, 30, 16000, (-5.0, 15.0)  # Hz, dB
EVENT_CLASSES, MOST_CALLS = 8, 8  # of the events task, and of one recording


# ------------------------------------------------------------------------------------------- who goes where

def label_of(path):
    """The class of a file by its name, "" for a backdrop, None for anything else, as what lies in a music folder."""
    names = {} if path.parent.name.lower().startswith("music") else NAMES
    return next((label for label in names if re.fullmatch(names[label], path.stem, re.IGNORECASE)), None)


def calls(path):
    """A recording -> [float32], at most PER_FILE calls of 0.1 to 2 s, and its rate: what lies within 30 dB of the
    loudest 20 ms, gaps of up to 0.2 s included."""
    with audio.Sound(path) as sound:
        wave, rate = sound.read(), sound.rate
    hop = max(1, rate // 50)
    power = np.square(wave[:len(wave) // hop * hop].reshape(-1, hop), dtype=np.float64).mean(1)
    loud = np.flatnonzero(power > max(1e-8, power.max(initial=0) * 1e-3))
    out = []
    for run in np.split(loud, np.flatnonzero(np.diff(loud) > 10) + 1):
        out += [wave[first * hop:min(first + 100, run[-1] + 1) * hop]
                for first in (range(run[0], run[-1] + 1, 100) if len(run) else ())]
    return [call for call in out if len(call) >= 0.1 * rate][:PER_FILE], rate


def divide(sizes):
    """{(source, file): clips} of one class -> {(source, file): split}, or None where it can't be divided.

    With three sources or more each is in one split. With two, the larger one trains and gives some of its files, not
    of its clips, to validation; the other one tests.
    """
    total = Counter()
    for (source, _), n in sizes.items():
        total[source] += n
    order = sorted(total, key=lambda source: (-total[source], source))
    if len(order) < 2:
        return None
    split, have = {order[0]: "train", order[1]: "test"}, Counter(train=total[order[0]], test=total[order[1]])
    for source in order[2:]:
        split[source] = min(SHARES, key=lambda s: have[s] / SHARES[s]) if "valid" in split.values() else "valid"
        have[split[source]] += total[source]
    out = {key: split[key[0]] for key in sizes}
    if len(order) == 2:
        files = sorted(key for key in sizes if key[0] == order[0])
        if len(files) < 2:
            return None
        out |= dict.fromkeys(files[-max(1, len(files) // 4):], "valid")
    return out


# ------------------------------------------------------------------------------------------------ the tasks

def save(path, wave, rate):
    """A FLAC of 16 bits: the same wave gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(wave, -1, 1), rate, format="FLAC", subtype="PCM_16")


def table(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def species(out, clips, splits):
    """The clips of all classes as a task; prints its sizes."""
    rows = defaultdict(list)
    for (label, source, path), (waves, rate) in clips.items():
        split = splits[label, source, path]
        for k, wave in enumerate(waves):
            name = f"{split}/{label}.{source}.{path.stem}.{k}.flac"
            save(out / name, wave / max(1.0, np.abs(wave).max()), rate)
            rows[split].append([name, label, f"{source}/{path.name}"])
    for split in SHARES:
        table(out / f"{split}.csv", ["path", "label", "recording"], rows[split])
    labels = sorted({label for label, *_ in clips})
    print(f"animal-species: {', '.join(f'{len(rows[split])} {split}' for split in SHARES)} clips of {len(labels)} "
          f"classes ({', '.join(labels)}); chance {1 / max(1, len(labels)):.3f}")


def loop(rng, wave, n):
    """n samples of a backdrop from a random place on, its end faded into its beginning (a quarter of a second)."""
    fade = min(RATE // 4, len(wave) // 2)
    rise = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))
    body = wave[:len(wave) - fade].copy()
    body[:fade] = body[:fade] * rise + wave[len(wave) - fade:] * rise[::-1]
    return np.roll(np.tile(body, n // len(body) + 2), int(rng.integers(len(body))))[:n]


def pink(rng, n):
    """Noise whose power falls with frequency, for machines that lack all packages with wind and rain."""
    spectrum = np.fft.rfft(rng.standard_normal(n)) / np.sqrt(np.maximum(1, np.arange(n // 2 + 1)))
    return np.fft.irfft(spectrum, n).astype(np.float32)


def mix(backdrop, call, at, level):
    """Add a call, in place, from sample `at` on: its mean power lies `level` dB above that of the backdrop there."""
    there = backdrop[at:at + len(call)]
    gain = np.sqrt(np.mean(np.square(there)) * 10 ** (level / 10) / max(1e-12, np.mean(np.square(call))))
    there += np.float32(gain) * call


def events(out, clips, backdrops, splits, seed):
    """Recordings with calls in them as a task; prints its sizes."""
    many = defaultdict(Counter)
    for (label, source, path), (waves, _) in clips.items():
        many[label][splits[label, source, path]] += len(waves)
    labels = sorted(many, key=lambda label: (-min(many[label][split] for split in SHARES), label))[:EVENT_CLASSES]
    counts = {}
    for number, split in enumerate(SHARES):
        rng = np.random.default_rng([seed, number])
        bank = {label: [audio.resample(wave, rate, RATE) for key, (waves, rate) in clips.items()
                        if key[0] == label and splits[key] == split for wave in waves] for label in labels}
        behind = [audio.read(path, rate=RATE) for key, path in backdrops.items() if splits[key] == split]
        rows, n = [], SECONDS * RATE
        for k in range(RECORDINGS[split]):
            name, two = f"{split}/{k:03d}.flac", [pink(rng, n), pink(rng, n)]
            if behind:
                two = [loop(rng, behind[i], n) for i in (k % len(behind), int(rng.integers(len(behind))))]
            wave = sum(w * 0.02 * rng.uniform(0.3, 1) / max(1e-6, float(np.sqrt(np.mean(w * w)))) for w in two)
            wave, found = (wave + 1e-5 * rng.standard_normal(n)).astype(np.float32), []
            for _ in range(int(rng.integers(MOST_CALLS + 1))):
                label = labels[int(rng.integers(len(labels)))]
                call = bank[label][int(rng.integers(len(bank[label])))]
                at = int(rng.integers(n - len(call)))
                mix(wave, call, at, rng.uniform(*LEVELS))
                found.append([name, round(at / RATE, 4), round((at + len(call)) / RATE, 4), label])
            save(out / name, wave * min(1.0, 0.95 / float(np.abs(wave).max())), RATE)
            rows += sorted(found, key=lambda row: row[1:]) or [[name, "", "", ""]]
        table(out / f"{split}.csv", ["file", "start", "end", "label"], rows)
        counts[split] = sum(row[3] != "" for row in rows)
    held = {(name, second, label) for name, start, end, label in rows if label  # windows of 2 s of the test split
            for second in range(SECONDS - 1) if min(end, second + 2) - max(start, second) > 0.2 * min(2, end - start)}
    print(f"animal-events: {', '.join(f'{RECORDINGS[s]} {s} ({counts[s]} calls)' for s in SHARES)} recordings of "
          f"{SECONDS} s, {len(labels)} classes ({', '.join(labels)}); chance (mAP) "
          f"{len(held) / (RECORDINGS['test'] * (SECONDS - 1) * len(labels)):.3f}")


def assign(found):
    """{source: [files]} -> clips {(label, source, file): (waves, rate)}, backdrops {key: file}, splits {key: split}."""
    clips, backdrops, splits, labels = {}, {}, {}, defaultdict(dict)
    for source, paths in found.items():
        for path in paths:
            label = label_of(path)
            if label == "":
                backdrops[label, source, path] = path
                labels[label][source, path] = 1
            elif label:
                clips[label, source, path] = calls(path)
                if clips[label, source, path][0]:
                    labels[label][source, path] = len(clips[label, source, path][0])
    for label, sizes in sorted(labels.items()):
        if divided := divide(sizes):
            splits |= {(label, *key): split for key, split in divided.items()}
        elif label:
            many = f"{len(sizes)} in {len({source for source, _ in sizes})}"
            print(f"{label}: too few recordings or packages to divide ({many}): left out")
    if not any(key in splits for key in backdrops):
        print("No backdrops in two packages: pink noise stands for wind and rain")
    return {k: v for k, v in clips.items() if k in splits}, {k: v for k, v in backdrops.items() if k in splits}, splits


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, about 1 GB (3 with --large)")
    parser.add_argument("--debs", type=Path, help="folder with packages, and for those downloaded (OUT/debs)")
    parser.add_argument("--large", action="store_true", help="also three packages of 2 GB: twice the clips")
    parser.add_argument("--unpacked", type=Path, help="folder with one folder of sound for each source: no packages")
    parser.add_argument("--seed", type=int, default=0, help="of the recordings with calls in them")
    args = parser.parse_args(argv)
    out, folder = args.out, args.unpacked or args.out / "packages"
    if not args.unpacked:
        for source, deb in fetch(PACKAGES | (LARGE if args.large else {}), args.debs or out / "debs").items():
            if not (folder / source).exists():
                unpack(deb, folder / source)
    found = without_twins(sounds(folder), label_of)
    print("Sound in packages:", ", ".join(f"{source} {len(paths)}" for source, paths in found.items()))
    clips, backdrops, splits = assign(found)
    if not clips:
        parser.error("no class can be divided: more packages are needed")
    species(out / "animal-species", clips, splits)
    events(out / "animal-events", clips, backdrops, splits, args.seed)
    table(out / "sources.csv", ["source", "file", "split", "label"],
          sorted([source, path.relative_to(folder), split, label or "backdrop"]
                 for (label, source, path), split in splits.items()))
    held = {path for (_, _, path), split in splits.items() if split != "train"}
    rng, rows = np.random.default_rng(args.seed), []
    for paths in found.values():
        free = [path for path in paths if path not in held]
        rows += [free[i] for i in sorted(rng.permutation(len(free))[:PER_PACKAGE])]
    table(out / "pretrain.csv", ["path"], [[os.path.relpath(path, out)] for path in rows])
    hours = sum(frames / rate for frames, rate, _ in map(audio.info, rows)) / 3600
    print(f"pretrain.csv: {len(rows)} files, {hours:.1f} h, none of a validation or test clip\n\nNext:\n"
          f"    python pretrain.py --data {out}/pretrain.csv --out runs/real\n"
          f"    python evaluate.py --knn --linear --data {out} --task animal-species --checkpoint runs/real\n"
          f"    python finetune.py --checkpoint runs/real --data {out} --task animal-events")


if __name__ == "__main__":
    main()
