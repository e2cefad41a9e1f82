"""Fine-tune an encoder on labelled sound, and read the test split once.

    python finetune.py                                             the newest run on the demo's species
    python finetune.py --task detection                            windows and events of the demo's recordings
    python finetune.py --checkpoint runs/NAME --data ROOT --task watkins dogs --lr 1e-5 5e-5 1e-4 --seeds 3
    torchrun --nproc_per_node=8 finetune.py --checkpoint GPM-BT.pth --format gpm-bt --data ROOT --task beans \\
             --protocol gpm-bt                                     all of BEANS that is there, the paper's settings

A task is one of BEANS's twelve, or a folder (see docs/data.md). Every rate is trained on the training split and
judged on the validation split; the best epoch of the best rate is tested. The same command again goes on where it
stopped. Results, curves and finetuned.pt are in runs/NAME/finetune/TASK.
"""
import hashlib
import json
import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from wren import cli
from wren.cli import DEMO, UserError
from wren.recipes import PRESETS
from wren.recipes.flags import name_of
from wren.recipes.finetuning import PROTOCOLS, RECIPES, Settings, encoder_changes, settings_for


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
    g.add_argument("--label", metavar="NAME", help="what the calls are that have no label, as in the Raven tables of a "
                   "detector of one species")
    g.add_argument("--out", help="folder (default: finetune, or finetune-PROTOCOL, in the run folder)")

    g = p.add_argument_group("protocol (defaults: the recipe's; a protocol overrides the recipe, a flag both)")
    g.add_argument("--recipe", choices=("auto", *RECIPES), default="auto", help="settings (auto: by encoder family)")
    g.add_argument("--protocol", choices=PROTOCOLS, help="both Adam, batch 32, constant rate; gpm-bt: 25 epochs, "
                   "1e-5 5e-5 1e-4 5e-4, patch stride 10, native rate; beans: 50 epochs, 1e-5 5e-5 1e-4")
    g.add_argument("--seeds", type=cli.positive_int, default=1, help="runs with seeds SEED, SEED + 1, …")
    g.add_argument("--seed", type=cli.natural, default=0, help="of the head, the order of clips and their augmentation")
    flags = [setting for setting in fields(Settings) if setting.metadata]
    for setting in flags:  # one that is not given says nothing: the recipe does
        g.add_argument(name_of(setting.name), **setting.metadata | {"default": None})

    g = p.add_argument_group("run")
    g.add_argument("--max-bad", type=cli.share, default=0.01, help="largest share of a test split that may be left "
                   "out because it can't be read, and of training clips that can't be read when they are drawn")
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
    given = {setting.name: getattr(args, setting.name) for setting in flags}
    args.chosen = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None}
    return args


# ------------------------------------------------------------------------------------------------------- one task

def prepare(job, task, weights, override):
    """Fix in config.json what the folder's trials are, or check that they still are that. weights: what tells the
    encoder from others."""
    path, procs = job.folder / "config.json", job.procs
    now = vars(job.settings) | {
        "encoder": weights, "format": job.format, "config": job.changes, "labels": task.labels,
        "data": {name: contents(split) for name, split in task.splits.items()}}
    now = json.loads(json.dumps(now))  # as it will be read back: tuples become lists
    saved = json.loads(path.read_text()) if path.exists() else None
    changed = saved and difference(saved, now)
    if changed and not override:
        raise UserError(f"{job.folder} was made with {changed}: name another folder with --out, or start afresh with "
                        "--override")
    procs.barrier()  # all have looked before the first process writes
    if procs.main and (saved is None or changed):  # trials of which nobody knows what they were go, too
        for old in job.folder.glob("seed*-lr*"):
            shutil.rmtree(old)
        for name in ("results.json", "finetuned.pt"):
            (job.folder / name).unlink(missing_ok=True)
        job.folder.mkdir(parents=True, exist_ok=True)
        cli.write_text(path, json.dumps(now, indent=1))
    procs.barrier()


def difference(saved, now):
    """What config.json says otherwise, in words; "" if all is the same."""
    hashed = {"encoder": "another encoder", "labels": "other classes", "data": "other clips or labels"}
    changed = [k for k in now if saved.get(k) != now[k]]
    said, plain = [hashed[k] for k in changed if k in hashed], [k for k in changed if k not in hashed][:4]
    if plain:
        before, after = (", ".join(f"{k} {values.get(k)}" for k in plain) for values in (saved, now))
        said.append(f"{before}, now it is {after}")
    return " and ".join(said)


def contents(split):
    """A hash of a split's clips and of all that is said about them."""
    said = hashlib.sha256(split.rows.fingerprint().encode() + split.targets.tobytes())
    said.update(repr([(event.file, event.start, event.end, event.label) for event in split.events]).encode())
    return said.hexdigest()[:16]


def run_task(job, task, seeds, about):
    """Train each seed and rate, choose on validation, then test once a seed -> result rows, None after a signal.
    about: what else a row says."""
    from wren.probing.report import METRICS
    from wren.training.supervised import Trial
    path, main = job.folder / "results.json", job.procs.main
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    if main:
        print(describe(task, job.settings), flush=True)
    for seed in [seed for seed in seeds if seed not in {row["seed"] for row in rows}]:
        curves = {}  # of each trial
        for lr in job.settings.lr:
            trial = Trial(job, seed, lr)
            curves[trial] = trial.run()
            if curves[trial] is None:
                return None
        best = max(curves, key=lambda trial: curves[trial]["value"])
        if curves[best]["epoch"] is None:
            raise UserError(f"{task.name}: the loss was finite with none of the rates "
                            f"{', '.join(str(trial.lr) for trial in curves)}: lower --lr")
        row = test(task, job, best, curves[best], rows)
        rows.append(cli.plain(row | about | {"curves": {c["lr"]: c["curve"] for c in curves.values()}}))
        if main:
            cli.write_text(path, json.dumps({"results": rows}, indent=1))
            for trial in curves:
                (trial.folder / "best.pt").unlink(missing_ok=True)
            print(f"  seed {seed}: epoch {row['epoch']} of lr {row['lr']:g} chosen (validation {row['valid']:.3f}), "
                  f"test {METRICS[task.metric]} {row['value']:.3f}", flush=True)
        job.procs.barrier()
    return [row for row in rows if row["seed"] in seeds]


def test(task, job, trial, chosen, earlier):
    """The one look at the test split, by the chosen model -> a result row; writes finetuned.pt if no earlier seed did
    better on validation. Thresholds come from the validation split."""
    from wren.probing import scoring
    from wren.training import engine, heads
    model, valid, split = trial.best_model(), task.splits["valid"], task.splits["test"]
    events, autocast = task.kind == "detection", engine.precision(job.amp, job.procs.device)[0]
    predict = partial(scoring.predict, model, procs=job.procs, autocast=autocast, workers=job.workers, frames=events)
    if task.metric != "accuracy":
        scores, frames = predict(valid)
        model.thresholds = scoring.clip_thresholds(scores, valid.targets)
    if events:
        model.minimum_seconds = scoring.shortest_event(task.splits["train"].events)
        tracks = scoring.recordings(valid, frames, model.frame_seconds)
        model.thresholds = scoring.event_thresholds(tracks, task.labels, valid.events, model.minimum_seconds)
    model.valid, model.chance = chosen["value"], scoring.chance(task, valid)
    if job.procs.main and chosen["value"] > max((row["valid"] for row in earlier), default=-1.0):
        heads.save(model, job.folder / "finetuned.pt")
    scores, frames = predict(split)
    row = {"task": task.name, "group": task.group, "probe": "finetune", "encoder": called(job.encoder),
           "metric": task.metric, "seed": trial.seed, "lr": trial.lr, "epoch": chosen["epoch"],
           "valid": chosen["value"], "valid_chance": model.chance,
           **scoring.clip_results(task, scores, split, trial.seed)}
    if task.metric != "accuracy":
        row["thresholds"] = dict(zip(task.labels, model.thresholds))
    if events:
        tracks = scoring.recordings(split, frames, model.frame_seconds)
        row |= scoring.event_results(tracks, task.labels, model.thresholds, split.events, model.minimum_seconds)
    return row


# -------------------------------------------------------------------------------------------------------- printing

def called(source):
    """How a checkpoint is called in tables: its run folder, if it lies in one."""
    return str(Path(source).parent if Path(source).name == "encoder.pt" else source)


def first(names, most):
    """Some names, and how many more there are."""
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def calls_of(task):
    """How many calls in how many recordings, and which have none: perhaps nobody has annotated those."""
    silent, counts = [], []
    for name, split in task.splits.items():
        with_calls = {event.file for event in split.events}
        silent += [Path(file).name for file, *_ in split.files if file not in with_calls]
        counts.append(f"{len(split.events)} in {len(split.files)} ({name})")
    taken = [f"  taken to hold no calls: {first(silent, 3)}; leave out what nobody has annotated"] if silent else []
    return [f"  calls in recordings: {', '.join(counts)}", *taken]


def describe(task, s):
    """What is about to be trained, in two lines or more. s: Settings."""
    sizes = ", ".join(f"{len(split)} {name}" for name, split in task.splits.items())
    unit = f"windows of {task.window_seconds:g} s" if task.kind == "detection" else "clips"
    lines = [f"\n{task.name}: {sizes} {unit}, {len(task.labels)} classes"]
    lines += calls_of(task) if task.kind == "detection" else []
    if task.metric != "accuracy":  # no threshold can be chosen for what the validation split lacks
        present = task.splits["valid"].targets.any(0)
        if names := [label for label, known in zip(task.labels, present) if not known]:
            what = "their thresholds are" if len(names) > 1 else "its threshold is"
            lines.append(f"  never in validation: {first(names, 5)}; {what} 0.5")
    length = f"{s.steps} steps" if s.steps else f"{s.epochs} epochs"
    return "\n".join(lines + [
        f"  {s.optimizer}, lr {' '.join(f'{lr:g}' for lr in s.lr)}, batch {s.batch_size}, {length}, {s.loss}, "
        f"pool {s.pool}, mixup {s.mixup:g}, trained: {s.trainable}"])


def print_tables(rows, per_class):
    """A line a task and seed, for detection more; what to think of them; BEANS's groups beside published ones."""
    from wren.probing import report, scoring
    cells = [[row["task"], report.METRICS[row["metric"]], f"{row['value']:.3f}", report.interval_of(row["ci95"]),
              f"{row['chance']:.3f}", f"{row['valid']:.3f}", f"{row['lr']:g}", row["epoch"], row["seed"],
              str(row["n_test"]) + (f", fold {row['fold']}" if row["fold"] else "")] for row in rows]
    header, *lines = report.table(["task", "metric", "test", "95 % interval", "chance", "validation", "lr", "epoch",
                                   "seed", "tested"], cells).splitlines()
    print(f"\n{header}")
    for row, line in zip(rows, lines):
        print("\n    ".join([line, *details(row, per_class)]))
    for row in rows:
        if None in row["ci95"]:
            print(f"{row['task']}: no interval: it is drawn by recording, and the test clips are of "
                  f"{row['recordings']} recording{'s' * (row['recordings'] != 1)} only")
    for name in dict.fromkeys(row["task"] for row in rows):
        runs = [row for row in rows if row["task"] == name]
        values = [row["value"] for row in runs]
        if len(values) > 1:
            print(f"{name}: mean of {len(values)} runs {sum(values) / len(values):.3f}, from {min(values):.3f} to "
                  f"{max(values):.3f}")
        best = max(runs, key=lambda row: row["valid"])
        if text := scoring.doubt(report.METRICS[best["metric"]], best["valid"], best["valid_chance"],
                                 "event_f1" in best):
            print(f"{name}: {text}")
    if any(row["group"] for row in rows):
        source = f"mean of {len({row['seed'] for row in rows})} seed(s)"
        header = [f"protocol {rows[0]['protocol'] or 'own'}", *report.GROUPS, "source"]
        own = ["this run", *report.group_cells(scoring.group_means(rows)), source]
        print("\n" + report.table(header, [own]) + report.ladder())


def details(row, per_class):
    """Lines below a row of the table."""
    from wren.probing.report import number
    out = []
    if "cmap" in row:
        out.append(f"tie-aware mAP without empty classes {number(row['cmap'])}, AUROC {number(row['auroc'])}")
    if "event_f1" in row:
        onset, offset = ("–" if row[f"{k}_error_ms"] is None else f"{row[f'{k}_error_ms']:.0f} ms"
                         for k in ("onset", "offset"))
        out += [f"event F1 {row['event_f1']:.3f} (IoU 0.3), {row['onset_f1']:.3f} (onset 0.2 s), "
                f"{row['collar_f1']:.3f} (onset 20 ms, offset 20 ms or 20 % of the call)",
                f"median error of onsets {onset}, of offsets {offset}"]
    return out + [f"  {label:<24} {number(one['value'])}  ({one['n']})"
                  for label, one in (row["per_class"].items() if per_class else ())]


# ----------------------------------------------------------------------------------------------------------- story

def find_encoder(checkpoint):
    """(file, published folder or preset's name, folder for its results) of --checkpoint."""
    from wren.formats import newest_encoder
    if checkpoint in PRESETS:
        return checkpoint, Path("runs") / checkpoint
    path = Path(checkpoint or newest_encoder("runs"))
    if path.is_dir() and not (path / "model.safetensors").exists():
        path = newest_encoder(path)
    run = path.parent
    own = (run / "config.json").exists() and not (run / "model.safetensors").exists()
    return str(path), run if own else Path("runs") / (path.name if path.is_dir() else path.stem)


def open_tasks(args, procs):
    """[(task, fold or None)] of what --task names. One process makes the demo if need be; the others wait."""
    from wren.sound import demo
    from wren.tasks import load_task, task_names
    if args.data == DEMO and not all(Path(name).is_dir() for name in args.task):
        procs.first(lambda: demo.ensure(DEMO))
    out = []
    for name in task_names(args.task, args.data):
        task = load_task(name, args.data, args.low, None if args.fold == "all" else args.fold, label=args.label)
        if args.label and (task.kind != "detection" or args.label not in task.labels):
            raise UserError(f"--label {args.label}: task {task.name} has no call without a label; leave it out")
        if args.fold != "all":
            out.append((task, args.fold))
        elif not task.folds:
            raise UserError(f"--fold all: task {task.name} has no folds")
        else:
            out += [(load_task(name, args.data, args.low, fold), fold) for fold in task.folds]
    return out


def plan(args, procs, stop):
    """(folder of all results, [(Job, Task with its test split, fold)]) of what the command line asks for; mistakes show
    here, before anything is trained or written."""
    from model import fingerprint, load_encoder
    from wren.tasks import without_broken
    from wren.training import engine
    from wren.training.supervised import Job
    tasks, (path, home), jobs = open_tasks(args, procs), find_encoder(args.checkpoint), []
    encoder = load_encoder(path, args.format)
    out = Path(args.out or home / "-".join(filter(None, ("finetune", args.protocol))))
    for task, fold in tasks:
        settings = settings_for(encoder.config, task, args.recipe, args.protocol, args.chosen)
        if settings.batch_size % procs.world:
            raise UserError(f"--batch-size {settings.batch_size} does not divide by {procs.world} "
                            "processes")
        jobs.append(Job(settings, task, out / (f"{task.name}-fold{fold}" if fold else task.name), path, procs, stop,
                        args.format, encoder_changes(settings, encoder.config, task), args.workers,
                        args.micro_batch, args.amp, args.max_bad))
    engine.precision(args.amp, procs.device)  # refused before anything is written
    if len({job.folder for job in jobs}) < len(jobs):
        raise UserError("--task: two folders of one name would share their results: train them apart, with --out")
    if procs.main:
        print(f"{called(path)}: {encoder.config.name}, {encoder.config.sample_rate} Hz -> {out}")
    weights = path if path in PRESETS else fingerprint(encoder)  # of a preset the trial's seed draws them
    plans = []
    for job, (task, fold) in zip(jobs, tasks):
        task = procs.first(lambda: without_broken(task, out, args.max_bad, out, quiet=not procs.main))
        seen = {name: task.splits[name] for name in ("train", "valid")}  # training is not to see the test split
        plans.append((replace(job, task=replace(task, splits=seen)), task, fold))
    for job, task, _ in plans:
        prepare(job, task, weights, args.override)
    return out, plans


def main(argv=None):
    args = parse_args(argv)
    stop = cli.StopSignals()  # before torch is imported: a signal in those seconds must not be lost
    from wren.training import processes
    procs = processes.start_processes(args.device, args.timeout)
    out, plans = plan(args, procs, stop)
    rows, seeds = [], range(args.seed, args.seed + args.seeds)
    for job, task, fold in plans:
        done = run_task(job, task, seeds, {"protocol": args.protocol, "fold": fold})
        if done is None:
            if procs.main:
                print(f"{out}: stopped by {stop}, saved; the same command goes on")
            break
        rows += done
    else:
        if procs.main:
            print_tables(rows, args.per_class)
            path = Path(args.json or out / "results.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            cli.write_text(path, json.dumps({"results": rows}, indent=1))
            events = "--events raven" if task.kind == "detection" else "--predict"
            print(f"written to {path}; " + (
                f"models are in {out}/TASK/finetuned.pt" if len(plans) > 1 else
                f"the model is {job.folder}/finetuned.pt\nNext:\n  python extract.py FOLDER {events} --checkpoint "
                f"{job.folder}     new recordings"))
    procs.stop()


if __name__ == "__main__":
    cli.run(main)
