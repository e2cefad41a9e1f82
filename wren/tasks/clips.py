"""Tasks of labelled clips: one label or several, lists for train, valid and test, or folds."""
import numpy as np

from wren.cli import UserError
from wren.sound.manifest import join
from wren.sound.opening import open_manifest
from wren.tasks.task import Split, Task


def clip_task(source, lists, fold):
    """A task whose items are clips with labels."""
    name, settings = source.name, source.settings
    parts = {split: source.place(_open(path), path) for split, path in lists.items()}
    folds = _folds(parts)
    if fold is not None or "all" in parts:
        parts = _by_fold(name, join(*parts.values()), folds, fold)
    multi = not settings.labels and any(";" in text for rows in parts.values() for text in rows.text("label"))
    said = {split: [_labels_of(text, multi) for text in rows.text("label")] for split, rows in parts.items()}
    labels = source.classes({split: set().union(*some) for split, some in said.items()})
    if len(labels) < 2 and not multi:
        raise UserError(f"task {name} has the single class {labels[0]!r}: there is nothing to tell apart")
    splits = {}
    for split, rows in parts.items():
        if multi:
            targets = np.zeros((len(rows), len(labels)), bool)
            for target, some in zip(targets, said[split]):
                target[source.codes(some, labels, rows.origin)] = True
        elif [""] in said[split]:
            raise UserError(f"{rows.origin} has a row with an empty label")
        else:
            targets = source.codes([text for text, in said[split]], labels, rows.origin)
        splits[split] = Split(rows, targets, source.groups(rows), clip_seconds=settings.seconds)
    return Task(name, "multilabel" if multi else "classification", "map" if multi else "accuracy", settings.group,
                labels, splits, settings.sample_rate, settings.seconds, folds=folds)


def _open(path):
    rows = open_manifest(path, extra=("fold", "recording"))
    if "label" not in rows.texts:
        raise UserError(f"{path} has no column label")
    return rows


def _labels_of(text, multi):
    """The labels in a field."""
    return [part.strip() for part in text.split(";") if part.strip()] if multi else [text]


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
    of_row = np.array(rows.text("fold"))
    valid, test = of_row == folds[folds.index(fold) - 1], of_row == fold
    return {"train": rows.select(~valid & ~test), "valid": rows.select(valid), "test": rows.select(test)}
