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
from dataclasses import replace
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
    try:
        replace(config, **out)
    except ValueError as error:
        raise UserError(f"{task.name}: {error}") from None
    return out


# ------------------------------------------------------------------------------------------------------- one task

def prepare(folder, identity, args, procs):
    """Fix in config.json what the folder's trials are, or check that they still are that."""
    path = folder / "config.json"
    identity = json.loads(json.dumps(identity))  # as it will be read back: tuples become lists
    saved = json.loads(path.read_text()) if path.exists() else None
    changed = [k for k in identity if saved and saved.get(k) != identity[k]]
    if changed and not args.override:
        raise UserError(f"{folder} was made with {changed[0]} {saved.get(changed[0])}, now it is {identity[changed[0]]}: "
                        "name another folder with --out, or start afresh in this one with --override")
    procs.barrier()  # all have looked before the first process writes
    if procs.main and (saved is None or changed):
        import shutil
        for old in folder.glob("seed*-lr*"):
            shutil.rmtree(old)
        for name in ("results.json", "finetuned.pt"):
            (folder / name).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        cli.write_text(path, json.dumps(identity, indent=1))
    procs.barrier()


def fingerprint(source):
    """What names the weights: a preset's name, or a hash of the file."""
    import hashlib
    if not Path(source).is_file():
        return str(source)
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def run_task(args, task, config, source, out, procs, stop):
    """Train each seed and rate, choose on validation, then test once a seed -> result rows, None after a signal."""
    from supervised import Job, Trial
    s = settings_for(args, config, task)
    changes = overrides(s, config, task)
    job = Job(s, source, args.format, changes, task.labels, task.metric, task.window_seconds, task.hop_seconds,
              out / task.name, procs, stop, args.workers, args.micro_batch, args.amp)
    prepare(job.folder, vars(s) | {"encoder": fingerprint(source), "config": changes, "labels": task.labels,
            "data": {k: v.rows.fingerprint() for k, v in task.splits.items()}}, args, procs)
    path = job.folder / "results.json"
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    seeds = range(args.seed, args.seed + args.seeds)
    if procs.main:
        print(describe(task, s))
    for seed in seeds:
        if any(row["seed"] == seed for row in rows):
            continue
        trials = [Trial(job, task.splits["train"], task.splits["valid"], seed, lr) for lr in s.lr]
        curves = []
        for trial in trials:
            curves.append(trial.run())
            if curves[-1] is None:
                return None
        best = max(range(len(trials)), key=lambda i: curves[i]["value"])
        if curves[best]["epoch"] is None:
            raise UserError(f"{task.name}: with none of the rates {', '.join(map(str, s.lr))} was a loss finite; lower "
                            "--lr")
        rows.append(test(args, task, job, trials[best], curves[best], curves, rows))
        if procs.main:
            cli.write_text(path, json.dumps({"results": rows}, indent=1))
            for trial in trials:
                (trial.folder / "best.pt").unlink(missing_ok=True)
            print(f"  seed {seed}: epoch {rows[-1]['epoch']} of lr {rows[-1]['lr']:g} chosen (validation "
                  f"{rows[-1]['valid']:.3f}), test {shown_metric(rows[-1])} {rows[-1]['value']:.3f}")
        procs.barrier()
    return [row for row in rows if row["seed"] in seeds]


def test(args, task, job, trial, chosen, curves, earlier):
    """The one look at the test split, by the chosen model -> a result row; writes finetuned.pt if no earlier seed did
    better on validation. Thresholds come from the validation split."""
    import engine
    import heads
    import scoring
    model, procs = trial.best_model(), job.procs
    events, autocast = task.kind == "detection", engine.precision(job.amp, procs.device)[0]
    valid, split = task.splits["valid"], task.splits["test"]
    if task.metric != "accuracy":
        scores, frames = scoring.predict(model, valid, procs, autocast, job.workers, frames=events)
        model.thresholds = scoring.clip_thresholds(scores, valid.targets)
    if events:
        model.minimum_seconds = scoring.shortest_event(task.splits["train"].events)
        parts = scoring.recordings(valid, frames, model.frame_seconds)
        model.thresholds = scoring.event_thresholds(parts, task.labels, valid.events, model.minimum_seconds)
    if procs.main and chosen["value"] > max((row["valid"] for row in earlier), default=-1.0):
        heads.save(model, job.folder / "finetuned.pt")
    scores, frames = scoring.predict(model, split, procs, autocast, job.workers, frames=events)
    row = {"task": task.name, "group": task.group, "probe": "finetune", "encoder": name_of(job.source),
           "metric": task.metric, "protocol": args.protocol, "fold": args.fold, "seed": chosen["seed"],
           "lr": chosen["lr"], "epoch": chosen["epoch"], "valid": chosen["value"],
           **scoring.clip_results(task, scores, split, chosen["seed"])}
    if task.metric != "accuracy":
        row["thresholds"] = dict(zip(task.labels, model.thresholds))
    if events:
        parts = scoring.recordings(split, frames, model.frame_seconds)
        row |= scoring.event_results(parts, task.labels, model.thresholds, split.events, model.minimum_seconds)
    return row | {"curves": {f"{c['lr']:g}": c["curve"] for c in curves}}


# -------------------------------------------------------------------------------------------------------- printing

def name_of(source):
    """How a checkpoint is called in tables: its run folder, if it lies in one."""
    return str(Path(source).parent if Path(source).name == "encoder.pt" else source)


def shown_metric(row):
    return {"accuracy": "accuracy", "map": "mAP"}[row["metric"]]


def describe(task, s):
    """What is about to be trained, in two lines."""
    sizes = ", ".join(f"{len(split)} {name}" for name, split in task.splits.items())
    unit = f"windows of {task.window_seconds:g} s" if task.kind == "detection" else "clips"
    length = f"{s.steps} steps" if s.steps else f"{s.epochs} epochs"
    return (f"\n{task.name}: {sizes} {unit}, {len(task.labels)} classes\n"
            f"  {s.optimizer}, lr {' '.join(f'{lr:g}' for lr in s.lr)}, batch {s.batch_size}, {length}, {s.loss}, pool "
            f"{s.pool}, mixup {s.mixup:g}, trained: {s.trainable}")


def print_tables(rows, per_class):
    """A line a task and seed, for detection a second one; then BEANS's groups beside published ones."""
    width = max(len(row["task"]) for row in rows)
    print(f"\n{'task':<{width}}  metric    test   95 % interval   chance  validation  lr       epoch  seed  test items")
    for row in rows:
        low, high = row["ci95"]
        print(f"{row['task']:<{width}}  {shown_metric(row):<8}  {row['value']:.3f}  [{low:.3f}, {high:.3f}]  "
              f"{row['chance']:.3f}   {row['valid']:.3f}       {row['lr']:<7g}  {row['epoch']:<5}  {row['seed']:<4}  "
              f"{row['n_test']}")
        if "cmap" in row:
            events = (f", event F1 {row['event_f1']:.3f} (IoU 0.3), {row['onset_f1']:.3f} (onset 0.2 s)"
                      if "event_f1" in row else "")
            print(f"{'':<{width}}  tie-aware mAP without empty classes {row['cmap']:.3f}, AUROC {row['auroc']:.3f}{events}")
        for label, one in row["per_class"].items() if per_class else ():
            print(f"{'':<{width}}    {label:<24} {'–' if one['value'] is None else format(one['value'], '.3f')}  ({one['n']})")
    if any(row["group"] for row in rows):
        print_beans(rows)


def print_beans(rows):
    """Classification, detection, auxiliary, all: ours (mean over seeds), then the published rows."""
    import scoring
    means = scoring.group_means(rows)
    total = {**scoring.WEIGHTS, "all": sum(scoring.WEIGHTS.values())}
    published = json.loads((Path(__file__).parent / "published.json").read_text())["rows"]
    width = max(len(row["name"]) for row in published)
    cells = [f"{means[g][0]:.3f}" + ("" if means[g][1] == n else f" ({means[g][1]} of {n})") if g in means else "–"
             for g, n in total.items()]
    print(f"\n{'BEANS':<{width}}  {'cls':<14} {'det':<14} {'aux':<14} {'all':<14} source")
    print(f"{'this run':<{width}}  " + " ".join(f"{cell:<14}" for cell in cells) +
          f" protocol {rows[0]['protocol'] or 'own'}, mean of {len({row['seed'] for row in rows})} seed(s)")
    for row in published:
        cells = ["–" if row[key] is None else f"{row[key]:.3f}" for key in ("cls", "det", "aux", "all")]
        print(f"{row['name']:<{width}}  " + " ".join(f"{cell:<14}" for cell in cells) + f" {row['source']}")


# ----------------------------------------------------------------------------------------------------------- story

def main(argv=None):
    args = parse_args(argv)
    stop = cli.StopSignals()  # before torch is imported: a signal in those seconds must not be lost
    import demo
    import engine
    from model import load_encoder, newest_encoder
    from recipes import PRESETS
    from tasks import load_task, task_names

    procs = engine.start_processes(args.device, args.timeout)
    if args.data == DEMO and procs.main and not all(Path(name).is_dir() for name in args.task):
        demo.ensure(DEMO)
    procs.barrier()
    tasks = [load_task(name, args.data, low=args.low, fold=args.fold) for name in task_names(args.task, args.data)]
    source = args.checkpoint or newest_encoder("runs")
    source = source if str(source) in PRESETS or not Path(source).is_dir() else newest_encoder(source)
    config = load_encoder(source, args.format).config
    for task in tasks:
        settings = settings_for(args, config, task)  # mistakes show before the first task is trained
        overrides(settings, config, task)
        if settings.batch_size % procs.world:
            raise UserError(f"--batch-size {settings.batch_size} does not divide by {procs.world} processes")
    folder = Path(source).parent
    home = folder if (folder / "config.json").exists() else Path("runs") / Path(source).stem
    out = Path(args.out or home / ("finetune" + (f"-{args.protocol}" if args.protocol else "")))
    if procs.main:
        print(f"{name_of(source)}: {config.name}, {config.sample_rate} Hz -> {out}")

    rows = []
    for task in tasks:
        if (done := run_task(args, task, config, source, out, procs, stop)) is None:
            if procs.main:
                print(f"{out}: stopped by {stop.received or 'a signal to another process'}, saved; the same command goes on")
            break
        rows += done
    else:
        if procs.main:
            print_tables(rows, args.per_class)
            path = Path(args.json or out / "results.json")
            cli.write_text(path, json.dumps({"results": rows}, indent=1))
            print(f"written to {path}; models are in {out}/TASK/finetuned.pt")
    procs.stop()


if __name__ == "__main__":
    cli.run(main)
