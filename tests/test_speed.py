"""What makes a step fast on a GPU changes no result, and nothing in it waits: checked here without one, as far as can be."""
import re

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode

import pretrain
from model import Encoder
from test_recipes import NAMES, small
from wren.objectives import objective_of
from wren.recipes import PRESETS, RECIPES
from wren.training import engine, processes
from wren.training.engine import compile_parts


def clips(objective, batch=4, short=False, device="cpu"):
    """A micro-batch as a trainer gives it, of full clips or of shorter ones among them."""
    size = objective.encoder.config.clip_samples
    torch.manual_seed(0)
    lengths = torch.full((batch,), size)
    lengths[1:] -= size // 3 * short
    waves = {name: 0.1 * torch.randn(batch, size) for name in ("wave", "partner")}
    return {"seed": torch.arange(batch), **waves, "lengths": lengths, "partner_lengths": lengths}


def takes(objective):
    """Names of what it takes of a micro-batch."""
    return getattr(objective, "takes", ("wave", "lengths", "seed"))


def moved(module):
    """Weights and tables become those of a GPU that is only imagined, which `Module.to` can't do."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for key, x in tensors.items():
                if x is not None:
                    there = torch.empty(x.shape, dtype=x.dtype, device="cuda")
                    tensors[key] = torch.nn.Parameter(there, x.requires_grad) if tensors is part._parameters else there
    return module


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_no_step_asks_the_device_for_a_number(name, short):
    """On a GPU that is only imagined a shape or a branch that depends on a tensor's values is an error."""
    objective = small(name).train()
    batch = clips(objective, short=short)
    with FakeTensorMode() as imagined:
        moved(objective)
        arguments = [batch.get(key) if short or "lengths" not in key else None for key in takes(objective)]
        arguments = [x if x is None else imagined.from_tensor(x).to("cuda") for x in arguments]
        loss, metrics = objective(*arguments)
    assert loss.shape == () and all(value.shape == () for value in metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_compiled_computes_the_same(name, monkeypatch):
    """Loss, gradients and teacher of a step; a second one with shorter clips and another batch makes no new graph."""
    compile, ends = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda call, **how: compile(call, **how, backend="aot_eager"))
    for how in ("off", "on"):
        objective = small(name).train()
        compile_parts(objective, how, torch.device("cpu"))
        torch.manual_seed(0)
        batch = clips(objective, batch=3, short=True)
        loss = objective(*(batch.get(key) for key in takes(objective)))[0]
        loss.backward()
        ends.append(torch.cat([loss.detach()[None], *(p.grad.flatten() for p in objective.parameters()
                                                      if p.grad is not None)]))
    assert (ends[0] - ends[1]).norm() <= 1e-5 * ends[0].norm()
    graphs = counters["stats"]["unique_graphs"]
    batch = clips(objective, batch=5, short=True)
    objective(*(batch.get(key) for key in takes(objective)))[0].backward()
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("name", ["eat", "animal2vec"])
def test_a_decoders_channels_lie_last_from_its_first_convolution_to_its_last(name):
    """So that neither they nor the norms between them have to turn a tensor."""
    objective, seen = small(name).train(), []
    for conv in objective.decoder.convs:
        conv.register_forward_hook(lambda conv, inputs, output: seen.extend((*inputs, output)))
    objective(*(clips(objective).get(key) for key in takes(objective)))
    assert len(seen) == 2 * len(objective.decoder.convs)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


MEASURED = [  # recipe, encoder, clips, recomputed, GB that a step took on an H100 or H200, not compiled
    ("ssast", "ssast-base-patch", 256, False, 49), ("atst-frame", "atst-frame-base", 256, False, 53),
    ("audiomae", "audiomae-base", 256, False, 32), ("dasheng", "dasheng-base", 512, False, 34),
    ("dasheng", "dasheng-1.2b", 128, True, 24), ("eat", "eat-base", 12, False, 15),
    ("atst", "atst-small", 256, False, 15), ("animal2vec", "animal2vec-large", 12, False, 61)]


@pytest.mark.parametrize("recipe, preset, n, again, measured", MEASURED)
def test_the_printed_need_of_memory_is_what_a_gpu_was_seen_to_take(recipe, preset, n, again, measured, capsys):
    assert printed_need(recipe, preset, n, again, capsys) == pytest.approx(measured, rel=0.15)


@pytest.mark.gpu
@pytest.mark.parametrize("recipe, preset, n, again, measured", MEASURED)
def test_the_printed_need_of_memory_is_what_this_gpu_takes(recipe, preset, n, again, measured, capsys):
    objective = objective_of(RECIPES[recipe]["paper"], Encoder(PRESETS[preset])).to("cuda")
    objective.encoder.checkpoint_activations = again
    trainer = engine.Trainer(objective, engine.make_optimizer(objective), processes.start_processes("cuda"),
                             batch_size=n, micro_batch=n, steps=10, warmup=0, amp="bf16", compile="off")
    batches = trainer.ahead([clips(objective, n)] * 2)
    torch.cuda.reset_peak_memory_stats()
    for batch in batches:  # the first step makes Adam's moments
        trainer.train(batch)
    taken = torch.cuda.max_memory_allocated() / 1e9
    assert printed_need(recipe, preset, n, again, capsys) == pytest.approx(taken, rel=0.15)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_clip_is_said_to_keep_is_what_torch_saves_of_it(name, monkeypatch):
    """At published size, in bf16 on an imagined GPU, where attention is a fused kernel: what two more clips add."""
    recipe = RECIPES[name]["paper"]
    with torch.device("meta"):
        objective = objective_of(recipe, Encoder(PRESETS[recipe["preset"]])).train()
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused_attention)
    with FakeTensorMode():
        moved(objective)
        few, more = (saved_bytes(objective, clips(objective, n)) for n in (2, 4))
    assert objective.kept() == pytest.approx((more - few) / 2, rel=0.15)


def saved_bytes(objective, batch):
    """Of a forward pass, for the backward pass; weights are not counted."""
    own, saved = {p.untyped_storage()._cdata for p in objective.parameters()}, {}

    def pack(x):
        saved[x.untyped_storage()._cdata] = x.untyped_storage()
        return x
    arguments = [batch[key].to("cuda") if key in batch and "lengths" not in key else None for key in takes(objective)]
    torch.set_autocast_enabled("cuda", True)  # torch.autocast asks for a GPU that is there
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            objective(*arguments)
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()
    return sum(storage.nbytes() for key, storage in saved.items() if key not in own)


def fused_attention(q, k, v, attn_mask=None):
    """What PyTorch calls on a GPU: (B, H, N, d) thrice, a bias or None -> (B, H, N, d)."""
    q, k, v = (x.bfloat16() for x in (q, k, v))
    if attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    bias = attn_mask.bfloat16().expand(*q.shape[:3], k.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)[0]


def printed_need(recipe, preset, n, again, capsys):
    """GB of a training step, by --meta."""
    pretrain.main(["--recipe", recipe, "--scale", "paper", "--preset", preset, "--micro-batch", str(n), "--meta"])
    text = capsys.readouterr().out
    return gigabytes(text, "training state")[0] + gigabytes(text, "activations")[again]


def gigabytes(text, row):
    line = next(line for line in text.splitlines() if line.startswith(row))
    return [float(number) for number in re.findall(r"([\d.]+) GB", line)]


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_no_step_waits_for_the_gpu(name):
    """From the second step on, which finds all graphs and tables made."""
    objective = small(name).to("cuda")
    trainer = engine.Trainer(objective, engine.make_optimizer(objective), processes.start_processes("cuda"),
                             batch_size=4, micro_batch=4, steps=10, warmup=0, clip=1.0)
    batches = trainer.ahead([clips(objective, short=short) for short in (False, True) * 3])
    for step, batch in enumerate(batches):
        torch.cuda.set_sync_debug_mode("error" if step >= 2 else "default")
        try:
            numbers = trainer.launch(batch, flags=(0, 1))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert numbers()["finite"] and numbers()["flags"] == [0, 1]
