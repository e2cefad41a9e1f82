"""Tasks of labelled clips: lists in every layout, several labels, folds."""
import csv
import os
import re

import numpy as np

from wren.cli import UserError, warn
from wren.sound.manifest import build, coded, join
from wren.sound.opening import open_manifest
from wren.sound.scan import find
from wren.tasks.task import Split, Task


def clip_task(source, lists, fold):
    """A task whose items are clips with labels."""
    settings = source.settings
    parts = {split: source.place(_open_clips(path), path) for split, path in lists.items()}
    folds = _folds(parts)
    if fold is not None or "all" in parts:
        parts = _by_fold(source.name, join(*parts.values()), folds, fold)
    multi = not settings.labels and any(";" in text for rows in parts.values() for text in rows.text("label"))
    labels = source.classes({split: {label for text in set(rows.text("label")) for label in _labels_of(text, multi)}
                             for split, rows in parts.items()})
    if len(labels) < 2 and not multi:
        raise UserError(f"task {source.name} has the single class {labels[0]!r}: there is nothing to tell apart")
    splits = {split: Split(rows, _targets(source, rows, labels, multi), source.groups(rows),
                           clip_seconds=settings.seconds) for split, rows in parts.items()}
    return Task(source.name, "multilabel" if multi else "classification", "map" if multi else "accuracy",
                settings.group, labels, splits, settings.sample_rate, settings.seconds, folds=folds)


def _labels_of(text, multi):
    """The labels in a field."""
    return [part.strip() for part in text.split(";") if part.strip()] if multi else [text]


def _targets(source, rows, labels, multi):
    """int32 (n,) or, for several labels, bool (n, C)."""
    texts, code = rows.text("label"), source.coder(labels, rows.origin)
    if not multi:
        if "" in texts:
            raise UserError(f"{rows.origin} has a row with an empty label")
        return np.array([code(text) for text in texts], np.int32)
    targets = np.zeros((len(texts), len(labels)), bool)
    for target, text in zip(targets, texts):
        target[[code(label) for label in _labels_of(text, multi)]] = True
    return targets


def _open_clips(path):
    """A list of clips in any of the layouts; several labels of a clip come separated by semicolons."""
    if path.suffix == ".tsv" and path.with_suffix(".lbl").exists():
        return _open_eat(path)
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        if re.match(r"#.*segments|#? ?YTID", file.readline(), re.IGNORECASE):
            return _open_audioset(path)
    rows = open_manifest(path, extra=("fold", "recording"))
    if "label" not in rows.texts:
        raise UserError(f"{path} has no column label")
    return rows


def _open_eat(path):
    """EAT's (fairseq's) pair: NAME.tsv with the clips, NAME.lbl with a line for each, whose last field by tabs are
    the labels by commas; label_descriptors.csv (index, name) beside them names indices."""
    rows = open_manifest(path)
    lines = path.with_suffix(".lbl").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    if len(lines) != len(rows):
        raise UserError(f"{path.with_suffix('.lbl')} has {len(lines)} lines, {path} names {len(rows)} clips")
    names = _names_beside(path)
    rows.texts["label"] = coded(
        ";".join(names.get(x.strip(), x.strip()) for x in line.split("\t")[-1].split(",")) for line in lines)
    return rows


def _open_audioset(path):
    """AudioSet's segment list: YTID, start_seconds, end_seconds, "mid,mid". The clips, cut already, are found
    anywhere below the list's folder by the YTID's 11 characters, perhaps after a Y, with which their names begin. Many
    videos are gone, so clips that are missing are counted, no error. class_labels_indices.csv beside the list
    names the classes."""
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


def _folds(parts):
    """The names of the folds that a task's lists have, in order; [] without that column."""
    if any("fold" not in rows.texts for rows in parts.values()):
        return []
    names = set().union(*(rows.text("fold") for rows in parts.values()))
    return sorted(names, key=lambda name: (0, int(name), "") if name.isdigit() else (1, 0, name))


def _by_fold(name, rows, folds, fold):
    """Fold `fold` (default: the last) as test, the one before it as valid, the others as train."""
    if len(folds) < 3:
        raise UserError(f"task {name} has {'less than three values in its' if folds else 'no'} column fold")
    fold = folds[-1] if fold is None else str(fold)
    if fold not in folds:
        raise UserError(f"task {name} has no fold {fold}: its folds are {', '.join(folds)}")
    before = folds[folds.index(fold) - 1]
    of_row = np.array(rows.text("fold"))
    valid, test = of_row == before, of_row == fold
    return {"train": rows.select(~valid & ~test), "valid": rows.select(valid), "test": rows.select(test)}
