"""Figures over time and frequency: what masks hide and heads paint, where an encoder looks, what was detected.

Each function takes the arguments of plot_tsne.py and returns (name, draw(width), caption, rows of data, settings), as
figures.save wants them.
"""
import json
from pathlib import Path

import numpy as np

import figures
from cli import UserError

VEIL = "#56B4E9"  # over what is hidden


def plot(args):
    if args.events:
        return plot_events(args)
    return plot_masks(args) if args.masks is not None else plot_attention(args)


# ----------------------------------------------------------------------------------------- one clip, one encoder

def open_clip(args, path):
    """(encoder, run folder or None, wave (1, S), name) of a clip of at most the encoder's training length."""
    import torch

    import audio
    from model import load_encoder, newest_encoder
    if args.checkpoint and len(args.checkpoint) > 1:
        raise UserError("--checkpoint: this figure shows one encoder, name one")
    source = Path(args.checkpoint[0]) if args.checkpoint else newest_encoder("runs").parent
    torch.manual_seed(args.seed)
    encoder = load_encoder(source, args.format)
    config = encoder.config
    path = path or demo_clip(args, config.clip_seconds)
    with audio.Sound(path) as sound:
        first, need = round(args.start * sound.rate), round(config.clip_seconds * sound.rate)
        if not 0 <= first < sound.frames:
            raise UserError(f"--start {args.start:g}: {path} is {sound.frames / sound.rate:.1f} s long")
        wave = sound.read(first, min(need, sound.frames - first))
        wave = audio.resample(wave, sound.rate, config.sample_rate)[:config.clip_samples]
    run = source if source.is_dir() else source.parent if (source.parent / "config.json").exists() else None
    return encoder, run, torch.from_numpy(wave)[None], Path(path).name


def demo_clip(args, seconds):
    """The liveliest of the first 20 clips of the task (the demo's species by default), a long one if possible."""
    import audio
    import demo
    from activity import activity
    from data import load_task
    if args.data == "data/demo":
        demo.ensure(args.data)
    rows = load_task(args.task, root=args.data).splits[args.split]

    def lively(path):
        with audio.Sound(path) as sound:
            return sound.frames >= seconds * sound.rate, activity(sound.read(), sound.rate)
    return max((rows.locate(i) for i in range(min(20, len(rows)))), key=lively)


def spectrogram(encoder, wave):
    """wave (1, S) -> spec (F, T) as the encoder sees it; a raw-wave encoder has none."""
    import torch
    with torch.inference_mode():
        spec = encoder.frontend(wave)[0]
    if spec.shape[0] != encoder.config.n_mels or spec.shape[0] == 1:
        raise UserError(f"{encoder.config.name} hears the wave itself and has no spectrogram to draw")
    return spec


# -------------------------------------------------------------------------------------------------------- masks

def paint(cells, config, shape):
    """Put patches back in their places: cells (T', F', P), P pixels ordered (band, frame) -> (F, T) of `shape`; where
    patches overlap, their mean; where there are none, 0."""
    import torch
    from torch.nn.functional import fold
    t, f, _ = cells.shape
    size = [(n - 1) * step + side for n, step, side in zip((f, t), config.stride, config.patch)]

    def folded(x):
        return fold(x.permute(2, 1, 0).flatten(1)[None], size, config.patch, stride=config.stride)[0, 0]
    image = folded(cells) / folded(torch.ones_like(cells)).clamp(min=1)
    out = torch.zeros(max(shape[0], size[0]), max(shape[1], size[1]))
    out[:size[0], :size[1]] = image
    return out[:shape[0], :shape[1]]


def veil(ax, hidden, config, start):
    """Cover the hidden tokens (F, T), 1 where hidden."""
    from matplotlib.colors import to_rgba
    color = np.broadcast_to(to_rgba(VEIL), (*hidden.shape, 4)).copy()
    color[..., 3] = 0.85 * (hidden > 0.5)
    figures.mel_image(ax, color, config, start)


def generative_head(args, encoder, run):
    """SSAST's objective with a trained head that paints hidden patches, from the newest checkpoint of a run folder or
    from a published file that holds one; None where there is none."""
    from convert import read
    from engine import load_checkpoint
    from objectives import SSAST
    from recipes import PRESETS
    identity = json.loads((run / "config.json").read_text())["identity"] if run else {}
    if run:
        state = (load_checkpoint(run) or {}).get("objective", {})
    else:
        source = args.checkpoint[0]
        state = {} if source in PRESETS else read(source, args.format).heads.get("objective", {})
    part = {k.removeprefix("reconstruct."): v for k, v in state.items() if k.startswith("reconstruct.")}
    if not part or identity.get("loss") == "nce":
        return None
    objective = SSAST(encoder)
    objective.reconstruct.load_state_dict(part)
    own = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    if own:  # the weights that were trained with this head, should encoder.pt be older
        encoder.load_state_dict(own)
    return objective


def plot_masks(args):
    """One clip: its spectrogram, what each mask hides, and what the generative head makes of the rest."""
    import torch

    from objectives import MASKS
    encoder, run, wave, name = open_clip(args, args.masks)
    config, spec = encoder.config, spectrogram(encoder, wave)
    identity = json.loads((run / "config.json").read_text())["identity"] if run else {}
    share, trained_with = identity.get("hidden", 400 / 512), identity.get("masking", "patch")
    patches = encoder.patches(spec[None])[0]  # (T', F', P)
    columns = None if len(patches) == config.grid[0] else torch.tensor([len(patches)])
    seeds, panels, hidden = torch.tensor([args.seed]), {}, {}
    for kind, mask in MASKS.items():
        try:
            hidden[kind] = mask(seeds, config.grid, share, columns)[:, :len(patches)]  # (1, T', F')
        except ValueError:  # this mask can't hide so many, or knows no short clips
            continue
        panels[f"{kind}: {int(hidden[kind].sum())} of {hidden[kind].numel()} hidden"] = hidden[kind]
    objective, painted = generative_head(args, encoder, run), None
    text = ""
    if objective is not None and trained_with in hidden:
        mask = hidden[trained_with]
        with torch.inference_mode():
            tokens = encoder.tokens(spec[None], mask)[0, config.specials:]
            guess = objective.reconstruct(tokens).view_as(patches)
        error = float((guess - patches)[mask[0]].square().mean())
        flat = float((patches[~mask[0]].mean() - patches)[mask[0]].square().mean())
        painted = paint(torch.where(mask[0, ..., None], guess, patches), config, spec.shape)
        text = (f" Last: the generative head of {Path(run or args.checkpoint[0]).name} paints what the {trained_with} "
                f"mask hides; mean squared error {error:.3f}, painted with the visible patches' mean {flat:.3f}.")
    caption = (f"{name}: log-mel spectrogram as the encoder gets it (darker: more energy) and what each mask hides of "
               f"its {patches.shape[0]} × {patches.shape[1]} tokens (time × frequency).{text}")
    count = 1 + len(panels) + (painted is not None)
    span = {"vmin": float(spec.min()), "vmax": float(spec.max())}

    def draw(width):
        across = 2 if width > 5 else 1
        figure, body = figures.page(width, 1.2 * figures.grid_of(count, across)[0], caption)
        axes = figures.axes_of(body, count, across)
        for ax, (title, mask) in zip(axes, {"the clip": None, **panels}.items()):
            figures.mel_image(ax, spec, config, args.start, **span)
            if mask is not None:
                veil(ax, paint(mask[0, ..., None].expand_as(patches).float(), config, spec.shape), config, args.start)
            ax.set_title(title)
        if painted is not None:
            figures.mel_image(axes[-1], painted, config, args.start, **span)
            axes[-1].set_title(f"reconstruction under the {trained_with} mask")
        for ax in axes[-across:]:
            ax.set_xlabel("time (s)")
        return figure
    table = [{"mask": kind, "column": t, "row": f, "hidden": int(mask[0, t, f])} for kind, mask in hidden.items()
             for t in range(mask.shape[1]) for f in range(mask.shape[2])]
    about = {"clip": name, "start": args.start, "seed": args.seed, "hidden": share, "masks": list(hidden)}
    if text:
        about |= {"reconstruction_error": error, "error_of_visible_mean": flat}
    return "masks", draw, caption, table, about


# ---------------------------------------------------------------------------------------------------- attention

def attention(encoder, wave, depth=None):
    """What each patch token receives in one block: wave (1, S) -> (T', F'), the mean over heads and patch tokens of
    the attention weight, times the number of tokens, so that 1 is what even attention would give."""
    import torch
    block = encoder.blocks[(depth or len(encoder.blocks)) - 1]
    seen = {}

    def note(module, inputs):
        x, keep = inputs[0], inputs[1] if len(inputs) > 1 else None
        q, k, _ = module.qkv(x).unflatten(-1, (3, module.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (1, H, N, N)
        if keep is not None:
            scores = scores.masked_fill(~keep, float("-inf")) if keep.dtype == torch.bool else scores + keep
        seen["weights"] = scores.softmax(-1)[0]
    hook = block.attn.register_forward_pre_hook(note)
    try:
        with torch.inference_mode():
            encoder.tokens(encoder.frontend(wave))
    finally:
        hook.remove()
    first = encoder.config.specials
    received = seen["weights"][:, first:, first:].mean((0, 1)) * seen["weights"].shape[-1]
    return received.view(-1, encoder.config.grid[1])


def plot_attention(args):
    """One recording: its spectrogram, and above what the tokens of a block look at over time and frequency."""
    encoder, run, wave, name = open_clip(args, args.attention)
    config, spec = encoder.config, spectrogram(encoder, wave)
    depth = args.depth or config.depth
    if depth > config.depth:
        raise UserError(f"--depth {depth}: this encoder has {config.depth} blocks")
    received = attention(encoder, wave, depth)
    image = paint(received[..., None].expand(-1, -1, config.patch[0] * config.patch[1]), config, spec.shape)
    middles = args.start + (np.arange(len(received)) * config.stride[1] + config.patch[1] / 2) * config.hop  # s
    source = Path(run).name if run else args.checkpoint[0]
    caption = (f"{name}: log-mel spectrogram, and the attention that each token of block {depth} of {source} receives, "
               "mean over heads and over the tokens that attend; 1 is even attention.")

    def draw(width):
        figure, body = figures.page(width, 3.0, caption)
        axes = body.subplots(3, 1, sharex=True, height_ratios=(1, 1, 0.6))
        figures.mel_image(axes[0], spec, config, args.start)
        heat = figures.mel_image(axes[1], image, config, args.start, cmap="viridis")
        body.colorbar(heat, ax=list(axes), location="right", aspect=40, pad=0.01, label="attention (1 = even)")
        axes[2].plot(middles, received.mean(1), color=figures.COLOURS[0], marker=".", markersize=3)
        axes[2].axhline(1, color=figures.GREY, linewidth=0.6)
        axes[2].set(ylabel="mean over\nfrequency", xlabel="time (s)")
        body.align_ylabels(axes)
        return figure
    middle_bands = np.arange(received.shape[1]) * config.stride[0] + config.patch[0] / 2 - 0.5
    table = [{"time_s": round(float(middles[t]), 4), "mel_band": float(middle_bands[f]),
              "attention": round(float(received[t, f]), 5)} for t in range(len(received)) for f in range(received.shape[1])]
    return "attention", draw, caption, table, {"clip": name, "start": args.start, "block": depth, "encoder": source}


# ------------------------------------------------------------------------------------------------------- events

def find_recording(args, tables):
    """The recording that is shown: --recording, or the first that a table names, beside it, below --data or here."""
    if args.recording:
        return Path(args.recording)
    for table, events in tables.items():
        for file in dict.fromkeys(e.file for e in events if e.file):
            places = [Path(table).parent / file, Path(args.data) / file, Path(file)]
            found = next((p for p in places if p.exists()), None)
            if found is None:
                raise UserError(f"{table} names {file}, which is neither beside it nor below {args.data}: give the "
                                "sound with --recording")
            return found
    raise UserError(f"{', '.join(map(str, tables))} name no recording: give the sound with --recording")


def plot_events(args):
    """A recording with what was detected over what was annotated."""
    import audio
    from annotations import read_annotations
    tables = {args.events: read_annotations(args.events)}
    if args.annotations:
        tables[args.annotations] = read_annotations(args.annotations)
    path = find_recording(args, tables)
    with audio.Sound(path) as sound:
        rate, first = sound.rate, round(args.start * sound.rate)
        if not 0 <= first < sound.frames:
            raise UserError(f"--start {args.start:g}: {path} is {sound.frames / rate:.1f} s long")
        wave = sound.read(first, min(round(args.seconds * rate), sound.frames - first))
    end = args.start + len(wave) / rate
    shown = {table: [e for e in events if (not e.file or Path(e.file).name == path.name) and e.start < end
                     and e.end > args.start] for table, events in tables.items()}
    detected, annotated = shown[args.events], shown.get(args.annotations, [])
    labels = sorted({e.label for some in shown.values() for e in some})
    if not labels:
        raise UserError(f"{', '.join(tables)}: no events of {path.name} from {args.start:g} to {end:g} s")
    caption = (f"{path.name}: spectrogram with {len(detected)} detections (dark bars{', opaque: sure' * any(e.score is not None for e in detected)})"
               + (f" over {len(annotated)} annotations (light bars)." if args.annotations else "."))

    def draw(width):
        lanes = max(0.35, figures.LINE * 1.3 * len(labels))
        figure, body = figures.page(width, 1.7 + 0.4 + lanes, caption)
        top, low = body.subplots(2, 1, sharex=True, height_ratios=(1.7, lanes))
        figures.power_image(top, wave, rate, args.start)
        for k, label in enumerate(labels):
            color = figures.look(k)["color"]
            for some, height, alpha in ((annotated, 0.8, 0.35), (detected, 0.4, 1.0)):
                for e in (e for e in some if e.label == label):
                    sure = alpha if e.score is None or some is annotated else 0.3 + 0.7 * min(1, max(0, e.score))
                    low.broken_barh([(e.start, e.end - e.start)], (k - height / 2, height), color=color, alpha=sure,
                                    linewidth=0)
                    if e.low is not None and e.high is not None and some is detected:
                        top.fill_between((e.start, e.end), e.low / 1000, e.high / 1000, facecolor="none",
                                         edgecolor=color, linewidth=0.8)
        low.set_yticks(range(len(labels)), [figures.shortened(label, 16) for label in labels])
        low.set_ylim(len(labels) - 0.4, -0.6)
        low.set_xlim(args.start, end)
        low.set_xlabel("time (s)")
        return figure
    table = [{"kind": kind, "label": e.label, "start_s": e.start, "end_s": e.end, "score": e.score, "low_hz": e.low,
              "high_hz": e.high} for kind, some in (("detected", detected), ("annotated", annotated)) for e in some]
    return "events", draw, caption, table, {"recording": str(path), "start": args.start, "seconds": len(wave) / rate}
