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
from pathlib import Path

from wren import cli
from wren.cli import DEMO, UserError
from wren.recipes.finetuning import PROTOCOLS, RECIPES, overrides, settings_for


def parse_args(argv=None):
    p = cli.Parser(__doc__, prog="finetune.py")
    g = p.add_argument_group("what is trained on what")
    g.add_argument("--checkpoint", help="file, run folder or preset's name (default: the newest run below runs/)")
    g.add_argument("--format", help="layout of a published checkpoint where its keys can't decide: ssast, gpm-bt, …")
    g.add_argument("--data", default=DEMO, help="folder that holds the tasks")
    g.add_argument("--task", nargs="+", help="names or folders; beans: all of the twelve that are there (default: the "
                   "demo's species; it also has individual and detection)")
    g.add_argument("--fold", help="of a task with folds: the one that is tested, the one before it validates; all: "
                   "each in turn")
    g.add_argument("--low", action="store_true", help="BEANS's small training lists")
    g.add_argument("--out", help="folder (default: finetune, or finetune-PROTOCOL, in the run folder)")

    g = p.add_argument_group("protocol (defaults: the recipe's; a protocol overrides the recipe, a flag both)")
    g.add_argument("--recipe", choices=("auto", *RECIPES), default="auto", help="settings (auto: by encoder family)")
    g.add_argument("--protocol", choices=PROTOCOLS, help="both Adam, batch 32, constant rate; gpm-bt: 25 epochs, "
                   "1e-5 5e-5 1e-4 5e-4, patch stride 10, native rate; beans: 50 epochs, 1e-5 5e-5 1e-4")
    g.add_argument("--lr", type=cli.positive, nargs="+", help="peak rates; the best on validation is tested")
    g.add_argument("--epochs", type=cli.positive_int, help="passes over the training split")
    g.add_argument("--steps", type=cli.positive_int, help="instead of --epochs: optimiser steps")
    g.add_argument("--seeds", type=cli.positive_int, default=1, help="runs with seeds SEED, SEED + 1, …")
    g.add_argument("--seed", type=cli.natural, default=0, help="of the head, the order of clips and their augmentation")
    g.add_argument("--patience", type=cli.positive_int, help="stop after so many epochs without a better validation")
    g.add_argument("--average", type=cli.positive_int, help="also judge the mean of the last epochs' weights")
    g.add_argument("--rate", choices=("model", "native"), help="resample to the encoder's rate, or let its mel grid "
                   "follow the data set's, as GPM-BT does")

    _add_model(p.add_argument_group("model and loss"))
    _add_augmentation(p.add_argument_group("augmentation of the training split"))

    g = p.add_argument_group("run")
    g.add_argument("--per-class", action="store_true", help="print the score of each class")
    g.add_argument("--json", metavar="FILE", help="results of all tasks (default: results.json in --out)")
    g.add_argument("--override", action="store_true", help="start afresh where results of other settings are")
    g.add_argument("--workers", type=cli.natural, default=1, help="loader processes of each training process")
    g.add_argument("--micro-batch", type=cli.positive_int, help="clips a forward pass of one process (default: all)")
    g.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    g.add_argument("--amp", choices=("auto", "bf16", "fp16", "fp32"), default="auto", help="auto: bf16 or fp16 on GPU, "
                   "fp32 on CPU")
    g.add_argument("--timeout", type=cli.positive, default=300, help="longest wait for another process, s")
    args = p.parse_args(argv)
    args.task = args.task or ["species"]
    if args.patience and args.average:
        raise UserError("--patience and --average: the last epochs are not known before the end; give one of them")
    if args.trainable not in ("all", "head") and not args.trainable.isdigit():
        raise UserError(f"--trainable {args.trainable}: give all, head, or a number of blocks")
    return args


def _add_model(g):
    g.add_argument("--trainable", default="all", help="all, head, or a number: that many last blocks and the head")
    g.add_argument("--pool", choices=("mean", "cls", "both"), help="patch tokens, special tokens, or both")
    g.add_argument("--head", choices=("linear", "frames", "query"), help="frames: scores of token columns too "
                   "(default: detection). query: scores at any times, for onsets finer than a column")
    g.add_argument("--resolution", type=cli.positive, metavar="S", help="query: seconds from one score to the next "
                   "(default: 0.01; extract.py can ask at others)")
    g.add_argument("--loss", choices=("ce", "bce", "focal"), help="default: ce where classes exclude each other, focal "
                   "with --head query")
    g.add_argument("--patch-stride", type=cli.positive_int, help="overlap (GPM-BT: 10 of 16 frames, or 1 of 2)")
    g.add_argument("--optimizer", choices=("adamw", "adam", "sgd"), help="sgd: with momentum 0.9")
    g.add_argument("--batch-size", type=cli.positive_int, help="clips a step, over all processes")
    g.add_argument("--weight-decay", type=float, help="of weight matrices")
    g.add_argument("--layer-decay", type=cli.share, help="rate of a block as a share of that of the next")
    g.add_argument("--drop-path", type=cli.share, help="share of clips that skip the last block")
    g.add_argument("--warmup", type=cli.share, help="share of the steps")


def _add_augmentation(g):
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


# ------------------------------------------------------------------------------------------------------- one task

def prepare(folder, identity, args, procs):
    """Fix in config.json what the folder's trials are, or check that they still are that."""
    path = folder / "config.json"
    identity = json.loads(json.dumps(identity))  # as it will be read back: tuples become lists
    saved = json.loads(path.read_text()) if path.exists() else None
    changed = [k for k in identity if saved and saved.get(k) != identity[k]]
    if changed and not args.override:
        before, now = (", ".join(f"{k} {some.get(k)}" for k in changed[:4]) for some in (saved, identity))
        raise UserError(f"{folder} was made with {before}, now it is {now}: name another folder with --out, or start "
                        "afresh with --override")
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
    digest = hashlib.sha256()
    with open(source, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def run_task(args, task, fold, config, source, out, procs, stop):
    """Train each seed and rate, choose on validation, then test once a seed -> result rows, None after a signal."""
    from wren.training.supervised import Job, Trial
    s = settings_for(args, config, task)
    changes = overrides(s, config, task)
    job = Job(s, source, args.format, changes, task.labels, task.metric, task.window_seconds, task.hop_seconds,
              out / (f"{task.name}-fold{fold}" if fold else task.name), procs, stop, args.workers, args.micro_batch,
              args.amp)
    data = {name: split.rows.fingerprint() for name, split in task.splits.items()}
    prepare(job.folder, vars(s) | {"encoder": fingerprint(source), "format": args.format, "config": changes,
                                   "labels": task.labels, "data": data}, args, procs)
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
            raise UserError(f"{task.name}: the loss was finite with none of the rates {', '.join(map(str, s.lr))}: "
                            "lower --lr")
        row = test(task, job, trials[best], curves[best], rows)
        rows.append(cli.plain(row | {"protocol": args.protocol, "fold": fold,
                                     "curves": {c["lr"]: c["curve"] for c in curves}}))
        if procs.main:
            cli.write_text(path, json.dumps({"results": rows}, indent=1))
            for trial in trials:
                (trial.folder / "best.pt").unlink(missing_ok=True)
            print(f"  seed {seed}: epoch {rows[-1]['epoch']} of lr {rows[-1]['lr']:g} chosen (validation "
                  f"{rows[-1]['valid']:.3f}), test {shown_metric(rows[-1])} {rows[-1]['value']:.3f}")
        procs.barrier()
    return [row for row in rows if row["seed"] in seeds]


def test(task, job, trial, chosen, earlier):
    """The one look at the test split, by the chosen model -> a result row; writes finetuned.pt if no earlier seed did
    better on validation. Thresholds come from the validation split."""
    from wren.training import engine
    from wren.training import heads
    from wren.probing import scoring
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
           "metric": task.metric, "seed": chosen["seed"], "lr": chosen["lr"], "epoch": chosen["epoch"],
           "valid": chosen["value"], **scoring.clip_results(task, scores, split, chosen["seed"])}
    if task.metric != "accuracy":
        row["thresholds"] = dict(zip(task.labels, model.thresholds))
    if events:
        parts = scoring.recordings(split, frames, model.frame_seconds)
        row |= scoring.event_results(parts, task.labels, model.thresholds, split.events, model.minimum_seconds)
    return row


# -------------------------------------------------------------------------------------------------------- printing

def name_of(source):
    """How a checkpoint is called in tables: its run folder, if it lies in one."""
    return str(Path(source).parent if Path(source).name == "encoder.pt" else source)


def next_command(tasks, out):
    """Where the models are, and what they are for."""
    folders = [f"{task.name}-fold{fold}" if fold else task.name for task, fold in tasks]
    if len(folders) > 1:
        return f"models are in {out}/TASK/finetuned.pt"
    flag = "--events raven" if tasks[0][0].kind == "detection" else "--predict"
    return (f"the model is {out / folders[0]}/finetuned.pt\nNext:\n"
            f"  python extract.py FOLDER {flag} --checkpoint {out / folders[0]}     new recordings")


def shown_metric(row):
    return {"accuracy": "accuracy", "map": "mAP"}[row["metric"]]


def number(value):
    return "–" if value is None else f"{value:.3f}"


def calls_of(task):
    """How many calls in how many recordings, and which have none: perhaps nobody has annotated those."""
    if task.kind != "detection":
        return ""
    silent, counts = [], []
    for name, split in task.splits.items():
        with_calls = {event.file for event in split.events}
        silent += [Path(file).name for file, *_ in split.files if file not in with_calls]
        counts.append(f"{len(split.events)} in {len(split.files)} ({name})")
    return f"  calls in recordings: {', '.join(counts)}\n" + (
        f"  taken to hold no calls: {', '.join(silent[:3])}{f' and {len(silent) - 3} more' * (len(silent) > 3)}; "
        "leave out what nobody has annotated\n" if silent else "")


def describe(task, s):
    """What is about to be trained, in two lines, or three."""
    sizes = ", ".join(f"{len(split)} {name}" for name, split in task.splits.items())
    unit = f"windows of {task.window_seconds:g} s" if task.kind == "detection" else "clips"
    length = f"{s.steps} steps" if s.steps else f"{s.epochs} epochs"
    return (f"\n{task.name}: {sizes} {unit}, {len(task.labels)} classes\n{calls_of(task)}"
            f"  {s.optimizer}, lr {' '.join(f'{lr:g}' for lr in s.lr)}, batch {s.batch_size}, {length}, {s.loss}, "
            f"pool {s.pool}, mixup {s.mixup:g}, trained: {s.trainable}")


def print_tables(rows, per_class):
    """A line a task and seed, for detection a second one; then BEANS's groups beside published ones."""
    width = max(len(row["task"]) for row in rows)
    print(f"\n{'task':<{width}}  metric    test   95 % interval   chance  validation  lr       epoch    seed  tested")
    for row in rows:
        interval = f"[{number(row['ci95'][0])}, {number(row['ci95'][1])}]"
        print(f"{row['task']:<{width}}  {shown_metric(row):<8}  {row['value']:.3f}  {interval:<14}  "
              f"{row['chance']:.3f}   {row['valid']:.3f}       {row['lr']:<7g}  {row['epoch']:<7}  {row['seed']:<4}  "
              f"{row['n_test']}" + (f", fold {row['fold']}" if row["fold"] else ""))
        if "cmap" in row:
            print(f"{'':<{width}}  tie-aware mAP without empty classes {number(row['cmap'])}, "
                  f"AUROC {number(row['auroc'])}")
        if "event_f1" in row:
            onset, offset = ("–" if row[f"{k}_error_ms"] is None else f"{row[f'{k}_error_ms']:.0f} ms"
                             for k in ("onset", "offset"))
            print(f"{'':<{width}}  event F1 {row['event_f1']:.3f} (IoU 0.3), {row['onset_f1']:.3f} (onset 0.2 s), "
                  f"{row['collar_f1']:.3f} (onset 20 ms, offset 20 ms or 20 % of the call)\n"
                  f"{'':<{width}}  median error of onsets {onset}, of offsets {offset}")
        for label, one in row["per_class"].items() if per_class else ():
            print(f"{'':<{width}}    {label:<24} {number(one['value'])}  ({one['n']})")
    if any(None in row["ci95"] for row in rows):
        print("[–, –]: the test clips are of one recording only, and intervals are drawn by recording")
    for name in dict.fromkeys(row["task"] for row in rows):
        values = [row["value"] for row in rows if row["task"] == name]
        if len(values) > 1:
            mean = sum(values) / len(values)
            print(f"{name:<{width}}  mean of {len(values)} runs {mean:.3f}, from {min(values):.3f} to "
                  f"{max(values):.3f}")
    if any(row["group"] for row in rows):
        print_beans(rows)


def print_beans(rows):
    """Classification, detection, auxiliary, all: ours (mean over seeds), then the published rows."""
    from wren.probing import report
    from wren.probing import scoring
    means = scoring.group_means(rows)
    total = {**scoring.WEIGHTS, "all": sum(scoring.WEIGHTS.values())}
    cells = [f"{means[g][0]:.3f}" + ("" if means[g][1] == n else f" ({means[g][1]} of {n})") if g in means else "–"
             for g, n in total.items()]
    source = f"mean of {len({row['seed'] for row in rows})} seed(s)"
    header = [f"protocol {rows[0]['protocol'] or 'own'}", *total, "source"]
    print("\n" + report.table(header, [["this run", *cells, source]]) + report.ladder())


# ----------------------------------------------------------------------------------------------------------- story

def main(argv=None):
    args = parse_args(argv)
    stop = cli.StopSignals()  # before torch is imported: a signal in those seconds must not be lost
    from wren.sound import demo
    from wren.training import engine
    from model import load_encoder, newest_encoder
    from wren.recipes import PRESETS
    from wren.tasks.tasks import load_task, task_names

    procs = engine.start_processes(args.device, args.timeout)
    if args.data == DEMO and procs.main and not all(Path(name).is_dir() for name in args.task):
        demo.ensure(DEMO)
    procs.barrier()
    tasks = []
    for name in task_names(args.task, args.data):
        task = load_task(name, args.data, low=args.low, fold=None if args.fold == "all" else args.fold)
        if args.fold != "all":
            tasks.append((task, args.fold))
        elif not task.folds:
            raise UserError(f"--fold all: task {task.name} has no folds")
        else:
            tasks += [(load_task(name, args.data, fold=fold), fold) for fold in task.folds]
    source = args.checkpoint or newest_encoder("runs")
    source = source if str(source) in PRESETS or not Path(source).is_dir() else newest_encoder(source)
    config = load_encoder(source, args.format).config
    for task, _ in tasks:
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
    for task, fold in tasks:
        if (done := run_task(args, task, fold, config, source, out, procs, stop)) is None:
            if procs.main:
                reason = stop.received or "a signal to another process"
                print(f"{out}: stopped by {reason}, saved; the same command goes on")
            break
        rows += done
    else:
        if procs.main:
            print_tables(rows, args.per_class)
            path = Path(args.json or out / "results.json")
            cli.write_text(path, json.dumps({"results": rows}, indent=1))
            print(f"written to {path}; {next_command(tasks, out)}")
    procs.stop()


if __name__ == "__main__":
    cli.run(main)
