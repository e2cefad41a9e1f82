"""ATST-Clip's and ATST-Frame's files."""
from dataclasses import replace

from wren.cli import UserError
from wren.formats.common import BLOCK, Checkpoint, depth_of, rename
from wren.recipes import PRESETS

_PREFIXES = ("model.teacher.encoder.", "module.backbone.", "")  # Lightning's, DINO's, the encoder alone


def prefix_of(state):
    """What the encoder's keys begin with, or None where there is no encoder of ATST's."""
    return next((p for p in _PREFIXES if p + "patch_embed.patch_embed.weight" in state), None)


def read(state, format, path):
    """ATST-Clip or -Frame, Lightning or DINO-style, or the encoder alone: the teacher's encoder, as downstream code
    uses it. Slot 0 of the positions is the class token's; Frame has none and never reads it.

    Longer clips are cut as in the published code, every 601 (Clip) or 1001 frames (Frame), of which the last fills no
    token: each later window begins 10 ms later than tokens of 40 ms would. Its clip vectors differ in two ways: Frame's
    counts every window alike, however full, and both leave out a window that is at most half full.
    """
    prefix = prefix_of(state)
    if prefix is None:
        raise KeyError("patch_embed.patch_embed.weight")
    clip = format == "atst-clip"
    if not clip and prefix + "cls_token" in state:
        raise ValueError("cls_token: a class token belongs to ATST-Clip, which")
    rest = [k for k in state if not k.startswith(prefix)]
    if odd := [k for k in rest if not k.startswith(("model.student.", "model.teacher.", "head.", "module.head."))]:
        raise UserError(f"{path}: unknown key {odd[0]} in a checkpoint of format {format}")
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    positions, mask = inside.pop("pos_embed")[0], inside.pop("mask_embed")
    used, heads, dropped = rename(inside, [
        (r"patch_embed\.patch_embed\.(weight|bias)", r"patch.\1"), (BLOCK, r"\1"), (r"cls_token", "specials"),
        (rf"norm{'' if clip else '_frame'}\.(weight|bias)", r"norm.\1")], r"$^", path, format)
    used["positions.table"] = positions[1:, None]
    if clip:
        used |= {"specials": used["specials"][0], "positions.specials": positions[:1]}
        dropped.append(prefix + "mask_embed")  # never trained in Clip
    else:
        used["mask_token"] = mask[0, 0]
    dim = positions.shape[1]
    config = replace(PRESETS["atst-base" if clip else "atst-frame-base"], name=f"{format}-{dim}", dim=dim,
                     depth=depth_of(used), heads=dim // 64, frames=4 * (len(positions) - 1), pad="published",
                     pool="both" if clip else "mean", chunk=601 if clip else 4 * (len(positions) - 1) + 1)
    trained = {k.removeprefix("model.student."): state[k] for k in rest
               if k.startswith(("model.student.projector.", "model.student.predictor."))}
    rest = [k for k in rest if k.removeprefix("model.student.") not in trained]
    return Checkpoint(format, config, used, {"objective": trained} if trained else {}, dropped + rest)
