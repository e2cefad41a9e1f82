"""Published checkpoints -> (config, state) of our encoder, and back: pure key maps, one file a family.

    found = formats.read("SSAST-Base-Patch-400.pth", "ssast")    # found.format, .config, .state, .heads, .dropped

Every key is used, known to be droppable, or an error. Opening a file runs nothing from it.
"""
from pathlib import Path

from wren.cli import UserError
from wren.formats import animal2vec, atst, audiomae, dasheng, eat, huggingface, ours, ssast
from wren.formats.opening import Stub, newest_encoder, open_file, write_safetensors

__all__ = ["FORMATS", "newest_encoder", "open_file", "read", "write_safetensors"]

_FAMILIES = {"ssast": ssast, "gpm-bt": ssast, "ssast-finetuned": ssast, "ast": ssast, "ast-transformers": huggingface,
             "dasheng": dasheng, "audiomae": audiomae, "atst-clip": atst, "atst-frame": atst, "eat": eat,
             "animal2vec": animal2vec}
FORMATS = ("wren", *_FAMILIES)


def read(path, format=None):
    """Open a checkpoint -> Checkpoint in our keys. path: a file, a published folder (config.json beside
    model.safetensors), or a run folder's newest encoder; format: one of FORMATS where the keys can't decide."""
    if format not in (None, *FORMATS):
        raise UserError(f"format {format!r} is unknown: choose one of {', '.join(FORMATS)}")
    path = newest_encoder(path) if Path(path).is_dir() else Path(path)
    content = open_file(path)
    if own := ours.read(content, path):
        return own
    state = _tensors(content, path)
    format = format or _recognise(state, path)
    if format == "wren":
        raise UserError(f"{path}: not one of our files: it holds no version, config and model")
    try:
        found = _FAMILIES[format].read(state, format, path)
    except (KeyError, ValueError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        what = f"key {error} is missing" if isinstance(error, KeyError) else str(error).replace("\n", " ")
        raise UserError(f"{path}: {format} layout expected, but {what}") from None
    for part in (found.state, *found.heads.values()):
        part.update({k: v.clone().contiguous() for k, v in part.items()})
    return found


def _tensors(content, path):
    """The flat dict of tensors in a published file."""
    import torch
    if isinstance(content, dict):
        content = next((content[name] for name in ("state_dict", "teacher", "model")
                        if isinstance(content.get(name), dict)), content)
        content = {k: v for k, v in content.items() if k != "_ema"}  # a teacher beside the weights in use
    values = list(content.values()) if isinstance(content, dict) else [content]
    if stub := next((v for v in values if isinstance(v, Stub)), None):
        raise UserError(f"{path}: cannot be opened: it needs code to run ({stub.origin})")
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in values):
        raise UserError(f"{path}: not a checkpoint that wren knows ({', '.join(FORMATS)})")
    return {k.removeprefix("module.") if not k.startswith("module.backbone.") else k: v for k, v in content.items()}


def _recognise(state, path):
    """The format of a published state dict, by its keys."""
    if (prefix := atst.prefix_of(state)) is not None:
        return "atst-clip" if prefix + "cls_token" in state else "atst-frame"
    for key, format in (("time_pos_embed", "dasheng"), ("modality_encoders.AUDIO.", "animal2vec"),
                        ("modality_encoders.IMAGE.", "eat"), ("model.pre_norm.weight", "eat"),
                        ("embeddings.distillation_token", "ast-transformers")):
        if any(key in k for k in state):
            return format
    if {"pos_embed", "cls_token", "patch_embed.proj.weight"} <= state.keys():
        return "audiomae"
    if "v.patch_embed.proj.weight" not in state:
        kind = huggingface.settings(path).get("model_type")
        what = f"a transformers model of type {kind}, which wren does not read" if kind else "no known layout"
        raise UserError(f"{path}: {what}; its first keys are {', '.join(list(state)[:3])}")
    if "p_input_fdim" in state:
        raise UserError(f"{path}: the keys fit SSAST and GPM-BT: say --format ssast (25 ms window, normalised) or "
                        "--format gpm-bt (50 ms, not normalised)")
    raise UserError(f"{path}: the keys fit fine-tuned SSAST and AST: say --format ssast-finetuned or --format ast")
