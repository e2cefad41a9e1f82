"""Open a published checkpoint or one of ours, say what is in it, and write it as ours or in a published layout.

    python convert.py FILE                          # what is in it
    python convert.py FILE encoder.pt               # or .safetensors: as our encoder
    python convert.py runs/x/encoder.pt out.pth --to ssast    # our encoder in SSAST's layout
    python convert.py FILE encoder.onnx             # from the wave on, clips of the training length

FILE may be a folder of Hugging Face's (config.json beside model.safetensors). Formats are recognised by their keys.
GPM-BT's files are SSAST's to the letter but were trained on another front end, and fine-tuned SSAST differs from AST
only in how it is used, so there the format must be named. Every key is used, known to be droppable, or an error.
Opening a file runs nothing from it.
"""
from pathlib import Path

from wren import cli
from wren.cli import UserError
from wren.formats import FORMATS, dasheng, ours, read, ssast, write_safetensors
from wren.recipes import PRESETS


def parse_args(argv=None):
    p = cli.Parser(__doc__, prog="convert.py")
    p.add_argument("file", metavar="FILE", help="a checkpoint, ours or a published one, or a run folder")
    p.add_argument("out", metavar="OUT", nargs="?", help="write it here; .pt, .pth, .safetensors or .onnx (default: "
                   "only say what is in it)")
    p.add_argument("--format", choices=FORMATS, metavar="NAME", help=f"where keys can't decide: {', '.join(FORMATS)}")
    p.add_argument("--to", choices=("wren", "ssast", "dasheng"), default="wren",
                   help="layout to write")
    return p.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    found = read(args.file, args.format)
    check(found, args.file)
    for line in describe(found):
        print(line)
    if args.out:
        write(found, args.out, args.to, args.file)
        print(f"written to {args.out}")


def check(found, path):
    """Every weight the encoder needs is there, in its shape, and nothing else."""
    import torch

    from model import Encoder, load_exactly
    with torch.device("meta"):
        encoder = Encoder(found.config)
    load_exactly(encoder, found.state, path, assign=True)


def describe(found):
    """Lines that say what a checkpoint is."""
    c = found.config
    traits = ("dim", "depth", "heads", "frontend", "window", "positions", "norm", "patch", "stride", "specials")
    same = [name for name, p in PRESETS.items() if all(getattr(p, t) == getattr(c, t) for t in traits)]
    ends = {"wave": "raw wave, Sinc filters and convolutions", "mel-db": f"mel in dB, floor {c.floor_db:g} dB",
            "kaldi": "Kaldi log-mel"}[c.frontend]
    if c.frontend != "wave":
        ends += f", {c.n_mels} bands, {1000 * c.window:g} ms window, {1000 * c.hop:g} ms hop, "
        ends += f"(x - mean) / scale: mean {c.mean:g}, scale {c.scale:g}"
    lines = [f"format      {found.format}", f"encoder     {c.name}: {c.dim} wide, {c.depth} blocks, {c.heads} heads",
             f"preset      {', '.join(same[:3]) or 'none of ours'}",
             f"parameters  {sum(v.numel() for v in found.state.values()) / 1e6:.1f} M",
             f"sound       {c.sample_rate} Hz, {c.clip_seconds:g} s; {ends}",
             f"tokens      {c.grid[0]} × {c.grid[1]} (time × frequency), {c.specials} special; pad {c.pad}, "
             f"pool {c.pool}"]
    for name, head in found.heads.items():
        lines.append(f"head        {name}: {', '.join(f'{k} {tuple(v.shape)}' for k, v in list(head.items())[:4])}")
    if found.labels:
        lines.append(f"labels      {', '.join(found.labels)}")
    if found.dropped:
        more = f" and {len(found.dropped) - 3} more" if len(found.dropped) > 3 else ""
        lines.append(f"dropped     {', '.join(found.dropped[:3])}{more}")
    return lines


def write(found, out, to, source):
    """Write a checkpoint as ours (with its heads) or in a published layout."""
    from model import Encoder, write_atomically
    if Path(out).suffix not in (".pt", ".pth", ".safetensors", ".onnx"):
        raise UserError(f"{out}: write to a name that ends in .pt, .pth, .safetensors or .onnx")
    if Path(out).suffix == ".onnx":  # from the wave on: (B, samples of the training length) -> clip vectors
        from wren.formats import onnx
        if to != "wren":
            raise UserError(f"{out}: ONNX has no layout {to}; leave --to out")
        encoder = Encoder(found.config).eval()
        encoder.load_state_dict(found.state)
        return onnx.write(encoder, out)
    safetensors = Path(out).suffix == ".safetensors"
    if to == "ssast":
        content = ssast.write(found, source)
    elif to == "dasheng":
        content = dasheng.write(found, source, huggingface=safetensors)
    else:
        content = ours.content(found)
    if not safetensors:
        write_atomically(content, out)
    elif to == "wren":
        tensors, about = ours.to_tensors(found)
        write_safetensors(tensors, out, about)
    else:
        write_safetensors(content, out)


if __name__ == "__main__":
    cli.run(main)
