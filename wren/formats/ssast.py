"""SSAST, GPM-BT and AST: files of `v.` keys, which became time-major here; and our encoder in SSAST's layout."""
from wren.cli import UserError
from wren.formats.common import BLOCK, Checkpoint, depth_of, rename, with_eps
from wren.recipes import EncoderConfig


def read(state, format, path):
    """SSAST, AST or GPM-BT. Positions and tokens become time-major here, once."""
    import torch
    state = dict(state)
    kernel = state.pop("v.patch_embed.proj.weight")
    dim, _, height, width = kernel.shape
    positions = state.pop("v.pos_embed")[0]
    specials = [state.pop(f"v.{name}_token")[0, 0] for name in ("cls", "dist") if f"v.{name}_token" in state]
    columns, rows, stride, frames = _grid(state, len(positions) - len(specials), (height, width), path)
    mask_token = state.pop("mask_embed")[0, 0] if "mask_embed" in state else torch.zeros(dim)
    used, heads, dropped = rename(state, [
        (r"v\.patch_embed\.proj\.bias", "patch.bias"), (rf"v\.{BLOCK}", r"\1"), (r"v\.(norm\.(weight|bias))", r"\1"),
        (r"cpredlayer\.(\d\.(weight|bias))", r"objective:classify.\1"),
        (r"gpredlayer\.(\d\.(weight|bias))", r"objective:reconstruct.\1"),
        (r"mlp_head\.0\.(weight|bias)", r"head:norm.\1"), (r"mlp_head\.1\.(weight|bias)", r"head:linear.\1"),
        (r"v\.(head(_dist)?\.(weight|bias))", r"unused:\1")], r"p_input_[ft]dim|mask_correct", path, format)
    used |= {"patch.weight": kernel.flatten(1), "specials": torch.stack(specials), "mask_token": mask_token,
             "positions.specials": positions[:len(specials)],
             "positions.table": positions[len(specials):].view(rows, columns, dim).transpose(0, 1)}
    config = EncoderConfig(name=f"{format}-{dim}", dim=dim, depth=depth_of(used), heads=dim // 64,
                           patch=(height, width), stride=stride, specials=len(specials), frames=frames, n_mels=128,
                           pad="published", pool="specials" if format == "ast" else "mean")
    if format == "gpm-bt":
        config.window, config.mean, config.scale = 0.050, 0.0, 1.0
    return Checkpoint(format, config, used, with_eps(heads, 1e-5), dropped)


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
    out |= {f"v.{k}": v for k, v in s.items() if k.startswith(("blocks.", "norm."))}
    for ours, theirs in (("classify", "cpredlayer"), ("reconstruct", "gpredlayer")):
        out |= {k.replace(ours, theirs): v for k, v in found.heads.get("objective", {}).items() if k.startswith(ours)}
    out |= {f"v.{k}": v for k, v in found.heads.get("unused", {}).items()}
    return {f"module.{k}": v.clone().contiguous() for k, v in out.items()}
