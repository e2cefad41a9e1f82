"""Training with labels: one rate and one seed on the training split, judged on the validation split after each epoch.

A trial sees two splits and nothing else, so that whatever is chosen among trials was chosen without the test split.
"""
import json
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import torch

from model import load_encoder, write_atomically
from wren import cli
from wren.probing.scoring import FrameTargets, metric_of, predict
from wren.recipes.finetuning import Settings
from wren.sound import loading
from wren.tasks import Task
from wren.tasks.batches import LabelledLoader
from wren.training import checkpoints, engine, heads
from wren.training.loop import Loop, NotFinite
from wren.training.processes import Processes


@dataclass(frozen=True)
class Job:
    """What all trials of a task share. From procs on: on what they run, of which their results depend by rounding."""
    settings: Settings
    task: Task  # without its test split
    folder: Path
    encoder: str  # checkpoint file or preset's name
    procs: Processes
    stop: cli.StopSignals
    format: str | None = None  # of the checkpoint
    changes: dict = field(default_factory=dict)  # of the encoder's config
    workers: int = 0
    micro_batch: int | None = None  # clips a forward pass of one process; None: all
    amp: str = "auto"
    max_bad: float = 0.01  # share of drawn clips that may have become unreadable


def build(job, seed):
    """The objective around encoder and new head, with what is not trained frozen."""
    s, task = job.settings, job.task
    torch.manual_seed(seed)
    encoder = load_encoder(job.encoder, job.format, **job.changes)
    if s.trainable != "all":
        encoder.requires_grad_(False)
        for module in (encoder.norm, *encoder.blocks[-int(s.trainable):]) if s.trainable != "head" else ():
            module.requires_grad_(True)
    tuned = heads.FineTuned(encoder, task.labels, "softmax" if s.loss == "ce" else "sigmoid", s.head,
                            window_seconds=task.window_seconds, hop_seconds=task.hop_seconds,
                            resolution=s.resolution)
    masks = {"time": s.time_mask, "band": s.band_mask, "noise": s.noise}
    objective = heads.Supervised(tuned, s.loss, s.smoothing, masks if any(masks.values()) else None,
                                 s.patch_drop)
    # what the loss does not depend on, the mask token for one: other processes would wait for its gradient
    wave, target = torch.zeros(1, encoder.config.sample_rate), torch.zeros(1, len(task.labels))
    value, _ = objective.eval()(wave, None, None, target, target[None] if s.head != "linear" else None)
    trained = [p for p in objective.parameters() if p.requires_grad]
    for p, gradient in zip(trained, torch.autograd.grad(value, trained, allow_unused=True)):
        p.requires_grad_(gradient is not None)
    return objective.to(job.procs.device)


def make_optimizer(objective, settings, lr):
    """The rate of each block is `layer_decay` of the next one's, that of the embeddings of the first one's; head and
    last norm have the full rate (BEiT)."""
    depth = objective.encoder.config.depth

    def share(name):
        part = name.removeprefix("model.encoder.").split(".")
        inside = name.startswith("model.encoder.") and part[0] != "norm"
        layer = depth + 1 if not inside else int(part[1]) + 1 if part[0] == "blocks" else 0
        return settings.layer_decay ** (depth + 1 - layer)
    return engine.make_optimizer(objective, settings.optimizer, lr, settings.betas, settings.weight_decay, 1e-8, share)


class Trial:
    """One rate and seed. `run` gives its curve and best epoch; best.pt in its folder holds the weights of that epoch.

    The same trial again goes on where it was killed, exactly; a finished one only reads trial.json.
    """

    def __init__(self, job, seed, lr):
        self.job, self.seed, self.lr = job, seed, lr
        self.folder = job.folder / f"seed{seed}-lr{lr:g}"
        s = job.settings
        per_epoch = len(job.task.splits["train"]) / s.batch_size
        self.steps = s.steps or ceil(s.epochs * per_epoch)
        self.epochs = ceil(self.steps / per_epoch) if s.steps else s.epochs
        self.epoch_ends = {min(self.steps, ceil(e * per_epoch)): e for e in range(1, self.epochs + 1)}

    def run(self):
        """{"lr", "seed", "epoch", "value", "curve"}, or None when a signal ended it."""
        done = self.folder / "trial.json"
        if not done.exists():
            loop = self._loop()
            curve = loop.kept.setdefault("curve", [])
            try:
                for step, _ in loop.run(self._batches(loop.trainer), self.epoch_ends.__contains__):
                    if step in self.epoch_ends:
                        self._judge(loop, curve)
                    loop.save()
            except NotFinite:
                loop.bar.say(f"  lr {self.lr:g}: ten steps in a row were not finite, so this rate is given up")
            if loop.bad.bad:
                loop.bar.say(f"  {loop.bad.bad:.0f} clips could not be read when they were drawn, and others took "
                             f"their places: {loop.bad.path}")
            loop.bar.close()
            if loop.ended_early:
                return None
            best = max(curve, key=lambda row: row["valid"], default={"epoch": None, "valid": -1.0})
            if self.job.procs.main:
                cli.write_text(done, json.dumps({"lr": self.lr, "seed": self.seed, "epoch": best["epoch"],
                                                 "value": best["valid"], "curve": curve}))
                for path in [*checkpoints.checkpoints(self.folder), self.folder / "last.pt"]:
                    path.unlink(missing_ok=True)
        self.job.procs.barrier()
        return json.loads(done.read_text())

    def best_model(self):
        """The model of the best epoch, in eval mode."""
        objective = build(self.job, self.seed)
        objective.load_state_dict(torch.load(self.folder / "best.pt", map_location=self.job.procs.device,
                                             weights_only=True))
        return objective.model.eval()

    def _loop(self):
        """Model and optimiser, from the newest checkpoint if there is one."""
        job, s = self.job, self.job.settings
        objective = build(job, self.seed)
        trainer = engine.Trainer(
            objective, make_optimizer(objective, s, self.lr), job.procs, batch_size=s.batch_size,
            micro_batch=job.micro_batch, steps=self.steps, warmup=round(s.warmup * self.steps), schedule=s.schedule,
            floor=s.floor, clip=s.clip, amp=job.amp, seed=self.seed, augment={"gain": s.gain, "roll": s.roll})
        return Loop(trainer, self.folder, job.stop, len(job.task.splits["train"]), keep=1, max_bad=job.max_bad)

    def _batches(self, trainer):
        """The training split from the trainer's step on."""
        job, s, model = self.job, self.job.settings, trainer.objective.model
        split, labels, size = job.task.splits["train"], job.task.labels, trainer.batch_size
        return LabelledLoader(
            split, loading.Sampling.of(model.encoder.config), len(labels), size, self.seed, first=trainer.step * size,
            steps=self.steps - trainer.step, rank=job.procs.rank, world=job.procs.world, workers=job.workers,
            mixup=s.mixup, alpha=s.alpha, balanced=s.balanced,
            frames=None if model.kind == "linear" else FrameTargets(split, labels, model.frame_seconds))

    def _judge(self, loop, curve):
        """Score the validation split, keep the weights if they are the best so far, and write it down."""
        job, trainer, split = self.job, loop.trainer, self.job.task.splits["valid"]
        entry, epoch = loop.entry(trainer.step), self.epoch_ends[trainer.step]
        scores, _ = predict(trainer.objective.model, split, job.procs, trainer.autocast, job.workers)
        value = metric_of(job.task.metric, scores, split.targets)
        if job.procs.main and value > max((row["valid"] for row in curve), default=-1.0):
            write_atomically(trainer.objective.state_dict(), self.folder / "best.pt")
        loop.write(entry | {"valid": value})
        curve.append({"epoch": epoch, "step": trainer.step, "valid": value})
        if epoch % max(1, self.epochs // 5) == 0 or trainer.step == self.steps:
            loop.bar.say(f"  seed {self.seed}  lr {self.lr:<7g} epoch {epoch:>3} of {self.epochs}  loss "
                         f"{entry['loss']:.3f}  validation {value:.3f}  {loop.speed}")
