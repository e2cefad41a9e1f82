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
    only = next((name for name in ("paper", "meta") if given[name]), None)
    recipe, scale, _, _ = (given.pop(name, None) for name in ("recipe", "scale", "paper", "meta"))
    return settings_for(recipe, scale, given), only


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

def train(settings, objective, train_rows, valid_rows, stop, procs):
    """From the newest checkpoint, or from the start; -> whether a signal ended it early."""
    from wren.training import engine, loop, runlog, starting
    o, run, out = settings.optimisation, settings.run, Path(settings.run.out)
    optimizer = engine.make_optimizer(objective, o.optimizer, o.lr, o.betas, o.weight_decay, o.eps)
    trainer = engine.Trainer(
        objective, optimizer, procs, batch_size=o.batch_size, micro_batch=o.micro_batch, steps=o.steps,
        warmup=o.warmup, schedule=o.schedule, floor=o.floor, clip=o.clip, weight_decay_end=o.weight_decay_end,
        amp=run.amp, compile=run.compile, seed=o.seed)
    steps = loop.Loop(trainer, out, stop, len(train_rows), keep=run.keep, milestone=run.milestone,
                      log_every=run.log_every, max_bad=settings.data.max_bad, max_skips=run.max_skips)
    if procs.main:
        for marker in ("DONE", "PREEMPTED"):
            (out / marker).unlink(missing_ok=True)
        print(f"{out}: {'resumed at' if steps.resumed else 'from'} step {trainer.step} to {o.steps}, {len(train_rows)} "
              f"clips, {len(valid_rows)} held out, {objective.encoder.config.name}, {procs.world} × "
              f"{procs.device.type} {trainer.amp}")
    if not steps.resumed:
        steps.write(runlog.first_row(trainer, settings.flat()))
        evaluate_held_out(steps, valid_rows, out)
    loader = starting.training_loader(settings, train_rows, objective.encoder.config, procs, trainer.step)
    collapse = runlog.Collapse()
    for step, row in steps.run(loader, lambda step: step % run.eval_every == 0 or step % run.save_every == 0):
        if step % run.eval_every == 0 or step == o.steps:
            scores = evaluate_held_out(steps, valid_rows, out)
            steps.bar.say(f"step {step:>6}  {describe(scores or row, 'held-out ' if scores else '')}  "
                          f"{steps.speed}")
            if o.schedule == "plateau" and scores:
                trainer.plateau.update(scores.get("accuracy", -scores["loss"]))
            if (complaint := collapse.update(scores, step)) and not run.allow_collapse:
                steps.write({"step": step, "collapsed": True})
                raise UserError(complaint)
        if step % run.save_every == 0 or step == o.steps or steps.stopping:
            steps.save(objective.exported)
    steps.bar.close()
    return steps.ended_early


def evaluate_held_out(steps, valid, out):
    """Loss and accuracy on the held-out clips, logged; {} when there is less than one for each process. Clips that can
    no longer be read are counted, and named in OUT/bad.jsonl."""
    from wren.training.starting import held_out
    trainer, bad = steps.trainer, []
    if len(valid) < trainer.procs.world:
        return {}
    scores = trainer.evaluate(held_out(valid, trainer.objective.encoder.config, trainer.procs, bad))
    row = {"step": trainer.step} | {f"valid_{k}": v for k, v in scores.items() if k != "count"}
    if unreadable := sum(trainer.procs.gather(len(bad))):
        with open(out / "bad.jsonl", "a") as file:
            file.write("".join(json.dumps(entry | {"step": trainer.step}) + "\n" for entry in bad))
        cli.warn(f"step {trainer.step}: {unreadable} of {len(valid)} held-out clips can't be read, the evaluation goes "
                 f"without them; listed in {out / 'bad.jsonl'}" + (f": {bad[0]['error']}" if bad else ""))
        row["valid_unreadable"] = unreadable
    steps.write(row)
    return scores


def describe(scores, what="held-out "):
    """One line of scores."""
    more = (f"accuracy {scores['accuracy']:.1%} ({scores['accuracy'] / scores['chance']:.1f} × chance)"
            if "accuracy" in scores else f"spread {scores['spread']:.3f}")
    return f"{what}loss {scores['loss']:.3f}  {more}"


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
    from wren.training import starting
    out, batch_size, done = Path(settings.run.out), settings.optimisation.batch_size, Path(settings.run.out) / "DONE"
    if batch_size % procs.world:
        raise UserError(f"--batch-size {batch_size} does not divide by {procs.world} processes")
    train_rows, valid_rows = starting.open_data(settings.data, out, procs)
    settings = settings.with_steps(len(train_rows))
    identity, saved = starting.check_unchanged(settings, train_rows)
    if saved and done.exists() and not settings.run.extend:
        if procs.main:
            print(f"{out} is finished ({done.read_text().strip()}). To go on with it: --extend --steps N; to start "
                  f"another run: --out FOLDER\n{next_commands(out, settings.data.data)}")
        return
    start, heads = starting.starting_point(settings.encoder.init, settings.encoder.format, settings.data.clip_seconds)
    config = starting.fix_config(settings, saved, identity, train_rows, valid_rows, start, procs)
    objective = starting.build(settings, config, start, heads).to(procs.device)
    ended_early = train(settings, objective, train_rows, valid_rows, stop, procs)
    if procs.main and ended_early:
        cli.write_text(out / "PREEMPTED", f"{stop}\n")
        print(f"{out}: stopped by {stop}, saved; the same command goes on")
    elif procs.main:
        cli.write_text(done, f"{settings.optimisation.steps} steps\n")
        print(summary(settings, out, procs.device))


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
