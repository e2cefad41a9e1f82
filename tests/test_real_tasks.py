"""examples/real_tasks.py on small made-up packages: nothing is downloaded."""
import csv
import io
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from wren.tasks import load_task

sys.path.append(str(ROOT / "examples"))
import debian_sound  # noqa: E402
import real_tasks  # noqa: E402

PACKAGES = {"one": ["dog", "wolf_00", "cow", "bull", "wind_11", "click"],
            "two": ["Dog1", "cow", "rain_11", "speech"], "three": ["civ_dog_bark", "ox_00", "owl", "waves"]}


def calls(pitch, rate=8000):
    """Two calls of half a second with half a second of silence between."""
    t = np.arange(rate // 2) / rate
    call = np.hanning(len(t)) * np.sin(2 * np.pi * pitch * t)
    return np.concatenate([call, np.zeros(rate // 2), 0.5 * call]).astype(np.float32)


@pytest.fixture
def packages(tmp_path):
    """A folder of sources; each file sounds differently, but one is in three packages, once as a quieter copy."""
    rng = np.random.default_rng(0)
    for number, (source, names) in enumerate(PACKAGES.items()):
        folder = tmp_path / "packages" / source / "sounds"
        folder.mkdir(parents=True)
        for k, name in enumerate(names):
            noise = name.startswith(("wind", "rain", "waves"))
            wave = 0.1 * rng.standard_normal(16000) if noise else calls(400 + 100 * k + 30 * number)
            soundfile.write(folder / f"{name}.wav", wave, 8000)
    quiet = 0.3 * np.concatenate([np.zeros(777), calls(400)]) + 0.01 * rng.standard_normal(12777)
    soundfile.write(tmp_path / "packages/two/sounds/dog3.wav", quiet, 8000)
    (tmp_path / "packages/three/sounds/dog2.wav").write_bytes((tmp_path / "packages/one/sounds/dog.wav").read_bytes())
    return tmp_path / "packages"


@pytest.fixture
def made(packages, tmp_path, capsys):
    real_tasks.main(["--out", str(tmp_path / "out"), "--unpacked", str(packages)])
    return tmp_path / "out", capsys.readouterr().out


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_splits_differ_by_package_and_nothing_leaks(made):
    out, said = made
    sources = {}
    for split in ("train", "valid", "test"):
        for row in rows(out / f"animal-species/{split}.csv"):
            sources.setdefault((row["label"], split), set()).add(row["recording"].split("/")[0])
    for label in ("dog-wolf", "cow"):
        parts = [sources[label, split] for split in ("train", "valid", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts))
    used = rows(out / "sources.csv")
    behind = {row["split"]: row["source"] for row in used if row["label"] == "backdrop"}
    assert len(set(behind.values())) == 3
    held = {row["file"] for row in used if row["split"] != "train"}
    free = [row["path"] for row in rows(out / "pretrain.csv")]
    assert held and not any(path.endswith(file) for path in free for file in held)
    assert all((out / path).exists() for path in free)
    # the same recording in three packages is one
    assert {path.rsplit("/", 1)[1] for path in free} >= {"dog.wav", "click.wav", "speech.wav", "owl.wav"}
    assert not any(path.endswith(("dog2.wav", "dog3.wav")) for path in free) and "repeats dog.wav" in said
    assert "owl: too few recordings or packages" in said and "chance 0.500" in said


def test_wren_reads_the_tasks(made):
    out, _ = made
    species, events = load_task("animal-species", out), load_task("animal-events", out)
    assert species.labels == events.labels == ["cow", "dog-wolf"]
    assert len(events.splits["train"].files) == 40 and len(events.splits["test"].files) == 16
    assert all(0 <= e.start < e.end <= 30 for split in events.splits.values() for e in split.events)
    assert min(len(split.events) for split in events.splits.values()) > 10
    assert {seconds for _, seconds, _ in events.splits["valid"].files} == {30.0}


def test_the_same_packages_give_the_same_bytes(made, packages, tmp_path):
    real_tasks.main(["--out", str(tmp_path / "again"), "--unpacked", str(packages)])
    for path in sorted(made[0].rglob("*.*")):
        if path.name != "pretrain.csv":  # its paths are relative to it
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(made[0])).read_bytes(), path


def test_a_call_stands_at_its_level():
    rng = np.random.default_rng(0)
    backdrop, call = rng.standard_normal(4000).astype(np.float32), calls(500)[:1000]
    for level in (-5, 15):
        mixed = backdrop.copy()
        real_tasks.mix(mixed, call, 700, level)
        added = mixed - backdrop
        assert not added[:700].any() and not added[1700:].any()
        ratio = np.mean(added[700:1700] ** 2) / np.mean(backdrop[700:1700] ** 2)
        assert 10 * np.log10(ratio) == pytest.approx(level, abs=0.1)


def test_calls_are_what_is_loud(tmp_path):
    soundfile.write(tmp_path / "a.wav", calls(500), 8000)
    found, rate = real_tasks.calls(tmp_path / "a.wav")
    assert rate == 8000 and [pytest.approx(0.45, abs=0.06)] * 2 == [len(call) / rate for call in found]


def test_two_packages_leave_validation_a_file_of_the_first():
    split = real_tasks.divide({("a", "x"): 3, ("a", "y"): 2, ("b", "z"): 4})
    assert split == {("a", "x"): "train", ("a", "y"): "valid", ("b", "z"): "test"}
    assert real_tasks.divide({("a", "x"): 3, ("b", "z"): 2}) is None is real_tasks.divide({("a", "x"): 3})


# ------------------------------------------------------------------------------------------------- packages

def wav(pitch):
    out = io.BytesIO()
    soundfile.write(out, calls(pitch), 8000, format="WAV")
    return out.getvalue()


def qt_resource(name, sound):
    """One file in one folder, version 1."""
    names = b"".join(struct.pack(">HI", len(n), 0) + n.encode("utf-16-be") for n in ("in", name))
    tree = (struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHII", 0, 2, 1, 2)
            + struct.pack(">IHHHI", 10, 0, 0, 0, 0))
    body = struct.pack(">I", len(sound)) + sound
    return b"qres" + struct.pack(">4I", 1, 20, 20 + len(tree), 20 + len(tree) + len(body)) + tree + body + names


def openttd_cat(title, sound):
    return struct.pack("<II", 8, len(sound)) + bytes([len(title)]) + title + sound


def package(path, files, plain_tar="gz"):
    """A .deb that holds `files` {name: bytes}."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:" + plain_tar) as out:
        for name, data in files.items():
            entry = tarfile.TarInfo("./usr/share/" + name)
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))
    parts = b"!<arch>\n"
    for name, data in (("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), ("data.tar.gz", tar.getvalue())):
        parts += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    path.write_bytes(parts)


@pytest.mark.parametrize("dpkg", [True, False])
def test_packages_and_their_archives_are_opened(tmp_path, monkeypatch, dpkg):
    if dpkg and not debian_sound.shutil.which("dpkg-deb"):
        pytest.skip("no dpkg-deb here")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as out:
        out.writestr("audio/pig_10.ogg", b"pig")
        out.writestr("art/pig.png", b"picture")
    package(tmp_path / "game_1_all.deb", {
        "game/horse.wav": wav(300), "game/readme.txt": b"no sound", "game/public.zip": zipped.getvalue(),
        "game/farm.rcc": qt_resource("duck.wav", wav(500)),
        "game/sounds.cat": openttd_cat(b'"Tropical: Lion roar". By somebody.\0', wav(700))})
    if not dpkg:
        monkeypatch.setattr(debian_sound.shutil, "which", lambda name: None)
    debian_sound.unpack(debian_sound.fetch({"game": ["newer-game", "game"]}, tmp_path)["game"], tmp_path / "x")
    found = {str(path.relative_to(tmp_path / "x")): path.read_bytes() for path in (tmp_path / "x").rglob("*.*")}
    assert found == {"game/horse.wav": wav(300), "public/audio/pig_10.ogg": b"pig", "farm/in/duck.wav": wav(500),
                     "sounds/Tropical_Lion_roar.wav": wav(700)}


def test_without_apt_get_one_line_says_what_to_fetch(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "examples/real_tasks.py", "--out", tmp_path / "out"],
                          env={"PATH": str(tmp_path), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "tuxpaint-stamps-default" in done.stderr and "--debs" in done.stderr
