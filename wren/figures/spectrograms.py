"""Figures over time and frequency: what masks hide and heads paint, what was detected.

Each function takes the arguments of plot_tsne.py and returns (name, draw(width), caption, rows of data, settings), as
figures.save wants them.
"""
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgba

from wren.figures import style as figures
from wren.tasks.annotations import read_annotations, stems, tables
from wren.cli import DEMO, UserError

VEIL = "#56B4E9"  # over what is hidden


def plot(args):
    return plot_events(args) if args.events else plot_masks(args)


# ----------------------------------------------------------------------------------------- one clip, one encoder

@dataclass
class Clip:
    """A clip of at most an encoder's training length, and what the encoder makes of it."""
    encoder: object
    run: Path | None  # the run folder the encoder is from
    source: str  # what was named
    name: str  # of the file
    start: float  # s in the file
    wave: object  # (1, S)
    rate: int | None = None  # Hz; None: the encoder's own
    spec: object = None  # (1, F, T); (1, 1, S) of an encoder of raw waves
    grid: tuple = ()  # (T', F') tokens

    def __post_init__(self):
        import torch
        with torch.inference_mode():
            self.spec = self.encoder.frontend(self.wave, rate=self.rate)
            self.grid = tuple(self.encoder.grid(self.spec, rate=self.rate)[0].shape[1:3])

    @property
    def config(self):
        """The encoder's settings at the clip's sample rate."""
        return self.encoder.config.at_rate(self.rate)

    @property
    def hears_waves(self):
        return self.config.frontend == "wave"

    def identity(self):
        """What the run was trained with, from its config.json."""
        return json.loads((self.run / "config.json").read_text())["identity"] if self.run else {}

    def draw(self, ax):
        """The spectrogram as the encoder gets it; an encoder of raw waves gets none, so one for people."""
        if self.hears_waves:
            figures.power_image(ax, self.wave[0].numpy(), self.config.sample_rate, self.start)
        else:
            self.draw_spectrogram(ax, self.spec[0].numpy())

    def draw_spectrogram(self, ax, spec):
        """One like the clip's own (F, T), in its shades of grey."""
        figures.mel_image(ax, spec, self.config, self.start, vmin=float(self.spec.min()), vmax=float(self.spec.max()))

    def draw_tokens(self, ax, values, **looks):
        """values (T', F') or colours (T', F', 4) of each token in its place; of overlapping patches in the middle."""
        c, (columns, rows) = self.config, self.grid
        left, low = self.start + (c.patch[1] - c.stride[1]) / 2 * c.hop, (c.patch[0] - c.stride[0]) / 2 - 0.5
        below, above = (0, c.sample_rate / 2000) if self.hears_waves else (low, low + rows * c.stride[0])
        image = ax.imshow(np.swapaxes(values, 0, 1), origin="lower", aspect="auto",
                          extent=(left, left + columns * c.stride[1] * c.hop, below, above), **looks)
        if self.hears_waves:
            ax.set_ylabel("frequency (kHz)")
        else:
            figures.kilohertz(ax, c)
        return image

    def paint(self, patches):
        """Put patches back in their places: (T', F', P), P pixels ordered (band, frame) -> (F, T); where patches
        overlap, their mean; where there are none, 0."""
        import torch
        from torch.nn.functional import fold
        c, patches = self.config, torch.as_tensor(patches, dtype=torch.float32)
        size = [(n - 1) * step + side for n, step, side in zip(self.grid[::-1], c.stride, c.patch)]

        def folded(x):
            return fold(x.permute(2, 1, 0).flatten(1)[None], size, c.patch, stride=c.stride)[0, 0]
        image = folded(patches) / folded(torch.ones_like(patches)).clamp(min=1)
        out = torch.zeros([max(pair) for pair in zip(size, self.spec.shape[1:])])
        out[:size[0], :size[1]] = image
        return out[:self.spec.shape[1], :self.spec.shape[2]].numpy()


def open_clip(args, path):
    """The clip of a recording from --start, or of the demo, before the encoder of --checkpoint or the newest run."""
    import torch

    from wren.sound import audio
    from model import load_encoder
    from wren.formats import newest_encoder
    if args.checkpoint and len(args.checkpoint) > 1:
        raise UserError("--checkpoint: this figure shows one encoder, name one")
    source = Path(args.checkpoint[0]) if args.checkpoint else newest_encoder("runs").parent
    torch.manual_seed(args.seed)
    encoder = load_encoder(source, args.format)
    folder = source if source.is_dir() else source.parent
    run = folder if (folder / "config.json").exists() and (folder / "encoder.pt").exists() else None
    path = path or lively_clip(args, encoder.config.clip_seconds, run)
    wave, rate = read_part(path, args.start, encoder.config.clip_seconds)
    config = encoder.config.at_rate(encoder.config.heard_rate(rate))
    wave = audio.resample(wave, rate, config.sample_rate)[:config.clip_samples]
    return Clip(encoder, run, str(source), Path(path).name, args.start, torch.from_numpy(wave)[None],
                config.sample_rate)


def read_part(path, start, seconds):
    """(wave (S,), rate in Hz) of a recording from `start`, at most `seconds`."""
    from wren.sound import audio
    with audio.Sound(path) as sound:
        first = round(start * sound.rate)
        if not 0 <= first < sound.frames:
            raise UserError(f"--start {start:g}: {path} is {sound.frames / sound.rate:.1f} s long")
        return sound.read(first, min(round(seconds * sound.rate), sound.frames - first)), sound.rate


def lively_clip(args, seconds, run=None):
    """The liveliest of the first 20 clips of what the run was trained on, or of the task where --data names another
    folder or there is no run (the demo's species by default); a long one if possible."""
    from wren.sound import audio, demo
    from wren.sound.opening import open_manifest
    from wren.tasks import load_task
    source = json.loads((run / "config.json").read_text())["data"]["source"] if run else DEMO
    if args.data == DEMO and source != DEMO:
        if not Path(source).exists():
            raise UserError(f"{run} was trained on {source}, which is not here: name a recording after --masks, or a "
                            "task with --data and --task")
        rows = open_manifest(source)
    else:
        if args.data == DEMO:
            demo.ensure(DEMO)
        rows = load_task(args.task, root=args.data).splits[args.split].rows

    def lively(path):
        """Whether it is long enough, and how much its level changes."""
        with audio.Sound(path) as sound:
            wave, size = sound.read(), max(1, sound.rate // 32)
        level = np.log(np.square(wave[:len(wave) // size * size].reshape(-1, size)).mean(1) + 1e-12)
        return len(wave) >= seconds * sound.rate, level.std() if len(level) else 0.0
    return max((rows.locate(i) for i in range(min(20, len(rows)))), key=lively)


# -------------------------------------------------------------------------------------------------------- masks

def reconstruct(clip, mask):
    """What the head of the pre-training objective paints in hidden patches: mask (1, T', F') -> (T', F', P), or None
    if there is no such head. The objective's state comes from the run's newest checkpoint or from a published file.

    SSAST's head paints pixels. A masked autoencoder's paints patches of mean 0 and variance 1, so each gets the mean
    and deviation that it has in truth; its shape is what is painted.
    """
    import torch

    from wren.objectives import MAE, SSAST
    from wren.training.checkpoints import load_checkpoint
    encoder, identity = clip.encoder, clip.identity()
    state = (load_checkpoint(clip.run) or {}) if clip.run else encoder.heads
    state = {} if clip.hears_waves else state.get("objective", {})
    if "reconstruct.0.weight" in state and identity.get("loss") != "nce":
        objective = SSAST(encoder)
    elif "predict.weight" in state and "mask_token" in state:
        depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
        objective = MAE(encoder, decoder_dim=len(state["mask_token"]), decoder_depth=depth,
                        decoder_heads=identity.get("decoder_heads") or 16,
                        var_floor=identity.get("var_floor") or 1e-6)
    else:
        return None
    if not any(k.startswith("encoder.") for k in state):  # a published file's heads come apart from its encoder
        state = {**objective.state_dict(), **state}
    objective.load_state_dict(state)
    objective.eval()
    with torch.inference_mode():
        if isinstance(objective, SSAST):
            tokens = encoder.tokens(clip.spec, mask, rate=clip.rate)[0, clip.config.specials:]
            return objective.reconstruct(tokens).unflatten(0, clip.grid)
        patches = encoder.patches(clip.spec, clip.rate)[0]  # (T', F', P)
        tokens = encoder.tokens(clip.spec, mask, visible_only=True, rate=clip.rate)[:, clip.config.specials:]
        guess = objective.decode(tokens, mask, layout=clip.config)[0].view_as(patches)
        return guess * (patches.var(2, keepdim=True) + objective.var_floor).sqrt() + patches.mean(2, keepdim=True)


def plot_masks(args):
    """One clip: its spectrogram, what each mask hides, and what the generative head makes of the rest."""
    import torch

    from wren.objectives import MASKS
    clip = open_clip(args, args.masks)
    identity, config = clip.identity(), clip.config
    share, trained_with = identity.get("hidden") or 400 / 512, identity.get("masking") or "patch"
    columns = None if clip.grid[0] == config.grid[0] else torch.tensor([clip.grid[0]])
    masks = {}
    for kind, mask in MASKS.items():
        try:
            hidden = mask(torch.tensor([args.seed]), config.grid, share, columns)
        except ValueError:  # this mask can't hide so many, or knows no short clips
            continue
        masks[kind] = hidden[:, :clip.grid[0]]  # (1, T', F')
    painted, text, about = None, "", {}
    if trained_with in masks and (guess := reconstruct(clip, masks[trained_with])) is not None:
        hidden, patches = masks[trained_with][0], clip.encoder.patches(clip.spec, clip.rate)[0]
        about = {"reconstruction_error": float((guess - patches)[hidden].square().mean()),
                 "error_of_visible_mean": float((patches[~hidden].mean() - patches)[hidden].square().mean())}
        painted = clip.paint(torch.where(hidden[..., None], guess, patches))
        given = " (given the true mean and deviation of each patch)" * bool(identity.get("decoder_heads"))
        text = (f" Last: what the pre-training head of {Path(clip.source).name} paints under the {trained_with} "
                f"mask{given}; mean squared error {about['reconstruction_error']:.3f}, with the visible patches' mean "
                f"instead {about['error_of_visible_mean']:.3f}.")
    caption = (f"{clip.name}: spectrogram (darker: more energy) and what each mask hides (blue) of its "
               f"{clip.grid[0]} × {clip.grid[1]} tokens (time × frequency).{text}")

    def draw(width):
        count = 1 + len(masks) + (painted is not None)
        figure, axes = figures.panels(width, count, 1.15, caption, sharex=True, sharey=True)
        for ax, kind in zip(axes, ["the clip", *masks]):
            clip.draw(ax)
            ax.set_title(kind)
            if kind in masks:
                veil = np.broadcast_to(to_rgba(VEIL), (*clip.grid, 4)).copy()
                veil[..., 3] = 0.85 * masks[kind][0].numpy()
                ax.autoscale(False)
                clip.draw_tokens(ax, veil)
                ax.set_title(f"{kind}: {int(masks[kind].sum())} of {masks[kind].numel()}")
        if painted is not None:
            clip.draw_spectrogram(axes[-1], painted)
            axes[-1].set_title("reconstruction")
        for ax in axes:
            ax.set_xlabel("time (s)")
            ax.label_outer()
        return figure
    table = [{"mask": kind, "column": t, "row": f, "hidden": int(mask[0, t, f])} for kind, mask in masks.items()
             for t in range(clip.grid[0]) for f in range(clip.grid[1])]
    about |= {"clip": clip.name, "start": args.start, "seed": args.seed, "hidden": share, "masks": list(masks)}
    return "masks", draw, caption, table, about


# ------------------------------------------------------------------------------------------------------- events

def find_recording(args, read):
    """The recording that is shown: --recording, or the first that a table names, beside it, below --data or here; of
    several one that a table of annotations is called like, if there is one. read: [(table, its events)]."""
    if args.recording:
        return Path(args.recording)
    called = {stem for table in tables(args.annotations) for stem in stems(table)} if args.annotations else ()
    named = [(table, e.file) for table, events in read for e in events if e.file]
    if not named:
        raise UserError(f"{', '.join(str(table) for table, _ in read[:3])} name no recording: give the sound with "
                        "--recording")
    table, file = next((pair for pair in named if Path(pair[1]).stem in called), named[0])
    found = next((p for p in (table.parent / file, Path(args.data) / file, Path(file)) if p.exists()), None)
    if found is None:
        raise UserError(f"{table} names {file}, which is neither beside it nor below {args.data}: give the sound with "
                        "--recording")
    return found


def is_of(event, table, path, alone):
    """Whether a table's event lies in a recording: the table names it, or names none and is the only one, or is
    called like it."""
    if event.file:
        return re.split(r"[\\/]", event.file)[-1] == path.name
    return alone or path.stem in stems(table)


def plot_events(args):
    """A recording with what was detected over what was annotated."""
    given = [place for place in (args.events, args.annotations) if place]
    label = None if args.label == "species" else args.label
    read = {place: [(table, read_annotations(table, label)) for table in tables(place)] for place in given}
    path = find_recording(args, [pair for pairs in read.values() for pair in pairs])
    wave, rate = read_part(path, args.start, args.seconds)
    end = args.start + len(wave) / rate
    shown = {place: [e for table, events in pairs for e in events if is_of(e, table, path, table == Path(place))
                     and e.start < end and e.end > args.start] for place, pairs in read.items()}
    detected, annotated = shown[args.events], shown.get(args.annotations, [])
    labels = sorted({e.label for some in shown.values() for e in some})
    if not labels:
        raise UserError(f"{', '.join(given)}: no events of {path.name} from {args.start:g} to {end:g} s")
    scored = any(e.score is not None for e in detected)
    caption = (f"{path.name}: spectrogram (dB above each frequency's median) with {len(detected)} detections (dark "
               f"bars{', as dark as they are sure' * scored})" +
               (f" over {len(annotated)} annotations (light bars)." if args.annotations else "."))

    def draw(width):
        lanes = max(0.35, figures.LINE * 1.3 * len(labels))
        figure, body = figures.page(width, 1.7 + 0.4 + lanes, caption)
        top, low = body.subplots(2, 1, sharex=True, height_ratios=(1.7, lanes))
        figures.power_image(top, wave, rate, args.start)
        for k, label in enumerate(labels):
            color = figures.look(k)["color"]
            for some, height, alpha in ((annotated, 0.8, 0.35), (detected, 0.4, 1.0)):
                for e in (e for e in some if e.label == label):
                    sure = alpha if e.score is None or some is annotated else 0.1 + 0.9 * min(1, max(0, e.score))
                    low.broken_barh([(e.start, e.end - e.start)], (k - height / 2, height), color=color, alpha=sure,
                                    linewidth=0)
                    if e.low is not None and e.high is not None and some is detected:
                        top.fill_between((e.start, e.end), e.low / 1000, e.high / 1000, facecolor="none",
                                         edgecolor=color, linewidth=0.8, alpha=sure)
        low.set_yticks(range(len(labels)), [figures.shortened(label, 16) for label in labels])
        low.set_ylim(len(labels) - 0.4, -0.6)
        low.set_xlim(args.start, end)
        low.set_xlabel("time (s)")
        return figure
    table = [{"kind": kind, "label": e.label, "start_s": e.start, "end_s": e.end, "score": e.score, "low_hz": e.low,
              "high_hz": e.high} for kind, some in (("detected", detected), ("annotated", annotated)) for e in some]
    return "events", draw, caption, table, {"recording": str(path), "start": args.start, "seconds": len(wave) / rate}
