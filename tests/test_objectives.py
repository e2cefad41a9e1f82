"""SSAST's objective: parity, its two axes, padding, and that it learns."""
import pytest
import torch

from wren import formats
from model import Encoder, load_encoder, load_exactly
from wren.objectives import SSAST, draw_mask
from wren.recipes import EncoderConfig

SMALL = EncoderConfig(name="small", n_mels=64, frames=96, dim=32, depth=2, heads=2, mean=0.0, scale=1.0)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def published(parity):
    """The objective with the published heads, the case's input, mask and outputs."""
    path, inputs, outputs = parity("ssast_tiny_patch")
    objective = SSAST(load_encoder(path, format="ssast")).eval()
    heads = formats.read(path, "ssast").heads["objective"]
    for name in ("classify", "reconstruct"):
        part = {k.split(".", 1)[1]: v for k, v in heads.items() if k.startswith(name)}
        load_exactly(getattr(objective, name), part, path)
    t, f = objective.encoder.config.grid
    mask = torch.zeros(2, f * t, dtype=torch.bool).scatter_(1, inputs["mask_index"].long(), True)
    return objective, inputs, mask.view(2, f, t).transpose(1, 2), outputs


def test_losses_and_accuracy_equal_the_published_implementation(published):
    objective, inputs, mask, outputs = published
    with torch.inference_mode():
        loss, metrics = objective(inputs["x"].transpose(1, 2), mask=mask)
    assert metrics["nce"] == pytest.approx(float(outputs["nce"]), rel=1e-5)
    assert metrics["mse"] == pytest.approx(float(outputs["mse"]), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(float(outputs["acc"]), abs=1e-7)
    assert loss == pytest.approx(float(outputs["nce"] + 10 * outputs["mse"]), rel=1e-5)
    assert metrics["chance"] == pytest.approx(1 / 100)


def test_similarity_equals_the_published_implementation(published):
    objective, inputs, mask, outputs = published
    spec = inputs["x"].transpose(1, 2)
    with torch.inference_mode():
        tokens = objective.encoder.tokens(spec, mask)[:, 2:]
        s = objective.similarity(tokens, objective.encoder.patches(spec).flatten(1, 2), mask.flatten(1))
    t, f = objective.encoder.config.grid
    index = inputs["mask_index"].long()
    ours = index % t * f + index // t  # frequency-major -> time-major
    for clip in range(2):
        picked = s[clip][ours[clip]][:, ours[clip]]
        assert (picked - outputs["similarity"][clip]).abs().max() < 1e-4


def test_the_papers_axis_is_the_released_one_transposed():
    released, paper = SSAST(Encoder(SMALL)), SSAST(Encoder(SMALL), nce_axis="paper")
    s = noise(2, 5, 5)
    hidden, count = torch.ones(2, 5, dtype=torch.bool), torch.tensor(10)
    assert torch.allclose(released._nce(s, hidden, count)[0], paper._nce(s.transpose(1, 2), hidden, count)[0])
    assert not torch.allclose(released._nce(s, hidden, count)[0], paper._nce(s, hidden, count)[0])


def test_the_joint_loss_is_the_sum_of_its_parts_in_one_pass():
    torch.manual_seed(0)
    joint = SSAST(Encoder(SMALL))
    losses = {}
    for name in ("joint", "nce", "mse"):
        torch.manual_seed(0)
        one = SSAST(Encoder(SMALL), loss=name)
        one.load_state_dict(joint.state_dict())
        losses[name] = one(noise(3, 64, 96), seeds=torch.arange(3))[0].item()
    assert losses["joint"] == pytest.approx(losses["nce"] + 10 * losses["mse"], rel=1e-6)


@pytest.mark.parametrize("loss", ["joint", "nce", "mse"])
def test_every_trainable_parameter_gets_a_gradient(loss):
    objective = SSAST(Encoder(SMALL), loss=loss)
    objective(noise(2, 64, 96), seeds=torch.arange(2))[0].backward()
    assert [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_clip_counts_the_same_alone_and_padded_in_a_batch():
    """Losses are means over hidden tokens: the batch's is the mean of the clips', weighted by their counts."""
    objective = SSAST(Encoder(SMALL)).eval()
    wave, lengths, seeds = 0.1 * noise(3, 15360), torch.tensor([15360, 9000, 3000]), torch.tensor([5, 6, 7])
    with torch.inference_mode():
        batch, m = objective(wave, lengths, seeds)
        mask = draw_mask("patch", 400 / 512, objective.encoder.config, seeds, lengths)
        alone = [objective(wave[i:i + 1, :n], mask=mask[i:i + 1]) for i, n in enumerate(lengths)]
    counts = torch.tensor([float(a["count"]) for _, a in alone])
    assert counts.sum() == m["count"]
    losses = torch.stack([loss for loss, _ in alone])
    assert batch == pytest.approx(float((losses * counts).sum() / counts.sum()), rel=1e-5)


def test_other_patch_areas_than_256_work():
    config = EncoderConfig(n_mels=64, frames=96, patch=(8, 4), stride=(8, 4), dim=32, depth=1, heads=2)
    assert torch.isfinite(SSAST(Encoder(config))(noise(2, 64, 96), seeds=torch.arange(2))[0])


@pytest.mark.parametrize("masking", ["patch", "frame"])
def test_one_batch_overfits(masking):
    """A fixed batch and mask: the joint loss falls below a fifth and every hidden patch is told apart."""
    torch.manual_seed(0)
    objective = SSAST(Encoder(SMALL), masking=masking, hidden=0.5)
    spec, seeds = noise(4, 64, 96), torch.arange(4)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    first = objective(spec, seeds=seeds)[0].item()
    for _ in range(300):
        loss, metrics = objective(spec, seeds=seeds)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert metrics["loss"] < 0.2 * first and metrics["accuracy"] > 0.95
