"""Labelled data: `load_task` opens BEANS's sets and own folders, in any of the layouts of docs/data.md."""
from wren.tasks.broken import without_broken
from wren.tasks.load import load_task, task_names
from wren.tasks.task import SPLITS, Split, Task

__all__ = ["SPLITS", "Split", "Task", "load_task", "task_names", "without_broken"]
