"""Raw waves: animal2vec's learned filterbank and convolutions."""
from math import ceil

import torch
import torch.nn.functional as F
from torch import nn

from wren.nets.lengths import valid_until
from wren.nets.spectrograms import reflect


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

    def forward(self, wave, lengths=None, rate=None):
        """rate: of the waves, Hz; the filters keep their hertz, the convolutions follow the samples."""
        return self.linear(self.norm(self.features(wave, lengths, rate)))

    def features(self, wave, lengths=None, rate=None):
        """wave (B, 1, S) -> (B, T', C), before the projection."""
        x = self.norms[0](self.sinc(wave[:, 0], lengths, rate))
        lengths = [None] * len(self.norms) if lengths is None else self.config.conv_lengths(lengths)
        x = x * self.swish_alpha * torch.sigmoid(self.swish_beta * x)
        x = self._silenced(x, lengths[0])
        for conv, norm, length in zip(self.convs, self.norms[1:], lengths[1:]):
            if conv.stride[0] == 1:  # "same"; PyTorch's own warns at even kernels
                x = F.pad(x, (0, 0, (conv.kernel_size[0] - 1) // 2, conv.kernel_size[0] // 2))
            x = self._silenced(F.gelu(norm(conv_time(x, conv))), length)
        return x

    @staticmethod
    def _silenced(x, lengths):
        """Zeros beyond each clip's end, which is what a convolution over the clip alone would see there."""
        return x if lengths is None else x * valid_until(lengths, x.shape[1])[..., None]


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
    """Band-pass filters between learned cut-offs (Ravanelli and Bengio 2018): wave (B, S) -> (B, S / stride, filters).

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
            self.register_buffer("samples", torch.arange(-half, 0), persistent=False)

    def filters(self, rate=None):
        """(n, kernel), for waves at `rate` Hz (default: that of training)."""
        rate = rate or self.sample_rate
        low = 50 + self.low.abs()
        high = (low + self.least + self.band.abs()).clamp(50.0, rate / 2)
        band = (high - low)[:, None]
        phase = 2 * torch.pi * self.samples / rate
        left = 2 * (torch.sin(high[:, None] * phase) - torch.sin(low[:, None] * phase)) / phase * self.window
        return torch.cat([left, 2 * band, left.flip(1)], 1) / (2 * band)

    def forward(self, wave, lengths=None, rate=None):
        """lengths (B,) valid samples or None; each clip is mirrored at its own ends."""
        lengths = None if lengths is None else lengths.clamp(min=self.kernel)
        wave = reflect(wave, self.kernel // 2, lengths)
        # as a matrix product its channels lie last, as the norm and the convolutions after it want them
        return wave.unfold(1, self.kernel, self.stride) @ self.filters(rate).T.to(wave.dtype)


def _mel(hertz):
    return float(2595 * torch.log10(torch.tensor(1 + hertz / 700, device="cpu")))
