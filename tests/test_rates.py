"""Any sample rate: bands at fixed hertz, positions in seconds, batches of several rates, every stage."""
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from test_audio import cropper

from wren.sound import audio
from wren.sound import loading
from wren.sound.opening import open_manifest
from wren.training import checkpoints, engine, processes, starting
import extract
import finetune
from wren.recipes.run import settings_for
import pretrain
from wren.cli import UserError
from wren.nets.positions import physical_positions
from wren.nets.spectrograms import OctaveFbank
from wren.sound.manifest import build
from model import Encoder, load_encoder, save_encoder
from wren.objectives import ATST, EAT, MAE, SSAST, Animal2Vec
from wren.recipes import PRESETS, any_rate, octave_band, octave_hertz

RATES = (8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000, 250000)


def small(name="ssast-laptop-patch", top=48000, **changes):
    torch.manual_seed(0)
    return Encoder(replace(any_rate(replace(PRESETS[name], depth=2, dim=32, heads=2), top), **changes)).eval()


def chirp(rate, seconds=2.0, low=600.0, high=3000.0):
    """A sweep with a soft start and end over weak low-pass noise, the same sound at any rate."""
    t = np.arange(round(rate * seconds)) / rate
    sweep = np.sin(2 * np.pi * (low * t + (high - low) * t ** 2 / (2 * seconds))) * np.sin(np.pi * t / seconds)
    hum = sum(np.sin(2 * np.pi * f * t + f) for f in np.linspace(50, 3300, 40)) / 400
    return (0.1 * sweep + hum).astype(np.float32)


def wave(rate, **more):
    return torch.from_numpy(chirp(rate, **more))[None]


# ----------------------------------------------------------------------------------------------------- front end

def test_the_band_axis_and_its_inverse_agree_and_octaves_are_rows():
    for hertz in (0, 30, 499, 500, 700, 4000, 125000):
        assert octave_hertz(octave_band(hertz)) == pytest.approx(hertz)
    assert [octave_band(500 * 2 ** k) for k in range(4)] == [12, 24, 36, 48]
    top = any_rate(PRESETS["ssast-laptop-patch"], 250000)
    assert [(top.at_rate(r).grid[1], top.at_rate(r).absent) for r in (8000, 16000, 32000, 48000, 250000)] == [
        (4, 0), (5, 0), (6, 0), (7, 5), (9, 1)]


@pytest.mark.parametrize("rate", RATES)
def test_a_sound_has_the_same_values_in_the_same_bands_at_every_rate(rate):
    config = any_rate(PRESETS["ssast-laptop-patch"], 250000)
    one, other = (OctaveFbank(config.at_rate(r))(wave(r)) for r in (32000, rate))
    bands, frames = int(octave_band(3300)), min(one.shape[2], other.shape[2])
    assert one.shape[2] == other.shape[2] == 198
    assert (one - other[:, :one.shape[1]] if one.shape[1] <= other.shape[1] else one[:, :other.shape[1]] - other)[
        :, :bands, :frames].abs().max() < 0.3  # nats, of values from -16 to 5


def test_frames_begin_at_exact_times_also_where_a_hop_is_no_whole_number_of_samples():
    fbank = OctaveFbank(any_rate(PRESETS["ssast-laptop-patch"], 48000).at_rate(22050))
    click = torch.zeros(1, 22050)
    click[0, round(0.75 * 22050)] = 1.0
    heard = torch.nonzero(fbank(click)[0].amax(0) > -10)[:, 0]
    assert abs((heard.float().mean() * 0.01 + 0.0125) - 0.75) < 0.003  # s; hops of 220 samples would be 1.5 ms early


def test_bands_above_nyquist_are_neither_heard_nor_silence():
    encoder = small()
    spec = encoder.frontend(wave(22050), rate=22050)
    assert encoder.config.at_rate(22050).absent == 7 and not spec[:, -7:].any()
    tokens = encoder.tokens(spec, rate=22050)
    with torch.no_grad():
        encoder.patch.absent += 1  # what stands there is learned, and reaches the tokens
    assert (encoder.tokens(spec, rate=22050) - tokens).abs().max() > 1e-3
    before = encoder.embed(wave(16000), rate=16000)
    with torch.no_grad():
        encoder.patch.absent -= 5
    assert torch.equal(encoder.embed(wave(16000), rate=16000), before)  # no band of 16 kHz is absent


def test_a_clip_and_its_decimated_copy_embed_alike():
    encoder = small(dim=64, heads=4, depth=4)
    high = torch.from_numpy(chirp(48000))[None]
    for rate in (24000, 16000, 12000):
        low = torch.from_numpy(audio.resample(high[0].numpy(), 48000, rate))[None]
        spec = [encoder.frontend(w, rate=r) for r, w in ((48000, high), (rate, low))]
        rows = encoder.config.at_rate(rate).grid[1]
        patches = [encoder.grid(s, rate=r)[0][:, :, :rows - 1] for r, s in zip((48000, rate), spec)]
        assert torch.nn.functional.cosine_similarity(*(p.flatten() for p in patches), 0) > 0.999


def test_a_share_of_the_clips_is_heard_at_lower_rates(corpus):
    rates = [p["rate"] for b in batches(corpus, any_rate=True, lower=1.0) for p in b["parts"] for _ in p["index"]]
    assert set(rates) <= {8000, 11025, 12000} and {11025, 12000} <= set(rates)  # 8 kHz is not halved
    some = [p["rate"] for b in batches(corpus, any_rate=True, lower=0.5) for p in b["parts"] for _ in p["index"]]
    assert 0.15 < np.mean([r in (11025, 12000) for r in some]) < 0.55


def test_positions_are_of_seconds_and_octaves_not_of_table_rows():
    config = any_rate(PRESETS["ssast-laptop-patch"], 48000)
    twice = replace(config, stride=(12, 8), patch=(12, 8))
    a, b = physical_positions(config, 64, "cpu"), physical_positions(twice, 64, "cpu")
    middle = (b[1:-1:2] + b[2::2]) / 2  # the middles of two short patches lie around that of the long one before
    assert a.shape == (25, 7, 64) and b.shape[0] == 50
    assert torch.allclose(a[..., :32], b[::2, :, :32]) and (middle - a[1:]).abs()[..., 40:48].max() < 0.5
    low = config.at_rate(8000)
    assert torch.equal(physical_positions(low, 64, "cpu"), a[:, :4])


def test_a_clip_alone_equals_the_clip_in_a_batch_at_every_rate():
    encoder = small()
    for rate in (8000, 22050, 48000):
        one, longer = chirp(rate, seconds=1.0), chirp(rate, seconds=2.5)
        batch, lengths = loading.pad_batch([one, longer])
        both = encoder.embed(batch, lengths, rate=rate)
        assert torch.allclose(both[0], encoder.embed(torch.from_numpy(one)[None], rate=rate)[0], atol=1e-5)
        assert torch.allclose(both[1], encoder.embed(torch.from_numpy(longer)[None], rate=rate)[0], atol=1e-5)


def test_a_fixed_rate_encoder_stays_what_it_is():
    torch.manual_seed(0)
    encoder = Encoder(replace(PRESETS["ssast-laptop-patch"], depth=1))
    assert encoder.config.at_rate(16000) is encoder.config
    assert not any("absent" in name for name in encoder.state_dict())


def test_the_raw_wave_follows_the_sample_rate_and_its_positions_are_in_seconds():
    encoder = small("animal2vec-laptop", top=16000, prenet=1)
    assert encoder.config.hop == 0.01 and encoder.config.at_rate(8000).hop == 0.02
    assert encoder.frames(wave(8000), rate=8000).shape[1] == 100 and encoder.frames(wave(16000)).shape[1] == 200
    filters = encoder.patch.sinc.filters(), encoder.patch.sinc.filters(8000)
    response = [torch.fft.rfft(f, 16 * 63)[5].abs().argmax() / (16 * 63) * r for f, r in zip(filters, (16000, 8000))]
    assert abs(response[0] - response[1]) < 200  # Hz


# ------------------------------------------------------------------------------------------------------ learning

@pytest.mark.parametrize("objective, name, settings", [
    (SSAST, "ssast-laptop-patch", dict(hidden=0.6)),
    (MAE, "dasheng-laptop", dict(decoder_dim=32, decoder_depth=1, decoder_heads=2)),
    (EAT, "eat-laptop", dict(clones=2, decoder_dim=32, decoder_depth=1, ema_steps=10)),
    (Animal2Vec, "animal2vec-laptop", dict(hidden=0.8, span=5, clones=2, decoder_dim=32, decoder_depth=1))])
def test_every_objective_that_can_learns_from_two_rates_with_one_set_of_weights(objective, name, settings):
    encoder = small(name, top=16000).train()
    module = objective(encoder, **settings)
    batches = [(rate, wave(rate, seconds=1.0).expand(3, -1), torch.arange(3)) for rate in (8000, 16000)]
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = sum(module(x, None, seeds, rate=rate)[0] for rate, x, seeds in batches)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    if hasattr(encoder.patch, "absent"):
        assert encoder.patch.absent.grad is not None


def test_absent_pixels_take_no_part_in_the_loss():
    for objective in (SSAST(small(top=22050), loss="mse"), MAE(small(top=22050), decoder_dim=32, decoder_heads=2)):
        spec = objective.encoder.frontend(wave(22050))
        mask = torch.zeros(1, 25, 6, dtype=torch.bool)[:, :objective.encoder.config.columns(spec.shape[2])]
        mask[:, ::2] = True
        other = spec.clone()
        other[:, -7:] = 3.0
        losses = [objective(x, mask=mask)[0].item() for x in (spec, other)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_views_that_stretch_the_frequency_axis_are_refused():
    with pytest.raises(ValueError, match="stretch the frequency axis"):
        ATST(small("atst-laptop", top=16000), view_seconds=2.0)


# ------------------------------------------------------------------------------------------------------- batches

@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two species at three rates: unlabelled, and as a task."""
    folder, rng = tmp_path_factory.mktemp("rates"), np.random.default_rng(0)
    rows = []
    for k in range(24):
        rate, label = (8000, 22050, 48000)[k % 3], "up down".split()[k // 3 % 2]
        x = chirp(rate, seconds=1.5) if label == "up" else chirp(rate, seconds=1.5)[::-1]
        soundfile.write(folder / f"{k}.wav", x + 0.01 * rng.standard_normal(len(x)), rate)
        rows.append((f"{k}.wav", label, rate))
    task = folder / "task"
    task.mkdir()
    for split, some in (("train", rows[:12]), ("valid", rows[12:18]), ("test", rows[18:])):
        (task / f"{split}.csv").write_text("path,label\n" + "".join(f"../{p},{label}\n" for p, label, _ in some))
    (folder / "all.csv").write_text("path,sample_rate\n" + "".join(f"{p},{rate}\n" for p, _, rate in rows))
    return folder


def batches(folder, any_rate=False, lower=0.0, **more):
    rows = open_manifest(folder / "all.csv")
    return list(loading.Loader(rows, cropper(1.0, 24000, any_rate=any_rate, lower=lower), 8, steps=6, **more))


def test_batches_of_any_rate_hold_the_clips_of_the_fixed_order_cut_by_rate(corpus):
    fixed, cut = batches(corpus), batches(corpus, any_rate=True)
    for one, several in zip(fixed, cut):
        parts = several["parts"]
        assert sorted(torch.cat([p["index"] for p in parts]).tolist()) == sorted(one["index"].tolist())
        assert [p["rate"] for p in parts] == sorted({p["rate"] for p in parts}) and len(parts) > 1
        assert all(p["wave"].shape[1] == p["rate"] for p in parts)  # one second
    assert {p["rate"] for b in cut for p in b["parts"]} == {8000, 22050, 24000}  # 48 kHz is above the limit


def test_workers_and_processes_change_nothing_at_any_rate(corpus):
    alone = batches(corpus, any_rate=True)
    halves = [batches(corpus, any_rate=True, workers=1, rank=r, world=2) for r in range(2)]
    for whole, *parts in zip(alone, *halves):
        found = {int(i): (p["rate"], w) for b in parts for p in b["parts"] for i, w in zip(p["index"], p["wave"])}
        for p in whole["parts"]:
            for i, w in zip(p["index"].tolist(), p["wave"]):
                assert found[i][0] == p["rate"] and torch.equal(found[i][1], w)


def test_a_partner_for_mixing_has_the_rate_of_its_clip(corpus):
    for batch in batches(corpus, any_rate=True, partner=True):
        assert all(p["partner"].shape == p["wave"].shape for p in batch["parts"])


# -------------------------------------------------------------------------------------------------------- stages

@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "any"
    pretrain.main(["--data", str(corpus / "all.csv"), "--recipe", "ssast", "--rate", "any", "--clip-seconds",
                   "1.28", "--steps", "4",
                   "--batch-size", "8", "--valid", "3", "--hidden", "0.6", "--workers", "0", "--out", str(out)])
    return out


def test_pre_training_hears_each_recording_at_its_own_rate_and_resumes(trained, corpus):
    config = load_encoder(trained).config
    assert (config.rate, config.sample_rate, config.frontend, config.n_mels) == ("any", 48000, "octave", 84)
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert np.isfinite([row["valid_loss"] for row in rows if "valid_loss" in row]).all()
    (trained / "DONE").unlink()
    before = checkpoints.load_checkpoint(trained)["objective"]["encoder.patch.weight"]
    pretrain.main(["--data", str(corpus / "all.csv"), "--recipe", "ssast", "--rate", "any", "--clip-seconds",
                   "1.28", "--steps", "6",
                   "--batch-size", "8", "--valid", "3", "--hidden", "0.6", "--workers", "0", "--out", str(trained),
                   "--extend"])
    assert not torch.equal(checkpoints.load_checkpoint(trained)["objective"]["encoder.patch.weight"], before)


def test_micro_batches_change_nothing_at_any_rate(corpus):
    states = []
    for micro in (2, 8):
        encoder = small(top=24000, frames=100).train()
        objective = SSAST(encoder, hidden=0.5)
        procs = processes.Processes(0, 1, torch.device("cpu"))
        optimizer = engine.make_optimizer(objective, lr=1e-3)
        trainer = engine.Trainer(objective, optimizer, procs, batch_size=8, micro_batch=micro, steps=2, warmup=0)
        states.append([trainer.train(batch) for batch in batches(corpus, any_rate=True)[:2]])
    for one, other in zip(*states):
        assert all(one[k] == pytest.approx(other[k], rel=1e-4) for k in ("loss", "mse", "nce", "grad_norm", "count"))


def test_evaluation_of_mixed_rates_gives_what_each_clip_alone_gives(trained, corpus):
    from wren.probing.embeddings import vectors
    from wren.tasks import load_task
    encoder, split = load_encoder(trained), load_task(corpus / "task").splits["train"]
    together = vectors({"": encoder}, split, batch_size=12)[""]
    for i in (0, 1, 2):
        rate = split.rows.rate(i)
        alone = encoder.embed(torch.from_numpy(split.read(i))[None], rate=rate).detach()[0].numpy()
        assert np.abs(together[i] - alone).max() < 1e-4


def test_extraction_keeps_the_native_rate_and_fine_tuned_models_score_it(trained, corpus, tmp_path, capsys):
    extract.main([str(corpus / "all.csv"), "--checkpoint", str(trained), "--out", str(tmp_path / "emb"),
                  "--granularity", "frame", "--workers", "0"])
    assert len(np.load(tmp_path / "emb" / "0.npy")) == len(np.load(tmp_path / "emb" / "2.npy")) == 10  # of 160 ms
    finetune.main(["--checkpoint", str(trained), "--task", str(corpus / "task"), "--steps", "4", "--batch-size", "6",
                   "--workers", "0", "--out", str(tmp_path / "tuned"), "--lr", "1e-3"])
    extract.main([str(corpus / "1.wav"), "--predict", "--checkpoint", str(tmp_path / "tuned" / "task"),
                  "--out", str(tmp_path / "scores"), "--workers", "0"])
    assert "up  " in capsys.readouterr().out


def test_hear_is_given_the_highest_of_its_rates_that_the_encoder_hears():
    from wren.recordings import hear
    models = [hear.Model(small(top=top)) for top in (250000, 16000)]
    assert [model.sample_rate for model in models] == [48000, 16000]
    assert hear.get_scene_embeddings(wave(48000), models[0]).shape == (1, models[0].scene_embedding_size)


def test_the_encoder_file_keeps_the_rates(tmp_path):
    encoder = small(top=96000)
    save_encoder(encoder, tmp_path / "encoder.pt")
    again = load_encoder(tmp_path / "encoder.pt")
    assert again.config == encoder.config
    assert torch.equal(again.embed(wave(8000), rate=8000), encoder.embed(wave(8000), rate=8000))


@pytest.mark.parametrize("flags, complaint", [
    (["--hidden", "40"], "give a share"),
    (["--recipe", "atst"], "stretch the frequency axis")])
def test_settings_that_make_no_sense_at_any_rate_are_one_line(corpus, tmp_path, flags, complaint):
    with pytest.raises(UserError, match=complaint):
        pretrain.main(["--data", str(corpus / "all.csv"), "--recipe", "ssast", "--rate", "any", "--steps", "2",
                       "--batch-size", "8",
                       "--valid", "3", "--workers", "0", "--out", str(tmp_path / "run"), *flags])
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_manifest_without_rates_is_refused_with_the_remedy(corpus, tmp_path):
    rows = build(["0.wav", "1.wav"], bases=(str(corpus),))
    with pytest.raises(UserError, match="data.py index"):
        starting.encoder_config(settings_for(given={"rate": "any"}), rows, None)


# ------------------------------------------------------------------------------------------------------- streams

MOTION = ("motion", 8, (0.0, 0.0, 1.0), (1.0, 1.0, 2.0))  # 50 Hz in columns of 160 ms


def motion(n=3, seed=0):
    return torch.randn(n, 3, 100, generator=torch.Generator().manual_seed(seed))  # 2 s


def listener(**changes):
    return small(top=16000, frames=208, streams=(MOTION,), **changes)


def test_a_stream_is_one_more_row_of_tokens_and_a_missing_one_changes_nothing_else():
    encoder = listener()
    assert encoder.config.grid == (13, 6) and encoder.config.stream_rates == (("motion", 3, 50.0),)
    streams = motion()
    streams[1] = float("nan")
    sound = wave(16000).expand(3, -1)
    both, alone = encoder.embed(sound, streams={"motion": streams}), encoder.embed(sound)
    assert torch.allclose(both[1], alone[1], atol=1e-5)  # its stream is missing: neither attended nor pooled
    assert (both[0] - alone[0]).abs().max() > 1e-3 and (both[0] - both[2]).abs().max() > 1e-3
    assert torch.isfinite(both).all()


def test_an_encoder_can_hear_the_sound_alone_or_the_streams_alone():
    torch.manual_seed(0)
    encoders = {hear: listener(inputs=hear) for hear in ("all", "sound", "streams")}
    out = {}
    for hear, encoder in encoders.items():
        out[hear] = [encoder.embed(w, streams={"motion": m}) for w, m in (
            (wave(16000), motion(1)), (wave(16000, high=1000.0), motion(1)), (wave(16000), motion(1, seed=1)))]
    same = {hear: [torch.allclose(x[0], x[k], atol=1e-5) for k in (1, 2)] for hear, x in out.items()}
    assert same == {"all": [False, False], "sound": [False, True], "streams": [True, False]}


def test_windows_of_longer_clips_get_their_own_stretch_of_a_stream():
    encoder = listener(pool="mean")  # windows of equal weight
    x, m = wave(16000, seconds=4.16), torch.randn(1, 3, 208)
    whole = encoder.embed(x, streams={"motion": m})
    halves = [encoder.embed(x[:, 320 * k:320 * k + 33280], streams={"motion": m[..., k:k + 104]}) for k in (0, 104)]
    assert torch.allclose(whole, (halves[0] + halves[1]) / 2, atol=1e-4)


@pytest.mark.parametrize("objective", [lambda e: SSAST(e, hidden=0.6, loss="mse"),
                                       lambda e: MAE(e, decoder_dim=32, decoder_depth=1, decoder_heads=2)])
def test_streams_are_predicted_from_the_sound_that_goes_with_them(objective):
    """What moves is told by the pitch: with streams hidden, the sound is all there is to predict them from."""
    encoder = listener(dim=64, heads=4).train()
    module = objective(encoder)
    low, high = wave(16000, high=700.0), wave(16000, low=2500.0)
    sound = torch.cat([low, high])
    moves = torch.cat([-torch.ones(1, 3, 104), torch.ones(1, 3, 104)]) * torch.linspace(-1, 1, 8).repeat(13)
    missing = torch.full_like(moves, float("nan"))
    hidden = torch.zeros(2, 13, 6, dtype=torch.bool)
    hidden[:, :, 5] = True
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, metrics = module(sound, mask=hidden, streams={"motion": moves})
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0] and metrics["count"] == 26
    hidden[:, :, 1:] = True
    assert module(sound, mask=hidden, streams={"motion": missing})[1]["count"] == 2 * 13 * 4


def test_recipes_that_do_not_learn_from_streams_say_so():
    with pytest.raises(ValueError, match="ssast and the masked autoencoders"):
        EAT(small("eat-laptop", top=16000, frames=208, streams=(MOTION,)))


@pytest.fixture(scope="module")
def collars(corpus):
    """The corpus with a stream beside two thirds of its clips."""
    rng, header = np.random.default_rng(1), "path,sample_rate,stream:motion\n"
    for k in range(24):
        np.save(corpus / f"{k}.npy", np.column_stack([np.arange(80) / 50, rng.standard_normal((80, 3))]))
    text = "".join(f"{k}.wav,{(8000, 22050, 48000)[k % 3]},{'' if k % 3 == 1 else f'{k}.npy'}\n" for k in range(24))
    (corpus / "collars.csv").write_text(header + text)
    task = corpus / "collars"
    task.mkdir()
    for split, rows in (("train", range(12)), ("valid", range(12, 18)), ("test", range(18, 24))):
        (task / f"{split}.csv").write_text("path,label,stream:motion\n" + "".join(
            f"../{k}.wav,{'up down'.split()[k // 3 % 2]},{'' if k % 3 == 1 else f'../{k}.npy'}\n" for k in rows))
    return corpus


def test_streams_go_through_pre_training_evaluation_and_fine_tuning(collars, tmp_path):
    import evaluate
    run, task = tmp_path / "run", str(collars / "collars")
    pretrain.main(["--data", str(collars / "collars.csv"), "--recipe", "ssast", "--rate", "any", "--streams",
                   "motion:50", "--clip-seconds",
                   "1.28", "--steps", "3", "--batch-size", "8", "--valid", "3", "--hidden", "0.6", "--workers", "0",
                   "--out", str(run)])
    (name, values, mean, scale), = load_encoder(run).config.streams
    assert (name, values, len(mean)) == ("motion", 8, 3) and all(0.7 < s < 1.3 for s in scale)
    for hear in ("all", "sound", "streams"):
        evaluate.main(["--knn", "--attentive", "--checkpoint", str(run), "--task", task, "--inputs", hear, "--cache",
                       str(tmp_path / "cache"), "--workers", "0", "--json", str(tmp_path / f"{hear}.json")])
    scores = [json.loads((tmp_path / f"{hear}.json").read_text())["results"][0] for hear in ("all", "sound", "streams")]
    assert all(0 <= row["value"] <= 1 for row in scores)
    finetune.main(["--checkpoint", str(run), "--task", task, "--steps", "3", "--batch-size", "6", "--workers", "0",
                   "--out", str(tmp_path / "tuned"), "--lr", "1e-3", "--patch-drop", "0"])
    assert (tmp_path / "tuned" / "collars" / "finetuned.pt").exists()


def test_a_stream_is_left_out_of_a_share_of_the_clips_by_their_seed(collars):
    rows = open_manifest(collars / "collars.csv")
    rows = rows.select(np.flatnonzero(np.arange(24) % 3 != 1))
    all_there, dropped = (cropper(1.28, 24000, streams=[("motion", 3, 50.0)], stream_drop=share) for share in (0, 0.4))
    missing = [b["streams"]["motion"].isnan().all((1, 2)) for b in loading.Loader(rows, dropped, 16, steps=4)]
    assert 0.2 < torch.cat(missing).float().mean() < 0.6
    again = loading.Loader(rows, dropped, 16, steps=4, workers=1)
    again = [b["streams"]["motion"].isnan().all((1, 2)) for b in again]
    assert all(torch.equal(a, b) for a, b in zip(missing, again))
    assert not any(b["streams"]["motion"].isnan().all() for b in loading.Loader(rows, all_there, 16, steps=4))


def test_streams_of_mixed_clips_are_mixed_as_their_sound_and_labels_are(collars):
    from wren.sound.loading import Sampling
    from wren.tasks import load_task
    from wren.tasks.batches import LabelledLoader
    split = load_task(collars / "collars").splits["train"]
    sampling = Sampling(48000, True, streams=[("motion", 3, 50.0)])
    plain, mixed = ([part for batch in LabelledLoader(split, sampling, 2, 12, 0, mixup=share, steps=2)
                     for part in batch["parts"]] for share in (0.0, 1.0))
    for one, other in zip(plain, mixed):
        missing = other["streams"]["motion"].isnan().all((1, 2))
        assert missing.sum() >= one["streams"]["motion"].isnan().all((1, 2)).sum()  # if either has none
        together = ~missing & ~one["streams"]["motion"].isnan().all((1, 2))
        n = min(x["streams"]["motion"].shape[2] for x in (one, other))
        apart = (one["streams"]["motion"] - other["streams"]["motion"][..., :n])[together].nan_to_num().abs()
        assert not together.any() or apart.amax((1, 2)).min() > 0.01


@pytest.mark.parametrize("flags, complaint", [
    (["--streams", "motion:50"], "give --rate any too"),
    (["--rate", "any", "--streams", "depth:1"], "has the streams motion"),
    (["--rate", "any", "--streams", "motion"], "give NAME:HZ")])
def test_stream_settings_that_make_no_sense_are_one_line(collars, tmp_path, flags, complaint):
    with pytest.raises(UserError, match=complaint):
        pretrain.main(["--data", str(collars / "collars.csv"), "--steps", "2", "--batch-size", "8", "--valid", "3",
                       "--workers", "0", "--out", str(tmp_path / "run"), *flags])


def test_a_probe_can_be_fitted_at_one_rate_and_tested_at_another(collars, tmp_path, capsys):
    import evaluate
    run = tmp_path / "encoder.pt"
    save_encoder(small(top=48000), run)
    flags = ["--knn", "--checkpoint", str(run), "--cache", str(tmp_path / "cache"), "--workers", "0", "--json",
             str(tmp_path / "out.json")]
    evaluate.main([*flags, "--task", str(collars / "collars"), "--fit", str(collars / "task")])
    assert json.loads((tmp_path / "out.json").read_text())["results"]
    cosines = capsys.readouterr().out.partition("cosine of a clip and its copy in task (of other clips): ")[2]
    assert re.findall(r"(-?\d\.\d+) \(", cosines) == 2 * ["1.000"]  # the clips are the same
    (collars / "other").mkdir(exist_ok=True)
    for split in ("train", "valid", "test"):
        (collars / "other" / f"{split}.csv").write_text("path,label\n../0.wav,left\n../1.wav,right\n")
    with pytest.raises(UserError, match="labels are not those of"):
        evaluate.main([*flags, "--task", str(collars / "task"), "--fit", str(collars / "other")])


def test_figures_show_a_recording_at_its_own_rate(trained, corpus, tmp_path):
    import plot_tsne
    plot_tsne.main(["--masks", str(corpus / "1.wav"), "--checkpoint", str(trained), "--out", str(tmp_path)])
    about = json.loads((tmp_path / "masks.json").read_text())
    assert "of its 8 × 6 tokens" in about["caption"]  # 22.05 kHz: six octaves, not the seven of 48 kHz


def test_rows_that_a_rate_lacks_and_streams_that_are_missing_are_0_in_vectors_of_rows():
    encoder = small(top=48000, frames=208, streams=(MOTION,), pool="rows")
    vector = encoder.embed(wave(8000), rate=8000).unflatten(1, (2, 8, -1))[0]  # 7 octaves and the stream
    assert vector[:, :4].any() and not vector[:, 4:].any()
    beside = encoder.embed(wave(8000), rate=8000, streams={"motion": motion(1)}).unflatten(1, (2, 8, -1))[0]
    assert beside[:, 7].any() and not beside[:, 4:7].any()
