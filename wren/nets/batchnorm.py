"""BatchNorm over what is valid, of all processes."""
import torch
import torch.distributed as dist
from torch import nn

from wren.nets.lengths import valid_until


def everywhere(x):
    """The sum over all processes; its gradient is, too."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return x
    from torch.distributed.nn.functional import all_reduce
    return all_reduce(x)


class BatchNorm(nn.BatchNorm1d):
    """PyTorch's, but that padding is not counted and that statistics are those of the batch of all processes."""

    def forward(self, x, valid=None):
        """x (M, C), valid bool (M,), or x (B, C, T), valid (B, T), or None (all) -> the same shape."""
        if not self.training or valid is None and not (dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        weight = torch.ones_like(x[:, :1]) if valid is None else valid.unsqueeze(1).to(x.dtype)
        dims = [d for d in range(x.dim()) if d != 1]
        count = everywhere(weight.sum()).clamp(min=1)
        mean = everywhere((x * weight).sum(dims, keepdim=True)) / count
        apart = x - mean
        variance = everywhere((apart.square() * weight).sum(dims, keepdim=True)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1).clamp(min=1)).flatten(), self.momentum)
        scale, shift = (p.view_as(mean) for p in (self.weight, self.bias))
        return apart * ((variance + self.eps).rsqrt() * scale) + shift


class InputNorm(BatchNorm):
    """BatchNorm over mel bands between front end and patches (Dasheng); padding is not counted and stays 0."""

    def __init__(self, bands):
        super().__init__(bands, momentum=0.01)

    def forward(self, spec, frames=None):
        """spec (B, F, T), frames (B,) valid or None -> (B, F, T)."""
        valid = valid_until(frames, spec.shape[2])
        out = super().forward(spec, valid)
        return out if valid is None else out * valid[:, None]
