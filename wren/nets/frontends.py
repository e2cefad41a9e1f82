"""What stands before the transformer: log-mel as Kaldi, octaves at any rate, mel in decibels, raw-wave convolutions."""
from copy import copy
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from wren.recipes import octave_hertz

LOG_FLOOR = 1.1920928955078125e-07  # float32 epsilon, Kaldi's floor under the logarithm


# ------------------------------------------------------------------------------------------- log-mel as Kaldi's

def mel_filters(n_mels, n_fft, sample_rate, f_min, f_max):
    """Kaldi's triangular HTK-mel filters: float64 (n_fft / 2 + 1, n_mels); the Nyquist bin takes no part.

    Triangles are straight in mel, mel(f) = 1127 ln(1 + f / 700), so some narrow ones may hold no bin at all.
    """
    def mel(hertz):
        return 1127.0 * torch.log1p(torch.as_tensor(hertz, dtype=torch.float64) / 700.0)

    edges = torch.linspace(float(mel(f_min)), float(mel(f_max or sample_rate / 2)), n_mels + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = mel(torch.arange(n_fft // 2, dtype=torch.float64) * sample_rate / n_fft)[:, None]
    triangles = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)
    return F.pad(triangles, (0, 0, 0, 1))


class KaldiFbank(nn.Module):
    """Kaldi-style log-mel spectrogram, batched: wave (B, S) -> (B, F, T), natural log, not normalised.

    Equals torchaudio.compliance.kaldi.fbank(htk_compat=True, window_type="hanning", use_energy=False, dither=0) after
    the mean of the clip is subtracted. Frames are transformed in float64: between a loud and a silent band float32
    rounds by up to 1e-2 in the log, torchaudio's included. On the CPU they pass in blocks that fit its cache.
    """
    longer = 1  # a transform is the next power of two of so many windows

    def __init__(self, config):
        super().__init__()
        self.config, self.window, self.hop = config, config.window_samples, config.hop_samples
        self.n_fft = 1 << (self.longer * self.window - 1).bit_length()
        with torch.device("cpu"):  # tables are real even when the encoder is only described, on "meta"
            hann = torch.hann_window(self.window, periodic=False, dtype=torch.float64)
            filters = self.make_filters(config)
        self.register_buffer("hann", F.pad(hann, (0, self.n_fft - self.window)), persistent=False)
        self.register_buffer("filters", filters.float(), persistent=False)

    def make_filters(self, config):
        return mel_filters(config.n_mels, self.n_fft, config.sample_rate, config.f_min, config.f_max)

    def forward(self, wave):
        block = len(wave) if wave.is_cuda else max(1, (1 << 16) // wave.shape[1])
        return torch.cat([self._log_power(part.double()) for part in wave.split(block)]).transpose(1, 2).contiguous()

    def _log_power(self, wave):
        """wave (B, S) float64 -> (B, T, F) float32."""
        real, imag = torch.view_as_real(torch.fft.rfft(self.frames(wave))).float().unbind(-1)
        power = real.square().addcmul_(imag, imag)
        return (power @ self.filters).clamp_(min=LOG_FLOOR).log_()

    def frames(self, wave):
        """wave (B, S) float64 -> windowed frames (B, T, n_fft).

        Kaldi subtracts a frame's mean, then pre-emphasises within the frame. Here the wave is pre-emphasised and the
        means are subtracted after: the same, since the one sample of a frame whose predecessor lies outside of it,
        the first, has weight 0 in the window.
        """
        mean = F.avg_pool1d(wave[:, None], self.window, self.hop).transpose(1, 2)  # (B, T, 1)
        wave = F.pad(wave[:, 1:] - 0.97 * wave[:, :-1], (1, self.n_fft - self.window))
        frames = wave.unfold(1, self.n_fft, self.hop) * self.hann  # (B, T, n_fft)
        return frames.addcmul_(mean, self.hann, value=0.97 - 1)


# ----------------------------------------------------------------------------------------- octaves, at any rate

def octave_filters(bands, absent, n_fft, sample_rate):
    """Triangles around the bands of frontend "octave": float64 (n_fft / 2 + 1, bands), 0 for the last, `absent` ones.

    Scaled so that sound has the same values at every rate, those that it has at 16 kHz with n_fft 512; and averaged
    over the width of each FFT bin, since the lowest triangles are only a few bins wide.
    """
    centres = torch.tensor([octave_hertz(b - 0.5) for b in range(bands + 2)], dtype=torch.float64)
    left, centre, right = centres[:-2], centres[1:-1], centres[2:]
    fine = (torch.arange(16 * (n_fft // 2 + 1), dtype=torch.float64) - 7.5) / 16 * sample_rate / n_fft  # 16 in a bin
    fine = fine.abs()[:, None]
    filters = torch.minimum((fine - left) / (centre - left), (right - fine) / (right - centre)).clamp(min=0)
    filters = filters.unflatten(0, (-1, 16)).mean(1) * (16000 / sample_rate) * 512 / n_fft
    filters[:, bands - absent:] = 0
    return filters


class OctaveFbank(KaldiFbank):
    """Log power in bands at fixed hertz, the same at every sample rate: wave (B, S) -> (B, F, T).

    As Kaldi's but for three things that would mean something else at each rate: there is no pre-emphasis; frame t
    begins at the sample next to t · hop seconds, also where a hop is no whole number of samples; and transforms are
    twice as long, which is what it takes to know a window's power spectrum everywhere, not at some frequencies.
    """
    longer = 2

    def at(self, config):
        return OctaveFbank(config).to(self.hann.device)

    def make_filters(self, config):
        return octave_filters(config.n_mels, config.absent, self.n_fft, config.sample_rate)

    def frames(self, wave):
        count, hop = self.config.n_frames(wave.shape[1]), self.config.hop * self.config.sample_rate
        wave = F.pad(wave, (0, self.n_fft - self.window))
        if hop == self.hop:
            return wave.unfold(1, self.n_fft, self.hop) * self.hann
        starts = (torch.arange(count, device=wave.device, dtype=torch.float64) * hop).round().long()
        return wave.unfold(1, self.n_fft, 1)[:, starts] * self.hann


# ------------------------------------------------------------------------------------------------ mel in decibels

def reflect(wave, pad, lengths=None):
    """Mirror each clip at its own ends: wave (B, S), lengths (B,) > pad or None -> (B, pad + S + pad).

    What follows a shorter clip's mirrored end is of no use to anyone.
    """
    if lengths is None:
        return F.pad(wave[:, None], (pad, pad), mode="reflect")[:, 0]
    index = torch.arange(-pad, wave.shape[1] + pad, device=wave.device).abs().expand(len(wave), -1)
    last = lengths[:, None] - 1
    return wave.gather(1, torch.where(index > last, 2 * last - index, index).clamp(min=0))


def mel_filters_hertz(n_mels, n_fft, sample_rate, f_min, f_max):
    """HTK-mel filters whose triangles are straight in hertz and 1 at their peaks: float64 (n_fft / 2 + 1, n_mels)."""
    def mel(hertz):
        return 2595.0 * torch.log10(1 + torch.as_tensor(hertz, dtype=torch.float64) / 700.0)

    edges = torch.linspace(float(mel(f_min)), float(mel(f_max or sample_rate / 2)), n_mels + 2, dtype=torch.float64)
    edges = 700.0 * (10.0 ** (edges / 2595.0) - 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]
    return torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)


class MelDb(nn.Module):
    """Mel power in decibels: wave (B, S), lengths (B,) or None -> (B, F, T), not normalised.

    Frames are centred, the wave mirrored at both ends (of each clip). The floor is taken `floor_db` below each clip's
    own maximum; floor_over="batch" takes the batch's, as Dasheng's code does, where a loud neighbour lifts the silence
    of the others by 14 to 22 dB. Clips of
    less than half a window are filled up with silence.
    """

    def __init__(self, config):
        super().__init__()
        self.config, self.n_fft = config, config.window_samples
        with torch.device("cpu"):
            hann = torch.hann_window(self.n_fft, dtype=torch.float64)
            filters = mel_filters_hertz(config.n_mels, self.n_fft, config.sample_rate, config.f_min, config.f_max)
        self.register_buffer("hann", hann.float(), persistent=False)
        self.register_buffer("filters", filters.float(), persistent=False)

    def forward(self, wave, lengths=None):
        c, half = self.config, self.n_fft // 2
        count = c.n_frames(wave.shape[1])
        wave = F.pad(wave, (0, max(0, half + 1 - wave.shape[1])))
        wave = reflect(wave, half, None if lengths is None else lengths.clamp(min=half + 1))
        block = len(wave) if wave.is_cuda else max(1, (1 << 16) // wave.shape[1])
        db = torch.cat([self._power(part) for part in wave.split(block)]).clamp_(min=1e-10).log10_().mul_(10)
        db = db[:, :count]  # (B, T, F)
        if c.floor_db:
            valid = db
            if lengths is not None:
                frames = torch.arange(count, device=db.device)
                valid = db.masked_fill((frames >= c.n_frames(lengths)[:, None])[..., None], float("-inf"))
            loudest = valid.amax((1, 2), keepdim=True) if c.floor_over == "clip" else valid.amax()
            db = db.maximum(loudest - c.floor_db)
        return db.transpose(1, 2).contiguous()

    def _power(self, wave):
        """wave (B, S), mirrored -> mel power (B, T, F)."""
        frames = wave.unfold(1, self.n_fft, self.config.hop_samples) * self.hann
        real, imag = torch.view_as_real(torch.fft.rfft(frames)).unbind(-1)
        return real.square().addcmul_(imag, imag) @ self.filters


# ------------------------------------------------------------------------------------------------------ raw wave

class WaveEmbed(nn.Module):
    """animal2vec's patch embedding: a learned filterbank and convolutions, wave (B, 1, S) -> tokens (B, T', D).

    Sinc filters (band-passes given by two learned cut-offs), LayerNorm, PSwish, then convolutions with LayerNorm and
    GELU, then LayerNorm and a linear layer. lengths (B,) samples: each clip is convolved as if it were alone.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.sinc = SincFilters(*config.convs[0], config.sample_rate)
        channels = [c for c, _, _ in config.convs]
        self.swish_alpha = nn.Parameter(torch.full((channels[0],), 2.0))
        self.swish_beta = nn.Parameter(torch.zeros(channels[0]))
        self.convs = nn.ModuleList(
            nn.Conv1d(before, c, kernel, stride, bias=False, padding=0 if stride == 1 else (stride + 1) // 2)
            for before, (c, kernel, stride) in zip(channels, config.convs[1:]))
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
        self.norm = nn.LayerNorm(channels[-1])
        self.linear = nn.Linear(channels[-1], config.dim)
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight)

    def at(self, config):
        """The same weights at config.sample_rate: filters keep their hertz; the convolutions follow the samples."""
        view, sinc = copy(self), copy(self.sinc)
        sinc.sample_rate = config.sample_rate
        sinc._buffers = self.sinc._buffers | {"time": self.sinc.time * self.sinc.sample_rate / config.sample_rate}
        view.config, view._modules = config, self._modules | {"sinc": sinc}
        return view

    def forward(self, wave, lengths=None):
        return self.linear(self.norm(self.features(wave, lengths)))

    def features(self, wave, lengths=None):
        """wave (B, 1, S) -> (B, T', C), before the projection."""
        x = self.norms[0](self.sinc(wave[:, 0], lengths).transpose(1, 2))
        lengths = [None] * len(self.norms) if lengths is None else self.config.conv_lengths(lengths)
        x = x * self.swish_alpha * torch.sigmoid(self.swish_beta * x)
        x = self._cut(x, lengths[0])
        for conv, norm, length in zip(self.convs, self.norms[1:], lengths[1:]):
            if conv.stride[0] == 1:  # "same"; PyTorch's own warns at even kernels
                x = F.pad(x, (0, 0, (conv.kernel_size[0] - 1) // 2, conv.kernel_size[0] // 2))
            x = self._cut(F.gelu(norm(conv_time(x, conv))), length)
        return x

    @staticmethod
    def _cut(x, lengths):
        """Zeros beyond each clip's end, which is what a convolution over the clip alone would see there."""
        if lengths is None:
            return x
        return x * (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]


def conv_time(x, conv, block=100):
    """A Conv1d on tokens x (B, T, C) -> (B, T', C'), as a 2-D convolution of one row: channels stay last in memory, so
    that neither it nor the norm that follows has to copy.

    On CPUs wide and long ones pass in overlapping blocks of time: oneDNN's gradient of the weights is slow where what
    it reads for one clip outgrows the cache.
    """
    (kernel,), (stride,), (pad,) = conv.kernel_size, conv.stride, conv.padding
    batch, size, _ = x.shape
    out = (size + 2 * pad - kernel) // stride + 1
    blocks = 1 if x.is_cuda or conv.out_channels < 512 else -(-out // block)
    if blocks > 1:
        x = F.pad(x, (0, 0, pad, (blocks * block - 1) * stride + kernel - size - pad))
        x = x.unfold(1, (block - 1) * stride + kernel, block * stride).transpose(2, 3).flatten(0, 1)
        pad = 0
    x = F.conv2d(x.transpose(1, 2)[:, :, None], conv.weight[:, :, None], conv.bias, (1, stride), (0, pad),
                 groups=conv.groups)[:, :, 0].transpose(1, 2)
    return x if blocks == 1 else x.unflatten(0, (batch, blocks)).flatten(1, 2)[:, :out]


class SincFilters(nn.Module):
    """Band-pass filters between learned cut-offs (Ravanelli and Bengio 2018): wave (B, S) -> (B, filters, S / stride).

    low = 50 + |low|, high = low + sample_rate / kernel + |band| in Hz, at most the Nyquist frequency. The filters are
    differences of two sinc functions under a Hamming window, 1 at their centre.
    """

    def __init__(self, n, kernel, stride, sample_rate):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.sample_rate, self.least = sample_rate, ceil(sample_rate / kernel)
        edges = torch.linspace(_mel(30.0), _mel(sample_rate / 2 - 50 - self.least), n + 1)
        edges = 700 * (10 ** (edges / 2595) - 1)  # Hz, evenly spaced in mel
        self.low = nn.Parameter(edges[:-1].clone())
        self.band = nn.Parameter(edges.diff())
        with torch.device("cpu"):
            half = kernel // 2
            ramp = torch.linspace(0, kernel / 2 - 1, half)
            window = 0.53836 - 0.46164 * torch.cos(2 * torch.pi * ramp / kernel)
            self.register_buffer("window", window, persistent=False)
            time = torch.arange(-half, 0) / sample_rate  # s
            self.register_buffer("time", time, persistent=False)

    def filters(self):
        """(n, kernel)"""
        low = 50 + self.low.abs()
        high = (low + self.least + self.band.abs()).clamp(50, self.sample_rate / 2)
        band = (high - low)[:, None]
        phase = 2 * torch.pi * self.time
        left = 2 * (torch.sin(high[:, None] * phase) - torch.sin(low[:, None] * phase)) / phase * self.window
        return torch.cat([left, 2 * band, left.flip(1)], 1) / (2 * band)

    def forward(self, wave, lengths=None):
        """lengths (B,) valid samples or None; each clip is mirrored at its own ends."""
        lengths = None if lengths is None else lengths.clamp(min=self.kernel)
        return F.conv1d(reflect(wave, self.kernel // 2, lengths)[:, None], self.filters()[:, None], stride=self.stride)


def _mel(hertz):
    return float(2595 * torch.log10(torch.tensor(1 + hertz / 700, device="cpu")))


# ------------------------------------------------------------------------------------------------- background

def foreground(spec, margin, beyond=None):
    """What rises above the steady background: log-mel spec (B, F, T) -> max(0, spec - median over time - margin).

    A band's median over the clip is its background: wind, hum, insects, and the empty bands above a low sampling rate.
    beyond (B, 1, T) bool: frames of padding, which do not count.
    """
    values, count = spec.detach(), spec.shape[2]
    if beyond is not None:
        values, count = values.masked_fill(beyond, float("nan")), (~beyond).sum(2, keepdim=True)
    # on CPUs NumPy's sort is much faster than torch's median; both sorts put NaN last
    values = torch.from_numpy(np.sort(values.numpy(), 2)) if values.device.type == "cpu" else values.sort(2).values
    middle = torch.as_tensor((count - 1) // 2, device=spec.device).clamp(min=0).expand(*spec.shape[:2], 1)
    return (spec - values.gather(2, middle) - margin).clamp_(min=0)
