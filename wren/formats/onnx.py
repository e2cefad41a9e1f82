"""An encoder as ONNX, for programs without PyTorch: from the wave on."""
import torch

from wren.cli import UserError


def samples(config):
    """Of the clips that are exported: the training length, or the window that longer ones are cut into."""
    return min(config.clip_samples, config.chunk_samples)


def export(encoder):
    """torch.export's program of one clip length, any number of clips: wave (B, S) of the training length -> clip
    vectors (B, D')."""
    batch = {0: torch.export.Dim("batch", min=1, max=1 << 16)}
    with torch.no_grad():
        return torch.export.export(encoder, (torch.zeros(2, samples(encoder.config)),), dynamic_shapes={"wave": batch})


def write(encoder, path):
    """Write `export`'s program as ONNX; needs the packages onnx and onnxscript."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError(f"{path}: writing ONNX needs two more packages: pip install onnx onnxscript") from None
    torch.onnx.export(export(encoder), dynamo=True, verbose=False).save(str(path))
