"""Tar shards: what is packed is what is read, a killed pack is completed, other people's tars work."""
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from functools import lru_cache

import numpy as np
import pytest
import soundfile
import torch
from conftest import ROOT
from test_audio import cropper, noise
from test_data import stream
from test_manifest import fails, names, recordings

from wren.sound import loading
from wren.sound.opening import open_manifest
from wren.sound.subsets import subset
import data
from wren.sound import entry, manifest
from wren.sound import shards


@pytest.fixture
def corpus(tmp_path):
    """Eleven clips in two folders, at two rates, with domain, source and label."""
    recordings(tmp_path / "in" / "a.b", [1.0] * 6, name="x{}.flac")
    recordings(tmp_path / "in", [0.7] * 5, 22050, name="y{}.wav")
    paths = [f"in/a.b/x{k}.flac" for k in range(6)] + [f"in/y{k}.wav" for k in range(5)]
    rows = manifest.build(paths, start=[k * 100 for k in range(11)], domain=["bio", "gen", ""] * 3 + ["bio", "bio"],
                          source=["s"] * 11, label=[f"species {k}" for k in range(11)], bases=(str(tmp_path),))
    manifest.write_manifest(rows, tmp_path / "m.csv")
    return tmp_path


@pytest.mark.parametrize("format", ["flac", "wav"])
@pytest.mark.parametrize("jobs", [1, 2])
def test_shards_hold_the_samples_and_the_rows_of_the_manifest(corpus, format, jobs, capsys):
    data.main(["pack", str(corpus / "m.csv"), str(corpus / "out"), "--format", format, "--clips", "4",
               "--jobs", str(jobs)])
    assert "11 clips in 3 shards" in capsys.readouterr().out
    rows, packed = open_manifest(corpus / "m.csv"), open_manifest(corpus / "out")
    assert names(packed) == names(rows) and packed.fingerprint() == rows.fingerprint()
    assert packed.domain.tolist() == rows.domain.tolist() and packed.sample_rate.tolist() == [16000] * 6 + [22050] * 5
    for i in range(11):
        np.testing.assert_array_equal(packed.read(i), rows.read(i))  # 16-bit sources: nothing is lost
        np.testing.assert_array_equal(packed.read(i, 500, 700), rows.read(i, 500, 700))
        packed.verify(i)
    assert packed.text("label") == rows.text("label")
    with tarfile.open(corpus / "out" / "shard-000000.tar") as tar:
        assert tar.getnames()[:2] == [f"000000000.{format}", "000000000.json"]
        sound, rate = soundfile.read(io.BytesIO(tar.extractfile(f"000000001.{format}").read()), dtype="float32")
    assert rate == 16000 and np.array_equal(sound, rows.read(1))


def test_a_subset_and_the_order_of_training_are_the_same_from_shards(corpus):
    rows = open_manifest(corpus / "m.csv")
    shards.pack(rows, corpus / "out", format="wav", clips_per_shard=4)
    packed = open_manifest(corpus / "out")
    for spec, domain in (("5", None), ("all", "bio"), ("2", "gen")):
        assert subset(packed, spec, domain).fingerprint() == subset(rows, spec, domain).fingerprint()
    for a, b in zip(stream(subset(rows), steps=4), stream(subset(packed), workers=2, steps=4)):
        assert all(torch.equal(a[key], b[key]) for key in ("index", "wave", "lengths", "partner", "seed"))


def test_packing_resamples_and_makes_what_is_too_loud_fit(tmp_path):
    soundfile.write(tmp_path / "loud.wav", 3 * noise(44100, 1) / 0.3, 44100, subtype="FLOAT")
    done = shards.pack(open_manifest(tmp_path), tmp_path / "out", rate=16000)
    packed = open_manifest(tmp_path / "out")
    assert done["scaled"] == 1 and packed.sample_rate[0] == 16000 and packed.frames[0] == 16000
    assert 0.9999 < np.abs(packed.read(0)).max() < 1


def test_a_clip_that_cannot_be_read_is_listed_and_left_out(corpus, capsys):
    (corpus / "in" / "y2.wav").write_text("this is no sound")
    data.main(["pack", str(corpus / "m.csv"), str(corpus / "out"), "--clips", "4"])
    assert "10 clips in 3 shards" in (said := capsys.readouterr().out) and "1 clips can't be read" in said
    assert "y2.wav" in (corpus / "out" / "unusable.csv").read_text()
    assert len(open_manifest(corpus / "out")) == 10


PACK = """
import sys, time
sys.path.insert(0, sys.argv[1])
import data
from wren.sound import shards
encode = shards.encode
def slow(*args):
    time.sleep(0.05)
    return encode(*args)
shards.encode = slow
data.main(["pack", sys.argv[2], sys.argv[3], "--clips", "2", "--jobs", "1"])
"""


def test_a_killed_pack_is_completed_by_the_same_command_and_nothing_is_lost(corpus, capsys):
    out = corpus / "out"
    run = subprocess.Popen([sys.executable, "-c", PACK, str(ROOT), str(corpus / "m.csv"),
                            str(out)])
    while not (out / "shard-000001.tar").exists():
        assert run.poll() is None
        time.sleep(0.01)
    time.sleep(0.06)  # within the next shard
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert "run the same python data.py pack again" in fails(open_manifest, out)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    data.main(["pack", str(corpus / "m.csv"), str(out), "--clips", "2"])
    assert "11 clips in 6 shards" in capsys.readouterr().out
    assert len(before) >= 2 and all((out / n).stat().st_mtime_ns == t for n, t in list(before.items())[:1])
    assert not list(out.glob("*.tmp"))
    rows, packed = open_manifest(corpus / "m.csv"), open_manifest(out)
    assert names(packed) == names(rows)
    assert all(np.array_equal(packed.read(i), rows.read(i)) for i in range(11))


def test_another_pack_in_the_same_folder_is_refused(corpus):
    data.main(["pack", str(corpus / "m.csv"), str(corpus / "out")])
    assert "holds another pack (rate None, now 8000)" in fails(
        data.main, ["pack", str(corpus / "m.csv"), str(corpus / "out"), "--rate", "8000"])
    (corpus / "own").mkdir()
    tarfile.open(corpus / "own" / "x.tar", "w").close()
    assert "didn't write" in fails(data.main, ["pack", str(corpus / "m.csv"), str(corpus / "own")])
    assert "hold no audio" in fails(open_manifest, corpus / "own")


def test_a_lost_or_damaged_index_is_made_again_from_the_tar(corpus):
    rows = open_manifest(corpus / "m.csv")
    shards.pack(rows, corpus / "out", format="wav", clips_per_shard=8)
    first = open_manifest(corpus / "out")
    lost, damaged = sorted((corpus / "out").glob("*.index.npz"))
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:500])
    again = open_manifest(corpus / "out")
    assert names(again) == names(first) and again.entry.tolist() == first.entry.tolist()
    assert again.domain.tolist() == first.domain.tolist() and again.text("label") == first.text("label")


def test_a_shard_that_falls_out_of_the_open_ones_is_not_closed_while_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(b"0123456789")
    pread = os.pread

    def interrupted(*read):
        entry._shard.cache_clear()  # as another thread's shards do
        return pread(*read)
    monkeypatch.setattr(os, "pread", interrupted)
    assert entry.entry_bytes(str(tmp_path / "a.tar"), 2, 3) == b"234"


def test_damage_in_a_shard_is_found_by_check_and_replaced_in_training(corpus, capsys):
    shards.pack(open_manifest(corpus / "m.csv"), corpus / "out", format="wav", clips_per_shard=11)
    packed = open_manifest(corpus / "out")
    tar = corpus / "out" / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[int(packed.entry["offset"][3]) + 1000] ^= 1
    tar.write_bytes(content)
    data.main(["check", str(corpus / "out")])
    assert "11 rows, 10 of them sound; 1 unreadable" in capsys.readouterr().out
    tar.write_bytes(content[:int(packed.entry["offset"][8]) + 5000])  # copied incompletely, index whole
    batch = next(iter(loading.Loader(packed, cropper(0.5), 11)))
    assert sum("ends before" in bad["reason"] for bad in batch["bad"]) >= 3
    assert "not a whole, uncompressed tar" in fails(open_manifest, corpus / "out")


def foreign(folder):
    """A tar as webdataset's writer makes them: KEY.ext and KEY.json, and other things."""
    folder.mkdir()
    with tarfile.open(folder / "part-0.tar", "w") as tar:
        for name, format in (("one", "flac"), ("dir/two", "wav"), ("three", "mp3"), ("four", "ogg")):
            sound = io.BytesIO()
            soundfile.write(sound, noise(8000, len(name)), 16000, format=format.upper())
            files = {f"{name}.{format}": sound.getvalue(), f"{name}.json": json.dumps({"caption": "x"}).encode(),
                     f"{name}.txt": b"caption"}
            for member, content in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("broken.flac")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"oops"))
    return folder


def test_webdataset_tars_made_by_others_are_indexed_and_read(tmp_path):
    folder = foreign(tmp_path / "wds")
    for _ in range(2):  # the second time from the index
        rows = open_manifest(folder)
        assert [rows.path(i) for i in range(4)] == ["part-0.tar/one.flac", "part-0.tar/dir/two.wav",
                                                    "part-0.tar/three.mp3", "part-0.tar/four.ogg"]
        assert len(rows) == 4 and rows.frames.tolist() == [8000] * 4
        assert all(len(rows.read(i, 1000, 3000, rate=8000)) == 1500 for i in range(4))
    assert (folder / "part-0.tar.index.npz").exists()


def test_a_tar_that_has_changed_is_indexed_again(tmp_path):
    folder = foreign(tmp_path / "wds")
    assert len(open_manifest(folder)) == 4
    with tarfile.open(folder / "part-0.tar", "a") as tar:
        sound = io.BytesIO()
        soundfile.write(sound, noise(1000), 16000, format="WAV")
        info = tarfile.TarInfo("five.wav")
        info.size = len(sound.getvalue())
        tar.addfile(info, io.BytesIO(sound.getvalue()))
    rows = open_manifest(folder)
    assert len(rows) == 5 and len(rows.read(4)) == 1000


def test_more_shards_than_open_files_are_read(corpus, monkeypatch):
    monkeypatch.setattr(entry, "_shard", lru_cache(maxsize=2)(entry._shard.__wrapped__))
    rows = open_manifest(corpus / "m.csv")
    shards.pack(rows, corpus / "out", clips_per_shard=1)
    packed = open_manifest(corpus / "out")
    for i in [*range(11), *range(11)]:
        assert np.array_equal(packed.read(i), rows.read(i))
