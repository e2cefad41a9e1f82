"""Labelled data sets to train and be judged on: BEANS's twelve by name, and own ones as folders.

    load_task("watkins", root=BEANS)         one of `BEANS`; root holds the folder data/ that the BEANS scripts make
    load_task("FOLDER")                      an own task, in one of these layouts:

    clips         train.csv, valid.csv, test.csv with path and label; several labels by semicolons
                  the same as annotations.train.csv …; or train.tsv + train.lbl … (EAT); or AudioSet's segment lists
    folds         one annotations.csv with path, label, fold, or a column fold in the lists
    recordings    train.jsonl … (BEANS), or train.csv … with file, start, end, label, or folders train/ … of recordings,
                  each with a table beside it (Raven, Audacity or CSV: REC.txt, REC.Table.1.selections.txt, REC.csv)

A recording without calls is a JSON line without annotations, a CSV row with only the file, or a file without a table.
Sources of the BEANS facts: github.com/earthspecies/beans (MIT), datasets.yml, datasets.py and scripts/.
"""
import csv
import os
import re
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

import numpy as np

import audio
from annotations import read_recordings
from cli import UserError
from manifest import Manifest, build, join, open_manifest, warn

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


# --------------------------------------------------------------------------------------------------------- BEANS

@dataclass(frozen=True)
class Beans:
    """One of BEANS's sets. Lists lie below data/ with the split's name for {}."""
    group: str
    lists: str
    sample_rate: int  # Hz
    seconds: float  # of a clip, or of a window
    hop: float | None  # seconds between windows
    labels: str  # separated by semicolons; "": all that occur in the lists, sorted
    unknown: str | None = None  # the label that others are counted as; None: an error
    recording: str = ""  # a pattern whose group 1 says which files were one recording (or speaker); "": each its own


_MINUTE = r"([^/]+)\.\d{3}\.wav$"  # recordings are cut into minutes NAME.000.wav, NAME.001.wav, …
_WATKINS = (
    "Clymene_Dolphin;Bottlenose_Dolphin;Spinner_Dolphin;Beluga,_White_Whale;Bearded_Seal;Minke_Whale;Humpback_Whale;"
    "Southern_Right_Whale;White-sided_Dolphin;Narwhal;White-beaked_Dolphin;Northern_Right_Whale;Frasers_Dolphin;"
    "Grampus,_Rissos_Dolphin;Harp_Seal;Atlantic_Spotted_Dolphin;Fin,_Finback_Whale;Ross_Seal;Rough-Toothed_Dolphin;"
    "Killer_Whale;Pantropical_Spotted_Dolphin;Short-Finned_Pacific_Pilot_Whale;Bowhead_Whale;False_Killer_Whale;"
    "Melon_Headed_Whale;Long-Finned_Pilot_Whale;Striped_Dolphin;Leopard_Seal;Walrus;Sperm_Whale;Common_Dolphin")
_HUMBUGDB = (
    "non-mosquito;an arabiensis;others;an gambiae ss;culex quinquefasciatus;culex pipiens complex;an funestus ss;"
    "an squamosus;ma uniformis;an dirus;ae aegypti;an harrisoni;an maculatus;an funestus sl")
_DCASE = "AMRE;BBWA;BTBW;CALL;CCMK;CHSP;COYE;GCTH;GIG;GRN;OVEN;Q;RBGR;SAVS;SNMK;SQT;SWTH;WTSP"
_ENABIRDS = (
    "AMCR;AMGO;AMRE;AMRO;BAWW;BCCH;BGGN;BHCO;BHVI;BLJA;BTNW;BWWA;CARW;COYE;EATO;HETH;HOWA;KEWA;LOWA;NOCA;NOFL;OVEN;"
    "RBGR;RBWO;RCKI;REVI;SCTA;SWTH;TUTI;WBNU;WITU;WOTH;YBCU;OTHR")
_COMMANDS = (
    "backward;bed;bird;cat;dog;down;eight;five;follow;forward;four;go;happy;house;learn;left;marvin;nine;no;off;on;one;"
    "right;seven;sheila;six;stop;three;tree;two;up;visual;wow;yes;zero")

BEANS = {
    "watkins": Beans("classification", "watkins/annotations.{}.csv", 44100, 3, None, _WATKINS),
    "bats": Beans("classification", "egyptian_fruit_bats/annotations.{}.csv", 250000, 5, None,
                  "111;210;211;215;216;220;226;228;230;231"),
    "cbi": Beans("classification", "cbi/annotations.{}.csv", 44100, 10, None, ""),  # 264 eBird codes
    "dogs": Beans("classification", "dogs/annotations.{}.csv", 44100, 10, None,
                  "Farley;Freid;Keri;Louie;Luke;Mac;Roodie;Rudy;Siggy;Zoe"),
    "humbugdb": Beans("classification", "HumBugDB/data/metadata/{}.csv", 44100, 3, None, _HUMBUGDB),
    "dcase": Beans("detection", "dcase/{}.jsonl", 16000, 2, 1, _DCASE, recording=_MINUTE),
    "enabirds": Beans("detection", "enabirds/{}.jsonl", 32000, 2, 1, _ENABIRDS, "OTHR", _MINUTE),
    "hiceas": Beans("detection", "hiceas/{}.jsonl", 22050, 10, 5, "1"),
    "rfcx": Beans("detection", "rfcx/{}.jsonl", 48000, 10, 5, ";".join(map(str, range(24)))),
    "hainan-gibbons": Beans("detection", "hainan_gibbons/{}.jsonl", 9600, 4, 2, "1;2;3", "1", _MINUTE),
    "esc50": Beans("auxiliary", "esc50/meta/esc50.{}.csv", 44100, 5, None, ";".join(map(str, range(50))),
                   recording=r"(\d+-\d+)-[^/]+$"),  # fold-recording-take-class.wav
    "speech-commands": Beans("auxiliary", "speech_commands/{}.csv", 16000, 1, None, _COMMANDS,
                             recording=r"([^/]+)_nohash_"),  # the speaker
}


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


# ------------------------------------------------------------------------------------------------------- loading

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
    if low:
        lists["train"] = _low_list(lists["train"])
    for split, path in lists.items():
        if not path.exists():
            raise UserError(f"{path} is missing: task {name} has a list for each of train, valid and test")
    source = _Source(name, settings, home, root)
    if (settings and settings.hop) or (not settings and _lists_events(lists["train"])):
        if fold is not None:
            raise UserError(f"task {name} is a detection task: folds are for clips")
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
        return rows

    def classes(self, seen):
        """The task's labels from those that the splits have: {split: labels}."""
        if self.settings and self.settings.labels:
            return self.settings.labels.split(";")
        if self.settings:
            return sorted(set().union(*seen.values()))
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
            if label in codes or unknown is not None:
                return codes.get(label, codes.get(unknown))
            raise UserError(f"{path} has the unknown label {label!r}: {self.name} has the classes "
                            f"{', '.join(labels[:8])}{' …' * (len(labels) > 8)}")
        return code

    def groups(self, rows, said=None):
        """Which rows come from one recording -> int64 (n,)."""
        if said is not None:
            return np.unique(said, return_inverse=True)[1].astype(np.int64)
        pattern = re.compile(self.settings.recording) if self.settings and self.settings.recording else None
        if pattern is None:
            return np.unique(rows.recording_keys(), return_inverse=True)[1].astype(np.int64)
        paths = (rows.path(i) for i in range(len(rows)))
        keys = [match[1] if (match := pattern.search(path)) else path for path in paths]
        return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _folder(task, root):
    """The folder that `--task` names."""
    folder = next((p for p in (Path(root or ".") / str(task), Path(task)) if p.is_dir()), None)
    if folder is None:
        place = Path(root or ".")
        other = (f"nor is BEANS's list {place / 'data' / BEANS[str(task)].lists.format('train')} there, or without data/"
                 if str(task) in BEANS else f"nor one of BEANS's twelve ({', '.join(BEANS)})")
        raise UserError(f"--task {task}: neither a folder nor a folder in {place}, {other}")
    return folder


def _own_lists(folder, task):
    """{split: file or folder} of an own task."""
    names = ("{}.csv", "annotations.{}.csv", "{}.jsonl", "{}.tsv", "{}")
    for name in names:
        if (folder / name.format("train")).exists():
            return {split: folder / name.format(split) for split in SPLITS}
    if (folder / "annotations.csv").exists():
        return {"all": folder / "annotations.csv"}
    inside = sorted(p.name for p in folder.iterdir())[:5]
    raise UserError(f"--task {task}: {folder}/train.csv is missing; a task has lists train, valid and test: .csv with "
                    "path and label (or file, start, end, label), .jsonl, .tsv with .lbl, folders of recordings and "
                    f"tables, or one annotations.csv with a column fold (there is {', '.join(inside) or 'nothing'})")


def _low_list(path):
    """The list of the low-data protocol beside a training list."""
    low = path.with_name(path.name.replace("train", "train-low"))
    if not low.exists():
        raise UserError(f"{low} is missing: this task has no low-data list")
    return low


def _header(path):
    """Column names of a CSV or TSV, in lower case."""
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        first = file.readline()
    return [n.strip().lower() for n in next(csv.reader([first], delimiter="\t" if "\t" in first else ","), [])]


def _lists_events(path):
    """Whether a training list is of events in recordings rather than of clips."""
    if path.is_dir() or path.suffix == ".jsonl":
        return True
    names = _header(path)
    return path.suffix == ".csv" and not names[:1] == ["path"] and "end" in names and "start" in names


# --------------------------------------------------------------------------------------------------------- clips

@dataclass
class _Clips:
    """One list of clips: rows whose label is the field's text, and the columns fold and recording if it has them."""
    path: Path
    rows: Manifest
    fold: np.ndarray | None = None  # str (n,)
    recording: np.ndarray | None = None  # str (n,)

    def select(self, rows):
        return replace(self, rows=self.rows.select(rows), **{
            name: None if getattr(self, name) is None else getattr(self, name)[rows] for name in ("fold", "recording")})

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
    """EAT's (fairseq's) pair: NAME.tsv with the clips, NAME.lbl with a line for each: an id, perhaps more, and last the
    labels by commas, by tabs; label_descriptors.csv (index, name) beside them names indices."""
    rows = open_manifest(path)
    lines = path.with_suffix(".lbl").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    if len(lines) != len(rows):
        raise UserError(f"{path.with_suffix('.lbl')} has {len(lines)} lines, {path} names {len(rows)} clips")
    names = _names_beside(path)
    rows.label, rows.labels = _coded(
        ";".join(names.get(x.strip(), x.strip()) for x in line.split("\t")[-1].split(",")) for line in lines)
    return rows


def _open_audioset(path):
    """AudioSet's segment list: YTID, start_seconds, end_seconds, "mid,mid". The clips, cut already, are found anywhere
    below the list's folder as YTID.wav, YYTID.wav or YTID_START….wav; many videos are gone, so clips that are missing
    are counted, not an error. class_labels_indices.csv beside the list names the classes."""
    from corpus import find
    files = {Path(file).stem: file for file in find(path.parent)}
    starts = {stem.rsplit("_", 1)[0]: file for stem, file in files.items() if "_" in stem}
    names, paths, labels, missing = _names_beside(path), [], [], 0
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for row in csv.reader(file, skipinitialspace=True):
            if not row or row[0].startswith("#") or row[0] == "YTID":
                continue
            if len(row) < 4:
                raise UserError(f"{path}: {','.join(row)[:80]!r} is not YTID, start_seconds, end_seconds, labels")
            place = next((t[key] for t in (files, starts) for key in (row[0], f"Y{row[0]}") if key in t), None)
            if place is None:
                missing += 1
                continue
            paths.append(os.path.relpath(place, path.parent))
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
                    # a semicolon separates labels
                    names.update({key.strip(): row[-1].strip().replace(";", ",") for key in row[:-1]})
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
        raise UserError(f"task {name} has {'no column' if not folds else 'fewer than three values in its column'} fold")
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
    from corpus import find
    events = {os.path.relpath(path, folder.parent): [] for path in find(folder)}
    by_name = {os.path.basename(path): path for path in events}
    by_stem = {os.path.splitext(os.path.basename(path))[0]: path for path in events}
    for table in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".txt", ".csv", ".tsv")):
        parts = table.name.split(".")
        stem = next((s for n in range(len(parts) - 1, 0, -1) if (s := ".".join(parts[:n])) in by_stem), None)
        for file, _, found in read_recordings(table):
            said = re.split(r"[\\/]", file)[-1]  # a path from whatever machine
            path = by_name.get(said) if said else by_stem.get(stem)
            if path is None:
                raise UserError(f"{table}: its recording {said or '(not named)'} is not in {folder}")
            events[path] += [replace(event, file=path) for event in found]
    return [(path, None, some) for path, some in events.items()]


def _windows(source, path, recordings, labels, width, hop):
    """The Split of one list of recordings [(file, seconds or None, events)]."""
    if not recordings:
        raise UserError(f"{path} lists no recordings")
    whole = source.place(build([file for file, _, _ in recordings], bases=(), origin=str(path)), path)
    code, files, events, codes, at, outside = source.coder(labels, path), [], [], [], [], 0
    frames = np.zeros(len(whole), np.int64)
    for k, (file, seconds, some) in enumerate(recordings):
        frames[k], rate, _ = audio.info(whole.locate(k))
        length = frames[k] / rate
        if seconds is not None and seconds > length + _PAST_END:
            raise UserError(f"{path} says that {file} lasts {seconds:g} s, the file has {length:g} s")
        files.append((whole.path(k), length if seconds is None else seconds, rate))
        for event in some:
            if event.start >= length or event.end > length + _PAST_END:
                if not source.settings:
                    raise UserError(f"{path}: {event.label!r} from {event.start:g} to {event.end:g} s lies outside "
                                    f"{file}, which ends at {length:g} s")
                outside += 1
            codes.append(code(event.label))
            at.append(k)
            events.append(replace(event, file=whole.path(k), label=labels[codes[-1]]))
    if outside:
        warn(f"{path}: {outside} annotations end after their recording")
    count = np.array([count_windows(seconds, width, hop) for _, seconds, _ in files])
    if not count.sum():
        raise UserError(f"{path}: all {len(files)} recordings are too short for a window of {width:g} s")
    rows = whole.select(np.repeat(np.arange(len(files)), count))
    index = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)  # of a window in its recording
    rate = np.repeat([rate for _, _, rate in files], count)
    rows.sample_rate = rate.astype(np.int32)
    rows.start = np.rint(index * hop * rate).astype(np.int64)
    rows.frames = np.minimum(np.rint(width * rate).astype(np.int64), np.repeat(frames, count) - rows.start)
    targets = label_windows(np.array([e.start for e in events]), np.array([e.end for e in events]),
                            np.array(codes, int), np.array(at, int), count, width, hop, len(labels))
    return Split(rows, targets, source.groups(rows), events, files,
                 np.repeat(np.arange(len(files), dtype=np.int32), count))


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
