"""The query head: scores at any times, that depend on what is heard there and on nothing else."""
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import extract
import finetune
from wren.training import heads
from wren.probing import scoring
from wren.tasks.annotations import Event
from wren.cli import UserError
from wren.probing.metrics import decode_events
from model import Encoder
from wren.recipes import PRESETS

FAMILIES = ("ssast-laptop-patch", "ssast-laptop-frame", "dasheng-laptop", "eat-laptop", "atst-laptop",
            "animal2vec-laptop")


def detector(preset="ssast-laptop-patch", resolution=0.01, labels=("a", "b"), seconds=1.0, **changes):
    """A query head, random weights, on a small encoder that hears so many seconds at a time."""
    torch.manual_seed(0)
    config = PRESETS[preset]
    config = replace(config, **dict(dim=32, depth=2, heads=2, prenet=0, frames=round(seconds / config.hop)) | changes)
    model = heads.FineTuned(Encoder(config), labels, "sigmoid", "query", resolution=resolution).eval()
    torch.nn.init.normal_(model.frame_head.out.linear.weight)  # else scores hardly differ
    return model


def noise(*shape, level=0.1):
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("seconds", [0.3, 0.87, 2.6])
@pytest.mark.parametrize("preset", FAMILIES)
def test_a_clip_has_the_same_scores_alone_and_padded_in_a_batch(preset, seconds):
    model = detector(preset)
    rate = model.encoder.config.sample_rate
    n, wave = round(seconds * rate), noise(3, 3 * rate)
    with torch.inference_mode():
        together = model.frame_scores(wave, torch.tensor([3 * rate, n, rate]))
        alone = model.frame_scores(wave[1:2, :n])
    frames = round(100 * seconds)
    assert alone.shape == (1, frames, 2) and together.shape == (3, 300, 2) and alone.std() > 0.01
    assert torch.allclose(together[1, :frames], alone[0], atol=1e-4) and not together[1, frames:].any()


def test_padding_is_never_attended():
    head, times = detector().frame_head, torch.linspace(0, 0.8, 50)[None]
    tokens, middles = noise(1, 7, 4, 32, level=1), (torch.arange(7) + 0.5) * 0.16
    keep = torch.arange(7)[None] < 5
    loud = torch.where(keep[..., None, None], tokens, 1e3 * torch.randn(7, 4, 32))
    with torch.inference_mode():
        cut = head(tokens[:, :5], middles[:5], times)
        assert torch.allclose(head(loud, middles, times, keep), cut, atol=1e-5)
        assert not torch.allclose(head(loud, middles, times), cut, atol=1e-2), "it would matter"


def test_any_number_of_times_can_be_asked_for_and_each_has_its_own_answer(monkeypatch):
    model, wave = detector(), noise(2, 16000)
    with torch.inference_mode():
        every = model(wave)[1]
        some = torch.tensor([[3, 50, 99], [0, 1, 2]])
        assert torch.allclose(model(wave, queries=some)[1], every.gather(1, some[..., None].expand(-1, -1, 2)), atol=1e-5)
        model.resolution = 0.002
        fine = model.frame_scores(wave)
        assert fine.shape[1] == 500 and model.frame_seconds == 0.002
        assert torch.allclose(fine[:, 2::5], every.sigmoid(), atol=1e-4), "the same times, the same scores"


@pytest.mark.parametrize("preset", FAMILIES)
def test_times_stay_right_where_windows_are_joined(preset):
    """The third window of a long clip has, away from the seams, the scores that it has as a clip of its own."""
    model = detector(preset, seconds=2.0, chunk=0, floor_db=0.0)  # floors are of whole clips
    decibels = model.encoder.config.frontend == "mel-db"  # cut as spectrograms, whose ends see what comes next
    wave = noise(1, 8 * model.encoder.config.sample_rate)
    third = wave.chunk(4, 1)[2]
    with torch.inference_mode():
        joined, alone = model.frame_scores(wave)[0, 400:600], model.frame_scores(third)[0]
    assert torch.allclose(joined[50:-55], alone[50:-55], atol=0.03 if decibels else 0.01) and alone[50:-55].std() > 0.1


def test_a_query_is_told_how_far_a_token_is_and_not_when_it_is():
    head, tokens = detector().frame_head, noise(1, 7, 4, 32, level=1)
    middles, times = (torch.arange(7) + 0.5) * 0.16, torch.linspace(0, 1.1, 60)[None]
    with torch.inference_mode():
        now = head(tokens, middles, times)
        assert torch.allclose(head(tokens, middles + 32, times + 32), now, atol=0.05)
        assert (head(tokens, middles, times + 0.005) - now).abs().max() > 0.5, "5 ms are not nothing"


def test_what_is_saved_scores_as_before_at_its_resolution(tmp_path):
    model, wave = detector(resolution=0.004), noise(1, 20000)
    heads.save(model, tmp_path / "finetuned.pt")
    again = heads.load(tmp_path / "finetuned.pt")
    assert (again.kind, again.frame_seconds) == ("query", 0.004)
    with torch.inference_mode():
        assert torch.equal(again.frame_scores(wave), model.frame_scores(wave))


def test_the_times_that_are_trained_are_a_clip_s_own_whatever_its_batch():
    model, wave = detector(), noise(4, 16000)
    objective = heads.Supervised(model, "focal", queries=16)
    lengths, seeds = torch.tensor([16000, 9000, 16000, 400]), torch.tensor([5, 6, 7, 8])
    target, frames = torch.zeros(4, 2), (noise(4, 100, 2) > 0).float()
    with torch.inference_mode():
        together = objective(wave, lengths, seeds, target, frames)[1]["frame_loss"]
        alone = [objective(wave[i:i + 1], lengths[i:i + 1], seeds[i:i + 1], target[i:i + 1], frames[i:i + 1])[1]
                 for i in range(4)]
        other = objective(wave, lengths, seeds + 1, target, frames)[1]["frame_loss"]
    assert together.item() == pytest.approx(np.mean([row["frame_loss"].item() for row in alone]), rel=1e-4)
    assert other != together, "another seed, other times"


def test_onsets_within_a_token_are_learned_to_a_few_milliseconds():
    """A batch of noises that begin and end anywhere: token columns are 160 ms apart, scores 5 ms."""
    rng, truth, wave = np.random.default_rng(0), [], 0.001 * np.random.default_rng(1).standard_normal((12, 16000))
    for k in range(12):
        start, end = np.array([0.1, 0.5]) + rng.uniform(0, 0.3, 2)
        wave[k, round(start * 16000):round(end * 16000)] += 0.3 * rng.standard_normal(
            round(end * 16000) - round(start * 16000))
        truth.append(Event(str(k), start, end, "a"))
    model = detector(resolution=0.005, labels=["a"], dim=64)
    middles = (np.arange(200) + 0.5) * 0.005
    frames = torch.tensor([[[float(e.start <= t < e.end)] for t in middles] for e in truth])
    wave, objective = torch.from_numpy(wave).float(), heads.Supervised(model.train(), "focal")
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(80):
        loss = objective(wave, None, torch.arange(12) + 12 * step, torch.ones(12, 1), frames)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        scores = model.eval().frame_scores(wave).numpy()
    parts = [(e.file, s, np.arange(200) * 0.005, np.arange(1, 201) * 0.005) for e, s in zip(truth, scores)]
    row = scoring.event_results(parts, ["a"], [0.5], truth)
    assert row["event_f1"] == 1 and row["collar_f1"] > 0.9
    assert row["onset_error_ms"] < 6 and row["offset_error_ms"] < 6


def test_errors_of_onsets_and_offsets_and_the_narrow_collar_are_what_they_are_called():
    starts = np.arange(400) * 0.005
    on = ((starts >= 0.1) & (starts < 0.5)) | ((starts >= 0.8) & (starts < 1.0)) | ((starts >= 1.5) & (starts < 1.6))
    parts = [("f", on[:, None].astype(float), starts, starts + 0.005)]
    truth = [Event("f", 0.11, 0.57, "x"), Event("f", 0.825, 1.0, "x"), Event("f", 1.5, 1.635, "x")]
    row = scoring.event_results(parts, ["x"], [0.5], truth)
    assert row["onset_error_ms"] == pytest.approx(10) and row["offset_error_ms"] == pytest.approx(35)
    assert row["collar_f1"] == pytest.approx(1 / 3), "70 of 460 ms are in 20 %, 25 ms and 35 of 135 ms are too many"
    nothing = scoring.event_results(parts, ["x"], [2.0], truth)
    assert nothing["onset_error_ms"] is None


def test_frames_of_5_ms_are_joined_over_gaps_and_dropped_by_length_in_seconds():
    starts = 3.2 + np.arange(600) * 0.005
    score = np.zeros((600, 1))
    for low, high in ((20, 60), (100, 140), (181, 221), (300, 308)):  # gaps of 200, 205 and 395 ms; 40 ms long
        score[low:high] = 1
    found = decode_events(score, starts, starts + 0.005, ["x"], gap=0.2, minimum=0.05)
    assert [(round(e.start, 6), round(e.end, 6)) for e in found] == [(3.3, 3.9), (4.105, 4.305)]


@pytest.mark.parametrize("arguments, message", [
    (["--head", "query"], "no onsets"), (["--task", "detection", "--resolution", "0.005"], "--head frames"),
    (["--task", "detection", "--head", "query", "--roll"], "no onset"),
    (["--task", "detection", "--head", "query", "--resolution", "5"], "give seconds"),
    (["--task", "detection", "--head", "query", "--resolution", "0"], "is not a number above 0")])
def test_a_users_mistake_is_one_line_and_nothing_is_written(tiny, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        finetune.main(["--checkpoint", "ssast-laptop-patch", "--workers", "0", "--data", str(tiny), "--out",
                       str(tmp_path / "out"), *arguments])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_fine_tuning_with_queries_ends_with_a_detector_that_extract_asks_at_another_step(tiny, tmp_path, capsys):
    finetune.main(["--checkpoint", "ssast-laptop-patch", "--workers", "0", "--data", str(tiny), "--task", "detection",
                   "--head", "query", "--resolution", "0.02", "--steps", "2", "--out", str(tmp_path)])
    path = tmp_path / "detection" / "finetuned.pt"
    assert heads.load(path).frame_seconds == 0.02 and "median error of onsets" in capsys.readouterr().out
    soundfile.write(tmp_path / "a.wav", noise(3 * 16000).numpy(), 16000)
    arguments = [str(tmp_path / "a.wav"), "--checkpoint", str(path), "--workers", "0", "--out", str(tmp_path / "out")]
    tracks = {}
    for step in (0.02, 0.005):
        args = extract.parse_args([*arguments, "--events", "csv", "--resolution", str(step)])
        model, _ = extract.open_model(args, {})
        run = extract_run(model, args)
        (_, scores, starts, ends), = extract.score_tracks(run)
        assert np.allclose(np.diff(starts), step) and len(scores) == round(3 / step) and ends[-1] == pytest.approx(3)
        tracks[step] = scores
    assert np.abs(tracks[0.02] - (tracks[0.005][1::4] + tracks[0.005][2::4]) / 2).max() < 0.05, "the same course"
    extract.main([*arguments, "--events", "csv", "--resolution", "0.005"])
    with pytest.raises(UserError, match="--resolution is of events"):
        extract.main([*arguments, "--predict", "--resolution", "0.005"])
    model = heads.FineTuned(Encoder(PRESETS["ssast-laptop-patch"]), ["a"], "sigmoid", "frames")
    heads.save(model, path)
    with pytest.raises(UserError, match="scores every 0.16 s"):
        extract.main([*arguments, "--events", "csv", "--resolution", "0.005"])


def extract_run(model, args):
    from wren.recordings.windows import Recordings, Run
    return Run(model, Recordings(args.audio), torch.device("cpu"), torch.inference_mode, workers=0)
