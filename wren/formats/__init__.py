"""Published checkpoints -> (config, state) of our encoder, and back: pure key maps, one function a family.

    python convert.py FILE                          # what is in it
    python convert.py FILE encoder.pt               # or .safetensors: as our encoder
    python convert.py runs/x/encoder.pt out.pth --to ssast    # our encoder in SSAST's layout
    found = convert.read("SSAST-Base-Patch-400.pth")          # found.format, .config, .state, .heads, .dropped

Formats are recognised by their keys. GPM-BT's files are SSAST's to the letter but were trained on another front end,
and fine-tuned SSAST differs from AST only in how it is used, so there the format must be named. Every key is used,
known to be droppable, or an error. Opening a file runs nothing from it.
"""
import json
import pickle
import re
import struct
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

from wren.cli import UserError
from wren.recipes import PRESETS, EncoderConfig

FORMATS = ("wren", "ssast", "gpm-bt", "ssast-finetuned", "ast", "dasheng", "audiomae", "atst-clip", "atst-frame",
           "eat", "animal2vec")
ANIMAL2VEC_LABELS = ["beep", "synch", "sn", "cc", "ld", "oth", "mo", "al", "soc", "agg", "eating", "focal"]


@dataclass
class Checkpoint:
    format: str
    config: EncoderConfig
    state: dict  # our encoder's keys
    heads: dict = field(default_factory=dict)  # {"objective", "head", "frames" or "unused": {key: tensor}}
    dropped: list = field(default_factory=list)  # published keys without use
    labels: list = field(default_factory=list)  # names of the head's classes, where known


def newest_encoder(folder):
    """The encoder of a run folder, or of the newest run below it."""
    folder = Path(folder)
    found = [folder / "encoder.pt"] if (folder / "encoder.pt").exists() else list(folder.glob("*/encoder.pt"))
    if not found:
        raise UserError(f"{folder}: no encoder.pt in this folder; run python pretrain.py, or name a file or preset")
    return max(found, key=lambda p: p.stat().st_mtime)


def read(path, format=None):
    """Open a checkpoint file, or a run folder's newest encoder, without running any code from it, and map it to our
    keys."""
    path = newest_encoder(path) if Path(path).is_dir() else path
    if format is not None and format not in FORMATS:
        raise UserError(f"format {format!r} is unknown: choose one of {', '.join(FORMATS)}")
    content = open_file(path)
    if isinstance(content, dict) and {"version", "config", "model"} <= content.keys():
        return _own(content, path)
    if isinstance(content, dict) and {"version", "objective", "optimizer"} <= content.keys():
        return _own(_of_run(content, path), path)
    state, extra = _tensors(content, path)
    found = format or _recognise(state, path)
    if found == "wren":
        raise UserError(f"{path}: not one of our files: it holds no version, config and model")
    convert = {"dasheng": _dasheng, "audiomae": _audiomae, "atst-clip": _atst, "atst-frame": _atst, "eat": _eat,
               "animal2vec": _animal2vec}.get(found, _vit)
    try:
        checkpoint = convert(state, found, path, extra)
    except (KeyError, ValueError, IndexError, RuntimeError, AttributeError, TypeError) as error:
        what = f"key {error} is missing" if isinstance(error, KeyError) else f"key or shape {error} is off"
        raise UserError(f"{path}: {found} layout expected, but {what}".replace("\n", " ")) from None
    checkpoint.state = {k: v.clone().contiguous() for k, v in checkpoint.state.items()}
    checkpoint.heads = {g: {k: v.clone() for k, v in head.items()} for g, head in checkpoint.heads.items()}
    return checkpoint


# ------------------------------------------------------------------------------------------------- safe opening

class _Stub:
    """Stands for an object of an unknown class: takes anything, does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass

    def extend(self, values):
        pass


_KNOWN = {("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"),
          ("torch._utils", "_rebuild_parameter"), ("torch", "Size")}


class _Unpickler(pickle.Unpickler):
    """Knows tensors and plain containers. Any other global becomes an inert stub: the real one is never imported."""

    def find_class(self, module, name):
        import torch
        if (module, name) in _KNOWN:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type("Stub", (_Stub,), {"origin": f"{module}.{name}"})


def _load_stubbed(file, **kwargs):
    return _Unpickler(file, **kwargs).load()


_STUBS = SimpleNamespace(Unpickler=_Unpickler, load=_load_stubbed, __name__="stubs")


def open_file(path):
    """The content of a file: .safetensors, or torch.load with weights only, or with stubs for unknown classes.

    What is missing, damaged or would need code is an error of one line.
    """
    import torch
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; give a file or a run folder")
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        mapped = zipfile.is_zipfile(path)
        try:
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError:
            if not mapped and path.open("rb").read(2)[:1] != b"\x80":
                raise
            if mapped and any(n.endswith("constants.pkl") for n in zipfile.ZipFile(path).namelist()):
                raise ValueError("a TorchScript archive") from None
            content = torch.load(str(path), map_location="cpu", weights_only=False, mmap=mapped, pickle_module=_STUBS)
    except Exception as error:  # whatever a damaged file makes the readers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:90]
        if path.suffix != ".safetensors" and not path.open("rb").read(2).startswith((b"PK", b"\x80")):
            reason = "neither a zip or pickle of PyTorch nor .safetensors"
        raise UserError(f"{path}: cannot be opened: it is damaged or no checkpoint ({reason})") from None
    if isinstance(content, _Stub):
        raise UserError(f"{path}: cannot be opened: it needs code to run ({content.origin})")
    return content


_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
           "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}


def read_safetensors(path):
    """{key: tensor} of a .safetensors file (8 bytes of header length, a JSON header, raw tensors), or our content."""
    import torch
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > 100_000_000:
            raise ValueError("no safetensors header")
        header = json.loads(file.read(length))
        start, size = 8 + length, Path(path).stat().st_size
        meta, tensors = header.pop("__metadata__", {}), {}
        for key, entry in header.items():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= size - start:
                raise ValueError(f"tensor {key} lies beyond the end of the file")
            file.seek(start + begin)
            raw = torch.frombuffer(bytearray(file.read(end - begin) or b"\0"), dtype=torch.uint8)[:end - begin]
            tensors[key] = raw.view(getattr(torch, _DTYPES[entry["dtype"]])).reshape(entry["shape"])
    if "wren" not in meta:
        return tensors
    content = json.loads(meta["wren"]) | {"model": {}, "heads": {}}
    for key, tensor in tensors.items():
        group, name = key.split(".", 1)
        if group == "model":
            content["model"][name] = tensor
        else:
            content["heads"].setdefault(group, {})[name] = tensor
    return content


def write_safetensors(tensors, path, meta=None):
    """Write {key: tensor} as .safetensors; a reader sees the old file or the new one."""
    import torch
    names = {getattr(torch, v): k for k, v in _DTYPES.items()}
    header, offset, rows = {"__metadata__": {"format": "pt"} | (meta or {})}, 0, []
    for key, tensor in tensors.items():
        rows.append(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        header[key] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                       "data_offsets": [offset, offset + len(rows[-1])]}
        offset += len(rows[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = Path(f"{path}.tmp")
    temporary.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(rows))
    temporary.replace(path)


# ------------------------------------------------------------------------------------------ nesting, recognition

def _own(content, path):
    if content["version"] != 1:
        raise UserError(f"{path}: written by another version of wren (file version {content['version']}, here 1)")
    try:
        return Checkpoint("wren", EncoderConfig.from_dict(content["config"]), content["model"],
                          content.get("heads", {}), labels=content.get("labels", []))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from None


def _of_run(content, path):
    """A training checkpoint of ours, its config from the run folder: the encoder that the run exports, for ATST its
    teacher's, and the objective's heads."""
    settings = Path(path).parent / "config.json"
    if not settings.exists():
        raise UserError(f"{path}: a training checkpoint, but its run's config.json is not beside it")
    state = content["objective"]
    encoder = "teacher.encoder." if any(k.startswith("teacher.projector.") for k in state) else "encoder."
    return {"version": content["version"], "config": json.loads(settings.read_text())["encoder"],
            "model": {k.removeprefix(encoder): v for k, v in state.items() if k.startswith(encoder)},
            "heads": {"objective": {k: v for k, v in state.items() if not k.startswith(("encoder.", "teacher."))}}}


def _tensors(content, path):
    """The flat dict of tensors in a published file, and what stood beside it."""
    import torch
    extra = {}
    if isinstance(content, dict):
        for name in ("state_dict", "teacher", "model"):
            if isinstance(content.get(name), dict):
                content, extra = content[name], {k: v for k, v in content.items() if k != name}
                break
        content = {k: v for k, v in content.items() if k != "_ema"}  # a teacher beside the weights in use
    stub = next((v for v in content.values() if isinstance(v, _Stub)), None) if isinstance(content, dict) else None
    if stub is not None:
        raise UserError(f"{path}: cannot be opened: it needs code to run ({stub.origin})")
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise UserError(f"{path}: not a checkpoint that wren knows ({', '.join(FORMATS)})")
    return {k.removeprefix("module.") if not k.startswith("module.backbone.") else k: v
            for k, v in content.items()}, extra


_ATST_PREFIXES = ("model.teacher.encoder.", "module.backbone.")


def _recognise(state, path):
    atst = next((p for p in _ATST_PREFIXES if p + "patch_embed.patch_embed.weight" in state), None)
    if atst:
        return "atst-clip" if atst + "cls_token" in state else "atst-frame"
    for key, format in (("time_pos_embed", "dasheng"), ("encoder.time_pos_embed", "dasheng")):
        if key in state:
            return format
    if any("modality_encoders.AUDIO." in k for k in state):
        return "animal2vec"
    if any("modality_encoders.IMAGE." in k for k in state) or "model.pre_norm.weight" in state:
        return "eat"
    if {"pos_embed", "cls_token", "patch_embed.proj.weight"} <= state.keys():
        return "audiomae"
    if "v.patch_embed.proj.weight" not in state:
        raise UserError(f"{path}: no known layout; its first keys are {', '.join(list(state)[:3])}")
    if "p_input_fdim" in state:
        raise UserError(f"{path}: the keys fit SSAST and GPM-BT: say --format ssast (25 ms window, normalised) or "
                        "--format gpm-bt (50 ms, not normalised)")
    raise UserError(f"{path}: the keys fit fine-tuned SSAST and AST: say --format ssast-finetuned or --format ast")


_BLOCK = r"(blocks\.\d+\.(?:norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(?:weight|bias))"


def _rename(state, rules, droppable, path, format):
    """(our state, heads, dropped keys): each key by the first rule (pattern, replacement) that fits all of it.

    A replacement "head:linear.weight" puts a tensor under heads. Keys that fit `droppable` are dropped; others are
    an error.
    """
    used, heads, dropped = {}, {}, []
    for key, tensor in state.items():
        match = next(((m, new) for old, new in rules if (m := re.fullmatch(old, key))), None)
        if match is None and re.fullmatch(droppable, key):
            dropped.append(key)
        elif match is None:
            raise UserError(f"{path}: unknown key {key} in a checkpoint of format {format}")
        else:
            group, _, name = match[0].expand(match[1]).rpartition(":")
            (heads.setdefault(group, {}) if group else used)[name] = tensor
    return used, heads, dropped


def _depth(state):
    return 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))


def _with_eps(heads, eps):
    """Note the LayerNorm epsilon of a published head beside its weights."""
    import torch
    if "norm.weight" in heads.get("head", {}):
        heads["head"]["norm.eps"] = torch.tensor(eps, dtype=torch.float64)
    return heads


# ------------------------------------------------------------------------------------- SSAST, AST and GPM-BT

def _vit(state, format, path, extra):
    """SSAST, AST or GPM-BT. Positions and tokens become time-major here, once."""
    import torch
    state = dict(state)
    kernel = state.pop("v.patch_embed.proj.weight")
    dim, _, height, width = kernel.shape
    positions = state.pop("v.pos_embed")[0]
    specials = [state.pop(f"v.{name}_token")[0, 0] for name in ("cls", "dist") if f"v.{name}_token" in state]
    columns, rows, stride, frames = _grid(state, len(positions) - len(specials), (height, width), path)
    mask_token = state.pop("mask_embed")[0, 0] if "mask_embed" in state else torch.zeros(dim)
    used, heads, dropped = _rename(state, [
        (r"v\.patch_embed\.proj\.bias", "patch.bias"), (rf"v\.{_BLOCK}", r"\1"), (r"v\.(norm\.(weight|bias))", r"\1"),
        (r"cpredlayer\.(\d\.(weight|bias))", r"objective:classify.\1"),
        (r"gpredlayer\.(\d\.(weight|bias))", r"objective:reconstruct.\1"),
        (r"mlp_head\.0\.(weight|bias)", r"head:norm.\1"), (r"mlp_head\.1\.(weight|bias)", r"head:linear.\1"),
        (r"v\.(head(_dist)?\.(weight|bias))", r"unused:\1")], r"p_input_[ft]dim|mask_correct", path, format)
    used |= {"patch.weight": kernel.flatten(1), "specials": torch.stack(specials), "mask_token": mask_token,
             "special_positions": positions[:len(specials)],
             "positions": positions[len(specials):].view(rows, columns, dim).transpose(0, 1)}
    config = EncoderConfig(name=f"{format}-{dim}", dim=dim, depth=_depth(used), heads=dim // 64,
                           patch=(height, width), stride=stride, specials=len(specials), frames=frames, n_mels=128,
                           pad="published", pool="specials" if format == "ast" else "mean")
    if format == "gpm-bt":
        config.window, config.mean, config.scale = 0.050, 0.0, 1.0
    return Checkpoint(format, config, used, _with_eps(heads, 1e-5), dropped)


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


def to_ssast(found, path):
    """Our encoder in SSAST's layout, which its own code and GPM-BT's open; with objective heads if there."""
    import torch
    c, s = found.config, found.state
    if not (c.frontend == "kaldi" and c.positions == "learned" and c.norm == "pre" and c.final_norm and c.qkv_bias
            and c.specials == 2 and c.stride == c.patch and c.mlp_ratio == 4 and c.dim == 64 * c.heads
            and c.mask_token and c.eps == 1e-6 and not c.prenet):
        raise UserError(f"{path}: {c.name} is no SSAST encoder (two special tokens, learned positions, no "
                        "overlap, heads of width 64), so SSAST's layout cannot hold it")
    (t, f), (height, width) = c.grid, c.patch
    positions = torch.cat([s["special_positions"], s["positions"].transpose(0, 1).reshape(t * f, c.dim)])
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


# --------------------------------------------------------------------------------------------- Dasheng, AudioMAE

def _dasheng(state, format, path, extra):
    """Dasheng, Zenodo ('model' beside 'config', front-end tables inside) or Hugging Face (prefix "encoder.")."""
    import torch

    from wren.nets.frontends import mel_filters_hertz
    prefix = "encoder." if "encoder.time_pos_embed" in state else ""
    state = {k.removeprefix(prefix): v for k, v in state.items()}
    table = state.get("front_end.0.mel_scale.fb")
    if table is not None and (table - mel_filters_hertz(64, 512, 16000, 0, 8000)).abs().max() > 1e-3:
        raise ValueError("front_end.0.mel_scale.fb: another mel filterbank")
    kernel, time, rows = (state.pop(k) for k in ("patch_embed.proj.weight", "time_pos_embed", "freq_pos_embed"))
    used, heads, dropped = _rename(state, [
        (r"patch_embed\.proj\.bias", "patch.bias"), (_BLOCK, r"\1"), (r"(norm\.(weight|bias))", r"\1"),
        (r"init_bn\.1\.(weight|bias|running_mean|running_var|num_batches_tracked)", r"input_norm.\1"),
        (r"outputlayer\.0\.(weight|bias)", r"head:norm.\1"), (r"outputlayer\.1\.(weight|bias)", r"head:linear.\1")],
        r"front_end\..+", path, format)
    dim = len(kernel)
    used |= {"patch.weight": kernel.flatten(1), "positions": time[0, :, 0].T[:, None],
             "frequency_positions": rows[0, :, :, 0].T}
    used.setdefault("input_norm.num_batches_tracked", torch.tensor(0))
    heads_of = {768: 12, 1280: 16, 1536: 24}
    config = replace(PRESETS["dasheng-base"], name=f"dasheng-{dim}", dim=dim, depth=_depth(used), pad="published",
                     heads=heads_of.get(dim, dim // 64), patch=kernel.shape[2:], stride=kernel.shape[2:],
                     n_mels=len(used["input_norm.weight"]), frames=time.shape[-1] * kernel.shape[3])
    return Checkpoint(format, config, used, _with_eps(heads, 1e-5), dropped)


def to_dasheng(found, path):
    """Our encoder in Dasheng's layout as on Zenodo; the front-end tables are torchaudio's, as published."""
    import torch
    import torchaudio
    c, s = found.config, found.state
    if not (c.frontend == "mel-db" and c.positions == "factorised" and c.input_norm and not c.specials):
        raise UserError(f"{path}: {c.name} is no Dasheng encoder, so Dasheng's layout cannot hold it")
    fb = torchaudio.functional.melscale_fbanks(c.window_samples // 2 + 1, c.f_min, c.f_max or c.sample_rate / 2,
                                               c.n_mels, c.sample_rate)
    out = {"time_pos_embed": s["positions"][:, 0].T[None, :, None],
           "freq_pos_embed": s["frequency_positions"].T[None, ..., None],
           "front_end.0.spectrogram.window": torch.hann_window(c.window_samples), "front_end.0.mel_scale.fb": fb,
           "patch_embed.proj.weight": s["patch.weight"].view(c.dim, 1, *c.patch),
           "patch_embed.proj.bias": s["patch.bias"]}
    out |= {f"init_bn.1.{k.removeprefix('input_norm.')}": v for k, v in s.items() if k.startswith("input_norm.")}
    out |= {k: v for k, v in s.items() if k.startswith(("blocks.", "norm."))}
    head = found.heads.get("head", {})
    out |= {k.replace("norm", "outputlayer.0").replace("linear", "outputlayer.1"): v for k, v in head.items()
            if k != "norm.eps"}
    sizes = {"embed_dim": c.dim, "depth": c.depth, "num_heads": c.heads, "target_length": c.frames}
    return {"model": {k: v.clone().contiguous() for k, v in out.items()}, "config": sizes}


def _audiomae(state, format, path, extra):
    """AudioMAE, pre-trained or fine-tuned; the decoder is dropped. Its positions are loaded as stored: they were made
    for a grid of 8 × 64 but tokens lie 64 × 8, and the weights have learned with them so.
    """
    state = dict(state)
    kernel, positions, cls = (state.pop(k) for k in ("patch_embed.proj.weight", "pos_embed", "cls_token"))
    used, heads, dropped = _rename(state, [
        (r"patch_embed\.proj\.bias", "patch.bias"), (_BLOCK, r"\1"), (r"(norm\.(weight|bias))", r"\1"),
        (r"fc_norm\.(weight|bias)", r"head:norm.\1"), (r"head\.(weight|bias)", r"head:linear.\1")],
        r"decoder_.+|mask_token", path, format)
    dim = len(kernel)
    used |= {"patch.weight": kernel[:, 0].transpose(1, 2).flatten(1), "specials": cls[0],
             "special_positions": positions[0, :1], "positions": positions[0, 1:].view(-1, 8, dim)}
    config = replace(PRESETS["audiomae-base"], name=f"audiomae-{dim}", dim=dim, depth=_depth(used), heads=dim // 64,
                     frames=16 * len(used["positions"]), pad="published", final_norm="head" not in heads)
    return Checkpoint(format, config, used, _with_eps(heads, 1e-6), dropped)


# ---------------------------------------------------------------------------------------------------------- ATST

def _atst(state, format, path, extra):
    """ATST-Clip or -Frame, Lightning or DINO-style: the teacher's encoder, as downstream code uses it. Slot 0 of the
    positions is the class token's; Frame has none and never reads it."""
    prefix = next((p for p in _ATST_PREFIXES if any(k.startswith(p) for k in state)), _ATST_PREFIXES[0])
    clip = format == "atst-clip"
    if not clip and prefix + "cls_token" in state:
        raise ValueError("cls_token: a class token belongs to ATST-Clip, which")
    rest = [k for k in state if not k.startswith(prefix)]
    if odd := [k for k in rest if not k.startswith(("model.student.", "model.teacher.", "head.", "module.head."))]:
        raise UserError(f"{path}: unknown key {odd[0]} in a checkpoint of format {format}")
    inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    positions, mask = inside.pop("pos_embed")[0], inside.pop("mask_embed")
    used, heads, dropped = _rename(inside, [
        (r"patch_embed\.patch_embed\.(weight|bias)", r"patch.\1"), (_BLOCK, r"\1"), (r"cls_token", "specials"),
        (rf"norm{'' if clip else '_frame'}\.(weight|bias)", r"norm.\1")], r"$^", path, format)
    used["positions"] = positions[1:, None]
    if clip:
        used |= {"specials": used["specials"][0], "special_positions": positions[:1]}
        dropped.append(prefix + "mask_embed")  # never trained in Clip
    else:
        used["mask_token"] = mask[0, 0]
    dim = positions.shape[1]
    config = replace(PRESETS["atst-base" if clip else "atst-frame-base"], name=f"{format}-{dim}", dim=dim,
                     depth=_depth(used), heads=dim // 64, frames=4 * (len(positions) - 1), pad="published",
                     pool="both" if clip else "mean")
    trained = {k.removeprefix("model.student."): state[k] for k in rest
               if k.startswith(("model.student.projector.", "model.student.predictor."))}
    rest = [k for k in rest if k.removeprefix("model.student.") not in trained]
    return Checkpoint(format, config, used, {"objective": trained} if trained else {}, dropped + rest)


# --------------------------------------------------------------------------------------------- EAT and animal2vec

def _eat(state, format, path, extra):
    """EAT: fairseq pre-trained, fairseq fine-tuned (prefix "model."), Hugging Face ("model.", other names). The fixed
    position table is computed, not read; the pre-training decoder goes with the heads."""
    huggingface = "model.pre_norm.weight" in state
    if all(k.startswith("model.") for k in state):
        state = {k.removeprefix("model."): v for k, v in state.items()}
    e = "" if huggingface else r"modality_encoders\.IMAGE\."
    norm = "pre_norm" if huggingface else e + r"context_encoder\.norm"
    state = dict(state)
    kernel, cls = (state.pop(e.replace("\\", "") + k) for k in ("local_encoder.proj.weight", "extra_tokens"))
    used, heads, dropped = _rename(state, [
        (e + r"local_encoder\.proj\.bias", "patch.bias"), (norm + r"\.(weight|bias)", r"token_norm.\1"),
        (_BLOCK, r"\1"), (r"fc_norm\.(weight|bias)", r"head:norm.\1"), (r"head\.(weight|bias)", r"head:linear.\1"),
        *_decoder(e)], e + r"fixed_positional_encoder\.positions", path, format)
    dim = len(kernel)
    used |= {"patch.weight": kernel[:, 0].transpose(1, 2).flatten(1), "specials": cls[0]}
    config = replace(PRESETS["eat-base"], name=f"eat-{dim}", dim=dim, depth=_depth(used), heads=dim // 64,
                     pad="published", chunk=12288)  # its table has 768 columns
    return Checkpoint(format, config, used, _with_eps(heads, 1e-5 if huggingface else 1e-6), dropped)


def _decoder(prefix):
    """Rules for data2vec 2.0's convolutional decoder."""
    return [(prefix + r"decoder\.blocks\.(\d)\.0\.(weight|bias)", r"objective:decoder.convs.\1.\2"),
            (prefix + r"decoder\.proj\.(weight|bias)", r"objective:decoder.proj.\1")]


def _animal2vec(state, format, path, extra):
    """animal2vec, pre-trained or fine-tuned (then with a linear head on the mean of the feed-forward outputs of the
    main blocks, a logit a class and frame)."""
    fine = "w2v_encoder.w2v_model."
    state = {k.removeprefix(fine): v for k, v in state.items()}
    a, local = r"modality_encoders\.AUDIO\.", r"modality_encoders\.AUDIO\.local_encoder\.conv_layers\."
    used, heads, dropped = _rename(state, [
        (local + r"0\.0\.(low|band)_hz_", r"patch.sinc.\1"), (local + r"0\.3\.p_(swish_\w+)", r"patch.\1"),
        (local + r"(\d+)\.0\.weight", r"convs:\1"), (local + r"(\d+)\.2\.1\.(weight|bias)", r"patch.norms.\1.\2"),
        (a + r"project_features\.1\.(weight|bias)", r"patch.norm.\1"),
        (a + r"project_features\.2\.(weight|bias)", r"patch.linear.\1"),
        (a + r"relative_positional_encoder\.(\d)\.0\.(weight|bias)", r"positions:\1.\2"),
        (a + r"context_encoder\.norm\.(weight|bias)", r"token_norm.\1"), (a + "alibi_scale", "alibi_scale"),
        (a + r"context_encoder\." + _BLOCK, r"prenet:\1"), (_BLOCK, r"main:\1"),
        (r"w2v_encoder\.proj\.(weight|bias)", r"frames:linear.\1"), *_decoder(a)], r"$^", path, format)
    if decoder := heads.get("objective"):  # 1-D convolutions become 2-D ones of one row
        heads["objective"] = {k: v[..., None] if v.dim() == 3 else v for k, v in decoder.items()}
    convs, prenet = heads.pop("convs"), heads.pop("prenet")
    before, main = _depth(prenet), heads.pop("main")
    used |= {f"patch.convs.{int(i) - 1}.weight": w for i, w in convs.items()} | prenet
    used |= {f"positions.convs.{int(k[0]) - 1}.{k[2:]}": v for k, v in heads.pop("positions").items()}
    used |= {re.sub(r"\d+", lambda m: str(int(m[0]) + before), k, count=1): v for k, v in main.items()}
    for key in ("patch.sinc.low", "patch.sinc.band", "patch.swish_alpha", "patch.swish_beta", "alibi_scale"):
        used[key] = used[key].flatten()
    preset = PRESETS["animal2vec-large"]
    widths = [len(used["patch.sinc.low"])] + [len(convs[str(i)]) for i in range(1, len(preset.convs))]
    dim = len(used["patch.linear.weight"])
    config = replace(preset, name=f"animal2vec-{dim}", dim=dim, depth=_depth(used), prenet=before, pad="published",
                     heads=len(used["alibi_scale"]), convs=tuple((n, *c[1:]) for n, c in zip(widths, preset.convs)))
    n = len(heads.get("frames", {}).get("linear.bias", ()))
    return Checkpoint(format, config, used, heads, dropped, ANIMAL2VEC_LABELS if n == len(ANIMAL2VEC_LABELS) else [])
