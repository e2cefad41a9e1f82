"""How much in a stretch of sound is like a call: what `--crop active` chooses by.

The measure is a spectral flux over a running background. Power in frames of 32 ms (Hann, every 16 ms) is summed in 24
bands, spaced evenly in the logarithm of frequency from 500 Hz (wind and handling noise lie below) to 0.45 of the
sampling rate. A band's background is the mean of its level (dB) over the second around each frame. What rises more
than 6 dB above it counts; a frame's flux is the mean of that over bands, a stretch's activity the mean over frames.
Steady sound of any loudness (hum, insects, rain as a hiss) scores near zero, as does a change of the level by itself.
"""
import numpy as np

BANDS, LOWEST, HIGHEST = 24, 500.0, 0.45  # bands, Hz, share of the sampling rate
FRAME, BACKGROUND = 0.032, 1.0  # s; frames half overlap
RISE = 6.0  # dB above the background


def activity(wave, rate):
    """wave float32 [S] at `rate` Hz -> activity in dB (mean rise above the background), 0 for steady sound."""
    frame = max(16, round(FRAME * rate))
    if len(wave) < 4 * frame:
        return 0.0
    level = _levels(wave, rate, frame)  # [T, bands] dB
    half = max(1, round(BACKGROUND / FRAME))  # frames in half of the background's second
    total = np.concatenate([np.zeros((1, level.shape[1])), np.cumsum(level, axis=0)])
    high = np.minimum(np.arange(len(level)) + half + 1, len(level))
    low = np.maximum(np.arange(len(level)) - half, 0)
    background = (total[high] - total[low]) / (high - low)[:, None]
    return float(np.maximum(level - background - RISE, 0).mean())


def _levels(wave, rate, frame):
    """Band levels of half-overlapping frames -> [T, bands] dB, with a floor 60 dB below the loudest."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, frame)[::frame // 2]
    power = np.abs(np.fft.rfft(frames * np.hanning(frame).astype(np.float32))) ** 2  # [T, frame / 2 + 1]
    lowest = min(LOWEST, 0.1 * rate)
    edges = np.geomspace(lowest, HIGHEST * rate, BANDS + 1) * frame / rate  # in bins
    edges = np.maximum.accumulate(np.round(edges)).astype(int)
    edges = edges[np.concatenate([[True], np.diff(edges) > 0])]  # narrow bands at the bottom fall together
    bands = np.add.reduceat(power[:, :edges[-1]], edges[:-1], axis=1)
    return 10 * np.log10(np.maximum(bands, 1e-6 * bands.max() + 1e-20))
