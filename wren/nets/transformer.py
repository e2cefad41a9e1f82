"""Attention and transformer blocks, pre-norm as timm's ViT or post-norm as data2vec 2.0."""
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Multi-head self-attention; x (B, N, D), attend: what may be attended, bool (B, 1, 1, N), or a float bias
    (B, H, N, N) added to the logits, or None (all)."""

    def __init__(self, dim, heads, bias=True):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, attend=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 × (B, H, N, D / H)
        if attend is not None and attend.is_floating_point():
            attend = attend.to(q.dtype)
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
    """Transformer block, pre-norm as timm's ViT or post-norm as data2vec 2.0; drop: share that skip a half."""

    def __init__(self, config, drop=0.0):
        super().__init__()
        self.post, self.drop = config.norm == "post", drop
        self.norm1 = nn.LayerNorm(config.dim, eps=config.eps)
        self.attn = Attention(config.dim, config.heads, config.qkv_bias)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.eps)
        self.mlp = Mlp(config.dim, int(config.dim * config.mlp_ratio))

    def forward(self, x, attend=None):
        """x (B, N, D) -> (x, the feed-forward output before it is added), the second a teacher's target."""
        if self.post:
            x = self.norm1(x + self._skip(self.attn(x, attend)))
            out = self.mlp(x)
            return self.norm2(x + self._skip(out)), out
        x = x + self._skip(self.attn(self.norm1(x), attend))
        out = self.mlp(self.norm2(x))
        return x + self._skip(out), out

    def _skip(self, x):
        if not (self.drop and self.training):
            return x
        stays = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.drop
        return x * stays / (1 - self.drop)


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
