"""What the encoder is made of: attention, transformer blocks, positions."""
import torch
import torch.nn.functional as F
from torch import nn

from wren.nets.frontends import conv_time
from wren.recipes.encoder import CONV_POSITIONS


class Attention(nn.Module):
    """Multi-head self-attention; x (B, N, D), keep: what may be attended, bool (B, 1, 1, N), or a float bias
    (B, H, N, N) added to the logits, or None."""

    def __init__(self, dim, heads, bias=True):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, keep=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 × (B, H, N, D / H)
        if keep is not None and keep.is_floating_point():
            keep = keep.to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Transformer block, pre-norm as timm's ViT or post-norm as data2vec 2.0; drop: share that skip a half."""

    def __init__(self, config, drop=0.0):
        super().__init__()
        self.post, self.drop = config.norm == "post", drop
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps)
        self.attn = Attention(config.dim, config.heads, config.qkv_bias)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps)
        self.mlp = Mlp(config.dim, int(config.dim * config.mlp_ratio))

    def forward(self, x, keep=None):
        """x (B, N, D) -> (x, the feed-forward output before it is added), the second a teacher's target."""
        if self.post:
            x = self.norm1(x + self._skip(self.attn(x, keep)))
            out = self.mlp(x)
            return self.norm2(x + self._skip(out)), out
        x = x + self._skip(self.attn(self.norm1(x), keep))
        out = self.mlp(self.norm2(x))
        return x + self._skip(out), out

    def _skip(self, x):
        if not (self.drop and self.training):
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop
        return x * kept / (1 - self.drop)


def initialise(module, kind):
    """All linears below a module: "normal", truncated and of deviation 0.02, or "xavier" uniform, which at 128 wide is
    four times as large, and without which small masked autoencoders hardly learn; biases 0."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            if kind == "xavier":
                nn.init.xavier_uniform_(m.weight)
            else:
                nn.init.trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)


class ConvPositions(nn.Module):
    """Positions from the tokens around: grouped convolutions in time, each with LayerNorm and GELU, as animal2vec."""

    def __init__(self, dim, groups):
        super().__init__()
        layers, kernel = CONV_POSITIONS
        self.convs = nn.ModuleList(nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups)
                                   for _ in range(layers))

    def forward(self, x, valid=None):
        """x (B, T, D), valid (B, T) bool or None -> (B, T, D); padding never reaches a clip."""
        for conv in self.convs:
            x = x if valid is None else x * valid[..., None]
            x = conv_time(x, conv)
            x = F.gelu(F.layer_norm(x, x.shape[-1:]))
        return x


def sincos_table(grid, dim):
    """Fixed positions (T', F', D): first half of D for the mel row, second for time; each half is sines, then cosines
    of index · 10000^(-i / (D / 4))."""
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def waves(n):
        phase = torch.arange(n, dtype=torch.float64)[:, None] * frequency
        return torch.cat([phase.sin(), phase.cos()], 1).float()

    time, rows = waves(grid[0])[:, None], waves(grid[1])[None]
    return torch.cat([rows.expand(*grid, -1), time.expand(*grid, -1)], 2)


def physical_positions(config, dim, device):
    """Sine-cosine positions (T', F', D) of where a patch's middle lies: octaves above the lowest row in the first half
    of D, seconds / 0.1 in the second. They are functions, not tables: any rate, hop and length has its positions."""
    t, f = config.grid
    middle = (torch.arange(t, device=device) * config.stride[1] + config.patch[1] / 2) * config.hop
    frequency = 10000.0 ** (-torch.arange(dim // 4, device=device) / (dim // 4))
    rows, time = (x[:, None].float() * frequency for x in (torch.arange(f, device=device), middle / 0.1))
    rows, time = (torch.cat([phase.sin(), phase.cos()], 1) for phase in (rows, time))  # (F', D / 2), (T', D / 2)
    return torch.cat([rows.expand(t, -1, -1), time[:, None].expand(-1, f, -1)], 2)


def alibi_slopes(heads):
    """How steeply attention falls with distance in each head: 2^(-8 h / H), h = 1 … H."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)
