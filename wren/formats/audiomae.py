"""AudioMAE's files, pre-trained or fine-tuned, of its authors or of timm."""
from dataclasses import replace

from wren.formats.common import BLOCK, Checkpoint, depth_of, rename, with_eps
from wren.recipes import PRESETS


def read(state, format, path):
    """AudioMAE, pre-trained or fine-tuned; the decoder is dropped. Its positions are loaded as stored: they were made
    for a grid of 8 × 64 but tokens lie 64 × 8, and the weights have learned with them so.
    """
    state = dict(state)
    kernel, positions, cls = (state.pop(k) for k in ("patch_embed.proj.weight", "pos_embed", "cls_token"))
    used, heads, dropped = rename(state, [
        (r"patch_embed\.proj\.bias", "patch.bias"), (BLOCK, r"\1"), (r"(norm\.(weight|bias))", r"\1"),
        (r"fc_norm\.(weight|bias)", r"head:norm.\1"), (r"head\.(weight|bias)", r"head:linear.\1")],
        r"decoder_.+|mask_token", path, format)
    if "linear.weight" not in heads.get("head", {"linear.weight": None}):  # the norm of a clip vector, without classes
        used |= {f"pool_{k}": v for k, v in heads.pop("head").items()}
    dim = len(kernel)
    used |= {"patch.weight": kernel[:, 0].transpose(1, 2).flatten(1), "specials": cls[0],
             "positions.specials": positions[0, :1], "positions.table": positions[0, 1:].view(-1, 8, dim)}
    pool_norm = "pool_norm.weight" in used
    config = replace(PRESETS["audiomae-base"], name=f"audiomae-{dim}", dim=dim, depth=depth_of(used), heads=dim // 64,
                     frames=16 * len(used["positions.table"]), pad="published", pool_norm=pool_norm,
                     final_norm=not (heads or pool_norm))
    return Checkpoint(format, config, used, with_eps(heads, 1e-6), dropped)
