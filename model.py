"""The encoder: wave -> spectrogram -> grid of tokens -> transformer, for every recipe and every published checkpoint.

    wave [B, S] ─frontend─> spec [B, F, T] ─grid─> tokens [B, T', F', D] and which are valid [B, T', F']
                ─contextual─> [B, K + T'·F', D], specials first, then time-major (token K + t·F' + f) ─pool─> [B, D']

    encoder = load_encoder("encoder.pt")           # a file, a run folder, a preset's name or a published checkpoint
    embedding = encoder(wave)                      # wave [B, S] in [-1, 1] at encoder.config.sample_rate -> [B, D']

Front ends, embeddings, positions and blocks are in wren/nets, published layouts in wren/formats, the settings in
wren/recipes/encoder.py. In every signature lengths (B,) int64 are the valid samples of each wave, None: all; rate is
that of the waves in Hz, None: the config's own; streams were recorded beside them (nets.embeddings.StreamEmbed).
"""
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from wren import formats
from wren.cli import UserError
from wren.formats.ours import VERSION
from wren.nets.batchnorm import InputNorm
from wren.nets.embeddings import PatchEmbed, StreamEmbed
from wren.nets.lengths import Encoded, Windows, cut, cut_along, valid_until
from wren.nets.positions import POSITIONS, alibi_bias, small_normal
from wren.nets.spectrograms import Frontend
from wren.nets.transformer import Block, initialise, stochastic_depth
from wren.nets.wave import WaveEmbed
from wren.recipes import PRESETS, EncoderConfig

__all__ = ["PRESETS", "Encoder", "EncoderConfig", "load_encoder", "save_encoder"]


class Encoder(nn.Module):
    """One encoder for all recipes; `config` says everything needed to use it (see recipes.EncoderConfig)."""

    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.checkpoint_activations = False
        self.heads = {}  # published heads that came with the weights, {name: {key: tensor}}; see head_outputs
        self.frontend = Frontend(c)
        if c.input_norm:
            self.input_norm = InputNorm(c.n_mels)
        self.patch = WaveEmbed(c) if c.frontend == "wave" else PatchEmbed(c)
        if c.streams:
            self.streams = StreamEmbed(c)
        if c.mask_token:
            self.mask_token = nn.Parameter(torch.randn(c.dim) * c.dim ** -0.5)
        self.positions = POSITIONS[c.positions](c)
        if c.specials:
            self.specials = small_normal(c.specials, c.dim)
        if c.alibi:
            self.alibi_scale = nn.Parameter(torch.ones(c.heads))
        if c.norm == "post":
            self.token_norm = nn.LayerNorm(c.dim, eps=c.eps)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim, eps=c.eps) if c.norm == "pre" and c.final_norm else nn.Identity()
        self.pool_norm = nn.LayerNorm(c.dim, eps=c.eps) if c.pool_norm else nn.Identity()
        initialise(self.blocks, c.init)

    # ------------------------------------------------------------------------------------ from spectrogram to tokens

    def tokens(self, spec, mask=None, lengths=None, visible_only=False, depth=None, rate=None, streams=None):
        """spec (B, F, T) -> normed tokens (B, K + N, D): K special tokens, then N = T'·F' patch tokens, time-major.

        mask (B, T', F') bool: hidden tokens are replaced by the mask token before positions are added (SSAST), or,
        with `visible_only`, left out (MAE); then N is the largest number of visible tokens of a clip, in order, and
        clips with fewer are filled up with tokens that nobody attends. A mask of B·C rows encodes each clip C times,
        rows b·C … b·C + C - 1, and embeds its patches once (data2vec 2.0's clones). Columns beyond `lengths` are never
        attended. depth: run only the first blocks.
        """
        x, valid = self.grid(spec, lengths, rate, streams)
        return self.contextual(x, valid, mask, visible_only, depth, rate)

    def grid(self, spec, lengths=None, rate=None, streams=None):
        """spec (B, F, T) -> what a token is before position and context: x (B, T', F', D), and which are valid, bool
        (B, T', F') or None (all): neither padding, nor a stream's gap."""
        layout = self.config.at_rate(rate)
        return self._grid(spec, layout.extent(lengths), layout, streams)

    def _grid(self, spec, extent, layout, streams):
        """extent (B,): valid frames (or samples of a raw wave), None: all."""
        c, spec = self.config, spec.to(next(self.blocks.parameters(), spec).dtype)
        if c.frontend == "wave":
            x = self.patch(spec, extent, layout.sample_rate)[:, :, None]
        else:
            x = self.patch(self.input_norm(spec, extent) if c.input_norm else spec, layout)
        columns, most = layout.valid_columns(extent), max(layout.grid[0], layout.columns(layout.chunk_frames))
        valid = None if columns is None else valid_until(columns, x.shape[1])[..., None].expand(x.shape[:3])
        if c.streams:
            x, valid = self._with_streams(x, valid, streams)
        if x.shape[1] > most or x.shape[2] != layout.grid[1]:
            raise ValueError(f"spectrogram of {tuple(spec.shape[1:])} gives {x.shape[1]} × {x.shape[2]} tokens, the "
                             f"encoder's training length {most} × {layout.grid[1]}: cut it into windows, or load with "
                             "frames=…")
        return x, valid

    def _with_streams(self, x, valid, streams):
        """A row of tokens more for each stream; config.inputs says what of sound and streams is valid."""
        pixels, known = self.streams.pixels(streams, x.shape[0], x.shape[1])
        valid = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device) if valid is None else valid
        known = known & valid[:, :, :1] if self.config.inputs != "sound" else torch.zeros_like(known)
        valid = valid if self.config.inputs != "streams" else torch.zeros_like(valid)
        return torch.cat([x, self.streams(pixels)], 2), torch.cat([valid, known], 2)

    def patches(self, spec, rate=None, streams=None):
        """spec (B, F, T) -> the pixels of each patch, which SSAST and MAE predict: (B, T', F', P), ordered (mel band,
        frame) within a patch."""
        pixels = self.patch.pixels(spec, self.config.at_rate(rate))
        if not self.config.streams:
            return pixels
        return torch.cat([pixels, self.streams.pixels(streams, pixels.shape[0], pixels.shape[1])[0]], 2)

    def valid_pixels(self, rate=None):
        """Which pixels of a patch hold something: None, all, or (frontend "octave": bands below the Nyquist frequency,
        values of streams) bool (F', P)."""
        valid = self.patch.valid_pixels(self.config.at_rate(rate))
        return valid if not self.config.streams else torch.cat([valid, self.streams.valid_pixels()])

    # ---------------------------------------------------------------------------------------------------- the blocks

    def contextual(self, x, valid=None, mask=None, visible_only=False, depth=None, rate=None, most=None):
        """A grid (B, T', F', D) and its valid tokens -> tokens (B, K + N, D); see `tokens`. most: how many tokens a
        full clip shows, where that is known, so that a GPU need not be asked."""
        return self._run(*self._enter(x, valid, mask, visible_only, rate, most), depth)[0]

    def ffn_outputs(self, x, valid=None, rate=None):
        """A grid (B, T', F', D) -> the feed-forward output of each block after the prenet, a list of (B, K + N, D):
        what EAT's and animal2vec's teachers are asked for."""
        return self._run(*self._enter(x, valid, None, False, rate), collect=True)[1]

    def _enter(self, x, valid, mask, visible_only, rate, most=None):
        """What enters the blocks: tokens (B, K + N, D), and what may be attended (see Attention) or None."""
        c, layout = self.config, self.config.at_rate(rate)
        clones = 1 if mask is None else mask.shape[0] // x.shape[0]
        if clones > 1:
            x, valid = (None if part is None else part.repeat_interleave(clones, dim=0) for part in (x, valid))
        if mask is not None and not visible_only:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        column = torch.arange(x.shape[1], device=x.device).repeat_interleave(x.shape[2])[None]  # (1, N)
        x = self.positions(x, layout, valid, mask if visible_only else None).flatten(1, 2)  # (B, N, D)
        attend = None if valid is None else valid.flatten(1)  # (B, N)
        if visible_only:
            x, attend, column = visible_tokens(x, mask.flatten(1), attend, column, most)
        if c.specials:
            specials = self.specials if self.positions.specials is None else self.specials + self.positions.specials
            x = torch.cat([specials.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
            attend = None if attend is None else F.pad(attend, (c.specials, 0), value=True)
        if c.norm == "post":
            x = self.token_norm(x)
        attend = None if attend is None else attend[:, None, None]
        if c.alibi:
            kind = x.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            attend = alibi_bias(column, self.alibi_scale, layout.alibi_unit, attend, dtype)
        return x, attend

    def _run(self, x, attend, depth=None, collect=False):
        """Blocks and final norm: (tokens, feed-forward outputs of the blocks after the prenet, if collected)."""
        c, outputs, scales = self.config, [], [None] * self.config.depth
        if c.drop_path and self.training:
            scales = stochastic_depth(c.drop_path, c.depth, x.shape[0], x.device)
        for i, (block, scale) in enumerate(zip(self.blocks[:depth], scales)):
            scale = scale if block.training else None
            if self.checkpoint_activations and torch.is_grad_enabled():
                x, out = checkpoint(block, x, attend, scale, use_reentrant=False, preserve_rng_state=False)
            else:
                x, out = block(x, attend, scale)
            if collect and i >= c.prenet:
                outputs.append(out)
        return self.norm(x), outputs

    # ------------------------------------------------------------------------------------- from waves to features

    def cut(self, wave, lengths=None, rate=None, streams=None):
        """Waves (B, S) of any length -> `Windows` of at most the training length (or of config.chunk).

        Waves are cut before the front end; but decibels have their floor and mirrored ends over the whole clip, as
        published, so there the spectrogram is cut.
        """
        check_batch(wave, lengths)
        c, batch = self.config.at_rate(rate), wave.shape[0]
        if c.frontend == "mel-db":
            least = c.patch[1] if c.pad == "published" else 1  # a shorter rest fills no token
            spec = self.frontend(wave, lengths, rate)
            spec, extent, clip, place = cut(spec, c.extent(lengths), c.chunk_frames, least)
        else:
            wave, lengths, clip, place = cut(wave, lengths, c.chunk_samples)
            spec, extent = self.frontend(wave, lengths, rate), c.extent(lengths)
        if streams:
            sizes = {name: n * c.columns(c.chunk_frames) for name, n, *_ in c.streams}
            streams = {name: cut_along(values, clip, place, sizes[name]) for name, values in streams.items()}
        return Windows(spec, extent, clip, place, batch, streams)

    def grid_of(self, windows, rate=None):
        """`grid` of windows."""
        return self._grid(windows.spec, windows.extent, self.config.at_rate(rate), windows.streams)

    def encode_windows(self, windows, depth=None, rate=None):
        """`Windows` -> `Encoded`: the tokens of each, or, with features "ffn", the mean of the blocks' feed-forward
        outputs."""
        c, layout = self.config, self.config.at_rate(rate)
        x, valid = self.grid_of(windows, rate)
        tokens, outputs = self._run(*self._enter(x, valid, None, False, rate), depth, collect=c.features == "ffn")
        tokens = torch.stack(outputs).mean(0) if outputs else tokens
        columns = layout.valid_columns(windows.extent)
        columns = torch.full((x.shape[0],), x.shape[1], device=x.device) if columns is None else columns
        valid = torch.ones(x.shape[:3], dtype=torch.bool, device=x.device) if valid is None else valid
        return Encoded(windows, tokens, valid, columns)

    def frames(self, wave, lengths=None, depth=None, rate=None, streams=None):
        """wave (B, S) of any length -> (B, T', D): patch tokens averaged over frequency, one each stride × hop s, 0
        beyond a clip's end."""
        return self.encode_windows(self.cut(wave, lengths, rate, streams), depth, rate).frames()

    def embed(self, wave, lengths=None, depth=None, rate=None, streams=None):
        """wave (B, S) of any length -> clip vectors (B, D'), as `pool` makes them."""
        return self.pool(self.encode_windows(self.cut(wave, lengths, rate, streams), depth, rate))

    def pool(self, encoded):
        """What `encode_windows` returns -> clip vectors (B, D'); see `clip_vectors`."""
        return self.pool_norm(clip_vectors(encoded, self.config))

    forward = embed


def visible_tokens(x, hidden, attend, column, most=None):
    """Gather the visible tokens of each clip, in order.

    x (B, N, D), hidden (B, N), attend (B, N) or None, column (1, N) -> those of the visible: x (B, V, D), attend (B, V)
    or None (all), column (B, V). most: V where it is known: full clips show so many, none shows more.
    """
    visible = ~hidden if attend is None else ~hidden & attend
    counts = visible.sum(1)
    if most is None or x.device.type == "cpu":  # asking a GPU would wait for it
        most = int(counts.max())
        attend = None if bool((counts == most).all()) else valid_until(counts, most)
    elif attend is not None:
        attend = valid_until(counts, most)
    index = (~visible).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
    x = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
    return x, attend, column.expand(x.shape[0], -1).gather(1, index)


def check_batch(wave, lengths):
    """Refuse what is no batch of waves: arrays, one wave alone, 16-bit integers, lengths in seconds."""
    if not (torch.is_tensor(wave) and wave.is_floating_point() and wave.dim() == 2):
        raise UserError("waves are a float tensor (B, S) of values in [-1, 1], mono: wren.sound.loading.pad_batch("
                        "[wave, …]) makes one, and lengths, of arrays")
    if lengths is not None and not (torch.is_tensor(lengths) and lengths.shape == wave.shape[:1] and
                                    not lengths.is_floating_point()):
        raise UserError(f"lengths are an integer tensor of {wave.shape[0]} numbers of samples, one a wave")
    # asking a GPU would wait for it
    if lengths is not None and wave.shape[0] and not wave.is_cuda and lengths.max() > wave.shape[1]:
        raise UserError(f"lengths reach {int(lengths.max())} samples, but the waves have {wave.shape[1]}")


# ----------------------------------------------------------------------------------------------- pooling and heads

def clip_vectors(encoded, config):
    """What `Encoder.encode_windows` returns -> clip vectors (B, D').

    The mean of a clip's valid patch tokens (config.pool "mean"), of its special tokens ("specials"), windows weighted
    by their columns, or ("both") these and then those. Each stream's tokens are averaged apart, and follow the sound's
    (0 where it is missing). "rows": see `row_statistics`.
    """
    windows, parts = encoded.windows, []
    if config.pool == "rows":
        return row_statistics(encoded, config)
    if config.pool in ("specials", "both"):
        part = encoded.columns.to(encoded.tokens.dtype)[:, None]  # what a window counts for
        parts.append(windows.total(encoded.specials.mean(1) * part) / windows.total(part))
    if config.pool != "specials":
        weight, streams = encoded.valid.to(encoded.tokens.dtype), len(config.streams)
        groups = [weight.shape[2] - streams, *[1] * streams]  # rows of sound, then a row a stream
        for x, w in zip(encoded.grid.split(groups, 2), weight.split(groups, 2)):
            total = windows.total(w.sum((1, 2)))[:, None].clamp(min=1e-9)
            parts.append(windows.total((x * w[..., None]).sum((1, 2))) / total)
    return torch.cat(parts, 1)


def row_statistics(encoded, config):
    """Mean and deviation over a clip's valid time of each frequency row, side by side (MSM-MAE and M2D keep the rows
    apart, too): (B, 2 · F' · D), the means of all rows first. What a row lacks, for want of valid tokens or because the
    sample rate has no such row, is 0; rows of streams come last."""
    windows, valid = encoded.windows, encoded.valid.to(encoded.tokens.dtype)[..., None]
    count = windows.total(valid.sum(1))  # (B, F', 1)
    known, count = count > 0, count.clamp(min=1)
    mean = windows.total((encoded.grid * valid).sum(1)) / count
    apart = (encoded.grid - mean[windows.clip][:, None]) * valid
    deviation = (windows.total(apart.square().sum(1)) / count + 1e-9).sqrt() * known
    lacking, streams = config.grid[1] - mean.shape[1], len(config.streams)
    parts = []
    for rows in (mean, deviation):
        sound, rest = rows.tensor_split([rows.shape[1] - streams], 1)
        parts.append(torch.cat([F.pad(sound, (0, 0, 0, lacking)), rest], 1).flatten(1))
    return torch.cat(parts, 1)


def head_outputs(head, x):
    """Logits (…, classes) of a published head, encoder.heads["head"] of clip vectors or ["frames"] of frame features:
    x (…, D), LayerNorm if the head has one, linear."""
    head = {k: v.to(x.device) for k, v in head.items()}
    if "norm.weight" in head:
        x = F.layer_norm(x, x.shape[-1:], head["norm.weight"], head["norm.bias"], float(head["norm.eps"]))
    return F.linear(x, head["linear.weight"], head["linear.bias"])


# ------------------------------------------------------------------------------------------- loading and saving

def resize_positions(table, grid):
    """Fit a learned table (T, F, D) to another grid (T', F'): cut where it is longer, else interpolate linearly.

    Along time the first T' columns stay, so that a clip keeps its positions whatever the batch around it; along
    frequency the centre is cut (upstream's cut of frequency by the time size is not reproduced). SSAST cuts time at
    the centre: `centre_positions` in its fine-tuning recipe.
    """
    t, f = min(table.shape[0], grid[0]), min(table.shape[1], grid[1])
    low = table.shape[1] // 2 - f // 2
    table = table[:t, low:low + f]
    if tuple(table.shape[:2]) != tuple(grid):
        table = F.interpolate(table.permute(2, 0, 1)[None], size=tuple(grid), mode="bilinear", align_corners=False)
        table = table[0].permute(1, 2, 0)
    return table.contiguous()


def fitted(state, encoder):
    """The state with its position tables resized to the encoder's grid, if they are tables of another one."""
    state, own = dict(state), encoder.state_dict()
    for key in ("positions.table", "positions.rows"):
        if key not in state or key not in own or state[key].shape[-1] != own[key].shape[-1]:
            continue  # load_exactly says so
        if state[key].shape != own[key].shape:
            rows = state[key].dim() == 2
            table = resize_positions(state[key][None] if rows else state[key], (1, *own[key].shape)[-3:-1])
            state[key] = table[0] if rows else table
    return state


def load_encoder(path_or_preset, format=None, **overrides):
    """An `Encoder` in eval mode from our file, a run folder, a preset's name (random weights) or a published file.

    Published formats are recognised by their keys; `format` names one where keys can't decide. `overrides` change the
    config (frames, stride, pad, pool, …); learned positions are fitted to the grid that results.
    """
    source = str(path_or_preset)
    if source in PRESETS:
        return Encoder(_override(PRESETS[source], overrides, source)).eval()
    if not Path(source).exists():
        raise UserError(f"{source}: no such checkpoint; give a file, a run folder or a preset's name (python "
                        "pretrain.py --help lists them)")
    found = formats.read(source, format)
    config = _override(found.config, overrides, source)
    encoder = Encoder(config)
    load_exactly(encoder, fitted(found.state, encoder), source)
    encoder.heads = found.heads
    return encoder.eval()


def _override(config, overrides, name):
    try:
        return replace(config, **overrides)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from None


def load_exactly(module, state, name, assign=False):
    """Load a state dict that must fit key by key and shape by shape, or say what does not in one line."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [f"{k} {tuple(state[k].shape)}, not {tuple(own[k].shape)}" for k in sorted(own.keys() & state.keys())
             if own[k].shape != state[k].shape]
    if missing or extra or wrong:
        parts = [f"{label} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
                 for label, keys in (("missing", missing), ("unknown", extra), ("wrong shape", wrong)) if keys]
        raise UserError(f"{name}: weights do not fit: {'; '.join(parts)}")
    module.load_state_dict(state, assign=assign)


def fingerprint(encoder):
    """A hash of an encoder's (or fine-tuned model's) class, settings and weights: 16 hexadecimal digits."""
    digest = hashlib.blake2b(type(encoder).__name__.encode(), digest_size=8)
    digest.update(json.dumps(encoder.config.to_dict(), sort_keys=True).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_encoder(encoder, path):
    """Write {"version", "config", "model"}, and "heads" if there are any, of plain types; a
    reader sees the old file or the new one, never half."""
    state = {k: v.detach().cpu() for k, v in encoder.state_dict().items()}
    content = {"version": VERSION, "config": encoder.config.to_dict(), "model": state}
    if encoder.heads:
        content["heads"] = {name: {k: v.detach().cpu() for k, v in h.items()} for name, h in encoder.heads.items()}
    write_atomically(content, path)


def write_atomically(obj, path):
    """torch.save to a temporary name, fsync, rename, fsync the folder."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
