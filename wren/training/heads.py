"""An encoder with a head: clip scores, frame scores, the supervised loss, and the file that holds both.

    model = load("runs/NAME/finetune/TASK/finetuned.pt")
    model.scores(wave, lengths)                    # wave (B, S) -> probabilities (B, C) of model.labels
    model.frame_scores(wave, lengths)              # -> (B, T', C), one every model.frame_seconds
"""
from math import ceil, pi

import torch
import torch.nn.functional as F
from torch import nn

from wren import formats
from wren.tasks.augment import drop_patches, mask_spectrogram
from wren.cli import UserError
from masking import uniform
from model import VERSION, Encoder, load_exactly, write_atomically
from wren.nets.lengths import Encoded, valid_until
from wren.nets.transformer import Mlp
from wren.objectives.common import scattered
from wren.recipes.arithmetic import forward_flops

_QUERIES = 51  # stream of a clip's seed; augment.py has 41 to 46


class Head(nn.Module):
    """LayerNorm (eps 1e-5, SSAST's; some published heads have none, eps None) and a linear layer."""

    def __init__(self, width, classes, eps=1e-5):
        super().__init__()
        self.norm = nn.Identity() if eps is None else nn.LayerNorm(width, eps)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        return self.linear(self.norm(x))


class QueryHead(nn.Module):
    """Scores at any times: each is a query that attends to the tokens around it (Perceiver IO's decoder, made local).

    Of its own time a query knows only how far it lies from each token column, as sines and cosines of these seconds.
    They are what it asks a column's key, and they scale what the column answers, so that a column can say when within
    its span something begins. So scores depend neither on where a window was cut nor on how much is heard.

    rows: tokens of a column; step: seconds from one column to the next; reach: seconds that a query sees either way, as
    2 to 16 columns.
    """

    def __init__(self, dim, rows, classes, step, width=128, heads=4, reach=0.4, waves=24):
        super().__init__()
        self.near = min(16, max(2, ceil(reach / step)))  # columns either way
        length = 4 * reach * (0.02 / (4 * reach)) ** torch.linspace(0, 1, waves)  # of waves, 4 · reach to 20 ms
        self.register_buffer("omega", 2 * pi / length, persistent=False)
        self.norm, self.key = nn.LayerNorm(dim), nn.Linear(rows * dim, heads * 2 * waves)
        self.value, self.gate = nn.Linear(rows * dim, width), nn.Linear(2 * waves, width)
        self.mlp_norm, self.mlp, self.out = nn.LayerNorm(width), Mlp(width, 2 * width), Head(width, classes)

    def forward(self, tokens, token_times, times, keep=None):
        """tokens (B, T', F', D), token_times (T',) ascending and times (B, Q) in s, keep (B, T') bool: columns that
        may be attended, None: all -> logits (B, Q, C), whatever Q."""
        columns = self.norm(tokens).flatten(2)
        keep = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if keep is None else keep
        parts = times.split(max(1, (1 << 16) // (len(tokens) * 2 * self.near)), 1)  # bounds the memory
        key, value = self.key(columns), self.value(columns)
        return torch.cat([self._attend(key, value, token_times, part, keep) for part in parts], 1)

    def _attend(self, key, value, token_times, times, keep):
        clip = torch.arange(len(key), device=key.device)[:, None, None]
        column = torch.searchsorted(token_times, times.contiguous())[..., None]
        column = column + torch.arange(-self.near, self.near, device=key.device)  # (B, Q, K)
        inside = (column >= 0) & (column < len(token_times))
        column = column.clamp(0, len(token_times) - 1)
        phase = (times[..., None] - token_times[column])[..., None] * self.omega
        apart = torch.cat([phase.sin(), phase.cos()], -1)  # (B, Q, K, 2 · waves)
        match = key[clip, column].unflatten(-1, (-1, apart.shape[-1])) @ apart[..., None] * apart.shape[-1] ** -0.5
        hidden = ~(inside & keep[clip, column])[..., None]
        share = match[..., 0].float().masked_fill(hidden, torch.finfo(torch.float32).min).softmax(2)  # (B, Q, K, H)
        answer = (value[clip, column] * self.gate(apart)).unflatten(-1, (share.shape[-1], -1))
        x = (answer * share[..., None]).sum(2).flatten(2)  # (B, Q, W)
        return self.out(x + self.mlp(self.mlp_norm(x)))


class FineTuned(nn.Module):
    """Encoder, a head on the clip vector and, of kind "frames", one on each frame (patch tokens averaged over mel); of
    kind "query" a `QueryHead`, whose frames are `resolution` seconds long.

    What is pooled is the encoder's business (config.pool); clips longer than its training length are cut into
    windows, whose features are joined before the head. activation: softmax where classes exclude each other, else
    sigmoid.
    thresholds: one a class, or None; of a detector they are those of its frame scores, above which an event lasts at
    least minimum_seconds. window_seconds, hop_seconds: what it was trained on. valid, chance: its validation score and
    what chance scores there; None: not known.
    """
    SAVED = ("kind", "labels", "thresholds", "activation", "window_seconds", "hop_seconds", "minimum_seconds",
             "resolution", "valid", "chance")

    def __init__(self, encoder, labels, activation, kind="linear", thresholds=None, window_seconds=None,
                 hop_seconds=None, minimum_seconds=0.0, resolution=None):
        super().__init__()
        self.encoder, self.labels, self.activation, self.kind = encoder, list(labels), activation, kind
        self.thresholds, self.window_seconds, self.hop_seconds = thresholds, window_seconds, hop_seconds
        self.minimum_seconds, self.resolution, self.valid, self.chance = minimum_seconds, resolution, None, None
        c, classes = encoder.config, len(self.labels)
        self.head, self.frame_head = Head(c.width, classes), None
        if kind == "frames":
            self.frame_head = Head(c.dim, classes)
        if kind == "query":
            self.frame_head = QueryHead(c.dim, c.grid[1], classes, c.stride[1] * c.hop)

    def train(self, mode=True):
        """What is frozen stays in eval mode: no running statistics, no drop path."""
        super().train(mode)
        for module in self.encoder.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        return self

    @property
    def frame_seconds(self):
        """Time from one frame score to the next."""
        return self.resolution or self.encoder.config.stride[1] * self.encoder.config.hop

    def frame_counts(self, wave, lengths=None, rate=None):
        """wave (B, S), lengths (B,) -> (B,) int64: how many frames of `resolution` it takes to reach a clip's end."""
        samples = torch.full((len(wave),), wave.shape[1], device=wave.device) if lengths is None else lengths
        frames = samples.double() / ((rate or self.encoder.config.sample_rate) * self.resolution)
        return (frames - 1e-6).ceil().long().clamp(min=1)

    def forward(self, wave, lengths=None, seeds=None, masks=None, patch_drop=0.0, queries=None, rate=None,
                streams=None):
        """wave (B, S), lengths (B,) -> logits (B, C), frame logits (B, T', C), valid frames (B,).

        seeds (B,) int64 with masks (arguments of `mask_spectrogram`) and patch_drop: the window that the encoder sees
        is masked; when patches are dropped there are no frame logits (None). queries (B, Q) int64: the frames that a
        query head is asked about, T' = Q of them (default: all).
        """
        encoder = self.encoder
        windows = encoder.cut(wave, lengths, rate, streams)
        seeds = None if seeds is None else seeds[windows.clip] ^ windows.place
        if seeds is not None and masks:
            frames = windows.spec.shape[2]
            valid = torch.full_like(windows.clip, frames) if windows.extent is None else windows.extent
            windows.spec = mask_spectrogram(windows.spec, valid.clamp(max=frames), seeds, **masks)
        if seeds is not None and patch_drop:
            encoded = self._of_the_rest(windows, rate, seeds, patch_drop)
            return self.head(encoder.pool(encoded)).float(), None, windows.total(encoded.columns)
        encoded = encoder.encode_windows(windows, rate=rate)
        pooled = encoder.pool(encoded)
        logits = self.head(pooled).float()
        if self.kind == "query":
            total = self.frame_counts(wave, lengths, rate)
            if queries is None:
                queries = torch.arange(int(total.max()), device=wave.device).expand(len(wave), -1)
            return logits, self._answers(encoded, queries, encoder.config.at_rate(rate)), total
        return logits, self._frame_logits(encoded, pooled).float(), windows.total(encoded.columns)

    def _answers(self, encoded, queries, layout):
        """Frame logits (B, Q, C) of a query head; a token column's time is its middle's, window after window."""
        columns = encoded.valid.shape[1]
        keep = encoded.windows.joined(valid_until(encoded.columns, columns))
        k = torch.arange(keep.shape[1], device=keep.device)
        begin = k // columns * (layout.chunk_samples / layout.sample_rate)
        token_times = begin + (k % columns * layout.stride[1] + layout.patch[1] / 2) * layout.hop
        return self.frame_head(self._rows(encoded), token_times, (queries + 0.5) * self.resolution, keep).float()

    def _rows(self, encoded):
        """The clips' grids (B, T', F', D), with zeros where nothing is valid and for rows that this sample rate
        lacks."""
        c, tokens = self.encoder.config, encoded.grid * encoded.valid[..., None]
        sound, rest = tokens.tensor_split([tokens.shape[2] - len(c.streams)], 2)
        lacking = sound.new_zeros(*sound.shape[:2], c.grid[1] - tokens.shape[2], sound.shape[3])
        return encoded.windows.joined(torch.cat([sound, lacking, rest], 2))

    def _of_the_rest(self, windows, rate, seeds, share):
        """`Encoded` windows from which a share of the columns and rows of patches is dropped."""
        encoder, specials = self.encoder, self.encoder.config.specials
        grid, valid = encoder.grid_of(windows, rate)
        columns = encoder.config.at_rate(rate).valid_columns(windows.extent)
        columns = torch.full((len(grid),), grid.shape[1], device=grid.device) if columns is None else columns
        hidden = drop_patches(seeds, tuple(grid.shape[1:3]), share, columns)
        tokens = encoder.contextual(grid, valid, hidden, visible_only=True, rate=rate)
        visible = ~hidden if valid is None else ~hidden & valid
        back = scattered(tokens[:, specials:], visible.flatten(1), tokens.new_zeros(()))
        return Encoded(windows, torch.cat([tokens[:, :specials], back], 1), visible, columns)

    def _frame_logits(self, encoded, pooled):
        """-> (B, T', C); without a head of its own a frame goes through the clip's, as a clip of one column."""
        frames, c = encoded.frames(), self.encoder.config
        if self.frame_head is not None:
            return self.frame_head(frames)
        if c.pool == "both":
            frames = torch.cat([pooled[:, None, :c.dim].expand(-1, frames.shape[1], -1), frames], 2)
        if c.pool == "rows":
            frames = self._rows(encoded)[:, :frames.shape[1]].flatten(2)
        frames = F.pad(frames, (0, c.width - frames.shape[2]))  # no deviation; no stream says anything of a frame
        return self.head(frames)

    def probabilities(self, logits):
        return logits.softmax(-1) if self.activation == "softmax" else logits.sigmoid()

    def scores(self, wave, lengths=None, rate=None, streams=None):
        """wave (B, S) in [-1, 1] at encoder.config.sample_rate (or `rate`), lengths (B,) -> probabilities (B, C)."""
        return self.probabilities(self(wave, lengths, rate=rate, streams=streams)[0])

    def frame_scores(self, wave, lengths=None, rate=None, streams=None):
        """wave (B, S), lengths (B,) -> probabilities (B, T', C), 0 beyond a clip's end; frame t covers the seconds
        t · frame_seconds to (t + 1) · frame_seconds."""
        _, frames, columns = self(wave, lengths, rate=rate, streams=streams)
        return self.probabilities(frames) * valid_until(columns, frames.shape[1])[..., None]


# ------------------------------------------------------------------------------------------------------------ loss

def focal_loss(logits, target, alpha=0.25, gamma=2.0):
    """Sigmoid focal loss (Lin et al. 2017) for soft targets, element by element: gamma weighs by how far off a score
    is, alpha by the class's side. animal2vec's values."""
    weight = (target - logits.sigmoid()).abs() ** gamma * (alpha * target + (1 - alpha) * (1 - target))
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def clip_loss(logits, target, kind="ce", smoothing=0.0):
    """logits (…, C), target (…, C) in [0, 1] -> (…): the mean over classes of binary cross entropy or of focal loss;
    or, of a distribution (B, C), cross entropy, the only one with smoothing."""
    if kind == "ce":
        return F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
    if kind == "focal":
        return focal_loss(logits, target).mean(-1)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1)


class Supervised(nn.Module):
    """The objective of fine-tuning: loss of the clip and, of kind "frames", of each valid frame; of kind "query", of
    `queries` frames that a clip's seed draws, one in each part of the clip. Means over clips."""
    takes = ("wave", "lengths", "seed", "target", "frames")  # of a batch, in this order

    def __init__(self, model, loss="ce", smoothing=0.0, masks=None, patch_drop=0.0, queries=64):
        super().__init__()
        self.model, self.loss, self.smoothing, self.masks, self.patch_drop = model, loss, smoothing, masks, patch_drop
        self.queries = queries

    @property
    def encoder(self):
        return self.model.encoder

    def flops(self):
        return 3 * forward_flops(self.encoder.config)

    def forward(self, wave, lengths, seeds, target, frames=None, rate=None, streams=None):
        """wave (B, S), lengths (B,) or None, seeds (B,), target (B, C), frames (B, T, C) -> (loss, metrics)."""
        at = None
        if self.model.kind == "query" and seeds is not None:
            parts = torch.arange(self.queries, device=wave.device) + uniform(seeds, self.queries, _QUERIES).double()
            at = (parts / self.queries * self.model.frame_counts(wave, lengths, rate)[:, None]).long()
        logits, frame_logits, columns = self.model(wave, lengths, seeds, self.masks, self.patch_drop, at, rate, streams)
        with torch.autocast(wave.device.type, enabled=False):
            loss = clip_loss(logits, target, self.loss, self.smoothing).mean()
            metrics = {"clip_loss": loss}
            if frames is not None:
                n = frame_logits.shape[1]
                if at is not None:
                    at = at.clamp(max=frames.shape[1] - 1)[..., None].expand(-1, -1, frames.shape[2])
                    frames, columns = frames.gather(1, at), at.new_full((), n)
                frames = F.pad(frames, (0, 0, 0, max(0, n - frames.shape[1])))[:, :n]
                each = clip_loss(frame_logits, frames, self.loss)
                keep = torch.arange(n, device=wave.device) < columns[..., None]
                metrics["frame_loss"] = ((each * keep).sum(1) / columns).mean()
                loss = loss + metrics["frame_loss"]
        return loss, metrics | {"loss": loss, "count": loss.new_full((), len(wave))}


# ---------------------------------------------------------------------------------------------- loading and saving

def save(model, path):
    """Write a fine-tuned model as plain types; `model.load_encoder` opens the same file for its encoder alone."""
    state = {k: v.detach().cpu() for k, v in model.state_dict().items()}
    encoder = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    head = {"state": {k: v for k, v in state.items() if not k.startswith("encoder.")}}
    head |= {name: getattr(model, name) for name in FineTuned.SAVED}
    write_atomically({"version": VERSION, "config": model.encoder.config.to_dict(), "model": encoder, "head": head},
                     path)


def load(path, format=None):
    """The `FineTuned` model of a file that `save` wrote, or of a published fine-tuned one (AST, SSAST, EAT, AudioMAE,
    animal2vec), in eval mode. Published scores are sigmoids, as AudioSet's are; classes without names are numbered."""
    content = formats.open_file(path)
    saved = content.get("head") if isinstance(content, dict) else None
    own = isinstance(saved, dict)
    found = formats.read(path, None if own else format)
    encoder, head = Encoder(found.config), found.heads.get("head") or found.heads.get("frames")
    if own:
        model = FineTuned(encoder, saved["labels"], saved["activation"], saved["kind"], resolution=saved["resolution"])
        vars(model).update({name: saved[name] for name in FineTuned.SAVED})
        state = saved["state"]
    elif head is None:
        raise UserError(f"{path}: holds no head, so it can't score; give a finetuned.pt that finetune.py wrote, or a "
                        "published fine-tuned file")
    else:
        classes, width = head["linear.weight"].shape
        model = FineTuned(encoder, found.labels or [f"class {k}" for k in range(classes)], "sigmoid")
        model.head = Head(width, classes, float(head["norm.eps"]) if "norm.eps" in head else None)
        state = {f"head.{k}": v for k, v in head.items() if k != "norm.eps"}
    load_exactly(model, state | {f"encoder.{k}": v for k, v in found.state.items()}, path)
    return model.eval()
