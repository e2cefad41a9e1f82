"""Open a published checkpoint or one of ours, say what is in it, and write it as ours or in a published layout.

    python convert.py FILE                          # what is in it
    python convert.py FILE encoder.pt               # or .safetensors: as our encoder
    python convert.py runs/x/encoder.pt out.pth --to ssast    # our encoder in SSAST's layout
    python convert.py FILE encoder.onnx             # from the wave on, clips of the training length

FILE may be a folder of Hugging Face's (config.json beside model.safetensors). Formats are recognised by their keys.
GPM-BT's files are SSAST's to the letter but were trained on another front end, and fine-tuned SSAST differs from AST
only in how it is used, so there the format must be named. Opening a file runs nothing from it.
"""
from pathlib import Path

from wren import cli
from wren.cli import UserError
from wren.formats import FORMATS, dasheng, ours, read, ssast, write_safetensors


def parse_args(argv=None):
    p = cli.Parser(__doc__, prog="convert.py")
    p.add_argument("file", metavar="FILE", help="a checkpoint, ours or a published one, or a run folder")
    p.add_argument("out", metavar="OUT", nargs="?", help="write it here; .pt, .pth, .safetensors or .onnx (default: "
                   "only say what is in it)")
    p.add_argument("--format", choices=FORMATS, metavar="NAME", help=f"where keys can't decide: {', '.join(FORMATS)}")
    p.add_argument("--to", choices=("wren", "ssast", "dasheng"), default="wren", help="layout to write")
    return p.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    import torch

    from model import Encoder, load_exactly
    found = read(args.file, args.format)
    with torch.device("meta"):
        encoder = Encoder(found.config)
    load_exactly(encoder, found.state, args.file, assign=True)  # every weight is there, in its shape, and nothing else
    print("\n".join(describe(found)))
    if args.out:
        write(found, args.out, args.to, args.file)
        print(f"written to {args.out}")


def describe(found):
    """Lines that say what a checkpoint is."""
    c, dropped = found.config, found.dropped
    ends = {"wave": "raw wave, Sinc filters and convolutions", "mel-db": f"mel in dB, floor {c.floor_db:g} dB",
            "kaldi": "Kaldi log-mel", "octave": "log-mel of a band a semitone"}[c.frontend]
    if c.frontend != "wave":
        ends += (f", {c.n_mels} bands, {1000 * c.window:g} ms window, {1000 * c.hop:g} ms hop, (x - mean) / scale: "
                 f"mean {c.mean:g}, scale {c.scale:g}")
    yield f"format      {found.format}"
    yield f"encoder     {c.name}: {c.dim} wide, {c.depth} blocks, {c.heads} heads"
    yield f"parameters  {sum(v.numel() for v in found.state.values()) / 1e6:.1f} M"
    yield f"sound       {c.sample_rate} Hz, {c.clip_seconds:g} s; {ends}"
    yield f"tokens      {c.grid[0]} × {c.grid[1]} (time × frequency), {c.specials} special; pad {c.pad}, pool {c.pool}"
    for name, head in found.heads.items():
        yield f"head        {name}: {', '.join(f'{k} {tuple(v.shape)}' for k, v in list(head.items())[:4])}"
    if found.labels:
        yield f"labels      {', '.join(found.labels)}"
    if dropped:
        yield f"dropped     {', '.join(dropped[:3])}{f' and {len(dropped) - 3} more' if len(dropped) > 3 else ''}"


def write(found, out, to, source):
    """Write a checkpoint as ours (with its heads) or in a published layout."""
    from model import write_atomically
    suffix = Path(out).suffix
    if suffix not in (".pt", ".pth", ".safetensors", ".onnx"):
        raise UserError(f"{out}: write to a name that ends in .pt, .pth, .safetensors or .onnx")
    if suffix == ".onnx":
        if to != "wren":
            raise UserError(f"{out}: ONNX has no layout {to}; leave --to out")
        return write_onnx(found, out)
    if to == "ssast":
        content = ssast.write(found, source)
    elif to == "dasheng":
        content = dasheng.write(found, source, huggingface=suffix == ".safetensors")
    else:
        content = ours.content(found)
    (write_safetensors if suffix == ".safetensors" else write_atomically)(content, out)


def write_onnx(found, path):
    """The encoder for programs without PyTorch; needs the packages onnx and onnxscript."""
    import torch

    from model import Encoder
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError(f"{path}: writing ONNX needs two more packages: pip install onnx onnxscript") from None
    encoder = Encoder(found.config).eval()
    encoder.load_state_dict(found.state)
    torch.onnx.export(exported(encoder), dynamo=True, verbose=False).save(str(path))


def exported(encoder):
    """torch.export's program for any number of clips of the training length, or of the window that longer ones are cut
    into: wave (B, S) -> clip vectors (B, D')."""
    import torch
    samples = min(encoder.config.clip_samples, encoder.config.chunk_samples)
    batch = {0: torch.export.Dim("batch", min=1, max=1 << 16)}
    with torch.no_grad():
        return torch.export.export(encoder, (torch.zeros(2, samples),), dynamic_shapes={"wave": batch})


if __name__ == "__main__":
    cli.run(main)
