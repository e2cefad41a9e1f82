"""Fine-tune an encoder on labelled sound, and read the test split once.

    python finetune.py                                             the newest run on the demo's species
    python finetune.py --task detection                            windows and events of the demo's recordings
    python finetune.py --checkpoint runs/NAME --data ROOT --task watkins dogs --lr 1e-5 5e-5 1e-4 --seeds 3
    torchrun --nproc_per_node=8 finetune.py --checkpoint GPM-BT.pth --format gpm-bt --data ROOT --task beans \\
             --protocol gpm-bt                                     all of BEANS that is there, the paper's settings

A task is one of BEANS's twelve, or a folder (see wren/tasks/load.py). Every rate is trained on the training split and
judged on the validation split; the best epoch of the best rate is tested. The same command again goes on where it
stopped. Results, curves and finetuned.pt are in runs/NAME/finetune/TASK.
"""
import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

from wren import cli
from wren.cli import DEMO, UserError
from wren.recipes.finetuning import (PARTS, PROTOCOLS, RECIPES, Augmentation, Model, Optimisation, encoder_changes,
                                     settings_for)


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
    for title, part in (("model", Model), ("loss and optimisation", Optimisation),
                        ("augmentation of the training split", Augmentation)):
        g = p.add_argument_group(title)
        for setting in fields(part):
            if setting.metadata:  # a flag that is not given says nothing: the recipe does
                g.add_argument(f"--{setting.name.replace('_', '-')}", **setting.metadata | {"default": None})

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
    return args


def chosen_settings(args):
    """{name: value} of the settings that were given as flags."""
    values = {f.name: getattr(args, f.name) for part in PARTS for f in fields(part) if f.metadata}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if v is not None}


# ------------------------------------------------------------------------------------------------------- one task

def plan(args, task, fold, config, source, out, machine):
    """The `Job` of a task; mistakes show here, before anything is trained."""
    from wren.training.supervised import Job, Source
    settings = settings_for(config, task, args.recipe, args.protocol, chosen_settings(args))
    if settings.optimisation.batch_size % machine.procs.world:
        raise UserError(f"--batch-size {settings.optimisation.batch_size} does not divide by {machine.procs.world} "
                        "processes")
    changes = encoder_changes(settings.model, config, task)
    folder = out / (f"{task.name}-fold{fold}" if fold else task.name)
    return Job(settings, Source(source, args.format, changes), untested(task), folder, machine)


def untested(task):
    """A task without its test split, which training is not to see."""
    return replace(task, splits={name: task.splits[name] for name in ("train", "valid")})


def prepare(job, task, override):
    """Fix in config.json what the folder's trials are, or check that they still are that."""
    path, procs = job.folder / "config.json", job.machine.procs
    now = job.settings.flat() | {
        "encoder": fingerprint(job.source.path), "format": job.source.format, "config": job.source.changes,
        "labels": task.labels, "data": {name: contents(split) for name, split in task.splits.items()}}
    now = json.loads(json.dumps(now))  # as it will be read back: tuples become lists
    saved = json.loads(path.read_text()) if path.exists() else None
    changed = saved and difference(saved, now)
    if changed and not override:
        raise UserError(f"{job.folder} was made with {changed}: name another folder with --out, or start afresh with "
                        "--override")
    procs.barrier()  # all have looked before the first process writes
    if procs.main and (saved is None or changed):
        import shutil
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


def fingerprint(source):
    """What names the weights: a preset's name, or a hash of the file, or of a published folder's files."""
    path, digest = Path(source), hashlib.sha256()
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path] if path.is_file() else []
    for file in files:
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16] if files else str(source)


def find_encoder(checkpoint):
    """(file, published folder or preset's name, folder for its results) of --checkpoint."""
    from wren.formats import newest_encoder
    from wren.recipes import PRESETS
    if checkpoint in PRESETS:
        return checkpoint, Path("runs") / checkpoint
    path = Path(checkpoint or newest_encoder("runs"))
    if path.is_dir() and not (path / "model.safetensors").exists():
        path = newest_encoder(path)
    run = path.parent
    own = (run / "config.json").exists() and not (run / "model.safetensors").exists()
    return str(path), run if own else Path("runs") / (path.name if path.is_dir() else path.stem)


def run_task(job, task, seeds, about):
    """Train each seed and rate, choose on validation, then test once a seed -> result rows, None after a signal.
    about: what else a row says."""
    from wren.training.supervised import Trial
    path, main = job.folder / "results.json", job.machine.procs.main
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    if main:
        print(describe(task, job.settings), flush=True)
    for seed in seeds:
        if any(row["seed"] == seed for row in rows):
            continue
        trials, curves = [Trial(job, seed, lr) for lr in job.settings.optimisation.lr], []
        for trial in trials:
            curves.append(trial.run())
            if curves[-1] is None:
                return None
        best = max(range(len(trials)), key=lambda i: curves[i]["value"])
        if curves[best]["epoch"] is None:
            raise UserError(f"{task.name}: the loss was finite with none of the rates "
                            f"{', '.join(str(trial.lr) for trial in trials)}: lower --lr")
        row = test(task, job, trials[best], curves[best], rows)
        rows.append(cli.plain(row | about | {"curves": {c["lr"]: c["curve"] for c in curves}}))
        if main:
            cli.write_text(path, json.dumps({"results": rows}, indent=1))
            for trial in trials:
                (trial.folder / "best.pt").unlink(missing_ok=True)
            print(f"  seed {seed}: epoch {rows[-1]['epoch']} of lr {rows[-1]['lr']:g} chosen (validation "
                  f"{rows[-1]['valid']:.3f}), test {METRICS[task.metric]} {rows[-1]['value']:.3f}", flush=True)
        job.machine.procs.barrier()
    return [row for row in rows if row["seed"] in seeds]


def test(task, job, trial, chosen, earlier):
    """The one look at the test split, by the chosen model -> a result row; writes finetuned.pt if no earlier seed did
    better on validation. Thresholds come from the validation split."""
    from wren.probing import scoring
    from wren.training import engine, heads
    model, procs, workers = trial.best_model(), job.machine.procs, job.machine.workers
    events, autocast = task.kind == "detection", engine.precision(job.machine.amp, procs.device)[0]
    valid, split = task.splits["valid"], task.splits["test"]
    if task.metric != "accuracy":
        scores, frames = scoring.predict(model, valid, procs, autocast, workers, frames=events)
        model.thresholds = scoring.clip_thresholds(scores, valid.targets)
    if events:
        model.minimum_seconds = scoring.shortest_event(task.splits["train"].events)
        tracks = scoring.recordings(valid, frames, model.frame_seconds)
        model.thresholds = scoring.event_thresholds(tracks, task.labels, valid.events, model.minimum_seconds)
    model.valid, model.chance = chosen["value"], scoring.chance(task, valid)
    if procs.main and chosen["value"] > max((row["valid"] for row in earlier), default=-1.0):
        heads.save(model, job.folder / "finetuned.pt")
    scores, frames = scoring.predict(model, split, procs, autocast, workers, frames=events)
    row = {"task": task.name, "group": task.group, "probe": "finetune", "encoder": name_of(job.source.path),
           "metric": task.metric, "seed": chosen["seed"], "lr": chosen["lr"], "epoch": chosen["epoch"],
           "valid": chosen["value"], "valid_chance": model.chance,
           **scoring.clip_results(task, scores, split, chosen["seed"])}
    if task.metric != "accuracy":
        row["thresholds"] = dict(zip(task.labels, model.thresholds))
    if events:
        tracks = scoring.recordings(split, frames, model.frame_seconds)
        row |= scoring.event_results(tracks, task.labels, model.thresholds, split.events, model.minimum_seconds)
    return row


# -------------------------------------------------------------------------------------------------------- printing

def name_of(source):
    """How a checkpoint is called in tables: its run folder, if it lies in one."""
    return str(Path(source).parent if Path(source).name == "encoder.pt" else source)


METRICS = {"accuracy": "accuracy", "map": "mAP"}


def next_command(jobs):
    """Where the models are, and what they are for."""
    if len(jobs) > 1:
        return f"models are in {jobs[0].folder.parent}/TASK/finetuned.pt"
    folder, flag = jobs[0].folder, "--events raven" if jobs[0].task.kind == "detection" else "--predict"
    return (f"the model is {folder}/finetuned.pt\nNext:\n"
            f"  python extract.py FOLDER {flag} --checkpoint {folder}     new recordings")


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


def unjudged(task):
    """A line about classes that the validation split lacks, for which no threshold can be chosen, or ""."""
    if task.metric == "accuracy":
        return ""
    names = [label for label, there in zip(task.labels, task.splits["valid"].targets.any(0)) if not there]
    return (f"  never in validation: {', '.join(names[:5])}{f' and {len(names) - 5} more' * (len(names) > 5)}; "
            f"{'their thresholds are' if len(names) > 1 else 'its threshold is'} 0.5\n" if names else "")


def describe(task, settings):
    """What is about to be trained, in two lines, or three."""
    s, model = settings.optimisation, settings.model
    sizes = ", ".join(f"{len(split)} {name}" for name, split in task.splits.items())
    unit = f"windows of {task.window_seconds:g} s" if task.kind == "detection" else "clips"
    length = f"{s.steps} steps" if s.steps else f"{s.epochs} epochs"
    return (f"\n{task.name}: {sizes} {unit}, {len(task.labels)} classes\n{calls_of(task)}{unjudged(task)}"
            f"  {s.optimizer}, lr {' '.join(f'{lr:g}' for lr in s.lr)}, batch {s.batch_size}, {length}, {s.loss}, "
            f"pool {model.pool}, mixup {settings.augmentation.mixup:g}, trained: {model.trainable}")


def print_tables(rows, per_class):
    """A line a task and seed, for detection more; what to think of them; BEANS's groups beside published ones."""
    from wren.probing.scoring import doubt
    width = max(len(row["task"]) for row in rows)
    print(f"\n{'task':<{width}}  metric    test   95 % interval   chance  validation  lr       epoch    seed  tested")
    for row in rows:
        interval = "–" if None in row["ci95"] else f"[{row['ci95'][0]:.3f}, {row['ci95'][1]:.3f}]"
        print(f"{row['task']:<{width}}  {METRICS[row['metric']]:<8}  {row['value']:.3f}  {interval:<14}  "
              f"{row['chance']:.3f}   {row['valid']:.3f}       {row['lr']:<7g}  {row['epoch']:<7}  {row['seed']:<4}  "
              f"{row['n_test']}" + (f", fold {row['fold']}" if row["fold"] else ""))
        for line in details(row, per_class):
            print(f"{'':<{width}}  {line}")
    for row in rows:
        if None in row["ci95"]:
            print(f"{row['task']}: no interval: it is drawn by recording, and the test clips are of "
                  f"{row['recordings']} recording{'s' * (row['recordings'] != 1)} only")
    for name in dict.fromkeys(row["task"] for row in rows):
        runs = [row for row in rows if row["task"] == name]
        values = [row["value"] for row in runs]
        if len(values) > 1:
            mean = sum(values) / len(values)
            print(f"{name:<{width}}  mean of {len(values)} runs {mean:.3f}, from {min(values):.3f} to "
                  f"{max(values):.3f}")
        best = max(runs, key=lambda row: row["valid"])
        if text := doubt(METRICS[best["metric"]], best["valid"], best["valid_chance"], "event_f1" in best):
            print(f"{name}: {text}")
    if any(row["group"] for row in rows):
        print_beans(rows)


def details(row, per_class):
    """Lines below a row of the table."""
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


def print_beans(rows):
    """Classification, detection, auxiliary, all: ours (mean over seeds), then the published rows."""
    from wren.probing import report, scoring
    means = scoring.group_means(rows)
    total = {**scoring.WEIGHTS, "all": sum(scoring.WEIGHTS.values())}
    cells = [f"{means[g][0]:.3f}" + ("" if means[g][1] == n else f" ({means[g][1]} of {n})") if g in means else "–"
             for g, n in total.items()]
    source = f"mean of {len({row['seed'] for row in rows})} seed(s)"
    header = [f"protocol {rows[0]['protocol'] or 'own'}", *total, "source"]
    print("\n" + report.table(header, [["this run", *cells, source]]) + report.ladder())


# ----------------------------------------------------------------------------------------------------------- story

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


def readable(job, task, max_bad):
    """A job and its task without the clips that can't be read."""
    from wren.tasks import without_broken
    procs, out = job.machine.procs, job.folder.parent
    task = procs.first(lambda: without_broken(task, out, max_bad, out, quiet=not procs.main))
    return replace(job, task=untested(task)), task


def main(argv=None):
    args = parse_args(argv)
    stop = cli.StopSignals()  # before torch is imported: a signal in those seconds must not be lost
    from model import load_encoder
    from wren.training import engine, processes
    from wren.training.supervised import Machine

    procs = processes.start_processes(args.device, args.timeout)
    machine = Machine(procs, stop, args.workers, args.micro_batch, args.amp, args.max_bad)
    tasks = open_tasks(args, procs)
    source, home = find_encoder(args.checkpoint)
    config = load_encoder(source, args.format).config
    out = Path(args.out or home / ("finetune" + (f"-{args.protocol}" if args.protocol else "")))
    jobs = [plan(args, task, fold, config, source, out, machine) for task, fold in tasks]
    engine.precision(args.amp, procs.device)  # refused before anything is written
    if len({job.folder for job in jobs}) < len(jobs):
        raise UserError("--task: two folders of one name would share their results: train them apart, with --out")
    if procs.main:
        print(f"{name_of(source)}: {config.name}, {config.sample_rate} Hz -> {out}")

    jobs = [readable(job, task, args.max_bad) for job, (task, _) in zip(jobs, tasks)]
    for job, task in jobs:
        prepare(job, task, args.override)

    rows, seeds = [], range(args.seed, args.seed + args.seeds)
    for (job, task), (_, fold) in zip(jobs, tasks):
        done = run_task(job, task, seeds, {"protocol": args.protocol, "fold": fold})
        if done is None:
            if procs.main:
                reason = stop.received or "a signal to another process"
                print(f"{out}: stopped by {reason}, saved; the same command goes on")
            break
        rows += done
    else:
        if procs.main:
            print_tables(rows, args.per_class)
            path = Path(args.json or out / "results.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            cli.write_text(path, json.dumps({"results": rows}, indent=1))
            print(f"written to {path}; {next_command([job for job, _ in jobs])}")
    procs.stop()


if __name__ == "__main__":
    cli.run(main)
