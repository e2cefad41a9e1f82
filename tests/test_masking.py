"""Masks: exact counts, uniform coverage, no padding, the same everywhere."""
import pytest
import torch

import masking
from masking import block_mask, frame_mask, group_mask, patch_mask, span_mask

GRID = (64, 8)
SEEDS = torch.arange(2000)
OURS = [patch_mask, frame_mask, block_mask, group_mask, span_mask]


@pytest.mark.parametrize("draw", OURS)
@pytest.mark.parametrize("n", [1, 100, 400, 510, 0.6])
def test_every_clip_hides_exactly_n_tokens(draw, n):
    wanted = n if isinstance(n, int) else round(n * 512)
    assert draw(SEEDS[:20], GRID, n).flatten(1).sum(1).eq(wanted).all()


def test_all_but_one_token_can_be_hidden_without_an_endless_loop():
    assert patch_mask(SEEDS[:3], GRID, 511).flatten(1).sum(1).eq(511).all()
    assert patch_mask(SEEDS[:3], (3, 2), 5).flatten(1).sum(1).eq(5).all(), "blocks larger than the grid"


@pytest.mark.parametrize("n", [0, 512, 513, 1.0])
def test_a_mask_that_does_not_fit_the_grid_is_refused(n):
    for draw in OURS:
        with pytest.raises(ValueError, match="hide 1 to 511"):
            draw(SEEDS[:2], GRID, n)


def test_every_token_is_hidden_about_equally_often():
    """2000 clips at 400 / 512: a token's rate has a deviation of 0.009; five of them, and clusters never leave more."""
    for draw, tolerance in ((patch_mask, 0.045), (frame_mask, 0.045)):
        rates = draw(SEEDS, GRID, 400).float().mean(0)
        assert (rates - 400 / 512).abs().max() < tolerance


def test_every_mel_row_is_hidden_equally_often_unlike_in_ssasts_own_sampler():
    """There 0.41, 0.67, 0.81, 0.87, 0.89, 0.89, 0.89 and 0.82 of them, from the lowest to the highest."""
    assert torch.allclose(patch_mask(SEEDS, GRID, 400).float().mean((0, 1)), torch.full((8,), 400 / 512), atol=0.01)


def test_patch_masks_are_clustered_and_frame_masks_are_not():
    def neighbours(mask):  # how often the next column is hidden too, given that this one is
        return (mask[:, 1:] & mask[:, :-1]).sum() / mask[:, :-1].sum()
    assert neighbours(patch_mask(SEEDS[:500], GRID, 100)) > 0.6
    assert abs(neighbours(frame_mask(SEEDS[:500], GRID, 100)) - 99 / 511) < 0.02


@pytest.mark.parametrize("draw", OURS)
def test_every_token_is_reached_hidden_and_shown(draw):
    """Also the corners: 2000 clips of which half is hidden."""
    rates = draw(SEEDS, GRID, 256).float().mean(0)
    assert 0.3 < rates.min() and rates.max() < 0.75, f"{draw.__name__} neglects some token"


@pytest.mark.parametrize("draw", [frame_mask, group_mask, span_mask])
def test_rows_and_columns_are_hidden_alike(draw):
    """Blocks are drawn around centres inside the grid, so EAT shows its edges less, as published."""
    rates = draw(SEEDS, GRID, 256).float().mean(0)
    assert torch.allclose(rates, torch.full(GRID, 0.5), atol=0.06)


def test_eats_visible_patches_lie_in_few_blocks():
    """Measured on the published sampler: the union of 5 blocks of 5 × 5 averages 96 of 512 patches, before it is cut
    or filled up to 102. Most visible patches have four visible neighbours; uniform ones hardly ever."""
    def crowded(mask):
        shown = torch.nn.functional.pad(~mask, (1, 1, 1, 1))
        around = shown[:, :-2, 1:-1].int() + shown[:, 2:, 1:-1] + shown[:, 1:-1, :-2] + shown[:, 1:-1, 2:]
        return float(((around >= 3) & ~mask).sum() / (~mask).sum())
    assert crowded(block_mask(SEEDS[:500], GRID, 410)) > 0.5
    assert crowded(frame_mask(SEEDS[:500], GRID, 410)) < 0.1
    short = block_mask(SEEDS[:500], GRID, 410, torch.full((500,), 16))[:, :16]
    assert crowded(short) > 0.3, "those of a shorter clip, too"


def test_dashengs_pairs_are_hidden_together():
    mask = group_mask(SEEDS[:200], (250, 1), 188)[:, :, 0]
    assert torch.equal(mask[:, ::2], mask[:, 1::2])


def test_an_odd_count_cuts_one_pair_only():
    mask = group_mask(SEEDS[:200], (251, 1), 187)[:, :, 0]
    assert ((mask[:, :250:2] != mask[:, 1:250:2]).sum(1) <= 1).all()


def test_spans_hide_whole_columns_in_runs_of_their_length():
    mask = span_mask(SEEDS[:300], (250, 1), 0.5, span=5)[:, :, 0].int()
    edges = torch.diff(torch.nn.functional.pad(mask, (1, 1)), dim=1)
    runs = (edges == -1).nonzero()[:, 1] - (edges == 1).nonzero()[:, 1]
    assert (runs >= 5).float().mean() > 0.9, "only the last span is cut, or one at an end"
    grid = span_mask(SEEDS[:50], GRID, 256, span=4)
    assert (grid.all(2) | ~grid.any(2)).sum(1).ge(GRID[0] - 4).all(), "all rows of a column are hidden together"


def test_cluster_sides_of_three_to_five_all_occur_alike():
    side = 3 + masking._shift(masking.hash64(masking.hash64(SEEDS) ^ 2), 8) % 3
    assert all(abs((side == s).float().mean() - 1 / 3) < 0.05 for s in (3, 4, 5))


def test_padding_is_never_hidden_and_shorter_clips_hide_the_same_share():
    columns = torch.tensor([64, 32, 10, 1])
    for draw in OURS:
        mask = draw(SEEDS[:4], GRID, 400, columns)
        assert mask.flatten(1).sum(1).tolist() == [400, 200, 63, 6]
        for clip, valid in zip(mask, columns):
            assert not clip[valid:].any()


def test_a_mask_depends_on_its_own_seed_alone():
    for draw in OURS:
        together = draw(SEEDS[:8], GRID, 300)
        alone = torch.cat([draw(SEEDS[i:i + 1], GRID, 300) for i in range(8)])
        assert torch.equal(together, alone)
        assert not torch.equal(together[0], together[1])


def test_the_hash_matches_splitmix64_in_python_integers():
    def reference(x):
        x = (x + 0x9E3779B97F4A7C15) % 2 ** 64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2 ** 64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2 ** 64
        return x ^ x >> 31
    values = [0, 1, 2, 12345678901234567, 2 ** 63 - 1, -1, -2 ** 63]
    got = masking.hash64(torch.tensor(values)).tolist()
    assert [g % 2 ** 64 for g in got] == [reference(v % 2 ** 64) for v in values]


def test_uniform_numbers_are_uniform_and_streams_differ():
    u = masking.uniform(SEEDS, 50)
    assert 0 <= u.min() and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
    assert not torch.equal(u, masking.uniform(SEEDS, 50, stream=1))
    assert abs(torch.corrcoef(u.T)[0, 1:]).max() < 0.08, "neighbouring counters are independent"


def test_fields_of_noise_are_uniform_and_belong_to_their_clip():
    field = masking.noise(SEEDS[:64], 100, 128)
    assert -0.5 <= field.min() and field.max() < 0.5
    assert abs(field.mean()) < 0.003 and abs(field.var() - 1 / 12) < 0.001
    for axis in range(3):  # no two clips, tokens or channels are alike
        flat = field.movedim(axis, 0).flatten(1)
        assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.08
    assert torch.equal(masking.noise(SEEDS[5:6], 100, 128)[0], field[5]), "whatever the batch"
    assert not torch.equal(field, masking.noise(SEEDS[:64], 100, 128, stream=1))


@pytest.mark.gpu
def test_masks_are_the_same_on_cpu_and_gpu():
    for draw in OURS:
        assert torch.equal(draw(SEEDS, GRID, 400), draw(SEEDS.cuda(), GRID, 400).cpu())
