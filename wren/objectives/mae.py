"""Masked autoencoders (He et al. 2022): encode what is visible, reconstruct the rest (Dasheng, Bird-MAE, AudioMAE)."""
from dataclasses import replace

import torch
from torch import nn

from wren.nets.positions import physical_positions
from wren.nets.transformer import Block, initialise
from wren.objectives.common import (Count, CountOrShare, Masking, Positive, draw_mask, n_of, pixel_error, scattered,
                                    shown, spread)
from wren.recipes.arithmetic import block_bytes, block_flops, embed_flops


class MAE(nn.Module):
    """Masked autoencoder (He et al. 2022) with a plain decoder, as Dasheng's and Bird-MAE's.

    The encoder sees the visible patches only; a narrow transformer gets its tokens, and a mask token in each hidden
    place, and predicts pixels. With a patch's pixels brought to mean 0 and variance 1 (unbiased, + var_floor):

        loss = mean over hidden patches and pixels of (prediction - target)²

    Targets are pixels of the spectrogram before the encoder's input norm. Positions are learned, from zero. A larger
    var_floor keeps faint noise faint: with the published 1e-6 it counts as much as a call.
    Deviation: AudioMAE's shifted-window decoder is replaced by the plain one.

    Settings:
        masking: group: pairs of columns (Dasheng); frame: single tokens (AudioMAE)
        hidden: hidden tokens of a full clip, a count or a share
        decoder_dim: width of the decoder
        decoder_depth: layers of the decoder
        decoder_heads: attention heads of the decoder
        var_floor: added to a patch's variance before it is normalised to 1 (published: 1e-6); more
            keeps faint noise faint
    """

    def __init__(self, encoder, masking: Masking = "group", hidden: CountOrShare = 0.75, decoder_dim: Count = 512,
                 decoder_depth: Count = 8, decoder_heads: Count = 16, var_floor: Positive = 1e-6):
        super().__init__()
        self.encoder, self.masking, self.hidden, self.var_floor = encoder, masking, hidden, var_floor
        c = encoder.config
        self.narrow = replace(c, dim=decoder_dim, depth=decoder_depth, heads=decoder_heads, norm="pre", drop_path=0.0,
                              qkv_bias=True, prenet=0, positions="learned", alibi=False, rate="fixed", streams=(),
                              inputs="all")
        self.embed = nn.Linear(c.dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(decoder_dim))
        self.positions = nn.Parameter(torch.zeros(*c.grid, decoder_dim)) if c.positions != "physical" else None
        self.blocks = nn.ModuleList(Block(self.narrow) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(decoder_dim, eps=c.eps)
        self.predict = nn.Linear(decoder_dim, c.patch[0] * c.patch[1])
        for part in (self.embed, self.blocks, self.predict):
            initialise(part, c.init)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, x, lengths=None, seeds=None, mask=None, rate=None, streams=None):
        """x: wave (B, S) or spec (B, F, T); mask bool (B, T', F'), drawn by seeds (B,) unless given."""
        encoder, layout = self.encoder, self.encoder.config.at_rate(rate)
        spec = encoder.frontend(x, lengths, rate) if x.dim() == 2 else x
        grid, valid = encoder.grid(spec, lengths, rate, streams)
        most = None
        if mask is None:
            mask = draw_mask(self.masking, self.hidden, layout, seeds, lengths)
            most = shown(self.hidden, layout, grid)
        mask = mask[:, :grid.shape[1]]
        mask = mask if valid is None else mask & valid
        tokens = encoder.contextual(grid, valid, mask, visible_only=True, rate=rate, most=most)[:, layout.specials:]
        prediction = self.decode(tokens, mask, valid, layout)  # (B, N, P)
        with torch.autocast(x.device.type, enabled=False):
            target = encoder.patches(spec, rate, streams).float()
            return self.losses(prediction.float(), target, tokens, mask.flatten(1), encoder.valid_pixels(rate))

    def losses(self, prediction, target, tokens, hidden, valid_pixels=None):
        """prediction (B, N, P), target (B, T', F', P), tokens (B, V, D), hidden (B, N) bool, valid_pixels (F', P) bool
        or None -> (loss, metrics)."""
        target, count = self.normed(target, valid_pixels).flatten(1, 2), hidden.sum()
        loss = (pixel_error(prediction, target, valid_pixels) * hidden).sum() / count
        return loss, {"count": count, "loss": loss.detach(), "spread": spread(tokens)}

    def normed(self, target, valid=None):
        """Each patch of target (B, T', F', P) brought to mean 0 and variance 1 over its valid pixels, (F', P) bool or
        None (all)."""
        if valid is None:
            return (target - target.mean(3, keepdim=True)) / (target.var(3, keepdim=True) + self.var_floor).sqrt()
        n = valid.sum(1, keepdim=True)
        target = target - (target * valid).sum(3, keepdim=True) / n
        variance = (target.square() * valid).sum(3, keepdim=True) / (n - 1).clamp(min=1)
        return target / (variance + self.var_floor).sqrt()

    def decode(self, tokens, mask, valid=None, layout=None):
        """Visible tokens (B, V, D), mask (B, T', F'), valid (B, T', F') or None -> predicted pixels (B, N, P)."""
        visible = ~mask if valid is None else ~mask & valid
        attend = None if valid is None else valid.flatten(1)[:, None, None]
        x = scattered(self.embed(tokens), visible.flatten(1), self.mask_token)
        positions = self.positions
        if positions is None:
            positions = physical_positions(layout or self.encoder.config, self.narrow.dim, x.device)
        x = x + positions[:mask.shape[1]].flatten(0, 1)
        for block in self.blocks:
            x = block(x, attend)[0]
        return self.predict(self.norm(x))

    @property
    def exported(self):
        return self.encoder

    def flops(self):
        c, d, n = self.encoder.config, self.narrow, self.encoder.config.n_tokens
        visible = n - n_of(self.hidden, n)
        decoder = block_flops(d, n) + 2 * visible * c.dim * d.dim + 2 * n * d.dim * c.patch[0] * c.patch[1]
        return 3 * (embed_flops(c) + block_flops(c, visible + c.specials) + decoder)

    def kept(self):
        c, n = self.encoder.config, self.encoder.config.n_tokens
        visible = n - n_of(self.hidden, n) + c.specials
        return block_bytes(c, visible, self.encoder.checkpoint_activations) + block_bytes(self.narrow, n)
