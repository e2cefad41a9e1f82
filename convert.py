"""Published checkpoints -> (config, state) of our encoder: pure key maps, one function a format.

    found = convert.read("SSAST-Base-Patch-400.pth")       # found.format, .config, .state, .heads, .dropped

Recognised by their keys: our own files, SSAST pre-training, SSAST fine-tuned, AST fine-tuned, GPM-BT. GPM-BT's files
are SSAST's to the letter but were trained on another front end, and fine-tuned SSAST differs from AST only in how it
is used, so there the format must be named. Every key is used, known to be droppable, or an error.
"""
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cli import UserError
from recipes import EncoderConfig

FORMATS = ("wren", "ssast", "gpm-bt", "ssast-finetuned", "ast")


@dataclass
class Checkpoint:
    format: str
    config: EncoderConfig
    state: dict  # our encoder's keys
    heads: dict = field(default_factory=dict)  # {"objective" or "head": {key: tensor}} that came along
    dropped: list = field(default_factory=list)  # published keys without use


def read(path, format=None):
    """Open a checkpoint file without running any code from it, and map it to our keys."""
    if format is not None and format not in FORMATS:
        raise UserError(f"format {format!r} is unknown: choose one of {', '.join(FORMATS)}")
    content = open_file(path)
    if isinstance(content, dict) and {"version", "config", "model"} <= content.keys():
        return _own(content, path)
    if isinstance(content, dict) and "encoder" in content and isinstance(content["encoder"], dict):
        return _own(content["encoder"], path)
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise UserError(f"{path}: not a checkpoint that wren knows ({', '.join(FORMATS)})")
    state = {k.removeprefix("module."): v for k, v in content.items()}
    format = format or _recognise(state, path)
    return _vit(state, format, path)


def open_file(path):
    """torch.load with weights only; what is missing, damaged or would need code is an error of one line."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; give a file, a run folder or a preset's name (see --help)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = "it needs code to run" if "weights_only" in str(error) else "it is damaged or no checkpoint"
        raise UserError(f"{path}: cannot be opened: {reason} ({str(error).splitlines()[0][:90]})") from None


def _own(content, path):
    if content["version"] != 1:
        raise UserError(f"{path}: written by another version of wren (file version {content['version']}, here 1)")
    try:
        return Checkpoint("wren", EncoderConfig.from_dict(content["config"]), content["model"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def _recognise(state, path):
    if "v.patch_embed.proj.weight" not in state:
        raise UserError(f"{path}: no known layout; its first keys are {', '.join(list(state)[:3])}")
    if "p_input_fdim" in state:
        raise UserError(f"{path}: the keys fit SSAST and GPM-BT: say --format ssast (25 ms window, normalised) or "
                        "--format gpm-bt (50 ms, not normalised)")
    raise UserError(f"{path}: the keys fit fine-tuned SSAST and AST: say --format ssast-finetuned or --format ast")


# ------------------------------------------------------------------------------------- SSAST, AST and GPM-BT

_DEAD = re.compile(r"v\.head(_dist)?\.(weight|bias)|p_input_[ft]dim|mask_correct")


def _vit(state, format, path):
    """SSAST, AST or GPM-BT keys (prefix stripped) -> ours. Positions and tokens become time-major here, once."""
    state, used = dict(state), {}
    heads, dropped = {}, [k for k in state if _DEAD.fullmatch(k)]
    try:
        kernel = state.pop("v.patch_embed.proj.weight")
        dim, _, height, width = kernel.shape
        positions = state.pop("v.pos_embed")[0]
        specials = [state.pop(f"v.{name}_token")[0, 0] for name in ("cls", "dist") if f"v.{name}_token" in state]
        used["patch.weight"], used["patch.bias"] = kernel.flatten(1), state.pop("v.patch_embed.proj.bias")
        used["specials"], used["special_positions"] = torch.stack(specials), positions[:len(specials)]
        columns, rows, stride, frames = _grid(state, len(positions) - len(specials), (height, width), path)
        used["positions"] = positions[len(specials):].view(rows, columns, dim).transpose(0, 1).contiguous()
        used["mask_token"] = state.pop("mask_embed")[0, 0] if "mask_embed" in state else torch.zeros(dim)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"{path}: {format} layout expected, but key or shape {error} is off") from None
    for key in [k for k in state if k not in dropped]:
        if match := re.fullmatch(r"v\.((?:blocks\.\d+\..+)|(?:norm\..+))", key):
            used[match[1]] = state.pop(key)
        elif match := re.fullmatch(r"(cpredlayer|gpredlayer)\.(\d)\.(.+)", key):
            name = {"cpredlayer": "classify", "gpredlayer": "reconstruct"}[match[1]]
            heads.setdefault("objective", {})[f"{name}.{match[2]}.{match[3]}"] = state.pop(key)
        elif match := re.fullmatch(r"mlp_head\.([01])\.(.+)", key):
            heads.setdefault("head", {})[f"{('norm', 'linear')[int(match[1])]}.{match[2]}"] = state.pop(key)
        else:
            raise UserError(f"{path}: unknown key {key} in a checkpoint of format {format}")
    depth = 1 + max(int(k.split(".")[1]) for k in used if k.startswith("blocks."))
    config = EncoderConfig(name=f"{format}-{dim}", dim=dim, depth=depth, heads=dim // 64, patch=(height, width),
                           stride=stride, specials=len(specials), frames=frames, n_mels=128, pad="published",
                           pool="specials" if format == "ast" else "mean")
    if format == "gpm-bt":
        config.window, config.mean, config.scale = 0.050, 0.0, 1.0
    return Checkpoint(format, config, used, heads, dropped)


def _grid(state, n, patch, path):
    """(T', F', stride, frames) of n position rows. Pre-training files store the input size; fine-tuned ones do not,
    so stride and length are taken from the published combinations that give n."""
    height, width = patch
    if "p_input_fdim" in state:
        rows, columns = int(state["p_input_fdim"]) // height, int(state["p_input_tdim"]) // width
        if rows * columns != n:
            raise ValueError(f"pos_embed: {n} positions for a grid of {rows} × {columns}")
        return columns, rows, patch, columns * width
    choices = []
    for stride in ((10, 10), (12, 12), (14, 14), (16, 16)) if height == 16 else ((128, 1), (128, 2)):
        rows = (128 - height) // stride[0] + 1
        for frames in (1024, 512, 128):
            columns = (frames - width) // stride[1] + 1
            if rows * columns == n:
                choices.append((columns, rows, stride, frames))
    if len(choices) == 1:
        return choices[0]
    raise ValueError(f"pos_embed: {n} positions fit {len(choices) or 'no'} published input sizes")
