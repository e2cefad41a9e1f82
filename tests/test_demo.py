"""The demo corpus: the same for everyone, honest (labels don't leak), and sound in its tables. Miniatures here."""
import csv
import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from wren.sound import audio as reading
from wren import cli
import data
from wren.sound import demo, scenes
from wren.sound import demo_rates
from wren.tasks import load_task


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return demo.make(tmp_path_factory.mktemp("demo") / "demo", jobs=1, progress=False, scale=0.05)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def clips(corpus, part):
    """[(split, row, path)] of a classification part."""
    return [(split, row, corpus / part / row["path"])
            for split in demo.SPLITS for row in table(corpus / part / f"{split}.csv")]


def audio(corpus):
    return sorted(p for p in corpus.rglob("*.*") if p.suffix.lower() in (".flac", ".wav", ".ogg", ".mp3"))


def test_the_same_seed_gives_the_same_samples_with_any_number_of_jobs(corpus, tmp_path):
    again = demo.make(tmp_path / "again", jobs=2, progress=False, scale=0.05)
    files = [p.relative_to(corpus) for p in audio(corpus)]
    assert files == [p.relative_to(again) for p in audio(again)]
    for name in files:
        assert np.array_equal(soundfile.read(corpus / name)[0], soundfile.read(again / name)[0]), name
    for name in ("pretrain.csv", "species/train.csv", "individual/test.csv", "detection/valid.jsonl"):
        assert (corpus / name).read_text() == (again / name).read_text()


def test_the_corpus_is_still_the_one_that_published_numbers_come_from(corpus):
    for name, digest in (("species/train.csv", "2f265ca931e5"), ("individual/train.csv", "2b05cd8bfef6"),
                         ("detection/train.jsonl", "185555fd118c"), ("pretrain.csv", "b10f7876192c")):
        assert hashlib.sha256((corpus / name).read_bytes()).hexdigest().startswith(digest), name
    for name, frames, some in (("species/audio/008304a2ef.flac", 22463, [-27, 3, 18, -22, 26, 12]),
                               ("species/audio/07a1be062e.flac", 24367, [-218, -180, -207, -171, -224, -319]),
                               ("individual/audio/3663cb849b.flac", 44204, [17, 1, -23, 2, -36, -40])):
        wave, _ = soundfile.read(corpus / name, dtype="int16")
        assert len(wave) == frames and np.abs(wave[5000:5006] - some).max() <= 1  # another CPU may round otherwise


def test_another_seed_gives_other_samples():
    first, second = (demo.species_clip(seed, "train", 0, 8000, np.random.default_rng(seed))[0] for seed in (0, 1))
    assert first.shape != second.shape or not np.array_equal(first, second)


def test_every_species_is_in_each_split_and_no_individual_in_two(corpus):
    animals = {split: set() for split in demo.SPLITS}
    species = {split: set() for split in demo.SPLITS}
    for split, row, _ in clips(corpus, "species"):
        animals[split].add(row["individual"])
        species[split].add(row["label"])
    assert all(seen == set(scenes.NAMES) for seen in species.values())
    assert len(set.union(*animals.values())) == sum(len(some) for some in animals.values())


def test_no_two_uses_of_the_corpus_share_individuals():
    ranges = sorted(demo.INDIVIDUALS.values())
    assert all(last <= first for (_, last), (first, _) in zip(ranges, ranges[1:]))


def test_the_individual_task_has_the_same_labels_in_each_split_in_the_layout_of_beans(corpus):
    rows = clips(corpus, "individual")
    labels = [{row["label"] for split, row, _ in rows if split == wanted} for wanted in demo.SPLITS]
    assert labels[0] == labels[1] == labels[2] and len(labels[0]) == 12
    assert (corpus / "individual/train.csv").read_text().startswith(",path,label,individual\n0,audio/")


def test_annotations_lie_inside_their_recordings_and_every_label_is_in_each_split(corpus):
    for split in demo.SPLITS:
        seen = set()
        for line in (corpus / "detection" / f"{split}.jsonl").read_text().splitlines():
            row = json.loads(line)
            seconds = soundfile.info(corpus / "detection" / row["path"]).duration
            assert row["length"] == pytest.approx(seconds, abs=1e-3)
            for event in row["annotations"]:
                assert 0 <= event["st"] < event["ed"] <= row["length"] + 1e-3 and event["ed"] - event["st"] < 1.21
                seen.add(event["label"])
        assert seen == set(demo.DETECTION_SPECIES)


def test_segments_lie_inside_their_files_and_give_their_rate(corpus):
    rows = table(corpus / "pretrain.csv")
    assert len(rows) >= 20 and "label" not in rows[0]
    for row in rows:
        with soundfile.SoundFile(corpus / row["path"]) as file:
            assert file.samplerate == int(row["sample_rate"]) and int(row["frames"]) == 4 * file.samplerate
            file.seek(int(row["start"]))
            assert len(file.read(int(row["frames"]))) == int(row["frames"])


def test_rates_formats_and_levels_say_nothing_about_the_label(corpus):
    rows = [(row["label"], path.suffix, soundfile.info(path).samplerate, np.std(soundfile.read(path)[0]))
            for _, row, path in clips(corpus, "species") + clips(corpus, "individual")]
    assert {ending for _, ending, _, _ in rows} == {f".{name}" for name in demo.FORMATS}
    assert {path_rate for _, _, path_rate, _ in rows} <= set(demo.RATES)
    assert {soundfile.info(p).samplerate for p in audio(corpus)} == set(demo.RATES)
    species = np.array([scenes.NAMES.index(label.split("-")[0]) for label, *_ in rows])
    plain = np.array([[ending == ".flac", rate == 8000, np.log(level)] for _, ending, rate, level in rows])
    for column in plain.T:  # the variance that species explain (R²) is near chance, (k−1)/(n−1)
        means = np.array([column[species == s].mean() for s in species])
        assert means.var() / column.var() < 3 * (len(scenes.NAMES) - 1) / (len(rows) - 1)
    assert not any(name in Path(path).stem for _, _, path in clips(corpus, "species") for name in scenes.NAMES)


def test_ensure_keeps_a_current_corpus_and_renews_an_old_one(corpus, monkeypatch):
    before = (corpus / "demo.json").stat().st_mtime_ns
    assert demo.ensure(corpus) == corpus and (corpus / "demo.json").stat().st_mtime_ns == before
    made = []
    monkeypatch.setattr(demo.Corpus, "make", lambda self, out: made.append(out) or out)
    replace(demo.CORPUS, version=3).ensure(corpus)
    assert made == [corpus]


def test_a_killed_build_leaves_nothing_and_a_foreign_folder_is_never_replaced(tmp_path):
    def killed(job):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(demo.CORPUS, build=killed).make(tmp_path / "demo", jobs=1, progress=False, scale=0.05)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "field.wav").write_bytes(b"years of work")
    with pytest.raises(cli.UserError, match="isn't a demo corpus"):
        demo.make(tmp_path / "mine", progress=False)
    assert (tmp_path / "mine" / "field.wav").exists()


def test_whoever_finishes_second_keeps_the_first_ones_corpus(corpus, tmp_path):
    about = (corpus / "demo.json").read_text()
    for name in ("first", "work/second"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "demo.json").write_text(about)
    stamp = (tmp_path / "first" / "demo.json").stat()
    demo.put_in_place(tmp_path / "work/second", tmp_path / "first", started=stamp.st_mtime - 1)
    assert (tmp_path / "first" / "demo.json").stat().st_ino == stamp.st_ino
    demo.put_in_place(tmp_path / "work/second", tmp_path / "first", started=stamp.st_mtime + 1)
    assert (tmp_path / "first" / "demo.json").stat().st_ino != stamp.st_ino


# ------------------------------------------------------------------------------------------- the corpus of many rates

@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return demo_rates.make(tmp_path_factory.mktemp("rates") / "demo", jobs=1, progress=False, scale=0.01)


def test_the_corpus_of_many_rates_is_the_same_with_any_number_of_jobs(many, tmp_path, capsys):
    data.main(["demo", "--rates", "--out", str(tmp_path / "again"), "--scale", "0.01", "--jobs", "2"])
    assert f"made {tmp_path / 'again'}" in capsys.readouterr().out
    files = sorted(p.relative_to(many) for p in many.rglob("*.*"))
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*.*"))
    for name in files:  # FLAC, CSV and .npy hold nothing that changes
        assert (many / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert demo_rates.ensure(many) == many


def test_individuals_and_rates_are_spread_as_they_should_be(many):
    for part, classes in (("ultrasound", 5), ("rates-16k", 8), ("behaviour", 7)):
        task = load_task(many / part)
        assert len(task.labels) == classes and task.metric == "accuracy"
        animals = [{row["recording"] for row in table(many / part / f"{split}.csv")} for split in demo.SPLITS]
        assert len(set.union(*animals)) == sum(map(len, animals)), part
    seen = Counter((row["label"], soundfile.info(many / "ultrasound" / row["path"]).samplerate)
                   for row in table(many / "ultrasound/train.csv"))
    assert len(seen) == 10 and set(seen.values()) == {1}  # each species as often at 192 as at 250 kHz


def test_calls_of_the_audible_task_end_at_3500_hz_and_ultrasonic_ones_begin_at_15_khz(monkeypatch, tmp_path):
    flat = 1e-4 * np.random.default_rng(0).standard_normal(400_000).astype(np.float32)  # below what we look for
    monkeypatch.setattr(scenes, "background", lambda n, rate, rng: flat[:n].copy())
    monkeypatch.setattr(scenes, "levelled", lambda scene, *rest: 0.5 * scene / np.abs(scene).max())
    monkeypatch.setattr(scenes, "signal_to_noise", lambda rng: 60)  # calls and next to nothing else
    for part, folder, low, high in (("rates", "rates-48k", 0, 3500), ("ultrasound", "ultrasound", 15000, 1e6)):
        for number in range(8):
            rng = np.random.default_rng(number)
            demo_rates.PARTS[part](tmp_path, f"{number}", 0, "train", number, rng)
            wave, rate = soundfile.read(tmp_path / folder / f"audio/{number}.flac")
            power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
            outside = np.fft.rfftfreq(len(wave), 1 / rate)
            outside = (outside < low) | (outside > high)
            assert power[outside].max() < 1e-5 * power.max(), (part, number)  # without the limits 1e-3 and more


def test_the_task_at_16_and_8_khz_is_the_one_at_48_khz_decimated(many):
    for split in demo.SPLITS:
        lists = {(many / folder / f"{split}.csv").read_text() for folder in demo_rates.DECIMATED}
        assert len(lists) == 1
    for path in (many / "rates-48k/audio").iterdir():
        full, _ = soundfile.read(path)
        for folder, factor in demo_rates.DECIMATED.items():
            wave, rate = soundfile.read(many / folder / "audio" / path.name)
            assert rate * factor == 48000 and len(wave) == -(-len(full) // factor)
            assert np.abs(wave - resample_poly(full, 1, factor)).max() < 4 / 32768  # both were rounded to 16 bits


def spectral(wave, rate, low, high):
    """Mean and spread over time of the log power in 24 bands -> [48]."""
    size = 2 * int(rate / 750)
    frames = np.lib.stride_tricks.sliding_window_view(wave, size)[::size // 2] * np.hanning(size)
    power, f = np.abs(np.fft.rfft(frames)) ** 2, np.fft.rfftfreq(size, 1 / rate)
    edges = np.linspace(low, high, 25)
    bands = np.log(np.stack([power[:, (f >= a) & (f < b)].sum(1) for a, b in zip(edges, edges[1:])], 1) + 1e-12)
    return np.concatenate([bands.mean(0), bands.std(0)])


def neighbour_accuracy(x, y):
    """How often the nearest other row of standardised x [n, d] has the same label."""
    x = (x - x.mean(0)) / x.std(0)
    distance = np.square(x[:, None] - x[None]).sum(2) + 1e9 * np.eye(len(x))
    return np.mean(y[distance.argmin(1)] == y)


def test_ultrasonic_species_are_told_apart_at_the_full_rate_and_not_below_8_khz(tmp_path):
    x, y = {"full": [], "16 kHz": []}, []
    for number in range(60):
        rng = np.random.default_rng(number)
        demo_rates.ultrasound(tmp_path, f"{number}", 3, "train", number, rng)
        with reading.Sound(tmp_path / f"ultrasound/audio/{number}.flac") as sound:
            wave, rate = sound.read(), sound.rate
        x["full"].append(spectral(wave, rate, 15000, 90000))
        x["16 kHz"].append(spectral(reading.resample(wave, rate, 16000), 16000, 50, 8000))
        y.append(number % 5)
    full, low = (neighbour_accuracy(np.array(rows), np.array(y)) for rows in x.values())
    assert full > 0.5 and low < 0.2 + 2.5 * np.sqrt(0.2 * 0.8 / 60)  # chance is 0.2


def test_collars_feel_the_gait_and_a_tenth_of_the_clips_lack_the_accelerometer(many):
    spread, lacking, lists = {}, 0, [table(many / "behaviour" / f"{split}.csv") for split in demo.SPLITS]
    for row in sum(lists, []):
        if not row["stream:accelerometer"]:
            lacking += 1
            continue
        felt = np.loadtxt(many / "behaviour" / row["stream:accelerometer"], delimiter=",", skiprows=1)
        assert felt.shape == (200, 4) and np.allclose(np.diff(felt[:, 0]), 0.02)
        spread.setdefault(row["label"], []).append(felt[:, 1:].std(0).max())
    assert lacking == sum(len(rows) // 10 for rows in lists) > 0
    level = {label: np.median(some) for label, some in spread.items()}
    assert level["resting"] < 0.05 < level["walking"] < level["running"]
    assert level["calling"] < 0.05 < level["walking-calling"]


def test_the_unlabelled_rows_hold_every_rate_and_the_collars_their_streams(many):
    rows = table(many / "pretrain.csv")
    assert {int(row["sample_rate"]) for row in rows} == {8000, 16000, 48000, 192000, 250000}
    for row in rows:
        info = soundfile.info(many / row["path"])
        assert info.samplerate == int(row["sample_rate"]) and int(row["start"]) + int(row["frames"]) <= info.frames
        if row["stream:accelerometer"]:
            felt = np.load(many / row["stream:accelerometer"])
            assert info.samplerate == 8000 and felt.shape == (50 * info.duration, 4)
    assert {bool(row["stream:accelerometer"]) for row in rows if row["sample_rate"] == "8000"} == {True, False}
