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


def noise(seeds, n, m, stream=0):
    """seeds (B,) int64 -> (B, n, m) float32, uniform in [-0.5, 0.5): a hash for each of n and of m, mixed by one
    product, so that a field of millions costs five passes, not fifteen."""
    rows = hash64(seeds)[:, None] ^ hash64(torch.arange(n, device=seeds.device) + (stream << 32))
    columns = hash64(torch.arange(m, device=seeds.device) + (stream + 1 << 32))
    field = (hash64(rows)[..., None] ^ columns).mul_(_MIX1)
    return field.bitwise_right_shift_(40).to(torch.float32).mul_(2.0 ** -24)


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


def _shuffled(seeds, grid, stream):
    """(B, T', F') int64 below 2^60: each clip's tokens in a random order, no two alike."""
    tokens = grid[0] * grid[1]
    key = (random_bits(seeds, tokens, stream, 40) << 20) + torch.arange(tokens, device=seeds.device)
    return key.unflatten(1, grid)


def _ordered(turn, grid, seeds=None, stream=0):
    """Keys for `_hide_first`: by turn (B, N) int64 below 2^40, then at random, or by position without seeds."""
    tokens = turn.shape[1]
    tie = torch.arange(tokens, device=turn.device)
    if seeds is not None:
        tie = tie + random_bits(seeds, tokens, stream, 18) * (1 << 20)
        return ((turn << 38) + tie).unflatten(1, grid)
    return ((turn << 20) + tie).unflatten(1, grid)


def frame_mask(seeds, grid, n, columns=None):
    """Uniform masks without structure: n tokens drawn without replacement.

    On a frame grid (T', 1) this is SSAST's frame masking. seeds (B,) int64, grid (T', F'), n a count or a share,
    columns (B,) valid columns -> bool (B, T', F').
    """
    return _hide_first(_shuffled(seeds, grid, 1), grid, n, columns)


def patch_mask(seeds, grid, n, columns=None, cluster=(3, 5)):
    """SSAST's clustered masks: square blocks of one side per clip are added until n tokens are hidden.

    The side is drawn per clip from `cluster` (inclusive). Block corners come in random order and may hang over every
    edge, so that all tokens lie in equally many blocks; a token's turn is that of the first block that covers it, a
    minimum filter over the corners' order. The last block is cut at random to hide exactly n. Deviation: SSAST's own
    sampler never hides the first and last token, and the lowest mel row half as often as the others.
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


def block_mask(seeds, grid, n, columns=None, side=5, extra=0.07):
    """EAT's inverse block masks: what stays visible lies in a few blocks; n tokens are hidden.

    With L valid tokens, of which v stay visible, max(1, int((v + extra L) / side²)) centres are drawn anywhere and the
    blocks around them are cut at the edges; where their union holds more than v tokens some of it is hidden at random,
    where it holds less other tokens are shown at random. EAT: 5 centres, 102 of 512 visible; large: extra 0.10.
    """
    (t, f), total = grid, grid[0] * grid[1]
    t_valid = torch.full_like(seeds, t) if columns is None else columns
    count = n_hidden(n, total, t_valid, f)  # (B,)
    tokens = t_valid * f
    centres = ((tokens - count + extra * tokens) / side ** 2).long().clamp(min=1)  # (B,)
    most = max(1, int((total - n_hidden(n, total) + extra * total) / side ** 2))
    place = uniform(seeds, 2 * most, 5)
    at_t = (place[:, :most] * t_valid[:, None]).long()  # (B, K)
    at_f = (place[:, most:] * f).long()
    reach = side // 2
    in_t = (torch.arange(t, device=seeds.device) - at_t[..., None]).abs() <= reach  # (B, K, T')
    in_f = (torch.arange(f, device=seeds.device) - at_f[..., None]).abs() <= reach  # (B, K, F')
    drawn = (torch.arange(most, device=seeds.device) < centres[:, None])[..., None, None]
    shown = (in_t[..., None] & in_f[:, :, None] & drawn).any(1)  # (B, T', F')
    key = (shown.long() << 62) + _shuffled(seeds, grid, 6)
    return _hide_first(key, grid, n, columns)


def group_mask(seeds, grid, n, columns=None, group=2):
    """Dasheng's masks: runs of `group` tokens are hidden or visible together, but for one run that n may cut.

    Tokens are counted time-major. Deviation: a last run that the grid leaves incomplete takes part (Dasheng's code
    wants whole runs).
    """
    total = grid[0] * grid[1]
    turn = random_bits(seeds, -(-total // group), 7, 40)
    return _hide_first(_ordered(turn.repeat_interleave(group, 1)[:, :total], grid), grid, n, columns)


def span_mask(seeds, grid, n, columns=None, span=5):
    """Spans of `span` columns (all their rows) are hidden, in random places that may overlap, until n tokens are.

    All columns lie in equally many spans; the last span is cut at random. ATST-Frame: 5 of 250 columns, nominally
    0.65 of them, of which its code hides 0.50; animal2vec: 2 of 2000 columns, 0.93. Their samplers (fairseq's) reach
    those shares on average only and hide the ends less often.
    """
    t, f = grid
    turn = random_bits(seeds, t + span - 1, 8).to(torch.float32)  # 24 bits, exact in float32
    turn = -F.max_pool1d(-turn[:, None], span, stride=1)[:, 0]  # (B, T'): the first span that covers a column
    return _hide_first(_ordered(turn.long().repeat_interleave(f, 1), grid, seeds, 9), grid, n, columns)
