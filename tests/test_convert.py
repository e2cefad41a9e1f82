"""Published checkpoints: parity at true size, layouts, round trips, files that are no good, long and short input."""
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import cases
import convert
from wren import formats
from wren.formats import ssast
from wren.training import heads
from wren.cli import UserError
from model import Encoder, head_outputs, load_encoder, save_encoder
from wren.recipes import PRESETS

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "parity"
TOKENS = {"dasheng": "dasheng_base_tokens", "audiomae": "audiomae_base_tokens", "eat": "eat_base_tokens",
          "atst-clip": "atst_clip_small_tokens", "atst-frame": "atst_frame_base_tokens",
          "animal2vec": "animal2vec_tokens", "ssast": "ssast_tiny_patch"}


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@lru_cache(maxsize=None)
def shortened(name, blocks):
    """The published state of a parity case cut to its first blocks and a width of 64: its keys, fast to write."""
    state = {k: v for k, v in case(name)[0].items()
             if "blocks." not in k or int(k.split("blocks.")[1].split(".")[0]) < blocks}
    width = next((len(v) for k, v in state.items() if k.endswith("blocks.0.norm1.weight")))
    cut = {width: 64, 3 * width: 192, 4 * width: 256}
    return {k: v[tuple(slice(cut.get(n, n)) for n in v.shape)].clone() for k, v in state.items()}


def case(name, blocks=None):
    """(published state, inputs, outputs) of a parity case, tensors throughout; `blocks` keeps the first ones only."""
    if blocks is not None:
        return dict(shortened(name, blocks)), {}, {}
    state, _, inputs, outputs = cases.load(FOLDER / f"{name}.npz")
    return tuple({k: torch.as_tensor(v) for k, v in d.items()} for d in (state, inputs, outputs))


def nested(format, state, layout=None):
    """The content of a published file that holds `state`."""
    if format == "ssast":
        return state
    if format == "atst-clip" and layout == "dino":
        return {"student": {}, "teacher": {f"module.backbone.{k}": v for k, v in state.items()}, "args": _Foreign()}
    if format.startswith("atst"):
        inside = {f"model.teacher.encoder.{k}": v for k, v in state.items()}
        inside["model.student.projector.0.weight"] = torch.zeros(4, 4)
        return {"pytorch-lightning_version": "2.2.1", "state_dict": inside, "hyper_parameters": _Foreign()}
    head = {"fc_norm.weight": torch.rand(64), "fc_norm.bias": torch.rand(64), "head.weight": torch.rand(5, 64),
            "head.bias": torch.rand(5)}
    if layout == "fine-tuned" and format == "eat":
        return {"model": {f"model.{k}": v for k, v in (state | head).items()}, "cfg": _Foreign()}
    if layout == "fine-tuned" and format == "audiomae":  # a norm of the pooled vector replaces that of the tokens
        return {"model": {k: v for k, v in state.items() if not k.startswith(("norm.", "decoder_"))} | head}
    if layout == "fine-tuned" and format == "dasheng":  # as on Hugging Face
        head = {k.replace("fc_norm", "outputlayer.0").replace("head", "outputlayer.1"): v for k, v in head.items()}
        return {f"encoder.{k}": v for k, v in state.items() if not k.startswith("front_end.")} | head
    if layout == "fine-tuned" and format == "animal2vec":
        inside = {f"w2v_encoder.w2v_model.{k}": v for k, v in state.items()}
        head = {"w2v_encoder.proj.weight": torch.rand(12, 64), "w2v_encoder.proj.bias": torch.rand(12)}
        return {"model": inside | head}
    extra = {"_ema": {"a": torch.zeros(1)}} if format in ("eat", "animal2vec") else {}
    return {"model": state | extra, "args": None, "config": {"embed_dim": 768}}


class _Foreign:
    """An object of a class that the reader does not know."""

    def __init__(self):
        self.arch = "base"


class _Hostile:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def opened(tmp_path, format, state, layout=None):
    path = tmp_path / "published.pt"
    torch.save(nested(format, state, layout), path)
    return load_encoder(path, "ssast" if format == "ssast" else None)


def huggingface_eat(state):
    names = {k: "model." + k.replace("modality_encoders.IMAGE.context_encoder.norm.", "pre_norm.")
             .replace("modality_encoders.IMAGE.", "") for k in state}
    return {names[k]: v for k, v in state.items()}


def far(a, b):
    return float((a - b).abs().max())


# ------------------------------------------------------------------------------------------------- parity

def test_dasheng_equals_the_published_implementation_from_the_wave_on(tmp_path):
    state, inputs, outputs = case("dasheng_base_tokens")
    encoder = opened(tmp_path, "dasheng", state)
    spec = encoder.frontend(inputs["waveform"])
    assert far(encoder.input_norm(spec)[..., ::10], outputs["spec_every10"][0]) < 5e-5
    assert far(encoder.tokens(spec), outputs["tokens"]) < 5e-5
    assert far(encoder.embed(inputs["waveform"]), outputs["tokens"].mean(1)) < 5e-5


def test_audiomae_equals_the_published_implementation_from_the_wave_on(tmp_path):
    state, inputs, outputs = case("audiomae_base_tokens")
    encoder = opened(tmp_path, "audiomae", state)
    spec = encoder.frontend(inputs["waveform"])
    assert far(spec[0].T[::32], outputs["fbank_norm"]) < 5e-5
    assert far(encoder.tokens(spec)[:, ::8], outputs["tokens"]) < 5e-5


def test_the_atst_front_end_equals_the_published_one_with_its_floor():
    _, inputs, outputs = case("atst_mel")
    encoder = Encoder(replace(PRESETS["atst-frame-base"], depth=1, pad="published"))
    assert far(encoder.frontend(inputs["wav"]), outputs["mel"]) < 1e-5


def test_atst_clip_equals_the_published_implementation_with_and_without_padding(tmp_path):
    state, inputs, outputs = case("atst_clip_small_tokens")
    encoder, mel = opened(tmp_path, "atst-clip", state), inputs["mel"][:, 0]
    assert far(encoder.tokens(mel), outputs["tokens"]) < 5e-5
    assert far(encoder.tokens(mel, lengths=torch.tensor([199, 149]) * 160), outputs["tokens_padded"]) < 5e-5
    both = encoder.tokens(mel)
    assert far(torch.cat([both[:, 0], both[:, 1:].mean(1)], 1), outputs["finetune_feat"]) < 5e-5
    for depth in (1, 12):  # the published linear feature: class tokens of blocks 1 … 12, then patch means
        tokens = encoder.tokens(mel, depth=depth)
        first = (depth - 1) * 384
        assert far(tokens[:, 0], outputs["linear_feat"][:, first:first + 384]) < 5e-5


def test_atst_frame_equals_the_published_implementation_with_and_without_a_mask(tmp_path):
    state, inputs, outputs = case("atst_frame_base_tokens")
    encoder, mel, mask = opened(tmp_path, "atst-frame", state), inputs["mel"][:, 0], inputs["mask"].bool()
    tokens = encoder.tokens(mel)
    assert far(tokens, outputs["tokens"]) < 5e-5
    assert far(encoder.tokens(mel, mask[..., None])[mask], outputs["masked_student"]) < 5e-5


def test_the_eat_front_end_pads_before_it_normalises():
    _, inputs, outputs = case("eat_fbank")
    encoder = Encoder(replace(PRESETS["eat-base"], depth=1, frames=256, pad="published"))
    assert far(encoder.frontend(inputs["wav"][None]).transpose(1, 2), outputs["fbank"][0]) < 2e-4


def test_eat_equals_the_published_implementation(tmp_path):
    state, inputs, outputs = case("eat_base_tokens")
    encoder = opened(tmp_path, "eat", state)
    assert far(encoder.tokens(inputs["fbank"][:, 0].transpose(1, 2)), outputs["tokens"]) < 5e-5
    assert far(encoder.positions.table[:32].flatten(0, 1), outputs["pos"]) < 5e-6


def test_eats_three_layouts_hold_the_same_encoder(tmp_path):
    state, _, _ = case("eat_base_tokens", blocks=2)
    encoder = opened(tmp_path, "eat", state)
    tuned = opened(tmp_path, "eat", state, "fine-tuned")
    assert tuned.heads["head"]["linear.weight"].shape == (5, 64) and float(tuned.heads["head"]["norm.eps"]) == 1e-6
    assert head_outputs(tuned.heads["head"], tuned.embed(0.1 * torch.randn(1, 16000))).shape == (1, 5)
    formats.write_safetensors(huggingface_eat(state), tmp_path / "model.safetensors")
    for other in (tuned, load_encoder(tmp_path / "model.safetensors")):
        assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), encoder.state_dict().values()))


def test_a_loud_neighbour_does_not_lift_the_floor_of_a_quiet_clip():
    """In Dasheng's code it does, by 14 to 22 dB: its floor lies below the loudest of the batch."""
    quiet, loud = 1e-5 * torch.randn(1, 8000), torch.randn(1, 8000)
    encoder = Encoder(replace(PRESETS["dasheng-base"], depth=1))
    assert torch.equal(encoder.frontend(quiet)[0], encoder.frontend(torch.cat([quiet, loud]))[0])


def test_animal2vec_equals_the_published_implementation_at_every_stage(tmp_path):
    """Tokens stand at 2e-5, behind three layers that a change of one float32 rounding moves by 5e-6."""
    state, inputs, outputs = case("animal2vec_tokens")
    encoder, wave = opened(tmp_path, "animal2vec", state), inputs["wav"][:, None]
    assert far(encoder.patch.sinc(inputs["wav"]).transpose(1, 2)[:, :4, :400], outputs["sinc"]) < 1e-5
    assert far(encoder.patch.features(wave).transpose(1, 2)[:, :8], outputs["local"]) < 2e-5
    assert far(encoder.tokens(wave), outputs["tokens"]) < 5e-5
    outputs_of_blocks = encoder.ffn_outputs(encoder.grid(wave)[0])
    assert len(outputs_of_blocks) == 2, "the prenet block is left out"
    assert far(torch.stack(outputs_of_blocks).mean(0), outputs["avg"]) < 5e-6
    assert far(encoder.frames(inputs["wav"]), outputs["avg"]) < 1e-4, "the wave is standardised again"


@pytest.mark.parametrize("format, classes", [("eat", 5), ("audiomae", 5), ("dasheng", 5), ("animal2vec", 12)])
def test_a_published_fine_tuned_file_scores_clips_and_frames(tmp_path, format, classes):
    opened(tmp_path, format, case(TOKENS[format], blocks=None if format == "animal2vec" else 2)[0], "fine-tuned")
    model = heads.load(tmp_path / "published.pt")
    wave = 0.1 * torch.randn(2, model.encoder.config.clip_samples // 4)
    published = model.encoder.heads or formats.read(tmp_path / "published.pt").heads
    logits = head_outputs(next(iter(published.values())), model.encoder.embed(wave))
    assert model.scores(wave).shape == (2, classes)
    assert far(model.scores(wave), logits.sigmoid()) < 1e-5
    assert model.frame_scores(wave).shape[2] == classes == len(model.labels)


@pytest.mark.parametrize("format, eps", [("audiomae", 1e-6), ("dasheng", 1e-5)])
def test_a_fine_tuned_head_is_a_norm_and_a_linear_layer_on_the_mean_of_the_patch_tokens(tmp_path, format, eps):
    encoder = opened(tmp_path, format, case(TOKENS[format], blocks=2)[0], "fine-tuned")
    state = torch.load(tmp_path / "published.pt", weights_only=True)
    norm, linear = ([v for k, v in state.get("model", state).items() if k.startswith(names)] for names in
                    (("fc_norm.", "outputlayer.0."), ("head.", "outputlayer.1.")))
    assert encoder.config.final_norm == (format == "dasheng"), "AudioMAE's norm of tokens is gone"
    wave = 0.1 * torch.randn(2, encoder.config.clip_samples)
    pooled = encoder.tokens(encoder.frontend(wave))[:, encoder.config.specials:].mean(1)
    wanted = torch.nn.functional.linear(torch.nn.functional.layer_norm(pooled, (64,), *norm, eps), *linear)
    assert float(encoder.heads["head"]["norm.eps"]) == eps
    assert far(heads.load(tmp_path / "published.pt").scores(wave), wanted.sigmoid()) < 1e-5


def test_animal2vecs_fine_tuned_head_gives_named_logits_for_each_frame(tmp_path):
    state, inputs, _ = case("animal2vec_tokens")
    encoder = opened(tmp_path, "animal2vec", state, "fine-tuned")
    assert head_outputs(encoder.heads["frames"], encoder.frames(inputs["wav"])).shape == (1, 200, 12)
    assert formats.read(tmp_path / "published.pt").labels[-1] == "focal"


def test_atst_opens_lightning_and_dino_files_alike(tmp_path):
    state, _, _ = case("atst_clip_small_tokens", blocks=2)
    one, two = (opened(tmp_path, "atst-clip", state, layout).state_dict() for layout in (None, "dino"))
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("format", ["atst-clip", "atst-frame"])
def test_a_bare_atst_encoder_opens_as_the_one_inside_a_training_file(tmp_path, format):
    state, _, _ = case(TOKENS[format], blocks=2)
    inside = opened(tmp_path, format, state)
    torch.save(state, tmp_path / "bare.pt")
    bare = load_encoder(tmp_path / "bare.pt")
    assert bare.config == inside.config
    assert all(torch.equal(a, b) for a, b in zip(bare.state_dict().values(), inside.state_dict().values()))


@pytest.mark.parametrize("format, frames", [("atst-clip", 601), ("atst-frame", 1001)])
@pytest.mark.parametrize("seconds", [12.1, 20.5])
def test_atst_cuts_long_clips_as_published_one_frame_late(tmp_path, format, frames, seconds):
    encoder = opened(tmp_path, format, case(TOKENS[format], blocks=2)[0])
    wave = 0.1 * torch.randn(1, int(16000 * seconds), generator=torch.Generator().manual_seed(0))
    parts = [part for part in encoder.frontend(wave).split(frames, 2) if part.shape[2] >= 4]
    assert len(parts) > 1
    wanted = torch.cat([encoder.tokens(part)[:, encoder.config.specials:] for part in parts], 1)
    assert far(encoder.frames(wave), wanted) < 1e-5


def test_an_audiomae_without_classes_but_with_a_norm_for_them_is_refused_as_a_classifier_in_one_line(tmp_path):
    """timm's with global_pool="avg" and num_classes=0."""
    state, _, _ = case("audiomae_base_tokens", blocks=2)
    state = nested("audiomae", state, "fine-tuned")["model"]
    torch.save({k: v for k, v in state.items() if not k.startswith("head.")}, tmp_path / "in.pt")
    with pytest.raises(UserError, match="in.pt: holds no head, so it can't score"):
        heads.load(tmp_path / "in.pt")
    encoder, wave = load_encoder(tmp_path / "in.pt"), 0.1 * torch.randn(2, 163840)
    pooled = encoder.tokens(encoder.frontend(wave))[:, 1:].mean(1)
    wanted = torch.nn.functional.layer_norm(pooled, (64,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
    assert far(encoder.embed(wave), wanted) < 1e-5, "the clip vector is normed"


# ----------------------------------------------------------------------------------------------------- exported

FAMILIES = ["ssast-laptop-patch", "dasheng-laptop", "audiomae-laptop", "atst-laptop", "atst-frame-laptop", "eat-laptop",
            "animal2vec-laptop"]
BASES = ["ssast-base-patch", "ast-base", "dasheng-base", "audiomae-base", "atst-base", "atst-frame-base", "eat-base",
         "animal2vec-large"]


def samples(encoder):
    return min(encoder.config.clip_samples, encoder.config.chunk_samples)


@pytest.mark.parametrize("name", FAMILIES + BASES)
def test_every_preset_is_exported_for_any_number_of_clips(name):
    encoder = Encoder(replace(PRESETS[name], depth=2, prenet=0)).eval()
    wave = 0.1 * torch.randn(3, samples(encoder))
    module = convert.exported(encoder).module()
    for batch in (wave, wave[:1]):
        assert far(module(batch), encoder(batch)) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_gives_what_pytorch_gives(tmp_path, name):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    encoder = Encoder(replace(PRESETS[name], depth=2)).eval()
    wave = 0.1 * torch.randn(3, samples(encoder))
    save_encoder(encoder, tmp_path / "encoder.pt")
    convert.main([str(tmp_path / "encoder.pt"), str(tmp_path / "encoder.onnx")])
    session = runtime.InferenceSession(tmp_path / "encoder.onnx")
    given = session.run(None, {session.get_inputs()[0].name: wave.numpy()})[0]
    assert far(torch.from_numpy(given), encoder(wave)) < 1e-4


# --------------------------------------------------------------------------------------- Hugging Face's folders

AST_NAMES = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}


def published_ast():
    """An AST of two blocks, 64 wide, with three classes, in its authors' keys."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"cls_token": (1, 1, 64), "dist_token": (1, 1, 64), "pos_embed": (1, 2 + 13 * 12, 64),
              "norm.weight": (64,),
              "patch_embed.proj.weight": (64, 1, 16, 16), "patch_embed.proj.bias": (64,), "norm.bias": (64,)}
    for i in range(2):
        for name, out, inside in (("attn.qkv", 192, 64), ("attn.proj", 64, 64), ("mlp.fc1", 256, 64),
                                  ("mlp.fc2", 64, 256)):
            shapes |= {f"blocks.{i}.{name}.weight": (out, inside), f"blocks.{i}.{name}.bias": (out,)}
        shapes |= {f"blocks.{i}.norm{n}.{w}": (64,) for n in (1, 2) for w in ("weight", "bias")}
    shapes = {f"v.{k}": v for k, v in shapes.items()}
    shapes |= {"mlp_head.0.weight": (64,), "mlp_head.0.bias": (64,), "mlp_head.1.weight": (3, 64),
               "mlp_head.1.bias": (3,)}
    return {k: 0.2 * torch.randn(shape, generator=draw) for k, shape in shapes.items()}


def as_transformers(state, prefix):
    """AST's keys as transformers writes them: queries, keys and values apart."""
    out = {}
    for key, value in state.items():
        if key.startswith("v.blocks."):
            i, name, kind = re.fullmatch(r"v\.blocks\.(\d+)\.(.+)\.(weight|bias)", key).groups()
            layer = f"{prefix}encoder.layer.{i}."
            if name == "attn.qkv":
                out |= {f"{layer}attention.attention.{part}.{kind}": rows.clone()
                        for part, rows in zip(("query", "key", "value"), value.chunk(3))}
            else:
                out[f"{layer}{AST_NAMES[name]}.{kind}"] = value
        else:
            for old, new in (("v.cls_token", "embeddings.cls_token"), ("v.norm", "layernorm"),
                             ("v.pos_embed", "embeddings.position_embeddings"),
                             ("v.dist_token", "embeddings.distillation_token"),
                             ("v.patch_embed.proj", "embeddings.patch_embeddings.projection")):
                if key.startswith(old):
                    out[prefix + key.replace(old, new)] = value
            if prefix and key.startswith("mlp_head"):
                part = "classifier.layernorm" if key.startswith("mlp_head.0") else "classifier.dense"
                out[key.replace(key[:10], part)] = value
    return out


def published_folder(folder, state, config, features=None):
    folder.mkdir()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    if features:
        (folder / "preprocessor_config.json").write_text(json.dumps(features))
    return folder


AST_CONFIG = {"model_type": "audio-spectrogram-transformer", "hidden_size": 64, "num_attention_heads": 2,
              "layer_norm_eps": 1e-6, "max_length": 136, "frequency_stride": 10, "time_stride": 10,
              "num_mel_bins": 128, "id2label": {"0": "wren", "1": "robin", "2": "owl"}}


@pytest.mark.parametrize("prefix", ["", "audio_spectrogram_transformer."], ids=["model", "with classes"])
def test_transformers_ast_folder_is_the_authors_ast_with_the_settings_of_its_json_files(tmp_path, prefix):
    state = published_ast()
    features = {"mean": -5.0, "std": 3.0, "sampling_rate": 16000, "do_normalize": True}
    folder = published_folder(tmp_path / "ast", as_transformers(state, prefix), AST_CONFIG, features)
    encoder = load_encoder(folder)
    c = encoder.config
    assert (c.mean, c.scale, c.frames, c.heads, c.eps, c.pool) == (-5.0, 6.0, 136, 2, 1e-6, "specials")
    theirs = Encoder(c).eval()
    kernel = state["v.patch_embed.proj.weight"].flatten(1)
    positions = state["v.pos_embed"][0, 2:].view(12, 13, 64).transpose(0, 1)
    assert torch.equal(encoder.patch.weight, kernel) and torch.equal(encoder.positions.table, positions)
    theirs.load_state_dict(encoder.state_dict() | {k[2:]: v for k, v in state.items()
                                                   if k.startswith(("v.blocks.", "v.norm."))})
    wave = 0.1 * torch.randn(2, 16000)
    assert torch.equal(theirs.embed(wave), encoder.embed(wave)), "the blocks are the authors'"
    if prefix:
        model = heads.load(folder)
        wanted = torch.nn.functional.layer_norm(encoder.embed(wave), (64,), state["mlp_head.0.weight"],
                                                state["mlp_head.0.bias"], 1e-6)
        wanted = torch.nn.functional.linear(wanted, state["mlp_head.1.weight"], state["mlp_head.1.bias"])
        assert model.labels == ["wren", "robin", "owl"] and far(model.scores(wave), wanted.sigmoid()) < 1e-6
    one = load_encoder(folder / "model.safetensors")
    assert one.config == c, "the file alone finds the settings beside it"


def test_a_single_transformers_file_without_settings_is_taken_as_the_published_audioset_model(tmp_path):
    state = published_ast()
    state["v.pos_embed"] = torch.zeros(1, 2 + 101 * 12, 64)
    save_file(as_transformers(state, ""), tmp_path / "weights.safetensors")
    c = load_encoder(tmp_path / "weights.safetensors").config
    assert (c.frames, c.eps, c.stride) == (1024, 1e-12, (10, 10)) and c.mean == PRESETS["ast-base"].mean


def test_dashengs_and_timms_audiomae_folders_open_as_their_single_files_do(tmp_path):
    state, _, _ = case("dasheng_base_tokens", blocks=2)
    state = {f"encoder.{k}": v for k, v in state.items() if not k.startswith("front_end.")}
    folder = published_folder(tmp_path / "dasheng", state, {"model_type": "dasheng", "name": "dasheng-base"})
    assert load_encoder(folder).config.frontend == "mel-db"
    state, _, _ = case("audiomae_base_tokens", blocks=2)
    state = {k: v for k, v in state.items() if not k.startswith("decoder_") and k != "mask_token"}
    folder = published_folder(tmp_path / "audiomae", state, {"architecture": "vit_base_patch16_224", "num_classes": 0})
    torch.save({"model": state}, tmp_path / "pretrained.pth")
    one, two = load_encoder(folder), load_encoder(tmp_path / "pretrained.pth")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


@pytest.mark.parametrize("kind", ["wav2vec2", "clap", "whisper"])
def test_another_familys_folder_is_refused_in_one_line_that_names_it(tmp_path, kind):
    folder = published_folder(tmp_path / kind, {"layers.0.weight": torch.zeros(2)}, {"model_type": kind})
    with pytest.raises(UserError, match=f"a transformers model of type {kind}, which wren does not read"):
        load_encoder(folder)


# ------------------------------------------------------------------------------------------- from other programs

def other_program(folder, code, **environment):
    """Run Python code from a folder that has its own tasks, metrics, audio and data -> what it printed."""
    for name in ("tasks", "metrics", "audio", "data"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("mine = True\n")
    (folder / "program.py").write_text(code)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run([sys.executable, "program.py"], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wren_beside_another_programs_modules_shadows_none_of_them(tmp_path):
    said = other_program(tmp_path, "from wren import load_encoder\n"
                         "load_encoder('dasheng-laptop')\nimport wren.training.heads, wren.recordings.windows\n"
                         "import tasks, metrics, audio, data\n"
                         "print(tasks.mine and metrics.mine and audio.mine and data.mine)", PYTHONPATH=str(ROOT))
    assert said == "True\n"


def test_a_model_py_that_comes_before_ours_is_named(tmp_path):
    (tmp_path / "model.py").write_text("")
    said = other_program(tmp_path, "try:\n    from wren import load_encoder\nexcept ImportError as e:\n    print(e)",
                         PYTHONPATH=str(ROOT))
    assert str(tmp_path / "model.py") in said and "PYTHONPATH" in said


def test_torch_hub_loads_presets_and_files_from_a_checkout_without_pythonpath(tmp_path):
    save_encoder(Encoder(replace(PRESETS["ssast-tiny-patch"], depth=1)), tmp_path / "encoder.pt")
    said = other_program(tmp_path, f"import torch\n"
                         f"for name in ('dasheng-laptop', 'encoder.pt'):\n"
                         f"    encoder = torch.hub.load({str(ROOT)!r}, 'load_encoder', name, source='local')\n"
                         f"    print(encoder.config.name, tuple(encoder(torch.zeros(1, 16000)).shape))")
    assert said.splitlines() == ["dasheng-laptop (1, 512)", "ssast-tiny-patch (1, 192)"]


# ----------------------------------------------------------------------------------------------- round trips

def test_ssast_goes_to_ours_and_back_bit_for_bit(tmp_path):
    state, _, _ = case("ssast_tiny_patch")
    torch.save(state, tmp_path / "in.pth")
    convert.main([str(tmp_path / "in.pth"), str(tmp_path / "ours.pt"), "--format", "ssast"])
    convert.main([str(tmp_path / "ours.pt"), str(tmp_path / "out.pth"), "--to", "ssast"])
    back = torch.load(tmp_path / "out.pth", weights_only=True)
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)
    assert all(back[k].dtype == state[k].dtype for k in state)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_dasheng_goes_to_ours_and_back_bit_for_bit(tmp_path, suffix):
    state, _, _ = case("dasheng_base_tokens", blocks=2)
    torch.save({"model": state, "config": {}}, tmp_path / "in.pt")
    convert.main([str(tmp_path / "in.pt"), str(tmp_path / f"ours.{suffix}")])
    convert.main([str(tmp_path / f"ours.{suffix}"), str(tmp_path / "out.pt"), "--to", "dasheng"])
    back = torch.load(tmp_path / "out.pt", weights_only=True)["model"]
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)


def test_dasheng_opens_from_hugging_faces_layout(tmp_path):
    state, _, _ = case("dasheng_base_tokens", blocks=2)
    torch.save({"model": state, "config": {}}, tmp_path / "in.pt")
    convert.main([str(tmp_path / "in.pt"), str(tmp_path / "model.safetensors"), "--to", "dasheng"])
    assert not any("front_end" in k for k in load_file(tmp_path / "model.safetensors"))
    one, two = (load_encoder(tmp_path / name).state_dict() for name in ("in.pt", "model.safetensors"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_training_checkpoint_gives_ssast_its_objectives_heads(tmp_path):
    state, _, _ = case("ssast_tiny_patch")
    torch.save(state, tmp_path / "in.pth")
    found = formats.read(tmp_path / "in.pth", "ssast")
    (tmp_path / "config.json").write_text(json.dumps({"encoder": found.config.to_dict()}))
    objective = {f"encoder.{k}": v for k, v in found.state.items()} | found.heads["objective"]
    torch.save({"version": 1, "objective": objective, "optimizer": {}}, tmp_path / "checkpoint-00000001.pt")
    back = ssast.write(formats.read(tmp_path / "checkpoint-00000001.pt"), "it")
    assert all(torch.equal(back[k], state[k]) for k in state if "v.head" not in k)


def test_what_is_no_ssast_encoder_is_not_written_as_one(tmp_path):
    state, _, _ = case("dasheng_base_tokens", blocks=1)
    torch.save({"model": state}, tmp_path / "in.pt")
    with pytest.raises(UserError, match="is no SSAST encoder"):
        convert.main([str(tmp_path / "in.pt"), str(tmp_path / "out.pth"), "--to", "ssast"])


def test_the_command_describes_a_file(tmp_path, capsys):
    state, _, _ = case("eat_base_tokens", blocks=2)
    torch.save(nested("eat", state), tmp_path / "in.pt")
    convert.main([str(tmp_path / "in.pt")])
    said = capsys.readouterr().out
    assert "format      eat" in said and "16000 Hz" in said and "64 × 8" in said


# ------------------------------------------------------------------------------------------ files that are no good

SAMPLE = {"ssast": "v.norm.weight", "dasheng": "norm.weight", "audiomae": "norm.weight", "atst-clip": "norm.weight",
          "atst-frame": "norm_frame.weight", "eat": "blocks.0.norm1.weight", "animal2vec": "blocks.0.norm1.weight"}


@pytest.mark.parametrize("damage", ["prefix", "missing", "extra", "shape", "truncated", "hostile"])
@pytest.mark.parametrize("format", TOKENS)
def test_each_damage_to_each_format_is_one_clear_line(tmp_path, format, damage):
    state, _, _ = case(TOKENS[format], blocks=2)
    key = ("module." if format == "ssast" else "") + SAMPLE[format]
    assert key in state
    path = tmp_path / "published.pt"
    if damage == "prefix":
        state = {f"wrong.{k}": v for k, v in state.items()}
    elif damage == "missing":
        del state[key]
    elif damage == "extra":
        state[key.replace("weight", "surprise")] = torch.zeros(1)
    elif damage == "shape":
        state[key] = torch.zeros(7)
    elif damage == "hostile":
        state[key] = _Hostile(tmp_path / "ran")
    torch.save(nested(format, state), path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(UserError) as error:
        load_encoder(path, "ssast" if format == "ssast" else None)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    wanted = {"missing": "missing", "extra": "surprise", "shape": "shape", "truncated": "cannot be opened",
              "hostile": "needs code to run"}.get(damage)
    assert wanted is None or wanted in message
    assert not (tmp_path / "ran").exists()


def test_a_truncated_safetensors_file_is_one_clear_line(tmp_path):
    path = tmp_path / "model.safetensors"
    formats.write_safetensors({"encoder.time_pos_embed": torch.zeros(1, 8, 1, 4)}, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="model.safetensors: cannot be opened: it is damaged"):
        load_encoder(path)


def test_a_hostile_object_beside_the_weights_is_never_run(tmp_path):
    state, _, _ = case("dasheng_base_tokens", blocks=1)
    torch.save({"model": state, "config": _Hostile(tmp_path / "ran")}, tmp_path / "in.pt")
    assert load_encoder(tmp_path / "in.pt").config.depth == 1
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------- long and short input

@pytest.mark.parametrize("pad", ["masked", "published"])
@pytest.mark.parametrize("name", ["dasheng-laptop", "atst-laptop", "atst-frame-laptop", "eat-laptop",
                                  "audiomae-laptop", "animal2vec-laptop"])
def test_a_clip_alone_equals_the_same_clip_in_a_padded_batch(name, pad):
    """From a hundred samples to two training lengths and a half, beside a loud neighbour."""
    torch.manual_seed(0)
    frames = PRESETS[name].frames // 4
    chunk = 2 * frames if name == "eat-laptop" else 0
    encoder = Encoder(replace(PRESETS[name], depth=2, pad=pad, frames=frames, chunk=chunk)).eval()
    size = encoder.config.clip_samples
    lengths = torch.tensor([int(2.5 * size), size, size - 1, size // 3 + 7, 1601, 100])
    wave = 0.01 * torch.randn(len(lengths), int(2.5 * size), generator=torch.Generator().manual_seed(1))
    wave[0] *= 50
    batch, frames = encoder.embed(wave, lengths), encoder.frames(wave, lengths)
    for i, n in enumerate(lengths):
        assert far(encoder.embed(wave[i:i + 1, :n])[0], batch[i]) < 2e-5
        alone = encoder.frames(wave[i:i + 1, :n])[0]
        assert far(alone, frames[i, :len(alone)]) < 2e-5 and not frames[i, len(alone):].any()


@pytest.mark.parametrize("extra", [0, 1, 2, 3, 4, 500, 1008])
def test_dasheng_splits_long_clips_by_tokens_at_its_training_length(extra):
    """Frames over one training length: one to three of them fill no token; positions start anew in each chunk."""
    torch.manual_seed(0)
    encoder = Encoder(replace(PRESETS["dasheng-laptop"], frames=1008, depth=1, pad="published", pool="mean")).eval()
    wave = 0.1 * torch.randn(1, (1008 + extra - 1) * 160)
    spec = encoder.frontend(wave)
    assert spec.shape[2] == 1008 + extra
    chunks = [encoder.tokens(part) for part in spec.split(1008, 2) if part.shape[2] >= 4]
    assert far(encoder.frames(wave), torch.cat(chunks, 1)) < 1e-5
    assert far(encoder.embed(wave), torch.cat(chunks, 1).mean(1)) < 1e-5


def test_eat_reads_long_clips_whole_as_far_as_its_table_goes(tmp_path):
    state, _, _ = case("eat_base_tokens", blocks=1)
    encoder = opened(tmp_path, "eat", state)
    wave = 0.1 * torch.randn(1, 20 * 16000)
    whole = encoder.tokens(encoder.frontend(wave))
    assert whole.shape == (1, 1 + 124 * 8, 64) and encoder.positions.table.shape == (768, 8, 64)
    assert far(encoder.embed(wave), whole[:, 0]) < 1e-5


def test_atst_clip_averages_chunks_by_the_tokens_they_hold():
    """Deviation: released code divides every chunk by what is left of the uncut clip, 250 tokens for 150."""
    torch.manual_seed(0)
    config = replace(PRESETS["atst-laptop"], frames=1000, chunk=600, depth=1, patch=(64, 4), stride=(64, 4),
                     pad="published", pool="both")
    encoder = Encoder(config).eval()
    wave = 0.1 * torch.randn(1, 160000)
    spec = encoder.frontend(wave)
    one, two = encoder.tokens(spec[..., :600]), encoder.tokens(spec[..., 600:])
    assert (one.shape[1], two.shape[1]) == (151, 101)
    mean = torch.cat([one[:, 1:], two[:, 1:]], 1).mean(1)
    assert far(encoder.embed(wave)[:, config.dim:], mean) < 1e-5
    assert far(encoder.embed(wave)[:, :config.dim], 0.6 * one[:, 0] + 0.4 * two[:, 0]) < 1e-5


def test_alibi_and_convolutional_positions_agree_for_gathered_and_masked_tokens():
    """All tokens visible: leaving none out is the plain encoder."""
    encoder = Encoder(replace(PRESETS["animal2vec-laptop"], depth=2)).eval()
    spec = encoder.frontend(0.1 * torch.randn(1, 32000))
    none = torch.zeros(1, 200, 1, dtype=torch.bool)
    assert far(encoder.tokens(spec), encoder.tokens(spec, none, visible_only=True)) < 1e-5


def test_only_what_takes_a_presets_name_offers_one_when_a_checkpoint_is_missing(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint; give a file or a run folder$"):
        convert.main([str(tmp_path / "nothing.pt")])
    with pytest.raises(UserError, match="nothing.pt: no such checkpoint; give a file, a run folder or a preset's name"):
        load_encoder(tmp_path / "nothing.pt")


def test_the_command_takes_a_run_folder(tmp_path, capsys):
    save_encoder(Encoder(replace(PRESETS["ssast-tiny-patch"], depth=1)), tmp_path / "encoder.pt")
    convert.main([str(tmp_path), str(tmp_path / "out.pth"), "--to", "ssast"])
    assert "ssast-tiny-patch: 192 wide, 1 blocks" in capsys.readouterr().out
    assert load_encoder(tmp_path / "out.pth", "ssast").config.depth == 1


def test_a_preset_can_be_the_start_of_pre_training_at_another_length():
    from wren.training import starting
    encoder, heads = starting.starting_point("dasheng-laptop", clip_seconds=2.0)
    assert encoder.config.frames == 200 and heads == {}
