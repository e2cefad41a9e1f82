"""Opening a file without running anything from it: PyTorch's with stubs for unknown classes, and .safetensors."""
import json
import os
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

from wren.cli import UserError

WEIGHTS = ("encoder.pt", "model.safetensors", "pytorch_model.bin")  # what a folder's weights are called
_KNOWN = {("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2"),
          ("torch._utils", "_rebuild_parameter"), ("torch", "Size")}


class Stub:
    """Stands for an object of an unknown class: takes anything, does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    __setstate__ = __setitem__ = append = extend = __init__


class _Unpickler(pickle.Unpickler):
    """Knows tensors and plain containers. Any other global becomes an inert stub: the real one is never imported."""

    def find_class(self, module, name):
        import torch
        if (module, name) in _KNOWN:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type("Stub", (Stub,), {"origin": f"{module}.{name}"})


_STUBS = SimpleNamespace(Unpickler=_Unpickler, load=lambda file, **kwargs: _Unpickler(file, **kwargs).load(),
                         __name__="stubs")


def newest_encoder(folder):
    """The weights in a folder: a run's encoder.pt or a published folder's; else the newest run's below it."""
    folder = Path(folder)
    if own := next((folder / name for name in WEIGHTS if (folder / name).exists()), None):
        return own
    found = list(folder.glob("*/encoder.pt"))
    if not found:
        raise UserError(f"{folder}: no encoder.pt in this folder, nor model.safetensors; run python pretrain.py, or "
                        "name a file or preset")
    return max(found, key=lambda p: p.stat().st_mtime)


def open_file(path):
    """The content of a file, or of the newest one in a folder; what is missing or damaged is an error of one line."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint; give a file or a run folder")
    if path.is_dir():
        path = newest_encoder(path)
    try:
        return _content(path)
    except Exception as error:  # whatever a damaged file makes the readers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:90]
        raise UserError(f"{path}: cannot be opened: it is damaged or no checkpoint ({reason})") from None


def _content(path):
    import torch
    from safetensors import safe_open
    if path.suffix != ".safetensors":
        mapped = zipfile.is_zipfile(path)
        if not path.open("rb").read(2).startswith((b"PK", b"\x80")):
            raise ValueError("neither a zip or pickle of PyTorch nor .safetensors")
        if mapped and any(name.endswith("constants.pkl") for name in zipfile.ZipFile(path).namelist()):
            raise ValueError("a TorchScript archive")
        return torch.load(str(path), map_location="cpu", mmap=mapped, weights_only=False, pickle_module=_STUBS)
    with safe_open(path, "pt") as file:
        tensors, about = {key: file.get_tensor(key) for key in file.keys()}, (file.metadata() or {}).get("wren")
    if about is None:
        return tensors
    groups = {"model": {}}
    for key, tensor in tensors.items():
        group, name = key.split(".", 1)
        groups.setdefault(group, {})[name] = tensor
    return json.loads(about) | {"model": groups.pop("model"), "heads": groups}


def write_safetensors(content, path):
    """Write {key: tensor}, or the content of a file of ours (its plain values as JSON beside {"group.key": tensor}), as
    .safetensors; a reader sees the old file or the new one."""
    from safetensors.torch import save_file
    about, groups = {"format": "pt"}, {"": content}
    if "version" in content:
        about["wren"] = json.dumps({k: v for k, v in content.items() if k not in ("model", "heads")})
        groups = {"model.": content["model"]} | {f"{name}.": head for name, head in content["heads"].items()}
    tensors = {group + k: v.detach().cpu().contiguous() for group, state in groups.items() for k, v in state.items()}
    save_file(tensors, f"{path}.tmp", about)
    os.replace(f"{path}.tmp", path)
