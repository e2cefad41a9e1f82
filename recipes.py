"""The tables of wren: what an encoder is (`EncoderConfig`), the sizes (`PRESETS`) and how each is trained (`RECIPES`).

Plain values, no torch: a table can be printed, compared and saved as JSON, and `--help` answers at once.
"""
from dataclasses import asdict, dataclass, fields, replace

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974  # log-mel statistics of AudioSet, SSAST's normalisation


@dataclass
class EncoderConfig:
    """Everything needed to use an encoder, in physical units; it travels inside every checkpoint.

    Frames are spectrogram columns; the token grid is (T', F') = (columns, rows), time first everywhere.
    """
    name: str = "custom"
    # sound and front end
    sample_rate: int = 16000  # Hz; audio at another rate is resampled to it
    frontend: str = "kaldi"  # log-mel as Kaldi computes it
    window: float = 0.025  # s
    hop: float = 0.010  # s
    n_mels: int = 128
    f_min: float = 20.0  # Hz
    f_max: float = 0.0  # Hz; 0 is the Nyquist frequency
    denoise: float | None = None  # nats above a band's median over the clip that still are background, set to 0
    mean: float = AUDIOSET_MEAN  # (log-mel - mean) / scale is what the encoder sees
    scale: float = 2 * AUDIOSET_STD
    # tokens
    frames: int = 1024  # training length; longer input is cut into windows of it
    patch: tuple = (16, 16)  # (mel bands, frames)
    stride: tuple = (16, 16)
    specials: int = 2  # special tokens before the patch tokens
    # transformer
    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    eps: float = 1e-6  # of every LayerNorm
    # use
    pad: str = "masked"  # masked: padding takes no part. published: padded and attended as the published code does
    pool: str = "mean"  # clip vector: mean of patch tokens, or of the special tokens

    def __post_init__(self):
        self.patch, self.stride = tuple(self.patch), tuple(self.stride)
        for ok, complaint in (
            (self.dim % self.heads == 0, f"dim {self.dim} is not a multiple of heads {self.heads}"),
            (self.n_mels >= self.patch[0], f"a patch of {self.patch[0]} mel bands does not fit n_mels {self.n_mels}"),
            (self.frames >= self.patch[1], f"a clip of {self.frames} frames ({self.clip_seconds:g} s) is shorter than "
                                           f"one patch of {self.patch[1]} frames"),
            (all(0 < s <= p for s, p in zip(self.stride, self.patch)), f"stride {self.stride} must be from 1 to the "
                                                                       f"patch {self.patch}"),
            (self.pad in ("masked", "published"), f"pad {self.pad!r} is neither 'masked' nor 'published'"),
            (self.pool in ("mean", "specials"), f"pool {self.pool!r} is neither 'mean' nor 'specials'"),
            (self.pool == "mean" or self.specials > 0, "pool 'specials' needs special tokens"),
        ):
            if not ok:
                raise ValueError(complaint)

    @property
    def clip_seconds(self):
        return self.frames * self.hop

    @property
    def clip_samples(self):
        return round(self.frames * self.hop * self.sample_rate)

    @property
    def hop_samples(self):
        return int(self.hop * self.sample_rate)

    @property
    def window_samples(self):
        return int(self.window * self.sample_rate)

    @property
    def grid(self):
        """(T', F') of a clip of the training length."""
        return self.columns(self.frames), (self.n_mels - self.patch[0]) // self.stride[0] + 1

    def n_frames(self, samples):
        """Whole windows in `samples` (an int or an integer tensor); a shorter clip counts as one."""
        frames = 1 + (samples - self.window_samples) // self.hop_samples
        return frames.clamp(min=1) if hasattr(frames, "clamp") else max(1, frames)

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

    def parameters(self):
        """How many the encoder has (a test holds it against the encoder itself)."""
        hidden = int(self.dim * self.mlp_ratio)
        block = 4 * self.dim ** 2 + 2 * self.dim * hidden + 9 * self.dim + hidden
        embeddings = self.patch[0] * self.patch[1] + 1 + self.n_tokens + 2 * self.specials + 1
        return self.depth * block + (embeddings + 2) * self.dim

    def forward_flops(self, tokens=None):
        """Floating-point operations of the encoder for one clip: 24 d² + 4 N d a token and layer, and the patches."""
        n = (self.n_tokens if tokens is None else tokens) + self.specials
        block = 2 * self.dim ** 2 * (4 + 2 * self.mlp_ratio) + 4 * n * self.dim
        return n * self.depth * block + 2 * n * self.patch[0] * self.patch[1] * self.dim

    def to_dict(self):
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values):
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown encoder settings {', '.join(unknown)}: written by a newer version of wren?")
        return cls(**values)


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
    return table


PRESETS = _presets()

# What each recipe trains with, at two scales. "paper" holds the published values (SSAST: Gong et al. 2022 and its
# code); "laptop" what learns fast on a few CPU cores and small data. Every value is also a flag of pretrain.py.
_SSAST_PAPER = dict(
    preset="ssast-base-patch", masking="patch", hidden=400, loss="joint", nce_axis="released", normalise="preset",
    batch_size=24, epochs=10, optimizer="adam", lr=1e-4, betas=(0.95, 0.999), eps=1e-8, weight_decay=5e-7,
    schedule="plateau", warmup=1000, floor=0.0, clip=0.0, valid=2000, eval_every=4000)
_SSAST_LAPTOP = dict(
    preset="ssast-laptop-patch", masking="patch", hidden=0.8, loss="joint", nce_axis="released", normalise="corpus",
    batch_size=32, steps=600, optimizer="adamw", lr=2e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01,
    schedule="cosine", warmup=50, floor=0.0, clip=1.0, valid=48, eval_every=100)
RECIPES = {
    "ssast": {"laptop": _SSAST_LAPTOP, "paper": _SSAST_PAPER},
    # GPM-BT publishes no pre-training settings: SSAST's, with the front end of its fine-tuning code
    "gpm-bt": {"laptop": _SSAST_LAPTOP, "paper": _SSAST_PAPER | dict(preset="gpm-bt-patch")},
}
