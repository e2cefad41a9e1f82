"""Dasheng's files, of Zenodo and of Hugging Face; and our encoder in Zenodo's layout."""
from dataclasses import replace

from wren.cli import UserError
from wren.formats.common import BLOCK, Checkpoint, depth_of, rename, with_eps
from wren.recipes import PRESETS


def read(state, format, path):
    """Dasheng, Zenodo ('model' beside 'config', front-end tables inside) or Hugging Face (prefix "encoder.")."""
    import torch

    from wren.nets.spectrograms import mel_filters_hertz
    prefix = "encoder." if "encoder.time_pos_embed" in state else ""
    state = {k.removeprefix(prefix): v for k, v in state.items()}
    table = state.get("front_end.0.mel_scale.fb")
    if table is not None and (table - mel_filters_hertz(64, 512, 16000, 0, 8000)).abs().max() > 1e-3:
        raise ValueError("front_end.0.mel_scale.fb: another mel filterbank")
    kernel, time, rows = (state.pop(k) for k in ("patch_embed.proj.weight", "time_pos_embed", "freq_pos_embed"))
    used, heads, dropped = rename(state, [
        (r"patch_embed\.proj\.bias", "patch.bias"), (BLOCK, r"\1"), (r"(norm\.(weight|bias))", r"\1"),
        (r"init_bn\.1\.(weight|bias|running_mean|running_var|num_batches_tracked)", r"input_norm.\1"),
        (r"outputlayer\.0\.(weight|bias)", r"head:norm.\1"), (r"outputlayer\.1\.(weight|bias)", r"head:linear.\1")],
        r"front_end\..+", path, format)
    dim = len(kernel)
    used |= {"patch.weight": kernel.flatten(1), "positions.table": time[0, :, 0].T[:, None],
             "positions.rows": rows[0, :, :, 0].T}
    used.setdefault("input_norm.num_batches_tracked", torch.tensor(0))
    heads_of = {768: 12, 1280: 16, 1536: 24}
    config = replace(PRESETS["dasheng-base"], name=f"dasheng-{dim}", dim=dim, depth=depth_of(used), pad="published",
                     heads=heads_of.get(dim, dim // 64), patch=kernel.shape[2:], stride=kernel.shape[2:],
                     n_mels=len(used["input_norm.weight"]), frames=time.shape[-1] * kernel.shape[3])
    return Checkpoint(format, config, used, with_eps(heads, 1e-5), dropped)


def write(found, path, huggingface=False):
    """Our encoder in Dasheng's layout as on Zenodo, the front-end tables torchaudio's, as published; or as on Hugging
    Face: a prefix, and no front end."""
    import torch
    import torchaudio
    c, s = found.config, found.state
    if not (c.frontend == "mel-db" and c.positions == "factorised" and c.input_norm and not c.specials):
        raise UserError(f"{path}: {c.name} is no Dasheng encoder, so Dasheng's layout cannot hold it")
    fb = torchaudio.functional.melscale_fbanks(c.window_samples // 2 + 1, c.f_min, c.f_max or c.sample_rate / 2,
                                               c.n_mels, c.sample_rate)
    out = {"time_pos_embed": s["positions.table"][:, 0].T[None, :, None],
           "freq_pos_embed": s["positions.rows"].T[None, ..., None],
           "front_end.0.spectrogram.window": torch.hann_window(c.window_samples), "front_end.0.mel_scale.fb": fb,
           "patch_embed.proj.weight": s["patch.weight"].view(c.dim, 1, *c.patch),
           "patch_embed.proj.bias": s["patch.bias"]}
    out |= {f"init_bn.1.{k.removeprefix('input_norm.')}": v for k, v in s.items() if k.startswith("input_norm.")}
    out |= {k: v for k, v in s.items() if k.startswith(("blocks.", "norm."))}
    head = found.heads.get("head", {})
    out |= {k.replace("norm", "outputlayer.0").replace("linear", "outputlayer.1"): v for k, v in head.items()
            if k != "norm.eps"}
    sizes = {"embed_dim": c.dim, "depth": c.depth, "num_heads": c.heads, "target_length": c.frames}
    out = {k: v.clone().contiguous() for k, v in out.items()}
    if huggingface:
        return {f"encoder.{k}": v for k, v in out.items() if not k.startswith("front_end.")}
    return {"model": out, "config": sizes}
