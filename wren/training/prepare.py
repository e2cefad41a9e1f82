"""What a pre-training run is before its first step: which clips, which encoder, which objective, and the config.json
that fixes them. `args` are pretrain.py's.
"""
import json
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
import torch

from wren import cli
from wren.sound import loading
from wren.sound.opening import open_manifest
from wren.sound.quality import list_problems, summary
from wren.sound.subsets import holdout, subset
from wren.training import engine
from wren.sound import streams
from wren.cli import DEMO, UserError
from model import Encoder, load_encoder, newest_encoder
from wren.objectives import MASKS, objective_of
from wren.recipes import OBJECTIVES, PRESETS, RECIPES, SETTINGS, EncoderConfig, any_rate

# what may not change within a run, unless --override says so; --steps may grow with --extend
IDENTITY = ("recipe", "preset", "rate", "lower_rate", "streams", "stream_drop", "clip_seconds", "normalise", "init",
            "subset", "domain", "crop", "gain", "shift", "mix_snr", "polarity", *OBJECTIVES, "drop_path",
            "batch_size", "optimizer", "lr", "betas", "eps", "weight_decay", "weight_decay_end", "schedule", "warmup",
            "floor", "clip", "seed", "valid", "steps")
# of runs that are older than these settings; those of an objective count where it has them
BEFORE = {"rate": "preset", "lower_rate": 0.5, "streams": [], "stream_drop": 0.3, "var_floor": 1e-6,
          "target_norm": "clip", "decoder_groups": 16, "stretch": [0.6, 1.5]}


def open_data(args, procs):
    """(train, valid) manifests. One process makes the demo corpus if need be, and judges the files of a folder; the
    others wait and take its word.

    The held-out recordings are drawn from the whole corpus and then taken out of the subset, so that the held-out
    loss means the same for every size of subset. What can't be used, or is odd, is listed in OUT/unusable.csv.
    """
    if args.data == DEMO and procs.main:
        from wren.sound import demo
        demo.ensure(DEMO)
    source = f"{DEMO}/pretrain.csv" if args.data == DEMO else args.data
    rows = procs.first(lambda: open_manifest(source, notes=args.out))
    chosen = subset(rows, args.subset, args.domain)
    pool = rows.select(np.isin(rows.domain, chosen.domain))
    problems = []
    _, valid = holdout(pool, min(args.valid, len(pool) // 5), problems)
    if problems and procs.main:
        listed = Path(args.out) / "unusable.csv"
        list_problems(listed, problems, add=True)
        cli.warn(f"others are held out in place of {len(problems)} clips: {summary(problems, len(pool), 'clips')}; "
                 f"listed in {listed}")
    train = chosen.select(~np.isin(chosen.recording_keys(), valid.recording_keys()))
    if not len(train):
        raise UserError(f"--subset {args.subset}: all of its clips are in held-out recordings; lower --valid "
                        f"{args.valid}")
    return train, valid


def prepare_run(args, out, train, valid, start, procs):
    """Fix what the run is in config.json, or check that it still is what config.json says. Returns the config.

    One process writes, the others read: all train the same encoder to the last digit of its normalisation.
    """
    path = out / "config.json"
    args.steps = args.steps or ceil(args.epochs * len(train) / args.batch_size)
    identity = {k: getattr(args, k) for k in IDENTITY} | {"data": train.fingerprint()}
    identity = json.loads(json.dumps(identity))  # as it will be read back: tuples become lists
    saved = json.loads(path.read_text()) if path.exists() else None
    if saved and not args.resume:
        raise UserError(f"{out} holds a run already: name another folder with --out, or leave --no-resume out")
    if saved:
        check_unchanged(args, saved["identity"], identity)
    procs.barrier()  # all have looked before the first process writes
    if procs.main and (saved is None or args.extend):
        config = EncoderConfig.from_dict(saved["encoder"]) if saved else encoder_config(args, train, start)
        check_mask(args, config)
        with torch.device("meta"):  # described, not made
            objective_around(args, start if start is not None else Encoder(config))
        out.mkdir(parents=True, exist_ok=True)  # from here on there is a run; mistakes have been found before
        cli.write_text(path, json.dumps({
            "identity": identity, "encoder": config.to_dict(), "flags": vars(args),
            "data": {"source": args.data, "subset": args.subset, "clips": len(train), "held_out": len(valid),
                     "fingerprint": train.fingerprint()}}, indent=1))
    procs.barrier()
    return EncoderConfig.from_dict(json.loads(path.read_text())["encoder"])


def check_unchanged(args, saved, now):
    """Refuse to go on with a run under other settings."""
    own = SETTINGS[RECIPES[saved["recipe"]]["paper"]["objective"]]
    saved = {k: v for k, v in BEFORE.items() if k not in OBJECTIVES or k in own} | saved
    changed = [k for k in now if saved.get(k) != now[k] and not (k == "steps" and args.extend)]
    if changed and not args.override:
        key = changed[0]
        raise UserError(f"{args.out} was started with {key} {saved.get(key)}, now it is {now[key]}: start another run "
                        f"with --out, or go on regardless with " + ("--extend" if key == "steps" else "--override"))


def check_mask(args, config):
    """Refuse a number of hidden tokens that the encoder's grid can't have."""
    if config.rate == "any" and isinstance(args.hidden, int):
        raise UserError(f"--hidden {args.hidden}: with --rate any the number of tokens follows the sample rate; give a "
                        "share")
    if args.masking:
        try:
            MASKS[args.masking](torch.zeros(1, dtype=torch.int64), config.grid, args.hidden)
        except ValueError as error:
            raise UserError(f"--hidden {args.hidden}: {error}") from None


def starting_point(args):
    """(encoder, pre-training heads) of --init, of a run folder its newest checkpoint; or (None, {})."""
    if not args.init:
        return None, {}
    source = args.init
    if source not in PRESETS and Path(source).is_dir():
        source = newest_encoder(source)
        source = next(iter(engine.checkpoints(source.parent)), source)
    encoder = load_encoder(source, args.format)
    if args.clip_seconds:
        encoder = load_encoder(source, args.format, frames=round(args.clip_seconds / encoder.config.hop))
    return encoder, encoder.heads.pop("objective", {})  # encoder.pt is not to hold them as they were at the start


def encoder_config(args, train, start):
    """The encoder's settings: of --init, or of the preset fitted to this corpus."""
    if start is not None:
        if args.rate == "any" and start.config.rate != "any":
            raise UserError(f"--rate any: {args.init} hears {start.config.sample_rate} Hz alone; leave one of --rate "
                            "and --init out")
        if args.streams:
            raise UserError("--streams: the encoder of --init hears what it was made for; leave one of the two out")
        return start.config
    config = PRESETS[args.preset]
    try:
        if args.clip_seconds:
            config = replace(config, frames=round(args.clip_seconds / config.hop))
    except ValueError as error:
        raise UserError(f"--clip-seconds {args.clip_seconds:g}: {error}") from None
    if args.drop_path:
        config = replace(config, drop_path=args.drop_path)
    if args.rate == "any":
        if not train.sample_rate.all():
            raise UserError(f"--rate any: {train.origin} does not say the sample rate of each row; make it with python "
                            "data.py index")
        config = any_rate(config, int(train.sample_rate.max()))
        config = replace(config, streams=streams_of(args, train, config))
    elif args.streams:
        raise UserError("--streams: what is recorded beside the sound is placed by time; give --rate any too")
    if args.normalise == "corpus":
        if config.frontend == "wave":
            raise UserError("--normalise corpus: a raw wave is brought to variance 1 clip by clip; use preset")
        config = replace(config, **measure(train, config, args.seed))
    return config


def streams_of(args, train, config, clips=256):
    """The config's entry for each of --streams: how many values a token column holds, and the mean and deviation of
    each channel over some clips that have it."""
    out = []
    for text in args.streams:
        name, _, hertz = text.partition(":")
        codes, paths = train.streams.get(name, (None, ()))
        if codes is None or not hertz.replace(".", "", 1).isdigit() or not float(hertz):
            raise UserError(f"--streams {text}: give NAME:HZ; {train.origin or 'the manifest'} has the streams "
                            f"{', '.join(train.streams) or 'none (columns stream:NAME)'}")
        rows = np.flatnonzero(np.array([bool(path) for path in paths])[codes])
        column = config.stride[1] * config.hop
        values = max(1, round(float(hertz) * column))
        channels = len(streams.load(train.stream(rows[0], name))[1])
        some = loading.loader(train.select(rows), sample_rate=config.sample_rate, clip_seconds=config.clip_seconds,
                           batch_size=1, seed=args.seed, steps=min(clips, len(rows)),
                           streams=[(name, channels, values / column)])
        found = np.concatenate([batch["streams"][name][0] for batch in some], 1)
        mean, scale = np.nanmean(found, 1), np.maximum(np.nanstd(found, 1), 1e-6)
        out.append((name, values, [float(f"{m:.3g}") for m in mean], [float(f"{s:.3g}") for s in scale]))
    return tuple(out)


def measure(train, config, seed, clips=256):
    """{"mean", "scale"} of the log-mel over some training clips, which bring its deviation to 0.5 as SSAST does. Where
    the background is set to 0 it stays there."""
    config = replace(config, mean=0.0, scale=1.0, depth=0, prenet=0, pad="masked", streams=())
    encoder, total, square, count = Encoder(config), 0.0, 0.0, 0
    clips = min(clips, len(train))
    for batch in loading.loader(train, sample_rate=config.sample_rate, clip_seconds=config.clip_seconds, batch_size=1,
                             seed=seed, steps=clips, any_rate=config.rate == "any"):
        batch, = loading.parts([batch])
        with torch.inference_mode():
            own = encoder.at(batch.get("rate", config.sample_rate))
            spec = own.frontend(batch["wave"][:, :int(batch["lengths"])]).double()
            spec = spec[:, :own.config.n_mels - own.config.absent]
        total, square, count = total + spec.sum().item(), square + spec.square().sum().item(), count + spec.numel()
    mean = total / count
    deviation = max(1e-3, (square / count - mean ** 2) ** 0.5)
    # rounded, so that rounding errors of another machine or number of threads don't make another encoder
    return {"mean": 0.0 if config.denoise is not None else round(mean, 3), "scale": float(f"{2 * deviation:.3g}")}


def objective_around(args, encoder):
    """The recipe's objective; a setting that does not fit the encoder is one line."""
    defaults = {"ema_steps": args.steps} if "ema_steps" in SETTINGS[args.objective] else {}
    try:
        return objective_of(vars(args), encoder, **defaults)
    except ValueError as error:
        raise UserError(f"--recipe {args.recipe} with encoder {encoder.config.name}: {error}") from None


def build(args, config, start, heads):
    """The objective around its encoder, from scratch or from --init, with the published pre-training heads that fit."""
    torch.manual_seed(args.seed)
    encoder = start if start is not None else Encoder(config)
    encoder.checkpoint_activations = args.checkpoint_activations
    objective = objective_around(args, encoder)
    own = objective.state_dict()
    fitting = {k: v for k, v in heads.items() if k in own and own[k].shape == v.shape}
    objective.load_state_dict(own | fitting)
    if hasattr(objective, "teacher"):
        objective.restart_teacher()
    return objective


def augmentation(args):
    """A function of a micro-batch that gives its augmented wave, or None when nothing is asked for."""
    if not (args.gain or args.shift or args.mix_snr or args.polarity):
        return None
    return lambda clips: loading.augment(
        clips["wave"], clips["lengths"], clips["seed"], clips.get("partner"), clips.get("partner_lengths"),
        gain=args.gain or 0.0, shift=args.shift, mix_snr=args.mix_snr, polarity=args.polarity)
