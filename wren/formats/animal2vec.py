"""animal2vec's files, pre-trained or fine-tuned."""
import re
from dataclasses import replace

from wren.formats.common import BLOCK, Checkpoint, decoder_rules, depth_of, rename
from wren.recipes import PRESETS

LABELS = ["beep", "synch", "sn", "cc", "ld", "oth", "mo", "al", "soc", "agg", "eating", "focal"]


def read(state, format, path):
    """animal2vec, pre-trained or fine-tuned (then with a linear head on the mean of the feed-forward outputs of the
    main blocks, a logit a class and frame)."""
    fine = "w2v_encoder.w2v_model."
    state = {k.removeprefix(fine): v for k, v in state.items()}
    a, local = r"modality_encoders\.AUDIO\.", r"modality_encoders\.AUDIO\.local_encoder\.conv_layers\."
    used, heads, dropped = rename(state, [
        (local + r"0\.0\.(low|band)_hz_", r"patch.sinc.\1"), (local + r"0\.3\.p_(swish_\w+)", r"patch.\1"),
        (local + r"(\d+)\.0\.weight", r"convs:\1"), (local + r"(\d+)\.2\.1\.(weight|bias)", r"patch.norms.\1.\2"),
        (a + r"project_features\.1\.(weight|bias)", r"patch.norm.\1"),
        (a + r"project_features\.2\.(weight|bias)", r"patch.linear.\1"),
        (a + r"relative_positional_encoder\.(\d)\.0\.(weight|bias)", r"positions:\1.\2"),
        (a + r"context_encoder\.norm\.(weight|bias)", r"token_norm.\1"), (a + "alibi_scale", "alibi_scale"),
        (a + r"context_encoder\." + BLOCK, r"prenet:\1"), (BLOCK, r"main:\1"),
        (r"w2v_encoder\.proj\.(weight|bias)", r"frames:linear.\1"), *decoder_rules(a)], r"$^", path, format)
    if decoder := heads.get("objective"):  # 1-D convolutions become 2-D ones of one row
        heads["objective"] = {k: v[..., None] if v.dim() == 3 else v for k, v in decoder.items()}
    convs, prenet = heads.pop("convs"), heads.pop("prenet")
    before, main = depth_of(prenet), heads.pop("main")
    used |= {f"patch.convs.{int(i) - 1}.weight": w for i, w in convs.items()} | prenet
    used |= {f"positions.convs.{int(k[0]) - 1}.{k[2:]}": v for k, v in heads.pop("positions").items()}
    used |= {re.sub(r"\d+", lambda m: str(int(m[0]) + before), k, count=1): v for k, v in main.items()}
    for key in ("patch.sinc.low", "patch.sinc.band", "patch.swish_alpha", "patch.swish_beta", "alibi_scale"):
        used[key] = used[key].flatten()
    preset = PRESETS["animal2vec-large"]
    widths = [len(used["patch.sinc.low"])] + [len(convs[str(i)]) for i in range(1, len(preset.convs))]
    dim = len(used["patch.linear.weight"])
    config = replace(preset, name=f"animal2vec-{dim}", dim=dim, depth=depth_of(used), prenet=before, pad="published",
                     heads=len(used["alibi_scale"]), convs=tuple((n, *c[1:]) for n, c in zip(widths, preset.convs)))
    n = len(heads.get("frames", {}).get("linear.bias", ()))
    return Checkpoint(format, config, used, heads, dropped, LABELS if n == len(LABELS) else [])
