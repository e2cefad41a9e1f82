"""The order of loading, broken recordings, tasks, changed waves, the command line."""
import json
import re

import numpy as np
import pytest
import soundfile
import torch
from test_audio import BROKEN, broken, cropper, noise
from test_manifest import fails, recordings, table

from wren.sound import loading
from wren.sound.opening import open_manifest
from wren.sound.subsets import subset
from wren.tasks import load_task
from wren.tasks.augment import change_waves
import data
from wren.sound import manifest


# ---------------------------------------------------------------------------------------------------------- loading

@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Recordings at several rates and of several lengths, one of them broken."""
    folder = tmp_path_factory.mktemp("mixed")
    for rate, name in ((16000, "a{}.flac"), (44100, "b{}.wav"), (8000, "c{}.wav"), (22050, "d{}.mp3")):
        recordings(folder, [0.4, 1.7, 3.1], rate, name)
    (folder / "e.wav").write_text("this is no sound\n" * 50)
    listed = sorted(p.name for p in folder.iterdir())
    return subset(open_manifest(table(folder / "m.csv", ["path"], [[n] for n in listed])))


def stream(rows, world=1, workers=0, first=0, steps=9, **kwargs):
    """Global batches: those of all ranks, joined."""
    loaders = [loading.Loader(rows, cropper(1.0, **kwargs), 6, seed=3, first=first, steps=steps, rank=rank, world=world,
                              workers=workers, partner=True) for rank in range(world)]
    return [{key: sum((b[key] for b in parts), []) if key == "bad" else torch.cat([b[key] for b in parts])
             for key in parts[0]} for parts in zip(*loaders)]


@pytest.mark.parametrize("crop", ["random", "start"])
def test_the_same_bytes_for_any_number_of_workers_and_ranks_also_from_the_middle(mixed, crop):
    straight = stream(mixed, crop=crop)
    assert len(straight) == 9 and sum(len(batch["bad"]) for batch in straight) > 3  # four epochs of 13 rows
    layouts = [(w, r) for r in (1, 2, 3) for w in (0, 1, 2)] if crop == "random" else [(1, 2)]
    for workers, world in layouts:
        for batch, wanted in zip(stream(mixed, world, workers, first=24, steps=5, crop=crop), straight[4:]):
            for key in wanted:
                same = batch[key] == wanted[key] if key == "bad" else torch.equal(batch[key], wanted[key])
                assert same, (key, workers, world)


def test_an_epoch_holds_every_row_once_and_the_next_another_order(mixed):
    rows = mixed.select(np.array([i for i in range(len(mixed)) if mixed.path(i) != "e.wav"]))
    seen = torch.cat([batch["index"] for batch in stream(rows, steps=6)])
    first, second, third = seen.view(3, 12)
    assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in (first, second, third))
    assert not torch.equal(first, second)


def test_a_batch_may_hold_several_epochs_of_a_tiny_corpus(tmp_path):
    recordings(tmp_path, [0.1] * 3)
    rows = open_manifest(tmp_path)
    batches = list(loading.Loader(rows, cropper(0.1), 8, steps=3))
    seen = torch.cat([batch["index"] for batch in batches])
    assert all(sorted(epoch.tolist()) == [0, 1, 2] for epoch in seen.view(8, 3))
    assert len(set(torch.cat([batch["seed"] for batch in batches]).tolist())) == 24


def test_a_batch_holds_waves_filled_up_with_zeros_their_lengths_and_seeds(mixed):
    for batch in stream(mixed, steps=4):
        assert batch["wave"].shape == (6, 16000) and batch["wave"].dtype == torch.float32
        assert batch["lengths"].dtype == batch["index"].dtype == batch["seed"].dtype == torch.int64
        for wave, length, index in zip(batch["wave"], batch["lengths"], batch["index"]):
            short = mixed.path(int(index))[1] == "0"  # 0.4 s
            assert int(length) in ((6400, 6417, 6418) if short else (16000,)) or short
            assert (wave[length:] == 0).all() and wave[:length].abs().max() > 0.01
        assert len(set(batch["seed"].tolist())) == 6


def test_crops_move_between_epochs_and_a_crop_from_the_start_does_not(tmp_path):
    recordings(tmp_path, [4.0, 4.0])
    rows = subset(open_manifest(tmp_path))
    moving, still = ([batch["wave"][batch["index"].argsort()] for batch in loading.Loader(
        rows, cropper(1.0, crop=crop), 2, steps=3)] for crop in ("random", "start"))
    assert not torch.equal(moving[0], moving[1])
    assert torch.equal(still[0], still[2])
    assert torch.equal(still[0][0], torch.from_numpy(rows.read(0, 0, 16000)))


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_recording_is_replaced_by_the_next_good_one_and_reported(tmp_path, kind):
    good = recordings(tmp_path, [1.0, 1.0])
    bad = broken(tmp_path, kind).name
    listed = [[name, 16000] for name in (good[0], bad, good[1])]
    rows = open_manifest(table(tmp_path / "m.csv", ["path", "frames"], listed))
    for workers in (0, 1):
        batch = next(iter(loading.Loader(rows, cropper(1.0), 3, steps=1, workers=workers)))
        assert sorted(batch["index"].tolist()) == [0, 2, 2]
        assert [b["path"] for b in batch["bad"]] == [bad] and BROKEN[kind] in batch["bad"][0]["reason"]


@pytest.mark.parametrize("column, value, complaint", [("frames", 20000, "20000 frames from 0 wanted, 16000 there"),
                                                      ("sample_rate", 44100, "the manifest says 44100")])
def test_a_manifest_that_is_wrong_about_a_recording_is_caught(tmp_path, column, value, complaint):
    names = recordings(tmp_path, [1.0, 1.0])
    right = {"frames": 16000, "sample_rate": 16000}
    rows = open_manifest(table(tmp_path / "m.csv", ["path", *right], [
        [names[0], *(right | {column: value}).values()], [names[1], *right.values()]]))
    batch = next(iter(loading.Loader(rows, cropper(1.25), 2, steps=1)))
    assert complaint in batch["bad"][0]["reason"] and batch["index"].tolist() == [1, 1]


def test_a_corpus_without_one_readable_clip_ends_in_one_line(tmp_path):
    rows = manifest.build(["gone.wav", "lost.wav"], bases=(str(tmp_path),))
    for workers in (0, 1):
        message = fails(next, iter(loading.Loader(rows, cropper(1), 2, workers=workers)))
        assert "no such file" in message and str(tmp_path) in message


def test_too_many_bad_clips_stop_the_run_but_a_few_of_a_small_run_do_not(tmp_path):
    log = loading.BadLog(tmp_path / "bad.jsonl", max_bad=0.01)
    log.add([{"path": "a.wav", "reason": "empty file"}], 1, 8)
    log.add([], 0, 992)
    for _ in range(8):
        log.add([{"path": "b.wav", "reason": "empty file"}], 1, 10)
    assert "12 of 1083 clips" in fails(log.add, [{"path": "c.wav", "reason": "empty file"}], 3, 3)
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert lines[0] == {"path": "a.wav", "reason": "empty file"} and len(lines) >= 10


# ---------------------------------------------------------------------------------------------------------- streams

@pytest.fixture
def timed(tmp_path):
    """Rows whose samples tell their time, as does the accelerometer of all but one; one row is short."""
    lines = []
    for k, seconds in enumerate((9, 7, 0.6, 5)):
        ramp = np.arange(round(seconds * 16000)) / 16000 / 10
        soundfile.write(tmp_path / f"{k}.wav", ramp, 16000, subtype="FLOAT")
        time = np.arange(round(seconds * 50) + 1) / 50
        np.save(tmp_path / f"{k}.npy", np.column_stack([time, time, 100 + time]))
        first = 16000 if seconds > 1 else 0
        lines.append([f"{k}.wav", first, round(seconds * 16000) - first, f"{k}.npy" if k < 3 else ""])
    return open_manifest(table(tmp_path / "m.csv", ["path", "start", "frames", "stream:accelerometer"], lines))


STREAMS = (("accelerometer", 2, 25), ("depth", 1, 4))


@pytest.mark.parametrize("crop", ["random", "start"])
def test_streams_begin_with_the_crop_to_the_sample(timed, crop):
    starts = []
    for batch in loading.Loader(timed, cropper(1.5, crop=crop, streams=STREAMS), 4, steps=6):
        found = batch["streams"]
        assert found["accelerometer"].shape == (4, 2, 38) and found["accelerometer"].dtype == torch.float32
        assert found["depth"].shape == (4, 1, 6) and found["depth"].isnan().all()
        for wave, length, index, both in zip(batch["wave"], batch["lengths"], batch["index"], found["accelerometer"]):
            start = 10 * wave[0]  # s
            if index == 3:
                assert both.isnan().all()
                continue
            n = 15 if index == 2 else 38  # 0.6 s are 15 values; after the row's end nothing is known
            assert length == (9600 if index == 2 else 24000) and both[:, n:].isnan().all()
            torch.testing.assert_close(both[0, :n], start + torch.arange(n) / 25, rtol=0, atol=1e-5)
            torch.testing.assert_close(both[1, :n], 100 + both[0, :n], rtol=0, atol=1e-4)
            starts.append(round(float(start), 3))
    assert (len(set(starts)) <= 2) == (crop == "start") and max(starts) < 7.51


def test_streams_are_the_same_for_any_number_of_workers_and_change_nothing_else(timed):
    plain, alone, helped = (
        list(loading.Loader(timed, cropper(1.5, streams=wanted), 3, seed=1, steps=4, workers=workers))
        for wanted, workers in (((), 0), (STREAMS, 0), (STREAMS, 2)))
    for without, one, two in zip(plain, alone, helped):
        assert "streams" not in without and torch.equal(without["wave"], one["wave"])
        assert torch.equal(one["wave"], two["wave"]) and one["index"].tolist() == two["index"].tolist()
        for name in ("accelerometer", "depth"):
            torch.testing.assert_close(one["streams"][name], two["streams"][name], rtol=0, atol=0, equal_nan=True)


def test_a_row_with_a_broken_stream_is_replaced_and_listed_with_the_stream(timed, tmp_path):
    (tmp_path / "0.npy").write_text("broken")
    for streams, rows, reason in ((STREAMS, [1, 1, 2, 3], "stream accelerometer: .*0.npy: not readable"),
                                  ((("accelerometer", 3, 25),), [3] * 4, "has 2 channels, 3 are wanted")):
        batch = next(iter(loading.Loader(timed, cropper(0.5, streams=streams), 4, steps=1)))
        assert sorted(batch["index"].tolist()) == rows and batch["bad"][-1]["path"].endswith(".wav")
        assert any(re.search(reason, bad["reason"]) for bad in batch["bad"])
    assert not next(iter(loading.Loader(timed, cropper(0.5), 4, steps=1)))["bad"]


# ------------------------------------------------------------------------------------------------------------ tasks

def task_folder(root, labels=("b,ig", "small"), test_labels=None):
    """A task in BEANS layout with an unnamed index column and labels with commas."""
    names = recordings(root / "audio", [0.3] * 4)
    for split in ("train", "valid", "test"):
        rows = [[k, f"audio/{n}", (test_labels if split == "test" and test_labels else labels)[k % 2]]
                for k, n in enumerate(names)]
        table(root / "bats" / f"{split}.csv", ["", "path", "label"], rows)
    return root


def test_a_task_in_beans_layout_is_found_by_name_or_folder(tmp_path, monkeypatch):
    root = task_folder(tmp_path / "beans")  # paths start at the parent of the CSVs, as BEANS has them
    for task in (load_task("bats", root=root), load_task(root / "bats", root=root)):
        assert (task.name, task.kind, task.labels) == ("bats", "classification", ["b,ig", "small"])
        assert set(task.splits) == {"train", "valid", "test"}
        assert task.splits["test"].targets.tolist() == [0, 1, 0, 1] and len(task.splits["test"].read(3)) == 4800
    monkeypatch.chdir(root)  # without --data: from the CSV's folder, then from the current one
    assert len(load_task("bats").splits["train"]) == 4


def test_a_label_that_training_lacks_is_added_with_a_warning(tmp_path, capsys):
    task = load_task("bats", root=task_folder(tmp_path, test_labels=("b,ig", "new")))
    assert task.labels == ["b,ig", "small", "new"] and task.splits["test"].targets.tolist() == [0, 2, 0, 2]
    assert "training split lacks: new" in capsys.readouterr().err


def test_what_can_be_wrong_with_a_task_is_said_in_one_line(tmp_path):
    root = task_folder(tmp_path)
    assert "neither a folder" in fails(load_task, "dogs", root=root)
    (root / "audio" / "r3.flac").unlink()
    assert "names audio/r3.flac" in fails(load_task, "bats", root=root)
    table(root / "bats" / "train.csv", ["", "path", "label"], [])
    assert "no rows" in fails(load_task, "bats", root=root)
    table(root / "bats" / "train.csv", ["path"], [["audio/r0.flac"]])
    assert "no column label" in fails(load_task, "bats", root=root)
    (root / "bats" / "train.csv").unlink()
    assert "train.csv is missing" in fails(load_task, "bats", root=root)


def test_labelled_waves_change_level_and_turn_around_as_they_are_told_and_padding_stays_zero():
    lengths, seeds = torch.randint(2000, 4001, (64,), generator=torch.Generator().manual_seed(0)), torch.arange(64) * 7919
    beyond = torch.arange(4000) >= lengths[:, None]
    wave = torch.from_numpy(noise(64 * 4000)).view(64, 4000).masked_fill(beyond, 0)
    assert change_waves(wave, lengths, seeds) is wave
    level = change_waves(wave, lengths, seeds, gain=6).norm(dim=1) / wave.norm(dim=1)
    assert 10 ** (-6 / 20) - 1e-4 <= level.min() < 0.6 < 1.7 < level.max() <= 10 ** (6 / 20) + 1e-4
    rolled = change_waves(wave, lengths, seeds, roll=True)
    for before, after, n in zip(wave, rolled, lengths):
        at = int((before[:n] == after[0]).nonzero()[0, 0])
        assert torch.equal(before[:n].roll(-at), after[:n])
    both = change_waves(wave, lengths, seeds, 6, True)
    assert (both[beyond] == 0).all()
    alone = change_waves(wave[5:6], lengths[5:6], seeds[5:6], 6, True)
    torch.testing.assert_close(alone[0], both[5], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("command", ["index", "subset", "pack", "check", "demo"])
def test_the_help_of_every_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        data.main([command, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and f"  python data.py {command}" in text
    assert all(len(line) <= 118 for line in text.splitlines())
