"""EAT: fairseq pre-trained, fairseq fine-tuned (prefix "model."), Hugging Face ("model.", other names). The fixed
position table is computed, not read; the pre-training decoder goes with the heads."""
from wren.formats.common import BLOCK, Checkpoint, decoder_rules, rename, sized


def read(state, format, path):
    huggingface = "model.pre_norm.weight" in state
    if all(k.startswith("model.") for k in state):
        state = {k.removeprefix("model."): v for k, v in state.items()}
    e = "" if huggingface else "modality_encoders.IMAGE."
    kernel, cls = (state.pop(e + k) for k in ("local_encoder.proj.weight", "extra_tokens"))
    used, heads, dropped = rename(state, {
        e + "local_encoder.proj": "patch", "pre_norm" if huggingface else e + "context_encoder.norm": "token_norm",
        BLOCK: r"\1", "fc_norm": "head:norm", "head": "head:linear", **decoder_rules(e)},
        unused=e + "fixed_positional_encoder.positions", eps=1e-5 if huggingface else 1e-6)
    used |= {"patch.weight": kernel[:, 0].transpose(1, 2).flatten(1), "specials": cls[0]}
    config = sized("eat-base", format, len(kernel), used, chunk=12288)  # its table has 768 columns
    return Checkpoint(format, config, used, heads, dropped)
