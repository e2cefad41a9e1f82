"""Pre-training objectives: one module each, waves in, (loss, metrics) out.

    SSAST       tell hidden patches apart and reconstruct them (also GPM-BT)
    MAE         encode what is visible, reconstruct the rest (Dasheng, Bird-MAE, AudioMAE's encoder)
    EAT         predict a mean teacher's features of hidden patches, and of the clip (data2vec 2.0)
    Animal2Vec  the same on the raw wave
    ATST        agree with a mean teacher on two views of a clip, or with `frames` on what is hidden in both

The loss is a mean over what it counts; `metrics["count"]` says over how many, so that a trainer can weight
micro-batches and processes by it and divide by the global count. `metrics["spread"]` shows collapse. `exported` is
the encoder that others load, `flops()` the arithmetic of one clip's training step; `after_step(step)` moves a teacher.
"""
from copy import deepcopy
from dataclasses import replace
from math import cos, pi

import torch
import torch.nn.functional as F
from torch import nn

from wren.objectives import views
from masking import (block_mask, frame_mask, group_mask, hash64, noise, patch_mask, patch_mask_upstream, span_mask,
                     structured_mask, uniform)
from wren.recipes import SETTINGS
from wren.nets.transformer import Block, initialise, physical_positions

MASKS = {"patch": patch_mask, "frame": frame_mask, "upstream": patch_mask_upstream, "block": block_mask,
         "group": group_mask, "span": span_mask, "structured": structured_mask}

MIXED = ("wave", "lengths", "seed", "mask", "partner", "partner_lengths")  # what a mixing objective takes of a batch


def draw_mask(kind, hidden, encoder, seeds, lengths=None, clones=1, **options):
    """A mask for each clip, or `clones` of them in a row: bool (B · clones, T', F')."""
    columns = encoder.valid_columns(lengths)
    if clones > 1:
        numbers = hash64(torch.arange(clones, device=seeds.device))
        seeds = (seeds[:, None] ^ numbers).flatten()
        columns = None if columns is None else columns.repeat_interleave(clones)
    return MASKS[kind](seeds, encoder.config.grid, hidden, columns, **options)


def scattered(x, shown, fill):
    """Visible tokens x (B, V, D) back to their places: shown (B, N) bool -> (B, N, D), `fill` elsewhere."""
    rank = (shown.cumsum(1) - 1).clamp(min=0)
    return torch.where(shown[..., None], x.gather(1, rank[..., None].expand(-1, -1, x.shape[2])), fill.to(x.dtype))


def spread(tokens):
    """How far apart a batch's clips lie: tokens (B, N, D) -> the deviation over clips of their L2-normalised mean
    tokens, times √D. 1: as scattered as can be; 0: collapsed to one point."""
    mean = F.normalize(tokens.detach().float().mean(1), dim=1)  # (B, D)
    return mean.std(0, correction=0).square().mean().sqrt() * mean.shape[1] ** 0.5


def pixel_error(prediction, target, present=None):
    """Mean square over the pixels that there are: (B, N, P) twice, present None or bool (F', P) -> (B, N)."""
    if present is None:
        return (prediction - target).square().mean(-1)
    present = present.repeat(target.shape[1] // len(present), 1)  # (N, P)
    return ((prediction - target).square() * present).sum(-1) / present.sum(-1)


class SSAST(nn.Module):
    """SSAST's joint masked-patch objective (Gong et al. 2022), in one forward pass: InfoNCE + 10 · MSE.

    Targets are the raw pixels of the hidden patches of the normalised spectrogram. With S[i, j] = target_i ·
    prediction_j over the hidden patches of one clip (no temperature, no norm, negatives from the same clip only):

        nce = -mean_i log softmax_j S[i, j] at j = i      (released code; "paper" is eq. 1: the softmax runs over i)
        mse = mean over hidden patches and pixels of (reconstruction - target)²

    Deviation: the released code draws two masks and makes two passes, one for each term; here both terms share one.
    Accuracy is the released one: the share of predictions j whose best target, after the softmax, is their own.
    """

    def __init__(self, encoder, loss="joint", nce_axis="released", mse_weight=10.0, masking="patch", hidden=400 / 512):
        super().__init__()
        if loss not in ("joint", "nce", "mse"):
            raise ValueError(f"loss {loss!r} is none of joint, nce, mse")
        self.encoder, self.loss, self.nce_axis, self.mse_weight = encoder, loss, nce_axis, mse_weight
        self.masking, self.hidden = masking, hidden
        c = encoder.config
        if not c.mask_token:
            raise ValueError("it has no mask token")
        pixels = c.patch[0] * c.patch[1]
        self.classify = nn.Sequential(nn.Linear(c.dim, c.dim), nn.ReLU(), nn.Linear(c.dim, pixels))
        self.reconstruct = nn.Sequential(nn.Linear(c.dim, c.dim), nn.ReLU(), nn.Linear(c.dim, pixels))
        # a head without a loss gets no gradient, which DDP does not allow
        self.classify.requires_grad_(loss != "mse")
        self.reconstruct.requires_grad_(loss != "nce")

    def forward(self, x, lengths=None, seeds=None, mask=None):
        """x: wave (B, S) or spec (B, F, T); seeds (B,) int64 draw the mask, unless one is given: bool (B, T', F')."""
        spec = self.encoder.frontend(x, lengths) if x.dim() == 2 else x
        target = self.encoder.patches(spec).flatten(1, 2)  # (B, N, P)
        if mask is None:
            mask = draw_mask(self.masking, self.hidden, self.encoder, seeds, lengths)
        mask = self.encoder.only_there(mask[:, :target.shape[1] // mask.shape[2]], spec)
        tokens = self.encoder.tokens(spec, mask, lengths)[:, self.encoder.config.specials:]  # (B, N, D)
        with torch.autocast(x.device.type, enabled=False):
            return self.losses(tokens.float(), target.float(), mask.flatten(1))

    def losses(self, tokens, target, hidden):
        """tokens (B, N, D), target (B, N, P), hidden (B, N) bool -> (loss, metrics), all in float32.

        The heads run on all tokens and the hidden ones are picked by mask: no loop over clips, no gather, no sync.
        """
        count = hidden.sum()
        metrics = {"count": count, "chance": len(hidden) / count.float(), "spread": spread(tokens)}
        loss = 0.0
        if self.loss != "mse":
            similarity = self.similarity(tokens, target, hidden)
            nce, metrics["accuracy"] = self._nce(similarity, hidden, count)
            metrics["nce"] = nce.detach()
            loss = loss + nce
        if self.loss != "nce":
            error = pixel_error(self.reconstruct(tokens), target, self.encoder.present())  # (B, N)
            mse = (error * hidden).sum() / count
            metrics["mse"] = mse.detach()
            loss = loss + (self.mse_weight if self.loss == "joint" else 1.0) * mse
        metrics["loss"] = loss.detach()
        return loss, metrics

    def similarity(self, tokens, target, hidden):
        """S (B, target, prediction); pairs with a visible patch are -inf, but for the diagonal, which stays finite."""
        s = target @ self.classify(tokens).transpose(1, 2)
        pair = hidden[:, :, None] & hidden[:, None, :]
        eye = torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
        return s.masked_fill(~(pair | eye), float("-inf"))

    def _nce(self, similarity, hidden, count):
        axis = 2 if self.nce_axis == "released" else 1
        diagonal = similarity.log_softmax(axis).diagonal(dim1=1, dim2=2)  # (B, N)
        nce = -(diagonal * hidden).sum() / count
        best = similarity.detach().softmax(2).argmax(1)  # (B, N): each prediction's best target
        right = (best == torch.arange(best.shape[1], device=best.device)) & hidden
        return nce, right.sum() / count

    @property
    def exported(self):
        return self.encoder

    def flops(self):
        c = self.encoder.config
        heads = (2 if self.loss == "joint" else 1) * 2 * c.n_tokens * c.dim * (c.dim + c.patch[0] * c.patch[1])
        return 3 * (c.forward_flops() + heads)


class MAE(nn.Module):
    """Masked autoencoder (He et al. 2022) with a plain decoder, as Dasheng's and Bird-MAE's.

    The encoder sees the visible patches only; a narrow transformer gets its tokens, and a mask token in each hidden
    place, and predicts pixels. With a patch's pixels brought to mean 0 and variance 1 (unbiased, + var_floor):

        loss = mean over hidden patches and pixels of (prediction - target)²

    Targets are pixels of the spectrogram before the encoder's input norm. Positions are learned, from zero. A larger
    var_floor keeps faint noise faint: with the published 1e-6 it counts as much as a call.
    Deviation: AudioMAE's shifted-window decoder is replaced by the plain one.
    """

    def __init__(self, encoder, masking="group", hidden=0.75, decoder_dim=512, decoder_depth=8, decoder_heads=16,
                 var_floor=1e-6):
        super().__init__()
        self.encoder, self.masking, self.hidden, self.var_floor = encoder, masking, hidden, var_floor
        c = encoder.config
        self.narrow = replace(c, dim=decoder_dim, depth=decoder_depth, heads=decoder_heads, norm="pre", drop_path=0.0,
                              qkv_bias=True, prenet=0, positions="learned", alibi=False, rate="fixed", streams=(),
                              hear="all")
        self.embed = nn.Linear(c.dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(decoder_dim))
        self.positions = nn.Parameter(torch.zeros(*c.grid, decoder_dim)) if c.positions != "physical" else None
        self.blocks = nn.ModuleList(Block(self.narrow) for _ in range(decoder_depth))
        self.norm = nn.LayerNorm(decoder_dim, eps=c.eps)
        self.predict = nn.Linear(decoder_dim, c.patch[0] * c.patch[1])
        for part in (self.embed, self.blocks, self.predict):
            initialise(part, c.init)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, x, lengths=None, seeds=None, mask=None):
        """x: wave (B, S) or spec (B, F, T); mask bool (B, T', F'), drawn by seeds (B,) unless given."""
        spec = self.encoder.frontend(x, lengths) if x.dim() == 2 else x
        target = self.encoder.patches(spec)  # (B, T', F', P)
        if mask is None:
            mask = draw_mask(self.masking, self.hidden, self.encoder, seeds, lengths)
        mask = self.encoder.only_there(mask[:, :target.shape[1]], spec)
        tokens = self.encoder.tokens(spec, mask, lengths, visible_only=True)[:, self.encoder.config.specials:]
        prediction = self.decode(tokens, mask, lengths, self.encoder.there(spec))  # (B, N, P)
        with torch.autocast(x.device.type, enabled=False):
            target, hidden, count = self.normed(target.float()).flatten(1, 2), mask.flatten(1), mask.sum()
            loss = (pixel_error(prediction.float(), target, self.encoder.present()) * hidden).sum() / count
            return loss, {"count": count, "loss": loss.detach(), "spread": spread(tokens)}

    def normed(self, target):
        """Each patch of target (B, T', F', P) brought to mean 0 and variance 1 over the pixels that there are."""
        if (present := self.encoder.present()) is None:
            return (target - target.mean(3, keepdim=True)) / (target.var(3, keepdim=True) + self.var_floor).sqrt()
        n = present.sum(1, keepdim=True)
        target = target - (target * present).sum(3, keepdim=True) / n
        variance = (target.square() * present).sum(3, keepdim=True) / (n - 1).clamp(min=1)
        return target / (variance + self.var_floor).sqrt()

    def decode(self, tokens, mask, lengths=None, there=None):
        """Visible tokens (B, V, D), mask (B, T', F'), there None or (B, T', F') -> predicted pixels (B, N, P)."""
        columns, t = self.encoder.valid_columns(lengths), mask.shape[1]
        shown, keep, valid = ~mask, None, there
        if columns is not None:
            valid = (torch.arange(t, device=mask.device) < columns[:, None])[:, :, None].expand_as(mask)
            valid = valid if there is None else valid & there
        if valid is not None:
            shown, keep = shown & valid, valid.flatten(1)[:, None, None]
        x = scattered(self.embed(tokens), shown.flatten(1), self.mask_token)
        positions = self.positions
        if positions is None:
            positions = physical_positions(self.encoder.config, self.narrow.dim, x.device)
        x = x + positions[:t].flatten(0, 1)
        for block in self.blocks:
            x = block(x, keep)[0]
        return self.predict(self.norm(x))

    @property
    def exported(self):
        return self.encoder

    def flops(self):
        c, d, n = self.encoder.config, self.narrow, self.encoder.config.n_tokens
        visible = n - n_of(self.hidden, n)
        decoder = d.block_flops(n) + 2 * visible * c.dim * d.dim + 2 * n * d.dim * c.patch[0] * c.patch[1]
        return 3 * (c.embed_flops() + c.block_flops(visible + c.specials) + decoder)


# -------------------------------------------------------------------------------------------------- mean teachers

class MeanTeacher(nn.Module):
    """What EAT, Animal2Vec and ATST share: a teacher whose weights are a running average of the student's.

    The teacher is float32, never trained, without drop path and dropout, and saved with the run. After each step
    teacher = m · teacher + (1 - m) · student, m from ema[0] to ema[1] over `ema_steps` steps, linearly (data2vec)
    or on a cosine (BYOL, ATST). Only parameters are averaged; statistics of an encoder's input norm are copied.
    """

    def __init__(self, encoder, ema, ema_steps, ema_shape):
        super().__init__()
        if encoder.config.streams:
            raise ValueError("streams are learned from with ssast and the masked autoencoders")
        self.encoder, self.ema, self.ema_steps, self.ema_shape = encoder, tuple(ema), ema_steps, ema_shape

    def add_teacher(self, **parts):
        """parts: name -> the student's module of which the teacher gets a copy."""
        self.averaged = tuple(parts)
        self.teacher = nn.ModuleDict({name: deepcopy(part).requires_grad_(False) for name, part in parts.items()})

    def train(self, mode=True):
        super().train(mode)
        self.teacher["encoder"].eval()
        return self

    def decay(self, step):
        """m at `step` (from 0)."""
        (start, end), share = self.ema, min(1.0, step / max(1, self.ema_steps))
        if self.ema_shape == "cosine":
            share = (1 - cos(pi * share)) / 2
        return start + (end - start) * share

    def after_step(self, step):
        self.follow(self.decay(step))

    @torch.no_grad()
    def follow(self, decay):
        """teacher = decay · teacher + (1 - decay) · student."""
        for name in self.averaged:
            student, teacher = getattr(self, name), self.teacher[name]
            mine = dict(student.named_parameters())
            pairs = [(t, mine[key]) for key, t in teacher.named_parameters()]
            torch._foreach_lerp_([t for t, _ in pairs], [s for _, s in pairs], 1 - decay)
        buffers = dict(self.encoder.named_buffers())
        for key, buffer in self.teacher["encoder"].named_buffers():
            buffer.copy_(buffers[key])

    def restart_teacher(self):
        """The teacher becomes a copy of the student, running statistics included."""
        for name in self.averaged:
            self.teacher[name].load_state_dict(getattr(self, name).state_dict(), strict=False)  # it may lack a part

    @property
    def exported(self):
        return self.encoder


class ConvDecoder(nn.Module):
    """data2vec 2.0's decoder: grouped convolutions over the token grid, each with LayerNorm over channels, GELU and,
    where the widths agree, a residual; then a linear layer. x (B, T', F', D) -> (B, T', F', D); cells that are not
    valid (B, T', F', 1) stay 0 on the way, as what lies beyond the grid."""

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
            x = x if valid is None else x * valid
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

    def forward(self, x, lengths=None, seeds=None, mask=None):
        """x: wave (B, S) or spec (B, F, T); mask bool (B · clones, T', F'), rows of one clip together."""
        spec = self.encoder.frontend(x, lengths) if x.dim() == 2 else x
        patches = self.encoder.patch_tokens(spec, lengths)  # (B, T', F', D)
        if mask is None:
            mask = draw_mask(self.masking, self.hidden, self.encoder, seeds, lengths, self.clones, **self.options)
        mask = mask[:, :patches.shape[1]]
        with torch.no_grad():
            targets = self.targets(self.teacher_patches(spec, patches, lengths), lengths)  # (B, N, D) float32
        tokens = self.encoder.contextual(patches, mask, lengths, visible_only=True)  # (B · C, K + V, D)
        prediction = self.decode(tokens[:, self.encoder.config.specials:], mask, lengths, seeds)
        with torch.autocast(x.device.type, enabled=False):
            return self.losses(prediction.float(), tokens.float(), targets, mask, lengths)

    def teacher_patches(self, spec, patches, lengths):
        return self.teacher["encoder"].patch_tokens(spec, lengths)

    def targets(self, patches, lengths=None):
        """patch tokens (B, T', F', D) -> y (B, N, D); what is not valid is 0."""
        c = self.encoder.config
        outputs = self.teacher["encoder"].ffn_outputs(patches, lengths)
        valid = self.valid(patches, lengths)
        with torch.autocast(patches.device.type, enabled=False):
            outputs = [out[:, c.specials:].float() for out in outputs]
            y = sum(standardised(out, valid) if self.target_norm == "clip" else F.layer_norm(out, out.shape[-1:])
                    for out in outputs) / len(outputs)
            y = F.layer_norm(y, y.shape[-1:]) if self.layer_norm else y
            return y if valid is None else y * valid[..., None]

    def valid(self, grid, lengths):
        """(B, N) bool: tokens of `grid` (B, T', F', …) that hold sound, or None if all do."""
        columns = self.encoder.valid_columns(lengths)
        if columns is None:
            return None
        t, f = grid.shape[1:3]
        return (torch.arange(t, device=grid.device) < columns[:, None]).repeat_interleave(f, 1)

    def decode(self, tokens, mask, lengths=None, seeds=None):
        """Visible tokens (B · C, V, D), mask (B · C, T', F') -> predictions (B · C, N, D)."""
        rows, n, dim = len(mask), mask[0].numel(), tokens.shape[2]
        fill, shown = tokens.new_zeros(()), ~mask.flatten(1)
        if self.noise and seeds is not None:
            clones = (seeds[:, None] ^ hash64(torch.arange(rows // len(seeds), device=seeds.device))).flatten()
            fill = noise(clones, n, dim, 41) * (self.noise * 12 ** 0.5)
        valid = self.valid(mask, lengths if lengths is None else lengths.repeat_interleave(rows // len(lengths)))
        shown = shown if valid is None else shown & valid
        x = scattered(tokens, shown, fill).unflatten(1, mask.shape[1:])
        return self.decoder(x, None if valid is None else valid.view(*mask.shape, 1)).flatten(1, 2)

    def losses(self, prediction, tokens, targets, mask, lengths=None):
        """prediction (B · C, N, D), tokens (B · C, K + V, D), targets (B, N, D), all float32 -> (loss, metrics)."""
        hidden, clones, scale = mask.flatten(1), len(mask) // len(targets), targets.shape[2] ** -0.5
        count = hidden.sum()
        error = (prediction.unflatten(0, (-1, clones)) - targets[:, None]).square().sum(-1).flatten(0, 1) * scale
        loss = frame = (error * hidden).sum() / count
        metrics = {"count": count, "frame_loss": frame.detach(),
                   "spread": spread(tokens[::clones, self.encoder.config.specials:])}
        if self.cls_weight:
            valid = self.valid(mask[::clones], lengths)
            mean = targets.mean(1) if valid is None else targets.sum(1) / valid.sum(1, keepdim=True)
            error = (tokens[:, 0].unflatten(0, (-1, clones)) - mean[:, None]).square().sum(-1).flatten() * scale
            clip = (error * hidden.sum(1)).sum() / count
            loss = frame + self.cls_weight * clip
            metrics["clip_loss"] = clip.detach()
        return loss, metrics | {"loss": loss.detach()}

    def flops(self):
        c, n = self.encoder.config, self.encoder.config.n_tokens
        visible = n - n_of(self.hidden, n) + c.specials
        student = 3 * (c.patch_flops() + self.clones * (c.position_flops() + c.block_flops(visible)
                                                        + self.decoder.flops(n)))
        return student + c.position_flops() + c.block_flops(n + c.specials)


class EAT(Data2Vec):
    """EAT (Chen et al. 2024): inverse block masks, 16 clones, frame and utterance loss.

    Its code sums the utterance loss over the rows of a GPU and averages over GPUs: with 12 clips of 16 clones that is
    cls_weight 192 here, where the mean is taken; it does not depend on how the batch is cut.
    """

    def __init__(self, encoder, masking="block", hidden=0.8, clones=16, ema=(0.9998, 0.99999), ema_steps=100_000,
                 cls_weight=192.0, target_norm="clip", decoder_dim=768, decoder_depth=6, decoder_groups=16, kernel=3,
                 noise=0.01):
        super().__init__(encoder, masking, hidden, 5, clones, ema, ema_steps, cls_weight, target_norm, layer_norm=True,
                         decoder_dim=decoder_dim, decoder_depth=decoder_depth, decoder_groups=decoder_groups,
                         kernel=(kernel, kernel), noise=noise)

    def flops(self):
        return super().flops() + self.encoder.config.patch_flops()  # the teacher embeds patches too


class Animal2Vec(Data2Vec):
    """animal2vec (Schäfer-Zimmermann et al. 2024): raw waves, always mixed with another clip's, spans of hidden
    frames, 12 clones, no clip loss, targets not normalised over channels.

    The teacher shares the student's convolutions. Mixing: `views.between_class` with a ratio from U(0.5, 1), for
    mix = 1 of the clips.
    """

    def __init__(self, encoder, masking="span", hidden=0.93, span=2, clones=12, ema=(0.9997, 1.0), ema_steps=300_000,
                 target_norm="clip", decoder_dim=768, decoder_depth=4, decoder_groups=16, kernel=7, noise=0.01,
                 mix=1.0):
        super().__init__(encoder, masking, hidden, span, clones, ema, ema_steps, 0.0, target_norm, layer_norm=False,
                         decoder_dim=decoder_dim, decoder_depth=decoder_depth, decoder_groups=decoder_groups,
                         kernel=(kernel, 1), noise=noise)
        self.mix, self.takes = mix, MIXED
        self.teacher["encoder"].patch = None  # its convolutions are the student's

    def forward(self, x, lengths=None, seeds=None, mask=None, partner=None, partner_lengths=None):
        """As Data2Vec; partner (B, S): another clip for each, mixed in."""
        if partner is not None and self.mix:
            draw = uniform(seeds, 2, 42)
            mixed = views.between_class(x, partner, 1 - draw[:, 0] / 2, self.encoder.config.sample_rate)
            x = torch.where((draw[:, 1] < self.mix)[:, None], mixed, x)  # beyond a clip's end the front end cuts it
        return super().forward(self.encoder.frontend(x, lengths), lengths, seeds, mask)

    def teacher_patches(self, spec, patches, lengths):
        return patches.detach()


def standardised(y, valid=None):
    """Mean 0 and variance 1 over a clip's valid tokens, channel by channel: y (B, N, D), valid (B, N) -> (B, N, D)."""
    if valid is None:
        return F.instance_norm(y.transpose(1, 2)).transpose(1, 2)
    weight = valid[..., None] / valid.sum(1)[:, None, None]
    mean = (y * weight).sum(1, keepdim=True)
    return (y - mean) / (((y - mean).square() * weight).sum(1, keepdim=True) + 1e-5).sqrt()


class ATST(MeanTeacher):
    """ATST-Clip (Li and Li 2022) and, with `frames`, ATST-Frame (Li et al. 2024): two views agree across networks.

    Clip: both views are random `view_seconds` of the clip, mixed with another clip in the log-mel and stretched at
    random; student heads p = predictor(projector(class token)), teacher heads z = projector(class token):

        loss = ½ [(2 - 2 cos(p₁, z₂)) + (2 - 2 cos(p₂, z₁))],   mean over clips

    Frame: view 1 is the clip, view 2 is mixed and warped in frequency; both hide the same frames from the student, and
    heads and loss act on the hidden frames. Heads have BatchNorm over both views together, the teacher's too (with its
    own statistics). The share mixed in is U(0, mix). stretch: least and largest share of the axes that a view takes
    and stretches; the wider, the less it matters at which frequency an animal calls. canvas: what lies around the clip
    before that, 0 as published, or the clip's own minimum ("floor"; on the published scale 0 is far from silence).
    Deviations: partners come from the loader, not from a memory of 2000; one partner, cut twice, serves both views.
    """

    def __init__(self, encoder, frames=False, view_seconds=6.0, masking="span", hidden=0.5, span=5, mix=0.4,
                 stretch=(0.6, 1.5), canvas="published", ema=(0.99, 1.0), ema_steps=39_100, head_dim=4096,
                 head_out=256):
        super().__init__(encoder, ema, ema_steps, "cosine")
        if not (encoder.config.mask_token if frames else encoder.config.specials):
            raise ValueError(f"it has no {'mask' if frames else 'class'} token")
        if stretch[0] > stretch[1]:
            raise ValueError(f"stretch from {stretch[0]:g} to {stretch[1]:g} runs backwards")
        if encoder.config.rate == "any":
            raise ValueError("its views stretch the frequency axis, which --rate any fixes in hertz")
        self.frames, self.view_seconds, self.mix = frames, view_seconds, mix
        self.stretch, self.canvas = tuple(stretch), canvas
        self.masking, self.hidden, self.options = masking, hidden, {"span": span} if masking == "span" else {}
        self.takes = MIXED
        self.projector = head(encoder.config.dim, head_dim, head_out)
        self.predictor = head(head_out, head_dim, head_out)
        self.add_teacher(encoder=encoder, projector=self.projector)

    def forward(self, x, lengths=None, seeds=None, mask=None, partner=None, partner_lengths=None):
        """wave (B, S), lengths (B,), seeds (B,); partner (B, S): another clip for each, mixed in."""
        first, second, lengths = self.views(x, lengths, seeds, partner, partner_lengths)
        return self.agree(torch.cat([first, second]), lengths, seeds, mask)

    def views(self, wave, lengths, seeds, partner=None, partner_lengths=None):
        """Two spectrograms (B, F, T) of each clip and the valid samples (B,) of both, None if all are."""
        samples, out = round(self.view_seconds * self.encoder.config.sample_rate), []
        for k in range(2):
            if k == 0 or not self.frames:  # the second view of frames is of the same part
                part, valid = views.crop(wave, lengths, samples, seeds, 50 + k)
                spec = self.encoder.frontend(part, None if lengths is None else valid)
            if k or not self.frames:
                if partner is not None and self.mix:
                    spec = self._mixed(spec, partner, partner_lengths, samples, seeds, k)
                fill = 0.0 if self.canvas == "published" else spec.amin((1, 2), keepdim=True)
                spec = views.resize_crop(spec, seeds, 54 + k, not self.frames, fill, *self.stretch)
            out.append(spec)
        return *out, None if lengths is None else valid

    def _mixed(self, spec, partner, lengths, samples, seeds, k):
        part, valid = views.crop(partner, lengths, samples, seeds, 52 + k)
        other = self.encoder.frontend(part, None if lengths is None else valid)
        frames = torch.arange(other.shape[2], device=other.device)
        valid = frames < self.encoder.config.n_frames(valid)[:, None]
        return views.log_mix(spec, other, self.mix * uniform(seeds, 1, 58 + k)[:, 0], valid)

    def agree(self, spec, lengths=None, seeds=None, mask=None):
        """spec (2 B, F, T), view 1 of all clips, then view 2; lengths (B,); mask (B, T', F') -> (loss, metrics)."""
        lengths = None if lengths is None else lengths.repeat(2)
        if self.frames:
            mask = self._frame_mask(spec, lengths, seeds, mask)
        student = self.encoder.tokens(spec, mask, lengths)
        with torch.no_grad():
            teacher = self.teacher["encoder"].tokens(spec, lengths=lengths)
        where = mask.flatten(1) if self.frames else None
        with torch.autocast(spec.device.type, enabled=False):
            picked = [x.float()[where] if self.frames else x[:, 0].float() for x in (student, teacher)]
            prediction = self.predictor(self.projector(picked[0]))  # (2 M, head_out)
            with torch.no_grad():
                target = self.teacher["projector"](picked[1])
            swapped = target.roll(len(target) // 2, 0)
            loss = 2 - 2 * F.cosine_similarity(prediction, swapped).mean()
            count = torch.tensor(len(target) // 2, device=spec.device)
            tokens = student[:, self.encoder.config.specials:]
            return loss, {"count": count, "loss": loss.detach(), "spread": spread(tokens),
                          "std_student": deviation(prediction), "std_teacher": deviation(target)}

    def _frame_mask(self, spec, lengths, seeds, mask):
        columns = self.encoder.config.columns(spec.shape[2])
        if mask is None:
            mask = draw_mask(self.masking, self.hidden, self.encoder, seeds,
                             None if lengths is None else lengths[:len(seeds)], **self.options)
        return mask[:, :columns].repeat(2, 1, 1)

    @property
    def exported(self):
        return self.teacher["encoder"]  # as published

    def flops(self):
        c = self.encoder.config
        n = c.columns(round(self.view_seconds / c.hop)) * c.grid[1]
        heads = sum(2 * p.numel() for part in (self.projector, self.predictor) for p in part.parameters() if p.ndim > 1)
        each = n_of(self.hidden, n) if self.frames else 1
        return 2 * (4 * (n / c.n_tokens * c.embed_flops() + c.block_flops(n + c.specials)) + 3.5 * each * heads)


def head(dim, hidden, out):
    """ATST's projector and predictor: linear, BatchNorm, ReLU, linear, no biases."""
    return nn.Sequential(nn.Linear(dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(),
                         nn.Linear(hidden, out, bias=False))


def deviation(x):
    """Mean deviation over rows of L2-normalised vectors (M, D): 0 when collapsed, at most 1 / √D."""
    return F.normalize(x.detach(), dim=1).std(0).mean()


def objective_of(recipe, encoder, **defaults):
    """The objective that a recipe (or a dict like one) asks for; `defaults` are for settings that it leaves open."""
    settings = defaults | {k: recipe[k] for k in SETTINGS[recipe["objective"]] if recipe.get(k) is not None}
    return globals()[recipe["objective"]](encoder, **settings)


def n_of(hidden, total):
    """How many tokens `hidden`, a count or a share, is."""
    return hidden if isinstance(hidden, int) else round(hidden * total)
