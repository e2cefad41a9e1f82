"""A run is a function of its settings, whatever happens to its processes.

Training runs in this process through `pretrain.main`; real launches by torchrun cost 8 s each and are few.
"""
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wren.training import checkpoints, engine, processes
import pretrain
from wren.cli import UserError

ROOT = Path(__file__).parent.parent
# Without this variable a torchrun agent of 2.11 never announces its address to a node that joins after a restart.
LAUNCH = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
SCRIPT = ROOT / "tests" / "faulty_pretrain.py"
TINY = ["--recipe", "ssast", "--masking", "patch", "--preset", "ssast-laptop-patch", "--steps", "6", "--batch-size", "4", "--micro-batch", "2",
        "--warmup", "2", "--valid", "4", "--workers", "0", "--save-every", "2", "--log-every", "1", "--device", "cpu"]


@pytest.fixture
def command(tiny):
    """command(out, *flags) -> the argument list of a tiny run."""
    return lambda out, *flags: ["--data", str(tiny / "pretrain.csv"), "--out", str(out), *TINY, *flags]


@pytest.fixture(scope="module")
def straight_run(tiny, tmp_path_factory):
    """The tiny run when nothing disturbs it."""
    out = tmp_path_factory.mktemp("straight") / "run"
    pretrain.main(["--data", str(tiny / "pretrain.csv"), "--out", str(out), *TINY])
    return out


@pytest.fixture(scope="module")
def straight(straight_run):
    """Its weights."""
    return weights(straight_run)


def weights(out):
    """All parameters of a run's encoder as one vector."""
    return torch.cat([v.flatten() for v in torch.load(out / "encoder.pt")["model"].values()])


@pytest.fixture(scope="module")
def apart(tiny, straight, tmp_path_factory):
    """apart(out) -> how far a run's weights end from the undisturbed run's, as a share of how far those moved."""
    out = tmp_path_factory.mktemp("untrained") / "run"
    pretrain.main(["--data", str(tiny / "pretrain.csv"), "--out", str(out), *TINY, "--steps", "1", "--lr", "1e-12",
                   "--weight-decay", "0"])
    moved = float((straight - weights(out)).norm())
    assert moved > 0.1
    return lambda run: float((weights(run) - straight).norm()) / moved


def rows(out, key="loss"):
    return [r for r in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if key in r]


def torchrun(arguments, *flags, processes=2, script=ROOT / "pretrain.py", env=None):
    """Start torchrun in the background."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
                *(flags or ["--standalone"]), str(script), *arguments]
    return subprocess.Popen(launcher, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                            env=os.environ | LAUNCH | (env or {}))


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


# --------------------------------------------------------------------------------------------------- same result

def test_two_processes_train_the_encoder_of_one(command, apart, tmp_path):
    process = torchrun(command(tmp_path / "two"))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert apart(tmp_path / "two") < 1e-3
    assert output.count("  accuracy ") == 3, "one process speaks: once at the last step, twice in the summary"


def test_micro_batches_do_not_change_the_result(command, apart, straight_run, tmp_path):
    """Other shapes of matrices round in another way, a ReLU near 0 may then take another side, and Adam makes a whole
    step of a gradient that is only rounding: some weights part, more or less from processor to processor, losses
    hardly.
    What a wrong weight of a micro-batch does is in the next test."""
    pretrain.main(command(tmp_path / "whole", "--micro-batch", "4"))
    losses = [row["loss"] for row in rows(tmp_path / "whole")]
    assert losses == pytest.approx([row["loss"] for row in rows(straight_run)], rel=1e-4) and len(losses) == 6
    assert apart(tmp_path / "whole") < 0.2


def test_clips_of_different_length_count_by_their_hidden_tokens(tiny):
    """One batch of ragged clips, whole and in halves: equal gradients, which means of means would not give."""
    from model import Encoder
    from wren.objectives import SSAST
    from wren.recipes import PRESETS
    torch.manual_seed(0)
    config = PRESETS["ssast-laptop-patch"]
    batch = {"wave": 0.1 * torch.randn(4, config.clip_samples), "lengths": torch.tensor([64000, 64000, 9000, 20000]),
             "seed": torch.arange(4)}
    steps = []
    for micro in (4, 2, 1):
        torch.manual_seed(1)
        objective = SSAST(Encoder(config))
        trainer = engine.Trainer(objective, engine.make_optimizer(objective), processes.start_processes("cpu"),
                                 batch_size=4, micro_batch=micro, steps=10, warmup=0)
        steps.append(trainer.train(batch))
    assert steps[0]["grad_norm"] == pytest.approx(steps[1]["grad_norm"], rel=1e-5)
    assert steps[0]["loss"] == pytest.approx(steps[2]["loss"], rel=1e-5)


# -------------------------------------------------------------------------------------------------- interruption

def test_a_killed_run_resumes_bit_for_bit_with_other_workers(command, straight, tmp_path, monkeypatch):
    """Stopped without warning after step 3, in mid-epoch, with accumulation; the newest checkpoint is of step 2."""
    original = engine.Trainer.launch

    def dies(self, *args, **kwargs):
        if self.step == 3:
            raise RuntimeError("power cut")
        return original(self, *args, **kwargs)
    monkeypatch.setattr(engine.Trainer, "launch", dies)
    with pytest.raises(RuntimeError):
        pretrain.main(command(tmp_path / "run"))
    monkeypatch.undo()
    pretrain.main(command(tmp_path / "run", "--workers", "2"))
    assert torch.equal(weights(tmp_path / "run"), straight)
    assert [r["step"] for r in rows(tmp_path / "run")] == [1, 2, 3, 4, 5, 6], "rows beyond the checkpoint were dropped"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_at_the_next_step_and_the_same_command_goes_on(command, straight, tmp_path, monkeypatch, number):
    original = engine.Trainer.launch

    def signalled(self, *args, **kwargs):
        if self.step == 3:
            os.kill(os.getpid(), number)
        return original(self, *args, **kwargs)
    monkeypatch.setattr(engine.Trainer, "launch", signalled)
    out = tmp_path / "run"
    assert pretrain.main(command(out)) is None
    assert (out / "PREEMPTED").read_text().strip() == number.name and not (out / "DONE").exists()
    assert checkpoints.load_checkpoint(out)["step"] in (4, 5)
    monkeypatch.undo()
    pretrain.main(command(out))
    assert (out / "DONE").exists() and not (out / "PREEMPTED").exists()
    assert torch.equal(weights(out), straight)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_sigterm_under_torchrun_saves_and_one_process_finishes_the_run(command, apart, tmp_path, workers):
    """torchrun signals each trainer's process group, to which its loader's workers would belong."""
    out = tmp_path / "run"
    process = torchrun(command(out, "--workers", workers), script=SCRIPT, env={"WREN_FAULT": "slow"})
    wait_for(lambda: (out / "log.jsonl").exists() and len(rows(out)) >= 2)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert (out / "PREEMPTED").exists(), output
    pretrain.main(command(out))
    assert apart(out) < 1e-3


def test_a_killed_worker_restarts_and_ends_with_the_same_weights(command, apart, tmp_path):
    out = tmp_path / "run"
    process = torchrun(command(out, "--timeout", "60"), "--standalone", "--max-restarts=3", script=SCRIPT,
                       env={"WREN_FAULT": "kill"})
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert apart(out) < 1e-3
    assert "resumed at step 2" in output


def test_two_nodes_train_together_and_go_on_after_one_is_killed_and_restarted(command, apart, tmp_path):
    """Two torchrun agents on one machine; the second, with its worker, is killed after two steps and started anew."""
    out, port = tmp_path / "run", random.randint(20000, 40000)
    flags = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=wren",
             "--max-restarts=3", "--local-addr=localhost"]
    arguments = command(out, "--timeout", "60")
    first = torchrun(arguments, *flags, "--rdzv-conf=is_host=1", processes=1, script=SCRIPT, env={"WREN_FAULT": "slow"})
    start_second = lambda fault: subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", *flags, "--rdzv-conf=is_host=0",
         str(SCRIPT), *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | LAUNCH | {"WREN_FAULT": fault})
    second = start_second("slow")
    wait_for(lambda: (out / "log.jsonl").exists() and len(rows(out)) >= 3)
    worker = int(Path(f"/proc/{second.pid}/task/{second.pid}/children").read_text().split()[0])
    for pid in (second.pid, worker):  # the whole node: its agent and its worker, which would train on without it
        os.kill(pid, signal.SIGKILL)
    second.wait()
    second = start_second("none")
    output = first.communicate(timeout=120)[0]
    second.wait(timeout=30)
    assert first.returncode == 0 and (out / "DONE").exists(), output
    assert apart(out) < 1e-3


# ------------------------------------------------------------------------------------------------- bad conditions

def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path):
    """SIGKILL at random moments of endless saving: the newest file that opens is at most one save old."""
    script = ("import sys, torch; sys.path.insert(0, sys.argv[1]); from wren.training import checkpoints\n"
              "s = checkpoints.Saver(sys.argv[2]); n = 0\n"
              "while True:\n n += 1; s.save({'step': n, 'x': torch.full((5_000_000,), float(n))}, n)\n"
              " print(n, flush=True)")
    rng = random.Random(0)
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        process = subprocess.Popen([sys.executable, "-c", script, str(ROOT), str(folder)], stdout=subprocess.PIPE,
                                   text=True)
        for _ in range(3):
            said = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.08))
        process.kill()
        said = max([said, *map(int, process.stdout.read().split())])
        state = checkpoints.load_checkpoint(folder)
        assert state["step"] >= said and state["x"].eq(state["step"]).all()


def test_a_full_disk_loses_nothing_and_ends_the_run_after_three_misses(tmp_path):
    """A limit on file size stands for the disk: the write really fails half-way."""
    saver, state = checkpoints.Saver(tmp_path), {"x": torch.zeros(300_000)}
    assert saver.save(state | {"step": 1}, 1) is None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        for step in (2, 3):
            assert "training goes on" in saver.save(state | {"step": step}, step)
        with pytest.raises(UserError, match="three times running"):
            saver.save(state | {"step": 4}, 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.load_checkpoint(tmp_path)["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000001.pt", "last.pt"], "no half file is left"


def test_a_run_on_a_full_disk_is_not_called_finished_and_can_go_on(command, tmp_path):
    """Neither the checkpoint nor encoder.pt fits: one miss, then the last step, which has to be written."""
    out, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(UserError, match="could not be written at the last step"):
            pretrain.main(command(out, "--steps", "4"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (out / "DONE").exists() and not list(out.glob("*.pt")) and not list(out.glob(".*"))
    pretrain.main(command(out, "--steps", "4"))
    assert (out / "DONE").exists() and (out / "encoder.pt").exists()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    saver = checkpoints.Saver(tmp_path)
    for step in (1, 2):
        saver.save({"step": step, "x": torch.zeros(1000)}, step)
    newest = checkpoints.checkpoints(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[:500])
    assert checkpoints.load_checkpoint(tmp_path)["step"] == 1


def test_the_last_k_and_the_milestones_stay(tmp_path):
    saver = checkpoints.Saver(tmp_path, keep=2, milestone=4)
    for step in range(1, 10):
        saver.save({"step": step}, step)
    assert [checkpoints.step_of(p) for p in checkpoints.checkpoints(tmp_path)] == [9, 8, 4]
    assert (tmp_path / "last.pt").resolve().name == "checkpoint-00000009.pt"


def test_a_step_that_is_not_finite_is_skipped_on_every_process(command, tmp_path):
    """NaN on one of two processes: both skip the step, log the clips, and go on with finite weights."""
    out = tmp_path / "run"
    process = torchrun(command(out), script=SCRIPT, env={"WREN_FAULT": "nan"})
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert rows(out)[-1]["skips"] == 1 and torch.isfinite(weights(out)).all()
    assert [r["step"] for r in rows(out, "skipped_clips")] == [3]


def test_too_many_steps_that_are_not_finite_stop_the_run(command, tmp_path, monkeypatch):
    monkeypatch.setenv("WREN_FAULT", "always-nan")
    import faulty_pretrain
    faulty_pretrain.install(monkeypatch.setattr)
    with pytest.raises(UserError, match="step 4: 3 steps in a row were not finite"):
        pretrain.main(command(tmp_path / "run", "--max-skips", "3"))
    assert checkpoints.load_checkpoint(tmp_path / "run")["skips"] <= 3


@pytest.mark.parametrize("flags, message", [
    (["--lr", "0.5"], "lr 0.002, now it is 0.5"), (["--batch-size", "8"], "batch_size 4, now it is 8"),
    (["--seed", "7"], "seed 0, now it is 7"), (["--hidden", "0.3"], "hidden"), (["--steps", "9"], "--extend")])
def test_changed_settings_are_refused_with_both_values(command, tmp_path, monkeypatch, flags, message):
    out = tmp_path / "run"
    original = engine.Trainer.launch

    def dies(self, *args, **kwargs):
        raise RuntimeError("power cut")
    monkeypatch.setattr(engine.Trainer, "launch", dies)
    with pytest.raises(RuntimeError):
        pretrain.main(command(out))
    monkeypatch.setattr(engine.Trainer, "launch", original)
    with pytest.raises(UserError, match=message):
        pretrain.main(command(out, *flags))


def test_a_finished_run_says_so_and_can_be_extended(command, tmp_path, capsys):
    out = tmp_path / "run"
    pretrain.main(command(out, "--steps", "2"))
    pretrain.main(command(out, "--steps", "2"))
    assert "is finished (2 steps)" in capsys.readouterr().out
    pretrain.main(command(out, "--steps", "4", "--extend"))
    assert (out / "DONE").read_text() == "4 steps\n" and rows(out)[-1]["step"] == 4


def test_a_finished_run_refuses_changed_settings_with_both_values(command, tmp_path):
    out = tmp_path / "run"
    pretrain.main(command(out, "--steps", "2"))
    with pytest.raises(UserError, match="was made with lr 0.002, now it is 0.0005: start another run with --out$"):
        pretrain.main(command(out, "--steps", "2", "--lr", "5e-4"))
    with pytest.raises(UserError, match="steps 2, now it is 4.*--extend"):
        pretrain.main(command(out, "--steps", "4"))
    with pytest.raises(UserError, match="lr 0.002"):
        pretrain.main(command(out, "--steps", "4", "--extend", "--lr", "5e-4"))
    assert rows(out)[-1]["step"] == 2


def test_held_out_clips_that_vanish_are_counted_and_named_and_all_of_them_end_the_run(tiny, command, tmp_path,
                                                                                      monkeypatch, capsys):
    from wren.sound import loading
    from wren.sound.audio import BadAudio
    original, gone = loading.Cropper.__call__, [0]

    def call(self, manifest, row, seed, *more):
        if self.crop == "start" and row in gone:
            raise BadAudio("no such file", manifest.path(row))
        return original(self, manifest, row, seed, *more)
    monkeypatch.setattr(loading.Cropper, "__call__", call)
    pretrain.main(command(tmp_path / "run", "--steps", "1"))
    assert "1 of 4 held-out clips can't be read" in capsys.readouterr().err
    assert {r["valid_unreadable"] for r in rows(tmp_path / "run", "valid_loss")} == {1}
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad.jsonl").read_text().splitlines()]
    assert [entry["held_out"] for entry in listed] == [0, 0] and "no such file" in listed[0]["error"]
    gone.extend(range(1, 4))
    with pytest.raises(UserError, match="none of the held-out clips can be read"):
        pretrain.main(command(tmp_path / "none", "--steps", "1"))


def test_a_killed_process_leaves_one_line_of_the_others(command, tmp_path):
    process = torchrun(command(tmp_path / "run", "--timeout", "60"), "--standalone", "--max-restarts=0", script=SCRIPT,
                       env={"WREN_FAULT": "kill"})
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    said = output.split("error: ", 1)[1].splitlines()[0]
    assert said == "process 1 has gone; the newest checkpoint is step 2; the same command goes on", output
    assert "gloo" not in output and "faulty_pretrain.py\", line" not in output, output


def test_a_collapse_ends_the_run_with_the_remedy_unless_told_otherwise(command, tmp_path, monkeypatch):
    original = engine.Trainer.evaluate
    monkeypatch.setattr(engine.Trainer, "evaluate", lambda self, batches: original(self, batches) | {"spread": 0.001})
    flags = "--eval-every", "1"
    with pytest.raises(UserError, match="step 3: the encoder has collapsed.*--lr.*--allow-collapse"):
        pretrain.main(command(tmp_path / "run", *flags))
    assert [row["step"] for row in rows(tmp_path / "run", "collapsed")] == [3]
    pretrain.main(command(tmp_path / "allowed", *flags, "--allow-collapse"))
    assert (tmp_path / "allowed" / "DONE").exists()


def test_a_collapse_is_three_low_spreads_in_a_row():
    from wren.training.runlog import Collapse
    watch = Collapse()
    spreads = (0.0, 0.0, 0.5, 0.0, 0.0, 0.0)
    assert [bool(watch.update({"spread": spread}, 1)) for spread in spreads] == [False] * 5 + [True]
    assert Collapse().update({}, 1) is None, "nothing is held out"


# ------------------------------------------------------------------------------------------------------ small parts

def test_schedules_are_functions_of_the_step():
    rate = engine.learning_rate
    assert [rate(s, 100, 4) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(4, 100, 4) == 1.0 and rate(52, 100, 4) == pytest.approx(0.5) and rate(100, 100, 4) == pytest.approx(0)
    assert rate(100, 100, 4, floor=0.1) == pytest.approx(0.1)
    assert rate(99, 100, 4, "constant") == 1.0


def test_the_plateau_schedule_halves_after_patience_runs_out():
    plateau = engine.Plateau(patience=2)
    scales = []
    for value in (0.1, 0.2, 0.2, 0.19, 0.2, 0.3, 0.1, 0.1, 0.1):
        plateau.update(value)
        scales.append(plateau.scale)
    assert scales == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_a_continued_run_has_the_rate_that_its_plateaus_have_come_to():
    from model import Encoder
    from wren.objectives import SSAST
    from wren.recipes import PRESETS

    def fresh():
        objective = SSAST(Encoder(replace(PRESETS["ssast-laptop-patch"], dim=32, depth=1, heads=2)))
        return engine.Trainer(objective, engine.make_optimizer(objective), processes.start_processes("cpu"),
                              batch_size=4, steps=10, warmup=0, schedule="plateau")
    first, second = fresh(), fresh()
    for value in (0.3, 0.2, 0.2, 0.2):
        first.plateau.update(value)
    second.load_state_dict(first.state_dict())
    assert second.plateau.scale == 0.5 and vars(second.plateau) == vars(first.plateau)


def test_decay_spares_biases_norms_positions_and_special_tokens():
    from model import Encoder
    from wren.recipes import PRESETS
    encoder = Encoder(PRESETS["ssast-laptop-patch"])
    decayed, kept = (g["params"] for g in engine.make_optimizer(encoder).param_groups)
    names = {id(p): n for n, p in encoder.named_parameters()}
    assert all(names[id(p)].endswith("weight") and p.ndim == 2 for p in decayed)
    assert {"mask_token", "positions.table", "specials", "positions.specials", "norm.weight"} <= {names[id(p)] for p in kept}


def test_fused_adamw_equals_the_plain_loop():
    torch.manual_seed(0)
    a, b = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
    b.load_state_dict(a.state_dict())
    fused = engine.make_optimizer(a, lr=1e-3)
    plain = torch.optim.AdamW([{"params": [b.weight], "weight_decay": 0.05}, {"params": [b.bias], "weight_decay": 0}],
                              lr=1e-3, eps=1e-6, foreach=False, fused=False)
    for _ in range(5):
        x = torch.randn(8, 64)
        for module, optimizer in ((a, fused), (b, plain)):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    assert torch.allclose(a.weight, b.weight, atol=1e-7)


@pytest.mark.parametrize("clip", (0.0, 0.5))
def test_the_step_takes_the_gradient_of_the_mean_clipped(tiny, clip):
    """Against plain AdamW on the gradient of the objective's own mean; eps is large, so that lengths matter."""
    from model import Encoder
    from wren.objectives import SSAST
    from wren.recipes import PRESETS
    config = PRESETS["ssast-laptop-patch"]
    batch = {"wave": 0.1 * torch.randn(4, config.clip_samples), "seed": torch.arange(4),
             "lengths": torch.full((4,), config.clip_samples)}
    ends = []
    for by_hand in (True, False):
        torch.manual_seed(1)
        objective = SSAST(Encoder(config))
        optimizer = engine.make_optimizer(objective, lr=0.1, eps=1.0)
        if by_hand:
            objective(batch["wave"], None, batch["seed"])[0].backward()
            norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), clip or 1e9).item()
            optimizer.step()
        else:
            trainer = engine.Trainer(objective, optimizer, processes.start_processes("cpu"), batch_size=4,
                                     micro_batch=2, steps=10, warmup=0, clip=clip)
            assert trainer.train(batch)["grad_norm"] == pytest.approx(norm, rel=1e-4) and norm > 0.5
        ends.append(torch.nn.utils.parameters_to_vector(objective.parameters()))
    torch.manual_seed(1)
    moved = (ends[0] - torch.nn.utils.parameters_to_vector(SSAST(Encoder(config)).parameters())).norm()
    assert (ends[0] - ends[1]).norm() < 1e-3 * moved


def test_bf16_autocast_trains_and_keeps_float32_weights(command, tmp_path):
    pretrain.main(command(tmp_path / "run", "--amp", "bf16", "--steps", "2"))
    assert weights(tmp_path / "run").dtype == torch.float32


def test_fp16_without_a_gpu_is_a_clear_error(command, tmp_path):
    with pytest.raises(UserError, match="--amp fp16 needs a GPU"):
        pretrain.main(command(tmp_path / "run", "--amp", "fp16"))


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["bf16", "fp16", "fp32"])
def test_the_gpu_trains_in_every_precision(command, tmp_path, amp):
    flags = [f for f in command(tmp_path / "run", "--amp", amp) if f not in ("--device", "cpu")]
    pretrain.main([*flags, "--device", "cuda"])
    losses = [r["loss"] for r in rows(tmp_path / "run")]
    assert losses[-1] < losses[0]


# -------------------------------------------------------------------------------------------------------- memory

@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="not glibc")
def test_a_step_reuses_the_memory_of_the_one_before():
    """In a process of its own, since the setting lasts: 100 MB freed and asked for again cause no page faults,
    once the heap has found its shape, in the second or third round."""
    code = ("import resource, torch; from wren.training import processes; processes.start_processes('cpu')\n"
            "def faults(): torch.ones(25_000_000); return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "before = max(faults() for _ in range(4)); print('faults', faults() - before)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("faults")[1]) < 1000, "24,000 pages of 4 kB otherwise"


def test_a_libc_without_mallopt_is_no_error(monkeypatch):
    def nothing(name):
        raise OSError("no such library")
    monkeypatch.setattr(processes.ctypes, "CDLL", nothing)
    assert processes.start_processes("cpu").device.type == "cpu"
