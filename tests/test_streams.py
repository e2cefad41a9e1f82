"""Streams beside the sound: where their values lie in time, other rates, gaps, what can be broken, in lists of rows."""
import numpy as np
import pytest
from test_audio import noise
from test_manifest import fails, recordings, table

from wren.sound import corpus
from wren.sound.opening import open_manifest
from wren.sound import manifest
from wren.sound import streams
from wren.sound.audio import BadAudio
from wren.tasks import load_task


def write(path, time, *channels):
    """A stream as CSV or .npy -> its path as text."""
    rows = np.column_stack([time, *channels])
    if path.suffix == ".npy":
        np.save(path, rows)
    else:
        names = ",".join(f"c{k}" for k in range(len(channels)))
        np.savetxt(path, rows, "%.9g", delimiter=",", header=f"time,{names}", comments="")
    return str(path)


def clock(path, seconds=10.0, rate=50.0):
    """A stream whose channels are the time and its negative."""
    time = np.arange(round(seconds * rate)) / rate
    return write(path, time, time, -time)


# ------------------------------------------------------------------------------------------------------- one stream

@pytest.mark.parametrize("name", ["s.csv", "s.npy"])
def test_a_stream_at_its_own_rate_is_read_as_it_is(tmp_path, name):
    values = noise(1000).astype(float).reshape(2, 500)
    path = write(tmp_path / name, np.arange(500) / 50, *values)
    found = streams.read(path, 2.0, 4.0, 50)
    assert found.dtype == np.float32 and found.shape == (2, 200)
    np.testing.assert_allclose(found, values[:, 100:300], rtol=1e-6)


@pytest.mark.parametrize("rate", [7, 20, 50, 64, 400])
def test_value_k_belongs_to_the_time_start_plus_k_over_rate(tmp_path, rate):
    found = streams.read(clock(tmp_path / "s.csv"), 1.237, 3.0, rate)  # a line: its means are its values
    wanted = 1.237 + np.arange(3 * rate) / rate
    np.testing.assert_allclose(found, [wanted, -wanted], atol=1e-6)


def test_what_is_too_fast_for_the_wanted_rate_is_averaged_away(tmp_path):
    time = np.arange(5000) / 500
    path = write(tmp_path / "s.npy", time, np.sin(2 * np.pi * time), np.sin(2 * np.pi * 100.4 * time + 1))
    slow, fast = streams.read(path, 1.0, 8.0, 25)
    at = 1 + np.arange(200) / 25
    np.testing.assert_allclose(slow, np.sin(2 * np.pi * at), atol=0.01)
    assert np.abs(fast).max() < 0.1  # taken at single points it would reach 1


def test_csv_and_npy_agree_and_any_stretch_is_a_part_of_the_whole(tmp_path):
    time = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.03, 600))  # uneven
    paths = [write(tmp_path / name, time, noise(600), noise(600, 1)) for name in ("s.csv", "s.npy")]
    for rate in (10, 90):
        whole = streams.read(paths[1], 0, 12.0, rate)
        np.testing.assert_allclose(streams.read(paths[0], 0, 12.0, rate), whole, atol=1e-6)
        for start in (0, 3, 9):
            part = streams.read(paths[1], start, 2.0, rate)
            np.testing.assert_allclose(part, whole[:, start * rate:(start + 2) * rate], atol=1e-6)


def test_gaps_and_what_lies_outside_are_nan_and_short_gaps_are_bridged(tmp_path):
    time = np.arange(100) / 10
    keep = ~((time > 2.05) & (time < 2.45)) & ~((time > 5.05) & (time < 7.95))  # 4 lacking; 29 lacking
    path = write(tmp_path / "s.csv", time[keep], time[keep])
    found, at = streams.read(path, -1, 13.0, 20)[0], -1 + np.arange(260) / 20
    unknown = (at < -0.101) | (at > 10.001) | ((at > 5.101) & (at < 7.899))
    assert np.array_equal(np.isnan(found), unknown)
    inside = ~unknown & (at >= 0) & (at <= 9.9)
    np.testing.assert_allclose(found[inside], at[inside], atol=1e-6)
    assert streams.read(path, 5.5, 2.0, 20) is None and streams.read(path, 20.0, 2.0, 20) is None


def test_an_empty_field_is_missing_in_its_channel_alone(tmp_path):
    lines = ["time,a,b"] + [f"{k / 10},{k},{'' if 20 <= k < 60 else -k}" for k in range(100)]
    (tmp_path / "s.csv").write_text("\n".join(lines) + "\n")
    a, b = streams.read(str(tmp_path / "s.csv"), 0, 10.0, 10)
    np.testing.assert_allclose(a, np.arange(100), atol=1e-4)
    assert np.array_equal(np.flatnonzero(np.isnan(b)), np.arange(21, 59)) and b[70] == pytest.approx(-70)


@pytest.mark.parametrize("text, complaint", [
    ("x,y\n0,1\n1,2\n", "first column is to be time"), ("time,x\n0,1\n2,2\n1,3\n", "time doesn't rise after sample 2"),
    ("time,x\n0,1\n0,2\n", "time doesn't rise"), ("time,x\n0,1\n1,fast\n", "not readable"), ("", "not readable"),
    ("time,x\n", "at least two rows"), ("time\n0\n1\n", "at least two rows"), ("time,x\n0,1\n1\n", "not readable")])
def test_a_broken_stream_is_bad_audio_that_says_why(tmp_path, text, complaint):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(BadAudio, match=complaint) as caught:
        streams.read(str(tmp_path / "s.csv"), 0, 1, 10)
    assert caught.value.path.endswith("s.csv") and "\n" not in str(caught.value)


def test_broken_npy_files_and_missing_ones_are_bad_audio_too(tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "flat.npy", np.arange(5.0))
    np.save(tmp_path / "back.npy", np.array([[0, 1.0], [1, 2], [np.nan, 3]]))
    for name, complaint in (("text", "not readable"), ("flat", "two rows"), ("back", "rise after sample 2"),
                            ("gone", "no such file")):
        with pytest.raises(BadAudio, match=complaint):
            streams.read(str(tmp_path / f"{name}.npy"), 0, 1, 10)


def test_a_file_that_has_changed_is_read_anew(tmp_path):
    path = clock(tmp_path / "s.csv")
    assert streams.read(path, 1, 1, 10)[0, 0] == pytest.approx(1)
    import os
    old = os.stat(path).st_mtime_ns
    write(tmp_path / "s.csv", np.arange(50), np.full(50, 7.0))
    os.utime(path, ns=(old + 10**9,) * 2)
    assert streams.read(path, 1, 1, 10)[0, 0] == 7


# -------------------------------------------------------------------------------------------------- in lists of rows

@pytest.fixture
def listed(tmp_path):
    """Four rows: two of a recording with two streams, one with one of them, one without any."""
    recordings(tmp_path, [4.0, 2.0, 1.0])
    clock(tmp_path / "acc.csv", 4), clock(tmp_path / "speed.npy", 4, 1), clock(tmp_path / "acc2.csv", 2)
    return table(tmp_path / "m.csv", ["path", "start", "frames", "stream:Accelerometer", "stream:speed"], [
        ["r0.flac", 0, 32000, "acc.csv", "speed.npy"], ["r0.flac", 32000, 32000, "acc.csv", "speed.npy"],
        ["r1.flac", 0, 32000, "acc2.csv", ""], ["r2.flac", 0, 16000, "", ""]])


def named(rows):
    return [(rows.path(i), *(rows.stream(i, name) and rows.stream(i, name).rsplit("/", 1)[-1]
                             for name in ("accelerometer", "speed"))) for i in range(len(rows))]


def test_a_manifest_keeps_its_streams_through_select_join_and_writing(listed, tmp_path):
    rows = open_manifest(listed)
    wanted = [("r0.flac", "acc.csv", "speed.npy")] * 2 + [("r1.flac", "acc2.csv", None), ("r2.flac", None, None)]
    assert named(rows) == wanted and rows.stream(0, "depth") is None
    assert named(rows.select([3, 0])) == [wanted[3], wanted[0]]
    manifest.write_manifest(rows, tmp_path / "again.csv")
    assert named(open_manifest(tmp_path / "again.csv")) == wanted
    plain = manifest.build(["x.flac"], bases=rows.bases)
    assert named(manifest.join(plain, rows)) == [("x.flac", None, None), *wanted]
    assert named(manifest.join(rows, plain)) == [*wanted, ("x.flac", None, None)]
    assert rows.fingerprint() == manifest.build(["r0.flac", "r0.flac", "r1.flac", "r2.flac"],
                                                start=[0, 32000, 0, 0]).fingerprint()
    assert plain.streams == [] and "stream" not in (tmp_path / "again.csv").read_text().splitlines()[1]


def test_a_task_reads_the_streams_of_clips_and_of_the_windows_of_recordings(listed, tmp_path):
    lists = {"clips": (["path", "label", "stream:accelerometer"], [["../r0.flac", "a", "../acc.csv"],
                                                                   ["../r1.flac", "b", ""]]),
             "calls": (["file", "start", "end", "label", "stream:accelerometer"], [
                 ["../r0.flac", 0.5, 1.0, "a", "../acc.csv"], ["../r0.flac", 1.5, 2.0, "b", "../acc.csv"],
                 ["../r1.flac", 0.5, 1.0, "a", ""]])}
    for name, (header, rows) in lists.items():
        for split in ("train", "valid", "test"):
            table(tmp_path / name / f"{split}.csv", header, rows)
    clips, calls = (load_task(tmp_path / name).splits["test"] for name in lists)

    def heard(split, i):
        return split.take(i, lambda recorded: recorded, [("accelerometer", 2, 25)])["streams"]["accelerometer"]
    found = heard(clips, 0)
    assert found.shape == (2, 100)
    np.testing.assert_allclose(found[0], np.arange(100) / 25, atol=0.006)  # held, not continued, after the last sample
    assert heard(clips, 1).shape == (2, 50)
    assert np.isnan(heard(clips, 1)).all()
    assert len(calls) == 4 and calls.rows.start.tolist() == [0, 16000, 32000, 0]  # windows of 2 s each second
    found = [heard(calls, i) for i in range(4)]
    assert [part[0, 5] for part in found[:3]] == pytest.approx([0.2, 1.2, 2.2]) and np.isnan(found[3]).all()
    (tmp_path / "acc.csv").unlink()
    assert "names the stream" in fails(load_task, tmp_path / "clips")


def test_check_finds_broken_streams_and_pack_says_that_it_leaves_streams_out(listed, tmp_path, capsys):
    (tmp_path / "acc2.csv").write_text("time,x\n1,0\n0,0\n")
    text = corpus.check(listed, None, [], 1, 10.0, None, tmp_path / "clean.csv")
    assert "1 stream" in text and "time doesn't rise" in (tmp_path / "m.check.csv").read_text()
    assert [row[1] for row in named(open_manifest(tmp_path / "clean.csv"))] == ["acc.csv", "acc.csv", None]
    corpus.pack(tmp_path / "clean.csv", tmp_path / "shards", None, None, "wav", 10, 1, 10.0)
    assert "accelerometer, speed" in capsys.readouterr().err
