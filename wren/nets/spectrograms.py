"""Front ends, chosen where the wave comes in: log-mel as Kaldi's, octaves at any rate, mel in decibels, raw waves."""
import torch
import torch.nn.functional as F
from torch import nn

from wren.nets.lengths import valid_until
from wren.recipes import octave_hertz

LOG_FLOOR = 1.1920928955078125e-07  # float32 epsilon, Kaldi's floor under the logarithm


def blocks(wave):
    """Waves (B, S) in batches that fit a CPU's cache; on a GPU, and where the batch has no number yet, as one."""
    if wave.is_cuda or torch.compiler.is_compiling():
        return [wave]
    return wave.split(max(1, (1 << 16) // wave.shape[1]))


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
    the mean of the clip is subtracted. Frames are transformed in float64 on CPUs, where they pass in blocks that fit
    the cache, and in float32 on GPUs: between a loud and a silent band that rounds by up to 1e-2 in the log, as
    torchaudio does.
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

    def forward(self, wave, lengths=None):
        """lengths: not needed; what lies beyond a clip's end changes none of its frames."""
        parts = [self._log_power(part if part.is_cuda else part.double()) for part in blocks(wave)]
        return torch.cat(parts).transpose(1, 2).contiguous()

    def _log_power(self, wave):
        """wave (B, S) float64 or float32 -> (B, T, F) float32."""
        real, imag = torch.view_as_real(torch.fft.rfft(self.frames(wave))).float().unbind(-1)
        power = real.square().addcmul_(imag, imag)
        return (power @ self.filters).clamp_(min=LOG_FLOOR).log_()

    def frames(self, wave):
        """wave (B, S) -> windowed frames (B, T, n_fft).

        Kaldi subtracts a frame's mean, then pre-emphasises within the frame. Here the wave is pre-emphasised and the
        means are subtracted after: the same, since the one sample of a frame whose predecessor lies outside of it,
        the first, has weight 0 in the window.
        """
        if torch.compiler.is_compiling():  # ONNX's runtime pools no float64
            mean = wave.unfold(1, self.window, self.hop).mean(2, keepdim=True)  # (B, T, 1)
        else:
            mean = F.avg_pool1d(wave[:, None], self.window, self.hop).transpose(1, 2)
        wave = F.pad(wave[:, 1:] - 0.97 * wave[:, :-1], (1, self.n_fft - self.window))
        hann = self.hann.to(wave.dtype)
        frames = wave.unfold(1, self.n_fft, self.hop) * hann  # (B, T, n_fft)
        return frames.addcmul_(mean, hann, value=0.97 - 1)


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

    def make_filters(self, config):
        return octave_filters(config.n_mels, config.absent, self.n_fft, config.sample_rate)

    def frames(self, wave):
        count, hop = self.config.n_frames(wave.shape[1]), self.config.hop * self.config.sample_rate
        wave, hann = F.pad(wave, (0, self.n_fft - self.window)), self.hann.to(wave.dtype)
        if hop == self.hop:
            return wave.unfold(1, self.n_fft, self.hop) * hann
        starts = (torch.arange(count, device=wave.device, dtype=torch.float64) * hop).round().long()
        return wave.unfold(1, self.n_fft, 1)[:, starts] * hann


# ------------------------------------------------------------------------------------------------ mel in decibels

def reflect(wave, pad, lengths=None):
    """Mirror each clip at its own ends: wave (B, S), lengths (B,) > pad or None -> (B, pad + S + pad).

    What follows a shorter clip's mirrored end is of no use to anyone.
    """
    if lengths is None:
        return F.pad(wave[:, None], (pad, pad), mode="reflect")[:, 0]
    index = torch.arange(-pad, wave.shape[1] + pad, device=wave.device).abs().expand(wave.shape[0], -1)
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
    own maximum (Dasheng's code takes the batch's, where a loud neighbour lifts the silence of the others by 14 to 22
    dB). Clips of less than half a window are filled up with silence.
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
        db = torch.cat([self._power(part) for part in blocks(wave)]).clamp_(min=1e-10).log10_().mul_(10)
        db = db[:, :count]  # (B, T, F)
        if c.floor_db:
            heard = db
            if lengths is not None:
                valid = valid_until(c.n_frames(lengths), count)
                heard = db.masked_fill(~valid[..., None], float("-inf"))
            db = db.maximum(heard.amax((1, 2), keepdim=True) - c.floor_db)
        return db.transpose(1, 2).contiguous()

    def _power(self, wave):
        """wave (B, S), mirrored -> mel power (B, T, F)."""
        frames = wave.unfold(1, self.n_fft, self.config.hop_samples) * self.hann
        real, imag = torch.view_as_real(torch.fft.rfft(frames)).unbind(-1)
        return real.square().addcmul_(imag, imag) @ self.filters


# ------------------------------------------------------------------------------------------------- the front end

SPECTROGRAMS = {"kaldi": KaldiFbank, "octave": OctaveFbank, "mel-db": MelDb}


class Frontend(nn.Module):
    """wave (B, S) float in [-1, 1] -> what the embedding reads, float32: a normalised spectrogram (B, F, T), or the
    wave itself at mean 0 and variance 1, (B, 1, S).

    kaldi, octave: the mean of the valid samples is subtracted; mel-db: decibels above each clip's own floor. With pad
    "masked" what lies beyond a clip's valid length is 0 (the mean after normalisation) and nothing downstream looks at
    it. With "published" the log-mel of kaldi is padded with zeros to the training length before normalisation and
    attended, as the published code does; mel-db and wave mask padding there too, and only drop the last frames that
    fill no patch.
    """

    def __init__(self, config):
        super().__init__()
        self.config, self.at_rates = config, {}  # (sample rate, device) -> spectrogram of waves at another rate
        self.spectrogram = None if config.frontend == "wave" else SPECTROGRAMS[config.frontend](config)

    def forward(self, wave, lengths=None, rate=None):
        """wave (B, S), lengths (B,) valid samples or None (all), rate of the waves in Hz or None (the config's own;
        another one only where the encoder was trained for any)."""
        c = self.config.at_rate(rate)
        with torch.autocast(wave.device.type, enabled=False):
            wave, valid = wave.float(), valid_until(lengths, wave.shape[1])
            wave = wave if valid is None else wave.masked_fill(~valid, 0)
            if c.frontend == "wave":
                return standardised_wave(wave, valid, c.convs[0][1])
            if c.frontend != "mel-db":
                wave = without_mean(wave, valid)
                wave = F.pad(wave, (0, max(0, c.window_samples - wave.shape[1])))
            spec = self._spectrogram(c, wave.device)(wave, lengths)
            return self._normalised(spec, c, None if lengths is None else c.n_frames(lengths))

    def _apply(self, fn, recurse=True):
        """Goes to any device, but stays float32 in an encoder of another precision: levels span 120 dB."""
        return super()._apply(lambda table: table.to(fn(table).device), recurse)

    def _spectrogram(self, c, device):
        if c.sample_rate == self.config.sample_rate:
            return self.spectrogram
        key = (c.sample_rate, device)
        if key not in self.at_rates:
            self.at_rates[key] = SPECTROGRAMS[c.frontend](c).to(device)
        return self.at_rates[key]

    @staticmethod
    def _normalised(spec, c, frames):
        """spec (B, F, T), frames (B,) valid or None -> (B, F, T)."""
        valid = valid_until(frames, spec.shape[2])
        beyond = None if valid is None else ~valid[:, None]
        fill = -c.mean / c.scale if c.attends_padding else 0.0
        spec = (spec - c.mean) / c.scale
        if c.absent:
            spec[:, -c.absent:] = 0
        if beyond is not None:
            spec = spec.masked_fill(beyond, fill)
        if c.attends_padding and spec.shape[2] < c.frames:
            spec = F.pad(spec, (0, c.frames - spec.shape[2]), value=fill)
        return spec


def without_mean(wave, valid=None):
    """wave (B, S), 0 where not valid -> the same around the mean of each clip's valid samples."""
    if valid is None:
        return wave - wave.mean(1, keepdim=True)
    mean = wave.sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
    return (wave - mean).masked_fill(~valid, 0)


def standardised_wave(wave, valid, least):
    """Mean 0 and variance 1 over the valid samples; silence stays silence. wave (B, S) -> (B, 1, at least `least`)."""
    valid = torch.ones_like(wave, dtype=torch.bool) if valid is None else valid
    n = valid.sum(1, keepdim=True).clamp(min=1)
    wave = (wave - wave.sum(1, keepdim=True) / n).masked_fill(~valid, 0)
    wave = wave / (wave.square().sum(1, keepdim=True) / n + 1e-10).sqrt()
    return F.pad(wave, (0, max(0, least - wave.shape[1])))[:, None]
