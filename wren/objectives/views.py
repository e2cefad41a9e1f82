"""Views of a clip for mean-teacher learning: crops, mixtures, warped spectrograms.

All are batched, run on the device of their input, and are functions of each clip's seed.
"""
from math import log

import torch
import torch.nn.functional as F

from masking import uniform

DECIBELS = 10 / log(10)  # of a natural logarithm of power


def nats(config):
    """The natural logarithm of power that 1 of an encoder's normalised spectrogram stands for."""
    return config.scale / DECIBELS if config.frontend == "mel-db" else config.scale


def crop_frames(spec, frames, longest, shortest, seeds, stream):
    """A random part of each clip, `shortest` to all of it, at most `longest` frames: spec (B, F, T), frames (B,) valid
    or None (all) -> (B, F, at most `longest`), 0 beyond its end, and int64 (B,) valid frames."""
    batch, size = spec.shape[0], min(longest, spec.shape[2])
    frames = torch.full((batch,), spec.shape[2], device=spec.device) if frames is None else frames
    draw = uniform(seeds, 2, stream)
    valid = (frames.clamp(max=size) * (shortest + (1 - shortest) * draw[:, 0])).long().clamp(min=1)
    start = (draw[:, 1] * (frames - valid + 1)).long()
    time = torch.arange(size, device=spec.device)
    index = (start[:, None] + time).clamp(max=spec.shape[2] - 1)
    part = spec.gather(2, index[:, None].expand(-1, spec.shape[1], -1))
    return part.masked_fill((time >= valid[:, None])[:, None], 0), valid


def crop(wave, lengths, samples, seeds, stream):
    """A random part of each clip: wave (B, S), lengths (B,) or None -> (B, samples), int64 (B,) valid samples.
    Clips that are not longer stay whole."""
    batch, size = wave.shape
    all_full = lengths is None
    if all_full:
        lengths = torch.full((batch,), size, device=wave.device)
    start = (uniform(seeds, 1, stream)[:, 0].double() * ((lengths - samples).clamp(min=0) + 1)).long()
    windows = F.pad(wave, (0, max(0, samples - size))).unfold(1, samples, 1)  # (B, places, samples), not copied
    part = windows[torch.arange(batch, device=wave.device), start]
    if not all_full:
        part = part.masked_fill(torch.arange(samples, device=wave.device) >= (lengths - start)[:, None], 0)
    return part, lengths.clamp(max=samples)


def log_mix(spec, other, share, valid=None):
    """ATST's log-mixup-exp: log((1 - share) eˣ + share eᵐ), a mixture of powers where x and m are natural logarithms.

    spec, other (B, F, T), share (B,) in [0, 1), valid (B, T) bool: frames of `other` that take part, or None.
    """
    share = share[:, None, None].clamp(min=1e-6)
    mixed = torch.logaddexp(spec + torch.log1p(-share), other + share.log())
    return mixed if valid is None else torch.where(valid[:, None], mixed, spec)


def shift_bands(spec, seeds, stream, shift, scale):
    """Another voice of the same kind: the frequency axis moved and scaled, spec (B, F, T) -> (B, F, T).

    Band f holds what band (1 + U(-scale, scale)) · f + U(-shift, shift) · F held, interpolated linearly; beyond its
    ends the axis repeats its last band.
    """
    f, draw = spec.shape[1], 2 * uniform(seeds, 2, stream) - 1  # (B, 2) in [-1, 1)
    bands = torch.arange(f, device=spec.device, dtype=torch.float32)
    source = ((1 + scale * draw[:, :1]) * bands + shift * f * draw[:, 1:]).clamp(0, f - 1)  # (B, F)
    return (1 - (source[..., None] - bands).abs()).clamp(min=0) @ spec


def recolour(spec, seeds, stream, deviation):
    """Another microphone and distance: a smooth random filter, seven values from the lowest to the highest band, each
    of `deviation`, and a level of U(-3, 3) deviations. spec (B, F, T), on the scale of a logarithm."""
    draw = 2 * uniform(seeds, 8, stream) - 1
    knots = 3 ** 0.5 * draw[:, None, 1:]
    response = F.interpolate(knots, spec.shape[1], mode="linear", align_corners=True).transpose(1, 2)  # (B, F, 1)
    return spec + deviation * (response + 3 * draw[:, :1, None])


def level(spec, valid):
    """Log of each clip's mean power: spec (B, F, T), natural logarithm of power, valid bool (B, T) -> (B, 1, 1)."""
    power = spec.masked_fill(~valid[:, None], float("-inf")).logsumexp((1, 2), keepdim=True)
    return power - (spec.shape[1] * valid.sum(1)[:, None, None]).log()


def resize_crop(spec, seeds, stream, time=True, fill=0.0, low=0.6, high=1.5):
    """Random resize crop (BYOL-A, ATST): a rectangle of a canvas `high` times as long as the clip, made as large as it.

    spec (B, F, T), centred in the canvas, around it `fill` (a number, or (B, 1, 1)); height U(low, high) · F, at most
    F; width U(low, high) · T, or with time=False all of T, unmoved (ATST-Frame's frequency warp, the identity in more
    than half of the draws, as there). Bicubic; deviation: at the rectangle's border the spline looks beyond it.
    """
    batch, f, t = spec.shape
    draw = uniform(seeds, 4, stream)  # (B, 4)
    canvas = int(high * t)
    height = (f * (low + (high - low) * draw[:, 0])).int().clamp(max=f)
    top = (draw[:, 1] * (f - height + 1)).int()
    y = top[:, None] + (height[:, None] - 1) * torch.linspace(0, 1, f, device=spec.device)  # (B, F)
    if time:
        width = (t * (low + (high - low) * draw[:, 2])).int().clamp(max=canvas)
        left = (draw[:, 3] * (canvas - width + 1)).int() - (canvas - t) // 2
        x = left[:, None] + (width[:, None] - 1) * torch.linspace(0, 1, t, device=spec.device)  # (B, T)
    else:
        x = torch.arange(t, device=spec.device, dtype=torch.float32).expand(batch, t)
    padded = F.pad((spec - fill)[:, None], (0, 0, 2, 2), mode="replicate")  # the spline needs rows beyond the edge
    x, y = 2 * x / max(1, t - 1) - 1, 2 * (y + 2) / (f + 3) - 1
    grid = torch.stack([x[:, None].expand(-1, f, -1), y[..., None].expand(-1, -1, t)], -1)
    return F.grid_sample(padded, grid, mode="bicubic", padding_mode="zeros", align_corners=True)[:, 0] + fill


def loudness(wave, sample_rate):
    """The loudest 50 ms of each clip, A-weighted (IEC 61672), in dB: wave (B, S) -> (B,)."""
    size = round(0.05 * sample_rate)
    frames = F.pad(wave, (0, max(0, size - wave.shape[1]))).unfold(1, size, max(1, size // 2))
    power = torch.fft.rfft(frames * torch.hann_window(size, device=wave.device)).abs().square()
    f2 = torch.fft.rfftfreq(size, 1 / sample_rate, device=wave.device).square()
    weight = 12194 ** 2 * f2 ** 2 / ((f2 + 20.6 ** 2) * (f2 + 12194 ** 2)
                                     * ((f2 + 107.7 ** 2) * (f2 + 737.9 ** 2)).sqrt())
    return 2.0 + 10 * (power @ weight.square()).amax(1).clamp(min=1e-12).log10()


def between_class(wave, other, ratio, sample_rate):
    """Between-class mixing (Tokozume et al. 2018, as animal2vec uses it): `ratio` is what is heard, not amplitude.

    wave, other (B, S), ratio (B,) in (0, 1]: with loudnesses G (dB), p = 1 / (1 + 10^((G - G') / 20) (1 - r) / r), and
    the mixture (p x + (1 - p) x') / √(p² + (1 - p)²). Labels mix as r to 1 - r.
    """
    difference = loudness(wave, sample_rate) - loudness(other, sample_rate)
    p = (1 / (1 + 10 ** (difference / 20) * (1 - ratio) / ratio))[:, None]
    return (p * wave + (1 - p) * other) / (p.square() + (1 - p).square()).sqrt()
