"""Opening a task: one of BEANS's twelve by name, or a folder in one of the layouts of docs/data.md."""
from pathlib import Path

from wren.cli import UserError
from wren.tasks.annotations import read_text, records
from wren.tasks.beans import BEANS, Beans
from wren.tasks.clips import clip_task
from wren.tasks.task import SPLITS, Source
from wren.tasks.windows import detection_task


def task_names(names, root=None):
    """Names as `--task` takes them, with "beans" replaced by those of the twelve that are present, in their order."""
    present = [name for name in BEANS if "beans" in names and _beans_home(name, root)]
    if "beans" in names and not present:
        raise UserError(f"--task beans: none of the twelve is below {root or '.'}: --data wants the folder in "
                        "which the BEANS scripts made data/, or that data/ itself (for example "
                        f"{Path(root or '.') / 'data' / BEANS['watkins'].lists.format('train')})")
    return list(dict.fromkeys(one for name in names for one in (present if name == "beans" else [name])))


def load_task(task, root=None, low=False, fold=None, label=None):
    """One of BEANS's twelve by name, or a folder, or the name of one in `root` -> Task.

    root: for BEANS the folder that holds data/, or data/ itself; else where names and relative paths are looked up
    (first from the list's own folder up to `root`, then in the current one). low: BEANS's train-low list instead of
    train. fold: that fold is the test split, the one before it valid, the others train. label: of calls in
    tables that have none. Classes of own tasks are the sorted labels of the training split; others come after them.
    """
    name, settings, home = str(task), Beans(), _beans_home(str(task), root)
    if home:
        settings = BEANS[name]
        lists = {split: home / settings.lists.format(split) for split in SPLITS}
    else:
        folder = _folder(name, Path(root or "."))
        name, lists = folder.resolve().name, _own_lists(folder, task)
    train = next(iter(lists.values()))
    if low:
        if fold is not None:
            raise UserError(f"task {name}: a fold and the low-data list exclude each other")
        lists["train"] = train.with_name(train.name.replace("train", "train-low"))
        if lists["train"] == train or not lists["train"].exists():
            raise UserError(f"{train}: this task has no low-data list, train-low, beside it")
    for path in lists.values():
        if not path.exists():
            raise UserError(f"{path} is missing: task {name} has a list for each of train, valid and test")
    source = Source(name, settings, home, root)
    calls = settings.hop or train.is_dir() or train.suffix == ".jsonl"
    if not calls and not home:
        columns, _ = records(read_text(train).partition("\n")[0])
        calls = {"start", "end"} <= set(columns)
    if not calls:
        return clip_task(source, lists, fold)
    if fold is not None or "all" in lists:
        raise UserError(f"task {name} lists calls in recordings: it wants train, valid and test; folds are for clips")
    return detection_task(source, lists, label)


def _beans_home(name, root):
    """The folder data/ that holds a set of BEANS, or None: `root` itself or the one in it."""
    homes = (Path(root or ".") / "data", Path(root or "."))
    return next((home for home in homes if name in BEANS and (home / BEANS[name].lists.format("train")).exists()), None)


def _folder(task, place):
    """The folder that `--task` names."""
    if found := next((path for path in (place / task, Path(task)) if path.is_dir()), None):
        return found
    lists = place / "data" / BEANS.get(task, BEANS["watkins"]).lists.format("train")
    raise UserError(f"--task {task}: neither a folder nor a folder in {place}, nor one of BEANS's twelve "
                    f"({', '.join(BEANS)}) with its lists below data/ (such as {lists}) or in {place} itself")


def _own_lists(folder, task):
    """{split: file or folder} of an own task."""
    for name in ("{}.csv", "annotations.{}.csv", "{}.jsonl", "{}.tsv", "{}.txt", "{}"):
        if (folder / name.format("train")).exists():
            return {split: folder / name.format(split) for split in SPLITS}
    if (folder / "annotations.csv").exists():
        return {"all": folder / "annotations.csv"}
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
    raise UserError(f"--task {task}: {folder}/train.csv is missing; a task has lists train, valid and test: .csv "
                    "with path and label (or file, start, end, label), .jsonl, folders of recordings and tables, or "
                    f"one annotations.csv with a column fold (there is {inside or 'nothing'})")
