"""Fine-tuning: mixed and masked clips, heads, trials, the choice on validation, the one look at test, the tables."""
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import beans_miniature
import numpy as np
import pytest
import torch

import finetune
from model import Encoder, load_encoder
from wren import cli
from wren.cli import UserError
from wren.probing import scoring
from wren.recipes import PRESETS, finetuning
from wren.sound.loading import Sampling
from wren.tasks import Split, augment, load_task
from wren.tasks.annotations import Event
from wren.tasks.batches import LabelledLoader
from wren.tasks.beans import BEANS
from wren.training import engine, heads, processes, supervised

ROOT = Path(__file__).parent.parent
LAPTOP = PRESETS["ssast-laptop-patch"]
FAST = ["--checkpoint", "ssast-laptop-patch", "--workers", "0"]
ONE = processes.Processes(0, 1, torch.device("cpu"))


def small(**changes):
    """An encoder of 4 s with little in it."""
    torch.manual_seed(0)
    return Encoder(replace(LAPTOP, **{"dim": 32, "depth": 2, "heads": 2} | changes)).eval()


class Units:
    """n clips of which clip i is 1 at sample i and 0 elsewhere, so that a mixture shows what it is made of."""

    def __init__(self, n=12, classes=4):
        self.rows, self.targets = range(n), np.arange(n) % classes

    def __len__(self):
        return len(self.rows)

    def take(self, i, rate_for, wanted=()):
        return {"wave": np.eye(len(self.rows), dtype=np.float32)[i], "rate": rate_for(16000)}


# ---------------------------------------------------------------------------------------------- loading and mixing

def test_mixed_labels_belong_to_the_mixed_sound_of_two_different_clips():
    split = Units()
    seen = 0
    for batch in LabelledLoader(split, Sampling(16000), 4, 12, seed=0, steps=4, mixup=0.7):
        wave, onehot = batch["wave"].numpy(), np.eye(4)[split.targets]
        assert np.allclose(wave @ onehot, batch["target"], atol=1e-6), "each label in its clip's proportion"
        parts = (wave > 0).sum(1)
        assert set(parts) <= {1, 2} and np.allclose(wave.sum(1), 1, atol=1e-6)
        seen += (parts == 2).sum()
    assert 24 <= seen <= 43, "about 0.7 of 48 clips, and never a clip with itself"


def test_frame_labels_are_mixed_like_clip_labels():
    frames = [np.eye(12, dtype=bool)[[i]].repeat(2 + i % 3, 0) for i in range(12)]  # of different lengths
    batch = next(iter(LabelledLoader(Units(classes=12), Sampling(16000), 12, 12, seed=1, mixup=1.0,
                                             frames=frames.__getitem__)))
    assert torch.allclose(batch["frames"][:, 0], batch["target"]) and batch["frames"].shape[1] == 4


def test_streams_are_mixed_in_the_proportion_of_their_sound():
    class Moving(Units):
        def take(self, *order):
            clip = super().take(*order)
            return clip | {"streams": {"motion": clip["wave"][:, None]}}
    batch = next(iter(LabelledLoader(Moving(), Sampling(16000), 4, 12, seed=0, mixup=1.0)))
    assert torch.allclose(batch["streams"]["motion"][..., 0], batch["wave"]) and (batch["wave"] > 0).sum() == 24


def test_batches_do_not_depend_on_the_number_of_processes_or_on_the_start():
    def load(**more):
        return list(LabelledLoader(Units(), Sampling(16000), 4, 6, seed=3, mixup=0.5, balanced=True, **more))
    whole, halves = load(steps=4), [load(steps=4, rank=r, world=2) for r in (0, 1)]
    later = load(first=12, steps=2)
    for key in ("wave", "target", "seed"):
        for k in range(4):
            assert torch.equal(whole[k][key], torch.cat([halves[0][k][key], halves[1][k][key]]))
        assert torch.equal(whole[2][key], later[0][key]) and torch.equal(whole[3][key], later[1][key])


def test_balanced_sampling_draws_rare_and_unlabelled_clips_as_often_as_others():
    split = Units(40)
    split.targets = np.zeros((40, 3), dtype=bool)
    split.targets[:30, 0] = split.targets[30:32, 1] = split.targets[32:36, 2] = True  # and four without a label
    loader = LabelledLoader(split, Sampling(1), 3, 40, seed=0, steps=25, balanced=True)
    drawn = sum(batch["target"].sum(0) for batch in loader)
    assert torch.all((drawn - 250).abs() < 60), drawn


def test_one_clip_alone_is_never_mixed():
    batch = next(iter(LabelledLoader(Units(1, 1), Sampling(16000), 2, 2, seed=0, mixup=1.0)))
    assert batch["wave"].tolist() == [[1.0], [1.0]]


# --------------------------------------------------------------------------------------------------------- masking

def test_masks_fall_on_the_valid_part_of_the_window_that_is_seen():
    torch.manual_seed(0)
    spec, frames = torch.randn(400, 20, 30), torch.tensor([30, 18] * 200)
    masked = augment.mask_spectrogram(spec, frames, torch.arange(400), time=0.5, band=0.25)
    hidden = masked != spec
    assert not hidden[1::2, :, 18:].any(), "nothing beyond a clip's end"
    width = hidden.all(1).sum(1)  # whole columns
    assert width[::2].max() == 15 and width[1::2].max() == 9, "up to half of what is seen"
    assert abs(width[::2].float().mean() / 30 - 0.25) < 0.03 and abs(width[1::2].float().mean() / 18 - 0.25) < 0.03
    assert hidden[::2].all(2).sum(1).max() == 5, "up to a quarter of the bands"
    assert hidden[::2].all(1).float().mean(0).min() > 0.02, "every place is hidden now and then"
    row = 0
    mean = spec[row, :, :30].mean()
    assert torch.allclose(masked[row][hidden[row]], mean), "filled with the window's mean"


def test_masks_and_noise_of_a_clip_are_the_same_alone_and_in_a_batch():
    spec, frames, seeds = torch.randn(4, 16, 25), torch.tensor([25, 20, 25, 7]), torch.tensor([5, 6, 7, 8])
    whole = augment.mask_spectrogram(spec, frames, seeds, time=0.3, band=0.3, noise=0.1)
    for i in range(4):
        part = slice(i, i + 1)
        alone = augment.mask_spectrogram(spec[part], frames[part], seeds[part], time=0.3, band=0.3, noise=0.1)
        assert torch.allclose(alone[0], whole[i], atol=1e-6)
    assert torch.equal(whole[3, :, 7:], spec[3, :, 7:]), "no noise beyond a clip's end"


def test_each_window_of_a_clip_has_a_mask_of_its_own(monkeypatch):
    drawn = []
    monkeypatch.setattr(heads, "mask_spectrogram", lambda spec, frames, seeds, **masks: drawn.extend(seeds) or spec)
    heads.FineTuned(small(), ["a", "b"], "sigmoid")(torch.randn(2, 12 * 16000), seeds=torch.tensor([500, 900]),
                                                   masks={"time": 0.2})
    assert len({int(seed) for seed in drawn}) == len(drawn) == 6, "of two clips of three windows"


def test_structured_drop_leaves_out_whole_columns_and_rows_of_the_valid_grid():
    out = augment.drop_patches(torch.arange(50), (10, 5), 0.4, torch.tensor([10, 5] * 25))
    assert torch.all(out[::2].all(2).sum(1) == 4) and torch.all(out[1::2].all(2).sum(1) == 2)
    assert torch.all(out.all(1).sum(1) == 2) and not out[1::2, 5:].all(2).any()


def test_the_front_end_runs_once_a_window_and_not_on_the_whole_recording(tiny):
    task = load_task("detection", tiny)
    encoder, seen = small(), []
    encoder.frontend.spectrogram.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    model = heads.FineTuned(encoder, task.labels, "sigmoid", "frames")
    scoring.predict(model, task.splits["valid"], ONE, engine.precision("fp32", ONE.device)[0])
    assert sum(shape[0] for shape in seen) == len(task.splits["valid"]), "each window once"
    assert max(shape[1] for shape in seen) == 2 * 16000, "and nothing but the window"


# ----------------------------------------------------------------------------------------------------------- heads

@pytest.mark.parametrize("pool, kind, seconds, columns", [
    ("mean", "frames", 2.5, 16), ("specials", "linear", 2.5, 16), ("both", "linear", 9.3, 25 + 25 + 8)])
def test_a_clip_has_the_same_scores_alone_and_padded_in_a_batch(pool, kind, seconds, columns):
    model = heads.FineTuned(small(pool=pool), ["a", "b", "c"], "softmax", kind).eval()
    wave = torch.randn(2, 160000) * 0.1
    n = round(seconds * 16000)
    with torch.inference_mode():
        together = model.scores(wave, torch.tensor([n, 160000])), model.frame_scores(wave, torch.tensor([n, 160000]))
        alone = model.scores(wave[:1, :n]), model.frame_scores(wave[:1, :n])
    assert torch.allclose(together[0][:1], alone[0], atol=1e-5)
    frames = alone[1].shape[1]
    assert frames == columns and torch.allclose(together[1][0, :frames], alone[1][0], atol=1e-5)
    assert torch.allclose(together[0].sum(1), torch.ones(2)) and not together[1][0, frames:].any()


def test_what_is_saved_scores_as_before_and_opens_as_an_encoder_too(tmp_path):
    model = heads.FineTuned(small(), ["a", "b"], "sigmoid", "frames", [0.25, 0.5], 2.0, 1.0, 0.3).eval()
    model.valid, model.chance = 0.107, 0.039
    heads.save(model, tmp_path / "finetuned.pt")
    again, wave = heads.load(tmp_path / "finetuned.pt"), torch.randn(1, 32000)
    with torch.inference_mode():
        assert torch.equal(again.scores(wave), model.scores(wave))
        assert torch.equal(again.frame_scores(wave), model.frame_scores(wave))
        assert torch.equal(load_encoder(tmp_path / "finetuned.pt")(wave), model.encoder(wave))
    for name in ("labels", "thresholds", "window_seconds", "hop_seconds", "minimum_seconds", "activation", "kind",
                 "valid", "chance"):
        assert getattr(again, name) == getattr(model, name)


def test_a_file_without_a_head_is_refused(tmp_path):
    from model import save_encoder
    save_encoder(small(), tmp_path / "encoder.pt")
    with pytest.raises(UserError, match="holds no head"):
        heads.load(tmp_path / "encoder.pt")


@pytest.mark.parametrize("kind, resolution", [("frames", None), ("query", 0.01)])
@pytest.mark.parametrize("preset", [name for name in PRESETS if "laptop" in name])
def test_every_family_trains_with_masks_and_frames(preset, kind, resolution):
    torch.manual_seed(0)
    encoder = load_encoder(preset, depth=2, **({"prenet": 0} if "animal2vec" in preset else {}))
    model = heads.FineTuned(encoder, ["a", "b", "c"], "sigmoid", kind, resolution=resolution)
    objective = heads.Supervised(model, "bce", masks={"time": 0.3, "band": 0.3, "noise": 0.1})
    wave, lengths = torch.randn(2, encoder.config.sample_rate) * 0.1, torch.tensor([encoder.config.sample_rate, 4000])
    loss, metrics = objective(wave, lengths, torch.tensor([1, 2]), torch.rand(2, 3), torch.rand(2, 9, 3))
    loss.backward()
    assert torch.isfinite(loss) and metrics["count"] == 2
    assert all(p.grad is not None for n, p in model.named_parameters() if ".mlp." in n or "head" in n or ".qkv." in n)
    with torch.inference_mode():
        frames = model.eval().frame_scores(wave)
    assert abs(frames.shape[1] * model.frame_seconds - 1) <= 1.01 * model.frame_seconds


def test_dropped_patches_take_no_part_in_the_pooled_vector():
    model = heads.FineTuned(small(depth=0, pool="mean"), ["a", "b"], "sigmoid")
    wave, seeds = torch.randn(2, 48000), torch.tensor([3, 4])
    encoder, lengths = model.encoder, torch.tensor([48000, 20000])
    with torch.inference_mode():
        logits, frames, columns = model(wave, lengths, seeds, None, patch_drop=0.3)
        spec = encoder.frontend(wave, lengths)
        tokens = encoder.tokens(spec, lengths=lengths)[:, encoder.config.specials:]
        left = ~augment.drop_patches(seeds ^ 0, (19, 4), 0.3, columns).flatten(1)
        left &= (torch.arange(19) < columns[:, None]).repeat_interleave(4, 1)
        wanted = torch.stack([t[keep].mean(0) for t, keep in zip(tokens, left)])
        assert frames is None and torch.allclose(logits, model.head(wanted), atol=1e-5)


def test_losses_equal_their_definitions():
    logits, target = torch.randn(5, 4), torch.eye(4)[[0, 1, 2, 3, 0]]
    F = torch.nn.functional
    ce = F.cross_entropy(logits, target.argmax(1), reduction="none", label_smoothing=0.1)
    assert torch.allclose(heads.clip_loss(logits, target, "ce", 0.1), ce)
    assert torch.allclose(heads.focal_loss(logits, target, alpha=0.5, gamma=0.0),
                          0.5 * F.binary_cross_entropy_with_logits(logits, target, reduction="none"))
    sure = torch.tensor([[9.0, -9.0]])
    right, wrong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert heads.clip_loss(sure, right, "focal") < 1e-6 < heads.clip_loss(sure, wrong, "focal")


# ---------------------------------------------------------------------------------------------------------- trials

@pytest.fixture
def job(tiny, tmp_path):
    """job(task, **settings) -> Job with a small encoder on the miniature demo."""
    from model import save_encoder
    save_encoder(small(), tmp_path / "encoder.pt")

    def make(name="species", **changes):
        task = load_task(name, tiny)
        chosen = dict(batch_size=16, warmup=0.0, **{} if "steps" in changes else {"epochs": 4}) | changes
        return supervised.Job(finetuning.settings_for(LAPTOP, task, chosen=chosen), task, tmp_path / "trials",
                              str(tmp_path / "encoder.pt"), ONE, SimpleNamespace(received=None))
    return make


def test_a_few_clips_are_learned_by_heart(job):
    one = job(mixup=0.0, roll=False, gain=0.0, time_mask=0.0, band_mask=0.0, smoothing=0.0, drop_path=0.0, steps=40,
              batch_size=8)
    few = one.task.splits["train"].select(np.arange(8))
    one = replace(one, task=replace(one.task, splits={"train": few, "valid": few}))
    result = supervised.Trial(one, 0, 5e-3).run()
    assert result["value"] == 1.0


@pytest.mark.parametrize("name", ["species", "detection"])
def test_a_trial_killed_within_an_epoch_ends_as_if_it_had_not_been(job, name, monkeypatch):
    def trial(folder):
        one = job(name)
        return supervised.Trial(replace(one, folder=one.folder / folder), 0, 1e-3)
    straight = trial("straight")
    wanted = straight.run()
    launch, killed = engine.Trainer.launch, trial("killed")

    def stopping(self, batch, flags):
        return launch(self, batch, (self.step == 2, flags[1]))
    with monkeypatch.context() as patch:
        patch.setattr(engine.Trainer, "launch", stopping)
        assert killed.run() is None and not (killed.folder / "trial.json").exists()
    resumed = trial("killed")
    assert resumed.run() == wanted
    a, b = (torch.load(t.folder / "best.pt") for t in (straight, resumed))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_clips_that_vanish_while_training_are_counted_and_listed(job, tiny, tmp_path, capsys):
    (tmp_path / "own").mkdir()
    for i, path in enumerate(sorted((tiny / "species" / "audio").iterdir())[:8]):
        (tmp_path / "own" / f"{i}.wav").symlink_to(path.resolve())
    for split in ("train", "valid", "test"):
        rows = [f"{i}.wav,{'xy'[i % 2]}" for i in range(8)]
        (tmp_path / "own" / f"{split}.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    one, task = job(steps=4), load_task(tmp_path / "own")
    (tmp_path / "own" / "7.wav").unlink()
    splits = {"train": task.splits["train"], "valid": task.splits["valid"].select(np.arange(7))}
    one = replace(one, task=replace(task, splits=splits), max_bad=0.5)
    supervised.Trial(one, 0, 1e-3).run()
    with open(tmp_path / "trials" / "seed0-lr0.001" / "bad.jsonl") as file:
        listed = [json.loads(line)["path"] for line in file]
    assert len(listed) >= 8 and {Path(path).name for path in listed} == {"7.wav"}
    assert f"{len(listed)} clips could not be read when they were drawn" in capsys.readouterr().out


def test_a_finished_trial_is_not_trained_again(job, monkeypatch):
    one = job(steps=1)
    first = supervised.Trial(one, 0, 1e-3).run()
    monkeypatch.setattr(supervised, "build", None)
    assert supervised.Trial(one, 0, 1e-3).run() == first


def test_rates_fall_from_the_head_to_the_embeddings(job):
    one = job(layer_decay=0.5, optimizer="adamw")
    objective = supervised.build(one, 0)
    optimizer = supervised.make_optimizer(objective, one.settings, 1.0)
    rates = {id(p): g["initial_lr"] for g in optimizer.param_groups for p in g["params"]}
    encoder = objective.encoder
    assert rates[id(objective.model.head.linear.weight)] == rates[id(encoder.norm.weight)] == 1.0
    assert [rates[id(b.mlp.fc1.weight)] for b in encoder.blocks] == [0.25, 0.5]
    assert rates[id(encoder.patch.weight)] == 0.125
    assert id(encoder.mask_token) not in rates, "no part of the loss"


@pytest.mark.parametrize("trainable, changed", [("head", {"head"}), ("1", {"head", "blocks.1", "norm"})])
def test_what_is_frozen_stays_as_it_was(job, trainable, changed):
    one = job(trainable=trainable, steps=2)
    trial = supervised.Trial(one, 0, 1e-2)
    before = {k: v.clone() for k, v in supervised.build(one, 0).state_dict().items()}
    trial.run()
    moved = {k for k, v in torch.load(trial.folder / "best.pt").items() if not torch.equal(v, before[k])}
    short = {k.removeprefix("model.").removeprefix("encoder.") for k in moved}
    assert {next((c for c in changed if k.startswith(c)), k) for k in short} == changed


def test_a_frozen_batch_norm_keeps_its_statistics(job):
    one = job(trainable="head")
    one = replace(one, encoder="dasheng-laptop", changes={"depth": 1})
    objective = supervised.build(one, 0).train()
    before = objective.encoder.input_norm.running_mean.clone()
    objective(torch.randn(2, 16000), None, torch.tensor([0, 1]), torch.rand(2, len(one.task.labels)))
    assert torch.equal(objective.encoder.input_norm.running_mean, before)


# ----------------------------------------------------------------------------------------------------------- stage

class Sealed:
    """A test split that can't be read."""

    def __init__(self, split):
        vars(self).update(vars(split))

    def __len__(self):
        return len(self.rows)

    def take(self, i, rate_for, wanted=()):
        raise PermissionError("the test split was read")


def test_rates_are_chosen_on_validation_and_test_is_read_only_then(tiny, tmp_path, monkeypatch):
    sealed = load_task("species", tiny)
    sealed.splits["test"] = Sealed(sealed.splits["test"])
    arguments = [*FAST, "--data", str(tiny), "--lr", "1e-9", "1e-3", "--epochs", "3", "--batch-size", "14", "--out",
                 str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr("wren.tasks.load_task", lambda *a, **k: sealed)
        with pytest.raises(PermissionError):
            finetune.main(arguments)
    curves = [json.loads((tmp_path / "species" / name / "trial.json").read_text())
              for name in ("seed0-lr1e-09", "seed0-lr0.001")]
    assert not (tmp_path / "results.json").exists(), "both rates were trained and judged before test was touched"
    finetune.main(arguments)
    row = json.loads((tmp_path / "results.json").read_text())["results"][0]
    best = max(curves, key=lambda c: c["value"])
    assert (row["lr"], row["epoch"], row["valid"]) == (best["lr"], best["epoch"], best["value"])
    assert row["curves"] == {str(c["lr"]): c["curve"] for c in curves}
    assert len(row["confusion"]) == 14 == len(row["per_class"])
    assert row["ci95"][0] <= row["value"] <= row["ci95"][1]
    assert heads.load(tmp_path / "species" / "finetuned.pt").labels == sealed.labels


def test_detection_ends_with_windows_events_and_thresholds_and_is_not_run_twice(tiny, tmp_path, capsys):
    arguments = [*FAST, "--data", str(tiny), "--task", "detection", "--steps", "2", "--seeds", "2", "--out",
                 str(tmp_path)]
    finetune.main(arguments)
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    assert [row["seed"] for row in rows] == [0, 1]
    for row in rows:
        assert row["metric"] == "map" and 0 <= row["event_f1"] <= 1
        assert set(row["thresholds"]) == set(row["per_class"])
        assert {"cmap", "cmap_ci95", "auroc", "onset_f1", "events"} <= row.keys()
        assert {"collar_f1", "onset_error_ms", "offset_error_ms"} <= row.keys()
    model = heads.load(tmp_path / "detection" / "finetuned.pt")
    assert model.kind == "frames" and len(model.thresholds) == len(model.labels) and model.window_seconds == 2
    assert (model.valid, model.chance) == max((row["valid"], row["valid_chance"]) for row in rows)
    text = capsys.readouterr().out
    assert "event F1" in text and "tie-aware" in text and "taken to hold no calls" not in text
    assert f"--events raven --checkpoint {tmp_path / 'detection'}  " in text
    changed = (tmp_path / "detection" / "finetuned.pt").stat().st_mtime_ns
    finetune.main(arguments)
    assert (tmp_path / "detection" / "finetuned.pt").stat().st_mtime_ns == changed
    assert "chosen" in text and "chosen" not in capsys.readouterr().out


def test_recordings_without_calls_are_named():
    def split(*silent):
        return SimpleNamespace(events=[Event("train/a.wav", 0, 1, "x")] * 3,
                               files=[("train/a.wav", 9, 16000), *((f"train/{name}.wav", 9, 16000) for name in silent)])
    task = SimpleNamespace(kind="detection", splits={"train": split(*"bcde"), "valid": split()})
    text = "\n".join(finetune.calls_of(task))
    assert "3 in 5 (train), 3 in 1 (valid)" in text and "no calls: b.wav, c.wav, d.wav and 1 more;" in text
    task.splits["train"] = split()
    assert "no calls" not in "\n".join(finetune.calls_of(task))


def test_off_a_terminal_training_and_scoring_give_signs_of_life(tiny, tmp_path, capsys, monkeypatch):
    arguments = [*FAST, "--data", str(tiny), "--task", "detection", "--steps", "2"]
    finetune.main([*arguments, "--out", str(tmp_path / "quick")])
    assert capsys.readouterr().err == "", "what is done within a minute needs none"
    monkeypatch.setattr(cli, "PULSE_SECONDS", 0.0)
    finetune.main([*arguments, "--out", str(tmp_path / "slow")])
    text = capsys.readouterr().err
    assert "  training: 1 of 2 steps in 0.0 min, about" in text and "scoring: 32 of " in text and ", loss" in text


def test_what_the_first_process_does_alone_may_take_longer_than_the_longest_wait(tmp_path):
    (tmp_path / "script.py").write_text("""
import time
from wren.training import processes
procs = processes.start_processes("cpu", timeout=3)
print(procs.first(lambda: time.sleep(6 if procs.main else 0) or f"process {procs.rank}", every=0.5), flush=True)
procs.stop()
""")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
                           str(tmp_path / "script.py")], capture_output=True, text=True, timeout=120,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"process \d", done.stdout)) == ["process 0", "process 1"]


def test_tables_without_labels_are_trained_on_with_one_that_is_given(tiny, tmp_path):
    recording = next(path for path in (tiny / "detection").rglob("*.*") if path.suffix in (".wav", ".flac"))
    for split in ("train", "valid", "test"):
        folder = tmp_path / "own" / split
        folder.mkdir(parents=True)
        (folder / f"{split}{recording.suffix}").symlink_to(recording.resolve())
        (folder / f"{split}.Table.1.selections.txt").write_text("Begin Time (s)\tEnd Time (s)\n1.0\t1.5\n")
    arguments = [*FAST, "--data", str(tmp_path), "--task", "own", "--steps", "1", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--label NAME"):
        finetune.main(arguments)
    finetune.main([*arguments, "--label", "gull"])
    assert heads.load(tmp_path / "out" / "own" / "finetuned.pt").labels == ["gull"]


def test_beans_in_miniature_runs_whole_at_native_rates_and_is_averaged_5_5_2(tmp_path, capsys, read_json):
    beans_miniature.make(tmp_path)
    beans_miniature.silence(tmp_path, "rfcx", "test")
    finetune.main([*FAST, "--data", str(tmp_path), "--task", "beans", "--protocol", "gpm-bt", "--steps", "1", "--lr",
                   "1e-3", "--batch-size", "4", "--out", str(tmp_path / "out")])
    rows = read_json(tmp_path / "out" / "results.json")["results"]
    assert [row["task"] for row in rows] == list(BEANS)
    silent = next(row for row in rows if row["task"] == "rfcx")
    assert (silent["ci95"], silent["cmap"], silent["auroc"]) == ([None, None], None, None)
    means = scoring.group_means(rows)
    by = {group: np.mean([r["value"] for r in rows if r["group"] == group]) for group in scoring.WEIGHTS}
    assert means["all"][0] == pytest.approx(np.mean([r["value"] for r in rows]))
    weighted = 5 * by["classification"] + 5 * by["detection"] + 2 * by["auxiliary"]
    assert means["all"][0] == pytest.approx(weighted / 12)
    assert heads.load(tmp_path / "out" / "bats" / "finetuned.pt").encoder.config.sample_rate == 250000
    text = capsys.readouterr().out
    assert f"{means['all'][0]:.3f}" in text and "GPM-BT 1.23M secondary" in text and "0.658" in text
    assert "rfcx: no interval: it is drawn by recording" in text and "AUROC –" in text and " nan" not in text


def test_low_trains_on_the_low_data_list(tmp_path, capsys):
    beans_miniature.make(tmp_path)
    finetune.main([*FAST, "--data", str(tmp_path), "--task", "dogs", "rfcx", "--low", "--steps", "1", "--out",
                   str(tmp_path / "out"), "--json", str(tmp_path / "new" / "results.json")])
    assert (tmp_path / "new" / "results.json").exists()
    text = capsys.readouterr().out
    assert "never in validation: " in text and "more; their thresholds are 0.5" in text
    assert "dogs: 3 train, 6 valid, 6 test clips" in text and "rfcx: 3 train, 6 valid, 3 test windows" in text


def test_clips_with_several_labels_run_fold_by_fold(tiny, tmp_path, capsys):
    files = sorted((tiny / "species" / "audio").iterdir())[:12]
    rows = [f"{file},{('x;y', 'x', 'y')[i % 3]},{1 + i // 4}" for i, file in enumerate(files)]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "annotations.csv").write_text("path,label,fold\n" + "\n".join(rows) + "\n")
    finetune.main([*FAST, "--data", str(tmp_path), "--task", "own", "--fold", "all", "--steps", "1", "--out",
                   str(tmp_path / "out")])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert [(row["fold"], row["metric"], row["n_test"]) for row in rows] == [(f, "map", 4) for f in "123"]
    assert heads.load(tmp_path / "out" / "own-fold2" / "finetuned.pt").activation == "sigmoid"
    assert "mean of 3 runs" in capsys.readouterr().out


def test_group_means_weigh_5_5_2_and_seeds_of_a_task_first():
    rows = [{"group": g, "task": f"{g}{i}", "value": v} for g, v, n in
            (("classification", 0.8, 5), ("detection", 0.4, 5), ("auxiliary", 0.9, 2)) for i in range(n)]
    rows.append({"group": "auxiliary", "task": "auxiliary0", "value": 0.7})  # a second seed
    means = scoring.group_means(rows + [{"group": None, "task": "own", "value": 0.0}])
    assert means["auxiliary"] == (pytest.approx(0.85), 2)
    assert means["all"] == (pytest.approx((5 * 0.8 + 5 * 0.4 + 2 * 0.85) / 12), 12)


def test_published_averages_follow_from_their_groups():
    for row in json.loads((ROOT / "wren" / "probing" / "published.json").read_text())["rows"]:
        if None not in (row["classification"], row["detection"], row["auxiliary"]):
            weighted = 5 * row["classification"] + 5 * row["detection"] + 2 * row["auxiliary"]
            assert row["all"] == pytest.approx(weighted / 12, abs=0.0015), row


@pytest.mark.parametrize("seconds, tokens", [(1, 108), (2, 228), (3, 348), (4, 468), (5, 588), (10, 1188)])
def test_the_gpm_bt_protocol_gives_its_numbers_of_tokens_and_its_masks(seconds, tokens):
    config = replace(PRESETS["gpm-bt-patch"], pad="published")
    task = SimpleNamespace(name="t", kind="classification", window_seconds=None, clip_seconds=seconds,
                           sample_rate=44100)
    s = finetuning.settings_for(config, task, protocol="gpm-bt")
    assert replace(config, **finetuning.encoder_changes(s, config, task)).n_tokens == tokens
    assert (s.lr, s.epochs, s.batch_size, s.optimizer) == ((1e-5, 5e-5, 1e-4, 5e-4), 25, 32, "adam")
    assert s.band_mask == (48 if seconds < 5 else 24) / 128 and s.mixup == 0


@pytest.mark.parametrize("arguments, message", [
    (["--task", "nowhere"], "neither a folder"), (["--loss", "ce", "--task", "detection"], "several labels"),
    (["--head", "frames"], "no onsets"), (["--head", "frames", "--task", "detection", "--roll"], "no onset"),
    (["--rate", "native"], "names no sample rate"), (["--trainable", "9"], "has 4 blocks"),
    (["--trainable", "most"], "is not all, head, or a number"),
    (["--checkpoint", "nothing.pt"], "no such checkpoint"), (["--lr", "0"], "is not a number above 0"),
    (["--checkpoint", "dasheng-laptop", "--pool", "cls"], "no special tokens"),
    (["--checkpoint", "eat-laptop", "--patch-stride", "8"], "can't be fitted"),
    (["--steps", "3", "--epochs", "2"], "--steps and --epochs: give one"),
    (["--alpha", "2", "--mixup", "0"], "nothing is mixed"),
    (["--amp", "fp16", "--device", "cpu"], "fp16 needs a GPU"), (["--task", "species", "./species"], "of one name"),
    (["--label", "gull"], "no call without a label"),
    (["--task", "detection", "--label", "gull"], "no call without a label"),
    (["--loss", "bce", "--smoothing", "0.1"], "only of --loss ce"),
    (["--noise", "-1"], "is not a number of at least 0"),
    (["--trainable", "head", "--layer-decay", "0.5"], "of blocks that are trained"),
    (["--checkpoint", "animal2vec-laptop", "--band-mask", "0.2"], "a raw wave has no bands"),
    (["--patch-stride", "20"], "must be from 1 to the patch")])
def test_a_users_mistake_is_one_line_and_nothing_is_written(tiny, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        finetune.main([*FAST, "--data", str(tiny), "--out", str(tmp_path / "out"), *arguments])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_other_settings_in_the_same_folder_are_refused_or_start_afresh(tiny, tmp_path):
    arguments = [*FAST, "--data", str(tiny), "--steps", "1", "--out", str(tmp_path)]
    finetune.main(arguments)
    with pytest.raises(UserError, match="with weight_decay 0.05, now it is weight_decay 0.5: name another folder"):
        finetune.main([*arguments, "--weight-decay", "0.5"])
    finetune.main([*arguments, "--weight-decay", "0.5", "--override"])
    assert json.loads((tmp_path / "species" / "config.json").read_text())["weight_decay"] == 0.5
    (tmp_path / "species" / "config.json").unlink()
    trial = next((tmp_path / "species").glob("seed0-lr*/trial.json"))
    trial.write_text("made by nobody knows what")
    finetune.main(arguments)
    assert json.loads(trial.read_text())["epoch"], "trained anew"


def test_corrected_labels_of_the_same_clips_are_another_task(tiny, tmp_path):
    files = sorted((tiny / "species" / "audio").iterdir())[:6]
    (tmp_path / "own").mkdir()
    for labels in ("xyx", "xyy"):
        for split in ("train", "valid", "test"):
            rows = [f"{file},{label}" for file, label in zip(files, labels)]
            (tmp_path / "own" / f"{split}.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
        arguments = [*FAST, "--task", str(tmp_path / "own"), "--steps", "1", "--out", str(tmp_path / "out")]
        if labels == "xyx":
            finetune.main(arguments)
    with pytest.raises(UserError, match="was made with other clips or labels: name another"):
        finetune.main(arguments)


def test_low_data_lists_and_folds_are_not_mixed_up_silently(tiny, tmp_path):
    files = sorted((tiny / "species" / "audio").iterdir())[:6]
    (tmp_path / "own").mkdir()
    text = "path,label,fold\n" + "\n".join(f"{file},{'xy'[i % 2]},{i // 2}" for i, file in enumerate(files)) + "\n"
    for name in ("annotations.train.csv", "annotations.train-low.csv", "annotations.valid.csv", "annotations.test.csv"):
        (tmp_path / "own" / name).write_text(text)
    with pytest.raises(UserError, match="exclude each other"):
        finetune.main([*FAST, "--task", str(tmp_path / "own"), "--fold", "all", "--low", "--out", str(tmp_path / "o")])


@pytest.mark.parametrize("table", [*finetuning.RECIPES.values(), *finetuning.PROTOCOLS.values()])
def test_recipes_and_protocols_name_only_settings_that_exist(table):
    assert table.keys() <= vars(finetuning.Settings()).keys()


def test_a_recipe_s_wishes_that_an_encoder_can_t_have_are_recorded_as_not_had():
    task = SimpleNamespace(name="t", kind="detection", window_seconds=2, sample_rate=None)
    flat = vars(finetuning.settings_for(PRESETS["animal2vec-laptop"], task, recipe="eat"))
    assert (flat["pool"], flat["band_mask"], flat["roll"], flat["smoothing"]) == ("mean", 0.0, False, 0.0)
    flat = vars(finetuning.settings_for(LAPTOP, task, chosen={"trainable": "head"}))
    assert (flat["layer_decay"], flat["drop_path"]) == (1.0, 0.0)


def test_small_encoders_are_fine_tuned_on_vectors_of_rows_and_published_ones_on_their_own():
    task = SimpleNamespace(name="t", kind="detection", window_seconds=2, clip_seconds=None, sample_rate=None)
    for name, pool in (("wren-laptop", "rows"), ("eat-laptop", "rows"), ("animal2vec-laptop", "rows"),
                       ("dasheng-base", "mean"), ("eat-base", "specials"), ("atst-base", "both")):
        chosen = finetuning.settings_for(PRESETS[name], task)
        assert finetuning.encoder_changes(chosen, PRESETS[name], task)["pool"] == pool


def test_a_mistake_ends_the_program_with_code_2_and_help_needs_no_torch():
    command = [sys.executable, "finetune.py", "--trainable", "most"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("finetune.py: error: argument --trainable: 'most' is not")
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    code = "import sys; import finetune; finetune.parse_args([]); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---------------------------------------------------------------------------------------------------------- events

def detection_split():
    """Two recordings of 3 s in windows of 2 s every second, two calls."""
    rows = SimpleNamespace(start=np.array([0, 100, 0, 100]), frames=np.full(4, 200), sample_rate=np.full(4, 100))
    split = Split(rows, np.zeros((4, 2), bool), np.array([0, 0, 1, 1]))
    split.files, split.file_index = [("a", 3.0, 100), ("b", 3.0, 100)], np.array([0, 0, 1, 1])
    split.events = [Event("a", 0.54, 1.31, "x"), Event("b", 2.42, 2.47, "y")]
    return split


def test_frame_targets_follow_the_calls_and_a_short_call_has_its_frame():
    frames = scoring.FrameTargets(detection_split(), ["x", "y"], 0.1)
    assert np.flatnonzero(frames(0)[:, 0]).tolist() == [5, 6, 7, 8, 9, 10, 11, 12] and not frames(0)[:, 1].any()
    assert np.flatnonzero(frames(1)[:, 0]).tolist() == [0, 1, 2], "the window begins a second later"
    assert np.flatnonzero(frames(3)[:, 1]).tolist() == [14] and not frames(2).any()


def test_perfect_frame_scores_of_overlapping_windows_give_the_annotated_events():
    split, labels = detection_split(), ["x", "y"]
    targets = scoring.FrameTargets(split, labels, 0.1)
    scores = np.stack([targets(i) for i in range(4)]).astype(np.float32)
    parts = scoring.recordings(split, scores, 0.1)
    assert [len(p[1]) for p in parts] == [30, 30], "3 s on one grid of time"
    row = scoring.event_results(parts, labels, scoring.event_thresholds(parts, labels, split.events), split.events)
    assert row["event_f1"] == row["onset_f1"] == 1.0
    assert [e.label for e in scoring.detect(parts, labels, 0.5, minimum=0.3)] == ["x"], "y lasts one frame"
    assert scoring.shortest_event([Event("a", 0, n, "x") for n in range(1, 22)]) == 1.0
    x = scoring.detect(parts, labels, 0.5)[0]
    assert (x.file, x.label) == ("a", "x") and (x.start, x.end) == (pytest.approx(0.5), pytest.approx(1.3))


def test_thresholds_are_the_best_of_each_class_on_what_they_are_chosen_on():
    scores = np.array([[0.9, 0.2], [0.6, 0.15], [0.3, 0.05], [0.1, 0.04]])
    truth = np.array([[1, 1], [1, 1], [0, 0], [0, 0]], bool)
    low, high = scoring.clip_thresholds(scores, truth)
    assert 0.3 < low <= 0.6 and 0.05 < high <= 0.15
    assert scoring.clip_thresholds(scores, truth & [True, False])[1] == 0.5


def test_a_class_that_is_hardly_known_does_not_flood():
    rng = np.random.default_rng(0)
    truth = np.zeros((2000, 1), bool)
    truth[::100] = True
    scores = rng.uniform(0.02, 0.06, (2000, 1))  # knows nothing
    threshold, = scoring.clip_thresholds(scores, truth)
    assert (scores >= threshold).sum() <= 40, "twice what there is"
    events = [Event("a", 2.0 * k, 2.0 * k + 1, "x") for k in range(20)]
    start = np.arange(0, 1000, 0.5)
    track = [("a", rng.uniform(0.5, 0.9, (2000, 1)), start, start + 0.5)]
    threshold, = scoring.event_thresholds(track, ["x"], events)
    assert threshold > 0.5 and len(scoring.detect(track, ["x"], threshold)) <= 40


def test_of_thresholds_that_are_equally_good_the_middle_one_is_taken():
    threshold, = scoring.clip_thresholds(np.array([[0.9], [0.1]]), np.array([[True], [False]]))
    assert 0.4 <= threshold <= 0.6


def test_a_model_barely_above_chance_is_doubted_at_the_end(capsys):
    assert "0.107 where chance is 0.039: barely above chance" in scoring.doubt("mAP", 0.107, 0.039, events=True)
    assert scoring.doubt("accuracy", 0.5, 0.1) == ""
    row = {"task": "own", "group": None, "metric": "map", "seed": 0, "lr": 1e-3, "epoch": 3, "value": 0.1, "fold": None,
           "ci95": [None, None], "recordings": 2, "chance": 0.04, "valid": 0.107, "valid_chance": 0.039, "n_test": 9,
           "per_class": {}, "event_f1": 0.0, "onset_f1": 0.0, "collar_f1": 0.0, "onset_error_ms": None,
           "offset_error_ms": None}
    finetune.print_tables([row, row | {"task": "other", "valid": 0.5}], False)
    text = capsys.readouterr().out
    assert "own: validation mAP 0.107 where chance is 0.039: barely above chance; most events will be wrong" in text
    assert "give --threshold to extract.py" in text and text.count("barely") == 1
    assert "own: no interval: it is drawn by recording, and the test clips are of 2 recordings only" in text
