"""The tables of wren: what an encoder is (`EncoderConfig`), the sizes (`PRESETS`) and how each is trained (`RECIPES`).

Plain values, no torch: a table can be printed, compared and saved as JSON, and `--help` answers at once.
"""
import json
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, log2

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974  # log-mel statistics of AudioSet, SSAST's normalisation
WAVE_CONVS = ((127, 63, 1), (512, 10, 5), *3 * ((512, 3, 2),), (512, 3, 1), *2 * ((512, 2, 1),))  # animal2vec's


@dataclass
class EncoderConfig:
    """Everything needed to use an encoder, in physical units; it travels inside every checkpoint.

    Frames are spectrogram columns; the token grid is (T', F') = (columns, rows), time first everywhere. A raw-wave
    encoder has one row of tokens, and its frames are its tokens.
    """
    name: str = "custom"
    # sound and front end
    sample_rate: int = 16000  # Hz; audio at another rate is resampled to it
    rate: str = "fixed"  # or "any": recordings are heard at their own rate (see Encoder.at), only above sample_rate not
    # kaldi: log-mel as Kaldi's. mel-db: decibels, centred frames. octave: a band a semitone. wave: convolutions
    frontend: str = "kaldi"
    window: float = 0.025  # s
    hop: float = 0.010  # s
    n_mels: int = 128
    f_min: float = 20.0  # Hz
    f_max: float = 0.0  # Hz; 0 is the Nyquist frequency
    denoise: float | None = None  # nats (mel-db: dB) above a band's median over the clip that are background, set to 0
    floor_db: float = 0.0  # mel-db: no value lies further below the loudest one, 0 is no floor
    floor_over: str = "clip"  # of its own clip, or ("batch") of all clips at hand, which is Dasheng's defect
    mean: float = AUDIOSET_MEAN  # (log-mel - mean) / scale is what the encoder sees
    scale: float = 2 * AUDIOSET_STD
    convs: tuple = ()  # wave: (channels, kernel, stride) of the Sinc filters, then of each convolution, in samples
    # recorded together with the sound: (name, values of a channel in a token column, mean and scale of each channel)
    streams: tuple = ()
    hear: str = "all"  # or "sound" alone, or its "streams" alone
    # tokens
    frames: int = 1024  # training length
    chunk: int = 0  # frames of the windows that longer input is cut into; 0 is the training length
    chunk_mean: str = "valid"  # windows count by what they hold, or ("uncut") as in ATST-Clip's code (Encoder.embed)
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
    pad: str = "masked"  # masked: padding takes no part. published: as the published code does (see Encoder.frontend)
    # clip vector: mean of patch tokens, or ("foreground") weighted by how far they rise above the background; of the
    # special tokens; or "both", specials and mean one after the other
    pool: str = "mean"
    features: str = "tokens"  # what is pooled: tokens, or ("ffn") feed-forward outputs averaged over the blocks

    def __post_init__(self):
        self.patch, self.stride = tuple(self.patch), tuple(self.stride)
        self.convs = tuple(tuple(c) for c in self.convs)
        self.streams = tuple((name, n, tuple(mean), tuple(scale)) for name, n, mean, scale in self.streams)
        for ok, complaint in (
            (self.dim % self.heads == 0, f"dim {self.dim} is not a multiple of heads {self.heads}"),
            (self.positions != "conv" or self.dim % self.position_groups == 0,
             f"dim {self.dim} is not a multiple of position_groups {self.position_groups}"),
            (self.n_mels >= self.patch[0], f"a patch of {self.patch[0]} mel bands does not fit n_mels {self.n_mels}"),
            (self.frames >= self.patch[1], f"a clip of {self.frames} frames ({self.clip_seconds:g} s) is shorter than "
                                           f"one patch of {self.patch[1]} frames"),
            (all(0 < s <= p for s, p in zip(self.stride, self.patch)), f"stride {self.stride} must be from 1 to the "
                                                                       f"patch {self.patch}"),
            *((getattr(self, name) in known, f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
              for name, known in CHOICES.items()),
            (self.pool in ("mean", "foreground") or self.specials > 0, f"pool {self.pool!r} needs special tokens"),
            (self.pool != "foreground" or self.denoise is not None, "pool 'foreground' needs denoise, which tells it"),
            (bool(self.convs) == (self.frontend == "wave"), "convs belong to frontend 'wave', and it needs them"),
            (self.chunk == 0 or self.chunk >= self.patch[1], f"chunk {self.chunk} is shorter than one patch"),
            (not self.chunk or self.chunk <= self.frames or self.positions in ("sincos", "conv"),
             f"chunk {self.chunk} is longer than the {self.frames} frames that have learned positions"),
            (0 <= self.prenet < max(1, self.depth), f"prenet {self.prenet} leaves none of {self.depth} blocks"),
            (not (self.alibi or self.positions == "conv") or self.specials == 0,
             "alibi and conv positions know no special tokens"),
            (self.positions not in ("sincos", "fixed", "physical") or self.dim % 4 == 0,
             f"dim {self.dim} is no multiple of 4"),
            (self.rate == "fixed" or self.positions == "physical" and self.frontend in ("octave", "wave"),
             "rate 'any' needs positions 'physical' and frontend 'octave' or 'wave'"),
            (not self.streams or self.frontend == "octave" and self.frames % self.patch[1] == 0,
             f"streams need --rate any, no raw wave, and clips of whole columns of {self.patch[1]} frames"),
            (self.hear == "all" or self.streams, f"hear {self.hear!r}: this encoder knows no streams"),
            *((n * len(mean) <= self.patch[0] * self.patch[1], f"stream {name}: {n * len(mean)} values in a column of "
               f"{self.stride[1] * self.hop:g} s are more than a patch has") for name, n, mean, _ in self.streams),
            (self.frontend != "octave" or self.n_mels == octave_rows(self.sample_rate) * SEMITONES,
             f"frontend 'octave' has {octave_rows(self.sample_rate) * SEMITONES} bands at {self.sample_rate} Hz, not "
             f"{self.n_mels}"),
        ):
            if not ok:
                raise ValueError(complaint)

    def hears(self, recorded):
        """The rate in Hz at which it takes a recording of `recorded` Hz."""
        return min(recorded, self.sample_rate) if self.rate == "any" else self.sample_rate

    def at(self, rate):
        """The settings for waves at another rate: as many bands as lie below its Nyquist frequency, the same frames
        (octave), or tokens as often as the convolutions give (wave)."""
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
        """Frames of the windows that longer input is cut into."""
        return self.chunk or self.frames

    @property
    def chunk_samples(self):
        return round(self.chunk_frames * self.hop * self.sample_rate)

    @property
    def hop_samples(self):
        return int(self.hop * self.sample_rate)

    @property
    def window_samples(self):
        return int(self.window * self.sample_rate)

    @property
    def width(self):
        """Length of a clip vector."""
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

        A clip shorter than the first kernel is filled up to it with silence.
        """
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

    def patch_flops(self):
        """Floating-point operations that embed one clip's patches, or convolve its wave."""
        n = self.n_tokens
        if self.frontend != "wave":
            return 2 * n * self.patch[0] * self.patch[1] * self.dim
        inputs = (1, *(c for c, _, _ in self.convs))
        lengths = self.conv_lengths(self.clip_samples)
        return (sum(2 * t * i * c * k for t, i, (c, k, _) in zip(lengths, inputs, self.convs))
                + 2 * n * inputs[-1] * self.dim)

    def position_flops(self):
        if self.positions != "conv":
            return 0
        layers, kernel = CONV_POSITIONS
        return layers * kernel * 2 * self.n_tokens * self.dim * self.dim // self.position_groups

    def embed_flops(self):
        return self.patch_flops() + self.position_flops()

    def block_flops(self, tokens):
        """Of all blocks for one clip of so many tokens: 24 d² + 4 N d a token and block (feed-forward 4 d wide)."""
        return tokens * self.depth * (2 * self.dim ** 2 * (4 + 2 * self.mlp_ratio) + 4 * tokens * self.dim)

    def forward_flops(self):
        """Of the encoder for one clip."""
        return self.embed_flops() + self.block_flops(self.n_tokens + self.specials)

    def to_dict(self):
        return json.loads(json.dumps(asdict(self)))  # tuples become lists

    @classmethod
    def from_dict(cls, values):
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown encoder settings {', '.join(unknown)}: written by a newer version of wren?")
        return cls(**values)


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


def any_rate(config, top):
    """A preset that hears every rate up to `top` Hz: bands at fixed hertz, positions in seconds and octaves.

    An octave is a row of tokens, so halving the rate takes one row away and changes nothing else; a mel axis, however
    far it reaches, would cut through its rows at each Nyquist frequency.
    """
    shared = dict(rate="any", positions="physical")
    if config.frontend == "wave":
        return replace(replace(config, **shared).at(top), name=f"{config.name}-any")
    denoise = 2.0 if config.frontend == "mel-db" and config.denoise else config.denoise  # from dB to nats
    level = dict(mean=AUDIOSET_MEAN, scale=2 * AUDIOSET_STD) if config.frontend == "mel-db" else {}
    pool = "foreground" if config.pool == "mean" and denoise is not None else config.pool  # else all rows weigh alike
    return replace(config, **shared, **level, pool=pool, name=f"{config.name}-any", frontend="octave", sample_rate=top,
                   n_mels=octave_rows(top) * SEMITONES, patch=(SEMITONES, 16), stride=(SEMITONES, 16), window=0.025,
                   floor_db=0.0, denoise=denoise, input_norm=False, pad="masked")


CHOICES = {"frontend": ("kaldi", "mel-db", "octave", "wave"), "rate": ("fixed", "any"),
           "hear": ("all", "sound", "streams"), "pad": ("masked", "published"),
           "positions": ("learned", "fixed", "factorised", "sincos", "conv", "physical"), "norm": ("pre", "post"),
           "init": ("normal", "xavier"),
           "pool": ("mean", "foreground", "specials", "both"), "features": ("tokens", "ffn"),
           "floor_over": ("clip", "batch"), "chunk_mean": ("valid", "uncut")}
CONV_POSITIONS = (5, 19)  # layers and kernel of animal2vec's convolutional positions


def _sizes():
    """Width, depth and heads: SSAST's published sizes, and two more that Dasheng has shown to train."""
    return {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "0.6b": (1280, 32, 16),
            "1.2b": (1536, 40, 24)}


def _presets():
    kinds = {"patch": (16, 16), "frame": (128, 2)}
    table = {}
    for size, (dim, depth, heads) in _sizes().items():
        for kind, patch in kinds.items():
            name = f"ssast-{size}-{kind}"
            table[name] = EncoderConfig(name=name, dim=dim, depth=depth, heads=heads, patch=patch, stride=patch)
    for kind, patch in kinds.items():
        # GPM-BT: SSAST's base with a 50 ms window and no normalisation (as its fine-tuning code computes it)
        name = f"gpm-bt-{kind}"
        table[name] = replace(table[f"ssast-base-{kind}"], name=name, window=0.050, mean=0.0, scale=1.0)
    table["ast-base"] = replace(table["ssast-base-patch"], name="ast-base", stride=(10, 10), pad="published",
                                pool="specials")
    # for a laptop: 4 s clips, 64 mel bands, 4 × 25 tokens
    for kind, patch in {"patch": (16, 16), "frame": (64, 4)}.items():
        name = f"ssast-laptop-{kind}"
        table[name] = EncoderConfig(name=name, n_mels=64, denoise=0.5, mean=0.0, scale=1.2, frames=400, patch=patch,
                                    stride=patch, dim=128, depth=4, heads=4)
    return table | _mel_presets() | _wave_presets()


def _sized(table, shared, sizes):
    """Add a preset for each name of `sizes`: the family's shared settings, then its own."""
    for name, own in sizes.items():
        table[name] = EncoderConfig(name=name, **shared | own)


def _mel_presets():
    """Dasheng, AudioMAE, EAT and ATST. The laptop sizes are 4 deep and hear 4 s; masked autoencoders are 256 wide,
    since few of their tokens pass the encoder, EAT and ATST 192. Deviations of 0.02, made for 768 channels, are small
    for so few (ATST-Frame alone learned no better from larger ones), and so are EAT's features beside sine-cosine
    positions of 1."""
    small, base = dict(dim=384, heads=6), dict(dim=768, heads=12)
    large = dict(dim=1024, depth=24, heads=16)
    laptop = dict(dim=128, depth=4, heads=4, frames=400, mean=0.0)
    kaldi_laptop = laptop | dict(n_mels=64, denoise=2.0, scale=1.2)
    db_laptop = laptop | dict(floor_db=0.0, denoise=8.0, scale=5.0)
    table = {}
    mel_db = dict(frontend="mel-db", n_mels=64, patch=(64, 4), stride=(64, 4))
    dasheng = mel_db | dict(window=0.032, f_min=0.0, floor_db=120.0, mean=0.0, scale=1.0, frames=1008, specials=0,
                            mask_token=False, input_norm=True, positions="factorised", init="xavier")
    _sized(table, dasheng, {"dasheng-base": base, "dasheng-0.6b": dict(dim=1280, depth=32, heads=16),
                            "dasheng-1.2b": dict(dim=1536, depth=40, heads=24),
                            "dasheng-laptop": db_laptop | dict(dim=256, denoise=4.0)})
    audiomae = dict(specials=1, mask_token=False, positions="fixed", init="xavier")
    _sized(table, audiomae, {"audiomae-base": base,
                              "audiomae-laptop": kaldi_laptop | dict(dim=256, denoise=1.0)})
    eat = dict(mean=-4.268, scale=2 * 4.569, specials=1, mask_token=False, positions="sincos", norm="post",
               pool="specials")
    _sized(table, eat, {"eat-base": base, "eat-large": large,
                        "eat-laptop": kaldi_laptop | dict(dim=192, heads=6, init="xavier", position_scale=0.1)})
    # ATST scales decibels to [-1, 1]: (dB + 79.6482) / 130.3324 · 2 - 1
    atst = mel_db | dict(window=0.064, f_min=60.0, f_max=7800.0, floor_db=80.0, mean=130.3324 / 2 - 79.6482,
                         scale=130.3324 / 2, frames=1000, qkv_bias=False)
    clip = atst | dict(specials=1, mask_token=False, chunk=600, pool="specials")
    frame = atst | dict(specials=0)
    _sized(table, clip, {"atst-small": small, "atst-base": base,
                         "atst-laptop": db_laptop | dict(dim=192, heads=6, chunk=0, init="xavier")})
    _sized(table, frame, {"atst-frame-small": small, "atst-frame-base": base, "atst-frame-laptop": db_laptop})
    return table


def _wave_presets():
    """animal2vec: 8 kHz waves, 200 tokens a second. The laptop size hears 4 s at 50 tokens a second, keeps every fourth
    sample of its filters, and convolves groups of 32 channels, as many as CPUs handle well."""
    table = {}
    shared = dict(sample_rate=8000, frontend="wave", n_mels=1, patch=(1, 1), stride=(1, 1), specials=0,
                  mask_token=False, positions="conv", alibi=True, norm="post", eps=1e-5, features="ffn")
    narrow = ((16, 63, 4), (32, 10, 5)) + 3 * ((64, 3, 2),)
    _sized(table, shared, {
        "animal2vec-large": dict(convs=WAVE_CONVS, hop=0.005, frames=2000, dim=1024, depth=24, prenet=8, heads=16),
        "animal2vec-laptop": dict(convs=narrow, hop=0.020, frames=200, position_groups=4, dim=128, depth=4, prenet=1,
                                  heads=4)})
    return table


PRESETS = _presets()

# Which settings each objective has; the defaults are the published ones (see objectives.py).
SETTINGS = {
    "SSAST": ("masking", "hidden", "loss", "nce_axis"),
    "MAE": ("masking", "hidden", "decoder_dim", "decoder_depth", "decoder_heads", "var_floor"),
    "EAT": ("masking", "hidden", "clones", "cls_weight", "noise", "target_norm", "decoder_dim", "decoder_depth",
            "decoder_groups", "ema", "ema_steps"),
    "ATST": ("frames", "masking", "hidden", "span", "view_seconds", "mix", "stretch", "canvas", "head_dim",
             "ema", "ema_steps"),
    "Animal2Vec": ("masking", "hidden", "span", "clones", "noise", "mix", "target_norm", "decoder_dim", "decoder_depth",
                   "decoder_groups", "ema", "ema_steps"),
}

OBJECTIVES = tuple(dict.fromkeys(key for keys in SETTINGS.values() for key in keys))  # the settings of all objectives

# What each recipe trains with, at two scales. "paper" holds the published values (of the paper and its code); "laptop"
# what learns fast on a few CPU cores and small data, with steps for three minutes on one core. Every value is also a
# flag of pretrain.py. "differs" names what the paper column does otherwise than the published code.
_TRAINING = dict(optimizer="adamw", betas=(0.9, 0.999), eps=1e-8, schedule="cosine", floor=0.0, clip=0.0,
                 normalise="preset", valid=2000, eval_every=4000)
_LAPTOP = dict(normalise="corpus", batch_size=32, steps=600, optimizer="adamw", lr=2e-3, betas=(0.9, 0.98), eps=1e-6,
               weight_decay=0.01, schedule="cosine", warmup=50, floor=0.0, clip=1.0, valid=48, eval_every=100)

_SSAST_PAPER = _TRAINING | dict(
    objective="SSAST", preset="ssast-base-patch", masking="patch", hidden=400, loss="joint", nce_axis="released",
    batch_size=24, epochs=10, optimizer="adam", lr=1e-4, betas=(0.95, 0.999), weight_decay=5e-7, schedule="plateau",
    warmup=1000, differs="one mask a clip for both terms, not two; blocks without the sampler's bias, which --masking "
                         "upstream has")
_SSAST = {"paper": _SSAST_PAPER, "laptop": _LAPTOP | dict(
    objective="SSAST", preset="ssast-laptop-patch", masking="patch", hidden=0.8, loss="joint", nce_axis="released")}
_DASHENG = {
    "paper": _TRAINING | dict(
        objective="MAE", preset="dasheng-base", clip_seconds=10.0, masking="group", hidden=0.75, decoder_dim=512,
        decoder_depth=8, decoder_heads=16, var_floor=1e-6, batch_size=256, steps=1_500_000, lr=3e-4,
        weight_decay=0.01, warmup=45_000, floor=0.1,
        differs="batch of one process; AdamW in 32 bits, no decay of biases and norms; floor of the decibels a clip, "
                "not a batch; the decoder's linears Xavier's, too"),
    "laptop": _LAPTOP | dict(
        objective="MAE", preset="dasheng-laptop", steps=700, lr=1e-3, masking="group", hidden=0.75, decoder_dim=64,
        decoder_depth=2, decoder_heads=4, var_floor=0.1)}
_AUDIOMAE = {
    "paper": _TRAINING | dict(
        objective="MAE", preset="audiomae-base", masking="frame", hidden=0.8, decoder_dim=512, decoder_depth=8,
        decoder_heads=16, var_floor=1e-6, batch_size=512, epochs=33, lr=4e-4, betas=(0.9, 0.95), weight_decay=1e-4,
        warmup=11_400, differs="plain decoder instead of shifted windows; no random gain"),
    "laptop": _LAPTOP | dict(
        objective="MAE", preset="audiomae-laptop", steps=700, lr=1e-3, masking="frame", hidden=0.75, decoder_dim=64,
        decoder_depth=2, decoder_heads=4, var_floor=1.0)}
_EAT = {
    "paper": _TRAINING | dict(
        objective="EAT", preset="eat-base", masking="block", hidden=410, clones=16, cls_weight=192.0, noise=0.01,
        target_norm="clip", decoder_dim=768, decoder_depth=6, decoder_groups=16, ema=(0.9998, 0.99999),
        ema_steps=100_000, batch_size=48, steps=400_000,
        lr=5e-4, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.05, warmup=53_333, clip=4.0,
        differs="uniform noise in hidden places; utterance loss weighted as on 4 GPUs of 12 clips"),
    "laptop": _LAPTOP | dict(
        objective="EAT", preset="eat-laptop", steps=300, lr=5e-4, masking="block", hidden=0.8, clones=4,
        cls_weight=1.0, noise=0.01, target_norm="patch", decoder_dim=192, decoder_depth=2, decoder_groups=4,
        ema=(0.9995, 0.9999))}
_ATST_PAPER = _TRAINING | dict(
    objective="ATST", frames=False, preset="atst-small", view_seconds=6.0, mix=0.4, stretch=(0.6, 1.5),
    canvas="published", head_dim=4096, ema=(0.99, 1.0), drop_path=0.1, batch_size=1536, steps=39_100, lr=3e-3,
    weight_decay=0.04, weight_decay_end=0.4, warmup=1300, floor=3.3e-4,
    differs="one mixing partner a clip, from the corpus, not from a memory; class token, positions and mask token are "
            "not decayed")
_ATST_LAPTOP = _LAPTOP | dict(
    objective="ATST", frames=False, preset="atst-laptop", steps=220, lr=3e-4, view_seconds=2.4, mix=0.4,
    stretch=(0.9, 1.1), canvas="floor", head_dim=512, ema=(0.99, 1.0))
_ATST = {"paper": _ATST_PAPER, "laptop": _ATST_LAPTOP}
_ATST_FRAME = {
    "paper": _ATST_PAPER | dict(
        frames=True, preset="atst-frame-base", view_seconds=10.0, masking="span", hidden=0.5, span=5, ema=(0.9996, 1.0),
        batch_size=864, steps=398_000, lr=2.7e-4, warmup=19_900, floor=3.7e-3,
        differs=_ATST_PAPER["differs"] + "; hides the 0.50 that the code really hides, not the nominal 0.65, and all "
                                         "frames alike"),
    "laptop": _ATST_LAPTOP | dict(
        frames=True, preset="atst-frame-laptop", view_seconds=4.0, stretch=(0.6, 1.5), masking="span", hidden=0.5,
        span=5)}
_ANIMAL2VEC = {
    "paper": _TRAINING | dict(
        objective="Animal2Vec", preset="animal2vec-large", masking="span", hidden=0.93, span=2, clones=12, noise=0.01,
        mix=1.0, target_norm="clip", decoder_dim=768, decoder_depth=4, decoder_groups=16, ema=(0.9997, 1.0),
        ema_steps=300_000, batch_size=102, steps=384_000, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01,
        warmup=10_000, clip=1.0,
        differs="uniform noise in hidden places; spans hide the ends as often as the middle; no dropout"),
    "laptop": _LAPTOP | dict(
        objective="Animal2Vec", preset="animal2vec-laptop", normalise="preset", batch_size=16, steps=170, lr=1e-3,
        masking="span", hidden=0.8, span=5, clones=4, noise=0.01, mix=1.0, target_norm="patch", decoder_dim=128,
        decoder_depth=2, decoder_groups=4, ema=(0.99, 0.999))}

RECIPES = {
    "ssast": _SSAST,
    # GPM-BT publishes no pre-training settings: SSAST's, with the front end of its fine-tuning code
    "gpm-bt": _SSAST | {"paper": _SSAST_PAPER | dict(preset="gpm-bt-patch")},
    "mae": _DASHENG, "dasheng": _DASHENG, "audiomae": _AUDIOMAE, "eat": _EAT, "atst": _ATST, "atst-frame": _ATST_FRAME,
    "animal2vec": _ANIMAL2VEC,
}
