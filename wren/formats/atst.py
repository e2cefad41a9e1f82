"""ATST-Clip or -Frame, Lightning or DINO-style, or the encoder alone. Of teacher and student it is the teacher's, as
downstream code uses it. Slot 0 of the positions is the class token's; Frame has none and never reads it.

Longer clips are cut as in the published code, every 601 (Clip) or 1001 frames (Frame), of which the last fills no
token: each later window begins 10 ms later than tokens of 40 ms would. Its clip vectors differ in two ways: Frame's
counts every window alike, however full, and both leave out a window that is at most half full.
"""
from wren.formats.common import BLOCK, Checkpoint, rename, sized

_PREFIXES = ("model.teacher.encoder.", "module.backbone.", "")  # Lightning's, DINO's, the encoder alone


def prefix_of(state):
    """What the encoder's keys begin with, or None where there is no encoder of ATST's."""
    return next((p for p in _PREFIXES if p + "patch_embed.patch_embed.weight" in state), None)


def read(state, format, path):
    prefix, clip = prefix_of(state) or "", format == "atst-clip"
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    heads_of = ("model.student.projector.", "model.student.predictor.")
    trained = {k.removeprefix("model.student."): v for k, v in state.items() if k.startswith(heads_of)}
    rest = [k for k in state if not k.startswith((prefix, *heads_of))]
    if odd := [k for k in rest if not k.startswith(("model.student.", "model.teacher.", "head.", "module.head."))]:
        raise ValueError(f"there is the unknown key {odd[0]}")
    positions, mask = inside.pop("pos_embed")[0], inside.pop("mask_embed")
    specials = inside.pop("cls_token")[0] if clip else None
    norm = "norm" if clip else "norm_frame"
    used, _, dropped = rename(inside, {"patch_embed.patch_embed": "patch", BLOCK: r"\1", norm: "norm"})
    used["positions.table"] = positions[1:, None]
    if clip:
        used |= {"specials": specials, "positions.specials": positions[:1]}
        dropped.append(prefix + "mask_embed")  # never trained in Clip
    else:
        used["mask_token"] = mask[0, 0]
    frames = 4 * (len(positions) - 1)
    config = sized("atst-base" if clip else "atst-frame-base", format, positions.shape[1], used, frames=frames,
                   pool="both" if clip else "mean", chunk=601 if clip else frames + 1)
    return Checkpoint(format, config, used, {"objective": trained} if trained else {}, dropped + rest)
