"""Tasks of labelled clips: one label or several, lists for train, valid and test, or folds."""
import numpy as np

from wren.cli import UserError
from wren.sound.manifest import join
from wren.sound.opening import open_manifest
from wren.tasks.task import Split, Task


def clip_task(source, lists, fold):
    """A task whose items are clips with labels."""
    name, settings, parts = source.name, source.settings, {}
    for split, path in lists.items():
        rows = open_manifest(path, extra=("fold", "recording"))
        if "label" not in rows.texts:
            raise UserError(f"{path} has no column label")
        parts[split] = source.place(rows, path)
    folds = {text for rows in parts.values() for text in rows.text("fold")}
    folds = [] if "" in folds else sorted(folds, key=lambda name: (0, int(name)) if name.isdigit() else (1, name))
    if fold is not None or "all" in parts:
        parts = _by_fold(name, join(*parts.values()), folds, fold)
    multi = not settings.labels and any(";" in text for rows in parts.values() for text in rows.text("label"))
    said = {split: [[part.strip() for part in text.split(";") if part.strip()] if multi else [text]
                    for text in rows.text("label")] for split, rows in parts.items()}
    labels = source.classes({split: set().union(*some) for split, some in said.items()})
    if len(labels) < 2 and not multi:
        raise UserError(f"task {name} has the single class {labels[0]!r}: there is nothing to tell apart")
    splits = {}
    for split, rows in parts.items():
        if [""] in said[split]:
            raise UserError(f"{rows.origin} has a row with an empty label")
        targets = codes = source.codes([label for some in said[split] for label in some], labels, rows.origin)
        if multi:
            targets = np.zeros((len(rows), len(labels)), bool)
            targets[np.repeat(np.arange(len(rows)), list(map(len, said[split]))), codes] = True
        splits[split] = Split(rows, targets, source.groups(rows), clip_seconds=settings.seconds)
    return Task(name, "multilabel" if multi else "classification", "map" if multi else "accuracy", settings.group,
                labels, splits, settings.sample_rate, settings.seconds, folds=folds)


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
