"""Tar shards: many clips in a file, read by stored offset, so that any order, subset and resume stay exact.

A shard is a standard tar (`tar tf` lists it, webdataset streams it): for each clip NNNNNNNNN.flac or .wav (16 bits,
mono) and NNNNNNNNN.json, the row of the manifest it came from: relative path, start, domain, source, label. Beside it
lies SHARD.tar.index.npz with byte offsets and checksums; it is made anew if it is missing or the tar has
changed. Tars made by others (KEY.flac|wav|mp3|ogg … and anything else) are indexed the same way on first use.
"""
import hashlib
import io
import json
import os
import sys
import tarfile
import threading
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wren.sound import audio
from wren.cli import UserError

VERSION = 1  # of index and JSON
_WAV_HEADER = 44  # bytes before the samples of the WAV files that we write
_MAX_OPEN = 128  # shards held open by a process
_open, _lock = OrderedDict(), threading.Lock()
CODED = ("domain", "source", "label")  # texts of which there are few
TEXTS = ("path", *CODED)
NUMBERS = {"start": np.int64, "frames": np.int64, "sample_rate": np.int32, "offset": np.int64, "size": np.int64,
           "checksum": np.uint64, "pcm": np.uint8}
ARRAYS = ("path", "path_size", *NUMBERS, *CODED, *(f"{name}_names" for name in CODED))  # of an index


def checksum(data):
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


# --------------------------------------------------------------------------------------------------------- reading

@dataclass
class Entries:
    """Where the rows of a manifest lie in shards: arrays [n] beside the manifest's."""
    tars: list  # paths
    tar: np.ndarray  # int32, index into tars
    offset: np.ndarray  # int64, bytes
    size: np.ndarray  # int64, bytes
    checksum: np.ndarray  # uint64
    pcm: np.ndarray  # uint8, 1: WAV of ours, samples begin at byte 44
    rate: np.ndarray  # int32 Hz

    def select(self, rows):
        names = ("tar", "offset", "size", "checksum", "pcm", "rate")
        return replace(self, **{name: getattr(self, name)[rows] for name in names})

    def bytes(self, i, start=0, size=None):
        """Entry i, or part of it, as bytes."""
        size = int(self.size[i]) - start if size is None else size
        path = self.tars[self.tar[i]]
        data = _pread(path, size, int(self.offset[i]) + start)
        if len(data) < size:
            raise audio.BadAudio("the shard ends before this entry: copied incompletely?", path)
        return data

    def open(self, i):
        """Entry i as an open sound with rate, frames, count, read and close."""
        name = f"{self.tars[self.tar[i]]} at byte {self.offset[i]}"
        if self.pcm[i]:
            return _Pcm(self, i, name)
        return audio.Sound(io.BytesIO(self.bytes(i)), name)

    def verify(self, i):
        """Raise BadAudio unless entry i has the bytes that were packed."""
        if checksum(self.bytes(i)) != int(self.checksum[i]):
            raise audio.BadAudio("checksum differs from the index: damaged shard", self.tars[self.tar[i]])


class _Pcm:
    """16-bit samples in a shard, read without a decoder: only the bytes of the crop."""

    def __init__(self, entries, i, name):
        self.entries, self.i, self.name, self.rate = entries, i, name, int(entries.rate[i])
        self.frames = (int(entries.size[i]) - _WAV_HEADER) // 2

    def count(self):
        return self.frames

    def read(self, start=0, frames=-1):
        frames = self.frames - start if frames < 0 else frames
        if frames <= 0 or start + frames > self.frames:
            raise audio.BadAudio(f"{frames} frames from {start} wanted, the entry has {self.frames}", self.name)
        data = self.entries.bytes(self.i, _WAV_HEADER + 2 * start, 2 * frames)
        return np.frombuffer(data, "<i2").astype(np.float32) * np.float32(1 / 32768)

    def blocks(self, start=0, frames=-1):
        yield self.read(start, frames)[:, None]

    def close(self):
        pass


def _pread(path, size, offset):
    """Bytes at an offset; shards stay open, so that a read costs no look-up."""
    with _lock:
        handle = _open.pop(path, None)
        if handle is None:
            try:
                handle = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise audio.BadAudio(f"shard can't be opened ({error.strerror})", path) from None
        _open[path] = handle  # last in line
        while len(_open) > _MAX_OPEN:
            os.close(_open.popitem(last=False)[1])
        return os.pread(handle, size, offset)


def rows(folder):
    """All rows of a folder of shards: the fields of a Manifest that begin with its paths, and `entries`."""
    tars = sorted(str(p) for p in Path(folder).glob("*.tar"))
    parts = [_index(tar) for tar in tars]
    count = [len(part["size"]) for part in parts]
    if not sum(count):
        raise UserError(f"the tar files in {folder} hold no audio ({' '.join(audio.AUDIO_SUFFIXES[:4])} …)")
    plan = Path(folder) / "pack.json"
    if plan.exists() and (missing := json.loads(plan.read_text())["shards"] - len(tars)) > 0:
        raise UserError(f"{folder} lacks {missing} of its shards: run the same python data.py pack again to complete "
                        "it")
    column = {name: np.concatenate([part[name] for part in parts]) for name in ("path", "path_size", *NUMBERS)}
    codes, names = zip(*(_joined(parts, name) for name in CODED))
    which = np.repeat(np.arange(len(tars), dtype=np.int32), count)
    entries = Entries(tars, which, column["offset"], column["size"], column["checksum"], column["pcm"],
                      column["sample_rate"])
    domain = np.array([("", "bio", "gen").index(name) for name in names[0]], np.uint8)[codes[0]]
    labelled = any(names[2])
    return {"blob": column["path"], "size": column["path_size"], "start": column["start"], "frames": column["frames"],
            "sample_rate": column["sample_rate"], "domain": domain, "source": codes[1], "sources": names[1],
            "label": codes[2] if labelled else None, "labels": names[2] if labelled else [], "entries": entries}


def _joined(parts, name):
    """Each shard's codes and names of one column -> codes for all shards together and their names."""
    table, codes = {}, []
    for part in parts:
        own = [table.setdefault(text, len(table)) for text in _texts(part[f"{name}_names"])]
        codes.append(np.array(own, np.int32)[part[name]])
    return np.concatenate(codes), list(table)


# ---------------------------------------------------------------------------------------------------------- index

def _index(tar):
    """The index of one tar, read or made: arrays as `_arrays` gives them."""
    try:
        with np.load(f"{tar}.index.npz") as file:
            if int(file["stamp"]) == _stamp(tar) and int(file["version"]) == VERSION:
                return {name: file[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # missing or damaged
        pass
    index = make_index(tar)
    try:
        return write_index(tar, index)
    except OSError:  # a folder that can't be written to: indexed again each time
        return _arrays(index)


def _stamp(tar):
    """Tells a tar that has changed from a copy: a hash of its size and its last bytes."""
    size = os.path.getsize(tar)
    with open(tar, "rb") as file:
        file.seek(max(0, size - (1 << 16)))
        return checksum(file.read() + size.to_bytes(8, "little"))


def write_index(tar, index):
    """Save an index (lists) beside its tar, whole or not at all -> its arrays."""
    arrays = _arrays(index)
    temporary = f"{tar}.index.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        np.savez(file, stamp=np.uint64(_stamp(tar)), version=VERSION, **arrays)
    os.replace(temporary, f"{tar}.index.npz")
    return arrays


def _arrays(index):
    """Lists -> arrays: numbers; the bytes of all paths and each one's size; codes and distinct names of the other
    texts (names as bytes, each ended by a zero byte)."""
    paths = [path.encode("utf-8", "surrogateescape") for path in index["path"]]
    arrays = {name: np.array(index[name], kind) for name, kind in NUMBERS.items()}
    arrays |= {"path": np.frombuffer(b"".join(paths), np.uint8), "path_size": np.array([*map(len, paths)], np.int32)}
    for name in CODED:
        table = {text: code for code, text in enumerate(dict.fromkeys(index[name]))}
        arrays[name] = np.array([table[text] for text in index[name]], np.int32)
        arrays[f"{name}_names"] = np.frombuffer("".join(f"{text}\0" for text in table).encode(), np.uint8)
    return arrays


def _texts(array):
    return array.tobytes().decode().split("\0")[:-1]


def make_index(tar):
    """Read a whole tar, ours or another's -> its index. What doesn't decode is left out."""
    members, about = [], {}
    index = {name: [] for name in (*TEXTS, *NUMBERS)}
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
            row |= {"offset": offset, "size": size, "checksum": checksum(data), "pcm": _is_plain(data)}
            for field, values in index.items():
                values.append(row.get(field, "" if field in TEXTS else 0))
    return index


def _about(data):
    """The manifest row in a JSON entry of ours; None for another's."""
    try:
        row = json.loads(data)
        if row.get("wren") != VERSION:
            return None
        return {name: str(row.get(name, "")) for name in TEXTS} | {"start": int(row.get("start", 0))}
    except (ValueError, AttributeError, TypeError):
        return None


def _is_plain(data):
    """Whether the bytes are a WAV with the 44-byte header of 16-bit mono PCM."""
    return (data[:4] == b"RIFF" and data[8:16] == b"WAVEfmt " and data[36:40] == b"data"
            and data[20:24] == b"\1\0\1\0" and data[34:36] == b"\x10\0"
            and int.from_bytes(data[40:44], "little") == len(data) - _WAV_HEADER)


# --------------------------------------------------------------------------------------------------------- packing

def pack(manifest, folder, rate=None, format="flac", clips_per_shard=2048, jobs=1, wrap=lambda done, total: done):
    """Write the rows of a manifest as shards; what an earlier, killed call finished stays. Returns a summary dict.

    rate: Hz (None: as recorded); format: "flac" or "wav"; wrap: puts a progress bar around the finished shards.
    """
    folder, count = Path(folder), -(-len(manifest) // clips_per_shard)
    plan = {"version": VERSION, "rows": manifest.fingerprint(), "rate": rate, "format": format, "shards": count,
            "clips_per_shard": clips_per_shard}
    _start(folder, plan)
    names = [folder / f"shard-{k:06d}.tar" for k in range(count)]
    todo = [k for k, name in enumerate(names) if not _is_done(name)]
    for rest in folder.glob("*.tmp"):
        rest.unlink()
    work = [(str(names[k]), range(k * clips_per_shard, min(len(manifest), (k + 1) * clips_per_shard)), rate, format)
            for k in todo]
    for _ in wrap(_in_processes(manifest, work, jobs), len(work)):
        pass
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
    temporary = folder / f"pack.json.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(plan, indent=1))
    os.replace(temporary, path)


def _is_done(name):
    """A shard is done once its report is there, which is written last."""
    return all(os.path.exists(f"{name}{end}") for end in ("", ".index.npz", ".report.json"))


def _in_processes(manifest, todo, jobs):
    """Yield as shards are finished."""
    if jobs == 1 or len(todo) < 2:
        for job in todo:
            yield write_shard(manifest, *job)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")  # fork shares the manifest
    with ProcessPoolExecutor(jobs, context, initializer=_take, initargs=(manifest,)) as pool:
        try:
            for future in as_completed([pool.submit(_write, *job) for job in todo]):
                yield future.result()
        except BrokenProcessPool:
            raise UserError("a packing process was ended from outside (out of memory?): the same command goes on "
                            "where it stopped; fewer --jobs need less memory") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_manifest = None  # of a packing process


def _take(manifest):
    global _manifest
    _manifest = manifest
    if "torch" in sys.modules:  # a process forked from one that had loaded it
        import torch
        torch.set_num_threads(1)


def _write(*job):
    return write_shard(_manifest, *job)


def write_shard(manifest, path, which, rate, format):
    """One shard: tar, then index, then report, each whole or not at all."""
    index = {name: [] for name in (*TEXTS, *NUMBERS)}
    report = {"clips": 0, "scaled": 0, "skipped": []}
    temporary = f"{path}.tmp"
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in which:
            try:
                data, frames, own_rate, scaled = encode(manifest, i, rate, format)
            except audio.BadAudio as error:
                report["skipped"].append({"path": audio.printable(manifest.path(i)), "start": int(manifest.start[i]),
                                          "reason": error.reason})
                continue
            row = {"path": manifest.path(i), "start": int(manifest.start[i]),
                   "domain": ("", "bio", "gen")[manifest.domain[i]], "source": manifest.sources[manifest.source[i]],
                   "label": "" if manifest.label is None else manifest.labels[manifest.label[i]]}
            offset = _add(tar, f"{i:09d}.{format}", data)
            _add(tar, f"{i:09d}.json", json.dumps({"wren": VERSION} | row).encode())
            row |= {"frames": frames, "sample_rate": own_rate, "offset": offset, "size": len(data),
                    "checksum": checksum(data), "pcm": _is_plain(data)}
            for name, values in index.items():
                values.append(row[name])
            report["clips"] += 1
            report["scaled"] += scaled
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    write_index(path, index)
    Path(f"{path}.report.tmp").write_text(json.dumps(report))
    os.replace(f"{path}.report.tmp", f"{path}.report.json")
    return report


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
