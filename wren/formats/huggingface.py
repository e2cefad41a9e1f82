"""Hugging Face's folders: what config.json says, and transformers' AST (ASTModel, ASTForAudioClassification).

Dasheng's, EAT's and timm's AudioMAE folders hold their families' own keys and are read there.
"""
import json
import re
from pathlib import Path

from wren.cli import UserError
from wren.formats.common import Checkpoint, depth_of, rename, with_eps
from wren.recipes import EncoderConfig

_LAYER = r"encoder\.layer\.(\d+)\."
_RULES = [(_LAYER + old + r"\.(weight|bias)", rf"blocks.\1.{new}.\2") for old, new in (
    ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"), (r"output\.dense", "mlp.fc2"), (r"attention\.attention\.query", "attn.q"),
    (r"attention\.attention\.key", "attn.k"), (r"attention\.attention\.value", "attn.v"))]


def settings(path, name="config.json"):
    """The content of a JSON file beside the weights, empty where there is none."""
    file = Path(path).parent / name
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file}: no JSON ({error})") from None
    return content if isinstance(content, dict) else {}


def read(state, format, path):
    """transformers' AST. Where config.json or preprocessor_config.json is not beside the weights, the published
    AudioSet model's settings hold. Positions and tokens become time-major, as everywhere here."""
    import torch
    about, features = settings(path), settings(path, "preprocessor_config.json")
    state = {k.removeprefix("audio_spectrogram_transformer."): v for k, v in state.items()}
    cls, distillation, positions, kernel = (state.pop(f"embeddings.{k}") for k in (
        "cls_token", "distillation_token", "position_embeddings", "patch_embeddings.projection.weight"))
    used, heads, dropped = rename(state, [
        *_RULES, (r"embeddings\.patch_embeddings\.projection\.bias", "patch.bias"),
        (r"layernorm\.(weight|bias)", r"norm.\1"), (r"classifier\.layernorm\.(weight|bias)", r"head:norm.\1"),
        (r"classifier\.dense\.(weight|bias)", r"head:linear.\1")], r"$^", path, format)
    for key in [k for k in used if re.search(r"attn\.q\.", k)]:
        used[key.replace(".q.", ".qkv.")] = torch.cat([used.pop(key.replace(".q.", f".{x}.")) for x in "qkv"])
    (dim, channels, *patch), positions = kernel.shape, positions[0]
    if channels != 1:
        raise ValueError(f"patch_embeddings.projection.weight: {channels} channels, an image model's,")
    eps = about.get("layer_norm_eps", 1e-12)
    mean, scale = features.get("mean", EncoderConfig.mean), 2 * features.get("std", EncoderConfig.scale / 2)
    if not features.get("do_normalize", True):
        mean, scale = 0.0, 1.0
    config = EncoderConfig(
        name=f"ast-{dim}", dim=dim, depth=depth_of(used), heads=about.get("num_attention_heads", dim // 64),
        mlp_ratio=len(used["blocks.0.mlp.fc1.weight"]) / dim, qkv_bias="blocks.0.attn.qkv.bias" in used, eps=eps,
        patch=patch, stride=(about.get("frequency_stride", 10), about.get("time_stride", 10)), specials=2,
        frames=about.get("max_length", 1024), n_mels=about.get("num_mel_bins", 128),
        sample_rate=features.get("sampling_rate", 16000), mean=mean, scale=scale, pad="published", pool="specials")
    columns, rows = config.grid
    used |= {"patch.weight": kernel.flatten(1), "specials": torch.cat([cls[0], distillation[0]]),
             "mask_token": torch.zeros(dim), "positions.specials": positions[:2],
             "positions.table": positions[2:].view(rows, columns, dim).transpose(0, 1)}
    names = about.get("id2label", {}) if heads else {}
    return Checkpoint(format, config, used, with_eps(heads, eps), dropped,
                      [names[k] for k in sorted(names, key=int)])
