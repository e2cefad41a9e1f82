"""What a pre-training run starts from: its clips, config.json, the encoder fitted to them, and the objective."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from masking import hash64
from model import Encoder, load_encoder
from wren import cli
from wren.cli import DEMO, UserError
from wren.formats import newest_encoder
from wren.objectives import MASKS, objective_of
from wren.recipes import PRESETS, EncoderConfig, any_rate
from wren.sound import loading, streams
from wren.sound.audio import BadAudio
from wren.sound.opening import open_manifest
from wren.sound.quality import list_problems, summary
from wren.sound.subsets import holdout, subset
from wren.training.checkpoints import checkpoints

MEASURED = 256  # clips over which a corpus is measured


# ----------------------------------------------------------------------------------------------------------- clips

def open_data(data, out, procs):
    """(train, valid) manifests. data: recipes.run.Data. One process makes the demo corpus if need be, and judges the
    files of a folder; the others wait and take its word.

    The held-out recordings are drawn from the whole corpus and then taken out of the subset, so that the held-out
    loss means the same for every size of subset. What can't be used, or is odd, is listed in OUT/unusable.csv.
    """
    if data.data == DEMO and procs.main:
        from wren.sound import demo
        demo.ensure(DEMO)
    source = f"{DEMO}/pretrain.csv" if data.data == DEMO else data.data
    rows = procs.first(lambda: open_manifest(source, notes=out))
    chosen = subset(rows, data.subset, data.domain)
    pool = rows.select(np.isin(rows.domain, chosen.domain))
    problems = []
    _, valid = holdout(pool, min(data.valid, len(pool) // 5), problems)
    if problems and procs.main:
        listed = Path(out) / "unusable.csv"
        list_problems(listed, problems, add=True)
        cli.warn(f"others are held out in place of {len(problems)} clips: {summary(problems, len(pool), 'clips')}; "
                 f"listed in {listed}")
    train = chosen.select(~np.isin(chosen.recording_keys(), valid.recording_keys()))
    if not len(train):
        raise UserError(f"--subset {data.subset}: all of its clips are in held-out recordings; lower --valid "
                        f"{data.valid}")
    return train, valid


def training_loader(settings, rows, config, procs, first):
    """Batches of this process from step `first` to the last, in a window of the encoder's length."""
    s, o = settings, settings.optimisation
    sampling = loading.Sampling.of(config, s.encoder.lower_rate, s.encoder.stream_drop)
    return loading.Loader(
        rows, loading.Cropper(sampling, config.clip_seconds), o.batch_size, o.seed,
        first=first * o.batch_size, steps=o.steps - first, rank=procs.rank, world=procs.world, workers=s.data.workers,
        partner=bool(s.terms.get("mix")))


def held_out(valid, config, procs, bad, batch_size=32):
    """This process's share of the held-out clips in batches: each clip from its start, with the same mask at every
    call. bad: a list that gets a dict for each clip that can no longer be read."""
    crop = loading.Cropper(loading.Sampling.of(config), config.clip_seconds, "start")
    own = range(procs.rank, len(valid), procs.world)
    for first in range(0, len(own), batch_size):
        clips = []
        for row in own[first:first + batch_size]:
            try:
                clips.append(crop(valid, row, 0) | {"row": row})
            except BadAudio as error:
                bad.append({"held_out": row, "error": str(error)})
        for rate, group in loading.by_rate(clips):
            yield loading.stack(group, crop.samples(rate)) | {
                "rate": rate, "seed": hash64(torch.tensor([clip["row"] for clip in group]))}


# ---------------------------------------------------------------------------------------- config.json and encoder

def check_unchanged(settings, train):
    """Refuse to go on with the run in --out under other settings, or to call it finished. -> (everything that may not
    change within a run, the data by their fingerprint; config.json as it is, or None)."""
    run, path = settings.run, Path(settings.run.out) / "config.json"
    identity = json.loads(json.dumps(settings.identity() | {"data": train.fingerprint()}))
    if not path.exists():
        return identity, None
    saved = json.loads(path.read_text())
    before, finished = saved["identity"], path.with_name("DONE").exists() and not run.extend
    changed = [k for k in identity if before.get(k) != identity[k] and not (run.extend and k in ("steps", "ema_steps"))]
    if changed and (finished or not run.override):
        key = changed[0]
        flag = "--extend" if key == "steps" else "" if finished else "--override"
        remedy = f", or go on regardless with {flag}" if flag else ""
        raise UserError(f"{run.out} was {'made' if finished else 'started'} with {key} {before.get(key)}, now it is "
                        f"{identity[key]}: start another run with --out{remedy}")
    return identity, saved


def fix_config(settings, saved, identity, train, valid, start, procs):
    """Write config.json, unless it was `saved` before; -> the encoder's settings. One process makes them and the others
    read, so that all train the same encoder to the last digit of its normalisation."""
    path = Path(settings.run.out) / "config.json"
    procs.barrier()  # all have looked before the first process writes
    if procs.main and (saved is None or settings.run.extend):
        config = EncoderConfig.from_dict(saved["encoder"]) if saved else encoder_config(settings, train, start)
        check_mask(settings.terms, config)
        with torch.device("meta"):  # described, not made: mistakes show here, before a step
            objective_around(settings, Encoder(config) if start is None else start)
        path.parent.mkdir(parents=True, exist_ok=True)  # from here on there is a run
        cli.write_text(path, json.dumps({
            "identity": identity, "encoder": config.to_dict(), "flags": settings.flat(),
            "data": {"source": settings.data.data, "subset": settings.data.subset, "clips": len(train),
                     "held_out": len(valid), "fingerprint": identity["data"]}}, indent=1))
    procs.barrier()
    return EncoderConfig.from_dict(json.loads(path.read_text())["encoder"])


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
    if init not in PRESETS and Path(init).is_dir():
        init = newest_encoder(init)
        init = next(iter(checkpoints(init.parent)), init)
    encoder = load_encoder(init, format)
    if clip_seconds:
        encoder = load_encoder(init, format, frames=round(clip_seconds / encoder.config.hop))
    return encoder, encoder.heads.pop("objective", {})  # encoder.pt is not to hold them as they were at the start


def encoder_config(settings, train, start):
    """The encoder's settings: of --init, or of the preset fitted to this corpus."""
    chosen, seconds, seed = settings.encoder, settings.data.clip_seconds, settings.optimisation.seed
    if start is not None:
        if chosen.rate == "any" and start.config.rate != "any":
            raise UserError(f"--rate any: {chosen.init} hears {start.config.sample_rate} Hz alone; leave one of --rate "
                            "and --init out")
        if chosen.streams:
            raise UserError("--streams: the encoder of --init hears what it was made for; leave one of the two out")
        return start.config
    config = replace(PRESETS[chosen.preset], **{"drop_path": chosen.drop_path} if chosen.drop_path else {})
    try:
        config = replace(config, frames=round(seconds / config.hop)) if seconds else config
    except ValueError as error:
        raise UserError(f"--clip-seconds {seconds:g}: {error}") from None
    if chosen.rate == "any":
        if not train.sample_rate.all():
            raise UserError(f"--rate any: {train.origin} does not say the sample rate of each row; make it with python "
                            "data.py index")
        config = any_rate(config, int(train.sample_rate.max()))
        config = replace(config, streams=tuple(measure_stream(text, train, config, seed) for text in chosen.streams))
    elif chosen.streams:
        raise UserError("--streams: what is recorded beside the sound is placed by time; give --rate any too")
    if chosen.normalise == "corpus":
        if config.frontend == "wave":
            raise UserError("--normalise corpus: a raw wave is brought to variance 1 clip by clip; use preset")
        config = replace(config, **measure(train, config, seed))
    return config


def measure_stream(wanted, train, config, seed):
    """The config's entry for NAME:HZ, one of --streams: its name, how many values a token column holds, and the mean
    and deviation of each channel over some clips that have it."""
    name, _, hertz = wanted.partition(":")
    if name not in train.streams or not hertz.replace(".", "", 1).isdigit() or not float(hertz):
        raise UserError(f"--streams {wanted}: give NAME:HZ; {train.origin or 'the manifest'} has the streams "
                        f"{', '.join(train.streams) or 'none (columns stream:NAME)'}")
    rows = train.select(np.flatnonzero(train.text(f"stream:{name}")))
    column = config.stride[1] * config.hop
    values = max(1, round(float(hertz) * column))
    channels = len(streams.load(rows.stream(0, name))[1])
    sampling = loading.Sampling(config.sample_rate, streams=((name, channels, values / column),))
    batches = loading.Loader(rows, loading.Cropper(sampling, config.clip_seconds), 1, seed,
                             steps=min(MEASURED, len(rows)))
    found = np.concatenate([batch["streams"][name][0] for batch in batches], 1)
    mean, scale = np.nanmean(found, 1), np.maximum(np.nanstd(found, 1), 1e-6)
    return name, values, [float(f"{m:.3g}") for m in mean], [float(f"{s:.3g}") for s in scale]


def measure(train, config, seed):
    """{"mean", "scale"} of the log-mel over some training clips, which bring its deviation to 1 (SSAST's to 0.5: small
    encoders learn more slowly from it, docs/results.md)."""
    config = replace(config, mean=0.0, scale=1.0, depth=0, prenet=0, pad="masked", streams=())
    frontend, total, square, count = Encoder(config).frontend, 0.0, 0.0, 0
    crop = loading.Cropper(loading.Sampling.of(config), config.clip_seconds)
    for batch in loading.parts(loading.Loader(train, crop, 1, seed, steps=min(MEASURED, len(train)))):
        rate = batch.get("rate")
        layout = config.at_rate(rate)
        with torch.inference_mode():
            spec = frontend(batch["wave"][:, :int(batch["lengths"])], rate=rate).double()
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
    encoder = Encoder(config) if start is None else start
    encoder.checkpoint_activations = settings.run.checkpoint_activations
    objective = objective_around(settings, encoder)
    own = objective.state_dict()
    objective.load_state_dict(own | {k: v for k, v in heads.items() if k in own and own[k].shape == v.shape})
    if hasattr(objective, "teacher"):
        objective.restart_teacher()
    return objective
