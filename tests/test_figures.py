"""Figures: each command draws something readable on tiny inputs, and the numbers under the drawings are right."""
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.image import imread
from matplotlib.text import Text

import plot_tsne
import pretrain
from model import load_encoder
from wren.cli import UserError
from wren.figures import scaling, spectrograms, style, tsne
from wren.objectives import MASKS, draw_mask

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run of four steps on the miniature corpus."""
    out = tmp_path_factory.mktemp("runs") / "short"
    pretrain.main(["--data", str(tiny / "pretrain.csv"), "--out", str(out), "--batch-size", "4", "--steps", "4",
                   "--recipe", "ssast", "--preset", "ssast-laptop-patch", "--masking", "patch", "--warmup", "1", "--valid", "4", "--workers", "0", "--log-every", "1", "--eval-every", "2"])
    return out


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """draw(arguments) -> (figures at both widths, rows of the CSV, content of the JSON), after checking the files and
    that every text is inside the page, at least 7 pt, and clear of every other."""
    monkeypatch.setitem(style.STYLE, "savefig.dpi", 100)
    pages, texts, original = [], {}, Text.draw

    def note(self, renderer):  # where each text went on the PNG
        original(self, renderer)
        if isinstance(renderer, RendererAgg) and self.get_visible() and self.get_text().strip():
            texts[self] = self.get_window_extent()

    def run(*arguments):
        save = style.save
        with monkeypatch.context() as patch:
            patch.setattr(Text, "draw", note)
            patch.setattr(style, "save", lambda draw, *a: save(lambda w: pages.append(draw(w)) or pages[-1], *a))
            plot_tsne.main([*map(str, arguments), "--out", str(tmp_path / "out" / "x.png"), "--workers", "0"])
        out = tmp_path / "out"
        assert sorted(p.name for p in out.iterdir()) == sorted(
            ["x.csv", "x.json", "x.pdf", "x.png", "x-column.pdf", "x-column.png"]), "and no temporary file"
        for page, name in zip(pages[-2:], ("x", "x-column")):
            pixels = imread(out / f"{name}.png")
            assert 0.01 < (pixels[..., :3] < 0.98).any(-1).mean() < 0.95, "neither blank nor black"
            assert (out / f"{name}.pdf").stat().st_size > 3000
            check_texts({t: box for t, box in texts.items() if t.get_figure(root=True) is page}, pixels.shape[1::-1])
        return pages[-2:], (out / "x.csv").read_text().splitlines(), json.loads((out / "x.json").read_text())
    return run


def axes_in(figure):
    return figure.findobj(lambda artist: isinstance(artist, Axes))


def check_texts(texts, size):
    """texts {artist: its box in pixels} on a page of `size` (width, height)."""
    assert texts and all(t.get_fontsize() >= 7 for t in texts)
    boxes = [(t.get_text(), box) for t, box in texts.items()]
    for k, (text, box) in enumerate(boxes):
        assert -1 <= box.x0 and box.x1 <= size[0] + 1 and -1 <= box.y0 and box.y1 <= size[1] + 1, f"{text!r} is cut"
        for other, beside in boxes[:k]:
            across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
            down = min(box.y1, beside.y1) - max(box.y0, beside.y0)
            assert across <= 1 or down <= 1, f"{text!r} lies over {other!r}"


# ------------------------------------------------------------------------------------------------- maps of embeddings

def test_encoders_stand_side_by_side_on_the_same_clips(draw, run, tiny):
    pages, rows, about = draw("--checkpoint", "untrained", run, "--data", tiny)
    assert len(rows) == 1 + 2 * about["clips"] and about["classes"] == 14
    first, second = ([r.split(",")[1] for r in rows[1:] if r.startswith(name)] for name in ("untrained", str(run)))
    assert first == second, "the same clips in the same order"
    assert set(about["panels"]) == {"untrained", str(run)} and "purity" in about["caption"]
    assert [len(axes_in(page)) for page in pages] == [2, 2]


@pytest.mark.parametrize("label", [[], ["--label", "individual"]])
def test_points_are_coloured_by_a_column_of_the_table(tiny, label):
    args = plot_tsne.parse_args(["--data", str(tiny), *label])
    name, split, labels = tsne.open_clips(args)
    assert len(labels) == len(split) and len(set(labels)) == 14
    assert all(("-" in text) == bool(label) for text in labels), "individuals are numbered"


def test_a_manifest_without_labels_is_coloured_by_its_source_and_cut_to_some_points(tiny):
    args = plot_tsne.parse_args(["--task", str(tiny / "pretrain.csv"), "--label", "source", "--points", "7"])
    _, split, labels = tsne.open_clips(args)
    assert len(split) == 7 and set(labels) == {"demo"}


def test_windows_with_no_or_several_labels_are_named_so():
    targets = np.array([[1, 0], [0, 0], [1, 1]], bool)
    assert tsne.own_labels(targets, ["owl", "wren"]) == ["owl", "(none)", "(several)"]


def test_a_map_depends_on_the_seed_alone():
    x = np.random.default_rng(0).standard_normal((40, 80)).astype(np.float32)
    a, b = (tsne.flatten(x, seed=1)[0] for _ in range(2))
    assert np.array_equal(a, b) and a.shape == (40, 2)
    assert tsne.flatten(x)[2]["perplexity"] == 13, "a third of 39"
    assert tsne.flatten(x)[2]["dimensions"] == 40


def test_separation_is_that_of_the_full_space():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(4), 25)
    apart = np.eye(8)[codes] + 0.05 * rng.standard_normal((100, 8))
    good, none = tsne.separation(apart, codes), tsne.separation(rng.standard_normal((100, 8)), codes)
    assert good["purity"] == 1 and good["silhouette"] > 0.8
    assert abs(none["purity"] - none["chance"]) < 0.06 and none["chance"] == pytest.approx(24 / 99)
    assert abs(none["silhouette"]) < 0.1
    same = tsne.separation(np.ones((30, 3)), np.repeat([0, 1], 15))
    assert 0 <= same["purity"] <= 1, "equal clips are no one's first neighbour"


@pytest.mark.parametrize("classes", [10, 60, 100])
def test_a_legend_of_any_size_is_readable(draw, monkeypatch, classes):
    """The clips are points in classes with names as long as those of animals."""
    n, rng = 240, np.random.default_rng(0)
    labels = np.array([f"Genus {'x' * (k % 12)} species-{k:03d}" for k in np.arange(n) % classes])
    rows = SimpleNamespace(path=lambda i: f"{i}.wav", start=np.zeros(n, int), __len__=lambda: n)
    split = SimpleNamespace(rows=type("Rows", (), {"path": staticmethod(rows.path), "start": rows.start,
                                                   "__len__": lambda self: n})())
    monkeypatch.setattr(tsne, "open_clips", lambda args: ("made up", split, labels))
    monkeypatch.setattr(tsne, "open_encoders", lambda args: {"one": None})
    monkeypatch.setattr(tsne, "vectors", lambda *a: {"one": rng.standard_normal((n, 6))})
    pages, _, about = draw("--perplexity", "5")
    names = [t.get_text() for t in pages[0].findobj(Text)]
    assert about["classes"] == classes
    assert sum(name[-3:].isdigit() for name in names) == min(classes, 79 if classes > 80 else 80)
    assert ("21 others" in names) == (classes == 100)
    looks = [tuple(style.look(k).values()) for k in range(style.LOOKS)]
    assert len(set(looks)) == style.LOOKS == 80


# ------------------------------------------------------------------------------------------------------ scaling

SIZES = np.array([25, 50, 100, 200, 400, 800])


def line_of(clips, values):
    return scaling.line([{"clips": n, "value": value} for n, value in zip(clips, values)])


def test_exact_points_give_the_exact_line():
    about, _ = line_of(SIZES, 0.1 + 0.05 * np.log10(SIZES))
    assert about["c"] == pytest.approx(0.1) and about["per_decade"] == pytest.approx(0.05)
    assert about["ci95"] == pytest.approx([0.05, 0.05]) and about["dof"] == 4


def test_the_band_and_the_slope_hold_the_truth_in_95_of_100_cases():
    rng, hits, slopes = np.random.default_rng(2), 0, 0
    for _ in range(200):
        about, band = line_of(SIZES, 0.3 + 0.05 * np.log10(SIZES) + 0.02 * rng.standard_normal(len(SIZES)))
        clips, middle, low, high = (edge[-1] for edge in band)
        assert clips == pytest.approx(800) and middle == pytest.approx((low + high) / 2)
        hits += low < 0.3 + 0.05 * np.log10(800) < high
        low, high = about["ci95"]
        slopes += low < 0.05 < high
    assert 180 <= hits <= 199 and 180 <= slopes <= 199  # 190 ± 3.1


@pytest.mark.parametrize("clips", [[100], [100, 100, 100, 100], [100, 200], [100, 100, 200]])
def test_fewer_than_three_sizes_have_no_line(clips):
    assert line_of(clips, np.arange(len(clips))) is None


def test_the_published_table_is_consistent():
    content = json.loads(scaling.PUBLISHED.read_text())
    for row in content["rows"]:
        assert row["protocol"] in content["protocols"] and row["source"] and row["all"]
        if row["protocol"] == "gpm-bt":
            mean = (5 * row["classification"] + 5 * row["detection"] + 2 * row["auxiliary"]) / 12
            assert abs(mean - row["all"]) < 0.001 and row["clips"] and row["mask"] in ("patch", "frame")
    assert sum(row["protocol"] == "gpm-bt" for row in content["rows"]) == 8


def test_the_papers_figure_is_drawn_from_the_table_alone(draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, rows, about = draw("--scaling", "--published")
    assert len(rows) == 1 + 8 * 4
    assert about["lines"]["all"]["GPM-BT patch"]["per_decade"] == pytest.approx(0.066, abs=1e-3)
    assert about["lines"]["all"]["GPM-BT frame"] is None


@pytest.fixture
def study(tmp_path):
    """study(sizes, seeds, masks) -> folder of runs as the documented loop leaves them, scores on a known law."""
    def make(sizes, seeds=(0,), masks=("patch",), tasks=("species", "individual")):
        for n, seed, mask in ((n, s, m) for n in sizes for s in seeds for m in masks):
            folder = tmp_path / "runs" / f"{mask}-{n}-s{seed}"
            folder.mkdir(parents=True)
            identity = {"recipe": "ssast", "masking": mask, "seed": seed, "init": None, "domain": None}
            score = 0.1 + 0.1 * np.log10(n) + 0.01 * (seed - 1) - 0.02 * (mask != "patch")
            folder.joinpath("config.json").write_text(json.dumps(
                {"identity": identity, "data": {"subset": str(n), "clips": n, "held_out": 48}}))
            folder.joinpath("log.jsonl").write_text(json.dumps({"step": 9, "valid_loss": 6 + 9 * n ** -0.5}) + "\n")
            rows = [{"task": task, "group": None, "probe": probe, "encoder": encoder, "metric": "accuracy",
                     "value": value, "ci95": [value - 0.04, value + 0.03], "chance": 0.1, "n_test": 100, "seed": 0}
                    for task in tasks for probe in ("knn", "ridge")
                    for encoder, value in ((str(folder), score), ("untrained", 0.2), ("mel statistics", 0.25))]
            folder.joinpath("knn.json").write_text(json.dumps({"results": rows}))
        return tmp_path / "runs"
    return make


def test_runs_are_drawn_with_intervals_over_seeds_and_the_held_out_loss(draw, study):
    runs = study([25, 50, 100, 200, 400], seeds=(0, 1, 2), masks=("patch", "frame"))
    _, rows, about = draw("--scaling", runs)
    assert about["probe"] == "knn"
    assert list(about["lines"]) == ["individual", "species", "mean of tasks", "held-out loss"]
    assert about["lines"]["mean of tasks"]["ssast patch"]["per_decade"] == pytest.approx(0.1)
    assert about["lines"]["held-out loss"]["ssast frame"]["per_decade"] < 0
    assert "interval of the mean over seeds" in about["caption"]
    assert sum(r.startswith("untrained") for r in rows) == 3, "baselines, once a column"


def test_intervals_are_over_seeds_where_there_are_several_and_over_test_clips_else(study):
    points, _ = scaling.run_points([study([25, 50], seeds=(0, 1, 2))])
    some = [p for p in points if p["column"] == "species" and p["clips"] == 25]
    assert [p["seed"] for p in some] == [0, 1, 2]
    [(clips, mean, low, high)] = scaling.over_seeds(some).T
    assert clips == 25 and high - mean == pytest.approx(4.303 * 0.01 / 3 ** 0.5, rel=1e-3)  # t(2) at 97.5 %
    [(_, mean, low, high)] = scaling.over_seeds(some[:1]).T
    assert (mean - low, high - mean) == pytest.approx((0.04, 0.03))
    [both] = [p for p in points if (p["column"], p["run"]) == ("mean of tasks", "patch-25-s0")]
    assert both["value"] - both["low"] == pytest.approx(0.04 / 2 ** 0.5), "of two independent tasks"


def test_seeds_of_a_probe_are_averaged_and_the_newest_file_counts(study):
    runs = study([25])
    folder = runs / "patch-25-s0"
    name = f"elsewhere/{folder.name}"
    rows = [{"task": "species", "group": None, "probe": "finetune", "encoder": name, "seed": seed,
             "value": 0.5 + 0.1 * seed, "ci95": [0.4 + 0.1 * seed, 0.7]} for seed in range(3)]
    old, new = folder / "a.json", folder / "finetune" / "b.json"
    new.parent.mkdir()
    (new.parent / "config.json").write_text('{"lr": 1}')  # of a fine-tuning, which is no run of its own
    for path, some, age in ((old, rows[:1], 100), (new, rows, 0)):
        path.write_text(json.dumps({"results": some}))
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    points, probe = scaling.run_points([runs])
    [point] = [p for p in points if p["column"] == "species" and p["clips"]]
    assert probe == "finetune", "the most telling probe that is there"
    assert [point[k] for k in ("value", "low", "high")] == pytest.approx([0.6, 0.5, 0.7])


def test_two_sizes_have_no_line_but_a_reason(draw, study):
    _, _, about = draw("--scaling", study([25, 50]), "--published")
    assert about["lines"]["mean of tasks"]["ssast patch"] is None
    assert "No line for" in about["caption"] and "ssast patch" in about["caption"]
    assert "GPM-BT patch, all: +0.066" in about["caption"], "the published points stand beside"


def test_a_run_without_one_of_the_tasks_has_no_mean(study, capsys):
    runs = study([25, 50, 100])
    path = runs / "patch-50-s0" / "knn.json"
    rows = [r for r in json.loads(path.read_text())["results"] if r["task"] != "species"]
    path.write_text(json.dumps({"results": rows}))
    points, _ = scaling.run_points([runs])
    assert {p["clips"] for p in points if p["column"] == "mean of tasks" and p["clips"]} == {25, 100}
    assert "patch-50-s0: no score of species, so none in species" in capsys.readouterr().err


def test_beans_groups_make_the_columns(study):
    runs = study([25], tasks=("watkins", "dcase", "esc50"))
    for path in runs.glob("*/knn.json"):
        content = json.loads(path.read_text())
        for row in content["results"]:
            row["group"] = {"watkins": "classification", "dcase": "detection", "esc50": "auxiliary"}[row["task"]]
        path.write_text(json.dumps(content))
    columns = dict.fromkeys(p["column"] for p in scaling.run_points([runs])[0])
    assert list(columns) == ["classification", "detection", "auxiliary", "all", "held-out loss"]


# --------------------------------------------------------------------------------------------------- what runs leave

def test_curves_show_every_part_of_the_loss_in_training_and_held_out(draw, run):
    _, rows, about = draw("--curves", run)
    assert {"loss", "nce", "mse", "lr", "clips_per_second"} <= set(about["quantities"])
    assert about["quantities"][0] == "loss" and about["quantities"][-1] == "clips_per_second"
    assert sum(",valid_loss," in r for r in rows) == 3 and sum(",loss," in r for r in rows) == 4


# ------------------------------------------------------------------------------------------- over time and frequency

def test_masks_of_a_run_are_drawn_in_hertz_and_seconds(draw, run, tiny):
    sound = next((tiny / "detection" / "audio").iterdir())
    pages, rows, about = draw("--masks", sound, "--checkpoint", run, "--start", "2")
    assert list(about["masks"]) == list(MASKS) and "25 × 4 tokens" in about["caption"]
    per_mask = {kind: [int(r.rsplit(",", 1)[1]) for r in rows if r.startswith(kind + ",")] for kind in MASKS}
    shares = {sum(hidden) / len(hidden) for hidden in per_mask.values()}
    assert len(shares) == 1 and abs(shares.pop() - 0.8) < 0.02, "all hide the same share, the run's"
    top = axes_in(pages[0])[0]
    assert top.get_ylabel() == "frequency (kHz)" and [t.get_text() for t in top.get_yticklabels()][-1] == "4"
    assert top.get_xlim() == pytest.approx((2, 6), abs=0.03)


def test_masks_are_those_of_training(draw, tmp_path):
    """Also of a clip shorter than the encoder's training length, of which so many columns as it has are shown."""
    soundfile.write(tmp_path / "short.wav", 0.1 * np.random.default_rng(0).standard_normal(16000), 16000)
    _, rows, about = draw("--masks", tmp_path / "short.wav", "--checkpoint", "ssast-laptop-patch", "--seed", "3")
    layout = load_encoder("ssast-laptop-patch").config
    hidden = draw_mask("group", 400 / 512, layout, torch.tensor([3]), torch.tensor([16000]))[0]
    drawn = [[int(value) for value in row.split(",")[1:]] for row in rows if row.startswith("group,")]
    assert len(drawn) == 7 * 4 and all(hidden[t, f] == value for t, f, value in drawn)
    assert not hidden[7:].any()


def test_raw_wave_encoders_are_drawn_over_a_spectrogram_for_people(draw, tiny):
    sound = next((tiny / "detection" / "audio").iterdir())
    _, rows, _ = draw("--masks", sound, "--checkpoint", "animal2vec-laptop")
    assert len(rows) == 1 + len(MASKS) * 200


def test_mel_bands_are_labelled_where_their_frequency_lies():
    encoder = load_encoder("ssast-laptop-patch", depth=1)
    config = encoder.config
    time = torch.arange(16000) / 16000
    for hertz in (500.0, 2000.0, 4000.0):
        loudest = int(encoder.frontend.spectrogram(torch.sin(2 * torch.pi * hertz * time)[None])[0].mean(1).argmax())
        assert abs(loudest - spectrograms.band(hertz, config)) < 1


def test_a_tone_lies_at_its_frequency_and_steady_noise_is_white():
    axes = style.Figure().add_subplot()
    rng, time = np.random.default_rng(0), np.arange(48000) / 48000
    wave = 0.01 * rng.standard_normal(48000) + np.sin(2 * np.pi * 6000 * time) * (np.abs(time - 0.5) < 0.1)
    image = spectrograms.power_image(axes, wave, 48000, 0.0)
    db, (_, right, low, high) = np.asarray(image.get_array()), image.get_extent()
    assert (low, high) == (0, 24) and abs(right - 1) < 0.03
    f, t = np.unravel_index(db.argmax(), db.shape)
    assert abs(f / len(db) * 24 - 6) < 0.2 and abs(t / db.shape[1] - 0.5) < 0.12
    assert abs(np.median(db[:, :10])) < 3, "no band stands out by its noise"


def test_detections_are_drawn_over_annotations(draw, tiny, tmp_path):
    first = json.loads((tiny / "detection" / "test.jsonl").read_text().splitlines()[0])
    event = first["annotations"][0]
    table = tmp_path / "found.csv"
    table.write_text("file,start,end,label,score,low,high\n"
                     f"{first['path']},{event['st']},{event['ed']},{event['label']},0.9,500,3000\n"
                     "another.wav,0,1,owl,0.5,,\n")
    annotations = tiny / "detection" / "test.jsonl"
    pages, rows, about = draw("--events", table, "--annotations", annotations, "--data", tiny / "detection",
                              "--seconds", "60")
    assert sum(r.startswith("detected") for r in rows) == 1, "another recording's events are left out"
    assert sum(r.startswith("annotated") for r in rows) == len(first["annotations"])
    assert about["recording"].endswith(first["path"])
    names = [t.get_text() for t in pages[1].findobj(Text)]
    assert event["label"] in names and "owl" not in names and "time (s)" in names


def test_a_table_without_a_name_is_drawn_over_the_recording_that_it_is_called_like(draw, tmp_path):
    (tmp_path / "tables").mkdir()
    for k, name in enumerate(("one", "two"), 1):
        soundfile.write(tmp_path / f"{name}.wav", np.random.default_rng(k).normal(0, 0.1, 32000), 16000)
        (tmp_path / "tables" / f"{name}.Table.1.selections.txt").write_text("0.2\t0.4\towl\n" * k)
    (tmp_path / "found.csv").write_text("file,start,end,label,score\none.wav,0,1,owl,0.1\ntwo.wav,0,1,owl,0.1\n")
    two = tmp_path / "tables" / "two.Table.1.selections.txt"
    for given, name, marked in ((two, "two", 2), (two.parent, "one", 1)):
        _, rows, about = draw("--events", tmp_path / "found.csv", "--annotations", given)
        assert about["recording"].endswith(f"{name}.wav") and sum(r.startswith("annotated") for r in rows) == marked


# ------------------------------------------------------------------------------------------------------ refusals

@pytest.mark.parametrize("arguments, message", [
    (["--published"], "--published belongs to --scaling"),
    (["--scaling", "nowhere"], "nowhere: no such folder of runs"),
    (["--scaling", "EMPTY"], "no runs in or below"),
    (["--scaling", "STUDY", "--probe", "linear"], "--probe linear: these results hold knn, ridge"),
    (["--curves", "EMPTY"], "log.jsonl: no such log"),
    (["--events", "nothing.csv"], "nothing.csv"),
    (["--checkpoint", "untrained"], "of which encoder"),
    (["--checkpoint", "nothing.pt"], "no such checkpoint"),
    (["--label", "colour", "--checkpoint", "ssast-laptop-patch"], "--label colour"),
    (["--masks", "SOUND", "--checkpoint", "a", "b"], "name one"),
    (["--masks", "SOUND", "--start", "99", "--checkpoint", "ssast-laptop-patch"], "s long"),
    (["--masks", "SOUND", "--curves", "x"], "not allowed with"),
    (["--perplexity", "-3"], "a number above 0"),
])
def test_a_mistake_is_one_line_with_the_remedy(tiny, study, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": tmp_path / "empty", "SOUND": next((tiny / "detection" / "audio").iterdir())}
    if any("STUDY" in a for a in arguments):
        places["STUDY"] = study([25])
    for name, place in places.items():
        arguments = [a.replace(name, str(place)) for a in arguments]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        plot_tsne.main([*arguments, "--data", str(tiny), "--workers", "0"])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "runs" / "figures").exists(), "nothing is left behind"


def test_out_may_name_the_file(run, tmp_path):
    plot_tsne.main(["--curves", str(run), "--out", str(tmp_path / "deep" / "mine.png")])
    assert (tmp_path / "deep" / "mine.png").is_file() and (tmp_path / "deep" / "mine.json").is_file()


def test_bars_of_events_are_as_dark_as_they_are_sure(tmp_path, monkeypatch):
    """A score of 0.04 is faint also where no other is surer."""
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(64000), 16000)
    (tmp_path / "found.csv").write_text("file,start,end,label,score\na.wav,0.5,1.0,wren,0.04\na.wav,2.0,2.5,wren,0.03\n")
    alphas, bars = [], Axes.broken_barh
    monkeypatch.setattr(Axes, "broken_barh", lambda *a, **k: alphas.append(k["alpha"]) or bars(*a, **k))
    plot_tsne.main(["--events", str(tmp_path / "found.csv"), "--recording", str(tmp_path / "a.wav"), "--out",
                    str(tmp_path / "e.png")])
    assert alphas and max(alphas) < 0.2
