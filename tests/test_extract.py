"""Recordings in, embeddings, predictions and events out: nothing lost, nothing mixed up, nothing half-written."""
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from wren.sound import audio
import extract
from wren.training import heads
from wren.recordings import hear
from wren.recordings import store
from wren.recordings import windows
from wren.tasks.annotations import Event, read_annotations, write_annotations
from wren.cli import UserError
from wren.sound.manifest import write_manifest
from wren.sound.opening import open_manifest
from model import Encoder, load_encoder, save_encoder
from wren.recipes import PRESETS
from wren.recordings.windows import Cut, Recordings, Stretch, batches

ROOT = Path(__file__).parent.parent
FAMILIES = ("ssast-laptop-patch", "dasheng-laptop", "eat-laptop", "atst-laptop", "animal2vec-laptop")
TINY = replace(PRESETS["ssast-laptop-patch"], name="tiny", dim=32, depth=2, heads=2, frames=100)


def small(preset):
    """A preset of a laptop's size made smaller still: windows of 1 s."""
    config = PRESETS[preset]
    return replace(config, dim=32, depth=2, heads=2, prenet=0, frames=round(1 / config.hop), chunk=0)


def noise(samples, seed=0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small encoder of windows of 1 s, random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("run") / "encoder.pt"
    save_encoder(Encoder(TINY), path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Recordings of several rates, lengths and formats, in folders; two share their stem."""
    top = tmp_path_factory.mktemp("sound")
    (top / "deep").mkdir()
    for k, (name, rate, seconds) in enumerate((("a.wav", 16000, 2.5), ("b.flac", 44100, 3.21), ("c.WAV", 8000, 0.06),
                                               ("deep/a.wav", 48000, 1.0), ("bat.wav", 250000, 1.3))):
        soundfile.write(top / name, noise(round(rate * seconds), k), rate)
    return top


def run(*arguments):
    extract.main([str(a) for a in arguments] + ([] if "--workers" in arguments else ["--workers", "0"]))


def rows_of(out):
    """{path below the sound: [(start, end, vector)]} of a folder of embeddings."""
    found = {}
    for row in store.read_index(out):
        array = np.load(Path(out) / row["array"], mmap_mode="r")
        found.setdefault(row["file"], []).append((row["start"], row["end"], np.array(array[row["row"]], np.float32)))
    return found


# ------------------------------------------------------------------------------------------------------- windows

@pytest.mark.parametrize("old, new", [(44100, 16000), (250000, 16000), (8000, 16000), (47999, 16000), (16000, 16000)])
def test_a_part_resampled_in_pieces_is_that_part_of_the_whole(tmp_path, monkeypatch, old, new):
    monkeypatch.setattr(windows, "_PIECE", 3000)
    wave = noise(old * 2 + 77)
    soundfile.write(tmp_path / "a.wav", wave, old, subtype="FLOAT")
    whole = audio.resample(wave, *audio.ratio(old, new))
    with Recordings([tmp_path / "a.wav"]).open(0) as clip:
        for start, stop in ((0, len(whole)), (0, 1), (12345, 12346), (7777, 23456), (len(whole) - 5, len(whole))):
            part = windows.resampled(clip, len(wave), start, stop, new)
            assert np.abs(part - whole[start:stop]).max() < 1e-5, (start, stop)


@pytest.mark.parametrize("seconds, window, hop", [(0.06, 1, 1), (1, 1, 1), (1.0001, 1, 1), (3.7, 1, 0.3), (3.7, 2, 2),
                                                  (5, 1, 0.999), (2.2, 0.5, 0.123)])
def test_every_sample_is_in_a_window_and_belongs_to_exactly_one(tmp_path, seconds, window, hop):
    rate, cut = 22050, Cut(16000, window, hop)
    soundfile.write(tmp_path / "a.wav", noise(round(rate * seconds)), rate, subtype="FLOAT")
    whole = audio.read(tmp_path / "a.wav", rate=16000)
    seen, owned, end = np.full(len(whole), np.nan, np.float32), np.zeros(len(whole), int), 0.0
    for wave, lengths, places in batches(Recordings([tmp_path / "a.wav"]), cut, 3, workers=0):
        for row, length, (stretch, n) in zip(wave.numpy(), lengths.tolist(), places):
            begin = n * cut.hop_samples
            assert np.abs(row[:length] - whole[begin:begin + length]).max() < 1e-5 and not row[length:].any()
            seen[begin:begin + length] = row[:length]
            low, high = stretch.own(n)
            owned[begin + int(np.ceil(low)):begin + int(np.ceil(high))] += 1
            start, end = stretch.span(n)
            assert start == pytest.approx(begin / 16000, abs=1e-9)
    assert not np.isnan(seen).any() and (owned == 1).all()
    assert end == pytest.approx(round(rate * seconds) / rate, abs=1e-9), "seconds in are seconds out"


def test_token_columns_cover_a_recording_once_and_without_gaps():
    for hop in (1.0, 0.48, 0.16):
        stretch = Stretch(0, Cut(16000, 1.0, hop), 16000, 8000, 52345)
        parts = [stretch.columns(n, 7, 2560)[1:] for n in range(len(stretch))]
        starts, ends = (np.concatenate(part) for part in zip(*parts))
        assert starts[0] == 0.5 and ends[-1] == (8000 + 52345) / 16000
        assert (np.diff(starts) > 0).all()
        assert np.abs(starts[1:] - ends[:-1]).max() < (1e-9 if hop == 1.0 else 0.09), "within a column where cut"


def test_windows_of_many_recordings_share_batches(folder):
    sizes = [len(lengths) for _, lengths, _ in batches(Recordings([folder]), Cut(16000, 1.0, 1.0), 4, workers=0)]
    assert sizes == [4, 4, 3]


def test_memory_does_not_grow_with_a_recording(tmp_path, checkpoint):
    peaks = []
    code = ("import sys, resource; sys.path.insert(0, sys.argv[1]); import torch; torch.set_num_threads(1)\n"
            "import extract; extract.main(sys.argv[2:])\n"
            "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)")
    for minutes in (1, 9):
        path = tmp_path / f"{minutes}.wav"
        chirp = 0.3 * np.sin(2 * np.pi * np.cumsum(np.linspace(1000, 8000, 48000)) / 48000)
        with soundfile.SoundFile(path, "w", 48000, 1) as file:
            for _ in range(minutes):
                file.write(np.concatenate([chirp, np.zeros(59 * 48000)]))
        done = subprocess.run([sys.executable, "-c", code, str(ROOT), str(path), "--checkpoint", checkpoint, "--out",
                               str(tmp_path / f"out{minutes}"), "--workers", "0", "--batch-size", "32"],
                              capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert f"{60 * minutes}.00 s" in done.stdout
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 30, f"MB at 1 and at 9 minutes: {peaks}; 9 minutes are 104 MB as float32"


# ---------------------------------------------------------------------------------------------------- embeddings

@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_does_not_depend_on_batch_neighbours_or_readers(folder, tmp_path, family):
    torch.manual_seed(1)
    save_encoder(Encoder(small(family)), tmp_path / "encoder.pt")
    results = []
    for name, sources, size, workers in (("one", [folder], 1, 0), ("many", [folder], 7, 2),
                                         ("alone", [folder / "b.flac"], 3, 1)):
        run(*sources, "--checkpoint", tmp_path / "encoder.pt", "--out", tmp_path / name, "--batch-size", size,
            "--workers", workers)
        results.append(rows_of(tmp_path / name))
    one, many, alone = results
    assert len(one) == 5 and one.keys() == many.keys()
    for file, [(start, end, vector)] in one.items():
        assert np.abs(vector - many[file][0][2]).max() < 1e-5, file
        assert start == 0 and end == pytest.approx(soundfile.info(file).duration, abs=1e-6)
    b = str(folder / "b.flac")
    assert np.abs(alone[b][0][2] - one[b][0][2]).max() < 1e-5


def test_a_window_s_row_is_what_the_encoder_makes_of_that_part(folder, checkpoint, tmp_path):
    run(folder / "a.wav", "--checkpoint", checkpoint, "--out", tmp_path / "rows", "--window", 1, "--hop", 0.75)
    run(folder / "a.wav", "--checkpoint", checkpoint, "--out", tmp_path / "clip")
    encoder, wave = load_encoder(checkpoint), torch.from_numpy(audio.read(folder / "a.wav"))
    [rows], [clip] = rows_of(tmp_path / "rows").values(), rows_of(tmp_path / "clip").values()
    assert [(s, e) for s, e, _ in rows] == [(0, 1), (0.75, 1.75), (1.5, 2.5)]
    with torch.no_grad():
        for start, end, vector in rows:
            expected = encoder(wave[None, round(start * 16000):round(end * 16000)])[0].numpy()
            assert np.abs(vector - expected).max() < 1e-5
        parts = [encoder(wave[None, k:k + 16000])[0].numpy() for k in (0, 16000, 32000)]
    mean = (parts[0] + parts[1] + 0.5 * parts[2]) / 2.5
    assert np.abs(clip[0][2] - mean).max() < 1e-5, "weighted by seconds"


def test_every_granularity_layer_and_pool_has_its_shape(folder, checkpoint, tmp_path):
    # 2.5 s in windows of 1 s: 7, 7 and 3 columns
    shapes = {"clip": (1, 2 * 4 * 32), "frame": (17, 32), "patch": (17, 4, 32), "all": (3, 2 + 7 * 4, 32)}
    for granularity, shape in shapes.items():
        out = tmp_path / granularity
        run(folder / "a.wav", "--checkpoint", checkpoint, "--out", out, "--granularity", granularity)
        array = np.load(out / "a.npy", mmap_mode="r")
        assert array.shape == shape, granularity
        index = list(store.read_index(out))
        assert len(index) == len(array) and index[-1]["end"] == 2.5 and np.isfinite(array).all()
    save_encoder(Encoder(small("animal2vec-laptop")), tmp_path / "wave.pt")
    run(folder / "b.flac", "--checkpoint", tmp_path / "wave.pt", "--out", tmp_path / "wave", "--granularity", "patch",
        "--layers", 1, 2)
    assert np.load(tmp_path / "wave" / "b.npy").shape == (161, 1, 64), "3.21 s of 20 ms, the last one begun"
    frame, patch = (np.load(tmp_path / name / "a.npy") for name in ("frame", "patch"))
    assert np.abs(patch.mean(1) - frame).max() < 1e-5
    last = np.load(tmp_path / "all" / "a.npy")[-1]  # half a window
    assert not last[2 + 3 * 4:].any() and last[:2 + 3 * 4].any(axis=1).all()
    run(folder / "a.wav", "--checkpoint", checkpoint, "--out", tmp_path / "wide", "--layers", 1, 2, "--pool", "both")
    wide = np.load(tmp_path / "wide" / "a.npy")
    assert wide.shape == (1, 2 * 64)
    run(folder / "a.wav", "--checkpoint", checkpoint, "--out", tmp_path / "one", "--layers", 2, "--pool", "both")
    assert np.array_equal(wide[:, 64:], np.load(tmp_path / "one" / "a.npy"))
    with pytest.raises(UserError, match="blocks 1 to 2"):
        run(folder / "a.wav", "--checkpoint", checkpoint, "--out", tmp_path / "none", "--layers", 3)
    with pytest.raises(UserError, match="at most that"):
        run(folder / "a.wav", "--checkpoint", checkpoint, "--out", tmp_path / "none", "--granularity", "frame",
            "--window", 3)
    assert not (tmp_path / "none").exists()


def test_a_bat_recording_is_heard_as_the_same_sound_at_the_encoder_s_rate(tmp_path, checkpoint):
    hertz, phase = np.random.default_rng(0).uniform((20, 0), (7000, 2 * np.pi), (99, 2)).T[:, :, None]
    for name, rate in (("fast", 250000), ("slow", 16000)):
        parts = [np.sin(2 * np.pi * hertz * (k + np.arange(rate // 100)) / rate + phase).sum(0)
                 for k in range(0, 2 * rate, rate // 100)]
        soundfile.write(tmp_path / f"{name}.wav", 0.02 * np.concatenate(parts), rate, subtype="FLOAT")
    run(tmp_path / "fast.wav", tmp_path / "slow.wav", "--checkpoint", checkpoint, "--out", tmp_path / "out")
    fast, slow = (np.load(tmp_path / "out" / f"{name}.npy")[0] for name in ("fast", "slow"))
    assert np.abs(fast - slow).max() < 0.02 * np.abs(slow).max()


def test_what_is_named_is_found_once_and_gets_a_name_of_its_own(folder, checkpoint, tmp_path, monkeypatch):
    table = open_manifest(folder)
    write_manifest(table, folder / "table.csv", [i for i in range(len(table)) if "b.flac" in table.path(i)])
    monkeypatch.chdir(folder)
    recordings = Recordings([".", "a.wav", "*.flac", folder / "deep"])
    assert [recordings.path(k) for k in range(len(recordings))] == [
        str(folder / name) for name in ("a.wav", "b.flac", "bat.wav", "c.WAV", "deep/a.wav")]
    assert extract.output_names(recordings) == ["a", "b", "bat", "c", "deep/a"]
    assert len(Recordings(["table.csv"])) == 1
    soundfile.write(folder / "deep" / "a.flac", noise(16000), 16000)
    assert {"deep/a.wav", "deep/a.flac", "a"} <= set(extract.output_names(Recordings(["."])))
    (folder / "deep" / "a.flac").unlink()
    for nothing, reason in (("none*.wav", "matches no file"), ("none.wav", "no such file")):
        with pytest.raises(UserError, match=reason):
            Recordings([nothing])


def test_rows_of_a_manifest_are_stretches_with_the_recording_s_own_times(tmp_path, checkpoint):
    soundfile.write(tmp_path / "a.wav", noise(80000), 16000)
    (tmp_path / "rows.csv").write_text("path,start,frames,sample_rate\na.wav,8000,32000,16000\n"
                                       "a.wav,40000,40000,16000\n")
    run(tmp_path / "rows.csv", "--checkpoint", checkpoint, "--out", tmp_path / "out", "--window", 1)
    [rows] = rows_of(tmp_path / "out").values()
    assert [(s, e) for s, e, _ in rows] == [(0.5, 1.5), (1.5, 2.5), (2.5, 3.5), (3.5, 4.5), (4.5, 5)]
    assert (tmp_path / "out" / "a-0.5s.npy").exists() and (tmp_path / "out" / "a-2.5s.npy").exists()


def test_broken_files_are_listed_and_the_others_are_done(folder, checkpoint, tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "empty.wav").touch()
    (broken / "text.wav").write_text("no sound at all")
    soundfile.write(broken / "nothing.wav", np.zeros(0), 16000)
    soundfile.write(broken / "cut.flac", noise(160000), 16000)
    data = (broken / "cut.flac").read_bytes()
    (broken / "cut.flac").write_bytes(data[:len(data) // 2])
    with pytest.raises(UserError, match="4 of 4 recordings can't be used"):
        run(broken, "--checkpoint", checkpoint, "--out", tmp_path / "none")
    run(broken, folder / "c.WAV", "--checkpoint", checkpoint, "--out", tmp_path / "out", "--batch-size", 1)
    assert "4 of 5 recordings can't be used" in capsys.readouterr().err
    table = (tmp_path / "out" / "unusable.csv").read_text()
    assert all(name in table for name in ("empty.wav,unreadable", "text.wav", "nothing.wav", "cut.flac"))
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"unusable.csv", "c.npy", "index.csv", "settings.json"}
    assert len(list(store.read_index(tmp_path / "out"))) == 1


# --------------------------------------------------------------------------------------------- resume and storage

class Killed(BaseException):
    pass


@pytest.mark.parametrize("layout", [[], ["--store", "--dtype", "float16"]])
def test_a_killed_run_goes_on_and_ends_as_an_unkilled_one(folder, checkpoint, tmp_path, monkeypatch, layout):
    options = ["--checkpoint", checkpoint, "--window", 1, "--hop", 0.5, "--batch-size", 2, *layout]
    run(folder, *options, "--out", tmp_path / "whole")
    add, calls = store.Output.add, []

    def dies(self, *arguments):
        calls.append(1)
        if len(calls) == 7:
            self._rows.file.flush()
            raise Killed
        add(self, *arguments)
    monkeypatch.setattr(store.Output, "add", dies)
    monkeypatch.setattr(store.Output, "close", lambda self: self._index.close())  # no time to clean up
    with pytest.raises(Killed):
        run(folder, *options, "--out", tmp_path / "out")
    monkeypatch.undo()
    done = list(store.read_index(tmp_path / "out"))
    assert done and done[-1]["left"] == 0
    with open(tmp_path / "out" / "index.csv", "a") as file:
        file.write(f"{folder}/half.wav,0.000000,1.0")  # a line that was being written
    run(folder, *options, "--out", tmp_path / "out")
    whole, out = rows_of(tmp_path / "whole"), rows_of(tmp_path / "out")
    assert list(whole) == list(out)
    for file in whole:
        for (*times, a), (*others, b) in zip(whole[file], out[file], strict=True):
            assert times == others and np.abs(a - b).max() < 1e-5
    names = sorted(str(p.relative_to(tmp_path / "whole")) for p in (tmp_path / "whole").rglob("*"))
    assert names == sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*"))
    if layout:
        array = np.load(tmp_path / "out" / "embeddings.npy", mmap_mode="r")
        assert array.dtype == np.float16 and len(array) == sum(map(len, out.values()))


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(folder, checkpoint, tmp_path, monkeypatch):
    append, calls = store.Rows.append, []

    def full(self, rows):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        append(self, rows)
    monkeypatch.setattr(store.Rows, "append", full)
    with pytest.raises(UserError, match="out: No space left on device; nothing is lost"):
        run(folder, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 2
    run(folder, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 5 and len(list((tmp_path / "out").rglob("*.npy"))) == 5


def test_a_recording_that_breaks_half_way_leaves_no_rows_in_the_store(folder, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "_UNIT", 16000)
    whole = soundfile.SoundFile.read

    def breaks(self, frames=-1, *args, **kwargs):
        if self.name.endswith(b"b.flac") and self.tell() > 60000:
            raise RuntimeError("the medium has a scratch")
        return whole(self, frames, *args, **kwargs)
    monkeypatch.setattr(soundfile.SoundFile, "read", breaks)
    run(folder, "--checkpoint", checkpoint, "--window", 1, "--batch-size", 1, "--store", "--out", tmp_path / "out")
    found = rows_of(tmp_path / "out")
    assert len(found) == 4 and not any("b.flac" in file for file in found)
    assert len(np.load(tmp_path / "out" / "embeddings.npy")) == sum(map(len, found.values()))


def test_embeddings_of_another_checkpoint_or_window_are_refused(folder, checkpoint, tmp_path):
    run(folder / "a.wav", "--checkpoint", checkpoint, "--out", tmp_path / "out", "--store")
    torch.manual_seed(5)
    save_encoder(Encoder(TINY), tmp_path / "other.pt")
    with pytest.raises(UserError, match="was made with checkpoint .*other.pt"):
        run(folder / "b.flac", "--checkpoint", tmp_path / "other.pt", "--out", tmp_path / "out", "--store")
    with pytest.raises(UserError, match="was made with window 1.0, not 0.5"):
        run(folder / "b.flac", "--checkpoint", checkpoint, "--out", tmp_path / "out", "--store", "--window", 0.5)
    with pytest.raises(UserError, match="longer than the window"):
        run(folder / "b.flac", "--checkpoint", checkpoint, "--out", tmp_path / "new", "--window", 1, "--hop", 2)
    writer = store.Output(tmp_path / "busy", {"checkpoint": "x"})
    with pytest.raises(UserError, match="another process"):
        store.Output(tmp_path / "busy", {"checkpoint": "x"})
    writer.close()


def test_search_finds_the_windows_that_sound_like_a_clip(folder, checkpoint, tmp_path, capsys, monkeypatch):
    wave = audio.read(folder / "a.wav")
    soundfile.write(tmp_path / "part.wav", wave[16000:32000], 16000)
    run(folder, "--checkpoint", checkpoint, "--out", tmp_path / "out", "--window", 1, "--store")
    capsys.readouterr()
    monkeypatch.setattr(store, "_CHUNK", 3)
    run("--search", tmp_path / "part.wav", "--in", tmp_path / "out", "--top", 4)
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 4 and lines[0].split() == ["1.000", "1.00", "2.00", str(folder / "a.wav")]
    rows = [(file, v) for file, some in rows_of(tmp_path / "out").items() for *_, v in some]
    x = np.array([v for _, v in rows])
    x = (x - x.mean(0)) / x.std(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected = sorted(x @ x[1], reverse=True)[:4]
    assert [float(line.split()[0]) for line in lines] == pytest.approx(expected, abs=2e-3)
    run("--search", folder / "a.wav", "--in", tmp_path / "out")
    assert str(folder / "a.wav") not in capsys.readouterr().out.split("file (times")[1], "itself is no news"
    soundfile.write(tmp_path / "two.wav", np.concatenate([wave[16000:32000], noise(16000, 9, 0.5)]), 16000)
    run("--search", tmp_path / "two.wav", "--in", tmp_path / "out", "--top", 1)
    assert capsys.readouterr().out.splitlines()[2].split()[:2] == ["1.000", "1.00"], "one of its windows is like it"
    with pytest.raises(UserError, match="no embeddings here"):
        run("--search", tmp_path / "part.wav", "--in", tmp_path)


# ------------------------------------------------------------------------------------------ predictions and events

@pytest.fixture
def loud(monkeypatch):
    """A detector of two classes that knows the answer: what is loud, and what is loud and low. Frames of 40 ms."""
    class Loud(torch.nn.Module):
        labels, thresholds, window_seconds, hop_seconds = ["loud", "low"], [0.3, 0.6], 1.0, 0.5
        valid = chance = None
        kind, activation, frame_seconds, minimum_seconds = "frames", "sigmoid", 0.04, 0.0

        def __init__(self):
            super().__init__()
            self.encoder = Encoder(TINY)

        def frame_scores(self, wave, lengths=None, rate=None):
            wave = torch.nn.functional.pad(wave, (0, -wave.shape[1] % 640)).unflatten(1, (-1, 640))
            energy, rough = wave.square().mean(2), wave.diff(dim=2).square().mean(2)
            return torch.stack([(energy > 0.01).float(), ((energy > 0.01) & (rough < 0.2 * energy)).float()], 2)

        def scores(self, wave, lengths=None):
            return self.frame_scores(wave).amax(1)
    monkeypatch.setattr(heads, "load", lambda path, format=None: Loud())
    return Loud


@pytest.fixture
def calls(tmp_path):
    """Three recordings with calls at known times (two rates), and their annotations."""
    events, rng = [], np.random.default_rng(3)
    for name, rate, seconds in (("one", 16000, 7.3), ("two", 48000, 5.05), ("three", 16000, 2.0)):
        wave = 0.001 * rng.standard_normal(round(rate * seconds))
        for start, end, hertz in {"one": ((0.4, 0.8, 500), (2.6, 4.2, 5000), (6.9, 7.3, 500)),
                                  "two": ((1.0, 1.2, 5000), (3.12, 4.8, 500)), "three": ()}[name]:
            a, b = round(start * rate), round(end * rate)
            wave[a:b] += 0.5 * np.sin(2 * np.pi * hertz * np.arange(b - a) / rate)
            events += [Event(f"{name}.wav", start, end, label) for label in (("loud", "low") if hertz < 1000 else
                                                                           ("loud",))]
        soundfile.write(tmp_path / f"{name}.wav", wave, rate)
    write_annotations(tmp_path / "truth.csv", events, "csv")
    return tmp_path


@pytest.mark.parametrize("format, name", [("raven-combined", "events.txt"), ("csv", "events.csv")])
def test_events_lie_where_the_calls_are_and_the_table_read_back_says_so(loud, calls, capsys, format, name):
    run(*(calls / f"{name}.wav" for name in ("one", "two", "three")), "--events", format, "--checkpoint", "x",
        "--against", calls / "truth.csv", "--iou", 0.8, "--out", calls / "out", "--batch-size", 3)
    text = capsys.readouterr().out
    assert "8 events in 3 recordings, 14.35 s" in text
    assert [line.split()[3] for line in text.splitlines()[-3:]] == ["1.000"] * 3, text
    back = read_annotations(calls / "out" / name)
    truth = read_annotations(calls / "truth.csv")
    assert len(back) == len(truth)
    for event in truth:
        near = [b for b in back if b.label == event.label and Path(b.file).name == event.file
                and abs(b.start - event.start) < 0.09 and abs(b.end - event.end) < 0.09]
        assert len(near) == 1 and near[0].score == 1.0 and os.path.isabs(near[0].file), event
    assert all(len(cell) <= 8 for line in (calls / "out" / name).read_text().splitlines()[1:]
               for cell in line.replace("\t", ",").split(",")[-1:]), "scores of six digits, not a float's seventeen"
    if format == "raven":
        header, *rows = [line.split("\t") for line in (calls / "out" / name).read_text().splitlines()]
        column = {title: k for k, title in enumerate(header)}
        two = [r for r in rows if r[column["Begin Path"]].endswith("two.wav")]
        assert all(float(r[column["Begin Time (s)"]]) == pytest.approx(7.3 + float(r[column["File Offset (s)"]]))
                   for r in two) and {r[column["High Freq (Hz)"]] for r in two} == {"24000.0"}


def test_only_annotated_recordings_are_compared(loud, calls, capsys):
    """Events in a recording that nobody has annotated are not called wrong."""
    truth = [event for event in read_annotations(calls / "truth.csv") if event.file == "one.wav"]
    write_annotations(calls / "some.csv", truth, "csv")
    run(calls / "one.wav", calls / "two.wav", "--events", "csv", "--checkpoint", "x", "--against", calls / "some.csv",
        "--out", calls / "out")
    text = capsys.readouterr().out
    assert "in 1 recording," in text and "(1 recording without annotations left out)" in text
    assert text.splitlines()[-1].split()[-3:] == ["5", "0", "0"], text


def test_events_are_compared_with_a_folder_of_tables(loud, calls, capsys):
    """As Raven writes them, one a recording: the name says which, or a path from another machine."""
    tables, events = calls / "tables", read_annotations(calls / "truth.csv")
    tables.mkdir()
    header = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tBegin Path\tSpecies\n"
    for name, path in (("one", ""), ("two", "D:\\field\\two.wav"), ("three", "")):
        rows = (f"{k}\tSpectrogram 1\t1\t{e.start}\t{e.end}\t{path}\t{e.label}\n"
                for k, e in enumerate(events, 1) if e.file == f"{name}.wav")
        (tables / f"{name}.Table.1.selections.txt").write_text(header + "".join(rows))
    (tables / "elsewhere.txt").write_text("1\t2\tloud\n")
    flags = "--events", "raven-combined", "--checkpoint", "x", "--out", calls / "out", "--against"
    run(*(calls / f"{name}.wav" for name in ("one", "two", "three")), *flags, tables)
    text = capsys.readouterr().out
    assert f"against {tables} in 3 recordings," in text and "(1 annotation of other recordings left out)" in text
    assert text.splitlines()[-1].split()[-3:] == ["8", "0", "0"], text
    run(calls / "one.wav", calls / "two.wav", *flags, tables / "two.Table.1.selections.txt")
    assert "in 1 recording," in capsys.readouterr().out
    with pytest.raises(UserError, match="REC.Table.1.selections.txt"):
        run(calls / "one.wav", calls / "two.wav", *flags, tables / "elsewhere.txt")
    with pytest.raises(UserError, match="no table .* below this folder"):
        (calls / "empty").mkdir()
        run(calls / "one.wav", *flags, calls / "empty")


def test_audacity_labels_are_a_file_for_each_recording(loud, calls):
    run(calls / "one.wav", calls / "three.wav", "--events", "audacity", "--checkpoint", "x", "--out", calls / "out")
    assert len(read_annotations(calls / "out" / "one.txt")) == 5
    assert (calls / "out" / "three.txt").read_text() == ""


def test_thresholds_smoothing_merging_and_length_decide_what_is_an_event(loud, calls, capsys):
    def count(*flags):
        run(calls / "one.wav", "--events", "csv", "--checkpoint", "x", "--out", calls / "out", *flags)
        return len(read_annotations(calls / "out" / "events.csv"))
    assert count() == 5 and count("--minimum", 1) == 1 and count("--merge", 3) == 3
    assert count("--smooth", 3, "--threshold", 0.99) == 0 < count("--smooth", 3, "--threshold", 0.01)
    with pytest.raises(UserError, match="none of its annotations"):
        write_annotations(calls / "else.csv", [Event("else.wav", 0, 1, "loud")], "csv")
        count("--against", calls / "else.csv")


@pytest.fixture
def finetuned(tmp_path):
    """A real file of a fine-tuned model, random weights."""
    def make(activation, **kwargs):
        torch.manual_seed(2)
        model = heads.FineTuned(Encoder(TINY), ["owl", "wren", "bat"], activation, **kwargs)
        torch.nn.init.normal_(model.head.linear.weight)
        heads.save(model, tmp_path / "finetuned.pt")
        return tmp_path / "finetuned.pt", model.eval()
    return make


def test_a_recording_s_labels_are_a_table_and_those_of_many_a_csv(finetuned, folder, tmp_path, capsys):
    path, model = finetuned("softmax")
    run(folder / "a.wav", "--predict", "--top-k", 2, "--checkpoint", path.parent, "--out", tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()[-2:]
    wave = torch.from_numpy(audio.read(folder / "a.wav"))[None]
    with torch.no_grad():
        parts = [model.scores(wave[:, k:k + 16000])[0] for k in (0, 16000, 32000)]
    mean = (parts[0] + parts[1] + 0.5 * parts[2]) / 2.5
    best = mean.argsort(descending=True)[:2].tolist()
    assert lines == [f"{model.labels[k]:<30}{mean[k]:.3f}" for k in best]
    run(folder, "--predict", "--checkpoint", path, "--out", tmp_path / "out")
    header, *rows = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    assert header == "file,start,end,rank,label,score" and len(rows) == 5 * 3
    path, model = finetuned("sigmoid")
    parts = tmp_path / "parts.wav"  # that don't sound alike
    soundfile.write(parts, np.concatenate([noise(16000), np.sin(np.arange(16000) / 9), noise(8000, 1, 0.001)]), 16000)
    run(parts, "--predict", "--checkpoint", path, "--window", 1, "--out", tmp_path / "out")
    rows = [row.split(",") for row in (tmp_path / "out" / "predictions.csv").read_text().splitlines()[1:]]
    assert [row[1:4] for row in rows[::3]] == [["0.000000", "1.000000", "1"], ["1.000000", "2.000000", "1"],
                                              ["2.000000", "2.500000", "1"]]
    capsys.readouterr()
    run(parts, "--predict", "--checkpoint", path, "--out", tmp_path / "out")
    highest = {label: max(float(r[5]) for r in rows if r[4] == label) for label in model.labels}
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines()[-3:])
    assert {k: float(v) for k, v in shown.items()} == pytest.approx(highest, abs=6e-4)


def test_frames_of_a_real_detector_and_windows_of_a_classifier_both_give_events(finetuned, folder, tmp_path):
    for kwargs in (dict(kind="frames", window_seconds=1.0, hop_seconds=0.5, thresholds=[0.0] * 3), {}):
        path, _ = finetuned("sigmoid", **kwargs)
        run(folder / "b.flac", folder / "c.WAV", "--events", "raven-combined", "--threshold", 0, "--checkpoint", path,
            "--out", tmp_path / "out")
        events = read_annotations(tmp_path / "out" / "events.txt")
        assert len(events) == 6, "with threshold 0 each class is on from beginning to end"
        assert {(e.start, e.end) for e in events} == {(0, 3.21), (0, 0.06)}


def test_scores_need_a_checkpoint_that_has_a_head(folder, checkpoint):
    with pytest.raises(UserError, match="holds no head"):
        run(folder / "a.wav", "--predict", "--checkpoint", checkpoint)
    with pytest.raises(UserError, match="need --checkpoint"):
        run(folder / "a.wav", "--events", "csv")


# ------------------------------------------------------------------------------------------------------- elsewhere

@pytest.mark.parametrize("preset", ["ssast-laptop-frame", "ast", "dasheng-laptop", "animal2vec-laptop"])
def test_the_hear_api_gives_what_its_description_and_validator_ask_for(preset, monkeypatch):
    # AST's: patches that overlap and do not fill the window
    config = replace(TINY, stride=(10, 10), pad="published", pool="specials") if preset == "ast" else small(preset)
    monkeypatch.setattr(hear, "load_encoder", lambda path: Encoder(config).eval())
    model = hear.load_model(preset)
    assert isinstance(model, torch.nn.Module) and model.sample_rate in hear.RATES
    assert type(model.scene_embedding_size) is type(model.timestamp_embedding_size) is int
    for seconds in (0.5, 1.98, 4.3):
        sound = 2 * torch.rand(2, int(seconds * model.sample_rate)) - 1
        scene = hear.get_scene_embeddings(sound, model)
        assert scene.dtype == torch.float32 and scene.shape == (2, model.scene_embedding_size)
        rows, times = hear.get_timestamp_embeddings(sound, model)
        assert rows.dtype == times.dtype == torch.float32
        assert rows.shape == (*times.shape, model.timestamp_embedding_size) and len(rows) == 2
        gaps = times.diff(dim=1)
        assert (gaps - gaps.mean()).abs().max() < 1, "regular within a millisecond"
        assert 0 <= times.min() and times.max() <= 1000 * seconds and times.max() >= 1000 * seconds - 2 * gaps.mean()


def test_a_timestamp_is_where_the_sound_is_that_its_embedding_hears():
    torch.manual_seed(0)
    for preset in (TINY, replace(TINY, stride=(16, 10), pad="published"),
                   replace(small("dasheng-laptop"), floor_db=0.0)):
        model = hear.Model(Encoder(replace(preset, depth=0)).eval())  # no attention: a column hears its own patch
        step = round(16000 * preset.hop * preset.stride[1])  # samples
        clicks = 33000 + torch.arange(16) * step // 16  # spread evenly over a column
        sound = 0.001 * torch.randn(1, 48000).repeat(16, 1)
        clicked = sound.clone()
        clicked[torch.arange(16)[:, None], clicks[:, None] + torch.arange(10)] += 0.9
        (a, times), (b, _) = (hear.get_timestamp_embeddings(x, model) for x in (sound, clicked))
        change = (a - b).abs().sum(2)
        centre = (change * times).sum(1) / change.sum(1)
        assert abs(float((centre - clicks / 16).mean())) < 4, f"{preset.frontend}: half a hop would be 5 ms"


def test_the_x_ares_encoder_passes_its_checker(checkpoint, monkeypatch):
    assert [name for name in dir(hear) if name.endswith("Encoder")] == ["WrenEncoder"], "X-ARES takes the only one"
    monkeypatch.setenv("WREN_CHECKPOINT", checkpoint)
    encoder = hear.WrenEncoder()
    out = encoder(torch.randn(2, 50000))
    assert out.shape[0] == 2 and out.ndim == 3 and out.shape[2] == encoder.output_dim == 32
    assert encoder.sampling_rate == 16000 and abs(50000 / 16 / encoder.hop_size_in_ms - out.shape[1]) < 1.5
    assert encoder(torch.randn(50000)).shape == (1, *out.shape[1:])


def test_the_settings_say_what_made_the_embeddings(folder, checkpoint, tmp_path):
    run(folder / "a.wav", "--checkpoint", checkpoint, "--out", tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["source"] == checkpoint and settings["window"] == 1.0 and len(settings["checkpoint"]) == 16
    row = next(store.read_index(tmp_path / "out"))
    assert row["checkpoint"] == settings["checkpoint"] and row["rate"] == 16000


def test_raven_gets_a_table_for_each_recording_by_its_own_clock(calls, loud, tmp_path):
    run(calls / "one.wav", calls / "two.wav", calls / "three.wav", "--events", "raven", "--checkpoint", "x", "--out",
        tmp_path / "found")
    assert {p.name for p in (tmp_path / "found").glob("*.txt")} == {
        f"{name}.Table.1.selections.txt" for name in ("one", "two", "three")}
    run(calls / "one.wav", calls / "two.wav", calls / "three.wav", "--events", "csv", "--checkpoint", "x", "--out",
        tmp_path / "all")
    together = read_annotations(tmp_path / "all" / "events.csv")
    apart = [event for name in ("one", "two", "three")
             for event in read_annotations(tmp_path / "found" / f"{name}.Table.1.selections.txt")]
    assert together and [(e.file, e.start, e.end, e.label) for e in together] == [
        (e.file, e.start, e.end, e.label) for e in apart]
    table = (tmp_path / "found" / "two.Table.1.selections.txt").read_text().splitlines()
    begin = table[0].split("\t").index("Begin Time (s)")
    assert [float(line.split("\t")[begin]) for line in table[1:]] == [e.start for e in together if "two" in e.file]


def test_a_detector_barely_above_chance_and_a_flood_of_events_are_said(calls, loud, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loud, "valid", 0.107)
    monkeypatch.setattr(loud, "chance", 0.039)
    run(calls / "one.wav", "--events", "csv", "--checkpoint", "x", "--out", tmp_path, "--threshold", "0")
    out, err = capsys.readouterr()
    assert "validation mAP 0.107 where chance is 0.039: barely above chance" in err
    assert "events flood" in err and "--threshold" in err and "where scores are above 0 (--threshold)" in out


def test_extract_judges_files_as_index_does(tmp_path, checkpoint, capsys):
    """Silence, NaN and one sample are left out and named; a stereo file of which one side is still is not."""
    rng, junk = np.random.default_rng(0), tmp_path / "junk"
    junk.mkdir()
    soundfile.write(junk / "good.wav", noise(16000), 16000)
    soundfile.write(junk / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(junk / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    soundfile.write(junk / "one.wav", noise(1), 16000)
    eight = np.zeros((16000, 8))
    eight[:, 0] = 0.1 * rng.standard_normal(16000)
    soundfile.write(junk / "eight.wav", eight, 16000)
    run(junk, "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert "3 of 5 recordings can't be used" in capsys.readouterr().err
    import data
    data.main(["index", str(junk), "--out", str(tmp_path / "m.csv")])

    def verdicts(path):
        rows = [line.split(",") for line in Path(path).read_text().splitlines()[1:]]
        return {(Path(row[0]).name, row[1], row[-1]) for row in rows}
    assert verdicts(tmp_path / "out" / "unusable.csv") == verdicts(tmp_path / "m.unusable.csv")
    assert len(verdicts(tmp_path / "m.unusable.csv")) == 4


def test_off_a_terminal_extraction_gives_signs_of_life(folder, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("wren.cli.PULSE_SECONDS", 0.0)
    run(folder / "a.wav", "--checkpoint", checkpoint, "--out", tmp_path, "--batch-size", 1)
    assert re.search(r"extraction: 0 recordings in 0.0 min, 33% of a.wav, 0.0 min of sound, \d+ × real time",
                     capsys.readouterr().err)
