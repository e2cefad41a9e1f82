"""A task with clips that can't be read: all are found, named in plain words and left out, or too many to go on."""
import csv
import json

import numpy as np
import pytest
import soundfile
from test_audio import noise
from test_manifest import fails, recordings, table
from test_tasks import SPLITS, own

import evaluate
import finetune
from wren.sound import quality
from wren.tasks import broken, load_task, without_broken


def task_of(root, count=10, bad=("train", "valid")):
    """A task of `count` clips of two classes in each split, one of them broken in another way in the splits `bad`."""
    for split in SPLITS:
        names = recordings(root / "own" / split, [0.3] * count, 16000, "{}.wav")
        if split in bad:
            wave = noise(4800)
            wave[100] = np.nan
            spoiled = {"train": wave[:0], "valid": wave, "test": None}[split]
            if spoiled is None:
                (root / "own" / split / "3.wav").write_text("no sound " * 100)
            else:
                soundfile.write(root / "own" / split / "3.wav", spoiled, 16000, subtype="FLOAT")
        table(root / "own" / f"{split}.csv", ["path", "label"],
              [[f"{split}/{n}", "ab"[k % 2]] for k, n in enumerate(names)])
    return root / "own"


def listed(path):
    with open(path, newline="") as file:
        return [(row["split"], row["path"], row["detail"]) for row in csv.DictReader(file)]


def test_broken_clips_of_training_and_validation_are_left_out_and_listed(tmp_path, capsys):
    task = without_broken(load_task(task_of(tmp_path)), tmp_path / "out")
    assert [len(task.splits[s]) for s in SPLITS] == [9, 9, 10]
    paths = [task.splits["train"].rows.path(i) for i in range(9)]
    assert "train/3.wav" not in paths and task.splits["train"].targets.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1]
    assert listed(tmp_path / "out" / "own.unusable.csv") == [
        ("train", "train/3.wav", "holds no sound"), ("valid", "valid/3.wav", "holds NaN or infinite samples")]
    said = capsys.readouterr()
    assert "1 of 10 clips of the train split can't be read, for example train/3.wav: holds no sound" in said.out
    assert str(tmp_path / "out" / "own.unusable.csv") in said.out and not said.err


def test_a_test_split_may_lack_a_small_share_with_a_warning(tmp_path, capsys):
    task = load_task(task_of(tmp_path, bad=("test",)))
    said = fails(without_broken, task, tmp_path / "out")
    assert "1 of 10 clips of the test split" in said and "raise --max-bad 0.01" in said and "test/3.wav" in said
    assert len(without_broken(task, tmp_path / "out", max_bad=0.1).splits["test"]) == 9
    assert "warning: task own: 1 of 10 clips of the test split can't be read" in (warned := capsys.readouterr().err)
    assert "scores stand on the other 9" in warned


def test_silence_and_clicks_may_be_classes(tmp_path):
    folder = task_of(tmp_path, bad=())
    soundfile.write(folder / "test" / "0.wav", np.zeros(4800), 16000)
    soundfile.write(folder / "test" / "1.wav", noise(80), 16000)
    assert len(without_broken(load_task(folder), tmp_path / "out").splits["test"]) == 10


def test_a_broken_recording_goes_with_its_windows_and_calls(tmp_path, capsys):
    calls = {split: [("a.wav", 5.0, [(0.5, 1.5, "x")]), ("b.wav", 4.0, [(1.0, 2.0, "x"), (2.0, 3.0, "y")]),
                     ("c.wav", 3.0, [(0.0, 1.0, "y")]), ("d.wav", 3.0, [])] for split in SPLITS}
    folder = own(tmp_path, calls, "raven")
    wave = noise(4 * 16000)
    wave[50000] = np.nan
    soundfile.write(folder / "train" / "b.wav", wave, 16000, subtype="FLOAT")
    (folder / "valid" / "a.wav").write_bytes(b"")
    task = without_broken(load_task(folder), tmp_path / "out")
    train, valid = task.splits["train"], task.splits["valid"]
    assert [path for path, _, _ in train.files] == ["train/a.wav", "train/c.wav", "train/d.wav"]
    assert [train.files[k][0] for k in train.file_index] == [train.rows.path(i) for i in range(len(train))]
    assert {event.file for event in train.events} == {"train/a.wav", "train/c.wav"}
    assert len(train) == 8 and len(valid.files) == 3
    assert {row[:2] for row in listed(tmp_path / "out" / "own.unusable.csv")} == {
        ("train", "train/b.wav"), ("valid", "valid/a.wav")}
    assert "1 of 4 recordings of the valid split can't be read, for example valid/a.wav: empty file" in (
        capsys.readouterr().out)


def test_what_was_found_is_kept_until_a_file_changes(tmp_path, monkeypatch):
    folder, memory = task_of(tmp_path), tmp_path / "out"
    first, decoded, judge = without_broken(load_task(folder), memory, memory=memory), [], quality.judge_row
    monkeypatch.setattr(broken, "judge_row", lambda rows, i, **more: decoded.append(i) or judge(rows, i, **more))
    again = without_broken(load_task(folder), memory, memory=memory)
    assert not decoded and all(len(again.splits[s]) == len(first.splits[s]) for s in SPLITS)
    soundfile.write(folder / "train" / "3.wav", noise(4800), 16000)
    assert len(without_broken(load_task(folder), memory, memory=memory).splits["train"]) == 10 and decoded == [3]


@pytest.mark.parametrize("stage", [evaluate, finetune])
def test_stages_go_on_without_broken_clips_and_say_the_true_number_of_test_clips(tmp_path, stage, capsys):
    folder = task_of(tmp_path, bad=SPLITS)
    flags = ["--checkpoint", "ssast-laptop-patch", "--task", str(folder), "--workers", "0", "--json",
             str(tmp_path / "results.json"), "--device", "cpu"]
    flags += ["--knn", "--cache", str(tmp_path / "cache")] if stage is evaluate else [
        "--steps", "2", "--lr", "1e-3", "--batch-size", "8", "--out", str(tmp_path / "out")]
    assert "test split can't be read" in fails(stage.main, flags)
    stage.main([*flags, "--max-bad", "0.1"])
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {row["n_test"] for row in rows} == {9}
    assert "scores stand on the other 9" in capsys.readouterr().err
