"""The commands of data.py: index, subset, check."""
import csv
import os

import numpy as np
import soundfile
from test_audio import broken, noise
from test_data import task_folder
from test_manifest import fails, names, recordings, table

from wren.sound.opening import open_manifest
from wren.sound.subsets import subset
import data


def test_index_adds_what_is_new_and_lists_what_cannot_be_used(tmp_path, capsys):
    recordings(tmp_path / "a", [2.0, 1.0])
    for kind in ("empty", "text", "zero-samples"):
        broken(tmp_path / "a", kind)
    out = tmp_path / "lists" / "m.csv"
    data.main(["index", str(tmp_path / "a"), "--out", str(out), "--segment", "1", "--domain", "bio"])
    assert "3 new rows" in capsys.readouterr().out
    with open(out.with_suffix(".unusable.csv")) as file:
        assert {os.path.basename(r[0]): r[2] for r in csv.reader(file)}["empty.wav"] == "empty file"
    recordings(tmp_path / "b", [1.0])
    data.main(["index", str(tmp_path / "a"), str(tmp_path), "--out", str(out), "--segment", "1", "--source", "field"])
    assert "1 new rows" in capsys.readouterr().out
    rows = open_manifest(out)
    assert len(rows) == len(set(names(rows))) == 4 and rows.domain.tolist() == [1, 1, 1, 0]
    assert rows.text("source") == ["", "", "", "field"]
    assert all(len(rows.read(i)) == 16000 for i in range(4))
    assert "no such folder" in fails(data.main, ["index", str(tmp_path / "nowhere"), "--out", str(out)])


def test_a_subset_is_written_beside_its_manifest(tmp_path, capsys):
    recordings(tmp_path, [0.2] * 6)
    data.main(["index", str(tmp_path), "--out", str(tmp_path / "m.csv")])
    data.main(["subset", str(tmp_path / "m.csv"), "--subset", "4"])
    assert "4 of 6 rows" in capsys.readouterr().out
    rows, small = open_manifest(tmp_path / "m.csv"), open_manifest(tmp_path / "m-4.csv")
    assert small.fingerprint() == subset(rows, "4").fingerprint()
    (tmp_path / "other").mkdir()
    assert "beside it" in fails(data.main, ["subset", str(tmp_path / "m.csv"), "--subset", "4", "--out",
                                            str(tmp_path / "other" / "x.csv")])
    assert "itself" in fails(data.main, ["subset", str(tmp_path / "m.csv"), "--subset", "4", "--out",
                                         str(tmp_path / "m.csv")])


def test_check_names_every_kind_of_problem_and_writes_a_clean_manifest(tmp_path, capsys):
    good = recordings(tmp_path, [1.0, 1.0])
    for kind in ("text", "truncated", "nan", "flipped", "zero-samples"):
        broken(tmp_path, kind)
    loud = np.clip(20 * noise(16000), -1, 1)
    for name, wave in (("silent.wav", 0 * loud), ("constant.wav", 0 * loud + 0.25), ("clipped.wav", loud)):
        soundfile.write(tmp_path / name, wave, 16000)
    soundfile.write(tmp_path / "again.wav", soundfile.read(tmp_path / good[0])[0], 16000)
    listed = sorted(p.name for p in tmp_path.iterdir())
    path = table(tmp_path / "m.csv", ["path", "frames"], [[n, 16000] for n in listed] + [["gone.wav", 16000]])
    data.main(["check", str(path), "--clean", str(tmp_path / "clean.csv")])
    said = capsys.readouterr().out
    with open(tmp_path / "m.check.csv") as file:
        found = {row["path"]: row["problem"] for row in csv.DictReader(file)}
    assert found == {"text.wav": "unreadable", "truncated.wav": "short", "nan.wav": "non-finite",
                     "gone.wav": "unreadable", "flipped.flac": found["flipped.flac"], "zero-samples.wav": "short",
                     "silent.wav": "silent",
                     "constant.wav": "constant", "clipped.wav": "clipped", good[0]: "duplicate"}
    assert "1 duplicate" in said and "12 rows, 3 of them sound" in said
    clean = open_manifest(tmp_path / "clean.csv")
    assert {clean.path(i) for i in range(len(clean))} == {"again.wav", "clipped.wav", good[1]}


def test_check_finds_test_clips_by_content_first_second_and_xeno_canto_number(tmp_path, capsys):
    root = task_folder(tmp_path)
    recordings(root / "audio", [1.5] * 4)
    recordings(tmp_path / "pre", [0.3, 0.3], name="other{}.wav")
    soundfile.write(tmp_path / "pre" / "renamed.wav", soundfile.read(root / "audio" / "r0.flac")[0], 16000)
    longer = np.concatenate([soundfile.read(root / "audio" / "r1.flac")[0], noise(16000, 77)])
    soundfile.write(tmp_path / "pre" / "longer.flac", longer, 16000)
    (root / "audio" / "r2.flac").rename(root / "audio" / "XC12345.flac")
    soundfile.write(tmp_path / "pre" / "XC12345 - a bird.wav", noise(8000, 99), 16000)
    for split in ("train", "valid", "test"):
        text = (root / "bats" / f"{split}.csv").read_text()
        (root / "bats" / f"{split}.csv").write_text(text.replace("r2.flac", "XC12345.flac"))
    data.main(["check", str(tmp_path / "pre"), "--task", "bats", "--data", str(root),
               "--out", str(tmp_path / "c.csv")])
    assert "3 of the 4 test clips of bats overlap" in capsys.readouterr().out
    with open(tmp_path / "c.csv") as file:
        why = {row["path"]: row["detail"].split(" as ")[0] for row in csv.DictReader(file)}
    assert why == {"audio/r0.flac": "same content", "audio/r1.flac": "same first second",
                   "audio/XC12345.flac": "same Xeno-canto number"}


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    recordings(tmp_path, [0.1])
    (tmp_path / "file").write_text("in the way")
    for command in (["index", str(tmp_path), "--out", str(tmp_path / "file" / "m.csv")],
                    ["pack", str(tmp_path), str(tmp_path / "file" / "shards")]):
        assert "file" in fails(data.main, command)
