"""ATST: agree with a mean teacher on two views of a clip (ATST-Clip) or on what is hidden in both (ATST-Frame)."""
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from masking import uniform
from wren.nets.batchnorm import BatchNorm
from wren.nets.lengths import Windows
from wren.objectives import views
from wren.objectives.common import Count, CountOrShare, Masking, Pair, Positive, Share, draw_mask, n_of, spread
from wren.objectives.teacher import MIXED, MeanTeacher
from wren.recipes.arithmetic import block_bytes, block_flops, embed_flops, view_tokens


class ATST(MeanTeacher):
    """ATST-Clip (Li and Li 2022) and, with `frames`, ATST-Frame (Li et al. 2024): two views agree across networks.

    Clip: both views are random `view_seconds` of the clip, mixed with another clip in the log-mel, stretched, shifted
    in frequency and filtered at random; student heads p = predictor(projector(v)), teacher heads z = projector(v) of
    the class token v, or, of an encoder that pools rows, of its clip vector:

        loss = ½ [(2 - 2 cos(p₁, z₂)) + (2 - 2 cos(p₂, z₁))],   mean over clips

    Frame: view 1 is the clip, view 2 is mixed and warped in frequency; both hide the same frames from the student, and
    heads and loss act on the hidden frames. Heads have BatchNorm over both views together, the teacher's too (with its
    own statistics). The share mixed in is U(0, mix).
    Deviations: partners come from the loader, not from a memory of 2000; one partner, cut twice, serves both views.
    `pitch` and `colour` are ours: without them the agreement is about the level of each band, which tells recordings
    apart, and the encoder learns nothing that helps to recognise an animal in another one (docs/results.md).

    Settings:
        frames: learn frames, not clips (set by the recipe)
        masking: frames: span: runs of columns
        hidden: frames: hidden tokens of a full clip, a count or a share
        span: frames: columns of a span
        view_seconds: length of a view, s
        mix: largest share of another clip
        mix_scale: what is mixed: normalised decibels, as published, or power
        stretch: share of time and of frequency that a view takes and stretches (published: 0.6 1.5)
        pitch: largest shift of the frequency axis, a share of its bands, and largest change of its scale
            (published: 0 0)
        colour: deviation of a random filter over the bands, dB, and a third of the largest change of level
            (published: 0)
        canvas: around a stretched view lies 0, as published, or the clip's minimum (on the published
            scale 0 is far from silence)
        head_dim: hidden width of projector and predictor
        ema: teacher = m · teacher + (1 - m) · student: m at first, m at last
        ema_steps: steps from the first m to the last (default: all)
    """

    def __init__(self, encoder, frames: bool = False, masking: Masking = "span", hidden: CountOrShare = 0.5,
                 span: Count = 5, view_seconds: Positive = 6.0, mix: Share = 0.4,
                 mix_scale: Literal["published", "power"] = "published", stretch: Pair = (0.6, 1.5),
                 pitch: Pair = (0.0, 0.0), colour: float = 0.0, canvas: Literal["published", "floor"] = "published",
                 head_dim: Count = 4096, ema: Pair = (0.99, 1.0), ema_steps: Count = 39_100):
        super().__init__(encoder, ema, ema_steps, "cosine")
        rows = encoder.config.pool == "rows"
        if not (encoder.config.mask_token if frames else encoder.config.specials or rows):
            raise ValueError(f"it has no {'mask' if frames else 'class'} token")
        if stretch[0] > stretch[1]:
            raise ValueError(f"stretch from {stretch[0]:g} to {stretch[1]:g} runs backwards")
        if encoder.config.rate == "any":
            raise ValueError("its views stretch the frequency axis, which --rate any fixes in hertz")
        self.frames, self.view_seconds, self.mix = frames, view_seconds, mix
        self.mix_scale, self.stretch, self.pitch, self.colour, self.canvas = mix_scale, stretch, pitch, colour, canvas
        self.masking, self.hidden, self.options = masking, hidden, {"span": span} if masking == "span" else {}
        self.takes = MIXED
        self.projector = Head(encoder.config.width if rows and not frames else encoder.config.dim, head_dim, 256)
        self.predictor = Head(256, head_dim, 256)
        self.add_teacher(encoder=encoder, projector=self.projector)

    def forward(self, x, lengths=None, seeds=None, mask=None, partner=None, partner_lengths=None, rate=None):
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
                spec = self._varied(spec, seeds, k)
            out.append(spec)
        return *out, None if lengths is None else valid

    def _mixed(self, spec, partner, lengths, samples, seeds, k):
        part, valid = views.crop(partner, lengths, samples, seeds, 52 + k)
        other = self.encoder.frontend(part, None if lengths is None else valid)
        frames = torch.arange(other.shape[2], device=other.device)
        valid = frames < self.encoder.config.n_frames(valid)[:, None]
        nats = views.nats(self.encoder.config) if self.mix_scale == "power" else 1.0
        share = self.mix * uniform(seeds, 1, 58 + k)[:, 0]
        return views.log_mix(spec * nats, other * nats, share, valid) / nats

    def _varied(self, spec, seeds, k):
        """Stretched, shifted and filtered: spec (B, F, T) of view k -> the same shape."""
        if tuple(self.stretch) != (1, 1):
            fill = 0.0 if self.canvas == "published" else spec.amin((1, 2), keepdim=True)
            spec = views.resize_crop(spec, seeds, 54 + k, not self.frames, fill, *self.stretch)
        if any(self.pitch):
            spec = views.shift_bands(spec, seeds, 60 + k, *self.pitch)
        deviation = self.colour / views.DECIBELS / views.nats(self.encoder.config)
        return views.recolour(spec, seeds, 62 + k, deviation) if self.colour else spec

    def agree(self, spec, lengths=None, seeds=None, mask=None):
        """spec (2 B, F, T), view 1 of all clips, then view 2; lengths (B,); mask (B, T', F') -> (loss, metrics)."""
        lengths, valid = None if lengths is None else lengths.repeat(2), None
        if self.frames:
            mask, index, valid = self._hidden(spec, lengths, seeds, mask)
            tokens = self.encoder.tokens(spec, mask, lengths)
            with torch.no_grad():
                teacher = self.teacher["encoder"].tokens(spec, lengths=lengths).gather(1, index).flatten(0, 1)
            student = tokens.gather(1, index).flatten(0, 1)
        else:
            tokens, student = clip_vectors(self.encoder, spec, lengths)
            with torch.no_grad():
                teacher = clip_vectors(self.teacher["encoder"], spec, lengths)[1]
        with torch.autocast(spec.device.type, enabled=False):
            prediction = self.predictor(self.projector(student.float(), valid), valid)  # (2 M, 256)
            with torch.no_grad():
                target = self.teacher["projector"](teacher.float(), valid)
            count = prediction.new_ones(len(target)) if valid is None else valid.float()
            share, swapped = count / count.sum(), target.roll(len(target) // 2, 0)
            loss = 2 - 2 * (F.cosine_similarity(prediction, swapped) * share).sum()
            return loss, {"count": count.sum() / 2, "loss": loss.detach(),
                          "spread": spread(tokens[:, self.encoder.config.specials:]),
                          "std_student": deviation(prediction, share), "std_teacher": deviation(target, share)}

    def _hidden(self, spec, lengths, seeds, mask):
        """spec (2 B, F, T) -> mask (2 B, T', F'); index (2 B, M', D), which tokens of a clip it hides, filled up with
        others where it hides fewer; and which of these (2 B · M') are hidden, or None (all)."""
        c = self.encoder.config
        columns, total = c.columns(spec.shape[2]), c.n_tokens
        whole = mask is None and lengths is None
        if mask is None:  # of a view that is shorter than the encoder's clip the same share is hidden
            most = (2 * n_of(self.hidden, total) * columns * c.grid[1] + total) // (2 * total)
            if lengths is not None or columns < c.grid[0]:
                samples = round(self.view_seconds * c.sample_rate)
                lengths = torch.full_like(seeds, samples) if lengths is None else lengths[:len(seeds)]
            mask = draw_mask(self.masking, self.hidden, c, seeds, lengths, **self.options)
        else:
            most = int(mask.flatten(1).sum(1).max())
        mask = mask[:, :columns].repeat(2, 1, 1)
        hidden = mask.flatten(1)
        index = (~hidden).to(torch.int8).argsort(dim=1, stable=True)[:, :most]
        valid = None if whole else hidden.gather(1, index).flatten()
        return mask, (index + c.specials)[..., None].expand(-1, -1, c.dim), valid

    @property
    def exported(self):
        return self.teacher["encoder"]  # as published

    def flops(self):
        c, n = self.encoder.config, view_tokens(self.encoder.config, self.view_seconds)
        heads = sum(2 * p.numel() for part in (self.projector, self.predictor) for p in part.parameters() if p.ndim > 1)
        each = n_of(self.hidden, n) if self.frames else 1
        return 2 * (4 * (n / c.n_tokens * embed_flops(c) + block_flops(c, n + c.specials)) + 3.5 * each * heads)

    def kept(self):
        c, n = self.encoder.config, view_tokens(self.encoder.config, self.view_seconds)
        return 2 * block_bytes(c, n + c.specials, self.encoder.checkpoint_activations)


def clip_vectors(encoder, spec, lengths):
    """spec (B, F, T), lengths (B,) valid samples or None -> tokens (B, K + N, D), and what the heads read of each clip,
    (B, D'): the statistics of its rows, if that is how the encoder pools, else the class token."""
    if encoder.config.pool != "rows":
        tokens = encoder.tokens(spec, lengths=lengths)
        return tokens, tokens[:, 0]
    clips = torch.arange(len(spec), device=spec.device)
    encoded = encoder.encode_windows(Windows(spec, encoder.config.extent(lengths), clips, clips * 0, len(spec)))
    return encoded.tokens, encoder.pool(encoded)


class Head(nn.Sequential):
    """ATST's projector and predictor: linear, BatchNorm, ReLU, linear, no biases."""

    def __init__(self, dim, hidden, out):
        super().__init__(nn.Linear(dim, hidden, bias=False), BatchNorm(hidden), nn.ReLU(),
                         nn.Linear(hidden, out, bias=False))

    def forward(self, x, valid=None):
        """x (M, D), valid bool (M,): rows that BatchNorm counts, None: all."""
        wide, norm, act, narrow = self
        return narrow(act(norm(wide(x), valid)))


def deviation(x, share):
    """Mean deviation over rows of L2-normalised vectors (M, D) that weigh share (M,): 0 when collapsed, at most about
    1 / √D."""
    x, n, share = F.normalize(x.detach(), dim=1), 1 / share.max(), share[:, None]
    return ((x - (x * share).sum(0)).square() * share).sum(0).mul(n / (n - 1)).sqrt().mean()
