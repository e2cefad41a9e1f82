"""Pre-train an encoder on unlabelled sound.

    python pretrain.py                                               the demo corpus, minutes on two CPU cores
    python pretrain.py --data FOLDER --steps 2000                    your own recordings
    torchrun --nproc_per_node=8 pretrain.py --subset 1.23M           GPM-BT's bio corpus, data/pretrain.csv
    python pretrain.py --init SSAST-Base-Patch-400.pth --format ssast --subset 1.23M      "secondary" pre-training

The run folder runs/NAME holds config.json, log.jsonl, checkpoints and encoder.pt. The same command again goes on with
an unfinished run, exactly, also on another number of processes.
"""
import argparse
import json
import textwrap
from pathlib import Path

from wren import cli
from wren.cli import DEMO, UserError
from wren.recipes import OBJECTIVES, PRESETS, RECIPES, SETTINGS

CORPUS = "data/pretrain.csv"
PAPER_SUBSETS = ("0.12M", "0.46M", "0.80M", "1.23M", "2.23M")


def parse_args(argv=None):
    p = cli.Parser(__doc__, prog="pretrain.py", epilog=_chosen(argv))
    g = p.add_argument_group("data")
    g.add_argument("--data", help="folder of audio, manifest (CSV, TSV, JSON) or shards (default: the demo corpus; "
                                  "data/pretrain.csv when --subset names one of the paper's sizes)")
    g.add_argument("--subset", default="all", help="0.12M 0.46M 0.80M 1.23M (nested, bio), 2.23M (general), a count "
                                                   "such as 50k, or all")
    g.add_argument("--domain", choices=("bio", "gen", "any"), help="rows that a counted --subset draws from")
    g.add_argument("--clip-seconds", type=cli.positive, help="training length, s (default: the preset's)")
    g.add_argument("--crop", choices=("random", "active"), default="random", help="which part of a recording is taken: "
                   "any, or the one of some candidates with the most call-like activity")
    g.add_argument("--valid", type=cli.natural, help="held-out clips; whole recordings are held out")
    g.add_argument("--max-bad", type=cli.share, default=0.001, help="share of unreadable clips that stops the run")
    g.add_argument("--workers", type=cli.natural, default=1, help="loader processes of each training process")

    g = p.add_argument_group("augmentation of the wave (off by default; on the device, drawn by each clip's seed)")
    g.add_argument("--gain", type=cli.positive, help="level drawn from -GAIN to +GAIN, dB")
    g.add_argument("--shift", action="store_true", help="turn the clip around a circle by a random share")
    g.add_argument("--mix-snr", type=float, nargs=2, metavar=("LOW", "HIGH"), help="add another clip at a "
                   "signal-to-noise ratio drawn from this range, dB")
    g.add_argument("--polarity", action="store_true", help="negate half of the clips")

    g = p.add_argument_group("recipe and encoder")
    g.add_argument("--recipe", choices=RECIPES, default="ssast", metavar="NAME",
                   help=f"what is learned and how: {', '.join(RECIPES)}")
    g.add_argument("--scale", choices=("laptop", "paper"), help="column of the recipe (default: paper when --subset "
                                                                "names one of the paper's sizes, else laptop)")
    g.add_argument("--paper", action="store_true", help="print both columns of the recipe and leave")
    g.add_argument("--meta", action="store_true", help="print parameters, memory and arithmetic, and leave")
    g.add_argument("--preset", choices=PRESETS, metavar="NAME", help=f"encoder: {', '.join(PRESETS)}")
    g.add_argument("--init", metavar="CHECKPOINT", help="file, run folder or preset's name: start from this encoder, "
                   "and from its objective's heads if they are there (secondary pre-training)")
    g.add_argument("--format", help="layout of --init where its keys can't decide: ssast, gpm-bt, …")
    g.add_argument("--rate", choices=("preset", "any"), default="preset", help="resample to the preset's rate, or hear "
                   "each recording at its own: bands at fixed hertz, positions in seconds and octaves")
    g.add_argument("--lower-rate", type=cli.share, default=0.5, help="with --rate any: share of clips heard at half "
                   "their rate or less, so that a sound is the same at every rate")
    g.add_argument("--streams", nargs="+", metavar="NAME:HZ", default=(), help="with --rate any: also learn from these "
                   "columns stream:NAME of the manifest, at so many values a second (accelerometer:50 depth:1)")
    g.add_argument("--stream-drop", type=cli.share, default=0.3, help="share of clips from which a stream is left out, "
                   "so that sound alone still works")
    g.add_argument("--normalise", choices=("corpus", "preset"), help="spectrogram mean and deviation: measured on this "
                   "corpus, or the preset's (AudioSet)")
    g.add_argument("--drop-path", type=cli.share, help="share of clips that skip the last block")
    _add_objective(p.add_argument_group("objective (defaults: the recipe's, see --paper; each has some of these)"))

    _add_optimisation(p.add_argument_group("optimisation (defaults: the recipe's)"))
    _add_run(p.add_argument_group("run"))
    return _fill_in(p.parse_args(argv))


def _add_optimisation(g):
    g.add_argument("--steps", type=cli.positive_int, help="optimiser steps")
    g.add_argument("--epochs", type=cli.positive, help="instead of --steps: passes over the data")
    g.add_argument("--batch-size", type=cli.positive_int, help="clips a step, over all processes")
    g.add_argument("--micro-batch", type=cli.positive_int, help="clips a forward pass of one process (default: all)")
    g.add_argument("--optimizer", choices=("adamw", "adam"), help="AdamW, or SSAST's Adam with L2 on everything")
    g.add_argument("--lr", type=cli.positive, help="peak learning rate")
    g.add_argument("--weight-decay", type=float, help="of weight matrices")
    g.add_argument("--weight-decay-end", type=float, help="what it becomes, on a cosine (ATST)")
    g.add_argument("--schedule", choices=("cosine", "constant", "plateau"), help="after the warm-up")
    g.add_argument("--floor", type=cli.share, help="of the learning rate where the cosine ends, a share of --lr")
    g.add_argument("--warmup", type=cli.natural, help="steps")
    g.add_argument("--betas", type=cli.share, nargs=2, metavar=("B1", "B2"), help="of Adam's running means")
    g.add_argument("--eps", type=cli.positive, help="of Adam")
    g.add_argument("--clip", type=float, help="largest gradient norm; 0: off")
    g.add_argument("--seed", type=int, default=0, help="of weights, order, crops, masks and augmentation")


def _add_run(g):
    g.add_argument("--out", help="run folder (default: runs/RECIPE-PRESET-SUBSET-sSEED)")
    g.add_argument("--save-every", type=cli.positive_int, default=500, help="steps between checkpoints")
    g.add_argument("--keep", type=cli.positive_int, default=2, help="newest checkpoints that stay")
    g.add_argument("--milestone", type=cli.natural, default=0, help="keep every checkpoint at a multiple of this step")
    g.add_argument("--eval-every", type=cli.positive_int, help="steps between evaluations on the held-out clips")
    g.add_argument("--probe-every", type=cli.positive_int, metavar="STEPS", help="log a kNN score on --probe-task's "
                   "validation split so often")
    g.add_argument("--probe-task", metavar="TASK", help="folder of a task (default: the demo's species)")
    g.add_argument("--log-every", type=cli.positive_int, default=10, help="steps between rows of log.jsonl")
    g.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help="go on with the run in --out")
    g.add_argument("--extend", action="store_true", help="let a finished run go on to --steps")
    g.add_argument("--override", action="store_true", help="resume although settings have changed")
    g.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    g.add_argument("--amp", choices=("auto", "bf16", "fp16", "fp32"), default="auto", help="auto: bf16 or fp16 on GPU, "
                                                                                          "fp32 on CPU")
    g.add_argument("--compile", action="store_true", help="compile each block (GPU)")
    g.add_argument("--checkpoint-activations", action="store_true", help="less memory, a third more arithmetic")
    g.add_argument("--timeout", type=cli.positive, default=300, help="longest wait for another process, s")
    g.add_argument("--max-skips", type=cli.positive_int, default=10, help="non-finite steps in a row that stop the run")
    g.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")


def _add_objective(g):
    g.add_argument("--masking", choices=("patch", "frame", "upstream", "block", "group", "span", "structured"),
                   help="patch: clusters of 3 to 5 patches (SSAST); upstream: its released sampler with its biases; "
                        "frame: single tokens (SSAST frame, AudioMAE); group: pairs (Dasheng); block: all but some "
                        "blocks (EAT); span: runs of columns (ATST-Frame, animal2vec); structured: columns and rows")
    g.add_argument("--hidden", type=_count_or_share, help="hidden tokens of a full clip, a count or a share "
                                                          "(SSAST: 400 of 512)")
    g.add_argument("--span", type=cli.positive_int, help="columns of a span")
    g.add_argument("--loss", choices=("joint", "nce", "mse"), help="SSAST: InfoNCE + 10 MSE, or one alone")
    g.add_argument("--nce-axis", choices=("released", "paper"), help="SSAST: softmax over predictions, or targets "
                                                                     "(eq. 1)")
    g.add_argument("--decoder-dim", type=cli.positive_int, help="width of the decoder")
    g.add_argument("--decoder-depth", type=cli.positive_int, help="layers of the decoder")
    g.add_argument("--decoder-heads", type=cli.positive_int, help="MAE: attention heads of the decoder")
    g.add_argument("--decoder-groups", type=cli.positive_int, help="EAT, animal2vec: groups of the decoder's "
                                                                  "convolutions")
    g.add_argument("--target-norm", choices=("clip", "patch"), help="EAT, animal2vec: a teacher's features are "
                   "normalised channel by channel over the clip's patches (published), or patch by patch over channels, "
                   "which keeps what all patches of a clip share")
    g.add_argument("--var-floor", type=cli.positive, help="MAE: added to a patch's variance before it is normalised to "
                                                          "1 (published: 1e-6); more keeps faint noise faint")
    g.add_argument("--clones", type=cli.positive_int, help="EAT, animal2vec: masks of each clip and step")
    g.add_argument("--cls-weight", type=float, help="EAT: weight of the utterance loss, a mean over rows (its code: a "
                                                    "sum over a GPU's rows, so 192)")
    g.add_argument("--noise", type=float, help="EAT, animal2vec: deviation of the noise in hidden places")
    g.add_argument("--mix", type=cli.share, help="ATST: largest share of another clip; animal2vec: share of "
                                                        "clips that are mixed")
    g.add_argument("--view-seconds", type=cli.positive, help="ATST: length of a view, s")
    g.add_argument("--stretch", type=cli.positive, nargs=2, metavar=("LOW", "HIGH"), help="ATST: share of time and of "
                   "frequency that a view takes and stretches (published: 0.6 1.5; the wider, the less it matters at "
                   "which frequency an animal calls)")
    g.add_argument("--canvas", choices=("published", "floor"), help="ATST: around a stretched view lies 0, or the "
                                                                   "clip's minimum")
    g.add_argument("--head-dim", type=cli.positive_int, help="ATST: hidden width of projector and predictor")
    g.add_argument("--ema", type=float, nargs=2, metavar=("START", "END"), help="teacher = m · teacher + (1 - m) · "
                                                                                "student: m at first, m at last")
    g.add_argument("--ema-steps", type=cli.positive_int, help="steps from START to END (default: --steps)")


def _count_or_share(text):
    return int(text) if text.isdigit() else cli.share(text)


def _chosen(argv):
    """The settings of the recipe on the command line, for --help."""
    p = cli.Parser("", prog="pretrain.py", add_help=False)
    p.add_argument("--recipe", default="ssast")
    for flag in ("--scale", "--subset"):
        p.add_argument(flag)
    args = p.parse_known_args(argv)[0]
    scale = args.scale or ("paper" if args.subset in PAPER_SUBSETS else "laptop")
    settings = RECIPES.get(args.recipe, {}).get(scale, {})
    text = "  ".join(f"{key.replace('_', '-')} {_shown(value)}" for key, value in settings.items() if key != "differs")
    return (f"what is not given is set by the recipe, here {args.recipe}, {scale}:\n"
            + textwrap.fill(text, 118, break_on_hyphens=False))


def _shown(value):
    return " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)


def _fill_in(args):
    """Settings that were not given come from the recipe; the run folder's name from the settings."""
    named = args.subset in PAPER_SUBSETS
    args.scale = args.scale or ("paper" if named else "laptop")
    if args.epochs and args.steps:
        raise UserError("--steps and --epochs say the same thing twice: give one")
    length = {"steps", "epochs"} if args.steps or args.epochs else set()  # given: the recipe's do not count
    recipe = RECIPES[args.recipe][args.scale]
    settings = SETTINGS[recipe["objective"]]
    for key in OBJECTIVES:
        if getattr(args, key, None) is not None and key not in settings:
            raise UserError(f"--{key.replace('_', '-')} does not belong to recipe {args.recipe}, which has "
                            f"{', '.join('--' + k.replace('_', '-') for k in settings if k != 'frames')}")
    for key in (*OBJECTIVES, "weight_decay_end", "drop_path", *recipe):
        if key not in length and getattr(args, key, None) is None:
            setattr(args, key, recipe.get(key))
    if args.data is None:
        args.data = CORPUS if named else DEMO
        if named and not Path(args.data).exists():
            raise UserError(f"--subset {args.subset} reads {args.data}, which does not exist: make it with python "
                            f"data.py index FOLDER --out {args.data}, or name another manifest with --data")
    if max(args.betas) == 1:
        raise UserError("--betas 1: a running mean that takes nothing in; give numbers below 1")
    if args.streams and args.shift:
        raise UserError("--shift: a clip that is turned around no longer goes with its --streams")
    if args.probe_every and args.probe_task is None and args.data != DEMO:
        raise UserError("--probe-every needs a task with labels: name a folder with --probe-task")
    if args.out is None:
        what = [] if args.data in (DEMO, CORPUS) else [Path(args.data).resolve().stem]
        what += [args.subset] if args.subset != "all" or not what else []
        args.out = f"runs/{args.recipe}-{args.preset}-{'-'.join(what)}-s{args.seed}"
    return args


def print_paper(recipe):
    """The recipe's two columns side by side."""
    laptop, paper = RECIPES[recipe]["laptop"], RECIPES[recipe]["paper"]
    print(f"{recipe:<17} {'laptop':<22} paper")
    for key in dict.fromkeys([*paper, *laptop]):
        if key != "differs":
            print(f"{key.replace('_', '-'):<17} {_shown(laptop.get(key, '–')):<22} {_shown(paper.get(key, '–'))}")
    print(f"\nThe paper column differs from the published code: {paper['differs']}.")


def print_meta(args):
    """What training the preset takes, without allocating it."""
    import torch

    from model import Encoder
    config = PRESETS[args.preset]
    micro = args.micro_batch or args.batch_size
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Encoder(config).parameters())
    tokens = config.n_tokens + config.specials
    state = 16 * parameters / 1e9  # float32 weights, gradients and two Adam moments, 4 bytes each
    # bf16: what a block keeps for its backward pass is about 34 values a token and width at 2 bytes (half of them the
    # feed-forward's), and its input alone when activations are computed again
    block = 34 * tokens * config.dim * micro / 1e9
    kept = 2 * tokens * config.dim * micro / 1e9 * config.depth + block
    print(f"{config.name}: {parameters / 1e6:.1f} M parameters, {config.dim} wide, {config.depth} deep, "
          f"{tokens} tokens of {config.clip_seconds:g} s\n"
          f"training state   {state:.1f} GB a GPU (16 bytes a parameter)\n"
          f"activations      {block * config.depth:.1f} GB a GPU for {micro} clips, {kept:.1f} GB with "
          f"--checkpoint-activations (bf16, estimated)\n"
          f"arithmetic       {3 * config.forward_flops() / 1e9:.0f} GFLOP a clip and step, "
          f"{4 * config.forward_flops() / 1e9:.0f} with --checkpoint-activations")


# ----------------------------------------------------------------------------------------------------- training

def held_out(valid, config, procs, batch_size=32):
    """This process's share of the held-out clips in batches: each clip from its start, with the same mask at every
    call. One that can no longer be read is left out with a warning."""
    import torch

    from wren.sound import loading
    from wren.sound.audio import BadAudio
    from masking import hash64
    crop = loading.Cropper(config.sample_rate, config.clip_seconds, "start", any_rate=config.rate == "any",
                        streams=config.stream_rates)
    mine = range(procs.rank, len(valid), procs.world)
    for first in range(0, len(mine), batch_size):
        clips = []
        for i in mine[first:first + batch_size]:
            try:
                clips.append(crop(valid, i, 0) | {"row": i})
            except BadAudio as error:
                cli.warn(f"held-out clip left out of this evaluation: {error}")
        for rate, some in loading.by_rate(clips):
            yield loading.stack(some, crop.samples(rate)) | {
                "rate": rate, "seed": hash64(torch.tensor([clip["row"] for clip in some]))}


def train(args, trainer, loader, valid, log, stop, out):
    """The loop. Returns the name of the signal that ended it early, or None."""
    from wren.sound import loading
    from wren.training import engine
    from wren.training import runlog
    procs = trainer.procs
    if args.probe_every:
        from wren.probing import probes
        task = probe_task(args)
    bar = cli.Progress(args.steps, trainer.step, procs.main)
    saver, bad = engine.Saver(out, args.keep, args.milestone), loading.BadLog(out / "bad.jsonl", args.max_bad)
    meter = runlog.Meter(procs, args.batch_size, trainer.objective)
    batches = iter(loader)
    while trainer.step < args.steps:
        with meter.waiting():
            batch = next(batches)
        row = trainer.train(batch, flags=(stop.received is not None, len(batch["bad"])))
        stopping, unreadable = row.pop("flags")
        bad.add(batch["bad"], unreadable, args.batch_size)
        meter.add(row)
        step, last = trainer.step, trainer.step == args.steps
        bar.beat(step, row["loss"])
        if not row["finite"]:
            clips = [i for part in loading.parts([batch]) for i in part["index"].tolist()]
            bar.say(f"step {step}: skipped, its gradient is not finite (clips {clips})")
        if step % args.log_every == 0 or last or not row["finite"]:
            entry = meter.entry(step, len(loader.manifest), trainer.skips)
            if not row["finite"]:
                entry["skipped_clips"] = clips
            if log:
                log.write(entry)
            bar.update(entry)
        if trainer.skipped_in_a_row >= args.max_skips:
            raise UserError(f"step {step}: {args.max_skips} steps in a row were not finite; the last checkpoint is "
                            f"whole: lower --lr, or look at the skipped_clips in {out / 'log.jsonl'}")
        if step % args.eval_every == 0 or last:
            scores = evaluate_held_out(trainer, valid, log)
            bar.say(f"step {step:>6}  {describe(scores or row, 'held-out ' if scores else '')}  {bar.speed}")
            if args.schedule == "plateau" and scores:
                trainer.plateau.update(scores.get("accuracy", -scores["loss"]))
        if log and args.probe_every and (step % args.probe_every == 0 or last):
            score = probes.online_knn(trainer.objective.exported, task, procs.device, workers=args.workers)
            log.write({"step": step, "knn": score})
            bar.say(f"step {step:>6}  kNN on {task.name} (validation) {score:.3f}")
        if procs.main and (step % args.save_every == 0 or last or stopping):
            if complaint := saver.save(trainer.state_dict(), step, trainer.objective.exported, last):
                bar.say(complaint)
        if stopping and not last:
            break
    bar.close()
    return (stop.received or "a signal to another process") if trainer.step < args.steps else None


def probe_task(args):
    from wren.tasks import load_task
    return load_task(args.probe_task or "species", root=None if args.probe_task else DEMO)


def evaluate_held_out(trainer, valid, log):
    """Loss and accuracy on the held-out clips, logged; {} when there is less than one for each process."""
    if len(valid) < trainer.procs.world:
        return {}
    scores = trainer.evaluate(held_out(valid, trainer.objective.encoder.config, trainer.procs))
    if log:
        log.write({"step": trainer.step, **{f"valid_{k}": v for k, v in scores.items() if k != "count"}})
    return scores


def describe(scores, what="held-out "):
    """One line of scores."""
    text = f"{what}loss {scores['loss']:.3f}"
    if "accuracy" not in scores:
        text += f"  spread {scores['spread']:.3f}"
    if "accuracy" in scores:
        text += (f"  masked-patch accuracy {scores['accuracy']:.1%} "
                 f"({scores['accuracy'] / scores['chance']:.1f} × chance)")
    return text


def species_knn(path, device):
    """One line: kNN accuracy on the demo's species, of this encoder and of the same one untrained."""
    import torch

    from wren.tasks import load_task
    from wren.probing.metrics import accuracy
    from model import Encoder, load_encoder
    from wren.probing.probes import knn, vectors
    task = load_task("species", root=DEMO)
    trained = load_encoder(path).to(device)
    torch.manual_seed(0)
    encoders = [trained, Encoder(trained.config).eval().to(device)]
    fit, test = (vectors(encoders, task.splits[split], device) for split in ("train", "test"))
    labels = task.splits["train"].targets, task.splits["test"].targets
    scores = [accuracy(knn(a, labels[0], b), labels[1]) for a, b in zip(fit, test)]
    return (f"species kNN accuracy {scores[0]:.3f}, untrained {scores[1]:.3f}, chance {1 / len(task.labels):.3f} "
            f"({len(labels[1])} test clips)")


def next_commands(out, data):
    if data != DEMO:
        return (f"Next:\n"
                f"  python extract.py FOLDER --store --window 2 --checkpoint {out}     embeddings, to search\n"
                f"  python finetune.py --data ROOT --task TASK --checkpoint {out}      your own labels or annotations")
    return (f"Next:\n"
            f"  python evaluate.py --knn --checkpoint {out}     every demo task, intervals, baselines\n"
            f"  python pretrain.py --data FOLDER                your own recordings")


# -------------------------------------------------------------------------------------------------------- story

def main(argv=None):
    args = parse_args(argv)
    if args.paper:
        return print_paper(args.recipe)
    if args.meta:
        return print_meta(args)
    stop = cli.StopSignals()  # before torch is imported: a signal in those seconds must not be lost
    from wren.training import engine

    procs = engine.start_processes(args.device, args.timeout)
    out, done = Path(args.out), Path(args.out) / "DONE"
    if done.exists() and not args.extend:
        if procs.main:
            print(f"{out} is finished ({done.read_text().strip()}). To go on with it: --extend --steps N; to start "
                  f"another run: --out FOLDER\n{next_commands(out, args.data)}")
    else:
        ended_by = run(args, out, stop, procs)
        if procs.main:
            cli.write_text(out / ("PREEMPTED" if ended_by else "DONE"), f"{ended_by or f'{args.steps} steps'}\n")
            print(f"{out}: stopped by {ended_by}, saved; the same command goes on" if ended_by else
                  summary(args, out, procs.device))
    procs.stop()


def run(args, out, stop, procs):
    """One training run, new or continued; returns the name of the signal that ended it early, or None."""
    from wren.sound import loading
    from wren.training import engine
    from wren.training import prepare
    from wren.training import runlog
    if args.batch_size % procs.world:
        raise UserError(f"--batch-size {args.batch_size} does not divide by {procs.world} processes")
    train_rows, valid_rows = prepare.open_data(args, procs)
    start, heads = prepare.starting_point(args)
    config = prepare.prepare_run(args, out, train_rows, valid_rows, start, procs)
    objective = prepare.build(args, config, start, heads).to(procs.device)
    optimizer = engine.make_optimizer(objective, args.optimizer, args.lr, args.betas, args.weight_decay, args.eps)
    trainer = engine.Trainer(
        objective, optimizer, procs, batch_size=args.batch_size, micro_batch=args.micro_batch or args.batch_size,
        steps=args.steps, warmup=args.warmup, schedule=args.schedule, floor=args.floor, clip=args.clip,
        weight_decay_end=args.weight_decay_end, amp=args.amp, compile=args.compile, seed=args.seed,
        augment=prepare.augmentation(args))
    state = engine.load_checkpoint(out)
    if state:
        trainer.load_state_dict(state)
    procs.barrier()  # all have read the folder before the first process writes to it
    log = None
    if procs.main:
        for marker in ("DONE", "PREEMPTED"):
            (out / marker).unlink(missing_ok=True)
        log = runlog.Log(out / "log.jsonl", trainer.step if state else -1, args.tensorboard)
        print(f"{out}: {'resumed at' if state else 'from'} step {trainer.step} to {args.steps}, {len(train_rows)} "
              f"clips, {len(valid_rows)} held out, {config.name}, {procs.world} × {procs.device.type} {trainer.amp}")
    if not state:
        first_row(args, trainer, log)
        evaluate_held_out(trainer, valid_rows, log)
    loader = loading.loader(train_rows, sample_rate=config.sample_rate, clip_seconds=config.clip_seconds,
                         batch_size=args.batch_size, seed=args.seed, first=trainer.step * args.batch_size,
                         steps=args.steps - trainer.step, rank=procs.rank, world=procs.world, workers=args.workers,
                         crop=args.crop, partner=args.mix_snr is not None or bool(args.mix),
                         any_rate=config.rate == "any", lower=args.lower_rate if config.rate == "any" else 0.0,
                         streams=config.stream_rates, stream_drop=args.stream_drop)
    ended_by = train(args, trainer, loader, valid_rows, log, stop, out)
    if log:
        log.close()
    return ended_by


def first_row(args, trainer, log):
    """The first line of the log: what ran, where, from which code."""
    if log:
        from wren.training import runlog
        encoder = trainer.objective.encoder
        log.write({"step": 0, "commit": runlog.commit(), "processes": trainer.procs.world, "amp": trainer.amp,
                   "device": runlog.device_name(trainer.procs.device),
                   "parameters": sum(p.numel() for p in encoder.parameters()),
                   "flops_per_clip": trainer.objective.flops(), "flags": vars(args),
                   "encoder": encoder.config.to_dict()})


def summary(args, out, device):
    """What was learned: held-out scores before and after, the kNN score on the demo's species, what to type next."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    valid = [{k[6:]: v for k, v in row.items() if k.startswith("valid_")} for row in rows if "valid_loss" in row]
    lines = [f"\n{out}: {args.steps} steps"]
    if valid:
        lines += [f"  before   {describe(valid[0])}", f"  after    {describe(valid[-1])}"]
    if args.data == DEMO:
        lines += [f"  {species_knn(out / 'encoder.pt', device)}"]
    return "\n".join([*lines, next_commands(out, args.data)])


if __name__ == "__main__":
    cli.run(main)
