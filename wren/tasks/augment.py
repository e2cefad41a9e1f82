"""Changes of labelled clips: of their waves, of stretches and bands of a window's spectrogram, of patches of its grid.

Each is a pure function of the clips' seeds. Masks hide a share of what the encoder is given, whatever was padded.
"""
import torch

from masking import random_bits, uniform

_ROLL, _GAIN, _TIME, _BAND, _LEVEL, _NOISE, _COLUMNS, _ROWS = 32, 34, *range(41, 47)  # numbers of a clip's seed


def change_waves(wave, lengths, seeds, gain=0.0, roll=False):
    """roll: the valid part turns around a circle by a drawn share of its length; gain: a level from -gain to gain, dB.

    wave (B, S), lengths int64 (B,) valid samples, the rest stays 0; seeds int64 (B,) -> wave (B, S).
    """
    if roll:
        time, lengths = torch.arange(wave.shape[1], device=wave.device), lengths[:, None]
        offset = (uniform(seeds, 1, _ROLL).double() * lengths).long()  # float32 has too few digits here
        wave = torch.where(time < lengths, wave.gather(1, (time - offset) % lengths), wave)
    return wave * 10 ** (gain * (2 * uniform(seeds, 1, _GAIN) - 1) / 20) if gain else wave


def mask_spectrogram(spec, frames, seeds, time=0.0, band=0.0, noise=0.0):
    """SpecAugment (Park et al. 2019): one mask of up to `time` of a window's valid frames, one of up to `band` of its
    mel bands, both filled with the window's mean; before that SSAST's noise, U(0, 1) times a level of up to `noise`.

    spec (M, F, T), frames (M,) valid of T, seeds int64 (M,) -> (M, F, T).
    """
    valid = torch.arange(spec.shape[2], device=spec.device) < frames[:, None]  # (M, T)
    if noise:
        cells = uniform(seeds, spec[0].numel(), _NOISE).view_as(spec)
        spec = torch.where(valid[:, None], spec + noise * uniform(seeds, 1, _LEVEL)[..., None] * cells, spec)
    mean = (spec * valid[:, None]).sum((1, 2)) / (frames * spec.shape[1])
    bands = torch.full_like(frames, spec.shape[1])
    hidden = stretch(seeds, _TIME, time, frames, spec.shape[2])[:, None]
    hidden = hidden | stretch(seeds, _BAND, band, bands, spec.shape[1])[:, :, None]
    return torch.where(hidden & valid[:, None], mean[:, None, None], spec)


def stretch(seeds, stream, share, extent, size):
    """A run of 0 to share · extent places anywhere within `extent` (M,) -> bool (M, size)."""
    u = uniform(seeds, 2, stream)
    width = (u[:, 0] * (torch.floor(share * extent) + 1)).long()
    start = (u[:, 1] * (extent - width + 1)).long()
    place = torch.arange(size, device=seeds.device)
    return (place >= start[:, None]) & (place < (start + width)[:, None])


def drop_patches(seeds, grid, share, columns=None):
    """Structured patch drop (AudioMAE, M2D): `share` of a window's valid columns and of its rows are left out.

    seeds (M,), grid (T', F'), columns (M,) valid or None -> bool (M, T', F'), True = left out.
    """
    def drawn(stream, size, extent):  # (M, size)
        beyond = torch.arange(size, device=seeds.device) >= extent[:, None]
        bits = random_bits(seeds, size, stream).masked_fill(beyond, 1 << 24)
        return bits.argsort(dim=1, stable=True).argsort(dim=1) < (share * extent).long()[:, None]
    columns, rows = torch.full_like(seeds, grid[0]) if columns is None else columns, torch.full_like(seeds, grid[1])
    return drawn(_COLUMNS, grid[0], columns)[:, :, None] | drawn(_ROWS, grid[1], rows)[:, None]
