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
from pathlib import Path

from wren.cli import UserError
from wren.tasks.annotations import columns
from wren.tasks.beans import BEANS, Beans
from wren.tasks.clips import clip_task
from wren.tasks.lists import Source, table
from wren.tasks.task import SPLITS
from wren.tasks.windows import detection_task


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


def load_task(task, root=None, low=False, fold=None, label=None):
    """One of BEANS's twelve by name, or a folder, or the name of one in `root` -> Task.

    root: for BEANS the folder that holds data/, or data/ itself; else where names and relative paths are looked up
    (first from the list's own folder up to `root`, then in the current one). low: BEANS's train-low list instead of
    train. fold: that fold is the test split, the one before it valid, the others train. label: of calls in
    tables that have none. Classes of own tasks are the sorted labels of the training split; others come after them.
    """
    name, home = str(task), None
    if name in BEANS and (home := _beans_home(name, root)):
        lists = {s: home / BEANS[name].lists.format(s) for s in SPLITS}
        settings = BEANS[name]
    else:
        folder = _folder(task, root)
        name, lists, settings = folder.resolve().name, _own_lists(folder, task), Beans()
    if low and fold is not None:
        raise UserError(f"task {name}: a fold and the low-data list exclude each other")
    if low:
        lists["train"] = _low_list(lists.get("train", next(iter(lists.values()))))
    for split, path in lists.items():
        if not path.exists():
            raise UserError(f"{path} is missing: task {name} has a list for each of train, valid and test")
    source = Source(name, settings, home, root)
    if settings.hop or (not home and _lists_events(next(iter(lists.values())))):
        if fold is not None or "all" in lists:
            raise UserError(f"task {name} lists calls in recordings: it wants train, valid and test; folds are for "
                            "clips")
        return detection_task(source, lists, label)
    return clip_task(source, lists, fold)


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


def _lists_events(path):
    """Whether a list is of events in recordings rather than of clips."""
    return path.is_dir() or path.suffix == ".jsonl" or {"start", "end"} <= columns(table(path)[0]).keys()
