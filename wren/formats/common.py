"""What the families share: what a checkpoint becomes, renaming its modules by rules, a preset in its size."""
import re
from dataclasses import dataclass, field, replace

from wren.recipes import PRESETS, EncoderConfig

BLOCK = r"(blocks.\d+.(?:norm[12]|attn.qkv|attn.proj|mlp.fc[12]))"
_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass
class Checkpoint:
    format: str
    config: EncoderConfig
    state: dict  # our encoder's keys
    heads: dict = field(default_factory=dict)  # {"objective", "head", "frames" or "unused": {key: tensor}}
    dropped: list = field(default_factory=list)  # published keys without use
    labels: list = field(default_factory=list)  # names of the head's classes, where known


def rename(state, rules, unused=(), eps=None):
    """(our state, heads, dropped keys) by {pattern of a module: our name}, where dots mean dots, and a name
    "head:linear" puts the module's tensors under heads.

    Keys that begin like `unused` are dropped, others without a rule are an error. eps: of the LayerNorm in a
    classifier's head, which is noted beside its weights.
    """
    import torch
    used, heads, dropped = {}, {}, []
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        names = (match.expand(new) for old, new in rules.items()
                 if (match := re.fullmatch(old.replace(".", r"\."), module)))
        found = next(names, None) if leaf in _LEAVES else None
        if key.startswith(unused):
            dropped.append(key)
        elif found is None:
            raise ValueError(f"there is the unknown key {key}")
        else:
            group, _, name = found.rpartition(":")
            (heads.setdefault(group, {}) if group else used)[f"{name}.{leaf}"] = tensor
    if "norm.weight" in heads.get("head", {}):
        heads["head"]["norm.eps"] = torch.tensor(eps, dtype=torch.float64)
    return used, heads, dropped


def decoder_rules(prefix):
    """Rules for data2vec 2.0's convolutional decoder."""
    return {prefix + r"decoder.blocks.(\d).0": r"objective:decoder.convs.\1",
            prefix + "decoder.proj": "objective:decoder.proj"}


def depth_of(state):
    return 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))


def sized(preset, name, dim, state, **changes):
    """A preset as published, as wide and deep as a state; heads of 64 channels unless `changes` say otherwise."""
    size = dict(name=f"{name}-{dim}", dim=dim, depth=depth_of(state), heads=max(1, dim // 64), pad="published")
    return replace(PRESETS[preset], **size | changes)
