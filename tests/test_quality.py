"""One judgement of sound for all stages: what is junk, what is odd, where it is listed, and that it isn't held out."""
import csv
import os
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from test_audio import noise
from test_manifest import fails, recordings, table

import data
from wren.sound import quality
from wren.sound.opening import open_manifest
from wren.sound.subsets import holdout

UNUSABLE = {"empty.wav": "unreadable", "text.wav": "unreadable", "nothing.wav": "short", "one.wav": "short",
            "nan.wav": "non-finite", "silent.wav": "silent", "constant.wav": "constant"}
ODD = {"cut.wav": "truncated", "array.wav": "dead channels"}


def junk(folder):
    """A file of each kind -> its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("no sound\n" * 100)
    wave = noise(16000)
    broken = wave.copy()
    broken[9000] = np.nan
    channels = np.zeros((16000, 8), np.float32)
    channels[:, 3] = wave
    for name, samples in (("nothing", wave[:0]), ("one", wave[:1]), ("nan", broken), ("silent", 0 * wave),
                          ("constant", 0 * wave + 0.25), ("array", channels), ("cut", wave)):
        soundfile.write(folder / f"{name}.wav", samples, 16000, subtype="FLOAT" if name == "nan" else "PCM_16")
    whole = (folder / "cut.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[:len(whole) // 3])
    return folder


def listed(path):
    with open(path, newline="") as file:
        return {row["path"].split("/")[-1]: (row["problem"], row["used"]) for row in csv.DictReader(file)}


def wanted():
    return {name: (kind, "no") for name, kind in UNUSABLE.items()} | {name: (kind, "yes") for name, kind in ODD.items()}


def test_every_kind_of_junk_is_judged_and_good_sound_is_not(tmp_path):
    folder = junk(tmp_path)
    for name, kind in (UNUSABLE | ODD).items():
        verdict = quality.judge_file(folder / name)
        assert (verdict.problem, verdict.usable) == (kind, name in ODD) and verdict.detail
    assert "0.33" in quality.judge_file(folder / "cut.wav").detail
    assert quality.judge_file(folder / "array.wav").detail == "7 of 8 channels are silent"
    for name, channels, subtype in (("mono.flac", None, None), ("half.wav", 2, "FLOAT"), ("a.mp3", None, None),
                                    ("a.ogg", None, None)):
        wave = noise(16000, channels=channels)
        if channels:
            wave[:, 1] = 0  # a mono recorder that writes stereo
        soundfile.write(folder / name, wave, 16000, subtype)
        assert quality.judge_file(folder / name) == quality.Verdict("", "", 16000, 16000), name


def test_a_wav_that_was_streamed_and_says_no_length_is_whole(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(16000), 16000)
    raw = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(raw[:40] + b"\xff\xff\xff\xff" + raw[44:])
    assert quality.judge_file(tmp_path / "a.wav").problem == ""


def test_index_a_folder_and_check_agree_on_what_can_be_used(tmp_path, capsys):
    folder = junk(tmp_path / "in")
    recordings(folder, [1.0] * 3)
    data.main(["index", str(folder), "--out", str(tmp_path / "m.csv")])
    said = capsys.readouterr().out
    assert "7 of 12 files can't be used, for example" in said and "2 of 12 files are used although odd" in said
    assert listed(tmp_path / "m.unusable.csv") == wanted()
    rows = open_manifest(folder, notes=tmp_path / "run")
    assert listed(tmp_path / "run" / "unusable.csv") == wanted()
    assert "7 of 12 files can't be used" in (warned := capsys.readouterr().err) and "run/unusable.csv" in warned
    indexed = open_manifest(tmp_path / "m.csv")
    used = {rows.path(i) for i in range(len(rows))}
    assert used == {*ODD, "r0.flac", "r1.flac", "r2.flac"} == {indexed.path(i).split("/")[-1] for i in range(5)}
    data.main(["check", str(folder), "--out", str(tmp_path / "c.csv")])
    assert "12 rows, 5 of them sound" in capsys.readouterr().out
    with open(tmp_path / "c.csv", newline="") as file:
        assert {row["path"]: row["problem"] for row in csv.DictReader(file)
                if row["problem"] not in ("duplicate", "clipped")} == UNUSABLE | ODD


def test_files_that_have_not_changed_are_not_decoded_again(tmp_path, monkeypatch):
    folder, notes = junk(tmp_path / "in"), tmp_path / "run"
    recordings(folder, [1.0] * 2)
    first, decoded, judge = open_manifest(folder, notes=notes), [], quality.judge_file
    monkeypatch.setattr(quality, "judge_file", lambda path, *rest: decoded.append(path) or judge(path, *rest))
    again = open_manifest(folder, notes=notes)
    assert not decoded and again.fingerprint() == first.fingerprint() and again.frames.tolist() == first.frames.tolist()
    soundfile.write(folder / "r0.flac", noise(8000), 16000)
    assert sorted(open_manifest(folder, notes=notes).frames) != sorted(first.frames) and len(decoded) == 1


def test_a_file_that_changes_but_keeps_its_size_is_judged_anew(tmp_path):
    path, memory = tmp_path / "a.wav", quality.Memory()
    for second, (wave, problem) in enumerate(((noise(8000), ""), (np.zeros(8000), "silent"))):
        soundfile.write(path, wave, 16000, subtype="PCM_16")
        os.utime(path, (second, second))
        assert memory.judge(path, lambda: quality.judge_file(path)).problem == problem


def test_a_folder_of_nothing_but_junk_is_one_line(tmp_path):
    junk(tmp_path)
    for name in ODD:
        (tmp_path / name).unlink()
    assert "none of the audio files" in (said := fails(open_manifest, tmp_path)) and "7 of 7 files" in said


def manifest_of_junk(tmp_path):
    names = recordings(junk(tmp_path / "in"), [1.0] * 12)
    return open_manifest(table(tmp_path / "in" / "m.csv", ["path"], [[n] for n in [*UNUSABLE, *ODD, *names]]))


def test_junk_is_not_held_out_and_named(tmp_path):
    rows, problems = manifest_of_junk(tmp_path), []
    train, valid = holdout(rows, 8, problems)
    held = [valid.path(i) for i in range(len(valid))]
    assert len(held) == 8 and not set(held) & {*UNUSABLE, *ODD}
    assert {path for path, _ in problems} <= {*UNUSABLE, *ODD} and problems
    assert len(train) == len(rows) - 8


def test_held_out_clips_that_have_all_vanished_end_a_run_in_one_line():
    from wren.training.engine import Trainer
    from wren.training.processes import Processes
    trainer = SimpleNamespace(objective=SimpleNamespace(eval=lambda: None), _placed=dict,
                              procs=Processes(0, 1, SimpleNamespace(type="cpu")))
    assert "held-out clips can be read any more" in fails(Trainer.evaluate, trainer, [])


def test_a_run_lists_what_it_did_not_hold_out(tmp_path, capsys):
    from wren.recipes.run import Data
    from wren.training.starting import open_data
    from wren.training.processes import Processes
    manifest_of_junk(tmp_path)
    data = Data(data=str(tmp_path / "in" / "m.csv"), valid=4)
    _, valid = open_data(data, tmp_path / "run", Processes(0, 1, "cpu"))
    assert len(valid) == 4
    said, found = capsys.readouterr().err, listed(tmp_path / "run" / "unusable.csv")
    assert "others are held out in place of" in said and found.items() <= wanted().items() and found


def test_the_same_recordings_are_held_out_of_every_subset(tmp_path):
    from wren.recipes.run import Data
    from wren.training.starting import open_data
    from wren.training.processes import Processes
    recordings(tmp_path / "in", [0.5] * 40)
    held = []
    for subset in ("all", "30", "20"):
        parts = open_data(Data(data=str(tmp_path / "in"), subset=subset, valid=4), tmp_path / "run",
                          Processes(0, 1, "cpu"))
        train, valid = ({rows.path(i) for i in range(len(rows))} for rows in parts)
        assert not train & valid
        held.append(valid)
    assert held[0] == held[1] == held[2] and len(held[0]) == 4


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz"])
def test_compressed_shards_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    assert f"compressed shards ({name}" in (said := fails(open_manifest, tmp_path)) and "gunzip" in said
