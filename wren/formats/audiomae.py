"""AudioMAE, pre-trained or fine-tuned, of its authors or of timm; the decoder is dropped. Its positions are loaded as
stored: they were made for a grid of 8 × 64 but tokens lie 64 × 8, and the weights have learned with them so."""
from wren.formats.common import BLOCK, Checkpoint, rename, sized


def read(state, format, path):
    kernel, positions, cls = (state.pop(k) for k in ("patch_embed.proj.weight", "pos_embed", "cls_token"))
    fc_norm = "head:norm" if "head.weight" in state else "pool_norm"  # of a clip vector, also without classes
    used, heads, dropped = rename(state, {
        "patch_embed.proj": "patch", BLOCK: r"\1", "norm": "norm", "fc_norm": fc_norm, "head": "head:linear"},
        unused=("decoder_", "mask_token"), eps=1e-6)
    dim, pool_norm = len(kernel), "pool_norm.weight" in used
    used |= {"patch.weight": kernel[:, 0].transpose(1, 2).flatten(1), "specials": cls[0],
             "positions.specials": positions[0, :1], "positions.table": positions[0, 1:].view(-1, 8, dim)}
    config = sized("audiomae-base", format, dim, used, frames=16 * len(used["positions.table"]), pool_norm=pool_norm,
                   final_norm=not (heads or pool_norm))
    return Checkpoint(format, config, used, heads, dropped)
