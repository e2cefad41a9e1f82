"""The clips of a pre-training run: which are learned from, which are held out, and how they come."""
from pathlib import Path

import numpy as np
import torch

from masking import hash64
from wren import cli
from wren.cli import DEMO, UserError
from wren.sound import loading
from wren.sound.audio import BadAudio
from wren.sound.opening import open_manifest
from wren.sound.quality import list_problems, summary
from wren.sound.subsets import holdout, subset


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
