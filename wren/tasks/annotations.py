"""Who calls when: reading and writing annotations of recordings in the formats that people use.

    Raven      a selection table (Cornell's Raven): tab-separated, a row a selection, times cumulative over its files
    Audacity   a label track: start, end, label and perhaps a second line with the frequencies; no file name
    CSV        a header with file, start, end, label and perhaps score, low, high, channel
    JSON lines BEANS's detection lists: {"path", "length", "annotations": [{"st", "ed", "label"}]}

Times are seconds in the recording, frequencies hertz. Times are written to the microsecond, so that what was written
to the microsecond is read back exactly.
"""
import csv
import io
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from wren.cli import UserError, warn, write_text

# What a column may be called, first choice first; compared in lower case, without units, _ as space.
_NAMES = {
    "file": ("file", "path", "begin path", "begin file", "filename", "file name", "audiofilename", "audio file",
             "recording", "notated path"),
    "start": ("start", "begin time", "start time", "begin", "onset", "st", "starttime"),
    "end": ("end", "end time", "offset", "ed", "endtime"),
    "label": ("label", "species", "annotation", "common name", "species code", "code", "class", "call type", "type",
              "tag", "scientific name"),
    "score": ("score", "confidence", "probability"),
    "low": ("low", "low freq", "low frequency", "min freq", "low f"),
    "high": ("high", "high freq", "high frequency", "max freq", "high f"),
    "file offset": ("file offset",), "selection": ("selection",), "view": ("view",)}


@dataclass
class Event:
    """A call: label and place. start and end in seconds of the file; None: not said."""
    file: str
    start: float
    end: float
    label: str
    score: float | None = None
    low: float | None = None  # Hz
    high: float | None = None


# ------------------------------------------------------------------------------------------------------- reading

def read_annotations(path, label=None):
    """Annotations in any of the formats, recognised by content -> list of Event, in the file's order.

    Event.file is what the table says, as written, or "" where it says nothing (Audacity, a Raven table of one file).
    label: of calls that have none; without it they are left out, with a warning.
    """
    return _read(path, label)[0]


def read_recordings(path, label=None):
    """The same by recording -> [(file, its length in seconds where the list says it, its events)], in order of first
    mention. JSON lines and CSV rows without an annotation name recordings that have none."""
    events, lengths = _read(path, label)
    found = {file: [] for file in lengths}
    for event in events:
        found.setdefault(event.file, []).append(event)
    return [(file, lengths.get(file), calls) for file, calls in found.items()]


def tables(path):
    """The table itself; of a folder, all tables below it, sorted."""
    path, suffixes = Path(path), (".txt", ".csv", ".tsv")
    return sorted(p for p in path.rglob("[!.]*") if p.suffix.lower() in suffixes) if path.is_dir() else [path]


def stems(table):
    """What the recording of a table may be called that names none, without its suffix, likeliest first:
    REC.Table.1.selections.txt belongs to REC.wav."""
    parts = Path(table).name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def meant(file, table, files):
    """Those of `files` (absolute paths) that a table can mean by `file`: its path from the table's folder; or those
    that end like it, or are called so without their suffix; or, of a path from another machine, those of its name.
    "": those whose names begin the table's own."""
    here, parts = os.path.abspath(os.path.dirname(table)), re.split(r"[\\/]", file)
    if not file:
        found = next((named for stem in stems(table) if (named := [f for f in files if Path(f).stem == stem])), [])
        return [f for f in found if os.path.dirname(f) == here] or found
    if (path := os.path.abspath(os.path.join(here, file))) in files:
        return [path]
    found = [f for f in files if f.split(os.sep)[-len(parts):] == parts or Path(f).stem == file]
    if not found and re.match(r"([A-Za-z]:)?[\\/]", file) and not os.path.exists(file):
        return [f for f in files if os.path.basename(f) == parts[-1]]
    return found


def _read(path, label):
    """-> (events, {recording that the file names: its length in seconds or None})."""
    text, lengths, events, unnamed = read_text(path), {}, [], []
    first = text.lstrip().partition("\n")[0]
    if first.startswith("{"):
        rows = _jsonl(path, text, lengths)
    elif re.fullmatch(r" *[-+]?[\d.]+(e[-+]?\d+)? *", first.split("\t")[0], re.IGNORECASE):
        rows = _audacity(path, text)
    else:
        rows = _table(path, text, lengths, label) if first else []  # a label track without labels is empty
    for number, event in rows:
        if not 0 <= event.start <= event.end < math.inf:
            raise UserError(f"{path}, line {number}: {event.label!r} from {event.start:g} to {event.end:g} s is no "
                            "stretch of a recording")
        event.label = event.label or label
        if event.label:
            events.append(event)
        else:
            unnamed.append(str(number))
    if unnamed:
        warn(f"{len(unnamed)} selection{'s' * (len(unnamed) > 1)} without a label in {path}, row "
             f"{', '.join(unnamed[:5])}{' …' * (len(unnamed) > 5)}: left out")
    return events, lengths


def read_text(path):
    """A table's text: UTF-8, UTF-16 (spreadsheets' "Unicode text") or, failing that, Windows's code page."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    if not wide and b"\0" in raw[:4096]:
        raise UserError(f"{path} is no text in UTF-8 or UTF-16: annotations are a Raven table, Audacity labels, a CSV "
                        "or JSON lines")
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("cp1252", "replace")
    return text.replace("\r\n", "\n")


def _jsonl(path, text, lengths):
    """BEANS's detection list, a line a recording -> (line, Event) of each call; fills {recording: length}."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            file, length = str(row["path"]), row.get("length")
            lengths[file] = None if length is None else float(length)
            for call in row["annotations"]:
                label = call["label"]  # pandas writes the integer 1 as 1.0 where a column has gaps
                label = f"{label:.15g}" if isinstance(label, float) else str(label)
                yield number, Event(file, float(call["st"]), float(call["ed"]), label)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}, line {number} is not {{"path": …, "length": …, "annotations": [{{"st": …, '
                            f'"ed": …, "label": …}}]}} ({type(error).__name__}: {error})') from None


def _audacity(path, text):
    """start, end, label by tabs; a line that begins with a backslash has the low and high frequency of the
    last -> [(line, Event)]."""
    events = []
    for number, line in enumerate(text.splitlines(), 1):
        first, *rest = line.split("\t")
        try:
            if first == "\\":
                last = events[-1][1]
                last.low, last.high = (None if float(f) < 0 else float(f) for f in rest[:2])  # -1: not said
            elif line.strip():
                events.append((number, Event("", float(first), float(rest[0]), "\t".join(rest[1:]).strip())))
        except (ValueError, IndexError):
            raise UserError(f"{path}, line {number} is no Audacity label (start, end, label by tabs): "
                            f"{line[:80]!r}") from None
    return events


def records(text):
    """A CSV or TSV with a header -> its columns, by our names where they are known, and [(line, {column: text})]."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in text.partition("\n")[0] else ",")
    names = [name.strip().lower() for name in next(reader, [])]
    plain = [name.split(":")[0].replace("_", " ").strip() for name in names]
    plain = [re.sub(r" *\(?\b(s|sec|seconds|hz)\)?$", "", name) for name in plain]
    for ours, theirs in _NAMES.items():
        if hit := next((name for name in theirs if name in plain), None):
            names[plain.index(hit)] = ours
    missing = [""] * len(names)  # editors drop empty fields at a line's end
    return names, [(reader.line_num, dict(zip(names, map(str.strip, row + missing)))) for row in reader
                   if any(map(str.strip, row))]


def _table(path, text, lengths, label):
    """A Raven table or a CSV with a header -> (line, Event) of each call; fills {recording: None}."""
    columns, rows = records(text)
    missing = [name for name in ("start", "end", "label") if name not in columns]
    if missing and (missing != ["label"] or not label):
        remedy = ("add an annotation column in Raven and save the table again, or say what all its calls are with "
                  "--label NAME" if missing == ["label"] else "annotations are a Raven table, Audacity labels (start, "
                  "end, label by tabs), a CSV with file, start, end, label, or BEANS's JSON lines")
        header = text.partition("\n")[0].replace("\t", ", ")
        raise UserError(f"{path} has no column for {' and '.join(missing)} (there are {header}): {remedy}")
    if {"selection", "view"} <= set(columns):
        # Raven writes a selection once for each view: the spectrogram's is kept, which has the frequencies
        rows.sort(key=lambda row: row[1]["view"].startswith("Spectrogram"))
        rows = sorted({row["selection"]: (number, row) for number, row in rows}.values())
    if "selection" in columns and "file offset" not in columns and len({row.get("file") for _, row in rows}) > 1:
        raise UserError(f"{path} covers several files but has no column File Offset (s), without which a call's "
                        "place in its file is unknown: in Raven choose that column and save the table again")
    for number, row in rows:
        if row.get("file"):
            lengths.setdefault(row["file"])
        if row["start"] or row["end"] or row.get("label"):  # else: a recording without annotations
            yield number, _event(path, number, row)


def _event(path, number, row):
    """A row's texts by our column names -> Event."""
    values = dict.fromkeys(("start", "end", "file offset", "score", "low", "high"))
    for name in values:
        try:
            values[name] = float(row[name]) if row.get(name) else None
        except ValueError:
            raise UserError(f"{path}, line {number}: {name} {row[name]!r} is no number") from None
    start, end, offset, *rest = values.values()
    if start is None or end is None:
        raise UserError(f"{path}, line {number}: {'start' if start is None else 'end'} is empty")
    if offset is not None:  # cumulative times: the place in the file is in its own column
        start, end = offset, round(offset + end - start, 6)
    return Event(row.get("file", ""), start, end, row.get("label", ""), *rest)


# ------------------------------------------------------------------------------------------------------- writing

def write_annotations(path, events, format, files=()):
    """Write events (list of Event) as "raven", "audacity" (of one recording) or "csv"; whole or not at all.

    files: (path, seconds, sample rate) of the recordings that the table covers, in the order in which Raven is to show
    them; Raven's table needs them. Rows are in order of file and time.
    """
    named = [*(str(file) for file, _, _ in files), *(event.file for event in events)]
    order = {file: k for k, file in enumerate(dict.fromkeys(named))}
    events = sorted(events, key=lambda event: (order[event.file], event.start))
    if format == "audacity":
        return write_text(path, "".join(map(_label_lines, events)))
    rows = _raven(events, files) if format == "raven" else _csv(events)
    out = io.StringIO()
    csv.writer(out, delimiter="\t" if format == "raven" else ",", lineterminator="\n").writerows(rows)
    write_text(path, out.getvalue())


def _raven(events, files):
    """Raven opens several files as one stretch of time, so Begin Time counts on from file to file and File Offset
    says where in its file a call begins. It refuses a High Freq above half the sampling rate."""
    place, passed = {}, 0.0
    for file, seconds, rate in files:
        place[str(file)] = passed, rate / 2
        passed = round(passed + seconds, 6)  # rounded here, so that a call's length survives the subtraction
    yield ("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)",
           "Begin Path", "File Offset (s)", "Annotation", "Score")
    for number, event in enumerate(events, 1):
        before, nyquist = place[event.file]
        start, end = round(event.start, 6), round(event.end, 6)
        low, high = event.low or 0.0, nyquist if event.high is None else event.high
        yield (number, "Spectrogram 1", 1, f"{before + start:.6f}", f"{before + end:.6f}", _number(min(low, nyquist)),
               _number(min(high, nyquist)), event.file, f"{start:.6f}", event.label, _number(event.score))


def _csv(events):
    """A header and rows, without columns of scores or frequencies that would be empty."""
    more = [name for name in ("score", "low", "high") if any(getattr(event, name) is not None for event in events)]
    yield "file", "start", "end", "label", *more
    for event in events:
        yield (event.file, f"{event.start:.6f}", f"{event.end:.6f}", event.label,
               *(_number(getattr(event, name)) for name in more))


def _label_lines(event):
    """A label of Audacity's."""
    line = f"{event.start:.6f}\t{event.end:.6f}\t{' '.join(event.label.split())}\n"
    if event.low is None and event.high is None:
        return line
    low, high = (_number(-1 if value is None else value) for value in (event.low, event.high))
    return f"{line}\\\t{low}\t{high}\n"


def _number(value):
    return "" if value is None else repr(float(value))
