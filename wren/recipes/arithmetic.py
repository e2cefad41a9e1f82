"""What one clip takes of a machine, from an encoder's settings `c`: operations, and bytes kept for a backward pass."""
from wren.recipes.encoder import CONV_POSITIONS

# Bytes a token and channel that a transformer block, and a convolution with its norm and GELU, keep (bf16, norms in
# float32), fitted to what an H100 and an H200 took
BLOCK_BYTES, CONV_BYTES = 39, 13.5


def view_tokens(c, seconds):
    """Patch tokens of so many seconds, at most those of a clip."""
    return min(c.n_tokens, c.columns(round(seconds / c.hop)) * c.grid[1])


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


def block_bytes(c, tokens, again=False):
    """Kept by all blocks for one clip of so many tokens; again: their inputs and one block, the rest computed again."""
    return tokens * c.dim * (2 * c.depth + BLOCK_BYTES if again else BLOCK_BYTES * c.depth)


def conv_bytes(c):
    """Kept by a wave's convolutions, for one clip; patches keep next to nothing."""
    return CONV_BYTES * sum(t * o for t, (o, _, _) in zip(c.conv_lengths(c.clip_samples), c.convs)) if c.convs else 0


def position_bytes(c):
    """Kept by convolutional positions for one clip."""
    return CONV_BYTES * CONV_POSITIONS[0] * c.n_tokens * c.dim if c.positions == "conv" else 0


def forward_flops(c):
    """Of the encoder for one clip."""
    return embed_flops(c) + block_flops(c, c.n_tokens + c.specials)
