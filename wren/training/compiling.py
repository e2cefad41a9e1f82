"""torch.compile where it pays: blocks, decoders, convolutions and losses, one graph for all of a kind."""
import torch

from wren import cli
from wren.nets.positions import Convolutional
from wren.nets.transformer import Block
from wren.nets.wave import WaveEmbed
from wren.objectives.data2vec import ConvDecoder

PARTS = (Block, ConvDecoder, Convolutional, WaveEmbed)
METHODS = ("losses", "average")  # of objectives


def compile_parts(objective, how, device):
    """how: "on", "off", or "auto", on for GPUs. Batch and length are dynamic, so that a shorter clip or another block
    of the same width needs no graph of its own. Where nothing can be compiled one line says why."""
    if how == "off" or how == "auto" and device.type != "cuda" or not works(device):
        return
    torch._dynamo.config.recompile_limit = 64  # kinds: widths, with or without gradients, masks, skipped halves
    torch._dynamo.config.suppress_errors = True  # a part that can't be compiled runs as it is
    for module in objective.modules():  # of the encoder, a decoder, a teacher
        if isinstance(module, PARTS):
            module.compile(dynamic=True)
    for name in METHODS:
        if hasattr(objective, name):
            setattr(objective, name, torch.compile(getattr(objective, name), dynamic=True))


def works(device):
    """Whether a small function can be compiled, forwards and backwards."""
    try:
        torch.compile(lambda x: x.exp().sum())(torch.ones(8, device=device, requires_grad=True)).backward()
        return True
    except Exception as error:  # a compiler, its headers or Triton are missing, each with an exception of its own
        cli.warn(f"torch.compile does not work here, training goes on without: {str(error).strip().splitlines()[0]}")
        return False
