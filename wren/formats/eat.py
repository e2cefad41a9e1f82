"""EAT's files, of fairseq and of Hugging Face."""
from dataclasses import replace

from wren.formats.common import BLOCK, Checkpoint, decoder_rules, depth_of, rename, with_eps
from wren.recipes import PRESETS


def read(state, format, path):
    """EAT: fairseq pre-trained, fairseq fine-tuned (prefix "model."), Hugging Face ("model.", other names). The fixed
    position table is computed, not read; the pre-training decoder goes with the heads."""
    huggingface = "model.pre_norm.weight" in state
    if all(k.startswith("model.") for k in state):
        state = {k.removeprefix("model."): v for k, v in state.items()}
    e = "" if huggingface else r"modality_encoders\.IMAGE\."
    norm = "pre_norm" if huggingface else e + r"context_encoder\.norm"
    state = dict(state)
    kernel, cls = (state.pop(e.replace("\\", "") + k) for k in ("local_encoder.proj.weight", "extra_tokens"))
    used, heads, dropped = rename(state, [
        (e + r"local_encoder\.proj\.bias", "patch.bias"), (norm + r"\.(weight|bias)", r"token_norm.\1"),
        (BLOCK, r"\1"), (r"fc_norm\.(weight|bias)", r"head:norm.\1"), (r"head\.(weight|bias)", r"head:linear.\1"),
        *decoder_rules(e)], e + r"fixed_positional_encoder\.positions", path, format)
    dim = len(kernel)
    used |= {"patch.weight": kernel[:, 0].transpose(1, 2).flatten(1), "specials": cls[0]}
    config = replace(PRESETS["eat-base"], name=f"eat-{dim}", dim=dim, depth=depth_of(used), heads=dim // 64,
                     pad="published", chunk=12288)  # its table has 768 columns
    return Checkpoint(format, config, used, with_eps(heads, 1e-5 if huggingface else 1e-6), dropped)
