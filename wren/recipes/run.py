"""What a pre-training run is: its settings, each a flag of pretrain.py, and how a recipe and what was given make them.

A setting whose default is None and that stands in a recipe (recipes/pretraining.py) comes from there. All of them are
recorded in the run's config.json; but for those in `free` they may not change within a run.
"""
from dataclasses import asdict, dataclass, fields, replace
from math import ceil
from pathlib import Path

from wren import cli
from wren.cli import DEMO, UserError
from wren.recipes.flags import flag, name_of
from wren.recipes.presets import PRESETS
from wren.recipes.pretraining import OBJECTIVES, RECIPES, SETTINGS

CORPUS = "data/pretrain.csv"
PAPER_SUBSETS = ("0.12M", "0.46M", "0.80M", "1.23M", "2.23M")


@dataclass(frozen=True)
class Data:
    """Which sound, and how clips are cut from it."""
    free = "data", "max_bad", "workers"  # of the data its fingerprint stays
    data: str | None = flag(None, "folder of audio, manifest (CSV, TSV, JSON) or shards (default: the demo corpus; "
                                  "data/pretrain.csv when --subset names one of the paper's sizes)")
    subset: str = flag("all", "0.12M 0.46M 0.80M 1.23M (nested, bio), 2.23M (general), a count such as 50k, or all")
    domain: str | None = flag(None, "rows that a counted --subset draws from", choices=("bio", "gen", "any"))
    clip_seconds: float | None = flag(None, "training length, s (default: the preset's)", type=cli.positive)
    valid: int | None = flag(None, "held-out clips; whole recordings are held out", type=cli.natural)
    max_bad: float = flag(0.001, "share of unreadable clips that stops the run", type=cli.share)
    workers: int = flag(1, "loader processes of each training process", type=cli.natural)


@dataclass(frozen=True)
class Encoder:
    """Which encoder, and what it starts from."""
    free = "format",
    preset: str | None = flag(None, f"encoder: {', '.join(PRESETS)}", choices=PRESETS, metavar="NAME")
    init: str | None = flag(None, "file, run folder or preset's name: start from this encoder, and from its "
                            "objective's heads if they are there (secondary pre-training)", metavar="CHECKPOINT")
    format: str | None = flag(None, "layout of --init where its keys can't decide: ssast, gpm-bt, …")
    rate: str = flag("preset", "resample to the preset's rate, or hear each recording at its own: bands at fixed "
                     "hertz, positions in seconds and octaves", choices=("preset", "any"))
    lower_rate: float = flag(0.5, "with --rate any: share of clips heard at half their rate or less, so that a sound "
                             "is the same at every rate", type=cli.share)
    streams: tuple = flag((), "with --rate any: also learn from these columns stream:NAME of the manifest, at so many "
                          "values a second (accelerometer:50 depth:1)", nargs="+", metavar="NAME:HZ")
    stream_drop: float = flag(0.3, "share of clips from which a stream is left out, so that sound alone still works",
                              type=cli.share)
    normalise: str | None = flag(None, "spectrogram mean and deviation: measured on this corpus, or the preset's "
                                 "(AudioSet)", choices=("corpus", "preset"))
    drop_path: float | None = flag(None, "share of clips that skip the last block", type=cli.share)


@dataclass(frozen=True)
class Optimisation:
    """Length, batch, optimiser and schedule."""
    free = "epochs", "micro_batch"  # the epochs are in the steps
    steps: int | None = flag(None, "optimiser steps", type=cli.positive_int)
    epochs: float | None = flag(None, "instead of --steps: passes over the data", type=cli.positive)
    batch_size: int | None = flag(None, "clips a step, over all processes", type=cli.positive_int)
    micro_batch: int | None = flag(None, "clips a forward pass of one process (default: all)", type=cli.positive_int)
    optimizer: str | None = flag(None, "AdamW, or SSAST's Adam with L2 on everything", choices=("adamw", "adam"))
    lr: float | None = flag(None, "peak learning rate", type=cli.positive)
    weight_decay: float | None = flag(None, "of weight matrices", type=cli.not_negative)
    weight_decay_end: float | None = flag(None, "what it becomes, on a cosine (ATST)", type=cli.not_negative)
    schedule: str | None = flag(None, "after the warm-up", choices=("cosine", "constant", "plateau"))
    floor: float | None = flag(None, "of the learning rate where the cosine ends, a share of --lr", type=cli.share)
    warmup: int | None = flag(None, "steps", type=cli.natural)
    betas: tuple | None = flag(None, "of Adam's running means", type=cli.share, nargs=2, metavar=("B1", "B2"))
    eps: float | None = flag(None, "of Adam", type=cli.positive)
    clip: float | None = flag(None, "largest gradient norm; 0: off", type=cli.not_negative)
    seed: int = flag(0, "of weights, order, crops, masks and augmentation", type=int)


@dataclass(frozen=True)
class Run:
    """Where and how it runs, and what it leaves: none of this changes what is learned."""
    out: str | None = flag(None, "run folder (default: runs/RECIPE-PRESET-SUBSET-sSEED and what else was given)")
    save_every: int = flag(500, "steps between checkpoints", type=cli.positive_int)
    keep: int = flag(2, "newest checkpoints that stay", type=cli.positive_int)
    milestone: int = flag(0, "keep every checkpoint at a multiple of this step (default: 0)", type=cli.natural)
    eval_every: int | None = flag(None, "steps between evaluations on the held-out clips", type=cli.positive_int)
    allow_collapse: bool = flag(False, "go on when the encoder gives all held-out clips the same features",
                                action="store_true")
    log_every: int = flag(10, "steps between rows of log.jsonl", type=cli.positive_int)
    extend: bool = flag(False, "let a finished run go on to --steps", action="store_true")
    override: bool = flag(False, "resume although settings have changed", action="store_true")
    device: str = flag("auto", "auto: a GPU if there is one", choices=("auto", "cpu", "cuda"))
    amp: str = flag("auto", "auto: bf16 or fp16 on GPU, fp32 on CPU", choices=("auto", "bf16", "fp16", "fp32"))
    compile: str = flag("auto", "blocks and losses; auto: on a GPU, where it takes seconds and gives up to a third",
                        choices=("auto", "on", "off"))
    checkpoint_activations: bool = flag(False, "less memory, a third more arithmetic", action="store_true")
    timeout: float = flag(300, "longest wait for another process, s", type=cli.positive)
    max_skips: int = flag(10, "non-finite steps in a row that stop the run", type=cli.positive_int)


PARTS = {"data": Data, "encoder": Encoder, "optimisation": Optimisation, "run": Run}


@dataclass(frozen=True)
class Settings:
    """A pre-training run. terms: {keyword: value} of its objective, a class of wren/objectives."""
    recipe: str
    objective: str
    terms: dict
    data: Data
    encoder: Encoder
    optimisation: Optimisation
    run: Run

    def flat(self):
        """{name: value} of all of them; no name is there twice."""
        parts = [asdict(getattr(self, name)) for name in PARTS]
        return {"recipe": self.recipe, "objective": self.objective, **self.terms,
                **{name: value for part in parts for name, value in part.items()}}

    def identity(self):
        """Those that may not change within a run, as JSON has them."""
        free = {*(f.name for f in fields(Run)), *(name for part in list(PARTS.values())[:3] for name in part.free)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.flat().items()
                if name not in free}

    def with_steps(self, clips):
        """The epochs of a corpus of so many clips as steps."""
        o = self.optimisation
        return replace(self, optimisation=replace(o, steps=o.steps or ceil(o.epochs * clips / o.batch_size)))


def settings_for(recipe=None, scale=None, given=None):
    """A recipe at a scale (laptop or paper) and what was `given` instead, {name: value} -> Settings.

    UserError: settings that the recipe does not have, that have no effect, or that contradict each other."""
    given = given or {}
    scale = scale or scale_of(given.get("subset"))
    recipe = recipe or recipe_of(scale)
    table = RECIPES[recipe][scale]
    objective = table["objective"]
    refuse_idle(recipe, objective, table | given, given)
    terms = {name: given.get(name, table.get(name, None if name == "ema_steps" else setting.default))
             for name, setting in SETTINGS[objective].items()}
    if terms.get("frames") is False:  # nothing is hidden from whole clips
        terms = {name: value for name, value in terms.items() if name not in ("masking", "hidden", "span")}
    length = {"steps", "epochs"} if {"steps", "epochs"} & given.keys() else set()  # given: the recipe's do not count
    values = {name: value for name, value in table.items() if name not in length} | given
    values["data"] = _source(given)
    parts = {name: part(**{f.name: values[f.name] for f in fields(part) if f.name in values})
             for name, part in PARTS.items()}
    settings = Settings(recipe, objective, terms, **parts)
    if settings.run.out is None:
        settings = replace(settings, run=replace(settings.run, out=default_folder(settings, given)))
    return settings


def scale_of(subset):
    return "paper" if subset in PAPER_SUBSETS else "laptop"


def recipe_of(scale):
    """What is learned by default: what learns most from an hour of sound (docs/results.md), or, at the size of its
    paper, GPM-BT."""
    return "ssast" if scale == "paper" else "contrast"


def _source(given):
    if "data" in given:
        return given["data"]
    subset = given.get("subset")
    if subset not in PAPER_SUBSETS:
        return DEMO
    if not Path(CORPUS).exists():
        raise UserError(f"--subset {subset} reads {CORPUS}, which does not exist: make it with python data.py index "
                        f"FOLDER --out {CORPUS}, or name another manifest with --data")
    return CORPUS


def refuse_idle(recipe, objective, values, given):
    """A setting is used or refused. values: of the recipe and given; given: {name: value}."""
    own = SETTINGS[objective]
    for name in given:
        if name in OBJECTIVES and name not in own:
            others = [r for r in RECIPES if name in SETTINGS[RECIPES[r]["laptop"]["objective"]]]
            raise UserError(f"{name_of(name)} does not belong to recipe {recipe}, which has "
                            f"{', '.join(map(name_of, own))}; --recipe {' or '.join(others)} has it")
        if name in own and own[name].choices and given[name] not in own[name].choices:
            raise UserError(f"{name_of(name)} {given[name]}: recipe {recipe} has {', '.join(own[name].choices)}")
    if "steps" in given and "epochs" in given:
        raise UserError("--steps and --epochs say the same thing twice: give one")
    if max(values["betas"]) == 1:
        raise UserError("--betas 1: a running mean that takes nothing in; give numbers below 1")
    clips = objective == "ATST" and not values.get("frames")
    loss = values.get("loss", "joint")
    for names, idle, why in (
        (("span",), values.get("masking") != "span", "only --masking span has it"),
        (("masking", "hidden"), clips, "nothing is hidden from whole clips; --frames or recipe atst-frame learns so"),
        (("nce_axis",), loss == "mse", "--loss mse has no softmax"),
        (("mse_weight",), loss != "joint", "it weighs the two terms of --loss joint"),
        (("format",), "init" not in given, "it is the layout of --init"),
        (("preset", "normalise", "drop_path"), "init" in given, "the encoder of --init is taken as it is"),
        (("lower_rate",), given.get("rate") != "any", "it needs --rate any"),
        (("stream_drop",), not given.get("streams"), "it needs --streams"),
        (("domain",), given.get("subset", "all") == "all", "it belongs to a counted --subset"),
    ):
        for name in names:
            if idle and name in given:
                raise UserError(f"{name_of(name)} {written(given[name])} has no effect: {why}")


def default_folder(settings, given):
    """runs/RECIPE-PRESET-SUBSET-sSEED, then what else was given of what a run is, but for its length."""
    data = settings.data.data
    what = [] if data in (DEMO, CORPUS) else [Path(data).resolve().stem]
    what += [settings.data.subset] if settings.data.subset != "all" or not what else []
    encoder = Path(settings.encoder.init).stem if settings.encoder.init else settings.encoder.preset
    said = {"recipe", "preset", "init", "subset", "seed", "steps"}
    more = [f"{name.replace('_', '-')}{'' if given[name] is True else '=' + written(given[name], '_')}"
            for name in settings.identity() if name in given and name not in said]
    name = "-".join([settings.recipe, encoder, *what, f"s{settings.optimisation.seed}", *more])
    return "runs/" + name.replace("/", "_")


def written(value, between=" "):
    """A setting's value as it is typed."""
    if isinstance(value, (tuple, list)):
        return between.join(v if isinstance(v, str) else f"{v:g}" for v in value)
    return str(value)
