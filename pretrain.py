"""Pre-train an encoder on unlabelled sound.

    python pretrain.py                                               the demo corpus, minutes on two CPU cores
    python pretrain.py --data FOLDER --steps 2000                    your own recordings
    torchrun --nproc_per_node=8 pretrain.py --subset 1.23M           GPM-BT's bio corpus, data/pretrain.csv
    python pretrain.py --init SSAST-Base-Patch-400.pth --format ssast --subset 1.23M      "secondary" pre-training

The run folder runs/NAME holds config.json, log.jsonl, checkpoints and encoder.pt. The same command again goes on with
an unfinished run, exactly, also on another number of processes.
"""
import json
import textwrap
from collections import deque
from pathlib import Path

from wren import cli
from wren.cli import DEMO, UserError
from wren.recipes import PRESETS, RECIPES, SETTINGS
from wren.recipes.flags import add_fields, add_settings
from wren.recipes.run import Data, Encoder, Optimisation, Run, recipe_of, scale_of, settings_for, written


def parser(argv=None):
    p = cli.Parser(__doc__, prog="pretrain.py", epilog=recipe_in_words(argv))
    add_fields(p.add_argument_group("data"), Data)
    g = p.add_argument_group("recipe and encoder")
    g.add_argument("--recipe", choices=RECIPES, metavar="NAME",
                   help=f"what is learned and how: {', '.join(RECIPES)} (default: {recipe_of('laptop')}, or at paper "
                        f"scale {recipe_of('paper')})")
    g.add_argument("--scale", choices=("laptop", "paper"), help="column of the recipe (default: paper when --subset "
                                                                "names one of the paper's sizes, else laptop)")
    g.add_argument("--paper", action="store_true", help="print both columns of the recipe and leave")
    g.add_argument("--meta", action="store_true", help="print parameters, memory and arithmetic, and leave")
    add_fields(g, Encoder)
    add_settings(p.add_argument_group("objective (defaults: the recipe's, see --paper; each has some of these)"),
                 SETTINGS)
    add_fields(p.add_argument_group("optimisation (defaults: the recipe's)"), Optimisation)
    add_fields(p.add_argument_group("run"), Run)
    return p


def parse_args(argv=None):
    """(Settings of the run, "paper" or "meta" where only that is to be printed)."""
    given = {name: tuple(value) if isinstance(value, list) else value
             for name, value in vars(parser(argv).parse_args(argv)).items() if value is not None}
    scale = given.pop("scale", scale_of(given.get("subset")))
    recipe = given.pop("recipe", recipe_of(scale))
    only = [name for name in ("paper", "meta") if given.pop(name)]
    return settings_for(recipe, scale, given), only[0] if only else None


def recipe_in_words(argv):
    """The settings of the recipe on the command line, for --help."""
    p = cli.Parser("", prog="pretrain.py", add_help=False)
    for flag in ("--recipe", "--scale", "--subset"):
        p.add_argument(flag)
    args = p.parse_known_args(argv)[0]
    scale = args.scale or scale_of(args.subset)
    recipe = args.recipe or recipe_of(scale)
    settings = RECIPES.get(recipe, {}).get(scale, {})
    text = "  ".join(f"{key.replace('_', '-')} {written(value)}" for key, value in settings.items() if key != "differs")
    return (f"what is not given is set by the recipe, here {recipe}, {scale}:\n"
            + textwrap.fill(text, 118, break_on_hyphens=False))


def print_paper(recipe):
    """The recipe's two columns side by side."""
    laptop, paper = RECIPES[recipe]["laptop"], RECIPES[recipe]["paper"]
    print(f"{recipe:<17} {'laptop':<22} paper")
    for key in dict.fromkeys([*paper, *laptop]):
        if key != "differs":
            print(f"{key.replace('_', '-'):<17} {written(laptop.get(key, '–')):<22} {written(paper.get(key, '–'))}")
    print(f"\nThe paper column differs from the published code: {paper['differs']}.")


def print_meta(settings):
    """What a training step of the recipe takes on a GPU, without allocating it."""
    import torch

    from model import Encoder
    from wren.training.starting import objective_around
    config, o = PRESETS[settings.encoder.preset], settings.optimisation
    micro = o.micro_batch or o.batch_size
    with torch.device("meta"):
        objective = objective_around(settings, Encoder(config))
    state = sum(p.numel() * (16 if p.requires_grad else 4) for p in objective.parameters()) / 1e9
    kept = []
    for again in (False, True):
        objective.encoder.checkpoint_activations = again
        kept.append(objective.kept() * micro / 1e9)
    print(f"{config.name}: {sum(p.numel() for p in objective.encoder.parameters()) / 1e6:.1f} M parameters, "
          f"{config.dim} wide, {config.depth} deep, {config.n_tokens + config.specials} tokens of "
          f"{config.clip_seconds:g} s\n"
          f"training state   {state:.1f} GB a GPU (16 bytes a parameter, 4 of a teacher's)\n"
          f"activations      {kept[0]:.1f} GB a GPU for {micro} clips, {kept[1]:.1f} GB with --checkpoint-activations "
          f"(bf16, estimated)\n"
          f"arithmetic       {objective.flops() / 1e9:.0f} GFLOP a clip and step, without what is computed again")


# ----------------------------------------------------------------------------------------------------- training

def train(settings, trainer, loader, valid, log, stop):
    """The loop. Returns the name of the signal that ended it early, or None."""
    from wren.training import checkpoints, runlog
    o, run, procs, out = settings.optimisation, settings.run, trainer.procs, Path(settings.run.out)
    steps, notes = o.steps, Notes(settings, trainer, log, len(loader.manifest))
    saver, collapse = checkpoints.Saver(out, run.keep, run.milestone), runlog.Collapse()
    task = probe_task(settings) if run.probe_every else None
    batches, waiting = trainer.ahead(loader), deque()  # steps whose numbers are not read yet
    while trainer.step < steps:
        with notes.meter.waiting():
            batch = next(batches)
        numbers = trainer.launch(batch, flags=(stop.received is not None, len(batch["bad"])))
        step, last = trainer.step, trainer.step == steps
        waiting.append((step, batch, numbers))
        pause = last or any(every and step % every == 0 for every in (run.eval_every, run.save_every, run.probe_every))
        # a GPU is given its next step before the numbers of this one are waited for
        while len(waiting) > (procs.device.type == "cuda" and not (pause or notes.stopping)):
            row = notes.add(*waiting.popleft())
        if step % run.eval_every == 0 or last:
            scores = evaluate_held_out(trainer, valid, log, out)
            notes.bar.say(f"step {step:>6}  {describe(scores or row, 'held-out ' if scores else '')}  "
                          f"{notes.bar.speed}")
            if o.schedule == "plateau" and scores:
                trainer.plateau.update(scores.get("accuracy", -scores["loss"]))
            if (complaint := collapse.update(scores, step)) and not run.allow_collapse:
                if log:
                    log.write({"step": step, "collapsed": True})
                raise UserError(complaint)
        if task is not None and log and (step % run.probe_every == 0 or last):
            from wren.probing import probes
            score = probes.online_knn(trainer.objective.exported, task, procs.device, workers=settings.data.workers)
            log.write({"step": step, "knn": score})
            notes.bar.say(f"step {step:>6}  kNN on {task.name} (validation) {score:.3f}")
        if procs.main and (step % run.save_every == 0 or last or notes.stopping):
            if complaint := saver.save(trainer.state_dict(), step, trainer.objective.exported, last):
                notes.bar.say(complaint)
        if notes.stopping and not last:
            break
    notes.bar.close()
    return (stop.received or "a signal to another process") if trainer.step < steps else None


class Notes:
    """What is written down of each step: progress, rows of the log, clips that could not be read or learned from."""

    def __init__(self, settings, trainer, log, clips):
        from wren.sound import loading
        from wren.training import runlog
        o, run, procs = settings.optimisation, settings.run, trainer.procs
        self.run, self.trainer, self.log, self.clips, self.batch_size = run, trainer, log, clips, o.batch_size
        self.bar = cli.Progress(o.steps, trainer.step, procs.main)
        self.bad = loading.BadLog(Path(run.out) / "bad.jsonl", settings.data.max_bad)
        self.meter = runlog.Meter(procs, o.batch_size, trainer.objective)
        self.stopping = 0  # whether a process was told to stop

    def add(self, step, batch, numbers):
        """numbers: what `Trainer.launch` returned for this step and batch. -> its row."""
        from wren.sound import loading
        row = numbers()
        stopping, unreadable = row.pop("flags")
        self.stopping = self.stopping or stopping
        self.bad.add(batch["bad"], unreadable, self.batch_size)
        self.meter.add(row)
        self.bar.beat(step, row["loss"])
        skipped = [] if row["finite"] else [i for part in loading.parts([batch]) for i in part["index"].tolist()]
        if skipped:
            self.bar.say(f"step {step}: skipped, its gradient is not finite (clips {skipped})")
        if step % self.run.log_every == 0 or step == self.trainer.steps or skipped:
            entry = self.meter.entry(step, self.clips, self.trainer.skips)
            entry |= {"skipped_clips": skipped} if skipped else {}
            if self.log:
                self.log.write(entry)
            self.bar.update(entry)
        if self.trainer.skipped_in_a_row >= self.run.max_skips:
            raise UserError(f"step {step}: {self.run.max_skips} steps in a row were not finite; the last checkpoint is "
                            f"whole: lower --lr, or look at the skipped_clips in {Path(self.run.out) / 'log.jsonl'}")
        return row


def probe_task(settings):
    from wren.tasks import load_task
    task = settings.run.probe_task
    return load_task(task or "species", root=None if task else DEMO)


def evaluate_held_out(trainer, valid, log, out):
    """Loss and accuracy on the held-out clips, logged; {} when there is less than one for each process. Clips that can
    no longer be read are counted, and named in OUT/bad.jsonl."""
    procs, bad = trainer.procs, []
    if len(valid) < procs.world:
        return {}
    from wren.training.data import held_out
    scores = trainer.evaluate(held_out(valid, trainer.objective.encoder.config, procs, bad))
    if unreadable := procs.total(len(bad)):
        with open(out / "bad.jsonl", "a") as file:
            file.write("".join(json.dumps(row | {"step": trainer.step}) + "\n" for row in bad))
        cli.warn(f"step {trainer.step}: {unreadable} of {len(valid)} held-out clips can't be read, the evaluation goes "
                 f"without them; listed in {out / 'bad.jsonl'}" + (f": {bad[0]['error']}" if bad else ""))
    if log:
        log.write({"step": trainer.step, **{f"valid_{k}": v for k, v in scores.items() if k != "count"},
                   **({"valid_unreadable": unreadable} if unreadable else {})})
    return scores


def describe(scores, what="held-out "):
    """One line of scores."""
    text = f"{what}loss {scores['loss']:.3f}"
    if "accuracy" not in scores:
        text += f"  spread {scores['spread']:.3f}"
    if "accuracy" in scores:
        text += (f"  accuracy {scores['accuracy']:.1%} "
                 f"({scores['accuracy'] / scores['chance']:.1f} × chance)")
    return text


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
    settings, only = parse_args(argv)
    if only == "paper":
        return print_paper(settings.recipe)
    if only == "meta":
        return print_meta(settings)
    stop = cli.StopSignals()  # before torch is imported: a signal in those seconds must not be lost
    from wren.training import processes

    procs = processes.start_processes(settings.run.device, settings.run.timeout)
    with processes.lost_process(procs, settings.run.out):
        run(settings, stop, procs)
        procs.stop()


def run(settings, stop, procs):
    """One training run, new, continued, or finished already."""
    from wren.training import data, identity, starting
    out, o = Path(settings.run.out), settings.optimisation
    if o.batch_size % procs.world:
        raise UserError(f"--batch-size {o.batch_size} does not divide by {procs.world} processes")
    train_rows, valid_rows = data.open_data(settings.data, out, procs)
    settings = settings.with_steps(len(train_rows))
    fixed, done = identity.identity_of(settings, train_rows), out / "DONE"
    if identity.check_unchanged(settings, out, fixed) and done.exists() and not settings.run.extend:
        if procs.main:
            print(f"{out} is finished ({done.read_text().strip()}). To go on with it: --extend --steps N; to start "
                  f"another run: --out FOLDER\n{next_commands(out, settings.data.data)}")
        return
    start, heads = starting.starting_point(settings.encoder.init, settings.encoder.format, settings.data.clip_seconds)
    config = identity.fix_config(settings, out, train_rows, valid_rows, fixed, procs=procs, encoder_config=lambda saved:
                                 starting.checked_config(settings, train_rows, start, saved))
    objective = starting.build(settings, config, start, heads).to(procs.device)
    ended_by = resume_and_train(settings, objective, train_rows, valid_rows, stop, procs)
    if procs.main:
        steps = settings.optimisation.steps
        cli.write_text(out / ("PREEMPTED" if ended_by else "DONE"), f"{ended_by or f'{steps} steps'}\n")
        print(f"{out}: stopped by {ended_by}, saved; the same command goes on" if ended_by else
              summary(settings, out, procs.device))


def resume_and_train(settings, objective, train_rows, valid_rows, stop, procs):
    """From the newest checkpoint, or from the start; returns the name of the signal that ended it early, or None."""
    from wren.training import checkpoints, data, engine, runlog
    o, out, config = settings.optimisation, Path(settings.run.out), objective.encoder.config
    optimizer = engine.make_optimizer(objective, o.optimizer, o.lr, o.betas, o.weight_decay, o.eps)
    trainer = engine.Trainer(
        objective, optimizer, procs, batch_size=o.batch_size, micro_batch=o.micro_batch or o.batch_size, steps=o.steps,
        warmup=o.warmup, schedule=o.schedule, floor=o.floor, clip=o.clip, weight_decay_end=o.weight_decay_end,
        amp=settings.run.amp, compile=settings.run.compile, seed=o.seed)
    state = checkpoints.load_checkpoint(out)
    if state:
        trainer.load_state_dict(state)
    procs.barrier()  # all have read the folder before the first process writes to it
    log = None
    if procs.main:
        for marker in ("DONE", "PREEMPTED"):
            (out / marker).unlink(missing_ok=True)
        log = runlog.Log(out / "log.jsonl", trainer.step if state else -1)
        print(f"{out}: {'resumed at' if state else 'from'} step {trainer.step} to {o.steps}, {len(train_rows)} "
              f"clips, {len(valid_rows)} held out, {config.name}, {procs.world} × {procs.device.type} {trainer.amp}")
        if not state:
            log.write(runlog.first_row(trainer, settings.flat()))
    if not state:
        evaluate_held_out(trainer, valid_rows, log, out)
    loader = data.training_loader(settings, train_rows, config, procs, trainer.step)
    ended_by = train(settings, trainer, loader, valid_rows, log, stop)
    if log:
        log.close()
    return ended_by


def summary(settings, out, device):
    """What was learned: held-out scores before and after, scores on the demo's species, what to type next."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    valid = [{k[6:]: v for k, v in row.items() if k.startswith("valid_")} for row in rows if "valid_loss" in row]
    lines = [f"\n{out}: {settings.optimisation.steps} steps"]
    if valid:
        lines += [f"  before   {describe(valid[0])}", f"  after    {describe(valid[-1])}"]
    if settings.data.data == DEMO:
        from wren.probing.report import first_numbers
        from wren.tasks import load_task
        lines += ["", *first_numbers(out / "encoder.pt", load_task("species", root=DEMO), device), ""]
    return "\n".join([*lines, next_commands(out, settings.data.data)])


if __name__ == "__main__":
    cli.run(main)
