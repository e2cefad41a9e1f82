"""Where a token is: learned, factorised, sine-cosine, convolutional and physical positions, and ALiBi.

Each is a module: x (B, T', F', D) -> x with positions, given the layout (the settings at the sound's sample rate), the
valid tokens (B, T', F') or None, and which are left out, hidden (B, T', F') or None. `specials` (K, D) are those of the
special tokens, or None.
"""
import torch
import torch.nn.functional as F
from torch import nn

from wren.nets.wave import conv_time
from wren.recipes.encoder import CONV_POSITIONS


class Learned(nn.Module):
    """A table (T', F', D)."""

    def __init__(self, config):
        super().__init__()
        self.table = small_normal(*config.grid, config.dim)
        self.specials = small_normal(config.specials, config.dim) if config.specials else None

    def forward(self, x, layout, valid=None, hidden=None):
        return x + self.table[:x.shape[1]]


class Factorised(nn.Module):
    """A table over time (T', 1, D) plus one over frequency (F', D), as Dasheng's."""

    def __init__(self, config):
        super().__init__()
        columns, rows = config.grid
        self.table = small_normal(columns, 1, config.dim)
        self.rows = small_normal(rows, config.dim)
        self.specials = small_normal(config.specials, config.dim) if config.specials else None

    def forward(self, x, layout, valid=None, hidden=None):
        return x + self.table[:x.shape[1]] + self.rows


class SineCosine(nn.Module):
    """A sine-cosine table (T', F', D), not trained: stored, with one for specials ("fixed", AudioMAE), or computed
    ("sincos", EAT)."""

    def __init__(self, config):
        super().__init__()
        columns, stored = max(config.grid[0], config.columns(config.chunk_frames)), config.positions == "fixed"
        table = config.position_scale * sincos_table((columns, config.grid[1]), config.dim)
        self.register_buffer("table", table, persistent=stored)
        self.register_buffer("specials", torch.zeros(config.specials, config.dim) if stored else None)

    def forward(self, x, layout, valid=None, hidden=None):
        return x + self.table[:x.shape[1]]


class Convolutional(nn.Module):
    """From the tokens around: grouped convolutions in time, each with LayerNorm and GELU, as animal2vec. They see
    neither padding nor tokens that are left out."""
    specials = None

    def __init__(self, config):
        super().__init__()
        layers, kernel = CONV_POSITIONS
        self.convs = nn.ModuleList(nn.Conv1d(config.dim, config.dim, kernel, padding=kernel // 2,
                                             groups=config.position_groups) for _ in range(layers))

    def forward(self, x, layout, valid=None, hidden=None):
        y = (x if hidden is None else x.masked_fill(hidden[..., None], 0))[:, :, 0]
        for conv in self.convs:
            y = y if valid is None else y * valid
            y = conv_time(y, conv)
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
        return x + y[:, :, None]


class Physical(nn.Module):
    """Sine-cosine of seconds and octaves, for any rate, hop and length; a stream has a learned type where sound has
    its octave."""
    specials = None

    def __init__(self, config):
        super().__init__()
        self.config = config
        if config.streams:
            self.stream_type = small_normal(len(config.streams), config.dim // 2)

    def forward(self, x, layout, valid=None, hidden=None):
        half, streams = self.config.dim // 2, len(self.config.streams)
        table = self.config.position_scale * physical_positions(layout, self.config.dim, x.device)[:x.shape[1]]
        if streams:
            types = self.stream_type.expand(len(table), -1, -1)
            table = torch.cat([table[:, :-streams], torch.cat([types, table[:, -streams:, half:]], 2)], 1)
        return x + table


POSITIONS = {"learned": Learned, "factorised": Factorised, "fixed": SineCosine, "sincos": SineCosine,
             "conv": Convolutional, "physical": Physical}


def small_normal(*shape):
    """A parameter, truncated normal of deviation 0.02, as DeiT's tables and tokens."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))


def sincos_table(grid, dim):
    """Fixed positions (T', F', D): first half of D for the mel row, second for time; each half is sines, then cosines
    of index · 10000^(-i / (D / 4))."""
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def waves(n):
        phase = torch.arange(n, dtype=torch.float64)[:, None] * frequency
        return torch.cat([phase.sin(), phase.cos()], 1).float()

    time, rows = waves(grid[0])[:, None], waves(grid[1])[None]
    return torch.cat([rows.expand(*grid, -1), time.expand(*grid, -1)], 2)


def physical_positions(layout, dim, device):
    """Sine-cosine positions (T', F', D) of where a patch's middle lies: octaves above the lowest row in the first half
    of D, seconds / 0.1 in the second. They are functions, not tables: any rate, hop and length has its positions."""
    t, f = layout.grid
    middle = (torch.arange(t, device=device) * layout.stride[1] + layout.patch[1] / 2) * layout.hop
    frequency = 10000.0 ** (-torch.arange(dim // 4, device=device) / (dim // 4))
    rows, time = (x[:, None].float() * frequency for x in (torch.arange(f, device=device), middle / 0.1))
    rows, time = (torch.cat([phase.sin(), phase.cos()], 1) for phase in (rows, time))  # (F', D / 2), (T', D / 2)
    return torch.cat([rows.expand(t, -1, -1), time[:, None].expand(-1, f, -1)], 2)


def alibi_slopes(heads, device=None):
    """How steeply attention falls with distance in each head: 2^(-8 h / H), h = 1 … H."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1, device=device) / heads)


def alibi_bias(column, scale, unit, attend=None, dtype=None):
    """Attention bias (B or 1, H, N, N): minus distance times slope times learned scale; -inf at padding. Rows begin at
    multiples of 8 values in memory, as fast attention kernels want them, and dtype is that of the queries.

    column (B or 1, N): the token column of each token; scale (H,); unit: what a column counts for; attend bool (B, 1,
    1, N) or None.
    """
    n, room = column.shape[1], -column.shape[1] % 8
    distance = (column[:, :, None] - F.pad(column, (0, room))[:, None]).abs()[:, None] * unit  # (B, 1, N, N + room)
    slopes = alibi_slopes(len(scale), column.device) * scale.clamp(min=0)
    bias = -distance * slopes[:, None, None]
    if attend is not None:
        bias = bias.masked_fill(~F.pad(attend, (0, room), value=True), float("-inf"))
    return bias.to(dtype or scale.dtype)[..., :n]
