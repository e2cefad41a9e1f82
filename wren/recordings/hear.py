"""wren's encoders in the suites HEAR and X-ARES, which run them as they are, with this checkout in PYTHONPATH.

    heareval embeddings: python -m heareval.embeddings.runner wren.recordings.hear --model runs/NAME/encoder.pt \\
                             --tasks-dir TASKS
    X-ARES:              WREN_CHECKPOINT=runs/NAME python -m xares.run --max-jobs 0 wren/recordings/hear.py TASKS/*.py

HEAR's common API (hearbenchmark.com/hear-api.html): load_model(path) -> a module with sample_rate (one of RATES),
scene_embedding_size and timestamp_embedding_size; get_scene_embeddings(audio (B, S), model) -> (B, D) and
get_timestamp_embeddings(audio, model) -> (B, T', D) and (B, T') milliseconds of their centres, at regular intervals,
all float32. HEAR suggests intervals of at most 50 ms; those here are the encoder's token columns: 20 ms where a patch
is two frames of all bands, 160 ms for patches of 16 × 16.

X-ARES: a module whose name ends in Encoder, with sampling_rate, output_dim and hop_size_in_ms, and forward(audio (B, S)
or (S)) -> (B, T', D). Without a GPU it needs --max-jobs 0, since its default divides by the number of GPUs; its own
reading of audio needs the package torchcodec.
"""
import os
from math import ceil

import torch
import torchaudio

from model import load_encoder
from wren.formats import newest_encoder
from wren.recordings.windows import token_columns

RATES = (16000, 22050, 44100, 48000)  # Hz that HEAR's validator takes


class Model(torch.nn.Module):
    """An encoder with the attributes that HEAR asks for."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.rate = encoder, encoder.config.heard_rate(RATES[-1])
        self.sample_rate = next((rate for rate in RATES if rate >= self.rate), RATES[-1])  # resampled if it isn't rate
        self.scene_embedding_size, self.timestamp_embedding_size = encoder.config.width, encoder.config.dim

    def wave(self, audio):
        """audio (B, S) at sample_rate -> at the encoder's rate."""
        return torchaudio.functional.resample(audio, self.sample_rate, self.rate)


def load_model(model_file_path=""):
    """A checkpoint (file, run folder, preset's name, published file; default: the newest run) as a `Model`."""
    return Model(load_encoder(model_file_path or newest_encoder("runs")))


@torch.no_grad()
def get_scene_embeddings(audio, model):
    """audio (B, S) in [-1, 1] at model.sample_rate -> (B, scene_embedding_size) float32."""
    return model.encoder.embed(model.wave(audio), rate=model.rate).float()


@torch.no_grad()
def get_timestamp_embeddings(audio, model):
    """audio (B, S) in [-1, 1] at model.sample_rate -> (B, T', timestamp_embedding_size), (B, T') ms, float32."""
    x, times = columns(model.encoder, model.wave(audio), model.rate)
    return x.float(), (1000 * times).float().expand(len(x), -1)


def columns(encoder, wave, rate=None):
    """Token columns at regular intervals, wave (B, S) -> (B, T', D), their centres (T',) in seconds, within the wave.

    Longer waves are cut into windows of the training length. These begin a whole number of columns apart: patches
    that overlap, or don't fill the window, would otherwise leave the regular grid where windows meet.
    """
    c, samples = encoder.config.at_rate(rate), wave.shape[1]
    step, size = round(c.stride[1] * c.hop * c.sample_rate), c.chunk_samples
    taken = max(1, min(token_columns(c, size), size // step))  # columns of each window but the last
    hop, size = taken * step, min(size, samples)
    n = 1 + ceil((samples - size) / hop)
    windows = torch.nn.functional.pad(wave, (0, (n - 1) * hop + size - samples)).unfold(1, size, hop)  # (B, n, size)
    lengths = (samples - hop * torch.arange(n, device=wave.device)).clamp(max=size)
    x = encoder.frames(windows.flatten(0, 1), lengths.repeat(len(wave)), rate=rate)
    x = x.unflatten(0, (-1, n))  # (B, n, T', D)
    x = torch.cat([x[:, :-1, :taken].flatten(1, 2), x[:, -1, :token_columns(c, int(lengths[-1]))]], 1)
    centres = first_centre(c) + torch.arange(x.shape[1], device=x.device, dtype=torch.float64) * step / c.sample_rate
    end = samples / c.sample_rate
    inside = max(1, int((centres <= end).sum()))
    return x[:, :inside], centres[:inside].clamp(max=end)


def first_centre(config):
    """Seconds from the start to the middle of what the first token column sees."""
    c = config
    if c.frontend == "mel-db":  # frames are centred on their time
        return (c.patch[1] - 1) * c.hop / 2
    if c.frontend == "kaldi":
        return ((c.patch[1] - 1) * c.hop + c.window) / 2
    centre, jump = 0.0, 1
    for _, kernel, stride in c.convs[1:]:
        before = (kernel - 1) // 2 if stride == 1 else (stride + 1) // 2
        centre, jump = centre + jump * ((kernel - 1) / 2 - before), jump * stride
    return centre / c.sample_rate


class WrenEncoder(torch.nn.Module):
    """For X-ARES. checkpoint: as for `load_model` (default: the environment's WREN_CHECKPOINT, or the newest run)."""

    def __init__(self, checkpoint=None):
        super().__init__()
        self.encoder = load_model(checkpoint or os.environ.get("WREN_CHECKPOINT", "")).encoder
        c = self.encoder.config
        self.sampling_rate, self.output_dim, self.hop_size_in_ms = c.sample_rate, c.dim, 1000 * c.stride[1] * c.hop

    @torch.no_grad()
    def forward(self, audio):
        """audio (B, S) or (S) in [-1, 1] at sampling_rate -> (B, T', output_dim) float32."""
        return columns(self.encoder, torch.atleast_2d(audio))[0].float()
