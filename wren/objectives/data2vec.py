"""data2vec 2.0 (Baevski et al. 2023): predict a mean teacher's features of what is hidden. EAT and animal2vec."""
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from masking import hash64, noise, uniform
from wren.objectives import views
from wren.objectives.common import (Count, CountOrShare, Masking, Pair, Share, draw_mask, n_of, scattered,
                                    shown, spread)
from wren.objectives.teacher import MIXED, MeanTeacher
from wren.recipes.arithmetic import (CONV_BYTES, block_bytes, block_flops, conv_bytes, patch_flops, position_bytes,
                                     position_flops)


class ConvDecoder(nn.Module):
    """data2vec 2.0's decoder: grouped convolutions over the token grid, each with LayerNorm over channels, GELU and,
    where the widths agree, a residual; then a linear layer. x (B, T', F', D) -> (B, T', F', D); cells that are not
    valid (B, T', F') stay 0 on the way, as what lies beyond the grid."""

    def __init__(self, dim, width, layers, kernel, groups):
        super().__init__()
        if dim % groups or width % groups:
            raise ValueError(f"--decoder-groups {groups} must divide the encoder's {dim} channels and the decoder's "
                             f"{width}")
        self.kernel, self.groups = kernel, groups
        self.convs = nn.ModuleList(nn.Conv2d(dim if i == 0 else width, width, kernel, groups=groups,
                                             padding=(kernel[0] // 2, kernel[1] // 2)) for i in range(layers))
        self.proj = nn.Linear(width, dim)

    def forward(self, x, valid=None):
        for conv in self.convs:
            x = x if valid is None else x * valid[..., None]
            y = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = x + y if x.shape == y.shape else y
        return self.proj(x)

    def flops(self, tokens):
        taps = self.kernel[0] * self.kernel[1]
        convs = sum(2 * conv.in_channels * conv.out_channels * taps // self.groups for conv in self.convs)
        return tokens * (convs + 2 * self.proj.in_features * self.proj.out_features)


class Data2Vec(MeanTeacher):
    """data2vec 2.0 (Baevski et al. 2023) on a grid of tokens, what EAT and Animal2Vec have in common.

    The student encodes the visible tokens of `clones` masks of each clip; a convolutional decoder predicts, in the
    hidden places, targets y: the teacher's feed-forward outputs on the whole clip, each normalised, averaged over
    blocks, with `layer_norm` normalised over channels. target_norm: each channel over the clip's patches ("clip", as
    published; what all patches of a clip share is taken away), or each patch over its channels ("patch").

        frame = Σ (prediction - y)² / √D over hidden tokens / their number
        clip  = mean over rows of |class token - mean over patches of y|² / √D      (rows weigh by what they hide)
        loss  = frame + cls_weight · clip

    Hidden places hold noise of deviation `noise` before the decoder: uniform, by the clip's seed (published: normal).
    """

    def __init__(self, encoder, masking, hidden, span, clones, ema, ema_steps, cls_weight, target_norm, layer_norm,
                 decoder_dim, decoder_depth, decoder_groups, kernel, noise):
        super().__init__(encoder, ema, ema_steps, "linear")
        if target_norm not in ("clip", "patch"):
            raise ValueError(f"target_norm {target_norm!r} is neither clip nor patch")
        if cls_weight and not encoder.config.specials:
            raise ValueError("an utterance loss needs a class token (--cls-weight 0 goes without)")
        self.masking, self.hidden, self.clones = masking, hidden, clones
        self.options = {"span": span} if masking == "span" else {}
        self.cls_weight, self.target_norm, self.layer_norm, self.noise = cls_weight, target_norm, layer_norm, noise
        self.decoder = ConvDecoder(encoder.config.dim, decoder_dim, decoder_depth, kernel, decoder_groups)
        self.add_teacher(encoder=encoder)

    def forward(self, x, lengths=None, seeds=None, mask=None, rate=None):
        """x: wave (B, S) or spec (B, F, T); mask bool (B · clones, T', F'), rows of one clip together."""
        encoder, layout = self.encoder, self.encoder.config.at_rate(rate)
        spec = encoder.frontend(x, lengths, rate) if x.dim() == 2 else x
        grid, valid = encoder.grid(spec, lengths, rate)  # (B, T', F', D), (B, T', F')
        most = None
        if mask is None:
            mask = draw_mask(self.masking, self.hidden, layout, seeds, lengths, self.clones, **self.options)
            most = shown(self.hidden, layout, grid)
        mask = mask[:, :grid.shape[1]]
        with torch.no_grad():
            targets = self.targets(self.teacher_grid(spec, grid, lengths, rate), valid, rate)  # (B, N, D) float32
        tokens = encoder.contextual(grid, valid, mask, visible_only=True, rate=rate, most=most)  # (B · C, K + V, D)
        prediction = self.decode(tokens[:, layout.specials:], mask, valid, seeds)
        with torch.autocast(x.device.type, enabled=False):
            return self.losses(prediction.float(), tokens.float(), targets, mask, valid)

    def teacher_grid(self, spec, grid, lengths, rate):
        return self.teacher["encoder"].grid(spec, lengths, rate)[0]

    def targets(self, grid, valid=None, rate=None):
        """The teacher's grid (B, T', F', D), valid (B, T', F') or None -> y (B, N, D); what is not valid is 0."""
        outputs = self.teacher["encoder"].ffn_outputs(grid, valid, rate)
        with torch.autocast(grid.device.type, enabled=False):
            return self.average(outputs, None if valid is None else valid.flatten(1))

    def average(self, outputs, valid=None):
        """Feed-forward outputs of blocks [(B, K + N, D)], valid (B, N) or None -> y (B, N, D)."""
        outputs = [out[:, self.encoder.config.specials:].float() for out in outputs]
        y = sum(standardised(out, valid) if self.target_norm == "clip" else F.layer_norm(out, out.shape[-1:])
                for out in outputs) / len(outputs)
        y = F.layer_norm(y, y.shape[-1:]) if self.layer_norm else y
        return y if valid is None else y * valid[..., None]

    def decode(self, tokens, mask, valid=None, seeds=None):
        """Visible tokens (B · C, V, D), mask (B · C, T', F'), valid (B, T', F') -> predictions (B · C, N, D)."""
        rows, n, dim = len(mask), mask[0].numel(), tokens.shape[2]
        valid = None if valid is None else valid.repeat_interleave(rows // len(valid), 0)
        fill, visible = tokens.new_zeros(()), (~mask if valid is None else ~mask & valid).flatten(1)
        if self.noise and seeds is not None:
            clones = (seeds[:, None] ^ hash64(torch.arange(rows // len(seeds), device=seeds.device))).flatten()
            fill = noise(clones, n, dim, 41) * (self.noise * 12 ** 0.5)
        x = scattered(tokens, visible, fill).unflatten(1, mask.shape[1:])
        return self.decoder(x, valid).flatten(1, 2)

    def losses(self, prediction, tokens, targets, mask, valid=None):
        """prediction (B · C, N, D), tokens (B · C, K + V, D), targets (B, N, D), all float32; mask (B · C, T', F'),
        valid (B, T', F') or None -> (loss, metrics)."""
        hidden, clones, scale = mask.flatten(1), len(mask) // len(targets), targets.shape[2] ** -0.5
        count = hidden.sum()
        error = (prediction.unflatten(0, (-1, clones)) - targets[:, None]).square().sum(-1).flatten(0, 1) * scale
        loss = frame = (error * hidden).sum() / count
        metrics = {"count": count, "frame_loss": frame.detach(),
                   "spread": spread(tokens[::clones, self.encoder.config.specials:])}
        if self.cls_weight:
            mean = targets.mean(1) if valid is None else targets.sum(1) / valid.sum((1, 2))[:, None]
            error = (tokens[:, 0].unflatten(0, (-1, clones)) - mean[:, None]).square().sum(-1).flatten() * scale
            clip = (error * hidden.sum(1)).sum() / count
            loss = frame + self.cls_weight * clip
            metrics["clip_loss"] = clip.detach()
        return loss, metrics | {"loss": loss.detach()}

    def flops(self):
        c, n = self.encoder.config, self.encoder.config.n_tokens
        visible = n - n_of(self.hidden, n) + c.specials
        student = 3 * (patch_flops(c) + self.clones * (position_flops(c) + block_flops(c, visible)
                                                        + self.decoder.flops(n)))
        return student + position_flops(c) + block_flops(c, n + c.specials)

    def kept(self):
        c, n = self.encoder.config, self.encoder.config.n_tokens
        blocks = block_bytes(c, n - n_of(self.hidden, n) + c.specials, self.encoder.checkpoint_activations)
        decoder = CONV_BYTES * n * sum(conv.out_channels for conv in self.decoder.convs)
        return conv_bytes(c) + self.clones * (position_bytes(c) + blocks + decoder)


class EAT(Data2Vec):
    """EAT (Chen et al. 2024): inverse block masks, 16 clones, frame and utterance loss.

    Its code sums the utterance loss over the rows of a GPU and averages over GPUs: with 12 clips of 16 clones that is
    cls_weight 192 here, where the mean is taken; it does not depend on how the batch is cut.

    Settings:
        masking: block: all but some blocks are hidden
        hidden: hidden tokens of a full clip, a count or a share
        clones: masks of each clip and step
        cls_weight: of the utterance loss, a mean over rows (its code: a sum over a GPU's rows, so 192)
        target_norm: a teacher's features are normalised channel by channel over the clip's patches
            (published), or patch by patch over channels, which keeps what all patches of a clip share
        noise: deviation of the noise in hidden places
        decoder_dim: width of the decoder
        decoder_depth: layers of the decoder
        decoder_groups: groups of the decoder's convolutions
        ema: teacher = m · teacher + (1 - m) · student: m at first, m at last
        ema_steps: steps from the first m to the last (default: all)
    """

    def __init__(self, encoder, masking: Masking = "block", hidden: CountOrShare = 0.8, clones: Count = 16,
                 cls_weight: float = 192.0, target_norm: Literal["clip", "patch"] = "clip", noise: float = 0.01,
                 decoder_dim: Count = 768, decoder_depth: Count = 6, decoder_groups: Count = 16,
                 ema: Pair = (0.9998, 0.99999), ema_steps: Count = 100_000):
        super().__init__(encoder, masking, hidden, 5, clones, ema, ema_steps, cls_weight, target_norm, layer_norm=True,
                         decoder_dim=decoder_dim, decoder_depth=decoder_depth, decoder_groups=decoder_groups,
                         kernel=(3, 3), noise=noise)

    def flops(self):
        return super().flops() + patch_flops(self.encoder.config)  # the teacher embeds patches too


class Animal2Vec(Data2Vec):
    """animal2vec (Schäfer-Zimmermann et al. 2024): raw waves, always mixed with another clip's, spans of hidden
    frames, 12 clones, no clip loss, targets not normalised over channels.

    The teacher shares the student's convolutions. Mixing: `views.between_class` with a ratio from U(0.5, 1).

    Settings:
        masking: span: runs of columns
        hidden: hidden tokens of a full clip, a count or a share
        span: columns of a span
        clones: masks of each clip and step
        target_norm: a teacher's features are normalised channel by channel over the clip's patches
            (published), or patch by patch over channels, which keeps what all patches of a clip share
        noise: deviation of the noise in hidden places
        mix: share of clips that are mixed with another one
        decoder_dim: width of the decoder
        decoder_depth: layers of the decoder
        decoder_groups: groups of the decoder's convolutions
        ema: teacher = m · teacher + (1 - m) · student: m at first, m at last
        ema_steps: steps from the first m to the last (default: all)
    """

    def __init__(self, encoder, masking: Masking = "span", hidden: CountOrShare = 0.93, span: Count = 2,
                 clones: Count = 12, target_norm: Literal["clip", "patch"] = "clip", noise: float = 0.01,
                 mix: Share = 1.0, decoder_dim: Count = 768, decoder_depth: Count = 4, decoder_groups: Count = 16,
                 ema: Pair = (0.9997, 1.0), ema_steps: Count = 300_000):
        super().__init__(encoder, masking, hidden, span, clones, ema, ema_steps, 0.0, target_norm, layer_norm=False,
                         decoder_dim=decoder_dim, decoder_depth=decoder_depth, decoder_groups=decoder_groups,
                         kernel=(7, 1), noise=noise)
        self.mix, self.takes = mix, MIXED
        self.teacher["encoder"].patch = None  # its convolutions are the student's

    def forward(self, x, lengths=None, seeds=None, mask=None, partner=None, partner_lengths=None, rate=None):
        """As Data2Vec; partner (B, S): another clip for each, mixed in."""
        if partner is not None and self.mix:
            draw = uniform(seeds, 2, 42)
            mixed = views.between_class(x, partner, 1 - draw[:, 0] / 2, rate or self.encoder.config.sample_rate)
            x = torch.where((draw[:, 1] < self.mix)[:, None], mixed, x)  # beyond a clip's end the front end cuts it
        return super().forward(self.encoder.frontend(x, lengths, rate), lengths, seeds, mask, rate)

    def teacher_grid(self, spec, grid, lengths, rate):
        return grid.detach()


def standardised(y, valid=None):
    """Mean 0 and variance 1 over a clip's valid tokens, channel by channel: y (B, N, D), valid (B, N) -> (B, N, D)."""
    if valid is None:
        return F.instance_norm(y.transpose(1, 2)).transpose(1, 2)
    weight = valid[..., None] / valid.sum(1)[:, None, None]
    mean = (y * weight).sum(1, keepdim=True)
    return (y - mean) / (((y - mean).square() * weight).sum(1, keepdim=True) + 1e-5).sqrt()
