"""evaluate.py as a user meets it: every probe, several encoders, detection, BEANS, what it prints and refuses."""
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import beans_miniature
import evaluate
from wren.probing import probes
from wren.probing import report
from wren.probing import scoring
from wren.probing.metrics import interval
from wren.cli import UserError
from model import Encoder, save_encoder
from wren.recipes import PRESETS
from wren.tasks import load_task


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two run folders with the same architecture."""
    out = []
    for seed, name in ((1, "first"), (2, "second")):
        folder = tmp_path_factory.mktemp("runs") / name
        folder.mkdir()
        torch.manual_seed(seed)
        save_encoder(Encoder(PRESETS["ssast-laptop-patch"]), folder / "encoder.pt")
        out.append(str(folder))
    return out


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def judged(tiny, cache, tmp_path, capsys, read_json):
    """judged(arguments…) -> (the JSON, the printed text)."""
    def run(*arguments, data=tiny):
        evaluate.main(["--data", str(data), "--workers", "0", "--cache", cache, "--json", str(tmp_path / "r.json"),
                       *map(str, arguments)])
        return read_json(tmp_path / "r.json"), capsys.readouterr().out
    return run


def test_every_probe_runs_beside_the_baselines_and_a_second_run_gives_the_same(runs, judged):
    arguments = "--probes", "all", "--checkpoint", runs[0], "--task", "individual"
    found, text = judged(*arguments)
    kinds = {kind: {r["encoder"] for r in found["results"] if r["probe"] == kind}
             for kind in {r["probe"] for r in found["results"]}}
    everyone = {runs[0], "untrained", "mel statistics"}
    assert {kind for kind, who in kinds.items() if who == everyone} == {
        "knn", "linear", "linear-ridge", "linear-logistic", "linear-adam"}
    assert {kind for kind, who in kinds.items() if who == everyone - {"mel statistics"}} == {"attentive", "prototype"}
    for r in found["results"]:
        assert r["ci95"][0] <= r["value"] <= r["ci95"][1] and r["choice"] and r["chance"] == pytest.approx(1 / 12)
    assert judged(*arguments)[0] == found
    assert all(len(line) <= 118 for line in text.splitlines() if not line.startswith("written"))


def test_linear_is_what_validation_prefers_of_three(runs, judged):
    found, _ = judged("--linear", "--checkpoint", runs[0], "--task", "individual")
    mine = {r["probe"]: r for r in found["results"] if r["encoder"] == runs[0]}
    best = max((r for kind, r in mine.items() if kind != "linear"), key=lambda r: r["valid"])
    assert mine["linear"]["value"] == best["value"] and mine["linear"]["choice"]["by"] == best["probe"][7:]


def test_encoders_stand_side_by_side_with_paired_differences(runs, judged, tmp_path):
    torch.manual_seed(3)
    save_encoder(Encoder(PRESETS["dasheng-laptop"]), tmp_path / "dasheng.pt")
    other = str(tmp_path / "dasheng.pt")
    found, text = judged("--checkpoint", *runs, other, "--task", "individual", "--markdown")
    names = [r["encoder"] for r in found["results"] if r["probe"] == "knn"]
    assert names == [*runs, other, "untrained ssast-laptop-patch", "untrained dasheng-laptop", "mel statistics"]
    pairs = {(d["a"], d["b"]): d for d in found["differences"]}
    assert (runs[0], runs[1]) in pairs and (runs[0], "untrained dasheng-laptop") not in pairs
    value = {r["encoder"]: r["value"] for r in found["results"] if r["probe"] == "knn"}
    for (a, b), d in pairs.items():
        assert d["value"] == pytest.approx(value[a] - value[b]) and d["ci95"][0] <= d["value"] <= d["ci95"][1]
    assert "| kNN | first |" in text and "first − second = " in text


def test_no_encoder_stands_twice_in_a_table_or_is_compared_with_itself(runs, judged, tmp_path):
    shutil.copytree(runs[0], tmp_path / "copy")
    found, text = judged("--checkpoint", "ssast-laptop-patch", runs[0], tmp_path / "copy", "--task", "individual")
    once = ["ssast-laptop-patch", runs[0], "mel statistics"]
    assert [r["encoder"] for r in found["results"] if r["probe"] == "knn"] == once
    assert [(d["a"], d["b"]) for d in found["differences"]] == [(once[0], once[1]), (once[0], once[2]),
                                                                (once[1], once[2])]
    assert f"the same encoder as {runs[0]}, shown once" in text and "ssast-laptop-patch is untrained" in text


def test_intervals_hold_the_true_accuracy_in_95_of_100_experiments():
    """300 tests of 100 clips in recordings of one to four clips; the encoder is right about 70 % of recordings."""
    rng, inside = np.random.default_rng(0), []
    for _ in range(300):
        groups = np.repeat(np.arange(100), rng.integers(1, 5, size=100))
        right = np.where((rng.random(100) < 0.7)[groups], 0, 1)

        class Split:
            targets = np.zeros(len(groups), int)
        Split.groups = groups
        low, high = interval(scoring.draws("accuracy", np.eye(2)[right], Split, int(rng.integers(1 << 30))), groups)
        inside.append(low <= 0.7 <= high)
    assert 0.92 <= np.mean(inside) <= 0.98


def test_a_paired_interval_is_narrower_than_two_separate_ones():
    rng = np.random.default_rng(0)
    truth = rng.integers(5, size=400)
    a = np.eye(5)[np.where(rng.random(400) < 0.6, truth, (truth + 1) % 5)]
    b = a.copy()
    b[:20] = np.eye(5)[(truth[:20] + 2) % 5]

    class Split:
        targets, groups = truth, np.arange(400)
    first, second = (scoring.draws("accuracy", scores, Split, 0) for scores in (a, b))
    alone, paired = (interval(sampled, Split.groups) for sampled in (first, first - second))
    assert paired[0] > 0 and paired[1] - paired[0] < (alone[1] - alone[0]) / 2


def test_seeds_of_a_trained_probe_are_averaged_and_listed(runs, judged):
    found, _ = judged("--attentive", "--checkpoint", runs[0], "--task", "individual", "--seeds", 2)
    for r in found["results"]:
        assert len(r["values"]) == 2 and r["value"] == pytest.approx(np.mean(r["values"]))


def test_detection_has_map_cmap_auroc_and_events(runs, judged, tiny):
    found, text = judged("--linear", "--knn", "--checkpoint", runs[0], "--task", "detection")
    task = load_task("detection", root=tiny)
    for r in found["results"]:
        assert r["metric"] == "map" and r["n_test"] == len(task.splits["test"])
        assert {"cmap", "auroc", "event_f1", "onset_f1", "thresholds"} <= r.keys()
        assert 0 <= r["event_f1"] <= 1
    assert "onset F1" in text and "AUROC" in text


def test_a_perfect_score_finds_the_windows_of_events(tiny):
    """Scores that are the truth itself reach what 2 s windows allow."""
    from wren.probing.probes import Scored
    task = load_task("detection", root=tiny)
    truth = [task.splits[s].targets.astype(float) for s in ("valid", "test")]
    good = report.detection_scores(task, Scored(*truth, {}))
    rng = np.random.default_rng(0)
    bad = report.detection_scores(task, Scored(*(rng.random(t.shape) for t in truth), {}))
    assert good["event_f1"] > bad["event_f1"] + 0.1


def test_the_last_layers_may_be_joined(runs, judged):
    found, _ = judged("--checkpoint", runs[0], "--task", "individual", "--layers", "4", "--linear")
    alone, _ = judged("--checkpoint", runs[0], "--task", "individual", "--linear")
    assert [r["per_class"] for r in found["results"]] != [r["per_class"] for r in alone["results"]]
    assert "choices" not in found


@pytest.mark.parametrize("setting, values", [("pool", {"mean", "rows", "specials", "both"}),
                                             ("layers", {1, 2, 3, 4})])
def test_every_pooling_or_layer_is_judged_on_validation_and_the_winner_is_named(runs, judged, setting, values):
    found, text = judged("--knn", "--linear", "--checkpoint", runs[0], "--task", "individual", f"--{setting}", "all")
    rows = found["choices"]
    assert {r["choice"] for r in rows} == values and [r["default"] for r in rows].index(True) == 0
    won = max(rows, key=lambda r: r["valid"]["knn"] + r["valid"]["ridge"])
    assert [r["won"] for r in rows] == [r is won for r in rows]
    assert all((r["test"] is None) == (not r["won"] and not r["default"]) for r in rows)
    plain = {r["probe"]: r for r in found["results"] if r["encoder"] == runs[0]}
    assert rows[0]["test"] == {"knn": plain["knn"]["value"], "ridge": plain["linear-ridge"]["value"]}
    flag = {"pool": "--pool", "layers": "--depth"}[setting]
    assert (f"{flag} {won['choice']} won on validation" in text) != ("the default won on validation" in text)


def test_beans_is_grouped_and_published_rows_stand_apart_by_protocol(runs, judged, tmp_path):
    beans_miniature.make(tmp_path / "beans")
    found, text = judged("--checkpoint", runs[0], "--task", "watkins", "dcase", "esc50", data=tmp_path / "beans")
    knn = [r for r in found["results"] if r["probe"] == "knn" and r["encoder"] == runs[0]]
    assert [r["group"] for r in knn] == ["classification", "detection", "auxiliary"]
    means = scoring.group_means(knn)
    row = next(line for line in text.splitlines() if line.startswith("kNN  ") and "(3 of 12)" in line)
    assert "first" in row
    assert f"{means['classification'][0]:.3f} (1 of 5)" in row and f"{means['all'][0]:.3f} (3 of 12)" in row
    blocks = text.split("\n\n")
    gpm, linear = (next(b for b in blocks if b.startswith(f"protocol {p}")) for p in ("gpm-bt", "perch"))
    assert "GPM-BT 1.23M frame" in gpm and "Perch" not in gpm and "Perch 1" in linear and "GPM" not in linear


def test_what_a_test_split_cannot_tell_is_null_in_the_json_and_a_dash_in_tables(runs, judged, tmp_path):
    beans_miniature.make(tmp_path)
    beans_miniature.silence(tmp_path, "rfcx", "test")
    found, text = judged("--knn", "--checkpoint", runs[0], "--task", "rfcx", data=tmp_path)
    for row in found["results"]:
        assert (row["ci95"], row["cmap"], row["auroc"]) == ([None, None], None, None), "one recording, no call in it"
    assert all(d["ci95"] == [None, None] for d in found["differences"])
    assert "nan" not in text.lower() and "–" in text


def test_low_trains_on_the_low_data_list(runs, judged, tmp_path):
    beans_miniature.make(tmp_path)
    low, text = judged("--low", "--checkpoint", runs[0], "--task", "watkins", data=tmp_path)
    assert "watkins: 15 clips" in text, "3 of the 12 for training, 6 for validation, 6 for the test"
    whole, text = judged("--checkpoint", runs[0], "--task", "watkins", data=tmp_path)
    assert "watkins: 24 clips" in text and low["results"][0]["n_test"] == whole["results"][0]["n_test"] == 6


def test_a_class_that_training_lacks_is_never_chosen():
    class Split:
        targets = np.array([0, 2])
    task = type("Task", (), {"kind": "classification", "labels": ["a", "b", "c"], "splits": {"train": Split}})
    assert evaluate.masked(task, np.array([[0.1, 0.9, 0.2]])).argmax() == 2


def test_a_long_name_is_shortened_as_long_as_it_stays_unique():
    assert report.short("runs/a/b", ["runs/a/b", "runs/c"]) == "b"
    assert report.short("runs/a/b", ["runs/a/b", "runs/c/b"]) == "runs/a/b"


@pytest.mark.parametrize("arguments, message", [
    (["--layers", "9"], "--layers 9: this encoder has 4 blocks"), (["--layers", "some"], "'some' is not a whole"),
    (["--seeds", "0"], "at least 1"), 
    (["--task", "beans"], "none of the twelve is below"), (["--low"], "low-data")])
def test_a_mistake_is_refused_in_one_line(runs, judged, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        judged("--checkpoint", runs[0], *([] if "--task" in arguments else ["--task", "individual"]), *arguments)
    assert "\n" not in str(error.value)


def test_results_of_a_checkpoint_file_lie_beside_it_and_never_where_one_stands(runs, tiny, tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shutil.copy(Path(runs[0]) / "encoder.pt", tmp_path / "mine.pt")
    evaluate.main(["--knn", "--checkpoint", str(tmp_path / "mine.pt"), "--data", str(tiny), "--task", "species",
                   "--cache", str(tmp_path / "cache"), "--workers", "0"])
    assert (tmp_path / "mine.evaluate.json").exists() and not list((tmp_path / "elsewhere").iterdir())


def test_first_numbers_stand_beside_untrained_and_mel_statistics_and_say_where_nothing_is_won(runs, tiny):
    lines = report.first_numbers(Path(runs[0]) / "encoder.pt", load_task("species", root=tiny), "cpu")
    assert [line.split("  ")[2].strip() for line in lines[1:4]] == ["this encoder", "untrained", "mel statistics"]
    scores = np.array([line.split()[-2:] for line in lines[1:4]], float)
    assert ((0 <= scores) & (scores <= 1)).all() and lines[0].endswith("kNN  linear")
    for row, name in ((1, "untrained"), (2, "mel statistics")):
        worse = any(f"is no better than {name}" in line for line in lines[4:])
        assert worse == bool((scores[0] <= scores[row]).any())


def test_off_a_terminal_embedding_and_probes_give_signs_of_life(runs, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("wren.cli.PULSE_SECONDS", 0.0)
    evaluate.main(["--knn", "--linear", "--checkpoint", str(runs[0]), "--data", str(tiny), "--task", "species", "--cache",
                   str(tmp_path / "cache"), "--workers", "0", "--json", str(tmp_path / "r.json"), "--batch-size", "4"])
    err = capsys.readouterr().err
    assert "  embedding: 4 of " in err and "  training of LinearHead: 1 of 50 epochs" in err
