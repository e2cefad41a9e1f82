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
from wren.tasks.augment import change_waves
from wren.tasks.batches import LabelledLoader
from wren.training import checkpoints, engine, heads, processes, runlog


@dataclass(frozen=True)
class Source:
    """Where a trial's encoder comes from, and what is changed of its config."""
    path: str  # checkpoint file or preset's name
    format: str | None = None
    changes: dict = field(default_factory=dict)
    weights: str = ""  # what tells them from others: a preset's name, or a hash


@dataclass(frozen=True)
class Machine:
    """On what a trial runs; its result depends on none of it but for rounding."""
    procs: processes.Processes
    stop: cli.StopSignals
    workers: int = 0
    micro_batch: int | None = None  # clips a forward pass of one process; None: all
    amp: str = "auto"
    max_bad: float = 0.01  # share of drawn clips that may have become unreadable


@dataclass(frozen=True)
class Job:
    """What all trials of a task share."""
    settings: Settings
    source: Source
    task: Task  # without its test split
    folder: Path
    machine: Machine


def build(job, seed):
    """The objective around encoder and new head, with what is not trained frozen."""
    model, task = job.settings.model, job.task
    loss, mask = job.settings.optimisation, job.settings.augmentation
    torch.manual_seed(seed)
    encoder = load_encoder(job.source.path, job.source.format, **job.source.changes)
    if model.trainable != "all":
        encoder.requires_grad_(False)
        for module in (encoder.norm, *encoder.blocks[-int(model.trainable):]) if model.trainable != "head" else ():
            module.requires_grad_(True)
    tuned = heads.FineTuned(encoder, task.labels, "softmax" if loss.loss == "ce" else "sigmoid", model.head,
                            window_seconds=task.window_seconds, hop_seconds=task.hop_seconds,
                            resolution=model.resolution)
    masks = {"time": mask.time_mask, "band": mask.band_mask, "noise": mask.noise}
    objective = heads.Supervised(tuned, loss.loss, loss.smoothing, masks if any(masks.values()) else None,
                                 mask.patch_drop)
    # what the loss does not depend on, the mask token for one: other processes would wait for its gradient
    wave, target = torch.zeros(1, encoder.config.sample_rate), torch.zeros(1, len(task.labels))
    value, _ = objective.eval()(wave, None, None, target, target[None] if model.head != "linear" else None)
    trained = [p for p in objective.parameters() if p.requires_grad]
    for p, gradient in zip(trained, torch.autograd.grad(value, trained, allow_unused=True)):
        p.requires_grad_(gradient is not None)
    return objective.to(job.machine.procs.device)


def make_optimizer(objective, settings, lr):
    """The rate of each block is `layer_decay` of the next one's, that of the embeddings of the first one's; head and
    last norm have the full rate (BEiT). Weight decay is on matrices only, with Adam on everything."""
    depth, groups = objective.encoder.config.depth, {}
    for name, p in objective.named_parameters():
        part = name.removeprefix("model.encoder.").split(".")
        inside = name.startswith("model.encoder.") and part[0] != "norm"
        layer = depth + 1 if not inside else int(part[1]) + 1 if part[0] == "blocks" else 0
        decayed = settings.optimizer == "adam" or p.ndim >= 2 and name.endswith("weight")
        if p.requires_grad:
            groups.setdefault((layer, decayed), []).append(p)
    groups = [{"params": parameters, "weight_decay": settings.weight_decay if decayed else 0.0,
               "lr": lr * settings.layer_decay ** (depth + 1 - layer)}
              for (layer, decayed), parameters in groups.items()]
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
        optimizer = kind(groups, lr=lr, betas=settings.betas, fused=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


class Trial:
    """One rate and seed. `run` gives its curve and best epoch; best.pt in its folder holds the weights of that epoch.

    The same trial again goes on where it was killed, exactly; a finished one only reads trial.json.
    """

    def __init__(self, job, seed, lr):
        self.job, self.seed, self.lr = job, seed, lr
        self.settings, self.procs = job.settings.optimisation, job.machine.procs
        self.folder = job.folder / f"seed{seed}-lr{lr:g}"
        s, per_epoch = self.settings, len(job.task.splits["train"]) / self.settings.batch_size
        self.steps = s.steps or ceil(s.epochs * per_epoch)
        self.epochs = ceil(self.steps / per_epoch) if s.steps else s.epochs
        self.epoch_ends = {min(self.steps, ceil(e * per_epoch)): e for e in range(1, self.epochs + 1)}
        self.curve = []

    def run(self):
        """{"lr", "seed", "epoch", "value", "curve"}, or None when a signal ended it."""
        done = self.folder / "trial.json"
        if not done.exists():
            self._start()
            ended = self._loop()
            if self.bad.bad:
                self.bar.say(f"  {self.bad.bad:.0f} clips could not be read when they were drawn, and others took "
                             f"their places: {self.bad.path}")
            self.bar.close()
            if not ended:
                return None
            best = max(self.curve, key=lambda row: row["valid"], default={"epoch": None, "valid": -1.0})
            if self.procs.main:
                self.log.close()
                cli.write_text(done, json.dumps({"lr": self.lr, "seed": self.seed, "epoch": best["epoch"],
                                                 "value": best["valid"], "curve": self.curve}))
                for path in [*checkpoints.checkpoints(self.folder), self.folder / "last.pt"]:
                    path.unlink(missing_ok=True)
        self.procs.barrier()
        return json.loads(done.read_text())

    def best_model(self):
        """The model of the best epoch, in eval mode."""
        objective = build(self.job, self.seed)
        objective.load_state_dict(torch.load(self.folder / "best.pt", map_location=self.procs.device,
                                             weights_only=True))
        return objective.model.eval()

    def _start(self):
        """Model, optimiser, data and log, from the newest checkpoint if there is one."""
        s, machine, mask = self.settings, self.job.machine, self.job.settings.augmentation
        self.objective = build(self.job, self.seed)
        change = None
        if mask.gain or mask.roll:
            change = lambda clips: change_waves(clips["wave"], clips["lengths"], clips["seed"], mask.gain, mask.roll)
        self.trainer = trainer = engine.Trainer(
            self.objective, make_optimizer(self.objective, s, self.lr), self.procs, batch_size=s.batch_size,
            micro_batch=machine.micro_batch or s.batch_size, steps=self.steps, warmup=round(s.warmup * self.steps),
            schedule=s.schedule, floor=s.floor, clip=s.clip, amp=machine.amp, seed=self.seed, augment=change)
        if state := checkpoints.load_checkpoint(self.folder):
            trainer.load_state_dict(state)
            self.curve = state["curve"]
        self.procs.barrier()  # all have read the folder before the first process writes to it
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = runlog.Log(self.folder / "log.jsonl", trainer.step if state else -1) if self.procs.main else None
        self.bar = cli.Progress(self.steps, trainer.step, self.procs.main)
        self.saver = checkpoints.Saver(self.folder, keep=1)
        self.bad = loading.BadLog(self.folder / "bad.jsonl", machine.max_bad)
        split, labels, model = self.job.task.splits["train"], self.job.task.labels, self.objective.model
        frames = None if model.kind == "linear" else FrameTargets(split, labels, model.frame_seconds)
        self.batches = trainer.ahead(LabelledLoader(
            split, loading.Sampling.of(model.encoder.config), len(labels), s.batch_size, self.seed,
            first=trainer.step * s.batch_size, steps=self.steps - trainer.step, rank=self.procs.rank,
            world=self.procs.world, workers=machine.workers, mixup=mask.mixup, alpha=mask.alpha,
            balanced=mask.balanced, frames=frames))

    def _loop(self):
        """Train to the end, or until patience is at an end; False when a signal came."""
        s, trainer, stop = self.settings, self.trainer, self.job.machine.stop
        meter = runlog.Meter(self.procs, s.batch_size, self.objective)
        while trainer.step < self.steps and not (s.patience and self._waited() >= s.patience):
            with meter.waiting():
                batch = next(self.batches)
            row = trainer.train(batch, flags=(stop.received is not None, len(batch["bad"])))
            stopping, unreadable = row.pop("flags")
            self.bad.add(batch["bad"], unreadable, s.batch_size)
            meter.add(row)
            self.bar.beat(trainer.step, row["loss"])
            if trainer.skipped_in_a_row >= 10:
                self.bar.say(f"  lr {self.lr:g}: ten steps in a row were not finite, so this rate is given up")
                break
            if epoch := self.epoch_ends.get(trainer.step):
                entry = meter.entry(trainer.step, len(self.job.task.splits["train"]), trainer.skips)
                self._judge(epoch, entry)
            if epoch or stopping:
                state = trainer.state_dict() | {"curve": self.curve}
                if self.procs.main and (complaint := self.saver.save(state, trainer.step)):
                    self.bar.say(complaint)
            if stopping and trainer.step < self.steps:
                return False
        return True

    def _waited(self):
        """Epochs since the best one."""
        values = [row["valid"] for row in self.curve]
        return len(values) - 1 - values.index(max(values)) if values else 0

    def _judge(self, epoch, entry):
        """Score the validation split, keep the weights if they are the best so far, and write it down."""
        task = self.job.task
        scores, _ = predict(self.objective.model, task.splits["valid"], self.procs, self.trainer.autocast,
                            self.job.machine.workers)
        value = metric_of(task.metric, scores, task.splits["valid"].targets)
        if self.procs.main:
            if value > max((row["valid"] for row in self.curve), default=-1.0):
                write_atomically(self.objective.state_dict(), self.folder / "best.pt")
            self.log.write(entry | {"valid": value})
        self.curve.append({"epoch": epoch, "step": self.trainer.step, "valid": value})
        self.bar.update(entry)
        if epoch % max(1, self.epochs // 5) == 0 or self.trainer.step == self.steps:
            self.bar.say(f"  seed {self.seed}  lr {self.lr:<7g} epoch {epoch:>3} of {self.epochs}  loss "
                         f"{entry['loss']:.3f}  validation {value:.3f}  {self.bar.speed}")
