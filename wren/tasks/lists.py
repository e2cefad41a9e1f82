"""What all layouts of a task share: columns of tables, where sound lies, labels, what belongs together."""
import csv
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wren.cli import UserError, warn
from wren.sound import audio
from wren.sound.manifest import STREAM
from wren.tasks.annotations import read_text
from wren.tasks.beans import Beans


@dataclass
class Source:
    """What the loaders of a task's splits share: its name and rules, and where its sound lies."""
    name: str
    settings: Beans
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
                raise UserError(f"{path} names {audio.printable(rows.path(i))}, which is neither in "
                                f"{' nor in '.join(rows.bases)}")
        for name in rows.streams:
            for i in np.unique(rows.text(STREAM + name), return_index=True)[1]:
                if (stream := rows.stream(i, name)) and not os.path.exists(stream):
                    raise UserError(f"{path} names the stream {audio.printable(stream)}, which is not there")
        return rows

    def classes(self, seen):
        """The task's labels from those that the splits have: {split: labels}."""
        if self.settings.labels:
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

        def code(label):
            if (k := codes.get(label, codes.get(self.settings.unknown))) is None:
                raise UserError(f"{path} has the unknown label {label!r}: {self.name} has the classes "
                                f"{', '.join(labels[:8])}{' …' * (len(labels) > 8)}")
            return k
        return code

    def groups(self, rows):
        """Which rows come from one recording -> int64 (n,)."""
        keys = rows.recording_keys()
        if "recording" in rows.texts:
            keys = [said or rows.path(i) for i, said in enumerate(rows.text("recording"))]
        if self.settings.recording:
            paths = (rows.path(i) for i in range(len(rows)))
            keys = [match[1] if (match := re.search(self.settings.recording, path)) else path for path in paths]
        return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def table(path):
    """A CSV or TSV -> names of its columns, in lower case, and its rows."""
    text = read_text(path)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in text.partition("\n")[0] else ",")
    return [name.strip().lower() for name in next(rows, [])], list(filter(None, rows))
