"""The demo corpus: the same for everyone, honest (labels don't leak), and sound in its tables. Miniatures here."""
import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from wren import cli
from wren.sound import demo, scenes


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
    monkeypatch.setattr(demo, "make", lambda out: made.append(out) or out)
    monkeypatch.setattr(demo, "VERSION", 3)
    demo.ensure(corpus)
    assert made == [corpus]


def test_a_killed_build_leaves_nothing_and_a_foreign_folder_is_never_replaced(tmp_path, monkeypatch):
    def killed(job):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "build", killed)
    with pytest.raises(KeyboardInterrupt):
        demo.make(tmp_path / "demo", jobs=1, progress=False, scale=0.05)
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
