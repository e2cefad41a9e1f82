"""The sound in public Debian packages: downloading them without an account or root, and opening what they hold.

A package is an ar archive around a tar archive; games keep their sound there as files, or in a zip file (0 A.D.), a
Qt resource file (GCompris) or a .cat (OpenTTD). Used by real_tasks.py.
"""
import hashlib
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from wren.sound import audio  # noqa: E402

# Short name of a source: its package, the newest release's first. The second table is 2 GB, for --large.
PACKAGES = {
    "tuxpaint": ["tuxpaint-stamps-default"], "gcompris": ["gcompris-qt-data"], "openttd": ["openttd-opensfx"],
    "scratch": ["scratch"], "libreoffice": ["libreoffice-common"], "simutrans": ["simutrans-pak64"],
    "wesnoth": ["wesnoth-1.18-data", "wesnoth-1.16-data", "wesnoth-1.14-data"], "hedgewars": ["hedgewars-data"],
    "lincity": ["lincity-ng-data"], "sonic-pi": ["sonic-pi-samples"]}
LARGE = {"unknown-horizons": ["unknown-horizons"], "widelands": ["widelands-data"], "0ad": ["0ad-data"]}


def fetch(packages, debs):
    """{source: .deb file} from the folder `debs`, downloading what is not there; what can't be had is named."""
    debs.mkdir(parents=True, exist_ok=True)
    found = {}
    for source, names in packages.items():
        for name in names:
            if not any(debs.glob(f"{name}_*.deb")) and shutil.which("apt-get"):
                subprocess.run(["apt-get", "download", name], cwd=debs, capture_output=True)
            if files := sorted(debs.glob(f"{name}_*.deb")):
                found[source] = files[-1]
                break
        else:
            print(f"{' or '.join(names)}: not in this release, or not to be had: left out")
    if not found:
        why = "is apt-get update needed?" if shutil.which("apt-get") else "there is no apt-get"
        print(f"No package could be downloaded ({why}): fetch "
              f"{' '.join(names[-1] for names in packages.values())} from packages.debian.org and give their folder "
              "as --debs", file=sys.stderr)
        sys.exit(2)
    return found


def members(deb):
    """The files in a package: (path, a file object to read once)."""
    with open(deb, "rb") as file:
        if shutil.which("dpkg-deb"):
            stream = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE).stdout
        else:  # a .deb is an ar archive: 8 bytes, then for each member a header of 60 bytes and its body
            stream = file
            file.seek(8)
            while (header := file.read(60)) and not header.startswith(b"data"):
                file.seek(int(header[48:58]) + int(header[48:58]) % 2, 1)
        with tarfile.open(fileobj=stream, mode="r|" if stream is not file else "r|*") as tar:
            yield from ((entry.name, tar.extractfile(entry)) for entry in tar if entry.isfile())


def unpack(deb, folder):
    """The sound of a package, also that in archives of three kinds, into `folder`."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    archives = {".zip": from_zip, ".rcc": from_qt, ".cat": from_openttd}
    for name, file in members(deb):
        suffix = Path(name).suffix.lower()
        if suffix in audio.AUDIO_SUFFIXES:
            keep(part, name, file.read())
        elif suffix in archives:
            with open(part / "archive", "wb") as out:
                shutil.copyfileobj(file, out)
            for inner, sound in archives[suffix](part / "archive"):
                keep(part, f"{Path(name).stem}/{inner}", sound)
            (part / "archive").unlink()
    part.rename(folder)


def keep(folder, name, sound):
    """One file of sound below `folder`."""
    parts = [part for part in Path(name).parts if part not in (".", "..", "/", "usr", "share", "games")]
    folder.joinpath(*parts[:-1]).mkdir(parents=True, exist_ok=True)
    folder.joinpath(*parts).write_bytes(sound)


def from_zip(path):
    """(name, bytes) of the sound in a zip file."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.lower().endswith(audio.AUDIO_SUFFIXES):
                yield name, archive.read(name)


def from_qt(path):
    """The same of a Qt resource file: a tree of nodes, names in UTF-16, and data, perhaps packed by zlib."""
    data = path.read_bytes()
    version, tree, body, names = struct.unpack_from(">4I", data, 4)

    def walk(index, folder):
        at = tree + index * (22 if version > 1 else 14)
        place, flags, first, second = struct.unpack_from(">IHII", data, at)
        length = struct.unpack_from(">H", data, names + place)[0]
        said = data[names + place + 6:names + place + 6 + 2 * length].decode("utf-16-be")
        name = folder + said if index else ""  # the root has none, though it points at the first
        if flags & 2:  # a folder: how many children, and the first one's index
            for child in range(second, second + first):
                yield from walk(child, name + "/" if name else "")
        elif name.lower().endswith(audio.AUDIO_SUFFIXES) and not flags & 4:  # 4: packed by another method
            start = body + second + 4
            sound = data[start:start + struct.unpack_from(">I", data, start - 4)[0]]
            yield name, zlib.decompress(sound[4:]) if flags & 1 else sound

    yield from walk(0, "")


def from_openttd(path):
    """The same of OpenTTD's .cat: a table of offsets, then for each sound its title and a wave file."""
    data = path.read_bytes()
    for k in range((struct.unpack_from("<I", data)[0] & 0x7FFFFFFF) // 8):
        at = struct.unpack_from("<I", data, 8 * k)[0] & 0x7FFFFFFF
        start = data.index(b"RIFF", at)
        title = re.split('"', data[at:start].decode("latin-1"))[1:2] or [str(k)]
        name = re.sub(r"\W+", "_", title[0]).strip("_")
        yield f"{name}.wav", data[start:start + 8 + struct.unpack_from("<I", data, start + 4)[0]]


def sounds(folder):
    """{source: [files]} below `folder`, each recording once, without what is shorter than a tenth of a second."""
    found, seen = defaultdict(list), set()
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in audio.AUDIO_SUFFIXES):
        if path.relative_to(folder).parts[0].endswith(".part"):  # left by a run that was ended
            continue
        digest = hashlib.sha256(path.read_bytes()).digest()
        try:
            frames, rate, _ = audio.info(path)
        except audio.BadAudio:
            continue
        if digest not in seen and frames >= rate / 10:
            found[path.relative_to(folder).parts[0]].append(path)
            seen.add(digest)
    return found


def without_twins(found, group):
    """`found` without those files that repeat a recording of another source: games take sound from the same archives,
    cut it, filter it and pack it anew. Files of which group(path) says the same (None: don't ask) are compared, their
    first 8 s at 8 kHz: a correlation above 0.3 at the best shift makes twins, and the second one is left out.
    """
    kept, out = defaultdict(list), defaultdict(list)
    for source, paths in found.items():
        for path in paths:
            if (label := group(path)) is not None:
                wave = audio.read(path, rate=8000)[:64000].astype(np.float64)
                spectrum = np.fft.rfft((wave - wave.mean()) / max(1e-9, np.linalg.norm(wave - wave.mean())), 1 << 17)
                twin = next((other for other, place, theirs in kept[label] if place != source
                             and np.abs(np.fft.irfft(spectrum * theirs.conj())).max() > 0.3), None)
                if twin:
                    print(f"{path.name} of {source} repeats {twin.name}: left out")
                    continue
                kept[label].append((path, source, spectrum))
            out[source].append(path)
    return out
