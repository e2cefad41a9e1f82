"""Opening what `--data` can name as a Manifest: folders of audio or shards, tables, fairseq's and SSAST's lists."""
import csv
import gc
import json
import os
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

from wren.cli import UserError, warn
from wren.sound import shards
from wren.sound.manifest import COLUMNS, DOMAINS, STREAM, build, join
from wren.sound.quality import Memory, list_problems, summary
from wren.sound.scan import find, scan_folder

_CHUNK = 1 << 16  # rows parsed at a time


def open_manifest(source, root=None, segment=10.0, notes=None, extra=()):
    """Everything that `--data` can name, as a Manifest.

    source: a folder of audio, a folder of tar shards, a CSV or TSV with a header (`path` and optional start, frames,
    sample_rate, domain, source, label, stream:NAME), a fairseq TSV (root, then path and samples) or an SSAST JSON.
    root: a second folder for relative paths. segment: seconds of the rows that a folder's long recordings are cut into.
    notes: a folder for what is found out about a folder's files: unusable.csv, and judged.csv, which spares decoding
    them all again the next time. extra: names of other columns of texts that are kept.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(f"{source}: no such folder or manifest")
    if path.is_dir():
        return _open_folder(path, segment, notes)
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
        raise UserError(f"{source} is not a text file in UTF-8: save it as CSV in UTF-8, or name a folder of audio")
    if not head.strip():
        raise UserError(f"{source} is empty: a manifest has a header line with the column path, and rows")
    bases = tuple(dict.fromkeys(str(base) for base in (path.parent, root) if base is not None))
    if path.suffix.lower() == ".json":
        return _open_json(path, bases)
    lines = head.decode("utf-8-sig", "surrogateescape").splitlines()
    if len(lines) > 1 and "\t" not in lines[0] and re.fullmatch(r"[^\t]+\t\d+", lines[1]):
        return _open_table(path, bases, extra, fairseq=lines[0].strip())
    return _open_table(path, bases, extra)


def _open_folder(folder, segment, notes):
    """A folder of shards or of audio files."""
    if any(folder.glob("*.tar")):
        return shards.open_shards(folder)
    if packed := next(folder.glob("*.tar.gz"), None) or next(folder.glob("*.tgz"), None):
        if not find(folder):
            raise UserError(f"{folder} holds compressed shards ({packed.name} …), which can't be read by offset: "
                            f"unpack them with gunzip {folder}/*{packed.suffix}")
    rows, problems = scan_folder(folder, segment, Memory(Path(notes) / "judged.csv") if notes else None)
    where = f"python data.py check {folder} lists all of them"
    if notes:
        list_problems(Path(notes) / "unusable.csv", problems)
        where = f"all are listed in {Path(notes) / 'unusable.csv'}"
    if not len(rows):
        raise UserError(f"none of the audio files under {folder} can be used: "
                        f"{summary(problems, len(problems))}; {where}")
    if problems:
        total = len({rows.path(i) for i in range(len(rows))} | {path for path, _ in problems})
        warn(f"{folder}: {summary(problems, total)}; {where}")
    return rows


def _open_json(path, bases):
    """SSAST's {"data": [{"wav": path, "labels": text}]}."""
    try:
        data = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))["data"]
        paths, labels = [str(row["wav"]) for row in data], [str(row.get("labels", "")) for row in data]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is not SSAST\'s JSON, {{"data": [{{"wav": …, "labels": …}}]}} '
                        f"({type(error).__name__}: {error})") from None
    if not paths:
        raise UserError(f"{path} lists no recordings")
    return build(paths, label=labels, bases=bases, origin=str(path))


def _open_table(path, bases, extra, fairseq=None):
    """A CSV or TSV, by chunks of rows, so that parsing needs little memory beside the result."""
    parts, collect = [], gc.isenabled()
    gc.disable()  # millions of short-lived lists wake the cycle collector all the time: 7.4, not 2.9 s for 2.23M rows
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            first = file.readline()
            delimiter = "\t" if fairseq or "\t" in first else ","
            header = ["path", "frames"] if fairseq else next(csv.reader([first], delimiter=delimiter), [])
            header = [name.strip().lower() for name in header]
            if "path" not in header:
                raise UserError(f"{path}: the first line names no column path (it reads {first.strip()[:80]!r}); a "
                                f"manifest has a header with some of {', '.join(COLUMNS)}")
            reader, done = csv.reader(file, delimiter=delimiter), 1
            while rows := [row for row in islice(reader, _CHUNK) if row]:
                parts.append(_part(path, header, rows, done, extra))
                done += len(rows)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num + 1}: {error}") from None
    finally:
        if collect:
            gc.enable()
    if not parts:
        raise UserError(f"{path} has a header but no rows")
    rows = join(*parts)
    if unknown := [name for name in rows.texts.get("domain", ((), ()))[1] if name not in DOMAINS]:
        raise UserError(f"{path}: domain {unknown[0]!r} is neither bio nor gen nor empty")
    bases = tuple(dict.fromkeys([os.path.join(path.parent, fairseq), *bases])) if fairseq else bases
    return replace(rows, bases=bases, origin=str(path))


def _part(path, header, rows, done, extra):
    """A Manifest of one chunk of table rows, the first of which is row `done`."""
    if set(map(len, rows)) != {len(header)}:
        k = next(k for k, row in enumerate(rows) if len(row) != len(header))
        raise UserError(f"{path}, row {done + k}: {len(rows[k])} fields, the header has {len(header)} (a name with a "
                        "comma needs double quotes)")
    table = dict(zip(header, zip(*rows)))
    if "" in table["path"]:
        raise UserError(f"{path}, row {done + table['path'].index('')}: the path is empty")
    numbers = {name: _numbers(path, name, table[name], default, done)
               for name, default in (("start", 0), ("frames", -1), ("sample_rate", 0)) if name in table}
    texts = {STREAM + name.removeprefix(STREAM).strip() if name.startswith(STREAM) else name: table[name]
             for name in header if name in ("domain", "source", "label", *extra) or name.startswith(STREAM)}
    return build(table["path"], **numbers, **texts)


def _numbers(path, name, values, default, done):
    """Texts -> whole numbers [n] of at least min(0, default); an empty one is `default`."""
    numbers = []
    for k, text in enumerate(values):
        try:
            numbers.append(int(float(text)) if text.strip() else default)  # tables often hold 160000.0
        except (ValueError, OverflowError):
            raise UserError(f"{path}, row {done + k}: {name} {text!r} is not a whole number") from None
        if numbers[-1] < min(0, default):
            raise UserError(f"{path}, row {done + k}: {name} {numbers[-1]} is below {min(0, default)}")
    return numbers
