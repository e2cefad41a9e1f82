"""Checkpoints of a run: written whole or not at all, and found again."""
import os
from pathlib import Path

import torch

from model import VERSION, save_encoder, write_atomically
from wren.cli import UserError


def step_of(path):
    return int(Path(path).stem.split("-")[1])


def checkpoints(folder):
    """checkpoint-STEP.pt files of a run folder, newest first."""
    return sorted(Path(folder).glob("checkpoint-*.pt"), key=step_of, reverse=True)


class Saver:
    """Atomic checkpoints: the last `keep` and every `milestone`-th step stay. A full disk loses nothing; three misses
    in a row end the run."""

    def __init__(self, folder, keep=2, milestone=0):
        self.folder, self.keep, self.milestone, self.misses = Path(folder), keep, milestone, 0

    def save(self, state, step, encoder=None, last=False):
        """Write a checkpoint, and the encoder as encoder.pt; a complaint when the disk refused, else None. What the
        `last` step leaves must be written: there is no later chance."""
        path = self.folder / f"checkpoint-{step:08d}.pt"
        try:
            write_atomically({"version": VERSION, **state}, path)
            pointer = self.folder / ".last.tmp"
            pointer.unlink(missing_ok=True)
            pointer.symlink_to(path.name)
            os.replace(pointer, self.folder / "last.pt")
            if encoder is not None:
                save_encoder(encoder, self.folder / "encoder.pt")
        except (OSError, RuntimeError) as error:  # torch.save says RuntimeError on a full disk
            self.misses += 1
            reason = str(error).splitlines()[0][:120]
            if self.misses >= 3 or last:
                times = " at the last step" if last else " three times running"
                raise UserError(f"{path}: could not be written{times} ({reason}); free the disk and run the same "
                                "command again") from None
            return f"{path}: not written ({reason}); training goes on, the earlier checkpoint is whole"
        self.misses = 0
        for old in checkpoints(self.folder)[self.keep:]:
            if not self.milestone or step_of(old) % self.milestone:
                old.unlink()
        return None


def load_checkpoint(folder):
    """The newest checkpoint of a run folder that opens, or None; a damaged one falls back to the one before it."""
    damaged = []
    for path in checkpoints(folder):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file makes the reader raise
            damaged.append(f"{path.name}: {str(error).splitlines()[0][:80]}")
    if damaged:
        raise UserError(f"{folder}: no checkpoint opens ({damaged[0]}); start a new run with --out")
    return None
