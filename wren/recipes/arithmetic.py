"""How much arithmetic an encoder is: floating-point operations for one clip, from its settings `c` alone."""
from wren.recipes.encoder import CONV_POSITIONS


def patch_flops(c):
    """Floating-point operations that embed one clip's patches, or convolve its wave."""
    n = c.n_tokens
    if c.frontend != "wave":
        return 2 * n * c.patch[0] * c.patch[1] * c.dim
    inputs = (1, *(o for o, _, _ in c.convs))
    lengths = c.conv_lengths(c.clip_samples)
    return (sum(2 * t * i * o * k for t, i, (o, k, _) in zip(lengths, inputs, c.convs))
            + 2 * n * inputs[-1] * c.dim)


def position_flops(c):
    if c.positions != "conv":
        return 0
    layers, kernel = CONV_POSITIONS
    return layers * kernel * 2 * c.n_tokens * c.dim * c.dim // c.position_groups


def embed_flops(c):
    return patch_flops(c) + position_flops(c)


def block_flops(c, tokens):
    """Of all blocks for one clip of so many tokens: 24 d² + 4 N d a token and block (feed-forward 4 d wide)."""
    return tokens * c.depth * (2 * c.dim ** 2 * (4 + 2 * c.mlp_ratio) + 4 * tokens * c.dim)


def forward_flops(c):
    """Of the encoder for one clip."""
    return embed_flops(c) + block_flops(c, c.n_tokens + c.specials)
