"""The command lines as a user meets them: what they print, what they write, and how they refuse."""
import importlib
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import bench
import evaluate
import pretrain
from wren import cli
from wren.cli import UserError
from wren.recipes import finetuning
from wren.recipes.flags import name_of

ROOT = Path(__file__).parent.parent
FAST = ["--recipe", "ssast", "--batch-size", "4", "--steps", "2", "--warmup", "1", "--valid", "4", "--workers", "0"]
STAGES = ("pretrain.py", "finetune.py", "evaluate.py", "extract.py", "plot_tsne.py", "bench.py", "data.py",
          "convert.py")


def command(script, *arguments, cwd=ROOT):
    return subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], cwd=cwd, capture_output=True,
                          text=True, timeout=60)


@pytest.fixture
def run(tiny, tmp_path):
    """A finished run of two steps on the miniature corpus."""
    out = tmp_path / "run"
    pretrain.main(["--data", str(tiny / "pretrain.csv"), "--out", str(out), *FAST])
    return out


@pytest.fixture
def recordings(tmp_path):
    """A folder of three recordings at different rates and lengths, one in an upper-case suffix."""
    folder = tmp_path / "sound" / "deep"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, rate, seconds in (("a.wav", 32000, 5), ("b.WAV", 44100, 6), ("c.flac", 8000, 2)):
        soundfile.write(folder / name, 0.1 * rng.standard_normal(rate * seconds), rate)
    return folder.parent


@pytest.mark.parametrize("stage", STAGES)
def test_help_needs_no_torch(stage):
    code = (f"import sys; sys.argv = ['{stage}', '--help']; sys.path.insert(0, '{ROOT}')\n"
            f"try:\n import {stage[:-3]} as m; m.main()\nexcept SystemExit: pass\n"
            "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "python " + stage in done.stdout, "an example"


def test_pytest_m_gpu_collects_every_test_that_is_marked_for_a_gpu():
    marked = {(path.name, name) for path in (ROOT / "tests").glob("test_*.py") for name in
              re.findall(r"^@pytest\.mark\.gpu\n(?:@.*\n)*def (\w+)", path.read_text(), re.MULTILINE)}
    done = subprocess.run([sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "--no-header",
                           *sorted({f"tests/{name}" for name, _ in marked})], cwd=ROOT, capture_output=True, text=True)
    found = {tuple(line.split("[")[0].split("/")[-1].split("::")) for line in done.stdout.splitlines() if "::" in line}
    assert marked and found == marked, done.stdout


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_says_what_it_does_and_what_it_is_when_not_given(stage, monkeypatch):
    parsers = []

    def stop(parser, argv=None):
        parsers.append(parser)
        raise SystemExit
    monkeypatch.setattr(cli.Parser, "parse_args", stop)
    with pytest.raises(SystemExit):
        importlib.import_module(stage[:-3]).parse_args([])
    for action in parsers[0]._actions:
        if action.dest == "command":  # of data.py
            parsers += action.choices.values()
    for parser in parsers:
        for action in parser._actions:
            assert action.help or action.dest == "command", f"{action.option_strings} has no help"
            if type(action.default) in (int, float, str) and action.dest != "help":
                assert f"default: {action.default}" in parser._get_formatter()._expand_help(action)


def test_a_run_leaves_what_others_need(run):
    assert {"config.json", "log.jsonl", "encoder.pt", "DONE", "last.pt"} <= {p.name for p in run.iterdir()}
    first, *rest = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    assert {"commit", "parameters", "flops_per_clip", "flags", "encoder"} <= first.keys()
    step = [r for r in rest if "loss" in r][-1]
    assert {"loss", "nce", "mse", "accuracy", "lr", "grad_norm", "clips_per_second", "audio_per_second", "data_wait",
            "memory_gb", "skips", "spread", "epoch"} <= step.keys()
    assert [r["step"] for r in rest if "valid_loss" in r] == [0, 2], "held-out scores before and after"
    data = json.loads((run / "config.json").read_text())["data"]
    assert data["fingerprint"] and data["clips"] > 0 and data["held_out"] > 0


def test_the_paper_column_is_printed_beside_ours(capsys):
    pretrain.main(["--recipe", "ssast", "--paper"])
    text = capsys.readouterr().out
    assert "ssast-base-patch" in text and "ssast-laptop-frame" in text and "400" in text


def test_the_needs_of_a_billion_parameters_are_printed_without_allocating_them(capsys):
    pretrain.main(["--scale", "paper", "--preset", "ssast-1.2b-patch", "--meta", "--micro-batch", "8"])
    text = capsys.readouterr().out
    assert "1134" in text and "training state   18." in text and "8 clips" in text and "GFLOP" in text


def test_a_folder_of_recordings_at_any_rate_trains(recordings, tmp_path):
    pretrain.main(["--data", str(recordings), "--out", str(tmp_path / "run"), *FAST])
    assert (tmp_path / "run" / "DONE").exists()


def test_training_may_continue_from_another_run_and_its_heads(run, tiny, tmp_path):
    """Secondary pre-training: one step at rate 0 in effect leaves what --init named as it was."""
    out = tmp_path / "second"
    pretrain.main(["--data", str(tiny / "pretrain.csv"), "--init", str(run), "--out", str(out), *FAST, "--steps", "1",
                   "--lr", "1e-12", "--weight-decay", "0"])
    a, b = (torch.load(p / "encoder.pt") for p in (run, out))
    assert a["config"] == b["config"] and a.keys() == b.keys()
    a, b = (torch.load(max(p.glob("checkpoint-*.pt")))["objective"] for p in (run, out))
    assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-9) for k in a)


def test_a_published_file_with_its_heads_starts_where_it_ended(parity, tiny, tmp_path):
    """The discriminative and generative heads of an SSAST file come along."""
    path, _, _ = parity("ssast_tiny_patch")
    out = tmp_path / "second"
    pretrain.main(["--data", str(tiny / "pretrain.csv"), "--init", str(path), "--format", "ssast", "--out", str(out),
                   *FAST, "--steps", "1", "--lr", "1e-12", "--weight-decay", "0"])
    state = torch.load(next(out.glob("checkpoint-*.pt")))["objective"]
    published = torch.load(path)
    assert torch.allclose(state["classify.2.weight"], published["module.cpredlayer.2.weight"], atol=1e-9)
    assert torch.allclose(state["encoder.norm.bias"], published["module.v.norm.bias"], atol=1e-9)


def test_knn_prints_three_rows_a_task_and_writes_json(run, tiny, tmp_path, capsys):
    file = tmp_path / "knn.json"
    evaluate.main(["--knn", "--checkpoint", str(run), "--data", str(tiny), "--task", "species", "individual",
                   "--workers", "0", "--json", str(file), "--cache", str(tmp_path / "cache")])
    text = capsys.readouterr().out
    for row in ("untrained", "mel statistics", run.name):
        assert text.count(f"{row} ") >= 2
    results = json.loads(file.read_text())["results"]
    assert len(results) == 2 * 3, "two tasks, three encoders"
    for r in results:
        assert {"task", "probe", "encoder", "metric", "value", "ci95", "n_test"} <= r.keys()
        assert r["ci95"][0] <= r["value"] <= r["ci95"][1]


def test_knn_takes_any_csv_task_in_beans_layout(run, recordings, tmp_path):
    for split in ("train", "valid", "test"):
        (recordings / f"{split}.csv").write_text(',path,label\n0,deep/a.wav,"owl, barn"\n1,deep/b.WAV,wren\n')
    evaluate.main(["--knn", "--checkpoint", str(run), "--data", str(tmp_path), "--task", "sound", "--workers", "0",
                   "--json", str(tmp_path / "r.json"), "--cache", str(tmp_path / "cache")])
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    assert {r["value"] for r in results} == {1.0}, "test is train: each clip finds itself"


@pytest.mark.parametrize("arguments, message", [
    (["--subset", "1.23M"], "data/pretrain.csv, which does not exist: make it with python data.py index"),
    (["--data", "EMPTY"], "no audio files"),
    (["--data", "missing-folder"], "missing-folder"),
    (["--data", "SOUND", "--init", "nothing.pt"], "nothing.pt: no such checkpoint"),
    (["--recipe", "ssast", "--data", "SOUND", "--hidden", "900"], "--hidden 900: 900 hidden tokens do not fit a grid of 100"),
    (["--data", "SOUND", "--clip-seconds", "0.05"], "shorter than one patch"),
    (["--data", "SOUND", "--subset", "4000"], "4000 clips wanted"),
    (["--steps", "0"], "'0' is not a whole number of at least 1"),
    (["--lr", "fast"], "'fast' is not a number above 0"),
    (["--preset", "huge"], "invalid choice"),
    (["--stpes", "3"], "unrecognized arguments"),
    (["--steps", "3", "--epochs", "2"], "give one"),
])
def test_a_users_mistake_is_one_line_with_the_remedy(recordings, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    arguments = [{"SOUND": str(recordings), "EMPTY": str(tmp_path / "empty")}.get(a, a) for a in arguments]
    with pytest.raises(UserError) as error:
        pretrain.main([*arguments, "--workers", "0"])
    assert message in str(error.value) and "\n" not in str(error.value)
    left = {path.name for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert left <= {"judged.csv"}, "nothing but what is known of the files, which spares judging them again"


def test_a_mistake_ends_the_program_with_code_2_and_no_traceback(tmp_path):
    done = command("pretrain.py", "--subset", "1.23M", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("pretrain.py: error: --subset 1.23M reads data/pretrain.csv")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments, message", [
    (["--checkpoint", "nothing.pt"], "no such checkpoint"), (["--task", "nowhere"], "nowhere"),
    (["--k", "0"], "at least 1"), (["--depth", "9"], "this encoder has 4 blocks")])
def test_a_mistake_with_evaluate_is_refused_in_words_that_name_it(run, tiny, arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate.main(["--checkpoint", str(run), "--data", str(tiny), "--task", "species", "--workers", "0",
                       *arguments])


def test_the_benchmark_prints_and_writes_rows(tmp_path, capsys):
    bench.main(["--only", "frontend", "step", "--preset", "ssast-laptop-patch", "--batch-size", "2", "--repeat", "1",
                "--json", str(tmp_path / "bench.json")])
    rows = {r["row"]: r for r in json.loads((tmp_path / "bench.json").read_text())["rows"]}
    assert 0 < rows["ssast, ssast-laptop-patch"]["ratio"] and "front end, batch 32" in rows
    assert "matmul" in capsys.readouterr().out


PAGES = "\n".join(page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))


def readme_commands():
    """Every command of the README and docs that calls one of the stages: (script, its arguments)."""
    text = PAGES.replace("\\\n", " ")
    lines = re.findall(r"^ {4}(?: {4})?(\S.+)$", text, re.MULTILINE) + re.findall(r"`(python [^`]+)`", text)
    for line in lines:
        line = re.sub(r"\s+#.*", "", line).split("; do ")[-1].split("; done")[0]
        if found := re.search(r"(?:python|torchrun.*) (\w+\.py)(.*)", line):
            words = found[2].replace("$r", "ssast").replace("--recipe NAME", "--recipe ssast")
            yield found[1], tuple(re.sub(r"\$\w", "0", words).replace("…", "").split())


@pytest.mark.parametrize("script, arguments", sorted(set(readme_commands())),
                         ids=lambda part: part if isinstance(part, str) else " ".join(part))
def test_every_command_of_the_readme_is_understood_by_its_stage(script, arguments, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: True)  # data/pretrain.csv, which is the reader's
    importlib.import_module(script[:-3]).parse_args(list(arguments))


def test_every_flag_that_the_readme_names_is_one_of_a_stage():
    flags = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", PAGES))
    known = set("".join(path.read_text() for path in [*ROOT.glob("*.py"), *ROOT.glob("examples/*.py")]).split('"'))
    known |= {option for action in pretrain.parser()._actions for option in action.option_strings}
    known |= {name_of(setting.name) for setting in fields(finetuning.Settings)}
    assert flags - known - {"--nproc_per_node", "--nproc", "--nnodes", "--rdzv-backend", "--rdzv-endpoint",
                            "--max-restarts", "--help"} == set()
