"""What an encoder is: `EncoderConfig`, everything needed to use one, in physical units. No torch in here."""
import json
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, log2

from wren.cli import UserError

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974  # log-mel statistics of AudioSet, SSAST's normalisation
CHOICES = {"frontend": ("kaldi", "mel-db", "octave", "wave"), "rate": ("fixed", "any"),
           "inputs": ("all", "sound", "streams"), "pad": ("masked", "published"),
           "positions": ("learned", "fixed", "factorised", "sincos", "conv", "physical"), "norm": ("pre", "post"),
           "init": ("normal", "xavier"),
           "pool": ("mean", "rows", "specials", "both"), "features": ("tokens", "ffn")}
CONV_POSITIONS = (5, 19)  # layers and kernel of animal2vec's convolutional positions


SEMITONES, LOWEST = 12, 500.0  # bands of an octave; Hz below which they are evenly spaced, 12 in all


def octave_band(hertz):
    """Where a frequency lies on the axis of frontend "octave", in bands from 0 Hz up: even steps to 500 Hz, where FFT
    bins are wider than semitones, then 12 an octave."""
    return SEMITONES * (hertz / LOWEST if hertz < LOWEST else 1 + log2(hertz / LOWEST))


def octave_hertz(band):
    """The inverse of `octave_band`; below 0 Hz the axis goes on."""
    return LOWEST * (band / SEMITONES if band < SEMITONES else 2 ** (band / SEMITONES - 1))


def octave_rows(rate):
    """Octaves, rows of 12 bands, that reach to the Nyquist frequency of a rate in Hz; the last one perhaps in part."""
    return max(1, ceil(int(octave_band(rate / 2) + 1e-6) / SEMITONES))


@dataclass
class EncoderConfig:
    """Everything needed to use an encoder, in physical units; it travels inside every checkpoint.

    Frames are spectrogram columns; the token grid is (T', F') = (columns, rows), time first everywhere. A raw-wave
    encoder has one row of tokens, and its frames are its tokens.
    """
    name: str = "custom"
    # sound and front end
    sample_rate: int = 16000  # Hz; audio at another rate is resampled to it
    rate: str = "fixed"  # or "any": recordings are heard at their own rate, only above sample_rate not
    # kaldi: log-mel as Kaldi's. mel-db: decibels, centred frames. octave: a band a semitone. wave: convolutions
    frontend: str = "kaldi"
    window: float = 0.025  # s
    hop: float = 0.010  # s
    n_mels: int = 128
    f_min: float = 20.0  # Hz
    f_max: float = 0.0  # Hz; 0 is the Nyquist frequency
    floor_db: float = 0.0  # mel-db: no value lies further below the loudest one, 0 is no floor
    mean: float = AUDIOSET_MEAN  # (log-mel - mean) / scale is what the encoder sees
    scale: float = 2 * AUDIOSET_STD
    convs: tuple = ()  # wave: (channels, kernel, stride) of the Sinc filters, then of each convolution, in samples
    # recorded together with the sound: (name, values of a channel in a token column, mean and scale of each channel)
    streams: tuple = ()
    inputs: str = "all"  # or "sound" alone, or its "streams" alone
    # tokens
    frames: int = 1024  # training length
    chunk: int = 0  # frames of the windows that longer input is cut into; 0 is the training length
    patch: tuple = (16, 16)  # (mel bands, frames)
    stride: tuple = (16, 16)
    specials: int = 2  # special tokens before the patch tokens
    mask_token: bool = True  # has a learned token for hidden patches
    input_norm: bool = False  # BatchNorm over mel bands between front end and patches (Dasheng)
    # learned: a table. fixed: a stored sine-cosine table (AudioMAE). factorised: learned, time + frequency (Dasheng).
    # sincos: computed, specials without position (EAT). conv: from the tokens around, by convolution (animal2vec).
    # physical: sine-cosine of seconds and octaves, for any rate, hop and length
    positions: str = "learned"
    position_groups: int = 16  # conv: channels are convolved in so many groups
    position_scale: float = 1.0  # of sine-cosine positions; 1 outweighs what a small encoder makes of faint sound
    alibi: bool = False  # attention falls with the distance in time, by a learned scale a head
    # transformer
    dim: int = 768
    depth: int = 12  # blocks, `prenet` included
    prenet: int = 0  # first blocks whose outputs are never averaged into features or targets
    heads: int = 12
    mlp_ratio: float = 4.0
    eps: float = 1e-6  # of every LayerNorm in the transformer
    qkv_bias: bool = True
    norm: str = "pre"  # LayerNorm before each half of a block, or ("post") before the first block and after each half
    final_norm: bool = True  # pre: LayerNorm at the end
    init: str = "normal"  # linears of blocks: truncated normal of deviation 0.02 (DeiT), or "xavier" uniform (MAE)
    drop_path: float = 0.0  # share of clips that skip the last block's halves in training; rises linearly from 0
    # use
    pad: str = "masked"  # masked: padding takes no part; published: as the published code does (nets.spectrograms)
    # clip vector: mean of patch tokens; "rows": mean and deviation over time of each frequency row; mean of the special
    # tokens; or "both", specials and mean
    pool: str = "mean"
    pool_norm: bool = False  # LayerNorm of the clip vector (timm's AudioMAE)
    features: str = "tokens"  # what is pooled: tokens, or ("ffn") feed-forward outputs averaged over the blocks

    def __post_init__(self):
        self.patch, self.stride = tuple(self.patch), tuple(self.stride)
        self.convs = tuple(tuple(c) for c in self.convs)
        self.streams = tuple((name, n, tuple(mean), tuple(scale)) for name, n, mean, scale in self.streams)
        for fits, complaint in _conditions(self):
            if not fits:
                raise ValueError(complaint)

    def heard_rate(self, recorded):
        """The rate in Hz at which it takes a recording of `recorded` Hz."""
        return min(recorded, self.sample_rate) if self.rate == "any" else self.sample_rate

    def at_rate(self, rate):
        """The settings for waves at another rate (None: its own): as many bands as lie below its Nyquist frequency, the
        same frames (octave), or tokens as often as the convolutions give (wave)."""
        if rate is None or rate == self.sample_rate:
            return self
        if self.rate == "fixed":
            raise UserError(f"{self.name} hears {self.sample_rate} Hz only, not {rate}: resample (audio.read(path, "
                            f"rate={self.sample_rate})), or pre-train with --rate any")
        if self.frontend == "octave":
            return replace(self, sample_rate=rate, n_mels=octave_rows(rate) * SEMITONES)
        frames = [round(n * rate / self.sample_rate) for n in (self.frames, self.chunk)]
        return replace(self, sample_rate=rate, hop=self.hop * self.sample_rate / rate, frames=frames[0],
                       chunk=frames[1])

    @property
    def absent(self):
        """octave: bands of the highest row that lie above the Nyquist frequency."""
        return self.n_mels - int(octave_band(self.sample_rate / 2) + 1e-6) if self.frontend == "octave" else 0

    @property
    def clip_seconds(self):
        return self.frames * self.hop

    @property
    def clip_samples(self):
        return round(self.frames * self.hop * self.sample_rate)

    @property
    def chunk_frames(self):
        return self.chunk or self.frames

    @property
    def chunk_samples(self):
        return round(self.chunk_frames * self.hop * self.sample_rate)

    hop_samples = property(lambda self: int(self.hop * self.sample_rate))
    window_samples = property(lambda self: int(self.window * self.sample_rate))

    @property
    def width(self):
        """Length of a clip vector."""
        if self.pool == "rows":
            return 2 * self.grid[1] * self.dim
        return self.dim * ((self.pool in ("specials", "both")) + (self.pool != "specials") * (1 + len(self.streams)))

    @property
    def attends_padding(self):
        """The published code of the kaldi families pads the log-mel to the training length and attends to it."""
        return self.pad == "published" and self.frontend == "kaldi"

    @property
    def grid(self):
        """(T', F') of a clip of the training length; each stream is one more row."""
        return self.columns(self.frames), (self.n_mels - self.patch[0]) // self.stride[0] + 1 + len(self.streams)

    @property
    def stream_rates(self):
        """What a loader is asked for: (name, channels, rate in Hz) of each stream."""
        return tuple((name, len(mean), n / (self.stride[1] * self.hop)) for name, n, mean, _ in self.streams)

    def extent(self, lengths):
        """(B,) valid samples -> (B,) what is valid of the front end's last axis: frames, or samples of a raw wave. None
        (all) stays None."""
        return lengths if lengths is None or self.frontend == "wave" else self.n_frames(lengths)

    def valid_columns(self, extent):
        """(B,) valid frames (samples of a raw wave) -> (B,) token columns that may be attended; None: all may."""
        if extent is None or (self.attends_padding and self.chunk_frames <= self.frames):
            return None
        columns = self.columns(self.n_frames(extent) if self.frontend == "wave" else extent)
        return columns.clamp(min=self.grid[0]) if self.attends_padding else columns

    @property
    def alibi_unit(self):
        """What a column counts for in ALiBi's distance: 1, or with physical positions its length in 20 ms."""
        return self.stride[1] * self.hop / 0.02 if self.positions == "physical" else 1

    def n_frames(self, samples):
        """Frames of `samples` (an int or an integer tensor), at least one.

        kaldi, octave: whole windows. mel-db: a frame every hop, centred on it; a clip of a whole number of hops has one
        more at its very end, which only pad "published" keeps. wave: what the convolutions give.
        """
        if self.frontend == "wave":
            frames = self.conv_lengths(samples)[-1]
        elif self.frontend == "mel-db":
            frames = (samples - int(self.pad == "masked")) // self.hop_samples + 1
        elif self.frontend == "octave":  # frames begin at exact times, so their hop may be no whole number of samples
            frames = 1 + (samples - self.window_samples) * round(1 / self.hop) // self.sample_rate
        else:
            frames = 1 + (samples - self.window_samples) // self.hop_samples
        return frames.clamp(min=1) if hasattr(frames, "clamp") else max(1, frames)

    def conv_lengths(self, samples):
        """wave: the length after each layer; padding is half a stride on both sides, or "same" at stride 1. The first
        layer, the filters, is "same" too, of which every so many samples are kept.

        A clip shorter than the first kernel is filled up with silence."""
        _, least, stride = self.convs[0]
        samples = samples.clamp(min=least) if hasattr(samples, "clamp") else max(least, samples)
        lengths = [(samples - 1) // stride + 1]
        for _, kernel, stride in self.convs[1:]:
            n = lengths[-1]
            lengths.append(n if stride == 1 else (n + 2 * ((stride + 1) // 2) - kernel) // stride + 1)
        return lengths

    def columns(self, frames):
        """Token columns T' for `frames` (an int or an integer tensor).

        masked: enough patches to cover every frame, the last one partly valid; published: whole patches only.
        """
        over = frames - self.patch[1]
        columns = (over + (self.stride[1] - 1 if self.pad == "masked" else 0)) // self.stride[1] + 1
        return columns.clamp(min=1) if hasattr(columns, "clamp") else max(1, columns)

    @property
    def n_tokens(self):
        return self.grid[0] * self.grid[1]

    def to_dict(self):
        return json.loads(json.dumps(asdict(self)))  # tuples become lists

    @classmethod
    def from_dict(cls, values):
        if unknown := sorted(set(values) - {f.name for f in fields(cls)}):
            raise ValueError(f"unknown encoder settings {', '.join(unknown)}: written by a newer version of wren?")
        return cls(**values)


def _conditions(c):
    """What an EncoderConfig's settings must fulfil: (whether they do, what is wrong if not)."""
    return (
        (c.dim % c.heads == 0, f"dim {c.dim} is not a multiple of heads {c.heads}"),
        (c.positions != "conv" or c.dim % c.position_groups == 0,
         f"dim {c.dim} is not a multiple of position_groups {c.position_groups}"),
        (c.n_mels >= c.patch[0], f"a patch of {c.patch[0]} mel bands does not fit n_mels {c.n_mels}"),
        (c.frames >= c.patch[1], f"a clip of {c.frames} frames ({c.clip_seconds:g} s) is shorter than "
                                       f"one patch of {c.patch[1]} frames"),
        (all(0 < s <= p for s, p in zip(c.stride, c.patch)), f"stride {c.stride} must be from 1 to the "
                                                                   f"patch {c.patch}"),
        *((getattr(c, name) in known, f"{name} {getattr(c, name)!r} is none of {', '.join(known)}")
          for name, known in CHOICES.items()),
        (c.pool in ("mean", "rows") or c.specials > 0, f"pool {c.pool!r} needs special tokens"),
        (not c.pool_norm or c.pool == "mean" and not c.streams, "pool_norm is of pool 'mean' alone"),
        (bool(c.convs) == (c.frontend == "wave"), "convs belong to frontend 'wave', and it needs them"),
        (c.chunk == 0 or c.chunk >= c.patch[1], f"chunk {c.chunk} is shorter than one patch"),
        (not c.chunk or c.positions in ("sincos", "conv")
         or c.columns(c.chunk) <= c.columns(c.frames),
         f"chunk {c.chunk} is longer than the {c.frames} frames that have learned positions"),
        (0 <= c.prenet < max(1, c.depth), f"prenet {c.prenet} leaves none of {c.depth} blocks"),
        (not (c.alibi or c.positions == "conv") or c.specials == 0,
         "alibi and conv positions know no special tokens"),
        (c.positions not in ("sincos", "fixed", "physical") or c.dim % 4 == 0,
         f"dim {c.dim} is no multiple of 4"),
        (c.rate == "fixed" or c.positions == "physical" and c.frontend in ("octave", "wave"),
         "rate 'any' needs positions 'physical' and frontend 'octave' or 'wave'"),
        (not c.streams or c.frontend == "octave" and c.frames % c.patch[1] == 0,
         f"streams need --rate any, no raw wave, and clips of whole columns of {c.patch[1]} frames"),
        (c.inputs == "all" or c.streams, f"inputs {c.inputs!r}: this encoder knows no streams"),
        *((n * len(mean) <= c.patch[0] * c.patch[1], f"stream {name}: {n * len(mean)} values in a column of "
           f"{c.stride[1] * c.hop:g} s are more than a patch has") for name, n, mean, _ in c.streams),
        (c.frontend != "octave" or c.n_mels == octave_rows(c.sample_rate) * SEMITONES,
         f"frontend 'octave' has {octave_rows(c.sample_rate) * SEMITONES} bands at {c.sample_rate} Hz, not "
         f"{c.n_mels}"),
    )
