"""Figures: what the embeddings look like, how scores scale, what was learned, hidden and detected.

    python plot_tsne.py                                             the newest run beside the same encoder untrained
    python plot_tsne.py --checkpoint untrained runs/A runs/B SSAST.pth --format ssast --data ROOT --task watkins
    python plot_tsne.py --scaling --published                       GPM-BT's scaling figure
    python plot_tsne.py --scaling runs                              the same of your runs, with fitted lines
    python plot_tsne.py --curves runs/A runs/B                      or --masks, --events

Each figure is written as PNG and PDF for the width of a page (7 in) and of a column (3.4 in), its numbers beside it
as CSV, its caption and settings as JSON.
"""
from pathlib import Path

from wren import cli
from wren.cli import DEMO, UserError


def parse_args(argv=None):
    p = cli.Parser(__doc__, prog="plot_tsne.py")
    g = p.add_argument_group("which figure (default: a map of embeddings)").add_mutually_exclusive_group()
    g.add_argument("--scaling", nargs="*", metavar="RUNS", help="score against pre-training clips, of run folders or "
                   "folders of them (default: runs); their results come from evaluate.py or finetune.py")
    g.add_argument("--curves", nargs="+", metavar="RUN", help="loss, its parts, rate and speed from log.jsonl")
    g.add_argument("--masks", metavar="AUDIO", help="what each mask hides of a recording's first seconds")
    g.add_argument("--events", metavar="DETECTIONS", help="detections (Raven, Audacity, CSV, JSONL) over annotations")

    g = p.add_argument_group("the map of embeddings")
    g.add_argument("--checkpoint", nargs="+", help="files, run folders, presets' names, or untrained: a panel each "
                   "(default: untrained and the newest run below runs/)")
    g.add_argument("--format", help="layout of published checkpoints where keys can't decide: ssast, gpm-bt, …")
    g.add_argument("--data", default=DEMO, help="folder that holds the tasks")
    g.add_argument("--task", default="species", help="name below --data, a folder, or a manifest")
    g.add_argument("--split", choices=("train", "valid", "test"), default="test", help="of the task")
    g.add_argument("--label", help="colour: another column of the task's table than its labels, such as individual or "
                   "source; with --events: what the calls are in tables that have no labels")
    g.add_argument("--perplexity", type=cli.positive, help="of t-SNE, at most a third of n (default: n / 100 within "
                   "30 and 50)")
    g.add_argument("--points", type=cli.positive_int, default=50_000, help="at most this many clips, drawn by --seed")

    g = p.add_argument_group("the others")
    g.add_argument("--published", action="store_true", help="--scaling: GPM-BT's published points, alone when no "
                   "runs are named")
    g.add_argument("--probe", help="--scaling: knn, linear, finetune, … (default: the best that the results hold)")
    g.add_argument("--annotations", metavar="FILE", help="--events: what a person marked; a folder: all tables "
                   "below it")
    g.add_argument("--recording", metavar="AUDIO", help="--events: which recording (default: the first one named)")
    g.add_argument("--start", type=float, default=0.0, help="of --masks, --events: where it begins, s")
    g.add_argument("--seconds", type=cli.positive, default=30.0, help="of --events: how much is shown, s")

    g = p.add_argument_group("run")
    g.add_argument("--out", default="runs/figures", help="folder of the figures, or a file that ends in .png")
    g.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    g.add_argument("--batch-size", type=cli.positive_int, default=32, help="clips a forward pass")
    g.add_argument("--workers", type=cli.natural, default=1, help="processes that read audio")
    g.add_argument("--seed", type=int, default=0, help="of the map, the mask and the untrained encoder")
    return p.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.published and args.scaling is None:
        raise UserError("--published belongs to --scaling: python plot_tsne.py --scaling --published")
    if args.scaling is not None:
        from wren.figures.scaling import plot
    elif args.curves:
        from wren.figures.curves import plot
    elif args.masks:
        from wren.figures.spectrograms import plot_masks as plot
    elif args.events:
        from wren.figures.spectrograms import plot_events as plot
    else:
        from wren.figures.tsne import plot
    from wren.figures import style
    name, draw, caption, rows, about = plot(args)
    out = Path(args.out)
    if out.suffix in (".png", ".pdf"):  # a file, not a folder
        out, name = out.parent, out.stem
    path = style.save(draw, out, name, caption, rows, about)
    print(f"{caption}\nwritten to {path}, and beside it .pdf, -column.png, -column.pdf, .csv, .json")


if __name__ == "__main__":
    cli.run(main)
