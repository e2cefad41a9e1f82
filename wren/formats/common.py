"""What the families share: what a checkpoint becomes, and renaming keys by rules."""
import re
from dataclasses import dataclass, field

from wren.cli import UserError
from wren.recipes import EncoderConfig


@dataclass
class Checkpoint:
    format: str
    config: EncoderConfig
    state: dict  # our encoder's keys
    heads: dict = field(default_factory=dict)  # {"objective", "head", "frames" or "unused": {key: tensor}}
    dropped: list = field(default_factory=list)  # published keys without use
    labels: list = field(default_factory=list)  # names of the head's classes, where known


BLOCK = r"(blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(?:weight|bias))"


def rename(state, rules, droppable, path, format):
    """(our state, heads, dropped keys): each key by the first rule (pattern, replacement) that fits all of it.

    A replacement "head:linear.weight" puts a tensor under heads. Keys that fit `droppable` are dropped; others are
    an error.
    """
    used, heads, dropped = {}, {}, []
    for key, tensor in state.items():
        match = next(((m, new) for old, new in rules if (m := re.fullmatch(old, key))), None)
        if match is None and re.fullmatch(droppable, key):
            dropped.append(key)
        elif match is None:
            raise UserError(f"{path}: unknown key {key} in a checkpoint of format {format}")
        else:
            group, _, name = match[0].expand(match[1]).rpartition(":")
            (heads.setdefault(group, {}) if group else used)[name] = tensor
    return used, heads, dropped


def depth_of(state):
    return 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))


def with_eps(heads, eps):
    """Note the LayerNorm epsilon of a published head beside its weights."""
    import torch
    if "norm.weight" in heads.get("head", {}):
        heads["head"]["norm.eps"] = torch.tensor(eps, dtype=torch.float64)
    return heads


def decoder_rules(prefix):
    """Rules for data2vec 2.0's convolutional decoder."""
    return [(prefix + r"decoder\.blocks\.(\d)\.0\.(weight|bias)", r"objective:decoder.convs.\1.\2"),
            (prefix + r"decoder\.proj\.(weight|bias)", r"objective:decoder.proj.\1")]
