"""What a pre-training run starts from: the encoder, its settings fitted to the corpus, and the objective around it."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model import Encoder, load_encoder
from wren.formats import newest_encoder
from wren.cli import UserError
from wren.objectives import MASKS, objective_of
from wren.recipes import PRESETS, any_rate
from wren.sound import loading, streams
from wren.training.checkpoints import checkpoints


def check_mask(terms, config):
    """Refuse a number of hidden tokens that the encoder's grid can't have. terms: the objective's settings."""
    hidden, masking = terms.get("hidden"), terms.get("masking")
    if config.rate == "any" and isinstance(hidden, int):
        raise UserError(f"--hidden {hidden}: with --rate any the number of tokens follows the sample rate: give a "
                        "share")
    if masking:
        try:
            MASKS[masking](torch.zeros(1, dtype=torch.int64), config.grid, hidden)
        except ValueError as error:
            raise UserError(f"--hidden {hidden}: {error}") from None


def starting_point(init, format=None, clip_seconds=None):
    """(encoder, pre-training heads) of --init, of a run folder its newest checkpoint; or (None, {})."""
    if not init:
        return None, {}
    source = init
    if source not in PRESETS and Path(source).is_dir():
        source = newest_encoder(source)
        source = next(iter(checkpoints(source.parent)), source)
    encoder = load_encoder(source, format)
    if clip_seconds:
        encoder = load_encoder(source, format, frames=round(clip_seconds / encoder.config.hop))
    return encoder, encoder.heads.pop("objective", {})  # encoder.pt is not to hold them as they were at the start


def encoder_config(settings, train, start):
    """The encoder's settings: of --init, or of the preset fitted to this corpus."""
    chosen, seconds = settings.encoder, settings.data.clip_seconds
    if start is not None:
        if chosen.rate == "any" and start.config.rate != "any":
            raise UserError(f"--rate any: {chosen.init} hears {start.config.sample_rate} Hz alone; leave one of --rate "
                            "and --init out")
        if chosen.streams:
            raise UserError("--streams: the encoder of --init hears what it was made for; leave one of the two out")
        return start.config
    config = PRESETS[chosen.preset]
    try:
        if seconds:
            config = replace(config, frames=round(seconds / config.hop))
    except ValueError as error:
        raise UserError(f"--clip-seconds {seconds:g}: {error}") from None
    if chosen.drop_path:
        config = replace(config, drop_path=chosen.drop_path)
    if chosen.rate == "any":
        if not train.sample_rate.all():
            raise UserError(f"--rate any: {train.origin} does not say the sample rate of each row; make it with python "
                            "data.py index")
        config = any_rate(config, int(train.sample_rate.max()))
        config = replace(config, streams=measure_streams(chosen.streams, train, config, settings.optimisation.seed))
    elif chosen.streams:
        raise UserError("--streams: what is recorded beside the sound is placed by time; give --rate any too")
    if chosen.normalise == "corpus":
        if config.frontend == "wave":
            raise UserError("--normalise corpus: a raw wave is brought to variance 1 clip by clip; use preset")
        config = replace(config, **measure(train, config, settings.optimisation.seed))
    return config


def checked_config(settings, train, start, saved=None):
    """`encoder_config`, or the `saved` one, when masks and objective fit it; mistakes show here, before a step."""
    config = encoder_config(settings, train, start) if saved is None else saved
    check_mask(settings.terms, config)
    with torch.device("meta"):  # described, not made
        objective_around(settings, start if start is not None else Encoder(config))
    return config


def measure_streams(wanted, train, config, seed, clips=256):
    """The config's entry for each of --streams, NAME:HZ: how many values a token column holds, and the mean
    and deviation of each channel over some clips that have it."""
    out = []
    for text in wanted:
        name, _, hertz = text.partition(":")
        if name not in train.streams or not hertz.replace(".", "", 1).isdigit() or not float(hertz):
            raise UserError(f"--streams {text}: give NAME:HZ; {train.origin or 'the manifest'} has the streams "
                            f"{', '.join(train.streams) or 'none (columns stream:NAME)'}")
        rows = np.flatnonzero(train.text(f"stream:{name}"))
        column = config.stride[1] * config.hop
        values = max(1, round(float(hertz) * column))
        channels = len(streams.load(train.stream(rows[0], name))[1])
        sampling = loading.Sampling(config.sample_rate, streams=((name, channels, values / column),))
        batches = loading.Loader(train.select(rows), loading.Cropper(sampling, config.clip_seconds), 1, seed,
                                 steps=min(clips, len(rows)))
        found = np.concatenate([batch["streams"][name][0] for batch in batches], 1)
        mean, scale = np.nanmean(found, 1), np.maximum(np.nanstd(found, 1), 1e-6)
        out.append((name, values, [float(f"{m:.3g}") for m in mean], [float(f"{s:.3g}") for s in scale]))
    return tuple(out)


def measure(train, config, seed, clips=256):
    """{"mean", "scale"} of the log-mel over some training clips, which bring its deviation to 1 (SSAST's to 0.5: small
    encoders learn more slowly from it, docs/results.md)."""
    config = replace(config, mean=0.0, scale=1.0, depth=0, prenet=0, pad="masked", streams=())
    encoder, total, square, count = Encoder(config), 0.0, 0.0, 0
    clips = min(clips, len(train))
    crop = loading.Cropper(loading.Sampling.of(config), config.clip_seconds)
    for batch in loading.Loader(train, crop, 1, seed, steps=clips):
        batch, = loading.parts([batch])
        with torch.inference_mode():
            layout = config.at_rate(batch.get("rate"))
            spec = encoder.frontend(batch["wave"][:, :int(batch["lengths"])], rate=batch.get("rate")).double()
            spec = spec[:, :layout.n_mels - layout.absent]
        total, square, count = total + spec.sum().item(), square + spec.square().sum().item(), count + spec.numel()
    mean = total / count
    deviation = max(1e-3, (square / count - mean ** 2) ** 0.5)
    # rounded, so that rounding errors of another machine or number of threads don't make another encoder
    return {"mean": round(mean, 3), "scale": float(f"{deviation:.3g}")}


def objective_around(settings, encoder):
    """The recipe's objective; a setting that does not fit the encoder is one line."""
    terms, teacher = settings.terms, {}
    if terms.get("ema_steps", 0) is None:
        teacher = {"ema_steps": settings.optimisation.steps or 1}
    try:
        return objective_of(terms | {"objective": settings.objective}, encoder, **teacher)
    except ValueError as error:
        raise UserError(f"--recipe {settings.recipe} with encoder {encoder.config.name}: {error}") from None


def build(settings, config, start, heads):
    """The objective around its encoder, from scratch or from --init, with the published pre-training heads that fit."""
    torch.manual_seed(settings.optimisation.seed)
    encoder = start if start is not None else Encoder(config)
    encoder.checkpoint_activations = settings.run.checkpoint_activations
    objective = objective_around(settings, encoder)
    own = objective.state_dict()
    fitting = {k: v for k, v in heads.items() if k in own and own[k].shape == v.shape}
    objective.load_state_dict(own | fitting)
    if hasattr(objective, "teacher"):
        objective.restart_teacher()
    return objective
