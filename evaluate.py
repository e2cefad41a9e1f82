"""How good is a representation? Probes on frozen embeddings, beside the same encoder untrained and mel statistics.

    python evaluate.py --knn                                      the newest run on the demo's tasks
    python evaluate.py --knn --checkpoint runs/NAME --data ROOT --task watkins dogs
    python evaluate.py --knn --checkpoint SSAST-Base-Patch-400.pth --format ssast --task FOLDER

A task is a folder with train.csv, valid.csv and test.csv (BEANS layout: path, label). Neighbours come from the training
split, the score from the test split.
"""
import argparse
import json
import time
from pathlib import Path

import cli
from cli import UserError

DEMO = "data/demo"


def parse_args(argv=None):
    p = cli.Parser(__doc__, prog="evaluate.py")
    g = p.add_argument_group("what is evaluated")
    g.add_argument("--checkpoint", help="file, run folder or preset's name (default: the newest run below runs/)")
    g.add_argument("--format", help="layout of a published checkpoint where its keys can't decide: ssast, gpm-bt, …")
    g.add_argument("--data", default=DEMO, help="folder that holds the tasks")
    g.add_argument("--task", nargs="+", help="names below --data, or folders (default: the demo's species, individual)")
    g.add_argument("--depth", type=cli.positive_int, help="use the output of this many blocks (default: all)")

    g = p.add_argument_group("probes")
    g.add_argument("--knn", action="store_true", help="k nearest neighbours, the default when no probe is named")
    g.add_argument("--k", type=cli.positive_int, default=10, help="neighbours (DINO: 10 to 200; XARES: 10)")
    g.add_argument("--temperature", type=cli.positive, default=0.07, help="a neighbour of cosine s votes exp(s / T)")
    g.add_argument("--standardise", action=argparse.BooleanOptionalAction, default=True,
                   help="bring features to mean 0 and deviation 1 over the training split before the L2 norm")

    g = p.add_argument_group("run")
    g.add_argument("--json", metavar="FILE", help="results as JSON (default: knn.json in the run folder)")
    g.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    g.add_argument("--batch-size", type=cli.positive_int, default=32, help="clips a forward pass")
    g.add_argument("--workers", type=cli.natural, default=1, help="processes that read audio")
    g.add_argument("--seed", type=int, default=0, help="of the untrained encoder and the bootstrap")
    return p.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    import torch

    import demo
    from data import load_task
    from model import Encoder, load_encoder, newest_encoder
    from probes import MelStatistics

    if args.data == DEMO and (args.task is None or not all(Path(t).is_dir() for t in args.task)):
        demo.ensure(DEMO)
    tasks = [load_task(name, root=args.data) for name in args.task or ("species", "individual")]
    source = args.checkpoint or newest_encoder("runs")
    device = torch.device("cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and device.type == "cpu":
        raise UserError("--device cuda: no GPU found; use --device cpu")
    encoder = load_encoder(source, args.format)
    if args.depth and args.depth > encoder.config.depth:
        raise UserError(f"--depth {args.depth}: this encoder has {encoder.config.depth} blocks")
    torch.manual_seed(args.seed)
    untrained = Encoder(encoder.config).eval()
    name = str(Path(source).parent if Path(source).name == "encoder.pt" else source)
    contestants = {name: encoder, "untrained": untrained, "mel statistics": MelStatistics(encoder.config.sample_rate)}

    print(f"{name}: {encoder.config.name}, {encoder.config.sample_rate} Hz, "
          f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M parameters")
    results = [row for task in tasks for row in knn_rows(task, contestants, device, args)]
    print_table(results, args)
    path = Path(args.json or (Path(name) / "knn.json" if Path(name).is_dir() else "knn.json"))
    cli.write_text(path, json.dumps({"results": results}, indent=1))
    print(f"written to {path}")


def knn_rows(task, contestants, device, args):
    """Result rows of one task: each contestant standardised (unless switched off) and raw. Labels are those of the
    training split; a test clip with another label counts as wrong."""
    import numpy as np

    from metrics import bootstrap
    from probes import knn, vectors
    rate = next(iter(contestants.values())).config.sample_rate
    functions = [(lambda wave, lengths, e=e.to(device): e.embed(wave, lengths, depth=args.depth))
                 if hasattr(e, "embed") else e.to(device) for e in contestants.values()]
    began = time.perf_counter()
    fit, test = (vectors(functions, task.splits[split], rate, device, args.batch_size, args.workers)
                 for split in ("train", "test"))
    seconds = (time.perf_counter() - began) / len(contestants)
    labels, truth = task.splits["train"].targets, task.splits["test"].targets
    rows = []
    for name, a, b in zip(contestants, fit, test):
        for probe, standardise in (("knn", True), ("knn-raw", False))[0 if args.standardise else 1:]:
            began = time.perf_counter()
            right = np.asarray(knn(a, labels, b, args.k, args.temperature, standardise) == truth, dtype=float)
            rows.append({"task": task.name, "probe": probe, "encoder": name, "metric": "accuracy",
                         "value": float(right.mean()), "ci95": bootstrap(right, seed=args.seed),
                         "chance": 1 / len(task.labels), "n_test": len(right),
                         "seconds": round(seconds + time.perf_counter() - began, 2)})
    return rows


def print_table(results, args):
    """One line a task and encoder; the raw score stands beside the standardised one."""
    main_probe = "knn" if args.standardise else "knn-raw"
    raw = {(r["task"], r["encoder"]): r["value"] for r in results if r["probe"] == "knn-raw"}
    width = max(len(r["encoder"]) for r in results)
    print(f"\nkNN accuracy, k = {args.k}, T = {args.temperature:g}, "
          f"{'standardised' if args.standardise else 'raw'} features, 95 % bootstrap interval over test clips")
    print(f"{'task':<14} {'encoder':<{width}}  accuracy  interval          raw    chance  clips")
    for r in results:
        if r["probe"] == main_probe:
            low, high = r["ci95"]
            print(f"{r['task']:<14} {r['encoder']:<{width}}  {r['value']:.3f}     [{low:.3f}, {high:.3f}]    "
                  f"{raw[r['task'], r['encoder']]:.3f}  {r['chance']:.3f}   {r['n_test']}")


if __name__ == "__main__":
    cli.run(main)
