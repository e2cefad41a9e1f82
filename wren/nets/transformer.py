"""Attention and transformer blocks, pre-norm as timm's ViT or post-norm as data2vec 2.0."""
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Multi-head self-attention; x (B, N, D), attend: what may be attended, bool (B, 1, 1, N), or a bias (B, H, N, N)
    of the queries' precision added to the logits, or None (all)."""

    def __init__(self, dim, heads, bias=True):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, attend=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 × (B, H, N, D / H)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Transformer block, pre-norm as timm's ViT or post-norm as data2vec 2.0."""

    def __init__(self, config):
        super().__init__()
        self.post = config.norm == "post"
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps)
        self.attn = Attention(config.dim, config.heads, config.qkv_bias)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps)
        self.mlp = Mlp(config.dim, int(config.dim * config.mlp_ratio))

    def forward(self, x, attend=None, scale=None):
        """x (B, N, D), scale (2, B, 1, 1): what each half counts for in each clip, None: 1 -> (x, the feed-forward
        output before it is added), the second a teacher's target."""
        first, second = (None, None) if scale is None else scale
        if self.post:
            x = self.norm1(added(x, self.attn(x, attend), first))
            out = self.mlp(x)
            return self.norm2(added(x, out, second)), out
        x = added(x, self.attn(self.norm1(x), attend), first)
        out = self.mlp(self.norm2(x))
        return added(x, out, second), out


def added(x, y, scale=None):
    return x + y if scale is None else x + scale * y


def stochastic_depth(rate, depth, batch, device):
    """What each half of each block counts for in each clip: (depth, 2, B, 1, 1), 0 for the share of clips that skip it,
    which rises linearly from 0 to `rate` at the last block, and for the others as much more (Huang et al. 2016)."""
    stays = 1 - torch.linspace(0, rate, depth, device=device)[:, None, None, None, None]
    return (torch.rand(depth, 2, batch, 1, 1, device=device) < stays) / stays


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
