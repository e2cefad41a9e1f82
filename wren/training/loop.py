"""The loop around the steps of a run: it resumes, writes down what happens, saves, and stops when it is told to."""
import time
from collections import deque

from tqdm import tqdm

from wren.cli import Pulse, UserError
from wren.sound.loading import BadLog, parts
from wren.training.checkpoints import Saver, load_checkpoint
from wren.training.runlog import Log, Meter


class NotFinite(UserError):
    """Too many steps in a row had a gradient that is not finite."""


class Progress(Pulse):
    """Of training: a bar on a terminal, a line a minute elsewhere; silent on all processes but the first."""

    def __init__(self, steps, first, main):
        super().__init__("training", steps, "steps", first, main)
        self.main, self.bar = main, None
        if main and not self.speaks:
            self.bar = tqdm(total=steps, initial=first, unit="step", dynamic_ncols=True)

    def beat(self, step, loss):
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self.bar.update(step - self.bar.n)
        super().beat(step, f", loss {loss:.3f}")

    def say(self, text):
        if self.bar is not None:
            self.bar.write(text)
        elif self.main:
            print(text, flush=True)
            self.said = time.monotonic()

    def close(self):
        if self.bar is not None:
            self.bar.close()


class Loop:
    """Takes a trainer from the newest checkpoint in `folder` to its last step; log.jsonl and bad.jsonl are there, too.

    clips: how many make an epoch; log_every: steps between rows of the log, None: the caller writes them. `kept` is
    what the caller wants back when a run goes on, beside the trainer's state: plain values.
    """

    def __init__(self, trainer, folder, stop, clips, *, keep=2, milestone=0, log_every=None, max_bad, max_skips=10):
        self.trainer, self.stop, self.clips, self.main = trainer, stop, clips, trainer.procs.main
        self.log_every, self.max_skips, self.stopping, self.speed = log_every, max_skips, False, ""
        state = load_checkpoint(folder)
        self.resumed, self.kept = state is not None, state["kept"] if state else {}
        if state:
            trainer.load_state_dict(state)
        trainer.procs.barrier()  # all have read the folder before the first process writes to it
        folder.mkdir(parents=True, exist_ok=True)
        self.log = Log(folder / "log.jsonl", trainer.step if state else -1) if self.main else None
        self.saver, self.bad = Saver(folder, keep, milestone), BadLog(folder / "bad.jsonl", max_bad)
        self.bar = Progress(trainer.steps, trainer.step, self.main)
        self.meter = Meter(trainer.procs, trainer.batch_size, trainer.objective)

    @property
    def ended_early(self):
        return self.stopping and self.trainer.step < self.trainer.steps

    def run(self, loader, due):
        """Train to the last step or a signal; yields (step, its row) where due(step), at the end, and on a signal."""
        trainer, batches, waiting = self.trainer, self.trainer.ahead(loader), deque()
        while trainer.step < trainer.steps and not self.stopping:
            with self.meter.waiting():
                batch = next(batches)
            numbers = trainer.launch(batch, flags=(self.stop.received is not None, len(batch["bad"])))
            waiting.append((trainer.step, batch, numbers))
            pause = due(trainer.step) or trainer.step == trainer.steps
            # a GPU is given its next step before the numbers of this one are waited for
            while len(waiting) > (trainer.procs.device.type == "cuda" and not (pause or self.stopping)):
                row = self._note(*waiting.popleft())
            if pause or self.stopping:
                yield trainer.step, row

    def _note(self, step, batch, numbers):
        """Wait for the numbers of a step and write them down. numbers: what `Trainer.launch` returned. -> its row."""
        trainer, row = self.trainer, numbers()
        stopping, unreadable = row.pop("flags")
        self.stopping = self.stopping or stopping > 0
        self.bad.add(batch["bad"], unreadable, trainer.batch_size)
        self.meter.add(row)
        self.bar.beat(step, row["loss"])
        skipped = [] if row["finite"] else [i for part in parts([batch]) for i in part["index"].tolist()]
        if skipped:
            self.bar.say(f"step {step}: skipped, its gradient is not finite (clips {skipped})")
        if self.log_every and (step % self.log_every == 0 or step == trainer.steps or skipped):
            self.write(self.entry(step) | ({"skipped_clips": skipped} if skipped else {}))
        if trainer.skipped_in_a_row >= self.max_skips:
            raise NotFinite(f"step {step}: {self.max_skips} steps in a row were not finite; the last checkpoint is "
                            f"whole: lower --lr, or look at the skipped_clips in {self.saver.folder / 'log.jsonl'}")
        return row

    def entry(self, step):
        """What happened since the last one, as a row of the log."""
        entry = self.meter.entry(step, self.clips, self.trainer.skips)
        rate = entry["clips_per_second"]
        left = (self.trainer.steps - step) * self.trainer.batch_size / rate
        self.speed = f"{rate:.0f} clips/s, {left // 60:.0f}:{left % 60:02.0f} left"
        return entry

    def write(self, row):
        """A row of the log, from the first process."""
        if self.main:
            self.log.write(row)

    def save(self, encoder=None):
        """A checkpoint, and the encoder as encoder.pt, from the first process."""
        trainer = self.trainer
        if self.main and (complaint := self.saver.save(trainer.state_dict() | {"kept": self.kept}, trainer.step,
                                                       encoder, last=trainer.step == trainer.steps)):
            self.bar.say(complaint)
