"""How encoders are fine-tuned: recipes of each family, protocols of benchmarks, and the settings that follow.

Plain values, no torch: `--help` answers at once.
"""
from dataclasses import replace
from types import SimpleNamespace

from wren.cli import UserError

# Published values where there are any. Shares are of the steps (warmup), of the rate (floor), of clips (mixup), of
# the window (masks) and of the grid's columns and rows (patch_drop); gain in dB.
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
    "eat": BASE | dict(lr=(5e-5,), betas=(0.9, 0.95), floor=0.02, clip=4.0, batch_size=48, epochs=120,
                       layer_decay=0.65, time_mask=0.4, band_mask=0.4, roll=True, gain=6.0, pool="cls"),
    # Speech Commands: Li et al. 2023 and released code; base rate 0.5 · batch / 256
    "atst": BASE | dict(optimizer="sgd", lr=(0.0625,), weight_decay=0.0, clip=3.0, smoothing=0.0, mixup=0.5,
                        alpha=0.5, time_mask=0.0, band_mask=0.0, pool="both"),
    "atst-frame": BASE | dict(optimizer="sgd", lr=(0.125,), weight_decay=0.0, clip=3.0, smoothing=0.0, mixup=0.5,
                              alpha=0.5, time_mask=0.0, band_mask=0.0),
    # MeerKAT: Schäfer-Zimmermann et al. 2024 and released code; there the encoder rests for the first third
    "animal2vec": BASE | dict(lr=(3e-5,), betas=(0.9, 0.98), weight_decay=0.01, layer_decay=1.0, smoothing=0.0,
                              mixup=1.0, loss="focal"),
    "dasheng": BASE,  # nothing published but frozen probes
}
# What a benchmark fixes, on top of the recipe. GPM-BT: its released code; masks and mixing by `gpm_bt_augmentation`.
_PLAIN = dict(optimizer="adam", betas=(0.9, 0.999), weight_decay=0.0, schedule="constant", warmup=0.0, clip=0.0,
              batch_size=32, layer_decay=1.0, drop_path=0.0, smoothing=0.0, mixup=0.0, alpha=10.0, time_mask=0.0,
              band_mask=0.0, noise=0.0, roll=False, gain=0.0, patch_drop=0.0, head="linear", loss=None)
PROTOCOLS = {"beans": _PLAIN | dict(epochs=50, lr=(1e-5, 5e-5, 1e-4), rate="model"),
             "gpm-bt": _PLAIN | dict(epochs=25, lr=(1e-5, 5e-5, 1e-4, 5e-4), rate="native", noise=0.1, pool="mean",
                                     patch_stride=10)}


def gpm_bt_augmentation(seconds, kind):
    """GPM-BT's masks: up to 48 bands and 48 frames of windows shorter than 5 s, else 24 and 96; detection mixes 60 %.
    There the masks fall on the whole minute and a file is mixed with itself; here on the window and with another
    clip. Its roll by up to ten frames is left out."""
    bands, frames = (48, 48) if (seconds or 10) < 5 else (24, 96)
    return dict(band_mask=bands / 128, time_mask=min(1.0, frames / (100 * (seconds or 10))),
                mixup=0.6 if kind == "detection" else 0.0)


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
    s.head = s.head or ("frames" if task.kind == "detection" else "linear")
    s.loss = s.loss or ("ce" if task.kind == "classification" else "focal" if s.head == "query" else "bce")
    s.resolution = args.resolution or (0.01 if s.head == "query" else None)
    if s.patch_stride and args.patch_stride is None:
        s.patch_stride = 1 if config.patch[0] == config.n_mels else min(s.patch_stride, *config.patch)
    if s.head != "linear":
        s.roll = False if args.roll is None else s.roll  # a call that wraps around has no onset
        s.patch_drop = 0.0 if args.patch_drop is None else s.patch_drop
    if args.pool is None and not config.specials:
        s.pool = "mean"
    check_settings(s, config, task)
    return s


def check_settings(s, config, task):
    """Refuse what does not fit together, before anything is trained."""
    for wrong, complaint in (
        (s.loss == "ce" and task.kind != "classification", f"--loss ce: several labels of {task.name} may be true at "
                                                           "once; use bce or focal"),
        (s.head != "linear" and task.kind != "detection", f"--head {s.head}: {task.name} has no onsets and offsets; it "
                                                          "needs annotated recordings"),
        (s.head != "linear" and s.roll, "--roll with frames: a call that wraps around has no onset; use --no-roll"),
        (s.head != "linear" and s.patch_drop, "--patch-drop leaves frames without tokens; use --head linear"),
        (s.resolution and s.head != "query", f"--resolution: --head {s.head} has a score a token column; only --head "
                                             "query can be asked at other times"),
        (s.head == "query" and not 0.001 <= s.resolution <= (task.window_seconds or 1),
         f"--resolution {s.resolution}: give seconds, from 0.001 to the window's length"),
        (s.patch_drop and config.streams, "--patch-drop: this encoder also hears streams, which may be missing"),
        (s.head == "frames" and config.rate == "any" and config.frontend == "wave",
         "--head frames: a raw wave of any rate has frames as often as its rate says; use --head query"),
        (s.patch_drop and config.features == "ffn", "--patch-drop: this encoder's features are of all its tokens"),
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
