"""Hugging Face's folders: what config.json says, and transformers' AST (ASTModel, ASTForAudioClassification).

Dasheng's, EAT's and timm's AudioMAE folders hold their families' own keys and are read there.
"""
import json
from pathlib import Path

from wren.cli import UserError
from wren.formats.common import Checkpoint, rename, sized
from wren.recipes import EncoderConfig

_RULES = {"embeddings.patch_embeddings.projection": "patch", "layernorm": "norm", "classifier.layernorm": "head:norm",
          "classifier.dense": "head:linear"} | {rf"encoder.layer.(\d+).{old}": rf"blocks.\1.{new}" for old, new in {
              "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "attn.proj",
              "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2", "attention.attention.query": "attn.q",
              "attention.attention.key": "attn.k", "attention.attention.value": "attn.v"}.items()}


def settings(path, name="config.json"):
    """The content of a JSON file beside the weights, empty where there is none."""
    file = Path(path).parent / name
    try:
        content = json.loads(file.read_text()) if file.exists() else {}
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
    eps = about.get("layer_norm_eps", 1e-12)
    used, heads, dropped = rename(state, _RULES, eps=eps)
    for key in [k for k in used if ".attn.q." in k]:
        used[key.replace(".q.", ".qkv.")] = torch.cat([used.pop(key.replace(".q.", f".{x}.")) for x in "qkv"])
    (dim, channels, *patch), positions = kernel.shape, positions[0]
    if channels != 1:
        raise ValueError(f"patch_embeddings.projection.weight has {channels} channels, as an image model's")
    mean, scale = features.get("mean", EncoderConfig.mean), 2 * features.get("std", EncoderConfig.scale / 2)
    if not features.get("do_normalize", True):
        mean, scale = 0.0, 1.0
    config = sized(
        "ast-base", "ast", dim, used, heads=about.get("num_attention_heads", dim // 64), eps=eps, patch=patch,
        mlp_ratio=len(used["blocks.0.mlp.fc1.weight"]) / dim, qkv_bias="blocks.0.attn.qkv.bias" in used,
        stride=(about.get("frequency_stride", 10), about.get("time_stride", 10)), frames=about.get("max_length", 1024),
        n_mels=about.get("num_mel_bins", 128), sample_rate=features.get("sampling_rate", 16000), mean=mean, scale=scale)
    columns, rows = config.grid
    used |= {"patch.weight": kernel.flatten(1), "specials": torch.cat([cls[0], distillation[0]]),
             "mask_token": torch.zeros(dim), "positions.specials": positions[:2],
             "positions.table": positions[2:].view(rows, columns, dim).transpose(0, 1)}
    names = about.get("id2label", {}) if heads else {}
    return Checkpoint(format, config, used, heads, dropped, [names[k] for k in sorted(names, key=int)])
