"""Dasheng's files, of Zenodo and of Hugging Face; and our encoder in these layouts."""
from wren.cli import UserError
from wren.formats.common import BLOCK, Checkpoint, rename, sized

_HEADS = {768: 12, 1280: 16, 1536: 24}  # of published widths


def read(state, format, path):
    """Dasheng, Zenodo ('model' beside 'config', front-end tables inside) or Hugging Face (prefix "encoder.")."""
    import torch

    from wren.nets.spectrograms import mel_filters_hertz
    prefix = "encoder." if "encoder.time_pos_embed" in state else ""
    state = {k.removeprefix(prefix): v for k, v in state.items()}
    table = state.get("front_end.0.mel_scale.fb")
    if table is not None and (table - mel_filters_hertz(64, 512, 16000, 0, 8000)).abs().max() > 1e-3:
        raise ValueError("front_end.0.mel_scale.fb holds another mel filterbank")
    kernel, time, rows = (state.pop(k) for k in ("patch_embed.proj.weight", "time_pos_embed", "freq_pos_embed"))
    used, heads, dropped = rename(state, {
        "patch_embed.proj": "patch", BLOCK: r"\1", "norm": "norm", "init_bn.1": "input_norm",
        "outputlayer.0": "head:norm", "outputlayer.1": "head:linear"}, unused="front_end.", eps=1e-5)
    used |= {"patch.weight": kernel.flatten(1), "positions.table": time[0, :, 0].T[:, None],
             "positions.rows": rows[0, :, :, 0].T}
    used.setdefault("input_norm.num_batches_tracked", torch.tensor(0))
    dim, _, *patch = kernel.shape
    config = sized("dasheng-base", format, dim, used, heads=_HEADS.get(dim, dim // 64), patch=patch, stride=patch,
                   n_mels=len(used["input_norm.weight"]), frames=time.shape[-1] * patch[1])
    return Checkpoint(format, config, used, heads, dropped)


def write(found, path, huggingface=False):
    """Our encoder in Dasheng's layout as on Zenodo, the front-end tables torchaudio's, as published; or as on Hugging
    Face: a prefix, and no front end."""
    import torch
    from torchaudio.functional import melscale_fbanks
    c, s, head = found.config, found.state, found.heads.get("head", {})
    if not (c.frontend == "mel-db" and c.positions == "factorised" and c.input_norm and not c.specials):
        raise UserError(f"{path}: {c.name} is no Dasheng encoder, so Dasheng's layout cannot hold it")
    out = {"time_pos_embed": s["positions.table"][:, 0].T[None, :, None],
           "freq_pos_embed": s["positions.rows"].T[None, ..., None],
           "patch_embed.proj.weight": s["patch.weight"].view(c.dim, 1, *c.patch),
           "patch_embed.proj.bias": s["patch.bias"]}
    out |= {k.replace("input_norm", "init_bn.1"): v for k, v in s.items()
            if k.startswith(("input_norm.", "blocks.", "norm."))}
    out |= {k.replace("norm", "outputlayer.0").replace("linear", "outputlayer.1"): v for k, v in head.items()
            if k != "norm.eps"}
    if huggingface:
        return {f"encoder.{k}": v for k, v in out.items()}
    filters = melscale_fbanks(c.window_samples // 2 + 1, c.f_min, c.f_max or c.sample_rate / 2, c.n_mels, c.sample_rate)
    out |= {"front_end.0.spectrogram.window": torch.hann_window(c.window_samples), "front_end.0.mel_scale.fb": filters}
    return {"model": {k: v.clone().contiguous() for k, v in out.items()},
            "config": {"embed_dim": c.dim, "depth": c.depth, "num_heads": c.heads, "target_length": c.frames}}
