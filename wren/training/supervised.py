"""Training with labels: one rate and one seed on the training split, judged on the validation split after each epoch.

A trial sees two splits and nothing else, so that whatever is chosen among trials was chosen without the test split.
"""
import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import torch

from wren import cli
from wren.sound import loading
from wren.training import engine
from wren.training import heads
from wren.training import runlog
from wren.tasks.augment import LabelledLoader
from model import load_encoder, write_atomically
from wren.probing.scoring import FrameTargets, metric_of, predict


@dataclass
class Job:
    """What all trials of a task share."""
    settings: SimpleNamespace  # protocols.settings_for
    source: str  # checkpoint file or preset's name
    format: str | None
    overrides: dict  # of the encoder's config
    labels: list
    metric: str  # "accuracy" or "map"
    window_seconds: float | None
    hop_seconds: float | None
    folder: Path
    procs: engine.Processes
    stop: cli.StopSignals
    workers: int = 0
    micro_batch: int | None = None
    amp: str = "auto"


def build(job, seed):
    """The objective around encoder and new head, with what is not trained frozen."""
    s = job.settings
    torch.manual_seed(seed)
    encoder = load_encoder(job.source, job.format, **job.overrides)
    model = heads.FineTuned(encoder, job.labels, "softmax" if s.loss == "ce" else "sigmoid", s.head,
                            window_seconds=job.window_seconds, hop_seconds=job.hop_seconds, resolution=s.resolution)
    if s.trainable != "all":
        encoder.requires_grad_(False)
        for module in (encoder.norm, *encoder.blocks[-int(s.trainable):]) if s.trainable != "head" else ():
            module.requires_grad_(True)
    masks = {"time": s.time_mask, "band": s.band_mask, "noise": s.noise}
    objective = heads.Supervised(model, s.loss, s.smoothing if s.loss == "ce" else 0.0,
                                 masks if any(masks.values()) else None, s.patch_drop)
    # what the loss does not depend on, the mask token for one: other processes would wait for its gradient
    wave, target = torch.zeros(1, encoder.config.sample_rate), torch.zeros(1, len(job.labels))
    loss, _ = objective.eval()(wave, None, None, target, target[None] if s.head != "linear" else None)
    trained = [p for p in objective.parameters() if p.requires_grad]
    for p, gradient in zip(trained, torch.autograd.grad(loss, trained, allow_unused=True)):
        p.requires_grad_(gradient is not None)
    return objective.to(job.procs.device)


def make_optimizer(objective, s, lr):
    """The rate of each block is `layer_decay` of the next one's, that of the embeddings of the first one's; head and
    last norm have the full rate (BEiT). Weight decay is on matrices only, with Adam on everything."""
    depth, groups = objective.encoder.config.depth, {}
    for name, p in objective.named_parameters():
        part = name.removeprefix("model.encoder.").split(".")
        inside = name.startswith("model.encoder.") and part[0] != "norm"
        layer = depth + 1 if not inside else int(part[1]) + 1 if part[0] == "blocks" else 0
        decayed = s.optimizer == "adam" or p.ndim >= 2 and name.endswith("weight")
        if p.requires_grad:
            groups.setdefault((layer, decayed), []).append(p)
    groups = [{"params": parameters, "weight_decay": s.weight_decay if decayed else 0.0,
               "lr": lr * s.layer_decay ** (depth + 1 - layer)} for (layer, decayed), parameters in groups.items()]
    if s.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer]
        optimizer = kind(groups, lr=lr, betas=s.betas, fused=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


class Trial:
    """One rate and seed. `run` gives its curve and best epoch; best.pt in its folder holds the weights of that epoch.

    The same trial again goes on where it was killed, exactly; a finished one only reads trial.json.
    """

    def __init__(self, job, train, valid, seed, lr):
        self.job, self.train_split, self.valid, self.seed, self.lr = job, train, valid, seed, lr
        self.folder = job.folder / f"seed{seed}-lr{lr:g}"
        s, per_epoch = job.settings, len(train) / job.settings.batch_size
        self.steps = s.steps or ceil(s.epochs * per_epoch)
        self.epochs = ceil(self.steps / per_epoch) if s.steps else s.epochs
        self.marks = {min(self.steps, ceil(e * per_epoch)): e for e in range(1, self.epochs + 1)}  # epochs end here
        self.curve, self.average = [], None

    def run(self):
        """{"lr", "seed", "epoch", "value", "curve"}, or None when a signal ended it."""
        done, procs = self.folder / "trial.json", self.job.procs
        if not done.exists():
            self._start()
            ended = self._loop()
            self.bar.close()
            if not ended:
                return None
            if self.average:
                self.objective.load_state_dict(mean_weights(self.average))
                self._judge("average")
            best = max(self.curve, key=lambda row: row["valid"], default={"epoch": None, "valid": -1.0})
            if procs.main:
                self.log.close()
                cli.write_text(done, json.dumps({"lr": self.lr, "seed": self.seed, "epoch": best["epoch"],
                                                 "value": best["valid"], "curve": self.curve}))
                for path in [*engine.checkpoints(self.folder), self.folder / "last.pt"]:
                    path.unlink(missing_ok=True)
        procs.barrier()
        return json.loads(done.read_text())

    def best_model(self):
        """The model of the best epoch, in eval mode."""
        objective = build(self.job, self.seed)
        objective.load_state_dict(torch.load(self.folder / "best.pt", map_location=self.job.procs.device,
                                             weights_only=True))
        return objective.model.eval()

    def _start(self):
        """Model, optimiser, data and log, from the newest checkpoint if there is one."""
        job, s, procs = self.job, self.job.settings, self.job.procs
        self.objective = build(job, self.seed)
        augment = None
        if s.gain or s.roll:
            augment = lambda clips: loading.augment(clips["wave"], clips["lengths"], clips["seed"], gain=s.gain,
                                                 shift=s.roll)
        self.trainer = trainer = engine.Trainer(
            self.objective, make_optimizer(self.objective, s, self.lr), procs, batch_size=s.batch_size,
            micro_batch=job.micro_batch or s.batch_size, steps=self.steps, warmup=round(s.warmup * self.steps),
            schedule=s.schedule, floor=s.floor, clip=s.clip, amp=job.amp, seed=self.seed, augment=augment)
        if state := engine.load_checkpoint(self.folder):
            trainer.load_state_dict(state)
            self.curve, self.average = state["curve"], state["average"]
        procs.barrier()  # all have read the folder before the first process writes to it
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = runlog.Log(self.folder / "log.jsonl", trainer.step if state else -1) if procs.main else None
        self.bar = cli.Progress(self.steps, trainer.step, procs.main)
        self.saver, self.bad = engine.Saver(self.folder, keep=1), loading.BadLog(self.folder / "bad.jsonl")
        frames, config = None, self.objective.encoder.config
        if s.head != "linear":
            frames = FrameTargets(self.train_split, job.labels, self.objective.model.frame_seconds)
        self.batches = iter(LabelledLoader(
            self.train_split, config.sample_rate, len(job.labels), s.batch_size, self.seed,
            any_rate=config.rate == "any", streams=config.stream_rates, first=trainer.step * s.batch_size,
            steps=self.steps - trainer.step, rank=procs.rank, world=procs.world, workers=job.workers, mixup=s.mixup,
            alpha=s.alpha, balanced=s.balanced, frames=frames))

    def _loop(self):
        """Train to the end, or until patience is at an end; False when a signal came."""
        s, trainer = self.job.settings, self.trainer
        meter = runlog.Meter(self.job.procs, s.batch_size, self.objective)
        while trainer.step < self.steps and not (s.patience and self._waited() >= s.patience):
            with meter.waiting():
                batch = next(self.batches)
            row = trainer.train(batch, flags=(self.job.stop.received is not None, len(batch["bad"])))
            stopping, unreadable = row.pop("flags")
            self.bad.add(batch["bad"], unreadable, s.batch_size)
            meter.add(row)
            if trainer.skipped_in_a_row >= 10:
                self.bar.say(f"  lr {self.lr:g}: ten steps in a row were not finite, so this rate is given up")
                break
            if epoch := self.marks.get(trainer.step):
                entry = meter.entry(trainer.step, len(self.train_split), trainer.skips)
                self._judge(epoch)
                if s.average and epoch > self.epochs - s.average:
                    self.average = add_weights(self.average, self.objective.state_dict())
                self._report(epoch, entry)
            if epoch or stopping:
                self._save()
            if stopping and trainer.step < self.steps:
                return False
        return True

    def _waited(self):
        """Epochs since the best one."""
        values = [row["valid"] for row in self.curve]
        return len(values) - 1 - values.index(max(values)) if values else 0

    def _judge(self, epoch):
        """Score the validation split, and keep the weights if they are the best so far."""
        scores, _ = predict(self.objective.model, self.valid, self.job.procs, self.trainer.autocast, self.job.workers)
        value = metric_of(self.job.metric, scores, self.valid.targets)
        if self.job.procs.main and value > max((row["valid"] for row in self.curve), default=-1.0):
            write_atomically(self.objective.state_dict(), self.folder / "best.pt")
        self.curve.append({"epoch": epoch, "step": self.trainer.step, "valid": value})

    def _report(self, epoch, entry):
        if self.log:
            self.log.write(entry | {"valid": self.curve[-1]["valid"]})
        self.bar.update(entry)
        if epoch % max(1, self.epochs // 5) == 0 or self.trainer.step == self.steps:
            self.bar.say(f"  seed {self.seed}  lr {self.lr:<7g} epoch {epoch:>3} of {self.epochs}  loss "
                         f"{entry['loss']:.3f}  validation {self.curve[-1]['valid']:.3f}  {self.bar.speed}")

    def _save(self):
        state = self.trainer.state_dict() | {"curve": self.curve, "average": self.average}
        if self.job.procs.main and (complaint := self.saver.save(state, self.trainer.step)):
            self.bar.say(complaint)


def add_weights(total, state):
    """A running sum of state dicts: {"n", "sum"}; what is not floating point is kept as it is now."""
    total = total or {"n": 0, "sum": {}}
    added = {k: total["sum"].get(k, 0.0) + v.double().cpu() if v.is_floating_point() else v.cpu().clone()
             for k, v in state.items()}
    return {"n": total["n"] + 1, "sum": added}


def mean_weights(total):
    return {k: (v / total["n"]).float() if v.is_floating_point() else v for k, v in total["sum"].items()}
