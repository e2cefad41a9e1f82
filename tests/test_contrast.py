"""Contrast: views that change voice and microphone but not the clip, and the loss that tells clips apart."""
from dataclasses import replace

import pytest
import torch

from model import Encoder
from wren.objectives import Contrast, views
from wren.recipes import PRESETS
from wren.recipes.presets import any_rate

SEEDS = torch.arange(6)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(preset="wren-laptop", **settings):
    torch.manual_seed(0)
    return Contrast(Encoder(replace(PRESETS[preset], dim=32, depth=1, heads=2)), head_dim=32, **settings)


def test_the_loss_is_the_cross_entropy_of_the_other_view_among_all_other_views():
    objective, z = small(temperature=0.5), noise(6, 8)
    loss, metrics = objective.losses(z, noise(6, 4, 32))
    unit, wanted, right = z / z.norm(dim=1, keepdim=True), 0.0, 0
    for i in range(6):
        others = torch.tensor([j for j in range(6) if j != i])
        score = (unit[others] @ unit[i]) / 0.5
        own = (others == (i + 3) % 6).nonzero().item()
        wanted, right = wanted - score.log_softmax(0)[own] / 6, right + int(score.argmax() == own)
    assert torch.allclose(loss, wanted, atol=1e-6)
    assert metrics["accuracy"] == pytest.approx(right / 6) and metrics["chance"] == pytest.approx(0.2)
    assert metrics["count"] == 3


def test_a_shift_moves_each_band_by_the_same_number_and_none_leaves_all_as_it_was():
    spec = torch.zeros(6, 40, 3)
    spec[:, 20] = 1.0
    assert torch.equal(views.shift_bands(spec, SEEDS, 1, 0.0, 0.0), spec)
    moved = views.shift_bands(spec, SEEDS, 1, 0.1, 0.0)
    centre = (moved[:, :, 0] * torch.arange(40)).sum(1) / moved[:, :, 0].sum(1)
    assert ((centre - 20).abs() <= 4).all() and (centre - 20).abs().max() > 1 and len(set(centre.tolist())) == 6
    assert torch.allclose(moved.sum(1), torch.ones(6, 3), atol=1e-5), "between two bands it is shared"


def test_a_filter_is_smooth_the_same_at_all_times_and_of_the_asked_deviation():
    seeds = torch.arange(4000)
    change = views.recolour(torch.zeros(4000, 61, 2), seeds, 1, 0.5)
    assert torch.equal(change[..., 0], change[..., 1])
    assert change.diff(dim=1).diff(dim=1).abs().mean() < 0.05, "straight between its seven values"
    middle = change[:, ::10, 0] - change[:, ::10, 0].mean(1, keepdim=True)
    assert middle.std().item() == pytest.approx(0.5 * (6 / 7) ** 0.5, rel=0.05)


def test_a_part_lies_within_its_clip_and_has_at_least_the_asked_share():
    spec = torch.arange(50.0).expand(6, 2, 50).contiguous()
    frames = torch.tensor([50, 40, 30, 20, 10, 1])
    part, valid = views.crop_frames(spec, frames, 25, 0.6, SEEDS, 3)
    assert part.shape == (6, 2, 25) and (valid <= frames.clamp(max=25)).all()
    assert (valid >= (0.6 * frames.clamp(max=25)).long().clamp(min=1)).all()
    for row, n, length in zip(part[:, 0], valid, frames):
        assert torch.equal(row[:n], row[0] + torch.arange(float(n))) and row[n - 1] < length and not row[n:].any()


def test_parts_of_a_clip_longer_than_they_are_come_from_all_of_it():
    spec = torch.arange(100.0).expand(400, 1, 100).contiguous()
    part, valid = views.crop_frames(spec, None, 10, 1.0, torch.arange(400), 3)
    assert (valid == 10).all() and torch.histc(part[:, 0, 0], 4, 0, 90).min() > 60, "100 in each quarter"


@pytest.mark.parametrize("preset", ["wren-laptop", "ssast-laptop-patch", "dasheng-laptop", "eat-laptop"])
def test_padding_and_neighbours_of_it_change_nothing(preset):
    objective, lengths = small(preset).eval(), torch.tensor([16000, 9000, 4000, 12000, 30000, 2000])
    wave = 0.1 * noise(6, 30000) * (torch.arange(30000) < lengths[:, None])
    padded = torch.nn.functional.pad(wave, (0, 20000), value=0.3)
    with torch.no_grad():
        a, b = (objective(x, lengths, SEEDS)[0] for x in (wave, padded))
    assert torch.allclose(a, b, atol=1e-4)


def test_what_is_mixed_in_has_the_level_of_the_clip():
    """A whisper beside a shout is not drowned by it, nor the shout changed less than the whisper."""
    objective = small(shortest=1.0, pitch=(0.0, 0.0), colour=0.0, mix=0.5)
    whisper, shout = torch.zeros(1, 64, 100), torch.full((1, 64, 100), 3.0)
    whisper[:, 10], shout[:, 40] = 1.0, 4.0  # tones
    spec, nats = torch.cat([whisper, shout]), views.nats(objective.encoder.config)
    view, _ = objective.view(spec, None, torch.tensor([3, 4]), 0, objective.encoder.config)
    here = torch.ones(2, 100, dtype=torch.bool)
    assert torch.allclose(views.level(view * nats, here), views.level(spec * nats, here), atol=0.2)
    assert (view[0, 40] > 0.5).all() and (view[0, 10] < 1.0).all(), "the shout's tone, at the whisper's level"


@pytest.mark.parametrize("rate", [48000, 22050, 8000])
def test_it_learns_at_any_rate_and_hears_nothing_above_the_nyquist_frequency(rate):
    torch.manual_seed(0)
    encoder = Encoder(replace(any_rate(PRESETS["wren-laptop"], 48000), dim=32, depth=1, heads=2))
    objective, layout = Contrast(encoder, head_dim=32).train(), encoder.config.at_rate(rate)
    wave = 0.1 * noise(4, rate)
    loss, metrics = objective(wave, None, torch.arange(4), rate=rate)
    loss.backward()
    assert metrics["count"] == 4 and torch.isfinite(loss) and encoder.patch.weight.grad.abs().sum() > 0
    view, _ = objective.view(encoder.frontend(wave, rate=rate), None, torch.arange(4), 0, layout)
    assert layout.absent == 0 or not view[:, -layout.absent:].any()


def test_it_says_what_it_can_not_learn_from():
    for preset, message in (("animal2vec-laptop", "raw waves"),):
        with pytest.raises(ValueError, match=message):
            Contrast(Encoder(PRESETS[preset]))
