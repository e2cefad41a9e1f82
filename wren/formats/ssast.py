"""SSAST, GPM-BT and AST: files of `v.` keys, which became time-major here; and our encoder in SSAST's layout."""
from itertools import product

from wren.cli import UserError
from wren.formats.common import BLOCK, Checkpoint, rename, sized

_PRESETS = {"gpm-bt": "gpm-bt-patch", "ast": "ast-base"}
_HEADS = {"classify": "cpredlayer", "reconstruct": "gpredlayer"}


def read(state, format, path):
    """SSAST, AST or GPM-BT. Positions and tokens become time-major here, once."""
    import torch
    kernel, positions = state.pop("v.patch_embed.proj.weight"), state.pop("v.pos_embed")[0]
    dim, _, *patch = kernel.shape
    specials = torch.stack([state.pop(f"v.{k}_token")[0, 0] for k in ("cls", "dist") if f"v.{k}_token" in state])
    n = len(specials)
    columns, rows, stride, frames = _grid(state, len(positions) - n, *patch)
    mask_token = state.pop("mask_embed")[0, 0] if "mask_embed" in state else torch.zeros(dim)
    used, heads, dropped = rename(state, {
        "v.patch_embed.proj": "patch", "v." + BLOCK: r"\1", "v.norm": "norm", "mlp_head.0": "head:norm",
        "mlp_head.1": "head:linear", "v.(head(_dist)?)": r"unused:\1",
        **{rf"{theirs}.(\d)": rf"objective:{ours}.\1" for ours, theirs in _HEADS.items()}},
        unused=("p_input_fdim", "p_input_tdim", "mask_correct"), eps=1e-5)
    used |= {"patch.weight": kernel.flatten(1), "specials": specials, "mask_token": mask_token,
             "positions.specials": positions[:n],
             "positions.table": positions[n:].view(rows, columns, dim).transpose(0, 1)}
    config = sized(_PRESETS.get(format, "ssast-base-patch"), format, dim, used, patch=patch, stride=stride,
                   specials=n, frames=frames)
    return Checkpoint(format, config, used, heads, dropped)


def _grid(state, n, height, width):
    """(T', F', stride, frames) of n position rows. Pre-training files store the input size; fine-tuned ones do not,
    so stride and length are taken from the published combinations that give n."""
    if "p_input_fdim" in state:
        bands, frames = (int(state[f"p_input_{axis}dim"]) for axis in "ft")
        sizes = [((height, width), bands, frames - frames % width)]
    else:
        strides = ((10, 10), (12, 12), (14, 14), (16, 16)) if height == 16 else ((128, 1), (128, 2))
        sizes = product(strides, (128,), (1024, 512, 128))
    grids = [((frames - width) // stride[1] + 1, (bands - height) // stride[0] + 1, stride, frames)
             for stride, bands, frames in sizes]
    fitting = [grid for grid in grids if grid[0] * grid[1] == n]
    if len(fitting) != 1:
        sizes = ", ".join(f"{columns} × {rows}" for columns, rows, *_ in grids)
        raise ValueError(f"pos_embed has {n} positions, which fit {len(fitting) or 'none'} of the grids {sizes}")
    return fitting[0]


def write(found, path):
    """Our encoder in SSAST's layout, which its own code and GPM-BT's open; with objective heads if there."""
    import torch
    c, s = found.config, found.state
    if not (c.frontend == "kaldi" and c.positions == "learned" and c.norm == "pre" and c.final_norm and c.qkv_bias
            and c.specials == 2 and c.stride == c.patch and c.mlp_ratio == 4 and c.dim == 64 * c.heads
            and c.mask_token and c.eps == 1e-6 and not c.prenet):
        raise UserError(f"{path}: {c.name} is no SSAST encoder (two special tokens, learned positions, no "
                        "overlap, heads of width 64), so SSAST's layout cannot hold it")
    (t, f), (height, width) = c.grid, c.patch
    positions = torch.cat([s["positions.specials"], s["positions.table"].transpose(0, 1).reshape(t * f, c.dim)])
    out = {"p_input_fdim": torch.tensor(f * height), "p_input_tdim": torch.tensor(t * width),
           "mask_embed": s["mask_token"].view(1, 1, -1), "v.cls_token": s["specials"][:1, None],
           "v.dist_token": s["specials"][1:, None], "v.pos_embed": positions[None],
           "v.patch_embed.proj.weight": s["patch.weight"].view(c.dim, 1, height, width),
           "v.patch_embed.proj.bias": s["patch.bias"]}
    kept = {k: v for k, v in s.items() if k.startswith(("blocks.", "norm."))} | found.heads.get("unused", {})
    out |= {f"v.{k}": v for k, v in kept.items()}
    for ours, theirs in _HEADS.items():
        out |= {k.replace(ours, theirs): v for k, v in found.heads.get("objective", {}).items() if k.startswith(ours)}
    return {f"module.{k}": v.clone().contiguous() for k, v in out.items()}
