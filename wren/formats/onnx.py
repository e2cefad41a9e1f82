"""An encoder as ONNX, for programs without PyTorch: from the wave on, or from the spectrogram on."""
import torch
from torch import nn

from wren.cli import UserError


class FromSpectrogram(nn.Module):
    """spec (B, F, T), normalised as `Encoder.frontend` does -> tokens (B, K + N, D)."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, spec):
        return self.encoder.tokens(spec)


def samples(config):
    """Of the clips that are exported: the training length, or the window that longer ones are cut into."""
    return min(config.clip_samples, config.chunk_samples)


def export(encoder, start="wave"):
    """torch.export's program of one clip length, any number of clips: wave (B, S) of the training length -> clip
    vectors (B, D'), or (start "spectrogram") spec (B, F, T) -> tokens (B, K + N, D)."""
    wave = torch.zeros(2, samples(encoder.config))
    batch = {0: torch.export.Dim("batch", min=1, max=1 << 16)}
    with torch.no_grad():
        if start == "wave":
            return torch.export.export(encoder, (wave,), dynamic_shapes={"wave": batch})
        spec = encoder.frontend(wave)
        return torch.export.export(FromSpectrogram(encoder).eval(), (spec,), dynamic_shapes={"spec": batch})


def write(encoder, path, start="wave"):
    """Write `export`'s program as ONNX; needs the packages onnx and onnxscript."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError(f"{path}: writing ONNX needs two more packages: pip install onnx onnxscript") from None
    torch.onnx.export(export(encoder, start), dynamo=True, verbose=False).save(str(path))
