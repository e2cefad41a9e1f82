"""Every recipe: parity of its loss, padding, clones and teachers, one batch overfits, flags, secondary pre-training."""
import json
from dataclasses import replace

import pytest
import torch

from wren import formats
from wren.training import starting
import pretrain
from wren.objectives import views
from wren.cli import UserError
from model import Encoder, load_encoder, save_encoder
from wren.objectives import ATST, EAT, MAE, Animal2Vec, draw_mask, objective_of
from wren.recipes import PRESETS, RECIPES, SETTINGS
from wren.recipes.run import written

NAMES = ["ssast", "contrast", "dasheng", "audiomae", "eat", "atst", "atst-frame", "animal2vec"]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(name, **changes):
    """A recipe's objective at its laptop size, with a thin encoder that hears 1 s."""
    recipe = RECIPES[name]["laptop"] | changes
    config = PRESETS[recipe["preset"]]
    config = replace(config, dim=64, depth=2, heads=4, frames=config.frames // 4)  # 1 s
    if "view_seconds" in recipe:
        recipe["view_seconds"] /= 4
    if "clones" in recipe:
        recipe["clones"] = 2
    torch.manual_seed(0)
    return objective_of(recipe, Encoder(config))


def gradient_norm(objective):
    return float(torch.nn.utils.get_total_norm([p.grad for p in objective.parameters() if p.grad is not None]))


# --------------------------------------------------------------------------------------------------------- parity

def published(parity, name, under=None, prefix="", **extra):
    """(encoder, heads, inputs, outputs) of a parity case that was opened as a published file."""
    path, inputs, outputs = parity(name)
    state = torch.load(path)
    if prefix:
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    torch.save({under: state, **extra} if under else state, path)
    return load_encoder(path), formats.read(path).heads.get("objective", {}), inputs, outputs


def with_heads(objective, heads):
    own = objective.state_dict()
    assert heads.keys() <= own.keys(), "the published heads fit without renaming"
    objective.load_state_dict(own | heads)
    objective.restart_teacher()
    return objective


def test_dashengs_loss_and_gradients_equal_the_published_implementation(parity):
    encoder, _, inputs, outputs = published(parity, "dasheng_mae_loss", "model", "encoder.", config={})
    objective, state = MAE(encoder), torch.load(parity("dasheng_mae_loss")[0])
    names = {"input_proj": "embed", "outputlayer": "predict"}
    decoder = {k[8:]: v for k, v in state.items() if k.startswith("decoder.")}
    decoder = {names.get(k.split(".")[0], k.split(".")[0]) + k[len(k.split(".")[0]):]: v for k, v in decoder.items()}
    decoder["mask_token"] = decoder["mask_token"][0, 0]
    decoder["positions"] = decoder.pop("pos_embed")[0, :252, None]
    objective.load_state_dict(objective.state_dict() | decoder)
    order = inputs["noise"].argsort(1)  # of pairs; the first int(0.25 · 50) tokens stay
    shown = (2 * order[:, :, None] + torch.arange(2)).flatten(1)[:, :12]
    mask = torch.ones(2, 50, dtype=torch.bool).scatter_(1, shown, False)
    assert torch.equal(mask, outputs["mask"].bool())
    with torch.no_grad():
        loss, _ = objective.eval()(inputs["waveform"], mask=mask[..., None])
    assert loss == pytest.approx(float(outputs["loss_eval"]), rel=1e-5)
    loss, _ = objective.train()(inputs["waveform"], mask=mask[..., None])
    loss.backward()
    assert loss.item() == pytest.approx(float(outputs["loss_train"]), rel=1e-5)
    assert gradient_norm(objective) == pytest.approx(float(outputs["grad_norm_total"]), rel=1e-4)


def test_eats_losses_and_gradients_equal_the_published_implementation(parity):
    encoder, heads, inputs, outputs = published(parity, "eat_pretrain_loss", "model")
    objective = with_heads(EAT(encoder, clones=4, cls_weight=8.0), heads).eval()  # a sum over its 8 rows
    loss, metrics = objective(inputs["fbank"][:, 0].transpose(1, 2), mask=inputs["mask"].bool().unflatten(1, (-1, 8)))
    loss.backward()
    assert metrics["frame_loss"] == pytest.approx(float(outputs["frame_loss"]), rel=1e-5)
    assert 8 * metrics["clip_loss"] == pytest.approx(float(outputs["cls_loss"]), rel=1e-5)
    assert loss.item() == pytest.approx(float(outputs["total"]), rel=1e-5)
    assert gradient_norm(objective) == pytest.approx(float(outputs["grad_norm"]), rel=1e-4)
    assert (encoder.specials.grad - outputs["grad_cls_token"][0]).abs().max() < 5e-5


def test_animal2vecs_loss_and_gradients_equal_the_published_implementation(parity):
    encoder, heads, inputs, outputs = published(parity, "animal2vec_pretrain_loss", "model")
    objective = with_heads(Animal2Vec(encoder, clones=3, decoder_dim=48), heads).eval()
    loss, _ = super(Animal2Vec, objective).forward(inputs["wav"][:, None], mask=inputs["mask"].bool()[..., None])
    loss.backward()
    assert loss.item() == pytest.approx(float(outputs["frame_loss"]), rel=1e-5)
    assert gradient_norm(objective) == pytest.approx(float(outputs["grad_norm"]), rel=1e-4)
    assert (encoder.alibi_scale.grad - outputs["grad_alibi_scale"].flatten()).abs().max() < 1e-8


def test_atsts_loss_gradients_and_teacher_equal_the_published_implementation(parity):
    path, inputs, outputs = parity("atst_clip_loss")
    state = torch.load(path)
    student = {f"model.student.{k}": v for k, v in state.items()}
    teacher = {f"model.teacher.{k}": v for k, v in state.items() if not k.startswith("predictor")}
    torch.save({"state_dict": student | teacher, "pytorch-lightning_version": "2.2"}, path)
    encoder = load_encoder(path)
    objective = with_heads(ATST(encoder), formats.read(path).heads["objective"])
    spec = torch.cat([inputs["mel_1"], inputs["mel_2"]])[:, 0]
    assert objective.eval().agree(spec)[0].item() == pytest.approx(float(outputs["loss_eval_bn"]), rel=1e-5)
    loss, metrics = objective.train().agree(spec)
    loss.backward()
    assert loss.item() == pytest.approx(float(outputs["loss"]), rel=1e-5)
    assert metrics["std_student"] == pytest.approx(float(outputs["std_student"]), rel=1e-3)
    assert gradient_norm(objective) == pytest.approx(float(outputs["grad_norm"]), rel=1e-4)
    for mine, name in ((objective.projector, "student"), (objective.teacher["projector"], "teacher")):
        assert (mine[1].running_mean - outputs[f"{name}_projector_bn_running_mean"]).abs().max() < 1e-6
    with torch.no_grad():
        for p in objective.parameters():
            if p.grad is not None:
                p -= 0.1 * p.grad
    objective.follow(0.99)
    assert (objective.exported.specials - outputs["ema_teacher_cls_token"][0]).abs().max() < 1e-7


# ----------------------------------------------------------------------------------------------------- invariance

@pytest.mark.parametrize("name", ["dasheng", "audiomae", "eat", "animal2vec"])
def test_a_clip_counts_the_same_alone_and_padded_in_a_batch(name):
    objective = small(name).eval()
    config, seeds = objective.encoder.config, torch.tensor([5, 6, 7])
    lengths = torch.tensor([config.clip_samples, config.clip_samples // 2, config.clip_samples // 3])
    wave, clones = 0.1 * noise(3, config.clip_samples), getattr(objective, "clones", 1)
    options = getattr(objective, "options", {})
    mask = draw_mask(objective.masking, objective.hidden, objective.encoder.config, seeds, lengths, clones, **options)
    with torch.inference_mode():
        together, m = objective(wave, lengths, mask=mask)
        alone = [objective(wave[i:i + 1, :n], mask=mask[i * clones:(i + 1) * clones]) for i, n in enumerate(lengths)]
    counts = torch.tensor([float(a["count"]) for _, a in alone])
    assert counts.sum() == m["count"]
    losses = torch.stack([loss for loss, _ in alone])
    assert together == pytest.approx(float((losses * counts).sum() / counts.sum()), rel=2e-5)


@pytest.mark.parametrize("name", ["eat", "animal2vec"])
def test_clones_are_so_many_masks_of_one_clip(name):
    """Encoding four masks at once equals encoding the clip four times."""
    encoder = small(name).encoder.eval()
    wave = 0.1 * noise(2, encoder.config.clip_samples)
    mask = draw_mask("frame", 0.7, encoder.config, torch.arange(2), clones=4)
    spec = encoder.frontend(wave)
    with torch.inference_mode():
        together = encoder.tokens(spec, mask, visible_only=True)
        apart = encoder.tokens(spec.repeat_interleave(4, 0), mask, visible_only=True)
    assert not torch.equal(mask[0], mask[1])
    assert (together - apart).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["dasheng", "eat", "animal2vec"])
def test_the_loss_asks_for_nothing_that_the_student_sees(name):
    """Sound in the hidden places changes targets, never predictions."""
    objective = small(name).eval()
    encoder, seeds = objective.encoder, torch.arange(2)
    spec = noise(2, *encoder.frontend(torch.zeros(1, encoder.config.clip_samples)).shape[1:])
    mask = draw_mask("span", 0.5, encoder.config, seeds, span=1)
    patches = encoder.grid(spec)[0]
    changed = torch.where(mask[..., None], torch.randn_like(patches), patches)
    with torch.inference_mode():
        a, b = (encoder.contextual(x, None, mask, visible_only=True) for x in (patches, changed))
    assert (a - b).abs().max() < 1e-5


def test_between_class_mixing_hears_the_ratio():
    """At ratio 1 the clip is untouched; a quieter partner is amplified by its deficit; energy is kept on average."""
    a, b = noise(4, 8000, seed=1), 0.1 * noise(4, 8000, seed=2)
    assert torch.allclose(views.between_class(a, b, torch.ones(4), 8000), a)
    half = views.between_class(a, b, torch.full((4,), 0.5), 8000)
    share = (half * b).sum(1) / b.square().sum(1)  # amplitude of b in the mixture
    assert torch.allclose(share * 0.1, (half * a).sum(1) / a.square().sum(1), rtol=0.25), "both are heard alike"


def test_loudness_follows_the_a_curve():
    t = torch.arange(16000) / 16000
    level = {f: float(views.loudness(torch.sin(2 * torch.pi * f * t)[None], 16000)) for f in (100, 1000, 4000)}
    assert level[100] - level[1000] == pytest.approx(-19.1, abs=0.3)
    assert level[4000] - level[1000] == pytest.approx(1.0, abs=0.3)


def test_log_mix_adds_up_on_the_scale_of_the_spectrogram():
    x, y = noise(2, 3, 4), noise(2, 3, 4, seed=1)
    share = torch.tensor([0.3, 0.1])
    wanted = ((1 - share)[:, None, None] * x.exp() + share[:, None, None] * y.exp()).log()
    assert torch.allclose(views.log_mix(x, y, share), wanted, atol=1e-6)
    valid = torch.tensor([[True, True, False, False]]).expand(2, -1)
    assert torch.equal(views.log_mix(x, y, share, valid)[..., 2:], x[..., 2:])


def test_a_stretched_view_is_a_rectangle_of_the_canvas():
    """A ramp in time stays a ramp, of a slope between 0.6 and 1.5; with time=False frames keep their places."""
    ramp = torch.linspace(1, 2, 100).expand(50, 32, 100)
    warped = views.resize_crop(ramp, torch.arange(50), 1)
    slope = warped[:, :, 45:55].diff(dim=2).mean((1, 2)) * 99
    assert slope.min() > 0.5 and slope.max() < 1.6 and slope.std() > 0.1
    mild = views.resize_crop(ramp, torch.arange(50), 1, low=0.9, high=1.1)[:, :, 45:55].diff(dim=2).mean((1, 2)) * 99
    assert mild.min() > 0.85 and mild.max() < 1.15 and mild.std() > 0.01
    still = views.resize_crop(ramp, torch.arange(50), 1, time=False)
    assert (still - ramp).abs().max() < 1e-4


# -------------------------------------------------------------------------------------------------------- teachers

@pytest.mark.parametrize("name", ["eat", "animal2vec"])
def test_what_all_patches_of_a_clip_share_is_asked_for_or_taken_away(name, monkeypatch):
    """Normalised over the clip's patches, targets do not know a vector that is added to all of them."""
    grid, dim = small(name).encoder.config.grid, 64
    outputs = [noise(2, small(name).encoder.config.specials + grid[0] * grid[1], dim, seed=s) for s in range(2)]
    shared = noise(2, 1, dim, seed=9)
    for kind in ("clip", "patch"):
        objective, targets = small(name, target_norm=kind), []
        for added in (0.0, shared):
            monkeypatch.setattr(objective.teacher["encoder"], "ffn_outputs", lambda *_: [x + added for x in outputs])
            targets.append(objective.targets(torch.zeros(2, *grid, dim)))
        moved = (targets[0] - targets[1]).abs().max()
        assert moved < 1e-4 if kind == "clip" else moved > 0.1
    with pytest.raises(ValueError, match="neither clip nor patch"):
        small(name, target_norm="batch")


@pytest.mark.parametrize("name", ["eat", "atst", "atst-frame", "animal2vec"])
def test_teachers_are_never_trained_and_drop_nothing(name):
    objective = small(name).train()
    assert not any(p.requires_grad for p in objective.teacher.parameters())
    assert not any(m.training for m in objective.teacher["encoder"].modules())
    if name.startswith("atst"):
        assert objective.teacher["projector"].training, "its BatchNorm takes the statistics of the batch, as published"


def test_a_teacher_is_the_running_average_of_its_student():
    objective = small("eat", ema=(0.9, 1.0), ema_steps=10)
    before, now = objective.teacher["encoder"].specials.clone(), objective.encoder.specials
    with torch.no_grad():
        now += 1.0
    objective.after_step(0)
    assert torch.allclose(objective.exported.specials, now), "EAT is used by its student"
    assert torch.allclose(objective.teacher["encoder"].specials, 0.9 * before + 0.1 * now)
    assert [round(objective.decay(s), 3) for s in (0, 5, 10, 99)] == [0.9, 0.95, 1.0, 1.0]
    assert small("atst", ema=(0.9, 1.0), ema_steps=10).decay(5) == pytest.approx(0.95), "half of a cosine"


def test_a_teacher_normalises_its_input_by_the_statistics_of_its_student():
    objective = small("eat", preset="dasheng-laptop", cls_weight=0.0).train()
    objective(0.1 * noise(4, objective.encoder.config.clip_samples), seeds=torch.arange(4))
    own, theirs = (part.input_norm.running_mean for part in (objective.teacher["encoder"], objective.encoder))
    assert not own.any() and theirs.any()
    objective.after_step(0)
    assert torch.equal(own, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_gets_a_gradient(name):
    objective = small(name)
    wave = 0.1 * noise(4, objective.encoder.config.clip_samples)
    objective.train()(wave, seeds=torch.arange(4))[0].backward()
    assert [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []


# -------------------------------------------------------------------------------------------------------- learning

@pytest.mark.parametrize("name", NAMES[1:])
def test_one_batch_overfits_and_does_not_collapse(name):
    """Four different clips: the loss falls by a tenth at least, and the clips stay apart."""
    objective = small(name).train()
    config = objective.encoder.config
    t = torch.arange(config.clip_samples) / config.sample_rate
    tones = torch.stack([torch.sin(2 * torch.pi * f * t) * (torch.sin(2 * torch.pi * r * t) > 0)
                         for f, r in ((500, 2), (900, 3), (1600, 5), (2500, 1))])
    wave, seeds = tones * 0.3 + 0.001 * noise(4, config.clip_samples), torch.arange(4)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], 2e-3, eps=1e-6)
    losses = []
    for step in range(20):
        loss, metrics = objective(wave, seeds=seeds)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(objective, "after_step"):
            objective.after_step(step)
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.9 * losses[0], losses
    assert metrics["spread"] > 0.05, "embeddings of different clips have become one"


# -------------------------------------------------------------------------------------------------------- the stage

def start(tiny, out, *flags):
    return ["--data", str(tiny / "pretrain.csv"), "--out", str(out), "--steps", "4", "--batch-size", "4", "--warmup",
            "1", "--valid", "4", "--save-every", "2", "--workers", "0", "--device", "cpu", *flags]


@pytest.mark.parametrize("name", ["contrast", "dasheng", "eat", "atst", "animal2vec"])
def test_a_killed_run_resumes_to_the_same_weights_teacher_included(tiny, tmp_path, name):
    settings = SETTINGS[RECIPES[name]["laptop"]["objective"]]
    flags = ["--recipe", name, "--clip-seconds", "1"] + ["--clones", "2"] * ("clones" in settings)
    flags += ["--view-seconds", "0.6"] * ("view_seconds" in settings)
    pretrain.main(start(tiny, tmp_path / "straight", *flags))
    pretrain.main(start(tiny, tmp_path / "stopped", *flags))
    for path in tmp_path.glob("stopped/checkpoint-00000004.pt"):
        path.unlink()
    (tmp_path / "stopped" / "DONE").unlink()
    pretrain.main(start(tiny, tmp_path / "stopped", *flags))
    a, b = (torch.load(tmp_path / run / "checkpoint-00000004.pt")["objective"] for run in ("straight", "stopped"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_where_there_is_no_accuracy_a_plateau_is_one_of_the_held_out_loss(tiny, tmp_path, monkeypatch):
    seen, out = [], tmp_path / "run"
    monkeypatch.setattr("wren.training.engine.Plateau.update", lambda plateau, value: seen.append(value))
    pretrain.main(start(tiny, out, "--recipe", "dasheng", "--clip-seconds", "1", "--schedule", "plateau",
                        "--eval-every", "2"))
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [row["valid_loss"] for row in rows if row["step"] and "valid_loss" in row]
    assert seen == pytest.approx([-loss for loss in losses], rel=1e-4)
    assert len(seen) == 2 and seen[0] < 0, "the lower the loss, the better"


@pytest.mark.parametrize("name", NAMES)
def test_secondary_pre_training_starts_lower_than_from_scratch(tmp_path, name):
    """The encoder and heads of a run that has learned a batch, opened again, against fresh ones."""
    learned = small(name).train()
    wave = 0.1 * noise(4, learned.encoder.config.clip_samples)
    wave = wave.cumsum(1).sub(wave.cumsum(1).mean(1, keepdim=True)) * 0.01  # brown noise has something to learn
    seeds = torch.arange(4)
    optimizer = torch.optim.AdamW([p for p in learned.parameters() if p.requires_grad], 2e-3, eps=1e-6)
    for _ in range(10):
        loss = learned(wave, seeds=seeds)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(learned, "teacher"):
            learned.follow(0.5)
    run = tmp_path / "run"
    run.mkdir()
    save_encoder(learned.exported, run / "encoder.pt")
    (run / "config.json").write_text(json.dumps({"encoder": learned.encoder.config.to_dict()}))
    torch.save({"version": 1, "objective": learned.state_dict(), "optimizer": {}}, run / "checkpoint-00000010.pt")
    view = ["--view-seconds", str(learned.view_seconds)] if hasattr(learned, "view_seconds") else []
    settings = pretrain.parse_args(["--recipe", name, "--init", str(run), *view])[0].with_steps(4)
    encoder, heads = starting.starting_point(str(run))
    assert not [k for k in heads if k not in learned.state_dict()] and not encoder.heads
    for opened in (encoder, load_encoder(run / "checkpoint-00000010.pt"), load_encoder(run)):
        assert all(torch.equal(v, learned.exported.state_dict()[k]) for k, v in opened.state_dict().items())
    secondary = starting.build(settings, encoder.config, encoder, heads).train()
    scratch = starting.build(settings, encoder.config, None, {}).train()
    with torch.no_grad():
        assert secondary(wave, seeds=seeds)[0] < scratch(wave, seeds=seeds)[0]


def test_masked_autoencoders_start_from_xaviers_linears_and_the_others_from_002():
    for name, published in (("dasheng-base", "xavier"), ("audiomae-base", "xavier"), ("eat-base", "normal"),
                            ("atst-base", "normal"), ("ssast-base-patch", "normal"), ("animal2vec-large", "normal")):
        encoder = Encoder(replace(PRESETS[name], depth=2, prenet=0))
        for linear in (m for m in encoder.blocks.modules() if isinstance(m, torch.nn.Linear)):
            xavier = (2 / (linear.in_features + linear.out_features)) ** 0.5
            wanted = xavier if published == "xavier" else 0.02
            assert linear.weight.std().item() == pytest.approx(wanted, rel=0.03)
            assert linear.bias is None or not linear.bias.any()
    autoencoder = MAE(Encoder(replace(PRESETS["dasheng-base"], depth=1)))
    assert autoencoder.predict.weight.std().item() == pytest.approx((2 / (512 + 256)) ** 0.5, rel=0.03)


def test_a_variance_floor_keeps_faint_patches_faint():
    encoder = small("dasheng").encoder
    faint = 0.01 * noise(1, *encoder.config.grid, 256)
    published, floored = (MAE(encoder, var_floor=floor).normed(torch.cat([faint, 100 * faint]))
                          for floor in (1e-6, 0.1))
    assert published.var(3).min() > 0.95, "of variance 1, how faint it may be"
    assert floored[0].var(2).max() < 0.01 and floored[1].var(2).min() > 0.8


@pytest.mark.parametrize("name", NAMES + ["gpm-bt", "mae"])
def test_every_setting_of_a_recipe_is_a_flag_and_stands_in_its_help(name, capsys):
    for scale, settings in RECIPES[name].items():
        with pytest.raises(SystemExit):
            pretrain.parse_args(["--recipe", name, "--scale", scale, "--help"])
        printed = " ".join(capsys.readouterr().out.split())
        for key in settings.keys() - {"differs"}:
            flag = key.replace("_", "-")
            assert f"{flag} {written(settings[key])}" in printed
            assert key in ("objective", "frames") or f"[--{flag} " in printed, "what the objective is has no flag"


def test_optimiser_settings_override_the_recipes(tiny, tmp_path):
    chosen = pretrain.parse_args(["--betas", "0.8", "0.9", "--eps", "1e-7", "--floor", "0.5"])[0].optimisation
    assert (chosen.betas, chosen.eps, chosen.floor) == ((0.8, 0.9), 1e-7, 0.5)
    pretrain.main(start(tiny, tmp_path / "run", "--betas", "0.8", "0.9"))
    (tmp_path / "run" / "DONE").unlink()
    with pytest.raises(UserError, match=r"started with betas \[0.8, 0.9\], now it is \[0.9, 0.98\]"):
        pretrain.main(start(tiny, tmp_path / "run"))


@pytest.mark.parametrize("flags, message", [
    (["--recipe", "eat", "--decoder-groups", "5"], "decoder-groups 5 must divide the encoder's 192 channels"),
    (["--betas", "0.9", "1"], "--betas 1: a running mean that takes nothing in"),
    (["--recipe", "atst", "--stretch", "1.5", "0.6"], "stretch from 1.5 to 0.6 runs backwards")])
def test_settings_that_fit_nothing_are_one_line(tiny, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        pretrain.main(start(tiny, tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists(), "the corrected command starts afresh"


def test_a_setting_of_another_recipe_is_refused():
    with pytest.raises(UserError, match="--clones does not belong to recipe dasheng, which has --masking"):
        pretrain.parse_args(["--recipe", "dasheng", "--clones", "4"])


@pytest.mark.parametrize("recipe, preset, missing", [("ssast", "dasheng-laptop", "mask token"),
                                                     ("eat", "dasheng-laptop", "class token"),
                                                     ("atst-frame", "dasheng-laptop", "mask token")])
def test_an_encoder_that_a_recipe_can_not_use_is_one_line(tiny, tmp_path, recipe, preset, missing):
    with pytest.raises(UserError, match=missing):
        pretrain.main(start(tiny, tmp_path / "run", "--recipe", recipe, "--preset", preset))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_prints_the_published_settings_beside_ours(name, capsys):
    pretrain.main(["--recipe", name, "--paper"])
    text = capsys.readouterr().out
    assert "differs from the published code" in text and RECIPES[name]["paper"]["preset"] in text
