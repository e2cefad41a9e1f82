"""Fine-tune an encoder on labelled sound, and read the test split once.

    python finetune.py                                             the newest run on the demo's species
    python finetune.py --task detection                            windows and events of the demo's recordings
    python finetune.py --checkpoint runs/NAME --data ROOT --task watkins dogs --lr 1e-5 5e-5 1e-4 --seeds 3
    torchrun --nproc_per_node=8 finetune.py --checkpoint GPM-BT.pth --format gpm-bt --data ROOT --task beans \\
             --protocol gpm-bt                                     all of BEANS that is there, the paper's settings

A task is one of BEANS's twelve, or a folder (see tasks.py). Every rate is trained on the training split and judged on
the validation split; the best epoch of the best rate is tested. The same command again goes on where it stopped.
Results, curves and finetuned.pt are in runs/NAME/finetune/TASK.
"""
import argparse
import json
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import cli
from cli import UserError

DEMO = "data/demo"

# How each family of encoders is fine-tuned: published values where there are any. Shares are of steps (warmup, floor of
# the rate), of clips (mixup), of the window (masks) and of grid columns and rows (patch_drop).
BASE = dict(optimizer="adamw", lr=(1e-4,), betas=(0.9, 0.999), weight_decay=0.05, schedule="cosine", warmup=0.1,
            floor=0.0, clip=1.0, epochs=50, batch_size=32, layer_decay=0.75, drop_path=0.1, smoothing=0.1, mixup=0.0,
            alpha=10.0, time_mask=0.2, band_mask=0.2, noise=0.0, roll=False, gain=0.0, patch_drop=0.0, pool="mean",
            rate="model", patch_stride=None)
RECIPES = {
    # ours, for encoders of a few layers and minutes on a laptop
    "laptop": BASE | dict(lr=(1e-3,), epochs=30, warmup=0.1, layer_decay=0.9, mixup=0.3, roll=True, gain=6.0),
    # ESC-50: Gong et al. 2022 and released code, whose rate falls by 0.85 an epoch instead of along a cosine
    "ssast": BASE | dict(optimizer="adam", lr=(1e-4,), betas=(0.95, 0.999), weight_decay=5e-7, warmup=0.0, clip=0.0,
                         batch_size=48, layer_decay=1.0, drop_path=0.0, smoothing=0.0, time_mask=96 / 512,
                         band_mask=24 / 128, noise=0.1),
    # AudioSet-20K: Huang et al. 2022 and released code; base rate 1e-3 · batch / 256
    "audiomae": BASE | dict(lr=(1.25e-4,), betas=(0.9, 0.95), weight_decay=5e-4, warmup=4 / 60, epochs=60, clip=0.0,
                            mixup=0.5, time_mask=192 / 1024, band_mask=48 / 128, patch_drop=0.2, smoothing=0.0),
    # ESC-50: Chen et al. 2024 and released code, 4000 steps; there embeddings and norms are not slowed down
    "eat": BASE | dict(lr=(5e-5,), betas=(0.9, 0.95), floor=0.02, clip=4.0, batch_size=48, epochs=120, layer_decay=0.65,
                       time_mask=0.4, band_mask=0.4, roll=True, gain=6.0, pool="cls"),
    # Speech Commands: Li et al. 2023 and released code; base rate 0.5 · batch / 256
    "atst": BASE | dict(optimizer="sgd", lr=(0.0625,), weight_decay=0.0, clip=3.0, smoothing=0.0, mixup=0.5, alpha=0.5,
                        time_mask=0.0, band_mask=0.0, pool="both"),
    "atst-frame": BASE | dict(optimizer="sgd", lr=(0.125,), weight_decay=0.0, clip=3.0, smoothing=0.0, mixup=0.5,
                              alpha=0.5, time_mask=0.0, band_mask=0.0),
    # MeerKAT: Schäfer-Zimmermann et al. 2024 and released code; there the encoder rests for the first third
    "animal2vec": BASE | dict(lr=(3e-5,), betas=(0.9, 0.98), weight_decay=0.01, layer_decay=1.0, smoothing=0.0,
                              mixup=1.0, loss="focal"),
    "dasheng": BASE,  # nothing published but frozen probes
}
# What a benchmark fixes. GPM-BT: its released code, masks and mixing by `gpm_bt_augmentation`.
_PLAIN = dict(optimizer="adam", betas=(0.9, 0.999), weight_decay=0.0, schedule="constant", warmup=0.0, clip=0.0,
              batch_size=32, layer_decay=1.0, drop_path=0.0, smoothing=0.0, mixup=0.0, alpha=10.0, time_mask=0.0,
              band_mask=0.0, noise=0.0, roll=False, gain=0.0, patch_drop=0.0, head="linear", loss=None)
PROTOCOLS = {"beans": _PLAIN | dict(epochs=50, lr=(1e-5, 5e-5, 1e-4), rate="model"),
             "gpm-bt": _PLAIN | dict(epochs=25, lr=(1e-5, 5e-5, 1e-4, 5e-4), rate="native", noise=0.1, pool="mean",
                                     patch_stride=10)}


def gpm_bt_augmentation(seconds, kind):
    """GPM-BT's masks: up to 48 bands and 48 frames of windows shorter than 5 s, else 24 and 96; detection mixes 60 %.
    There the masks fall on the whole minute and a file is mixed with itself; here the window and another clip."""
    bands, frames = (48, 48) if (seconds or 10) < 5 else (24, 96)
    return dict(band_mask=bands / 128, time_mask=min(1.0, frames / (100 * (seconds or 10))),
                mixup=0.6 if kind == "detection" else 0.0)


def parse_args(argv=None):
    p = cli.Parser(__doc__, prog="finetune.py")
    g = p.add_argument_group("what is trained on what")
    g.add_argument("--checkpoint", help="file, run folder or preset's name (default: the newest run below runs/)")
    g.add_argument("--format", help="layout of a published checkpoint where its keys can't decide: ssast, gpm-bt, …")
    g.add_argument("--data", default=DEMO, help="folder that holds the tasks")
    g.add_argument("--task", nargs="+", default=["species"], help="names, folders, or beans: all of the twelve that are "
                                                                  "there (the demo has species, individual, detection)")
    g.add_argument("--fold", help="of a task with folds: the one that is tested; the one before it validates")
    g.add_argument("--low", action="store_true", help="BEANS's small training lists")
    g.add_argument("--out", help="folder (default: finetune, or finetune-PROTOCOL, in the run folder)")

    g = p.add_argument_group("protocol (defaults: the recipe's; a protocol overrides the recipe, a flag both)")
    g.add_argument("--recipe", choices=("auto", *RECIPES), default="auto", help="settings (auto: by the encoder's family)")
    g.add_argument("--protocol", choices=PROTOCOLS, help="gpm-bt: Adam, batch 32, 25 epochs, rates 1e-5 5e-5 1e-4 5e-4, "
                                                         "stride 10, native rate; beans: 50 epochs, 1e-5 5e-5 1e-4")
    g.add_argument("--lr", type=cli.positive, nargs="+", help="peak rates; of several the best on validation is tested")
    g.add_argument("--epochs", type=cli.positive_int)
    g.add_argument("--steps", type=cli.positive_int, help="instead of --epochs: optimiser steps")
    g.add_argument("--seeds", type=cli.positive_int, default=1, help="runs with seeds SEED, SEED + 1, …")
    g.add_argument("--seed", type=cli.natural, default=0)
    g.add_argument("--patience", type=cli.positive_int, help="stop after so many epochs without a better validation score")
    g.add_argument("--average", type=cli.positive_int, help="also judge the mean of the last epochs' weights")
    g.add_argument("--rate", choices=("model", "native"), help="resample to the encoder's rate, or let its mel grid follow "
                                                               "the data set's, as GPM-BT does")

    g = p.add_argument_group("model and loss")
    g.add_argument("--trainable", default="all", help="all, head, or a number: that many last blocks and the head")
    g.add_argument("--pool", choices=("mean", "cls", "both"), help="patch tokens, special tokens, or both")
    g.add_argument("--head", choices=("linear", "frames"), help="frames: also a score a frame (default for detection)")
    g.add_argument("--loss", choices=("ce", "bce", "focal"), help="default: ce where classes exclude each other, else bce")
    g.add_argument("--patch-stride", type=cli.positive_int, help="overlapping patches (GPM-BT: 10 of 16; 1 of 2 for frames)")
    g.add_argument("--optimizer", choices=("adamw", "adam", "sgd"))
    g.add_argument("--batch-size", type=cli.positive_int, help="clips a step, over all processes")
    g.add_argument("--weight-decay", type=float)
    g.add_argument("--layer-decay", type=cli.share, help="rate of a block as a share of that of the next")
    g.add_argument("--drop-path", type=cli.share, help="share of clips that skip the last block")
    g.add_argument("--warmup", type=cli.share, help="share of the steps")

    g = p.add_argument_group("augmentation of the training split")
    g.add_argument("--balanced", action="store_true", help="draw all classes alike")
    g.add_argument("--mixup", type=cli.share, help="share of clips mixed with another, labels in the same proportion")
    g.add_argument("--alpha", type=cli.positive, help="the proportion is drawn from Beta(alpha, alpha)")
    g.add_argument("--smoothing", type=cli.share, help="of labels, with ce")
    g.add_argument("--time-mask", type=cli.share, help="longest masked share of the window")
    g.add_argument("--band-mask", type=cli.share, help="widest masked share of the mel bands")
    g.add_argument("--noise", type=float, help="highest level added to the normalised spectrogram (SSAST: 0.1)")
    g.add_argument("--roll", action=argparse.BooleanOptionalAction, help="turn clips around a circle")
    g.add_argument("--gain", type=float, help="level drawn from -GAIN to GAIN, dB")
    g.add_argument("--patch-drop", type=cli.share, help="share of patch columns and of rows left out")

    g = p.add_argument_group("run")
    g.add_argument("--per-class", action="store_true", help="print the score of each class")
    g.add_argument("--json", metavar="FILE", help="results of all tasks (default: results.json in --out)")
    g.add_argument("--override", action="store_true", help="start afresh where results of other settings are")
    g.add_argument("--workers", type=cli.natural, default=1, help="loader processes of each training process")
    g.add_argument("--micro-batch", type=cli.positive_int, help="clips a forward pass of one process (default: all)")
    g.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    g.add_argument("--amp", choices=("auto", "bf16", "fp16", "fp32"), default="auto")
    g.add_argument("--timeout", type=cli.positive, default=300, help="longest wait for another process, s")
    args = p.parse_args(argv)
    if args.patience and args.average:
        raise UserError("--patience and --average: the last epochs are not known before the end; give one of them")
    if args.trainable not in ("all", "head") and not args.trainable.isdigit():
        raise UserError(f"--trainable {args.trainable}: give all, head, or a number of blocks")
    return args


# -------------------------------------------------------------------------------------------------------- settings

def settings_for(args, config, task):
    """Recipe, then protocol, then flags -> namespace of everything that training depends on."""
    families = sorted(RECIPES, key=len, reverse=True)  # atst-frame before atst
    auto = "laptop" if "laptop" in config.name else next((f for f in families if config.name.startswith(f)), "ssast")
    s = {"loss": None, "head": None} | RECIPES[auto if args.recipe == "auto" else args.recipe]
    s |= PROTOCOLS.get(args.protocol, {})
    if args.protocol == "gpm-bt":
        s |= gpm_bt_augmentation(task.window_seconds or task.clip_seconds, task.kind)
        s["rate"] = "native" if task.sample_rate else "model"
    s |= {k: v for k in s if (v := getattr(args, k, None)) is not None}
    s |= {k: getattr(args, k) for k in ("steps", "patience", "average", "trainable", "balanced")}
    s = SimpleNamespace(**s)
    s.loss = s.loss or ("ce" if task.kind == "classification" else "bce")
    s.head = s.head or ("frames" if task.kind == "detection" else "linear")
    if s.patch_stride and args.patch_stride is None:
        s.patch_stride = 1 if config.patch[0] == config.n_mels else min(s.patch_stride, *config.patch)
    if s.head == "frames":
        s.roll = False if args.roll is None else s.roll  # a call that wraps around has no onset
        s.patch_drop = 0.0 if args.patch_drop is None else s.patch_drop
    if s.pool == "cls" and args.pool is None and not config.specials or s.pool == "both" and not config.specials:
        s.pool = "mean" if args.pool is None else s.pool
    check_settings(s, config, task)
    return s


def check_settings(s, config, task):
    """Refuse what does not fit together, before anything is trained."""
    for wrong, complaint in (
        (s.loss == "ce" and task.kind != "classification", f"--loss ce: several labels of {task.name} may be true at "
                                                           "once; use bce or focal"),
        (s.head == "frames" and task.kind != "detection", f"--head frames: {task.name} has no onsets and offsets; it "
                                                          "needs annotated recordings"),
        (s.head == "frames" and s.roll, "--roll with frames: a call that is turned around has no onset; use --no-roll"),
        (s.head == "frames" and s.patch_drop, "--patch-drop leaves frames without tokens; use --head linear"),
        (s.pool != "mean" and not config.specials, f"--pool {s.pool}: this encoder has no special tokens; use mean"),
        (s.rate == "native" and not task.sample_rate, f"--rate native: {task.name} names no sample rate; use model"),
        (s.rate == "native" and config.frontend == "wave", "--rate native: a raw-wave encoder hears at its own rate"),
        (s.trainable.isdigit() and not 0 < int(s.trainable) <= config.depth,
         f"--trainable {s.trainable}: this encoder has {config.depth} blocks"),
        (s.patch_stride and config.positions not in ("learned", "fixed", "factorised"),
         f"--patch-stride: positions of kind {config.positions} can't be fitted to overlapping patches"),
    ):
        if wrong:
            raise UserError(complaint)


def overrides(s, config, task):
    """Changes of the encoder's config: pooling, drop path, overlap, the data set's rate and length."""
    out = {"pool": {"cls": "specials"}.get(s.pool, s.pool), "drop_path": s.drop_path}
    if s.rate == "native":
        out["sample_rate"] = task.sample_rate
    if s.patch_stride:
        height, width = config.patch
        out["stride"] = (height if height == config.n_mels else s.patch_stride, s.patch_stride)
    seconds = task.window_seconds or task.clip_seconds
    if config.attends_padding and seconds:  # the published codes pad to the data set's length, not to the training's
        out["frames"] = max(config.patch[1], min(config.frames, round(seconds / config.hop)))
    return out


# -------------------------------------------------------------------------------------------------------- training

def build(job, seed):
    """The objective around encoder and new head, with what is not trained frozen."""
    import torch

    import heads
    from model import load_encoder
    s = job.settings
    torch.manual_seed(seed)
    encoder = load_encoder(job.source, job.format, **job.overrides)
    model = heads.FineTuned(encoder, job.labels, "softmax" if s.loss == "ce" else "sigmoid", s.head,
                            window_seconds=job.window_seconds, hop_seconds=job.hop_seconds)
    if s.trainable != "all":
        encoder.requires_grad_(False)
        for module in (encoder.norm, *encoder.blocks[-int(s.trainable):]) if s.trainable.isdigit() else ():
            module.requires_grad_(True)
    masks = {"time": s.time_mask, "band": s.band_mask, "noise": s.noise}
    objective = heads.Supervised(model, s.loss, s.smoothing if s.loss == "ce" else 0.0,
                                 masks if any(masks.values()) else None, s.patch_drop)
    # what the loss does not depend on (the mask token, say): other processes would wait for its gradient
    wave, target = torch.zeros(1, encoder.config.sample_rate), torch.zeros(1, len(job.labels))
    loss, _ = objective.eval()(wave, None, None, target, target[None] if s.head == "frames" else None)
    used = [p for p in objective.parameters() if p.requires_grad]
    for p, gradient in zip(used, torch.autograd.grad(loss, used, allow_unused=True)):
        p.requires_grad_(gradient is not None)
    return objective.to(job.procs.device)


def make_optimizer(objective, s, lr):
    """Each block's rate is `layer_decay` of the next one's, embeddings below the first, head and last norm at full rate
    (BEiT); weight decay on matrices only, with Adam on everything."""
    import torch
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
        optimizer = torch.optim.SGD(groups, momentum=0.9)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[s.optimizer]
        optimizer = kind(groups, betas=s.betas, fused=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def train(job, train, valid, seed, lr):
    """One rate and seed -> {"lr", "seed", "curve", "epoch", "value", "folder"}, or None when a signal ended it.

    Here are the training and the validation split and nothing else: test can't be looked at.
    """
    import data
    import engine
    import runlog
    from augment import LabelledLoader
    from scoring import FrameTargets, metric_of, predict
    s, procs, folder = job.settings, job.procs, job.folder / f"seed{seed}-lr{lr:g}"
    if (folder / "trial.json").exists():
        return json.loads((folder / "trial.json").read_text()) | {"folder": folder}
    per_epoch = len(train) / s.batch_size
    steps = s.steps or ceil(s.epochs * per_epoch)
    epochs = ceil(steps / per_epoch)
    marks = {min(steps, ceil(e * per_epoch)): e for e in range(1, epochs + 1)} | {steps: epochs}
    objective = build(job, seed)
    trainer = engine.Trainer(
        objective, make_optimizer(objective, s, lr), procs, batch_size=s.batch_size, steps=steps,
        micro_batch=job.micro_batch or s.batch_size, warmup=round(s.warmup * steps), schedule=s.schedule, floor=s.floor,
        clip=s.clip, amp=job.amp, seed=seed,
        augment=(lambda clips: data.augment(clips["wave"], clips["lengths"], clips["seed"], gain=s.gain, shift=s.roll))
        if s.gain or s.roll else None)
    state = engine.load_checkpoint(folder) or {"curve": [], "average": None}
    curve, average = state["curve"], state["average"]
    if "step" in state:
        trainer.load_state_dict(state)
    procs.barrier()  # all have read the folder before the first process writes to it
    folder.mkdir(parents=True, exist_ok=True)
    log = runlog.Log(folder / "log.jsonl", trainer.step if curve else -1) if procs.main else None
    rate = objective.encoder.config.sample_rate
    frames = FrameTargets(train, job.labels, objective.model.frame_seconds) if s.head == "frames" else None
    batches = iter(LabelledLoader(
        train, rate, len(job.labels), s.batch_size, seed, first=trainer.step * s.batch_size, steps=steps - trainer.step,
        rank=procs.rank, world=procs.world, workers=job.workers, mixup=s.mixup, alpha=s.alpha, balanced=s.balanced,
        frames=frames))
    bar, saver = cli.Progress(steps, trainer.step, procs.main), engine.Saver(folder, keep=1)
    meter, bad = runlog.Meter(procs, s.batch_size, objective.encoder.config), data.BadLog(folder / "bad.jsonl")

    def judge(epoch):
        """Validate, keep the weights if they are the best so far."""
        value = metric_of(job.metric, predict(objective.model, valid, procs, trainer.autocast, job.workers)[0],
                          valid.targets)
        if procs.main and value > max((row["valid"] for row in curve), default=-1.0):
            engine.write_atomically(objective.state_dict(), folder / "best.pt")
        curve.append({"epoch": epoch, "step": trainer.step, "valid": value})

    def save():
        if procs.main and (complaint := saver.save(trainer.state_dict() | {"curve": curve, "average": average},
                                                   trainer.step)):
            bar.say(complaint)

    waited = len(curve) - 1 - max(range(len(curve)), key=lambda i: curve[i]["valid"]) if curve else 0
    while trainer.step < steps and not (s.patience and waited >= s.patience):
        with meter.waiting():
            batch = next(batches)
        row = trainer.train(batch, flags=(job.stop.received is not None, len(batch["bad"])))
        stopping, unreadable = row.pop("flags")
        bad.add(batch["bad"], unreadable, s.batch_size)
        meter.add(row)
        if trainer.skipped_in_a_row >= 10:
            bar.say(f"  lr {lr:g}: ten steps in a row were not finite; this rate is given up")
            break
        if trainer.step in marks:
            epoch = marks[trainer.step]
            entry = meter.entry(trainer.step, len(train), trainer.skips)
            judge(epoch)
            if s.average and epoch > epochs - s.average:
                average = add_weights(average, objective.state_dict())
            waited = len(curve) - 1 - max(range(len(curve)), key=lambda i: curve[i]["valid"])
            if log:
                log.write(entry | {"valid": curve[-1]["valid"]})
            bar.update(entry)
            if epoch % max(1, epochs // 8) == 0 or trainer.step == steps:
                bar.say(f"  seed {seed} lr {lr:g} epoch {epoch:>3}/{epochs}  loss {entry['loss']:.3f}  "
                        f"validation {job.metric} {curve[-1]['valid']:.3f}  {bar.speed}")
            save()
        elif stopping:
            save()
        if stopping and trainer.step < steps:
            return None
    if average:
        objective.load_state_dict(mean_weights(average))
        judge("average")
    bar.close()
    best = max(curve, key=lambda row: row["valid"], default={"epoch": None, "valid": -1.0})
    trial = {"lr": lr, "seed": seed, "epoch": best["epoch"], "value": best["valid"], "curve": curve}
    procs.barrier()
    if procs.main:
        log.close()
        cli.write_text(folder / "trial.json", json.dumps(trial))
        for path in engine.checkpoints(folder) + [folder / "last.pt"]:
            path.unlink(missing_ok=True)
    procs.barrier()
    return trial | {"folder": folder}
