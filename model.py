"""The encoder: wave -> spectrogram -> patch tokens -> transformer, for every recipe and every published checkpoint.

    audio file ─> wave [B, S] ─frontend─> spec [B, F, T] ─patches─> grid [B, T', F', D]
               ─tokens─> [B, K + T'·F', D], special tokens first, then time-major (token K + t·F' + f)

    encoder = load_encoder("encoder.pt")           # a file, a run folder, a preset's name or a published checkpoint
    embedding = encoder(wave)                      # wave [B, S] in [-1, 1] at encoder.config.sample_rate -> [B, D]
"""
import hashlib
import json
import os
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from wren import formats
from wren.cli import UserError
from wren.formats import newest_encoder  # noqa: F401  (a name that stays here)
from wren.nets.frontends import KaldiFbank, MelDb, OctaveFbank, WaveEmbed, foreground
from wren.recipes import PRESETS, EncoderConfig  # noqa: F401  (a name that stays here)
from wren.nets.transformer import Block, ConvPositions, alibi_slopes, initialise, physical_positions, sincos_table

VERSION = 1  # of our encoder files


FRONTENDS = {"kaldi": KaldiFbank, "mel-db": MelDb, "octave": OctaveFbank}


class Encoder(nn.Module):
    """One encoder for all recipes; `config` says everything needed to use it (see recipes.EncoderConfig)."""

    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.checkpoint_activations = False
        self.heads = {}  # published heads that came with the weights, {name: {key: tensor}}; see head_outputs
        self.frontends, self.streams = {}, {}  # of `at`: (sample rate, device) -> front end; what comes with the waves
        if c.frontend == "wave":
            self.patch = WaveEmbed(c)
        else:
            self.fbank = FRONTENDS[c.frontend](c)
            self.patch = nn.Linear(c.patch[0] * c.patch[1], c.dim)  # PyTorch's default initialisation, as SSAST's
        if c.input_norm:
            self.input_norm = nn.BatchNorm1d(c.n_mels, momentum=0.01)
        if c.frontend == "octave":
            self.absent = nn.Parameter(torch.empty(c.patch[0]))  # what stands in bands above the Nyquist frequency
        if c.streams:
            self.stream_patch = nn.ModuleDict({name: nn.Linear((n + 2) * len(mean), c.dim)
                                               for name, n, mean, _ in c.streams})
            self.stream_type = nn.Parameter(torch.empty(len(c.streams), c.dim // 2))  # where sound has its octave
        if c.mask_token:
            self.mask_token = nn.Parameter(torch.randn(c.dim) * c.dim ** -0.5)
        self._add_positions()
        drops = [c.drop_path * i / max(1, c.depth - 1) for i in range(c.depth)]
        if c.norm == "post":
            self.token_norm = nn.LayerNorm(c.dim, eps=c.eps)
        self.blocks = nn.ModuleList(Block(c, drop) for drop in drops)
        self.norm = nn.LayerNorm(c.dim, eps=c.eps) if c.norm == "pre" and c.final_norm else nn.Identity()
        self._initialise()

    def _add_positions(self):
        """Tables are (T', F', D), or (T', 1, D) beside (F', D) over frequency; sine-cosine ones are not trained."""
        c = self.config
        if c.positions == "learned":
            self.positions = nn.Parameter(torch.empty(*c.grid, c.dim))
        elif c.positions == "factorised":
            self.positions = nn.Parameter(torch.empty(c.grid[0], 1, c.dim))
            self.frequency_positions = nn.Parameter(torch.empty(c.grid[1], c.dim))
        elif c.positions == "conv":
            self.positions = ConvPositions(c.dim, c.position_groups)
        elif c.positions != "physical":
            columns = max(c.grid[0], c.columns(c.chunk_frames))
            self.register_buffer("positions", c.position_scale * sincos_table((columns, c.grid[1]), c.dim),
                                 persistent=c.positions == "fixed")
        if c.specials:
            self.specials = nn.Parameter(torch.empty(c.specials, c.dim))
            if c.positions in ("learned", "factorised"):
                self.special_positions = nn.Parameter(torch.empty(c.specials, c.dim))
            elif c.positions == "fixed":
                self.register_buffer("special_positions", torch.zeros(c.specials, c.dim))
        if c.alibi:
            self.alibi_scale = nn.Parameter(torch.ones(c.heads))

    def _initialise(self):
        """Truncated normal of deviation 0.02 for positions and special tokens, as DeiT; linears as config.init says."""
        initialise(self.blocks, self.config.init)
        for name, parameter in self.named_parameters(recurse=False):
            if name not in ("mask_token", "alibi_scale"):
                nn.init.trunc_normal_(parameter, std=0.02)
        if self.config.frontend == "octave":
            nn.init.constant_(self.absent, -1.0)

    def at(self, rate, streams=None):
        """This encoder for waves at `rate` Hz: the same weights, no more bands than there are below half of it, or a
        raw wave's tokens so much more or less often. With config.rate "fixed" there is one rate: any other is refused.

        streams: what was recorded together with these waves, {name: (B, channels, n)}, sampled as config.stream_rates
        says; NaN, or no such name, where there is nothing.
        """
        c = self.config
        if c.rate == "fixed" and rate != c.sample_rate:
            raise UserError(f"{c.name} hears {c.sample_rate} Hz only, not {rate}: resample (audio.read(path, "
                            f"rate={c.sample_rate})), or pre-train with --rate any")
        if c.rate == "fixed" or rate == c.sample_rate and not streams:
            return self
        view, key = copy(self), (rate, next(self.parameters()).device)
        view.streams = streams or {}
        if rate == c.sample_rate:
            return view
        part = "patch" if c.frontend == "wave" else "fbank"
        view.config, own = c.at(rate), self._modules[part]
        if key not in self.frontends:
            self.frontends[key] = own and own.at(view.config)  # animal2vec's teacher has none
        view._modules = self._modules | {part: self.frontends[key]}
        return view

    def frontend(self, wave, lengths=None):
        """wave (B, S) float in [-1, 1], lengths (B,) valid samples -> normalised spec (B, F, T), float32.

        kaldi, octave: the mean of the valid samples is subtracted; mel-db: decibels above each clip's own floor; wave:
        valid samples brought to mean 0 and variance 1, (B, 1, S). With pad "masked" what lies beyond a clip's valid
        length is 0 (the mean after normalisation) and nothing downstream looks at it. With "published" the log-mel of
        kaldi is padded with zeros to the training length before normalisation and attended, as the published code does;
        mel-db and wave mask padding there too, and only drop the last frames that fill no patch.
        """
        c = self.config
        with torch.autocast(wave.device.type, enabled=False):
            wave, valid = wave.float(), None
            if lengths is not None:
                valid = torch.arange(wave.shape[1], device=wave.device) < lengths[:, None]
                wave = wave.masked_fill(~valid, 0)
            if c.frontend == "wave":
                return self._standardised(wave, valid)
            spec = self.fbank(wave, lengths) if c.frontend == "mel-db" else self._kaldi(wave, valid)
            beyond = None
            if lengths is not None:
                beyond = (torch.arange(spec.shape[2], device=spec.device) >= c.n_frames(lengths)[:, None])[:, None]
            if c.denoise is not None:
                spec = foreground(spec, c.denoise, beyond)
            fill = -c.mean / c.scale if c.attends_padding else 0.0
            spec = (spec - c.mean) / c.scale
            if c.absent:
                spec[:, -c.absent:] = 0
            if beyond is not None:
                spec = spec.masked_fill(beyond, fill)
            if c.attends_padding and spec.shape[2] < c.frames:
                spec = F.pad(spec, (0, c.frames - spec.shape[2]), value=fill)
            return self._with_streams(spec) if c.streams else spec

    def _with_streams(self, spec):
        """Each stream as one more row of patches: a column's values stand in its first pixels, channel after channel.
        spec (B, F, T) -> (B, F + S · patch height, whole columns); NaN where there is nothing."""
        c, (height, width) = self.config, self.config.patch
        columns = c.columns(spec.shape[2])
        rows = [F.pad(spec, (0, columns * width - spec.shape[2]))]
        if c.hear == "streams":
            rows[0] = torch.full_like(rows[0], float("nan"))
        for name, n, mean, scale in c.streams:
            values = spec.new_full((len(spec), len(mean), columns * n), float("nan"))
            if (given := self.streams.get(name)) is not None and c.hear != "sound":
                given = (given - given.new_tensor(mean)[:, None]) / given.new_tensor(scale)[:, None]
                values[..., :given.shape[2]] = given[..., :columns * n]
            values = values.unflatten(2, (columns, n)).transpose(1, 2).flatten(2)  # (B, T', channels · n)
            patch = F.pad(values, (0, height * width - values.shape[2]))
            rows.append(patch.unflatten(2, (height, width)).permute(0, 2, 1, 3).flatten(2))
        return torch.cat(rows, 1)

    def _kaldi(self, wave, valid):
        """Log-mel (B, F, T) after the mean of the valid samples is subtracted; wave (B, S), 0 where not valid."""
        if valid is None:
            wave = wave - wave.mean(1, keepdim=True)
        else:
            mean = wave.sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
            wave = (wave - mean).masked_fill(~valid, 0)
        return self.fbank(F.pad(wave, (0, max(0, self.config.window_samples - wave.shape[1]))))

    def _standardised(self, wave, valid):
        """Mean 0 and variance 1 over the valid samples; silence stays silence. wave (B, S) -> (B, 1, S)."""
        valid = torch.ones_like(wave, dtype=torch.bool) if valid is None else valid
        n = valid.sum(1, keepdim=True).clamp(min=1)
        wave = (wave - wave.sum(1, keepdim=True) / n).masked_fill(~valid, 0)
        wave = wave / (wave.square().sum(1, keepdim=True) / n + 1e-10).sqrt()
        return F.pad(wave, (0, max(0, self.config.convs[0][1] - wave.shape[1])))[:, None]

    def patches(self, spec):
        """spec (B, F, T) -> (B, T', F', patch height × width), pixels ordered (mel band, frame) within a patch."""
        c = self.config
        width = (c.columns(spec.shape[2]) - 1) * c.stride[1] + c.patch[1]
        spec = F.pad(spec, (0, max(0, width - spec.shape[2])))
        spec = spec.nan_to_num() if c.streams else spec
        grid = spec.unfold(1, c.patch[0], c.stride[0]).unfold(2, c.patch[1], c.stride[1])  # (B, F', T', h, w)
        return grid.transpose(1, 2).flatten(3)

    def present(self):
        """Which pixels of a patch hold something: None, all, or (frontend "octave": bands below the Nyquist frequency,
        values of streams) bool (F', P)."""
        c = self.config
        if c.frontend != "octave":
            return None
        bands = torch.arange(c.n_mels, device=self.absent.device) < c.n_mels - c.absent
        pixels = bands.view(-1, c.patch[0]).repeat_interleave(c.patch[1], 1)
        values = torch.tensor([[n * len(mean)] for _, n, mean, _ in c.streams], device=pixels.device).view(-1, 1)
        return torch.cat([pixels, torch.arange(pixels.shape[1], device=pixels.device) < values])

    def there(self, spec):
        """Which tokens there are, bool (B, T', F'), False where a stream has a gap; None: all. spec (B, F, T)."""
        c = self.config
        if not c.streams:
            return None
        missing = spec.isnan().unflatten(2, (-1, c.patch[1])).unflatten(1, (-1, c.patch[0]))  # (B, F', h, T', w)
        return ~missing.any(4).any(2).transpose(1, 2)

    def only_there(self, mask, spec):
        """A mask (B, T', F') without the tokens that there are not."""
        return mask if (there := self.there(spec)) is None else mask & there

    def _embed_patches(self, spec, extent):
        """spec (B, F, T) -> (B, T', F', D). In absent bands stands a learned value, which so is no silence; a stream
        has an embedding of its own, of each channel's level, what swings around it, and the log-power of that (else
        means over tokens forget how strongly something moves), and its tokens are NaN where it is missing."""
        c, patches = self.config, self.patches(self._normed_input(spec, extent))
        if c.frontend != "octave":
            return self.patch(patches)
        sound = patches.shape[2] - len(c.streams)
        absent = self.absent.repeat_interleave(c.patch[1]).to(patches.dtype)
        x = [self.patch(torch.where(self.present()[:sound], patches[:, :, :sound], absent))]
        for row, (name, n, mean, _) in enumerate(c.streams, sound):
            values = patches[:, :, row, None, :n * len(mean)].unflatten(-1, (len(mean), n))
            level = values.mean(-1, keepdim=True)
            swing = ((values - level).square().mean(-1, keepdim=True) + 1e-3).log()
            x.append(self.stream_patch[name](torch.cat([values - level, level, swing], -1).flatten(-2)))
        x = torch.cat(x, 2)
        return x if not c.streams else torch.where(self.there(spec)[..., None], x, float("nan"))

    def valid_columns(self, lengths):
        """lengths (B,) samples -> (B,) token columns that hold any of them; None stays None (all are valid)."""
        return None if lengths is None else self._columns(self._extent(lengths))

    def _extent(self, lengths):
        """(B,) samples -> what is valid of the front end's last axis: frames, or samples of a raw wave."""
        return lengths if lengths is None or self.config.frontend == "wave" else self.config.n_frames(lengths)

    def _columns(self, extent):
        """(B,) valid frames (or samples of a raw wave) -> (B,) columns that may be attended, None if all may."""
        c = self.config
        if extent is None or (c.attends_padding and c.chunk_frames <= c.frames):
            return None
        columns = c.columns(c.n_frames(extent) if c.frontend == "wave" else extent)
        return columns.clamp(min=c.grid[0]) if c.attends_padding else columns

    def tokens(self, spec, mask=None, lengths=None, visible_only=False, depth=None):
        """spec (B, F, T) -> normed tokens (B, K + N, D): K special tokens, then N = T'·F' patch tokens, time-major.

        mask (B, T', F') bool: hidden tokens are replaced by the mask token before positions are added (SSAST), or,
        with `visible_only`, left out (MAE); then N is the largest number of visible tokens of a clip, in order, and
        clips with fewer are filled up with tokens that nobody attends. A mask of B·C rows encodes each clip C times,
        rows b·C … b·C + C - 1, and embeds its patches once (data2vec 2.0's clones). lengths (B,) samples: columns
        beyond them are never attended. depth: run only the first blocks.
        """
        return self.contextual(self.patch_tokens(spec, lengths), mask, lengths, visible_only, depth)

    def patch_tokens(self, spec, lengths=None):
        """spec (B, F, T) -> what a token is before position and context: (B, T', F', D)."""
        return self._patch_tokens(spec, self._extent(lengths))

    def contextual(self, x, mask=None, lengths=None, visible_only=False, depth=None):
        """patch_tokens (B, T', F', D) -> tokens (B, K + N, D); see `tokens`."""
        return self._run(*self._embedded(x, mask, self._extent(lengths), visible_only), depth)[0]

    def ffn_outputs(self, x, lengths=None):
        """patch_tokens (B, T', F', D) -> the feed-forward output of each block after the prenet, a list of
        (B, K + N, D): what EAT's and animal2vec's teachers are asked for."""
        return self._run(*self._embedded(x, None, self._extent(lengths), False), collect=True)[1]

    def _patch_tokens(self, spec, extent):
        c = self.config
        if c.frontend == "wave":
            x = self.patch(spec, extent)[:, :, None]  # (B, T', 1, D)
        else:
            x = self._embed_patches(spec, extent)  # (B, T', F', D)
        t, f = x.shape[1:3]
        most = max(c.grid[0], c.columns(c.chunk_frames))
        if t > most or f != c.grid[1]:
            raise ValueError(f"spectrogram of {tuple(spec.shape[1:])} gives {t} × {f} tokens, the encoder's training "
                             f"length {most} × {c.grid[1]}: cut it into windows, or load with frames=…")
        return x

    def _embedded(self, x, mask, extent, visible_only):
        """patch_tokens x (B, T', F', D) -> what enters the blocks: tokens (B, K + N, D), and what may be attended (see
        Attention) or None."""
        c = self.config
        clones = 1 if mask is None else len(mask) // len(x)
        if clones > 1:
            x = x.repeat_interleave(clones, dim=0)
            extent = None if extent is None else extent.repeat_interleave(clones)
        batch, t, f, _ = x.shape
        columns = self._columns(extent)
        valid = None if columns is None else torch.arange(t, device=x.device) < columns[:, None]  # (B, T')
        there = None
        if c.streams:
            there = ~x[..., 0].isnan()
            x = torch.where(there[..., None], x, 0.0)
        if mask is not None and not visible_only:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = self._positioned(x, valid, mask if visible_only else None).flatten(1, 2)  # (B, N, D)
        keep = None if valid is None else valid.repeat_interleave(f, dim=1)  # (B, N)
        if there is not None:
            keep = there.flatten(1) if keep is None else keep & there.flatten(1)
        place = torch.arange(t, device=x.device).repeat_interleave(f)[None]  # (1, N) column of each token
        if visible_only:
            x, keep, place = self._visible(x, mask.flatten(1), keep, place)
        if c.specials:
            specials = self.specials + self.special_positions if hasattr(self, "special_positions") else self.specials
            x = torch.cat([specials.expand(batch, -1, -1).to(x.dtype), x], dim=1)
            keep = None if keep is None else F.pad(keep, (c.specials, 0), value=True)
        if c.norm == "post":
            x = self.token_norm(x)
        keep = None if keep is None else keep[:, None, None]
        return x, self._alibi(place, keep) if c.alibi else keep

    def _normed_input(self, spec, extent):
        """BatchNorm over mel bands, if the encoder has one: padding is not counted and stays 0. spec (B, F, T)."""
        if not self.config.input_norm:
            return spec
        if extent is None:
            return self.input_norm(spec)
        valid = torch.arange(spec.shape[2], device=spec.device) < extent[:, None]  # (B, T)
        out = torch.zeros_like(spec).transpose(1, 2)
        out[valid] = self.input_norm(spec.transpose(1, 2)[valid]).to(out.dtype)
        return out.transpose(1, 2)

    def _positioned(self, x, valid, hidden):
        """Add positions to x (B, T', F', D). Convolutional ones see neither padding nor tokens that are left out."""
        c = self.config
        if c.positions == "conv":
            seen = x[:, :, 0] if hidden is None else x[:, :, 0].masked_fill(hidden, 0)
            return x + self.positions(seen, valid)[:, :, None]
        if c.positions == "physical":
            table = c.position_scale * physical_positions(c, c.dim, x.device)[:x.shape[1]]
            if c.streams:  # a stream's type stands where sound has its octave
                types = self.stream_type.expand(len(table), -1, -1)
                table = torch.cat([table[:, :-len(c.streams)], torch.cat([types, table[:, -len(c.streams):,
                                                                                      c.dim // 2:]], 2)], 1)
            return x + table
        x = x + self.positions[:x.shape[1]]
        return x + self.frequency_positions if c.positions == "factorised" else x

    def _alibi(self, place, keep):
        """Attention bias (B or 1, H, N, N): minus distance times slope times learned scale; -inf at padding."""
        distance = (place[:, :, None] - place[:, None]).abs()[:, None]  # (B, 1, N, N)
        if self.config.positions == "physical":  # of 20 ms, not of tokens
            distance = distance * (self.config.stride[1] * self.config.hop / 0.02)
        slopes = alibi_slopes(self.config.heads).to(place.device) * self.alibi_scale.clamp(min=0)
        bias = -distance * slopes[:, None, None]
        return bias if keep is None else bias.masked_fill(~keep, float("-inf"))

    def _run(self, x, keep, depth=None, collect=False):
        """Blocks and final norm: (tokens, feed-forward outputs of the blocks after the prenet, if collected)."""
        outputs = []
        for i, block in enumerate(self.blocks[:depth]):
            if self.checkpoint_activations and torch.is_grad_enabled():
                x, out = checkpoint(block, x, keep, use_reentrant=False)
            else:
                x, out = block(x, keep)
            if collect and i >= self.config.prenet:
                outputs.append(out)
        return self.norm(x), outputs

    @staticmethod
    def _visible(x, hidden, keep, place):
        """Gather the visible tokens of each clip, in order.

        x (B, N, D), hidden (B, N), keep (B, N) or None, place (1, N) -> those of the
        visible: x (B, V, D), keep (B, V) or None, place (B, V).
        """
        shown = ~hidden if keep is None else ~hidden & keep
        counts = shown.sum(1)
        most = int(counts.max())
        index = (~shown).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        rest = torch.arange(most, device=x.device) < counts[:, None]
        x = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
        return x, None if bool(rest.all()) else rest, place.expand(len(x), -1).gather(1, index)

    def cut(self, x, extent, size):
        """Cut the last axis of x into windows of `size`; yields nothing that lies wholly beyond a clip's end.

        x (B, …, S), extent (B,) valid or None -> windows (M, …, S'), extent (M,) or None, clip (M,), place (M,).
        """
        batch, length = len(x), x.shape[-1]
        if length <= size:
            return x, extent, torch.arange(batch), torch.zeros(batch, dtype=torch.int64)
        n = -(-length // size)
        ends = torch.full((batch,), length) if extent is None else extent.cpu()
        rest = (ends[:, None] - torch.arange(n) * size).clamp(0, size)  # (B, n) valid part of each window
        rest[:, 0].clamp_(min=1)
        if self.config.frontend == "mel-db" and self.config.pad == "published":
            rest[:, 1:][rest[:, 1:] < self.config.patch[1]] = 0  # too short for a token
        clip, place = (rest > 0).nonzero(as_tuple=True)
        x = F.pad(x, (0, n * size - length)).unflatten(-1, (n, size)).movedim(-2, 1)  # (B, n, …, size)
        return x[clip, place], rest[clip, place].to(x.device), clip, place

    def marked(self, tokens, spec):
        """Tokens (B, K + N, D) with NaN for those that there are not, which `over_rows` leaves out."""
        if (there := self.there(spec)) is None:
            return tokens
        missing = F.pad(~there.flatten(1), (self.config.specials, 0))
        return tokens.masked_fill(missing[..., None], float("nan"))

    def over_rows(self, tokens):
        """Patch tokens (B, T', F', D) -> their means over the rows of each column (B, T', D)."""
        return tokens.nanmean(2).nan_to_num() if self.config.streams else tokens.mean(2)

    def for_windows(self, clip, place):
        """This encoder with what was recorded together with windows, as `cut` makes them, instead of whole clips."""
        streams = {}
        for name, n, *_ in self.config.streams:
            if name in self.streams:
                count, size = int(place.max()) + 1, n * self.config.columns(self.config.chunk_frames)
                x = self.streams[name]
                x = F.pad(x, (0, max(0, count * size - x.shape[2])), value=float("nan"))
                streams[name] = x[..., :count * size].unflatten(2, (count, size)).movedim(2, 1)[clip, place]
        return self.at(self.config.sample_rate, streams) if streams else self

    def pieces(self, wave, lengths, depth):
        """(windows' features (M, K + N, D), valid columns (M,), clip (M,), place (M,), weights (M, T', F') of tokens or
        None) of waves of any length.

        Waves are cut before the front end; but decibels have their floor and mirrored ends over the whole clip, as
        published, so there the spectrogram is cut.
        """
        c = self.config
        check_batch(wave, lengths)
        if c.frontend == "mel-db":
            spec = self.frontend(wave, lengths)
            spec, extent, clip, place = self.cut(spec, self._extent(lengths), c.chunk_frames)
        else:
            windows, lengths, clip, place = self.cut(wave, lengths, c.chunk_samples)
            spec, extent = self.for_windows(clip, place).frontend(windows, lengths), self._extent(lengths)
        x = self._patch_tokens(spec, extent)
        x, outputs = self._run(*self._embedded(x, None, extent, False), depth, collect=c.features == "ffn")
        if outputs:
            x = torch.stack(outputs).mean(0)
        x = self.marked(x, spec)
        columns = self._columns(extent)
        if columns is None:
            columns = torch.full((len(x),), (x.shape[1] - c.specials) // c.grid[1], device=wave.device)
        weights = self.foreground(spec) if c.pool == "foreground" else None
        return x, columns, clip.to(wave.device), place.to(wave.device), weights

    def foreground(self, spec):
        """How far each token's sound rises above the background, spec (B, F, T) -> (B, T', F'); a stream's tokens weigh
        as much as the sound's do on average."""
        x, streams = self.patches(spec).mean(3).clamp(min=0) + 1e-3, len(self.config.streams)
        if streams:
            x[..., -streams:] = x[..., :-streams].mean((1, 2), keepdim=True)
        return x

    def frames(self, wave, lengths=None, depth=None):
        """wave (B, S) of any length -> (B, T', D): patch tokens averaged over frequency, one each stride × hop s.

        Columns beyond a clip's valid length are zero. Longer input is cut into windows of the training length (or of
        `chunk`, if the config has one).
        """
        tokens, columns, clip, place, _ = self.pieces(wave, lengths, depth)
        x = self.over_rows(tokens[:, self.config.specials:].unflatten(1, (-1, self.config.grid[1])))  # (M, T', D)
        x = x * (torch.arange(x.shape[1], device=x.device) < columns[:, None])[..., None]
        out = x.new_zeros(len(wave), int(place.max()) + 1, *x.shape[1:])
        out[clip, place] = x
        return out.flatten(1, 2)[:, :int((place * x.shape[1] + columns).max())]

    def embed(self, wave, lengths=None, depth=None):
        """wave (B, S) of any length -> clip vectors (B, D): the mean of its valid patch tokens, or (pool "specials")
        of its special tokens, or ("both", B, 2 D) these and then those, windows weighted by their valid columns. Each
        stream's tokens are averaged apart, and follow the sound's (0 where it is missing).

        chunk_mean "uncut" reproduces ATST-Clip's code: windows that are more than half full count alike, and a
        window's patches are summed and divided by all that is left of the clip, so that of 10 s the first 6 s count
        × 0.6.
        """
        return self.pool(*self.pieces(wave, lengths, depth), len(wave))

    def pool(self, tokens, columns, clip, place, weights, batch):
        """What `pieces` returns -> clip vectors (B, D), or (B, (1 + S) D) with streams; see `embed`."""
        c, k = self.config, self.config.specials
        part = columns.to(tokens.dtype)[:, None]  # what a window counts for
        x = tokens[:, k:].unflatten(1, (-1, c.grid[1]))  # (M, T', F', D)
        there = (torch.arange(x.shape[1], device=x.device) < columns[:, None])[..., None].expand(x.shape[:3])
        if c.streams:
            there, x = there & ~x[..., 0].isnan(), x.nan_to_num()
        weights = there.to(x.dtype) if weights is None else weights * there
        if c.chunk_mean == "uncut":
            left = columns.new_zeros(batch).index_add_(0, clip, columns)[clip] - place * c.columns(c.chunk_frames)
            part = ((place == 0) | (2 * columns > c.columns(c.chunk_frames))).to(x.dtype)[:, None]
            weights = weights * (part / left[:, None])[..., None]

        def mean(x, weight):
            total = x.new_zeros(batch, x.shape[1]).index_add_(0, clip, x)
            return total / x.new_zeros(batch, 1).index_add_(0, clip, weight).clamp(min=1e-9)
        parts = [mean(tokens[:, :k].mean(1) * part, part)] if c.pool in ("specials", "both") else []
        groups = [x.shape[2] - len(c.streams), *[1] * len(c.streams)] if c.pool != "specials" else []  # of rows
        for rows, x, weight in zip(groups, x.split(groups, 2), weights.split(groups, 2)) if groups else ():
            count = part * rows if c.chunk_mean == "uncut" else weight.sum((1, 2))[:, None]
            parts.append(mean((x * weight[..., None]).sum((1, 2)), count))
        return torch.cat(parts, 1)

    forward = embed


def check_batch(wave, lengths):
    """Refuse what is no batch of waves: arrays, one wave alone, 16-bit integers, lengths in seconds."""
    if not (torch.is_tensor(wave) and wave.is_floating_point() and wave.dim() == 2):
        raise UserError("waves are a float tensor (B, S) of values in [-1, 1], mono: wren.sound.loading.pad_batch([wave, "
                        "…]) makes one, and lengths, of arrays")
    if lengths is not None and not (torch.is_tensor(lengths) and lengths.shape == wave.shape[:1] and
                                    not lengths.is_floating_point()):
        raise UserError(f"lengths are an integer tensor of {len(wave)} numbers of samples, one a wave")
    # asking a GPU would wait for it
    if lengths is not None and len(wave) and not wave.is_cuda and lengths.max() > wave.shape[1]:
        raise UserError(f"lengths reach {int(lengths.max())} samples, but the waves have {wave.shape[1]}")


def at_rate(module, rate, streams=None):
    """A module with the same weights, its encoders as they are at `rate` Hz, with what came with these waves (see
    `Encoder.at`); rate None: as it is."""
    if rate is None:
        return module
    if isinstance(module, Encoder):
        return module.at(rate, streams)
    children = {name: child and at_rate(child, rate, streams) for name, child in module._modules.items()}
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    view = copy(module)
    view._modules = children
    return view


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
    for key in ("positions", "frequency_positions"):
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
