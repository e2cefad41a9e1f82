"""Figures over time and frequency: what masks hide of a clip, and what was detected in a recording."""
import json
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from scipy.signal import ShortTimeFFT, get_window

from wren.cli import UserError
from wren.figures import style
from wren.recipes import octave_band
from wren.sound import audio
from wren.tasks.annotations import read_annotations, stems, tables


def read_part(path, start, seconds):
    """(wave (S,), rate in Hz) of a recording from `start`, at most `seconds`."""
    with audio.Sound(path) as sound:
        first = round(start * sound.rate)
        if not 0 <= first < sound.frames:
            raise UserError(f"--start {start:g}: {path} is {sound.frames / sound.rate:.1f} s long")
        return sound.read(first, min(round(seconds * sound.rate), sound.frames - first)), sound.rate


def power_image(ax, wave, rate, start):
    """Draw a spectrogram of a wave (S,) at `rate` Hz in dB above each frequency's median over time, which flattens
    steady noise; linear frequency. White: less than 3 dB.

    The window is 25 ms, or 1024 samples of a faster recording; at most about 2000 frames, as many as can be printed.
    """
    size = min(1024, max(64, round(0.025 * rate)), len(wave))
    hop = max(size // 4, len(wave) // 2000)
    power = ShortTimeFFT(get_window("hann", size), hop, rate, mfft=max(size, 512)).spectrogram(wave)  # (F, T)
    db = 10 * np.log10(power + 1e-12 * power.max() + 1e-20)
    db -= np.median(db, axis=1, keepdims=True)
    image = ax.imshow(db, origin="lower", aspect="auto", vmin=3, vmax=max(20, np.percentile(db, 99.9)),
                      extent=(start, start + power.shape[1] * hop / rate, 0, rate / 2000))
    ax.set_xlim(start, start + len(wave) / rate)
    ax.set_ylabel("frequency (kHz)")
    return image


# --------------------------------------------------------------------------------------------------------- masks

def band(hertz, config):
    """Where a frequency in Hz lies among an encoder's bands (the centre of band k is k)."""
    if config.frontend == "octave":
        return octave_band(hertz) - 0.5
    edges = config.f_min, config.f_max or config.sample_rate / 2
    low, high, place = np.log1p(np.array([*edges, hertz]) / 700)  # HTK's mel scale
    return (place - low) / (high - low) * (config.n_mels + 1) - 1


def bands_image(ax, spec, config, start):
    """Draw an encoder's spectrogram (F, T): time in s from `start`, frequency in kHz at octaves that lie apart enough
    to be read."""
    ax.imshow(spec, origin="lower", aspect="auto",
              extent=(start, start + spec.shape[1] * config.hop, -0.5, spec.shape[0] - 0.5))
    ticks = {}
    for hertz in 1000.0 * 2.0 ** np.arange(-3, 9):
        place = band(hertz, config)
        if -0.5 <= place <= config.n_mels - 0.5 and place - max(ticks, default=-np.inf) >= config.n_mels / 9:
            ticks[place] = f"{hertz / 1000:g}"
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.set_ylabel("frequency (kHz)")


def plot_masks(args):
    """One clip: its spectrogram as the encoder gets it (of an encoder of raw waves one for people), and what each mask
    hides of it."""
    import torch

    from model import load_encoder
    from wren.formats import newest_encoder
    from wren.objectives import MASKS, draw_mask
    if args.checkpoint and len(args.checkpoint) > 1:
        raise UserError("--checkpoint: this figure shows one encoder, name one")
    source = Path(args.checkpoint[0]) if args.checkpoint else newest_encoder("runs").parent
    encoder = load_encoder(source, args.format)
    wave, rate = read_part(args.masks, args.start, encoder.config.clip_seconds)
    c = encoder.config.at_rate(encoder.config.heard_rate(rate))
    wave = audio.resample(wave, rate, c.sample_rate)[:c.clip_samples]
    spec = encoder.frontend(torch.from_numpy(wave)[None], rate=c.sample_rate)[0].numpy()  # (F, T)
    lengths, share = torch.tensor([len(wave)]), hidden_share(source)
    columns = c.valid_columns(c.extent(lengths))
    columns = c.grid[0] if columns is None else int(columns)
    masks = {kind: draw_mask(kind, share, c, torch.tensor([args.seed]), lengths)[0, :columns].numpy()
             for kind in MASKS}  # (T', F') each
    name, rows = Path(args.masks).name, c.grid[1]
    caption = (f"{name}: spectrogram (darker: more energy) and what each mask hides (blue) of its {columns} × {rows} "
               "tokens (time × frequency).")

    # each token in its place, of overlapping patches in the middle
    left, low = args.start + (c.patch[1] - c.stride[1]) / 2 * c.hop, (c.patch[0] - c.stride[0]) / 2 - 0.5
    below, above = (0, c.sample_rate / 2000) if c.frontend == "wave" else (low, low + rows * c.stride[0])
    extent = (left, left + columns * c.stride[1] * c.hop, below, above)

    def draw(width):
        figure, axes = style.panels(width, 1 + len(masks), 1.15, caption, sharex=True, sharey=True)
        for ax, kind in zip(axes, ("the clip", *masks)):
            if c.frontend == "wave":
                power_image(ax, wave, c.sample_rate, args.start)
            else:
                bands_image(ax, spec, c, args.start)
            ax.set(title=kind, xlabel="time (s)")
            if kind in masks:
                hidden = masks[kind].T
                ax.autoscale(False)
                ax.imshow(hidden, ListedColormap([style.COLOURS[4]]), origin="lower", aspect="auto", extent=extent,
                          alpha=0.85 * hidden)
                ax.set_title(f"{kind}: {hidden.sum()} of {hidden.size}")
            ax.label_outer()
        return figure
    table = [{"mask": kind, "column": t, "row": f, "hidden": int(hidden)} for kind, mask in masks.items()
             for (t, f), hidden in np.ndenumerate(mask)]
    return "masks", draw, caption, table, {"clip": name, "start": args.start, "seed": args.seed, "hidden": share,
                                           "masks": list(masks)}


def hidden_share(source):
    """Of the tokens of a clip (or how many), as in the run that the weights are from; else SSAST's 400 of 512."""
    config = (source if source.is_dir() else source.parent) / "config.json"
    about = json.loads(config.read_text()) if source.exists() and config.exists() else {}
    return about.get("identity", {}).get("hidden") or 400 / 512


# ------------------------------------------------------------------------------------------------------- events

def find_recording(args, read):
    """The recording that is shown: --recording, or the first that a table names, beside it, below --data or here; of
    several one that a table of annotations is called like, if there is one. read {place: [(table, its events)]}."""
    if args.recording:
        return Path(args.recording)
    named = [(table, e.file) for pairs in read.values() for table, events in pairs for e in events if e.file]
    if not named:
        raise UserError(f"{', '.join(read)}: no recording is named there, give the sound with --recording")
    called = {stem for table, _ in read.get(args.annotations, ()) for stem in stems(table)}
    table, file = next((pair for pair in named if Path(pair[1]).stem in called), named[0])
    for path in (table.parent / file, Path(args.data) / file, Path(file)):
        if path.exists():
            return path
    raise UserError(f"{table} names {file}, which is neither beside it nor below {args.data}: give the sound with "
                    "--recording")


def is_of(event, table, path, alone):
    """Whether a table's event lies in a recording: the table names it, or names none and is the only one, or is
    called like it."""
    if event.file:
        return event.file.replace("\\", "/").split("/")[-1] == path.name
    return alone or path.stem in stems(table)


def plot_events(args):
    """A recording with what was detected over what was annotated."""
    given = [place for place in (args.events, args.annotations) if place]
    read = {place: [(table, read_annotations(table, args.label)) for table in tables(place)] for place in given}
    path = find_recording(args, read)
    wave, rate = read_part(path, args.start, args.seconds)
    end = args.start + len(wave) / rate
    detected, annotated = ([e for table, events in read.get(place, ()) for e in events
                            if is_of(e, table, path, table == Path(place)) and e.start < end and e.end > args.start]
                           for place in (args.events, args.annotations))
    labels = sorted({e.label for e in detected + annotated})
    if not labels:
        raise UserError(f"{', '.join(given)}: no events of {path.name} from {args.start:g} to {end:g} s")
    scored = any(e.score is not None for e in detected)
    caption = (f"{path.name}: spectrogram (dB above each frequency's median) with {len(detected)} detections (dark "
               f"bars{', as dark as they are sure' * scored})" +
               (f" over {len(annotated)} annotations (light bars)." if args.annotations else "."))

    def draw(width):
        lanes = max(0.35, style.LINE * 1.3 * len(labels))
        figure, body = style.page(width, 1.7 + 0.4 + lanes, caption)
        top, low = body.subplots(2, 1, sharex=True, height_ratios=(1.7, lanes))
        power_image(top, wave, rate, args.start)

        def bar(event, height, alpha):
            k = labels.index(event.label)
            low.broken_barh([(event.start, event.end - event.start)], (k - height / 2, height), linewidth=0,
                            color=style.look(k)["color"], alpha=alpha)
        for e in annotated:
            bar(e, 0.8, 0.35)
        for e in detected:
            sure = 1.0 if e.score is None else 0.1 + 0.9 * min(1, max(0, e.score))
            bar(e, 0.4, sure)
            if e.low is not None and e.high is not None:
                top.fill_between((e.start, e.end), e.low / 1000, e.high / 1000, facecolor="none", linewidth=0.8,
                                 edgecolor=style.look(labels.index(e.label))["color"], alpha=sure)
        low.set_yticks(range(len(labels)), [style.shortened(label, 16) for label in labels])
        low.set(ylim=(len(labels) - 0.4, -0.6), xlim=(args.start, end), xlabel="time (s)")
        return figure
    table = [{"kind": kind, "label": e.label, "start_s": e.start, "end_s": e.end, "score": e.score, "low_hz": e.low,
              "high_hz": e.high} for kind, some in (("detected", detected), ("annotated", annotated)) for e in some]
    return "events", draw, caption, table, {"recording": str(path), "start": args.start, "seconds": len(wave) / rate}
