"""Tar shards: many clips in a file, read by stored offset, so that any order, subset and resume stay exact.

A shard is a standard tar (`tar tf` lists it, webdataset streams it): for each clip NNNNNNNNN.flac or .wav (16 bits,
mono) and NNNNNNNNN.json, the row of the manifest it came from: relative path, start, domain, source, label. Beside it
lies SHARD.tar.index.npz with the rows, byte offsets and checksums; it is made anew if it is missing or the tar has
changed. Tars made by others (KEY.flac|wav|mp3|ogg … and anything else) are indexed the same way on first use.
"""
import io
import json
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from wren.cli import UserError, replacing, write_text
from wren.sound import audio
from wren.sound.entry import checksum
from wren.sound.manifest import ENTRY, NUMBERS, build, join

VERSION = 1  # of index and JSON
TEXTS = ("domain", "source", "label")


# --------------------------------------------------------------------------------------------------------- reading

def open_shards(folder):
    """All rows of a folder of shards as a Manifest."""
    tars = sorted(str(p) for p in Path(folder).glob("*.tar"))
    rows = replace(join(*map(_indexed, tars)), bases=(str(folder),), origin=str(folder))
    if not len(rows):
        raise UserError(f"the tar files in {folder} hold no audio ({' '.join(audio.AUDIO_SUFFIXES[:4])} …)")
    plan = Path(folder) / "pack.json"
    if plan.exists() and (missing := json.loads(plan.read_text())["shards"] - len(tars)) > 0:
        raise UserError(f"{folder} lacks {missing} of its shards: run the same python data.py pack again to complete "
                        "it")
    return rows


def _indexed(tar):
    """The rows of one tar, from its index, which is made if it is missing, damaged or of another tar."""
    try:
        with np.load(f"{tar}.index.npz") as file:
            if int(file["stamp"]) != _stamp(tar) or int(file["version"]) != VERSION:
                raise ValueError("of another tar")
            numbers, entry = file["numbers"], file["entry"]
            texts = {name: file[name].tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
                     for name in ("path", *TEXTS)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        texts, numbers, entry = columns = _columns(read_tar(tar))
        with suppress(OSError):  # a folder that can't be written to: the tar is read again each time
            write_index(tar, *columns)
    return build(texts.pop("path"), *numbers, entry=entry, shard=[tar] * len(entry),
                 **{name: column for name, column in texts.items() if any(column)})


def _stamp(tar):
    """Tells a tar that has changed from a copy: a hash of its size and its last bytes."""
    size = os.path.getsize(tar)
    with open(tar, "rb") as file:
        file.seek(max(0, size - (1 << 16)))
        return checksum(file.read() + size.to_bytes(8, "little"))


def write_index(tar, texts, numbers, entry):
    """Save the rows of a tar beside it, as `_columns` gives them, whole or not at all. Texts end with a zero byte."""
    lines = {name: np.frombuffer("".join(f"{text}\0" for text in column).encode("utf-8", "surrogateescape"), np.uint8)
             for name, column in texts.items()}
    with replacing(f"{tar}.index.npz", "wb") as file:
        np.savez(file, stamp=np.uint64(_stamp(tar)), version=VERSION, numbers=numbers, entry=entry, **lines)


def _columns(rows):
    """Rows (dicts) of what a tar holds -> texts {name: list of str}, numbers int64 [3, n], entry ENTRY [n]."""
    texts = {name: [row.get(name, "") for row in rows] for name in ("path", *TEXTS)}
    numbers = np.array([[row.get(name, 0) for row in rows] for name in NUMBERS], np.int64)
    return texts, numbers, np.array([tuple(row[name] for name in ENTRY.names) for row in rows], ENTRY)


def read_tar(tar):
    """Read a whole tar, ours or another's -> its rows (dicts). What doesn't decode is left out."""
    members, about, rows = [], {}, []
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                if not member.isreg():
                    continue
                folder, _, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")  # as webdataset splits names
                key = f"{folder}/{key}"
                if suffix.lower() == "json":
                    about[key] = _about(file.extractfile(member).read())
                elif f".{suffix.lower().rpartition('.')[2]}" in audio.AUDIO_SUFFIXES:
                    members.append((key, member.name, member.offset_data, member.size))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{tar} is not a whole, uncompressed tar file ({error}): pack or copy it again") from None
    with open(tar, "rb") as file:
        for key, name, offset, size in members:
            file.seek(offset)
            data = file.read(size)
            row = about.get(key) or {"path": f"{Path(tar).name}/{name}"}
            try:
                with audio.Sound(io.BytesIO(data), f"{tar}/{name}") as sound:
                    row |= {"frames": sound.count(), "sample_rate": sound.rate}
            except audio.BadAudio:
                continue
            rows.append(row | {"offset": offset, "size": size, "checksum": checksum(data)})
    return rows


def _about(data):
    """The manifest row in a JSON entry of ours; None for another's."""
    try:
        row = json.loads(data)
        if row.get("wren") != VERSION:
            return None
        return {name: str(row.get(name, "")) for name in ("path", *TEXTS)} | {"start": int(row.get("start", 0))}
    except (ValueError, AttributeError, TypeError):
        return None


# --------------------------------------------------------------------------------------------------------- packing

def pack(manifest, folder, rate=None, format="flac", clips_per_shard=2048, jobs=1):
    """Write the rows of a manifest as shards; what an earlier, killed call finished stays. Returns a summary dict.

    rate: Hz (None: as recorded); format: "flac" or "wav"; jobs: threads.
    """
    folder, count = Path(folder), -(-len(manifest) // clips_per_shard)
    _start(folder, {"version": VERSION, "rows": manifest.fingerprint(), "rate": rate, "format": format,
                    "shards": count, "clips_per_shard": clips_per_shard})
    names = [folder / f"shard-{k:06d}.tar" for k in range(count)]
    todo = [k for k, name in enumerate(names) if not Path(f"{name}.report.json").exists()]  # which is written last
    for rest in folder.glob("*.tmp"):
        rest.unlink()

    def write(k):
        rows = range(k * clips_per_shard, min(len(manifest), (k + 1) * clips_per_shard))
        write_shard(manifest, names[k], rows, rate, format)
    with ThreadPoolExecutor(jobs) as pool:  # decoding, resampling and encoding leave the interpreter free
        list(tqdm(pool.map(write, todo), "shards", len(todo), leave=False, disable=None))
    reports = [json.loads(Path(f"{name}.report.json").read_text()) for name in names]
    return {"shards": count, "new": len(todo), "clips": sum(r["clips"] for r in reports),
            "bytes": sum(os.path.getsize(name) for name in names), "scaled": sum(r["scaled"] for r in reports),
            "skipped": [row for r in reports for row in r["skipped"]]}


def _start(folder, plan):
    """Make the folder, or check that it holds the beginning of the same pack."""
    path = folder / "pack.json"
    if path.exists():
        old = json.loads(path.read_text())
        if differing := [key for key in plan if old.get(key) != plan[key]]:
            key = differing[0]
            raise UserError(f"{folder} holds another pack ({key} {old.get(key)}, now {plan[key]}): choose another "
                            "folder, or remove it")
        return
    if folder.exists() and any(folder.glob("*.tar")):
        raise UserError(f"{folder} already holds tar files that python data.py pack didn't write: choose another "
                        "folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(plan, indent=1))


def write_shard(manifest, path, which, rate, format):
    """One shard: tar, then index, then report, each whole or not at all."""
    rows, report = [], {"clips": 0, "scaled": 0, "skipped": []}
    with replacing(path, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i in which:
            try:
                data, frames, own_rate, scaled = encode(manifest, i, rate, format)
            except audio.BadAudio as error:
                report["skipped"].append({"path": audio.printable(manifest.path(i)), "start": int(manifest.start[i]),
                                          "reason": error.reason})
                continue
            row = {"path": manifest.path(i), "start": int(manifest.start[i])}
            for name in TEXTS:
                codes, texts = manifest.texts.get(name, ([0] * len(manifest), [""]))
                row[name] = texts[codes[i]]
            offset = _add(tar, f"{i:09d}.{format}", data)
            _add(tar, f"{i:09d}.json", json.dumps({"wren": VERSION} | row).encode())
            rows.append(row | {"frames": frames, "sample_rate": own_rate, "offset": offset, "size": len(data),
                               "checksum": checksum(data)})
            report["clips"] += 1
            report["scaled"] += scaled
        tar.close()
        file.flush()
        os.fsync(file.fileno())
    write_index(path, *_columns(rows))
    write_text(f"{path}.report.json", json.dumps(report))


def encode(manifest, i, rate, format):
    """Row i -> (bytes of a 16-bit mono file, frames, Hz, whether it had to be scaled to fit into 16 bits)."""
    import soundfile
    with manifest.open(i) as clip:
        wave = audio.resample(clip.read(), clip.rate, rate or clip.rate)
        own_rate = rate or clip.rate
    peak = float(np.abs(wave).max())
    scaled = peak > 1.0  # float files, or resampling beside full scale; the largest code is 32767 / 32768
    samples = np.rint(wave * (32767 / peak if scaled else 32768)).clip(-32768, 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, own_rate, format=format.upper(), subtype="PCM_16")
    return file.getvalue(), len(samples), own_rate, scaled


def _add(tar, name, data):
    """Append an entry -> the offset of its data."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE  # one header block: the names are short
    tar.addfile(info, io.BytesIO(data))
    return offset
