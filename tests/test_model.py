"""The front end, the encoder's invariances, and parity with SSAST and AST."""
from dataclasses import replace

import pytest
import torch
import torchaudio

import model
from wren import formats
from wren.cli import UserError
from wren.nets.batchnorm import BatchNorm
from wren.nets.spectrograms import LOG_FLOOR, KaldiFbank, mel_filters
from wren.nets.wave import conv_time
from model import Encoder, load_encoder, save_encoder
from wren.recipes import PRESETS, EncoderConfig

SMALL = EncoderConfig(name="small", n_mels=64, frames=100, dim=32, depth=2, heads=2)


def noise(*shape, seed=0, level=0.1):
    return level * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kaldi(wave, config, dtype=torch.float32):
    """torchaudio's published front end, clip by clip, as SSAST calls it."""
    rows = [torchaudio.compliance.kaldi.fbank(
        (w - w.mean())[None].to(dtype), htk_compat=True, sample_frequency=config.sample_rate, use_energy=False,
        window_type="hanning", num_mel_bins=config.n_mels, dither=0.0, frame_shift=config.hop * 1000,
        frame_length=config.window * 1000) for w in wave]
    return torch.stack(rows).transpose(1, 2)


def float64_fbank(wave, config):
    """The definition, step by step in float64: the judge between two float32 implementations."""
    fbank = KaldiFbank(config)
    frames = (wave.double() - wave.double().mean(1, keepdim=True)).unfold(1, fbank.window, fbank.hop)
    frames = frames - frames.mean(-1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], -1)
    frames = frames * torch.hann_window(fbank.window, periodic=False, dtype=torch.float64)
    power = torch.fft.rfft(frames, n=fbank.n_fft).abs().square()
    filters = mel_filters(config.n_mels, fbank.n_fft, config.sample_rate, config.f_min, config.f_max)
    return (power @ filters).clamp(min=LOG_FLOOR).log().transpose(1, 2)


# ------------------------------------------------------------------------------------------------------ front end

@pytest.mark.parametrize("window", [0.025, 0.050])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_the_batched_front_end_equals_torchaudios(window, rate):
    """Both round in float32, most in the narrowest filters and on each processor in its own way, so the judge of both is
    the definition in float64: ours may be no further from it than theirs."""
    config = replace(PRESETS["ssast-tiny-patch"], window=window, sample_rate=rate)
    wave = noise(4, rate * 2, seed=2)
    truth, theirs = float64_fbank(wave, config), kaldi(wave, config)
    ours = KaldiFbank(config)(wave - wave.mean(1, keepdim=True))
    assert ours.shape == theirs.shape
    ours, theirs = (ours - truth).abs(), (theirs - truth).abs()
    assert ours.max() <= theirs.max() and ours.mean() <= theirs.mean()
    assert theirs.mean() < 1e-4, "the definition is theirs"


@pytest.mark.parametrize("kind", ["tone", "chirp", "noise", "faint"])
def test_the_front_end_is_as_near_to_float64_as_torchaudio(kind):
    """Beside a pure tone the empty bands are rounding noise, so there both may be off by 2e-3."""
    t = torch.arange(32000, dtype=torch.float64) / 16000
    wave = {"tone": 0.5 * torch.sin(2 * torch.pi * 1000 * t), "noise": noise(32000).double(),
            "chirp": 0.5 * torch.sin(2 * torch.pi * (200 * t + 1500 * t * t)),
            "faint": noise(32000, level=1e-4).double()}[kind].float()[None]
    config = PRESETS["ssast-tiny-patch"]
    truth = float64_fbank(wave, config)
    ours = (KaldiFbank(config)(wave - wave.mean()) - truth).abs()
    theirs = (kaldi(wave, config) - truth).abs()
    assert ours.max() <= max(theirs.max(), 2e-3) and ours.mean() <= theirs.mean() + 1e-7


def test_silence_is_the_floor_exactly():
    spec = KaldiFbank(PRESETS["ssast-tiny-patch"])(torch.zeros(1, 16000))
    assert torch.equal(spec, torch.full_like(spec, torch.tensor(LOG_FLOOR).log()))


@pytest.mark.parametrize("groups, kernel, stride, pad", ((16, 19, 1, 9), (1, 10, 5, 3), (1, 2, 1, 0), (4, 3, 2, 1)))
def test_a_wide_convolution_in_blocks_of_time_equals_the_whole(groups, kernel, stride, pad):
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(64, 512, kernel, stride, pad, groups=groups)
    x = torch.randn(2, 331, 64, requires_grad=True)
    ends = []
    for y in (conv_time(x, conv, block=20), conv(x.transpose(1, 2)).transpose(1, 2)):
        x.grad = conv.weight.grad = None
        y.square().sum().backward()
        ends.append((y, x.grad, conv.weight.grad))
    for blocks, whole in zip(*ends):
        assert blocks.shape == whole.shape and (blocks - whole).abs().max() < 1e-5 * whole.abs().max()


def test_padding_in_published_mode_is_zero_before_normalisation():
    encoder = Encoder(replace(SMALL, pad="published"))
    spec = encoder.frontend(noise(1, 8000))
    assert spec.shape == (1, 64, 100)
    assert torch.allclose(spec[0, :, 60:], torch.tensor(0.467), atol=1e-3), "SSAST's padding value"


# ------------------------------------------------------------------------------------------------------- parity

def time_major(x, grid, specials):
    """Published tokens (B, K + F'·T', D) -> ours."""
    t, f = grid
    patches = x[:, specials:].unflatten(1, (f, t)).transpose(1, 2).flatten(1, 2)
    return torch.cat([x[:, :specials], patches], 1)


def test_ssast_tokens_equal_the_published_implementation(parity):
    path, inputs, outputs = parity("ssast_tiny_patch")
    encoder = load_encoder(path, format="ssast")
    assert encoder.config.grid == (16, 8)
    with torch.inference_mode():
        tokens = encoder.tokens(inputs["x"].transpose(1, 2))
    assert (tokens - time_major(outputs["tokens"], (16, 8), 2)).abs().max() < 5e-5
    assert (tokens[:, 2:].mean(1) - outputs["pooled_avgtok"]).abs().max() < 5e-5


def test_ast_embedding_and_logits_equal_the_published_implementation(parity):
    path, inputs, outputs = parity("ast_base")
    encoder = load_encoder(path, format="ast")
    assert (encoder.config.stride, encoder.config.grid, encoder.config.pool) == ((10, 10), (12, 12), "specials")
    with torch.inference_mode():
        embedding = encoder.tokens(inputs["x"].transpose(1, 2))[:, :2].mean(1)
    assert (embedding - outputs["embedding"]).abs().max() < 5e-5
    head = formats.read(path, "ast").heads["head"]
    normed = torch.nn.functional.layer_norm(embedding, (768,), head["norm.weight"], head["norm.bias"], 1e-5)
    logits = normed @ head["linear.weight"].T + head["linear.bias"]
    assert (logits - outputs["logits"]).abs().max() < 5e-5


def test_gpm_bt_files_open_with_their_own_front_end(parity):
    path, _, _ = parity("ssast_tiny_patch")
    config = load_encoder(path, format="gpm-bt").config
    assert (config.window, config.mean, config.scale) == (0.050, 0.0, 1.0)


@pytest.mark.parametrize("case, choices", [("ssast_tiny_patch", "--format ssast.*--format gpm-bt"),
                                           ("ast_base", "--format ssast-finetuned or --format ast")])
def test_where_keys_cannot_decide_the_format_is_asked_for(parity, case, choices):
    with pytest.raises(UserError, match=choices):
        load_encoder(parity(case)[0])


# -------------------------------------------------------------------------------------------------- invariances

@pytest.mark.parametrize("pad", ["masked", "published"])
@pytest.mark.parametrize("stride", [(16, 16), (10, 10)])
def test_a_clip_alone_in_a_batch_and_padded_has_one_embedding(pad, stride):
    """Lengths from under a window to two training lengths and a half."""
    torch.manual_seed(0)
    encoder = Encoder(replace(SMALL, pad=pad, stride=stride)).eval()
    lengths = torch.tensor([40000, 16000, 15999, 9000, 2600, 401, 100])
    wave = noise(len(lengths), 48000)
    with torch.inference_mode():
        batch, frames = encoder.embed(wave, lengths), encoder.frames(wave, lengths)
        for i, n in enumerate(lengths):
            alone = wave[i:i + 1, :n]
            assert (encoder.embed(alone)[0] - batch[i]).abs().max() < 1e-5
            columns = encoder.frames(alone)[0]
            assert (columns - frames[i, :len(columns)]).abs().max() < 1e-5
            assert not frames[i, len(columns):].any()


def test_what_lies_in_the_padding_changes_nothing():
    encoder = Encoder(SMALL).eval()
    wave, lengths = noise(2, 16000), torch.tensor([16000, 7000])
    louder = wave.clone()
    louder[1, 7000:] = 5.0
    with torch.inference_mode():
        assert torch.equal(encoder.embed(wave, lengths), encoder.embed(louder, lengths))


def test_embedding_does_not_depend_on_a_constant_offset():
    encoder = Encoder(SMALL).eval()
    wave = noise(1, 16000)
    with torch.inference_mode():
        assert (encoder.embed(wave) - encoder.embed(wave + 0.2)).abs().max() < 1e-3


def test_long_input_is_the_mean_over_windows_of_the_training_length():
    encoder = Encoder(SMALL).eval()
    wave = noise(1, 32000)
    with torch.inference_mode():
        halves = encoder.embed(wave.view(2, 16000)).mean(0)
        assert (encoder.embed(wave)[0] - halves).abs().max() < 1e-5
        assert encoder.frames(wave).shape == (1, 14, 32)
    assert encoder.config.clip_samples == 16000


def test_tokens_are_time_major():
    """Noise in the last columns moves the tokens t·F' + f of those columns at the patch embedding, and no others."""
    encoder = Encoder(replace(SMALL, depth=0)).eval()
    spec = noise(1, 64, 96)
    changed = spec.clone()
    changed[:, 16:32, 80:] += 1.0  # mel rows 16-31 are f = 1, frames 80-95 are t = 5
    with torch.inference_mode():
        moved = (encoder.tokens(spec) - encoder.tokens(changed)).abs().sum(-1)[0].nonzero().flatten().tolist()
    assert moved == [2 + 5 * 4 + 1]


def test_hidden_tokens_hold_no_information():
    encoder = Encoder(SMALL).eval()
    spec, mask = noise(1, 64, 96), torch.zeros(1, 6, 4, dtype=torch.bool)
    mask[0, 2, 3] = True
    changed = spec.clone()
    changed[:, 48:64, 32:48] = 9.0
    with torch.inference_mode():
        for visible_only in (False, True):
            assert torch.equal(*(encoder.tokens(s, mask, visible_only=visible_only) for s in (spec, changed)))


def test_encoding_visible_tokens_only_equals_attending_to_them_only():
    """Clips that hide different numbers of tokens: the gathered form, against an attention mask over all tokens."""
    encoder = Encoder(replace(SMALL, specials=0)).eval()
    spec = noise(3, 64, 96)
    mask = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.inference_mode():
        gathered = encoder.tokens(spec, mask, visible_only=True)
        x = (encoder.patch(spec, encoder.config) + encoder.positions.table[:6]).flatten(1, 2)
        keep = ~mask.flatten(1)
        for block in encoder.blocks:
            x = block(x, keep[:, None, None])[0]
        x = encoder.norm(x)
    for i in range(3):
        assert (gathered[i, :keep[i].sum()] - x[i][keep[i]]).abs().max() < 1e-5


def test_activation_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = Encoder(SMALL)
        encoder.checkpoint_activations = checkpointing
        encoder.tokens(noise(2, 64, 96)).square().sum().backward()
        gradients.append(encoder.blocks[0].attn.qkv.weight.grad)
    assert torch.equal(*gradients)


# ------------------------------------------------------------------------------------------------------- loading

def test_a_saved_encoder_comes_back_with_its_config(tmp_path):
    encoder = Encoder(replace(SMALL, mean=-3.0)).eval()
    save_encoder(encoder, tmp_path / "encoder.pt")
    for source in (tmp_path / "encoder.pt", tmp_path):
        again = load_encoder(source)
        assert again.config == encoder.config
        assert torch.equal(again(noise(1, 8000)), encoder(noise(1, 8000)))
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.pt"], "no temporary file is left"


def test_positions_are_cut_to_shorter_and_interpolated_to_longer_and_finer_grids(tmp_path):
    encoder = Encoder(SMALL)
    save_encoder(encoder, tmp_path / "encoder.pt")
    shorter = load_encoder(tmp_path, frames=48)
    assert torch.equal(shorter.positions.table, encoder.positions.table[:3])
    finer = load_encoder(tmp_path, stride=(10, 10))
    assert finer.positions.table.shape == (10, 5, 32)
    longer = load_encoder(tmp_path, frames=200)
    assert longer.positions.table.shape == (13, 4, 32)
    assert longer(noise(1, 32000)).shape == (1, 32)


@pytest.mark.parametrize("padded", [False, True])
def test_alibi_is_made_in_the_precision_of_the_step_with_aligned_rows(padded, monkeypatch):
    """What fast attention kernels ask of a bias; in bf16 the tokens stay those of float32 to its precision."""
    encoder = Encoder(replace(PRESETS["animal2vec-laptop"], depth=2)).eval()
    encoder.alibi_scale.data.uniform_(0.5, 1.5)
    wave, lengths = noise(2, 20000), torch.tensor([20000, 9000]) if padded else None
    plain, biases, attention = encoder.frames(wave, lengths), [], torch.nn.functional.scaled_dot_product_attention

    def watched(q, k, v, attn_mask):
        biases.append(attn_mask)
        assert attn_mask.dtype == q.dtype
        return attention(q, k, v, attn_mask=attn_mask)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = encoder.frames(wave, lengths)
    assert len(biases) == 2 and biases[0] is biases[1], "made once a step, not once a block"
    assert biases[0].dtype == torch.bfloat16 and biases[0].stride(-2) % 8 == 0 and biases[0].shape[-1] % 8 != 0
    assert (rounded - plain).norm() < 0.03 * plain.norm()


def test_fewer_mel_rows_take_the_centre_of_the_table():
    """Upstream ends this cut at start + t_dim instead of start + f_dim and fails for fewer than 8 rows."""
    table = torch.arange(8.0).view(1, 8, 1).expand(64, 8, 1)
    assert model.resize_positions(table, (30, 4))[0, :, 0].tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_embeds(name):
    with torch.device("meta"):
        encoder = Encoder(PRESETS[name])
    if PRESETS[name].positions != "conv":  # those are no table
        assert encoder.positions.table.shape[:2] == PRESETS[name].grid
    if "tiny" in name or "laptop" in name:
        assert load_encoder(name)(noise(1, 20000)).shape == (1, PRESETS[name].width)


def test_published_sizes_have_the_published_numbers_of_parameters():
    """Encoder and embeddings of the SSAST layout table, plus the mask token that it counts with the heads."""
    for size, published in (("tiny", 5_487_168), ("small", 21_591_168), ("base", 85_649_664)):
        for kind in ("patch", "frame"):
            with torch.device("meta"):
                encoder = Encoder(PRESETS[f"ssast-{size}-{kind}"])
            assert sum(p.numel() for p in encoder.parameters()) in (published, published + encoder.config.dim)


@pytest.mark.parametrize("damage, message", [
    ("missing", "no such checkpoint"), ("truncated", "cannot be opened"), ("text", "neither a zip or pickle"),
    ("key", "unknown key v.surprise"), ("shape", "weights do not fit"), ("hostile", "needs code to run"),
    ("list", "not a checkpoint"), ("other", "no known layout")])
def test_a_file_that_is_no_good_checkpoint_is_one_clear_line(parity, tmp_path, damage, message):
    path, _, _ = parity("ssast_tiny_patch")
    state = torch.load(path)
    if damage == "missing":
        path = tmp_path / "nothing.pt"
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:100_000])
    elif damage == "text":
        path.write_text("hello")
    elif damage == "key":
        torch.save(state | {"module.v.surprise": torch.zeros(1)}, path)
    elif damage == "shape":
        torch.save(state | {"module.v.norm.weight": torch.zeros(7)}, path)
    elif damage == "hostile":
        torch.save({"x": _Hostile(tmp_path / "ran")}, path)
    elif damage == "list":
        torch.save([1, 2], path)
    elif damage == "other":
        torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=message) as error:
        load_encoder(path, format=None if damage == "other" else "ssast")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


class _Hostile:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_what_is_no_batch_of_waves_is_refused_in_one_line():
    encoder, wave = Encoder(PRESETS["ssast-laptop-patch"]).eval(), 0.1 * torch.randn(2, 8000)
    for bad in (wave.numpy(), wave[0], (wave * 9999).short(), [wave[0]]):
        with pytest.raises(UserError, match="pad_batch"):
            encoder(bad)
    for lengths in (torch.tensor([0.5, 0.5]), torch.tensor([8000]), [8000, 8000]):
        with pytest.raises(UserError, match="2 numbers of samples"):
            encoder(wave, lengths)
    with pytest.raises(UserError, match="lengths reach 9000 samples, but the waves have 8000"):
        encoder(wave, torch.tensor([8000, 9000]))


def test_an_encoder_of_one_rate_refuses_another():
    encoder, wave = Encoder(PRESETS["ssast-laptop-patch"]).eval(), noise(1, 16000)
    assert torch.equal(encoder.embed(wave, rate=16000), encoder.embed(wave))
    with pytest.raises(UserError, match="16000 Hz only, not 44100"):
        encoder.embed(wave, rate=44100)


@pytest.mark.parametrize("name", [name for name in PRESETS if "laptop" in name])
@pytest.mark.parametrize("precision", ["bfloat16", "double"])
def test_an_encoder_of_another_precision_embeds_as_in_float32(name, precision):
    encoder, wave = load_encoder(name), noise(2, 30000)
    with torch.inference_mode():
        wanted = encoder(wave)
        found = getattr(encoder, precision)()(wave)
    assert found.dtype == getattr(torch, precision)
    assert torch.nn.functional.cosine_similarity(found.float(), wanted).min() > 0.99
    assert precision == "bfloat16" or (found - wanted).abs().max() < 1e-3


def test_rows_are_pooled_as_mean_and_deviation_over_valid_time_each():
    """Against a clip by clip computation; lengths from a part of one window to two windows and a half."""
    torch.manual_seed(0)
    encoder = Encoder(replace(SMALL, pool="rows")).eval()
    wave, lengths = noise(3, 40000), torch.tensor([40000, 16000, 5000])
    with torch.inference_mode():
        found = encoder.embed(wave, lengths)
        for i, n in enumerate(lengths.tolist()):
            windows = [encoder.tokens(encoder.frontend(part))[0, 2:].unflatten(0, (-1, 4))
                       for part in wave[i:i + 1, :n].split(encoder.config.chunk_samples, 1)]
            rows = torch.cat(windows)  # (columns, 4, D)
            wanted = torch.cat([rows.mean(0).flatten(), rows.std(0, correction=0).flatten()])
            assert (found[i] - wanted).abs().max() < 1e-3
    assert found.shape == (3, encoder.config.width) == (3, 2 * 4 * 32)


def test_batch_norm_of_valid_rows_is_torchs_of_these_alone():
    torch.manual_seed(0)
    x, valid = torch.randn(9, 5), torch.arange(9) < 6
    own, torchs = BatchNorm(5), torch.nn.BatchNorm1d(5)
    assert torch.allclose(own(x, valid)[:6], torchs(x[:6]), atol=1e-5)
    for name, value in torchs.named_buffers():
        assert torch.allclose(own.get_buffer(name), value, atol=1e-6), name
