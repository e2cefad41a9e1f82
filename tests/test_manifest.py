"""Manifests in every format and in every state of disrepair, subsets, what is held out, two million rows."""
import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT
from test_audio import cropper, noise

from wren.sound import corpus
from wren.sound import loading
from wren.sound.opening import open_manifest
from wren.sound.subsets import holdout, subset
from wren.sound import manifest
from wren.sound import scan, subsets
from wren.cli import UserError


def recordings(folder, lengths, rate=16000, name="r{}.flac"):
    """Noise files of the given lengths (s); returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name.format(k) for k in range(len(lengths))]
    for k, (file, seconds) in enumerate(zip(names, lengths)):
        soundfile.write(folder / file, noise(round(seconds * rate), k), rate)
    return names


def table(path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def fails(function, *args, **kwargs):
    """The one line that a user would see."""
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- manifests

def test_a_folder_is_searched_deeply_in_either_case_and_long_recordings_are_cut(tmp_path):
    recordings(tmp_path / "a" / "b", [2.5, 0.6], name="x{}.WAV")
    recordings(tmp_path, [1.0], name="y{}.flac")
    (tmp_path / "notes.txt").write_text("no sound")
    (tmp_path / "._x.wav").write_bytes(b"a Mac's shadow file")
    rows = open_manifest(tmp_path, segment=1.0)
    found = {(rows.path(i), int(rows.start[i]), int(rows.frames[i])) for i in range(len(rows))}
    assert found == {("a/b/x0.WAV", 0, 16000), ("a/b/x0.WAV", 16000, 16000), ("a/b/x0.WAV", 32000, 8000),
                     ("a/b/x1.WAV", 0, 9600), ("y0.flac", 0, 16000)}
    assert len(rows.read(0)) == rows.frames[0]


def test_a_tail_is_kept_if_it_is_long_enough():
    assert scan.segments(25_000, 1000, 10) == [(0, 10_000), (10_000, 10_000), (20_000, 5000)]
    assert scan.segments(20_900, 1000, 10) == [(0, 10_000), (10_000, 10_000)]
    assert scan.segments(300, 1000, 10) == [(0, 300)] and scan.segments(99_000, 1000, 0) == [(0, 99_000)]


def test_every_manifest_format_names_the_same_rows(tmp_path):
    recordings(tmp_path / "audio", [1.0, 2.0])
    names, frames = ["audio/r0.flac", "audio/r1.flac"], [16000, 32000]
    made = {
        "a.csv": "path,frames\n" + "".join(f"{n},{f}\n" for n, f in zip(names, frames)),
        "a.tsv": "frames\tpath\n" + "".join(f"{f}\t{n}\n" for n, f in zip(names, frames)),
        "fair.tsv": f"{tmp_path}/audio\n" + "".join(f"r{k}.flac\t{f}\n" for k, f in enumerate(frames)),
        "ssast.json": json.dumps({"data": [{"wav": str(tmp_path / n), "labels": f"/m/{n}"} for n in names]}),
        "float.csv": "\ufeffpath,frames,start\n" + "".join(f'"{n}",{f}.0,\n' for n, f in zip(names, frames)),
    }
    for name, text in made.items():
        (tmp_path / name).write_text(text)
        rows = open_manifest(tmp_path / name)
        assert [len(rows.read(i)) for i in range(2)] == frames, name
    assert open_manifest(tmp_path / "ssast.json").text("label") == ["/m/audio/r0.flac", "/m/audio/r1.flac"]


def test_relative_paths_are_looked_up_beside_the_manifest_and_then_in_the_data_folder(tmp_path):
    recordings(tmp_path / "disk", [1.0])
    path = table(tmp_path / "lists" / "m.csv", ["path"], [["r0.flac"]])
    rows = open_manifest(path, root=tmp_path / "disk")
    assert rows.locate(0) == str(tmp_path / "disk" / "r0.flac") and len(rows.read(0)) == 16000
    recordings(tmp_path / "lists", [0.5])
    assert len(rows.read(0)) == 8000


@pytest.mark.parametrize("text, complaint", [
    ("", "is empty"), ("path\n", "no rows"), ("file,label\na.wav,x\n", "names no column path"),
    ("path,start\na.wav,1,2\n", "3 fields, the header has 2"),
    ("path,frames\na.wav,many\n", "'many' is not a whole number"),
    ("path,start\na.wav,-5\n", "-5 is below 0"), ("path,domain\na.wav,fish\n", "neither bio nor gen"),
    ("path,start\n,5\n", "the path is empty"),
])
def test_a_bad_manifest_is_refused_with_the_place_in_it(tmp_path, text, complaint):
    (tmp_path / "m.csv").write_text(text)
    message = fails(open_manifest, tmp_path / "m.csv")
    assert complaint in message and "m.csv" in message


def test_manifests_that_are_no_text_and_folders_without_sound_are_refused(tmp_path):
    (tmp_path / "m.csv").write_bytes("path\na.wav\n".encode("utf-16"))
    assert "UTF-8" in fails(open_manifest, tmp_path / "m.csv")
    (tmp_path / "m.json").write_text('{"rows": []}')
    assert "SSAST" in fails(open_manifest, tmp_path / "m.json")
    (tmp_path / "empty").mkdir()
    assert "no audio files (.wav .flac" in fails(open_manifest, tmp_path / "empty")
    assert "no such folder or manifest" in fails(open_manifest, tmp_path / "nowhere")


def test_names_that_are_not_utf8_are_indexed_and_read(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    soundfile.write(raw, noise(16000), 16000)
    corpus.index([tmp_path], tmp_path / "m.csv", 10.0, 0.05, None, None)
    rows = open_manifest(tmp_path / "m.csv")
    assert rows.raw_path(0) == b"caf\xe9.wav" and len(rows.read(0)) == 16000
    assert b"caf\xe9.wav" in (tmp_path / "m.csv").read_bytes()
    os.truncate(raw, 50)
    both = manifest.join(rows, twin(tmp_path))
    batch = next(iter(loading.Loader(both, cropper(1), 2)))
    assert "caf\\xe9.wav" in json.dumps(batch["bad"]).replace("\\\\", "\\")


def twin(folder):
    recordings(folder, [1.0], name="good{}.flac")
    return manifest.build(["good0.flac"], frames=[16000], bases=(str(folder),))


# --------------------------------------------------------------------------------------------------------- subsets

def large(n, seed=0, general=0.3):
    """A manifest of n made-up rows."""
    rng = np.random.default_rng(seed)
    return manifest.build([f"site{k % 97}/rec{k // 3}.wav" for k in range(n)],
                          start=[16000 * (k % 3) for k in range(n)],
                          domain=[("", "bio", "gen")[d] for d in rng.choice(3, n, p=[0.2, 0.8 - general, general])])


def names(rows):
    return [(rows.path(i), int(rows.start[i])) for i in range(len(rows))]


def test_subsets_are_nested_and_do_not_depend_on_the_order_of_the_rows(monkeypatch):
    monkeypatch.setattr(subsets, "BIO_DRAWS", {"0.12M": 120, "0.46M": 460, "0.80M": 800, "1.23M": 1230})
    rows = large(2400)
    shuffled = rows.select(np.random.default_rng(1).permutation(len(rows)))
    draws = {spec: subset(rows, spec) for spec in subsets.BIO_DRAWS}
    for spec, count in subsets.BIO_DRAWS.items():
        assert len(draws[spec]) == count and (draws[spec].domain != manifest.GEN).all()
        assert names(subset(shuffled, spec)) == names(draws[spec])
        assert names(draws["1.23M"])[:count] == names(draws[spec])
        assert subset(shuffled, spec).fingerprint() == draws[spec].fingerprint()
    assert len({rows.fingerprint() for rows in draws.values()}) == 4
    assert subset(shuffled).fingerprint() == subset(rows).fingerprint() != rows.fingerprint()


def test_the_general_domain_is_taken_whole_with_a_warning_and_refused_below_nine_tenths(monkeypatch, capsys):
    rows = large(2000)
    general = int((rows.domain == manifest.GEN).sum())
    monkeypatch.setattr(subsets, "GENERAL", {"2.23M": general + 20})
    assert len(subset(rows, "2.23M")) == general and f"holds {general} clips" in capsys.readouterr().err
    monkeypatch.setattr(subsets, "GENERAL", {"2.23M": 2 * general})
    assert f"holds {general} of domain gen" in fails(subset, rows, "2.23M")
    monkeypatch.setattr(subsets, "GENERAL", {"2.23M": 100})
    assert len(subset(rows, "2.23M")) == 100


def test_counts_domains_and_mistakes_in_a_subset():
    rows = large(2000)
    assert len(subset(rows, "400")) == 400 and len(subset(rows, "1.5k", "any")) == 1500
    assert (subset(rows, "300", "gen").domain == manifest.GEN).all()
    assert (subset(rows, "all", "bio").domain != manifest.GEN).all()
    assert "holds 2000" in fails(subset, rows, "3k")
    for spec in ("0", "1.5", "many", "-3"):
        assert "give one of" in fails(subset, rows, spec)
    assert "leave --domain out" in fails(subset, rows, "0.12M", "gen")


def test_the_hash_of_a_row_is_the_chain_that_it_is_said_to_be():
    rows = manifest.build(["a", "exactly8", "a longer path/with.dots.wav"], start=[0, 5, 7])
    for i in range(3):
        raw, h = rows.raw_path(i), manifest.mix(0)
        for k in range(0, len(raw), 8):
            h = manifest.mix(h, np.uint64(int.from_bytes(raw[k:k + 8], "little")), min(8, len(raw) - k))
        assert rows.keys()[i] == manifest.mix(h, rows.start[i])[0]
    assert int(manifest.mix(1, 2, 3)[0]) == 0xd0734750fde362b3  # on any machine, for ever: subsets depend on it


def test_whole_recordings_are_held_out():
    rows = large(3000)
    train, valid = holdout(rows, 150)
    assert abs(len(valid) - 150) <= 2 and len(train) + len(valid) == 3000
    recording = {p for p, _ in names(train)}
    assert not recording & {p for p, _ in names(valid)}
    again = holdout(rows.select(np.random.default_rng(0).permutation(3000)), 150)[1]
    assert set(names(again)) == set(names(valid))
    assert len(holdout(rows, 0)[1]) == 0


def test_few_long_recordings_give_up_some_rows_of_one_and_a_single_recording_gives_none(capsys):
    rows = manifest.build(["one.wav"] * 50 + ["two.wav"] * 30 + ["three.wav"] * 40, start=list(range(120)))
    train, valid = holdout(rows, 5)
    assert (len(train), len(valid)) == (90, 5) and {p for p, _ in names(valid)} == {"two.wav"}
    train, valid = holdout(rows.select(slice(0, 50)), 5)
    assert (len(train), len(valid)) == (50, 0) and "one recording" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- two million rows (see below)

SCRIPT = """
import multiprocessing, os, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from wren.sound import loading
from wren.sound.opening import open_manifest
from wren.sound.subsets import holdout, subset

def pss(pid):
    return next(int(line.split()[1]) for line in open(f"/proc/{pid}/smaps_rollup") if line.startswith("Pss:")) / 1e3

rows = open_manifest(sys.argv[1])
chosen, small = subset(rows, "1.23M"), subset(rows, "0.12M")
nested = (chosen.keys()[:len(small)] == small.keys()).all()
crop = loading.Cropper(loading.Sampling(16000), 1)
for workers in (2, 4):
    batches = iter(loading.Loader(chosen, crop, 8, workers=workers))
    next(batches), next(batches)
    children = [child.pid for child in multiprocessing.active_children()]
    print(*(round(pss(pid)) for pid in [os.getpid(), *children]), flush=True)
    del batches
shuffled = rows.select(np.random.default_rng(0).permutation(len(rows)))
same = subset(shuffled, "1.23M").fingerprint() == chosen.fingerprint()
print(len(rows), len(chosen), int(nested), int(same))
"""


def write_large(path, n, order):
    """A manifest of n rows: eight recordings and every start in them, in the order of `order`."""
    line = np.frombuffer(b"a-long-campaign/station-17/2024-05-17/r0.flac,000000,16000,16000,bio\n", np.uint8)
    text = np.tile(line, (n, 1))
    text[:, 39] = 48 + order % 8
    for digit in range(6):
        text[:, 51 - digit] = 48 + (order // 8 // 10 ** digit) % 10
    text[order % 50 == 7, 65:68] = np.frombuffer(b"gen", np.uint8)
    with open(path, "wb") as file:
        file.write(b"path,start,frames,sample_rate,domain\n")
        file.write(text.tobytes())


def test_a_manifest_of_2_230_000_rows_is_shared_by_the_workers_and_its_draws_are_stable(tmp_path):
    # a process of its own, so that memory is that of a training run; times are in bench.py
    recordings(tmp_path / "a-long-campaign" / "station-17" / "2024-05-17", [18.5] * 8)
    n = 2_230_000
    write_large(tmp_path / "m.csv", n, np.arange(n))
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "m.csv"), str(ROOT)],
                         capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    two, four, counts = (list(map(int, line.split())) for line in run.stdout.splitlines())
    assert counts == [n, 1_230_000, 1, 1]
    assert len(two) == 3 and len(four) == 5
    assert sum(two) < 1500 and sum(four) < sum(two) + 2 * 150, (two, four)  # MB
