"""Which tokens are hidden: masks as pure functions of each clip's seed.

All functions are batched, run on the device of `seeds`, and give the same mask on CPU and GPU: randomness comes from
a counter-based integer hash of (seed, counter), never from a generator with state. A mask is bool [B, T', F'], True =
hidden, with exactly `n` hidden tokens of a full clip; a clip with fewer valid columns hides the same share of them
(at least one), and padding is never hidden.
"""
import torch
import torch.nn.functional as F

_MASK64 = (1 << 64) - 1


def _signed(value):
    """A 64-bit pattern as the Python integer that an int64 tensor holds."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)  # the constants of splitmix64 (Steele, Lea and Flood 2014)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift(x, bits):
    """Logical right shift of int64 (the operator's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hash64(x):
    """splitmix64's finaliser on int64 tensors; multiplication wraps alike on every device."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def random_bits(seeds, n, stream=0, bits=24):
    """seeds (B,) int64 -> (B, n) int64 in [0, 2**bits): independent for each seed, position and `stream`."""
    counter = torch.arange(n, device=seeds.device, dtype=torch.int64) + (stream << 32)
    return _shift(hash64(hash64(seeds)[:, None] ^ hash64(counter)), 64 - bits)


def uniform(seeds, n, stream=0):
    """seeds (B,) int64 -> (B, n) float32 in [0, 1), exact multiples of 2**-24."""
    return random_bits(seeds, n, stream).to(torch.float32) / (1 << 24)


def n_hidden(n, total, columns=None, rows=1):
    """How many tokens a clip hides: `n` of `total` if an int, a share of them if a float; of a shorter clip with
    `columns` (B,) valid columns of `rows` tokens the same share, at least 1, never all.

    Returns an int, or int64 (B,) when `columns` is given.
    """
    full = n if isinstance(n, int) else round(n * total)
    if not 1 <= full < total:
        raise ValueError(f"{full} hidden tokens do not fit a grid of {total}: hide 1 to {total - 1}")
    if columns is None:
        return full
    valid = columns * rows
    share = torch.div(2 * full * valid + total, 2 * total, rounding_mode="floor")  # round half up, in integers
    return torch.minimum(share.clamp(min=1), (valid - 1).clamp(min=1))


def _hide_first(key, grid, n, columns):
    """Hide the n tokens with the smallest keys. key (B, T', F') int64, distinct for each clip -> bool (B, T', F')."""
    key = key.flatten(1)
    count = n_hidden(n, key.shape[1])
    if columns is not None:
        valid = torch.arange(grid[0], device=key.device)[:, None].expand(grid).flatten() < columns[:, None]
        key = key.masked_fill(~valid, torch.iinfo(torch.int64).max)
        count = n_hidden(n, key.shape[1], columns, grid[1])[:, None]
    rank = key.argsort(dim=1).argsort(dim=1)
    return (rank < count).unflatten(1, grid)


def frame_mask(seeds, grid, n, columns=None):
    """Uniform masks without structure: n tokens drawn without replacement.

    On a frame grid (T', 1) this is SSAST's frame masking. seeds (B,) int64, grid (T', F'), n a count or a share,
    columns (B,) valid columns -> bool (B, T', F').
    """
    tokens = grid[0] * grid[1]
    key = (random_bits(seeds, tokens, 1, 40) << 20) + torch.arange(tokens, device=seeds.device)  # ties by position
    return _hide_first(key.unflatten(1, grid), grid, n, columns)


def patch_mask(seeds, grid, n, columns=None, cluster=(3, 5)):
    """SSAST's clustered masks: square blocks of one side per clip are added until n tokens are hidden.

    The side is drawn per clip from `cluster` (inclusive). Block corners come in random order and may hang over every
    edge, so that all tokens lie in equally many blocks; a token's turn is that of the first block that covers it, a
    minimum filter over the corners' order. The last block is cut at random to hide exactly n. SSAST's own sampler,
    which never hides the first and last token and seldom the lowest mel row, is `patch_mask_upstream`.
    seeds (B,) int64, grid (T', F'), n a count or a share, columns (B,) valid columns -> bool (B, T', F').
    """
    low, high = cluster
    (t, f), batch = grid, len(seeds)
    side = low + _shift(hash64(hash64(seeds) ^ 2), 8) % (high - low + 1)  # (B,)
    corners = random_bits(seeds, (t + high - 1) * (f + high - 1), 3).view(batch, t + high - 1, f + high - 1)
    turn = corners.new_zeros(batch, t, f)
    for s in range(low, high + 1):  # one min-filter a block side; max_pool wants floats, which hold 24 bits exactly
        field = corners[:, high - s:, high - s:].to(torch.float32)
        first = -F.max_pool2d(-field[:, None], s, stride=1)[:, 0]  # (B, T', F')
        turn = torch.where((side == s)[:, None, None], first.to(torch.int64), turn)
    tie = random_bits(seeds, t * f, 4, 20).view(batch, t, f) * (t * f)
    key = (turn << 39) + ((tie + torch.arange(t * f, device=seeds.device).view(t, f)) & ((1 << 39) - 1))
    return _hide_first(key, grid, n, columns)


def patch_mask_upstream(seeds, grid, n, columns=None, cluster=(3, 5)):
    """SSAST's released sampler with its biases, one clip at a time on the CPU, to reproduce its training.

    Indices are frequency-major (f T' + t). Block corners are drawn until more than n indices are held, index 0 is
    left out, blocks run over the end of a mel row into the next, and the n smallest of the held indices stay: the
    first and last token are never hidden. The released loop never ends for n > tokens - 2; this one refuses.
    """
    import numpy as np
    (t, f), total = grid, grid[0] * grid[1]
    count = n_hidden(n, total)
    if columns is not None:
        raise ValueError("the upstream sampler knows no padding: use pad 'published' or the default sampler")
    if count > total - 2:
        raise ValueError(f"the upstream sampler can hide at most {total - 2} of {total} tokens, not {count}")
    masks = np.zeros((len(seeds), f, t), dtype=bool)
    for mask, seed in zip(masks, seeds.tolist()):
        rng = np.random.default_rng(seed & _MASK64)
        side = rng.integers(cluster[0], cluster[1] + 1)
        block = (np.arange(side)[:, None] * t + np.arange(side)).ravel()
        held = np.zeros(total, dtype=bool)
        while held.sum() <= count:
            hit = rng.integers(total) + block
            held[hit[(hit > 0) & (hit < total)]] = True
        mask.flat[np.flatnonzero(held)[:count]] = True
    return torch.from_numpy(masks).transpose(1, 2).contiguous().to(seeds.device)
