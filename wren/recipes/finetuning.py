"""How encoders are fine-tuned: recipes of each family, protocols of benchmarks, and the settings that follow."""
from argparse import ArgumentTypeError, BooleanOptionalAction
from dataclasses import asdict, dataclass, replace

from wren import cli
from wren.cli import UserError
from wren.recipes.flags import flag


def _trainable(text):
    """An argparse type: what of the encoder is trained."""
    if text not in ("all", "head") and not text.isdigit():
        raise ArgumentTypeError(f"{text!r} is not all, head, or a number of blocks")
    return text


@dataclass(frozen=True)
class Settings:
    """Everything that a trial depends on beside its encoder, its data, its rate and its seed. A setting made by `flag`
    is one of finetune.py's. warmup is a share of the steps, floor of the rate; masks are shares of the window, dropped
    patches of the grid."""
    trainable: str = flag("all", "all, head, or a number: that many last blocks and the head", type=_trainable)
    pool: str = flag("mean", "patch tokens; rows: mean and deviation over time of each frequency row of them; special "
                     "tokens, or mean and these", choices=("mean", "rows", "cls", "both"))
    head: str | None = flag(None, "frames: scores of token columns too (default: detection). query: scores at any "
                            "times, for onsets finer than a column", choices=("linear", "frames", "query"))
    resolution: float | None = flag(None, "query: seconds from one score to the next (default: 0.01; extract.py can "
                                    "ask at others)", type=cli.positive, metavar="S")
    rate: str = flag("model", "resample to the encoder's rate, or let its mel grid follow the data set's, as GPM-BT "
                     "does", choices=("model", "native"))
    patch_stride: int | None = flag(None, "overlap (GPM-BT: 10 of 16 frames, or 1 of 2)", type=cli.positive_int)
    drop_path: float = flag(0.1, "share of clips that skip the last block", type=cli.share)

    loss: str | None = flag(None, "default: ce where classes exclude each other, focal with --head query, else bce",
                            choices=("ce", "bce", "focal"))
    smoothing: float = flag(0.1, "of labels, with ce", type=cli.share)
    lr: tuple = flag((1e-4,), "peak rates; the best on validation is tested", type=cli.positive, nargs="+")
    optimizer: str = flag("adamw", "sgd: with momentum 0.9", choices=("adamw", "adam", "sgd"))
    epochs: int = flag(50, "passes over the training split", type=cli.positive_int)
    steps: int | None = flag(None, "instead of --epochs: optimiser steps", type=cli.positive_int)
    batch_size: int = flag(32, "clips a step, over all processes", type=cli.positive_int)
    weight_decay: float = flag(0.05, "of weight matrices", type=cli.not_negative)
    layer_decay: float = flag(0.75, "rate of a block as a share of that of the next", type=cli.share)
    warmup: float = flag(0.1, "share of the steps", type=cli.share)
    betas: tuple = (0.9, 0.999)
    schedule: str = "cosine"
    floor: float = 0.0
    clip: float = 1.0

    balanced: bool = flag(False, "draw all classes alike", action="store_true")
    mixup: float = flag(0.0, "share of clips mixed with another, labels in the same proportion", type=cli.share)
    alpha: float = flag(10.0, "the proportion is drawn from Beta(alpha, alpha)", type=cli.positive)
    time_mask: float = flag(0.2, "longest masked share of the window", type=cli.share)
    band_mask: float = flag(0.2, "widest masked share of the mel bands", type=cli.share)
    noise: float = flag(0.0, "highest level added to the normalised spectrogram (SSAST: 0.1)", type=cli.not_negative)
    roll: bool = flag(False, "turn clips around a circle", action=BooleanOptionalAction)
    gain: float = flag(0.0, "level drawn from -GAIN to GAIN, dB", type=cli.not_negative)
    patch_drop: float = flag(0.0, "share of patch columns and of rows left out", type=cli.share)


# What differs from the defaults above. Published values where there are any.
RECIPES = {
    # ours, for encoders of a few layers and minutes on a laptop
    "laptop": dict(lr=(1e-3,), epochs=30, layer_decay=0.9, mixup=0.3, roll=True, gain=6.0, pool="rows"),
    # ESC-50: Gong et al. 2022 and released code, whose rate falls by 0.85 an epoch instead of along a cosine
    "ssast": dict(optimizer="adam", betas=(0.95, 0.999), weight_decay=5e-7, warmup=0.0, clip=0.0, batch_size=48,
                  layer_decay=1.0, drop_path=0.0, smoothing=0.0, time_mask=96 / 512, band_mask=24 / 128, noise=0.1),
    # AudioSet-20K: Huang et al. 2022 and released code; base rate 1e-3 · batch / 256
    "audiomae": dict(lr=(1.25e-4,), betas=(0.9, 0.95), weight_decay=5e-4, warmup=4 / 60, epochs=60, clip=0.0,
                     mixup=0.5, time_mask=192 / 1024, band_mask=48 / 128, patch_drop=0.2, smoothing=0.0),
    # ESC-50: Chen et al. 2024 and released code, 4000 steps; there embeddings and norms are not slowed down
    "eat": dict(lr=(5e-5,), betas=(0.9, 0.95), floor=0.02, clip=4.0, batch_size=48, epochs=120, layer_decay=0.65,
                time_mask=0.4, band_mask=0.4, roll=True, gain=6.0, pool="cls"),
    # Speech Commands: Li et al. 2023 and released code; base rate 0.5 · batch / 256
    "atst": dict(optimizer="sgd", lr=(0.0625,), weight_decay=0.0, clip=3.0, smoothing=0.0, mixup=0.5, alpha=0.5,
                 time_mask=0.0, band_mask=0.0, pool="both"),
    "atst-frame": dict(optimizer="sgd", lr=(0.125,), weight_decay=0.0, clip=3.0, smoothing=0.0, mixup=0.5, alpha=0.5,
                       time_mask=0.0, band_mask=0.0),
    # MeerKAT: Schäfer-Zimmermann et al. 2024 and released code; there the encoder rests for the first third
    "animal2vec": dict(lr=(3e-5,), betas=(0.9, 0.98), weight_decay=0.01, layer_decay=1.0, smoothing=0.0, mixup=1.0,
                       loss="focal"),
    "dasheng": {},  # nothing published but frozen probes
}
# What a benchmark fixes, on top of the recipe. GPM-BT: its released code; masks and mixing follow from the task, below.
_PLAIN = dict(optimizer="adam", betas=(0.9, 0.999), weight_decay=0.0, schedule="constant", warmup=0.0, clip=0.0,
              batch_size=32, layer_decay=1.0, drop_path=0.0, smoothing=0.0, mixup=0.0, alpha=10.0, time_mask=0.0,
              band_mask=0.0, noise=0.0, roll=False, gain=0.0, patch_drop=0.0, head="linear", loss=None)
PROTOCOLS = {"beans": _PLAIN | dict(epochs=50, lr=(1e-5, 5e-5, 1e-4), rate="model"),
             "gpm-bt": _PLAIN | dict(epochs=25, lr=(1e-5, 5e-5, 1e-4, 5e-4), rate="native", noise=0.1,
                                     pool="mean", patch_stride=10)}


def settings_for(config, task, recipe="auto", protocol=None, chosen=None):
    """Recipe, then protocol, then `chosen` ({name: value}, the flags that were given) -> Settings that fit an encoder
    of this config and the task. UserError: what was chosen doesn't fit."""
    chosen = chosen or {}
    if recipe == "auto":
        families = sorted(RECIPES, key=len, reverse=True)  # atst-frame before atst
        recipe = "laptop" if "laptop" in config.name else next(
            (name for name in families if config.name.startswith(name)), "ssast")
    values = asdict(Settings()) | RECIPES[recipe] | PROTOCOLS.get(protocol, {})
    if protocol == "gpm-bt":
        # up to 48 bands and 48 frames of windows shorter than 5 s, else 24 and 96; detection mixes 60 %. There masks
        # fall on the whole minute and a file is mixed with itself; its roll by up to ten frames is left out
        seconds = task.window_seconds or task.clip_seconds or 10
        bands, frames = (48, 48) if seconds < 5 else (24, 96)
        values |= dict(band_mask=bands / 128, time_mask=min(1.0, frames / (100 * seconds)),
                       mixup=0.6 if task.kind == "detection" else 0.0,
                       rate="native" if task.sample_rate and config.rate != "any" else "model")
    values |= chosen
    values["head"] = values["head"] or ("frames" if task.kind == "detection" else "linear")
    values["loss"] = values["loss"] or ("ce" if task.kind == "classification" else
                                        "focal" if values["head"] == "query" else "bce")
    if values["head"] == "query":
        values["resolution"] = values["resolution"] or 0.01
    if values["patch_stride"] and "patch_stride" not in chosen:
        values["patch_stride"] = 1 if config.patch[0] == config.n_mels else min(values["patch_stride"], *config.patch)
    _leave_out_idle(values, chosen, config)
    _check(settings := Settings(**values), chosen, config, task)
    return settings


def _leave_out_idle(values, chosen, config):
    """What a recipe or protocol can't ask of this encoder, head and loss gets the value that does nothing; a flag that
    asks for it is refused."""
    head, wave = values["head"], config.frontend == "wave"
    frames, frozen = head != "linear", values["trainable"] == "head"
    blocks = "--trainable head: --drop-path and --layer-decay are of blocks that are trained; leave them out"
    for name, idle, unfit, complaint in (
        ("smoothing", 0.0, values["loss"] != "ce", f"--smoothing: only of --loss ce, not of {values['loss']}"),
        ("resolution", None, head != "query", f"--resolution: --head {head} has a score a token column; only --head "
                                              "query can be asked at other times"),
        ("roll", False, frames, "--roll with frames: a call that wraps around has no onset; use --no-roll"),
        ("patch_drop", 0.0, frames, "--patch-drop leaves frames without tokens; use --head linear"),
        ("patch_drop", 0.0, config.streams or config.features == "ffn", "--patch-drop: this encoder hears streams, "
         "which may be missing, or its features are of all its tokens"),
        ("band_mask", 0.0, wave, "--band-mask: a raw wave has no bands; use --time-mask"),
        ("pool", "mean", not config.specials and values["pool"] in ("cls", "both"),
         f"--pool {values['pool']}: this encoder has no special tokens; use mean or rows"),
        ("drop_path", 0.0, frozen, blocks), ("layer_decay", 1.0, frozen, blocks),
    ):
        if unfit and values[name] != idle:
            if name in chosen:
                raise UserError(complaint)
            values[name] = idle


def _check(s, chosen, config, task):
    """Refuse settings that do not fit together, before anything is trained."""
    head, wave = s.head, config.frontend == "wave"
    for wrong, complaint in (
        (s.loss == "ce" and task.kind != "classification",
         f"--loss ce: several labels of {task.name} may be true at once; use bce or focal"),
        ({"steps", "epochs"} <= chosen.keys(), "--steps and --epochs: give one of them"),
        ("alpha" in chosen and not s.mixup, "--alpha: nothing is mixed; give --mixup too"),
        (head != "linear" and task.kind != "detection",
         f"--head {head}: {task.name} has no onsets and offsets; it needs annotated recordings"),
        (head == "query" and not 0.001 <= s.resolution <= (task.window_seconds or 1),
         f"--resolution {s.resolution}: give seconds, from 0.001 to the window's length"),
        (head == "frames" and config.rate == "any" and wave,
         "--head frames: a raw wave of any rate has frames as often as its rate says; use --head query"),
        (s.rate == "native" and not task.sample_rate, f"--rate native: {task.name} names no sample rate; use model"),
        (s.rate == "native" and (wave or config.rate == "any"),
         "--rate native: an encoder of raw waves or of any rate has its own way with rates; use model"),
        (s.trainable.isdigit() and not 0 < int(s.trainable) <= config.depth,
         f"--trainable {s.trainable}: this encoder has {config.depth} blocks"),
        (s.patch_stride and config.positions not in ("learned", "fixed", "factorised"),
         f"--patch-stride: positions of kind {config.positions} can't be fitted to overlapping patches"),
    ):
        if wrong:
            raise UserError(complaint)


def encoder_changes(settings, config, task):
    """What the settings change of the encoder's config: pooling, drop path, overlap, the data set's rate and length."""
    out = {"pool": {"cls": "specials"}.get(settings.pool, settings.pool), "drop_path": settings.drop_path}
    if settings.rate == "native":
        out["sample_rate"] = task.sample_rate
    if settings.patch_stride:
        height, width = config.patch
        out["stride"] = (height if height == config.n_mels else settings.patch_stride, settings.patch_stride)
    seconds = task.window_seconds or task.clip_seconds
    if config.attends_padding and seconds:  # the published codes pad to the data set's length, not to the training's
        out["frames"] = max(config.patch[1], min(config.frames, round(seconds / config.hop)))
    try:
        replace(config, **out)
    except ValueError as error:
        raise UserError(f"{task.name}: {error}") from None
    return out
