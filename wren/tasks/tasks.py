"""Labelled data sets to train and be judged on: BEANS's twelve by name, and own ones as folders.

    load_task("watkins", root=BEANS)    one of `BEANS`; root holds the folder data/ that the BEANS scripts make
    load_task("FOLDER")                 an own task, in one of these layouts, each for train, valid and test:

    clips         train.csv (or annotations.train.csv) with path and label, several labels by semicolons, and
                  stream:NAME for what was measured beside the sound;
                  train.tsv with train.lbl (EAT's); AudioSet's segment list as train.csv
    folds         one annotations.csv with path, label, fold; or a column fold in the three lists
    recordings    train.jsonl (BEANS's); train.csv with file, start, end, label; train.txt, a Raven table with Begin
                  Path and File Offset; or a folder train/ of recordings, each with a table of its own beside it:
                  REC.txt, REC.Table.1.selections.txt, REC.csv … (Raven, Audacity or CSV)

A recording without calls is a JSON line without annotations, a CSV row with only the file, or a file without a table.
A column `recording` in a list of clips says which of them belong together: intervals are drawn by recording.
"""
import csv
import os
import re
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

import numpy as np

from wren.sound import audio
from wren.sound import streams as beside
from wren.tasks.annotations import columns, read_recordings, stems, tables
from wren.tasks.beans import BEANS, Beans
from wren.cli import UserError
from wren.sound.manifest import STREAM, Manifest, build, join, open_manifest, warn

SPLITS = ("train", "valid", "test")
WINDOW_SECONDS, HOP_SECONDS = 2.0, 1.0  # of own recordings; BEANS's for birds
_PAST_END = 0.1  # seconds by which an annotation may outlast its file: rounded times


@dataclass
class Split:
    """One part of a task. What is read of row i is `clip_seconds` from its start, or less where there is less."""
    rows: Manifest  # one row a clip or window
    targets: np.ndarray  # int32 (n,): index into the task's labels; else bool (n, C)
    groups: np.ndarray  # int64 (n,): the recording each row comes from, as far as it is known
    events: list = field(default_factory=list)  # of the recordings; detection only, as are the next two
    files: list = field(default_factory=list)  # (path as in events, seconds, sample rate), in order of rows
    file_index: np.ndarray | None = None  # int32 (n,): index into `files`
    clip_seconds: float | None = None

    def __len__(self):
        return len(self.rows)

    def read(self, i, rate=None):
        """Row i -> float32 [S] at `rate` Hz (None: its own), not padded."""
        with self.rows.open(i) as clip:
            frames = clip.frames
            if self.clip_seconds is not None:
                frames = min(frames, ceil(self.clip_seconds * clip.rate))
            wave = audio.resample(clip.read(0, frames), clip.rate, rate or clip.rate)
        return wave if self.clip_seconds is None else wave[:round(self.clip_seconds * (rate or clip.rate))]

    def read_streams(self, i, streams):
        """What was measured beside the sound that `read` gives; streams: (name, channels, rate in Hz) of each ->
        {name: float32 (channels, n)}, NaN where there is nothing. Raises BadAudio."""
        with self.rows.open(i) as clip:
            start, seconds = clip.first / clip.rate, clip.frames / clip.rate
        return beside.cut(self.rows, i, start, min(seconds, self.clip_seconds or seconds), streams)

    def select(self, rows):
        """Some rows (indices or a mask), with all events and files."""
        index = None if self.file_index is None else self.file_index[rows]
        return replace(self, rows=self.rows.select(rows), targets=self.targets[rows], groups=self.groups[rows],
                       file_index=index)

    def times(self):
        """Start and end of each row in its recording, seconds -> two float64 (n,); for windows."""
        rate = self.rows.sample_rate.astype(float)
        return self.rows.start / rate, (self.rows.start + self.rows.frames) / rate


@dataclass
class Task:
    """A labelled data set."""
    name: str
    kind: str  # "classification": one label a clip; "multilabel": any number; "detection": windows of recordings
    metric: str  # "accuracy" or "map"
    group: str | None  # BEANS's "classification", "detection", "auxiliary"
    labels: list
    splits: dict  # "train", "valid", "test" -> Split
    sample_rate: int | None = None  # Hz at which the set was published; None: any
    clip_seconds: float | None = None  # what is read of a clip; None: all
    window_seconds: float | None = None
    hop_seconds: float | None = None
    folds: list = field(default_factory=list)  # names of the folds, where there are any


# ------------------------------------------------------------------------------------------------------- loading

def _beans_home(name, root):
    """The folder data/ that holds a set of BEANS, or None: `root` itself or the one in it."""
    for home in (Path(root or ".") / "data", Path(root or ".")):
        if (home / BEANS[name].lists.format("train")).exists():
            return home
    return None


def task_names(names, root=None):
    """Names as `--task` takes them, with "beans" replaced by those of the twelve that are present, in their order."""
    out = []
    for name in names:
        if str(name) != "beans":
            out.append(name)
            continue
        present = [n for n in BEANS if _beans_home(n, root)]
        if not present:
            raise UserError(f"--task beans: none of the twelve is below {root or '.'}: --data wants the folder in "
                            "which the BEANS scripts made data/, or that data/ itself (for example "
                            f"{Path(root or '.') / 'data' / BEANS['watkins'].lists.format('train')})")
        out += present
    return list(dict.fromkeys(out))


def load_task(task, root=None, low=False, fold=None, window=None, hop=None):
    """One of BEANS's twelve by name, or a folder, or the name of one in `root` -> Task.

    root: for BEANS the folder that holds data/, or data/ itself; else where names and relative paths are looked up
    (first from the list's own folder up to `root`, then in the current one). low: BEANS's train-low list instead of
    train. fold: that fold is the test split, the one before it valid, the others train. window, hop: seconds, of an
    own task's recordings. Classes of own tasks are the sorted labels of the training split; others come after them.
    """
    name, home = str(task), None
    if name in BEANS and (home := _beans_home(name, root)):
        lists = {s: home / BEANS[name].lists.format(s) for s in SPLITS}
        settings = BEANS[name]
    else:
        folder = _folder(task, root)
        name, lists, settings = folder.resolve().name, _own_lists(folder, task), None
    if low and fold is not None:
        raise UserError(f"task {name}: a fold and the low-data list exclude each other")
    if low:
        lists["train"] = _low_list(lists.get("train", next(iter(lists.values()))))
    for split, path in lists.items():
        if not path.exists():
            raise UserError(f"{path} is missing: task {name} has a list for each of train, valid and test")
    source = _Source(name, settings, home, root)
    if (settings and settings.hop) or (not settings and _lists_events(next(iter(lists.values())))):
        if fold is not None or "all" in lists:
            raise UserError(f"task {name} lists calls in recordings: it wants train, valid and test; folds are for "
                            "clips")
        return _detection_task(source, lists, window, hop)
    return _clip_task(source, lists, fold)


@dataclass
class _Source:
    """What the loaders of a task's splits share: its name and rules, and where its sound lies."""
    name: str
    settings: Beans | None
    home: Path | None  # BEANS's data/
    root: str | None

    def place(self, rows, path):
        """Look the rows of list `path` up in the right folders; BEANS writes paths from the folder above data/."""
        if self.home:
            begins = np.array([rows.raw_path(i).startswith(b"data/") for i in range(len(rows))], dtype=bool)
            rows.begin, rows.size = rows.begin + 5 * begins, rows.size - (5 * begins).astype(rows.size.dtype)
            rows.bases = (str(self.home),)
        else:
            top = Path(self.root).resolve() if self.root else path.resolve().parent
            parents = [str(p) for p in path.resolve().parent.parents if p == top or top in p.parents]
            rows.bases = tuple(dict.fromkeys([*rows.bases, str(path.parent), *parents, "."]))
        for i in range(len(rows)):
            if not os.path.exists(rows.locate(i)):
                raise UserError(f"{path} names {audio.shown(rows.path(i))}, which is neither in "
                                f"{' nor in '.join(rows.bases)}")
        for name, (codes, _) in rows.streams.items():
            for i in np.unique(codes, return_index=True)[1]:
                if (stream := rows.stream(i, name)) and not os.path.exists(stream):
                    raise UserError(f"{path} names the stream {audio.shown(stream)}, which is not there")
        return rows

    def classes(self, seen):
        """The task's labels from those that the splits have: {split: labels}."""
        if self.settings:
            return self.settings.labels.split(";")
        labels = sorted(seen["train"])
        for split in ("valid", "test"):
            if new := sorted(set(seen[split]) - set(labels)):
                warn(f"task {self.name}: the {split} split has labels that the training split lacks: "
                     f"{', '.join(new[:5])}{' …' * (len(new) > 5)}")
                labels += new
        return labels

    def coder(self, labels, path):
        """A function: label -> its index, by the set's rule for unknown ones."""
        codes = {label: k for k, label in enumerate(labels)}
        unknown = self.settings.unknown if self.settings else None

        def code(label):
            if (k := codes.get(label, codes.get(unknown))) is None:
                raise UserError(f"{path} has the unknown label {label!r}: {self.name} has the classes "
                                f"{', '.join(labels[:8])}{' …' * (len(labels) > 8)}")
            return k
        return code

    def groups(self, rows, said=None):
        """Which rows come from one recording -> int64 (n,)."""
        keys = rows.recording_keys() if said is None else said
        if self.settings and self.settings.recording:
            paths = (rows.path(i) for i in range(len(rows)))
            keys = [match[1] if (match := re.search(self.settings.recording, path)) else path for path in paths]
        return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _folder(task, root):
    """The folder that `--task` names."""
    folder = next((p for p in (Path(root or ".") / str(task), Path(task)) if p.is_dir()), None)
    if folder is None:
        place, other = Path(root or "."), f"nor one of BEANS's twelve ({', '.join(BEANS)})"
        if str(task) in BEANS:
            lists = place / "data" / BEANS[str(task)].lists.format("train")
            other = f"nor is {lists} there, or the same without data/"
        raise UserError(f"--task {task}: neither a folder nor a folder in {place}, {other}")
    return folder


def _own_lists(folder, task):
    """{split: file or folder} of an own task."""
    for name in ("{}.csv", "annotations.{}.csv", "{}.jsonl", "{}.tsv", "{}.txt", "{}"):
        if (folder / name.format("train")).exists():
            return {split: folder / name.format(split) for split in SPLITS}
    if (folder / "annotations.csv").exists():
        return {"all": folder / "annotations.csv"}
    inside = sorted(p.name for p in folder.iterdir())[:5]
    raise UserError(f"--task {task}: {folder}/train.csv is missing; a task has lists train, valid and test: .csv "
                    "with path and label (or file, start, end, label), .jsonl, .tsv with .lbl, folders of recordings "
                    "and tables, or one annotations.csv with a column fold "
                    f"(there is {', '.join(inside) or 'nothing'})")


def _low_list(path):
    """The list of the low-data protocol beside a training list."""
    low = path.with_name(path.name.replace("train", "train-low"))
    if low == path or not low.exists():
        raise UserError(f"{path}: this task has no low-data list, train-low, beside it")
    return low


def _header(path):
    """Column names of a CSV or TSV, in lower case."""
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        first = file.readline()
    return [n.strip().lower() for n in next(csv.reader([first], delimiter="\t" if "\t" in first else ","), [])]


def _lists_events(path):
    """Whether a list is of events in recordings rather than of clips."""
    return path.is_dir() or path.suffix == ".jsonl" or {"start", "end"} <= columns(_header(path)).keys()


# --------------------------------------------------------------------------------------------------------- clips

@dataclass
class _Clips:
    """One list of clips: rows whose label is the field's text, and the columns fold and recording if it has them."""
    path: Path
    rows: Manifest
    fold: np.ndarray | None = None  # str (n,)
    recording: np.ndarray | None = None  # str (n,)

    def select(self, rows):
        return _Clips(self.path, self.rows.select(rows), *(
            None if column is None else column[rows] for column in (self.fold, self.recording)))

    def texts(self):
        """The distinct label fields."""
        return [self.rows.labels[c] for c in np.unique(self.rows.label)]


def _clip_task(source, lists, fold):
    """A task whose items are clips with labels."""
    settings = source.settings
    parts = {split: _open_clips(path) for split, path in lists.items()}
    for part in parts.values():
        source.place(part.rows, part.path)
    folds = _folds(parts)
    if fold is not None or "all" in parts:
        parts = _by_fold(source.name, parts, folds, fold)
    multi = not settings and any(";" in text for part in parts.values() for text in part.texts())
    seen = {split: {label for text in part.texts() for label in _labels_of(text, multi)}
            for split, part in parts.items()}
    labels = source.classes(seen)
    if len(labels) < 2 and not multi:
        raise UserError(f"task {source.name} has the single class {labels[0]!r}: there is nothing to tell apart")
    seconds = settings.seconds if settings else None
    splits = {split: Split(part.rows, _targets(source, part, labels, multi),
                           source.groups(part.rows, part.recording), clip_seconds=seconds)
              for split, part in parts.items()}
    return Task(source.name, "multilabel" if multi else "classification", "map" if multi else "accuracy",
                settings.group if settings else None, labels, splits, settings.sample_rate if settings else None,
                seconds, folds=folds)


def _labels_of(text, multi):
    """The labels in a field."""
    return [part.strip() for part in text.split(";") if part.strip()] if multi else [text]


def _targets(source, part, labels, multi):
    """int32 (n,) or, for several labels, bool (n, C). The rows' own codes are brought to the task's labels."""
    rows, code = part.rows, source.coder(labels, part.path)
    used = np.unique(rows.label)
    if multi:
        fields = np.zeros((len(rows.labels), len(labels)), bool)
        for k in used:
            fields[k, [code(label) for label in _labels_of(rows.labels[k], multi)]] = True
        return fields[rows.label]
    if "" in part.texts():
        raise UserError(f"{part.path} has a row with an empty label")
    codes = np.full(len(rows.labels), -1, np.int32)
    codes[used] = [code(rows.labels[k]) for k in used]
    rows.label, rows.labels = codes[rows.label], labels
    return rows.label


def _open_clips(path):
    """A list of clips in any of the layouts; several labels of a clip come separated by semicolons."""
    if path.suffix == ".tsv" and path.with_suffix(".lbl").exists():
        return _Clips(path, _open_eat(path))
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        if re.match(r"#.*segments|#? ?YTID", file.readline(), re.IGNORECASE):
            return _Clips(path, _open_audioset(path))
    rows = open_manifest(path)
    if rows.label is None:
        raise UserError(f"{path} has no column label")
    return _Clips(path, rows, _column(path, "fold"), _column(path, "recording"))


def _column(path, name):
    """One column of a CSV or TSV as str (n,), or None."""
    header = _header(path)
    if name not in header:
        return None
    k = header.index(name)
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter="\t" if "\t" in file.readline() else ",")
        return np.array([row[k].strip() for row in reader if row])


def _open_eat(path):
    """EAT's (fairseq's) pair: NAME.tsv with the clips, NAME.lbl with a line for each, whose last field by tabs are
    the labels by commas; label_descriptors.csv (index, name) beside them names indices."""
    rows = open_manifest(path)
    lines = path.with_suffix(".lbl").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    if len(lines) != len(rows):
        raise UserError(f"{path.with_suffix('.lbl')} has {len(lines)} lines, {path} names {len(rows)} clips")
    names = _names_beside(path)
    rows.label, rows.labels = _coded(
        ";".join(names.get(x.strip(), x.strip()) for x in line.split("\t")[-1].split(",")) for line in lines)
    return rows


def _open_audioset(path):
    """AudioSet's segment list: YTID, start_seconds, end_seconds, "mid,mid". The clips, cut already, are found
    anywhere below the list's folder by the YTID's 11 characters, perhaps after a Y, with which their names begin. Many
    videos are gone, so clips that are missing are counted, no error. class_labels_indices.csv beside the list
    names the classes."""
    from wren.sound.scan import find
    files = {}
    for file in find(path.parent):
        stem = os.path.basename(file)
        files.update({stem[:11]: file} | ({stem[1:12]: file} if stem[0] == "Y" else {}))
    names, paths, labels, missing = _names_beside(path), [], [], 0
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for row in csv.reader(file, skipinitialspace=True):
            if not row or row[0].startswith("#") or row[0] == "YTID":
                continue
            if len(row) < 4:
                raise UserError(f"{path}: {','.join(row)[:80]!r} is not YTID, start_seconds, end_seconds, labels")
            if row[0] not in files:
                missing += 1
                continue
            paths.append(os.path.relpath(files[row[0]], path.parent))
            labels.append(";".join(names.get(x.strip(), x.strip()) for x in row[3].split(",")) + ";")
    if not paths:
        raise UserError(f"{path}: none of its {missing} clips is below {path.parent}")
    if missing:
        warn(f"{path}: {missing} of {missing + len(paths)} clips are not below {path.parent} and are left out")
    return build(paths, label=labels, bases=(str(path.parent),), origin=str(path))


def _names_beside(path):
    """{index or machine id: name} from AudioSet's class_labels_indices.csv or EAT's label_descriptors.csv."""
    names = {}
    for file in (path.with_name("class_labels_indices.csv"), path.with_name("label_descriptors.csv")):
        if file.exists():
            with open(file, newline="", encoding="utf-8-sig") as opened:
                for row in csv.reader(opened):
                    names.update({key.strip(): row[-1].strip().replace(";", ",") for key in row[:-1]})  # ; separates
    return names


def _coded(texts):
    """Strings -> (int32 codes (n,), distinct strings)."""
    names, codes = np.unique(np.array(list(texts), dtype=object), return_inverse=True)
    return codes.astype(np.int32), list(names)


def _folds(parts):
    """The names of the folds that a task's lists have, in order; [] without that column."""
    if any(part.fold is None for part in parts.values()):
        return []
    names = set().union(*(part.fold.tolist() for part in parts.values()))
    return sorted(names, key=lambda name: (0, int(name), "") if name.isdigit() else (1, 0, name))


def _by_fold(name, parts, folds, fold):
    """Fold `fold` (default: the last) as test, the one before it as valid, the others as train."""
    if len(folds) < 3:
        raise UserError(f"task {name} has {'less than three values in its' if folds else 'no'} column fold")
    fold = folds[-1] if fold is None else str(fold)
    if fold not in folds:
        raise UserError(f"task {name} has no fold {fold}: its folds are {', '.join(folds)}")
    before = folds[folds.index(fold) - 1]
    whole, *others = parts.values()
    for part in others:
        whole = _Clips(whole.path, replace(join(whole.rows, part.rows), origin=whole.rows.origin),
                       np.concatenate([whole.fold, part.fold]),
                       None if whole.recording is None or part.recording is None else
                       np.concatenate([whole.recording, part.recording]))
    valid, test = whole.fold == before, whole.fold == fold
    return {"train": whole.select(~valid & ~test), "valid": whole.select(valid), "test": whole.select(test)}


# ------------------------------------------------------------------------------------------------------ detection

def _detection_task(source, lists, window, hop):
    """A task whose items are the windows of recordings with annotated calls."""
    settings = source.settings
    width, hop = window or WINDOW_SECONDS, hop or HOP_SECONDS
    if settings:
        width, hop = settings.seconds, settings.hop
    parts = {split: _recordings_in(path) if path.is_dir() else read_recordings(path)
             for split, path in lists.items()}
    labels = source.classes({split: {event.label for _, _, events in part for event in events}
                             for split, part in parts.items()})
    if not labels:
        raise UserError(f"{lists['train']} holds no annotation: there is nothing to learn")
    splits = {split: _windows(source, lists[split], part, labels, width, hop) for split, part in parts.items()}
    return Task(source.name, "detection", "map", settings.group if settings else None, labels, splits,
                settings.sample_rate if settings else None, window_seconds=float(width), hop_seconds=float(hop))


def _recordings_in(folder):
    """A folder of recordings with tables beside them -> [(path from the task's folder, None, events)].

    A table belongs to the recording that it names, else to the one whose name without suffix begins its own.
    """
    from wren.sound.scan import find
    events = {os.path.relpath(path, folder.parent): [] for path in find(folder)}
    named = {}  # file names and stems -> paths
    for path in events:
        for key in (os.path.basename(path), os.path.splitext(os.path.basename(path))[0]):
            named.setdefault(key, []).append(path)
    for table in tables(folder):
        stem = next((stem for stem in stems(table) if stem in named), None)
        for file, _, found in read_recordings(table):
            said = re.split(r"[\\/]", file)[-1]  # a path from whatever machine
            paths = named.get(said or stem, [])
            here = os.path.relpath(table.parent, folder.parent)
            paths = [path for path in paths if os.path.dirname(path) == here] or paths
            if len(paths) != 1:
                raise UserError(f"{table}: its recording {said or '(not named)'} is "
                                + (f"one of several: {', '.join(paths[:3])}" if paths else f"not in {folder}"))
            events[paths[0]] += [replace(event, file=paths[0]) for event in found]
    return [(path, None, some) for path, some in events.items()]


def _windows(source, path, recordings, labels, width, hop):
    """The Split of one list of recordings [(file, seconds or None, events)]."""
    if not recordings:
        raise UserError(f"{path} holds no recordings")
    if any(not file for file, _, _ in recordings):
        raise UserError(f"{path} doesn't say in which recordings its calls are: it wants a column file (Raven's is "
                        "Begin Path)")
    names = [file for file, _, _ in recordings]
    whole = source.place(build(names, bases=(), origin=str(path), streams=_streams(path, names)), path)
    files, frames = _files(path, whole, [seconds for _, seconds, _ in recordings])
    events, of_file = _events(source, path, whole, recordings, frames / np.array([rate for _, _, rate in files]))
    count = np.array([count_windows(seconds, width, hop) for _, seconds, _ in files])
    if not count.sum():
        raise UserError(f"{path}: all {len(files)} recordings are too short for a window of {width:g} s")
    file_index = np.repeat(np.arange(len(files), dtype=np.int32), count)
    index = np.arange(len(file_index)) - (np.cumsum(count) - count)[file_index]  # of a window in its recording
    rows, rate = whole.select(file_index), np.array([rate for _, _, rate in files])[file_index]
    rows.sample_rate = rate.astype(np.int32)
    rows.start = np.rint(index * hop * rate).astype(np.int64)
    rows.frames = np.minimum(np.rint(width * rate).astype(np.int64), frames[file_index] - rows.start)
    code = source.coder(labels, path)
    codes = np.array([code(event.label) for event in events], int)
    for event, k in zip(events, codes):
        event.label = labels[k]
    targets = label_windows(np.array([event.start for event in events]), np.array([event.end for event in events]),
                            codes, of_file, count, width, hop, len(labels))
    return Split(rows, targets, source.groups(whole)[file_index], events, files, file_index)


def _streams(path, files):
    """The streams that a CSV list of calls names in any row of each recording, as in a Manifest."""
    if path.is_dir() or path.suffix not in (".csv", ".tsv"):
        return {}
    header, out = _header(path), {}
    for name in (name for name in header if name.startswith(STREAM)):
        of_row = _column(path, header[columns(header)["file"]])
        said = {file: stream for file, stream in zip(of_row, _column(path, name)) if stream}
        place = {stream: k for k, stream in enumerate(dict.fromkeys(["", *said.values()]))}
        codes = np.array([place[said.get(file, "")] for file in files], np.int32)
        out[name.removeprefix(STREAM).strip()] = codes, list(place)
    return out


def _files(path, whole, lengths):
    """[(path, seconds as listed or else counted, sample rate)] and frames int64 (R,) of each recording."""
    files, frames = [], np.zeros(len(whole), np.int64)
    for k, seconds in enumerate(lengths):
        frames[k], rate, _ = audio.info(whole.locate(k))
        if seconds is not None and seconds > frames[k] / rate + _PAST_END:
            raise UserError(f"{path} says that {audio.shown(whole.path(k))} lasts {seconds:g} s, the file has "
                            f"{frames[k] / rate:g} s")
        files.append((whole.path(k), float(frames[k] / rate) if seconds is None else seconds, rate))
    return files, frames


def _events(source, path, whole, recordings, seconds):
    """All events of a list, each with its recording's path as in the rows; and the recordings' indices int64 (E,).

    One that ends after its recording (seconds (R,)) is an error in own tasks; BEANS's lists are taken as they are.
    """
    events, of_file, outside = [], [], 0
    for k, (file, _, some) in enumerate(recordings):
        for event in some:
            if event.end > seconds[k] + _PAST_END:
                if not source.settings:
                    raise UserError(f"{path}: {event.label!r} from {event.start:g} to {event.end:g} s lies outside "
                                    f"{file}, which ends at {seconds[k]:g} s")
                outside += 1
            events.append(replace(event, file=whole.path(k)))
            of_file.append(k)
    if outside:
        warn(f"{path}: {outside} annotations end after their recording")
    return events, np.array(of_file, int)


def count_windows(seconds, width, hop):
    """BEANS's number of windows: int((seconds - width) / hop) + 1. int() rounds towards zero, so a recording between
    width - hop and width has one, which is padded; a shorter one has none."""
    return max(0, int((seconds - width) / hop) + 1)


def label_windows(start, end, code, recording, count, width, hop, classes):
    """Which classes are on in which windows, by BEANS's rule -> bool (sum(count), classes).

    start, end (E,): annotations in seconds of their recording; code (E,): class; recording (E,): index into count;
    count (R,): windows of each recording, window k from k hop to k hop + width. A class is on if an annotation covers
    the window, or if one of its ends lies in it (borders count) and their overlap is more than 0.2 of the shorter of
    the two; annotations without length never count.
    """
    targets = np.zeros((int(np.sum(count)), classes), bool)
    if not len(start):
        return targets
    # The windows that an annotation can touch, and one more on each side, so that rounding loses none.
    low = np.clip(np.floor((start - width) / hop).astype(np.int64) - 1, 0, count[recording])
    high = np.clip(np.floor(end / hop).astype(np.int64) + 2, low, count[recording])
    event = np.repeat(np.arange(len(start)), high - low)
    window = np.arange(len(event)) - np.repeat(np.cumsum(high - low) - (high - low), high - low) + low[event]
    a, b, left = start[event], end[event], window * hop
    right = left + width
    end_inside = ((left <= a) & (a <= right)) | ((left <= b) & (b <= right))
    shorter = np.minimum(right - left, b - a)
    with np.errstate(divide="ignore", invalid="ignore"):
        enough = (np.minimum(right, b) - np.maximum(left, a)) / shorter > 0.2
    on = (shorter > 0) & ((end_inside & enough) | ((a <= left) & (right <= b)))
    first = np.cumsum(count) - count
    targets[first[recording[event[on]]] + window[on], code[event[on]]] = True
    return targets
