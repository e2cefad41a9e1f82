"""animal2vec, pre-trained or fine-tuned (then with a linear head on the mean of the feed-forward outputs of the main
blocks, a logit a class and frame)."""
import re

from wren.formats.common import BLOCK, Checkpoint, decoder_rules, depth_of, rename, sized
from wren.recipes import PRESETS

LABELS = ["beep", "synch", "sn", "cc", "ld", "oth", "mo", "al", "soc", "agg", "eating", "focal"]


def read(state, format, path):
    a, layers = "modality_encoders.AUDIO.", "modality_encoders.AUDIO.local_encoder.conv_layers."
    state = {k.removeprefix("w2v_encoder.w2v_model."): v for k, v in state.items()}
    vectors = {ours: state.pop(theirs).flatten() for ours, theirs in (
        ("patch.sinc.low", layers + "0.0.low_hz_"), ("patch.sinc.band", layers + "0.0.band_hz_"),
        ("patch.swish_alpha", layers + "0.3.p_swish_alpha"), ("patch.swish_beta", layers + "0.3.p_swish_beta"),
        ("alibi_scale", a + "alibi_scale"))}
    used, heads, dropped = rename(state, {
        layers + r"(\d+).0": r"convs:\1", layers + r"(\d+).2.1": r"patch.norms.\1",
        a + "project_features.1": "patch.norm", a + "project_features.2": "patch.linear",
        a + r"relative_positional_encoder.(\d).0": r"positions:\1", a + "context_encoder.norm": "token_norm",
        a + "context_encoder." + BLOCK: r"prenet:\1", BLOCK: r"main:\1", "w2v_encoder.proj": "frames:linear",
        **decoder_rules(a)})
    if decoder := heads.get("objective"):  # 1-D convolutions become 2-D ones of one row
        heads["objective"] = {k: v[..., None] if v.dim() == 3 else v for k, v in decoder.items()}
    prenet = heads.pop("prenet")
    used |= vectors | prenet | _moved(heads.pop("main"), depth_of(prenet))
    used |= _moved(heads.pop("convs"), -1, "patch.convs.") | _moved(heads.pop("positions"), -1, "positions.convs.")
    sinc, *convs = PRESETS["animal2vec-large"].convs
    convs = [(len(used[f"patch.convs.{i}.weight"]), *conv[1:]) for i, conv in enumerate(convs)]
    config = sized("animal2vec-large", format, len(used["patch.linear.weight"]), used, prenet=depth_of(prenet),
                   heads=len(used["alibi_scale"]), convs=((len(used["patch.sinc.low"]), *sinc[1:]), *convs))
    classes = len(heads.get("frames", {}).get("linear.bias", ()))
    return Checkpoint(format, config, used, heads, dropped, LABELS if classes == len(LABELS) else [])


def _moved(state, by, prefix=""):
    """A state with the first number of each key moved on, behind a prefix."""
    return {prefix + re.sub(r"\d+", lambda n: str(int(n[0]) + by), k, count=1): v for k, v in state.items()}
