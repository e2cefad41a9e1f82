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

NEIGHBOURS = 10  # of the kNN purity, as in evaluate.py


def parse_args(argv=None):
    p = cli.Parser(__doc__, prog="plot_tsne.py")
    g = p.add_argument_group("which figure (default: a map of embeddings)").add_mutually_exclusive_group()
    g.add_argument("--scaling", nargs="*", metavar="RUNS", help="score against pre-training clips, of run folders or "
                   "folders of them (default: runs); their results come from evaluate.py or finetune.py")
    g.add_argument("--curves", nargs="+", metavar="RUN", help="loss parts, rate, online scores, speed from log.jsonl")
    g.add_argument("--masks", nargs="?", const="", metavar="AUDIO", help="what each mask hides of a clip (default: a "
                   "call of the demo), and what the run's generative head paints there")
    g.add_argument("--events", metavar="DETECTIONS", help="detections (Raven, Audacity, CSV, JSONL) over annotations")

    g = p.add_argument_group("the map of embeddings")
    g.add_argument("--checkpoint", nargs="+", help="files, run folders, presets' names, or untrained: a panel each "
                   "(default: untrained and the newest run below runs/)")
    g.add_argument("--format", help="layout of published checkpoints where keys can't decide: ssast, gpm-bt, …")
    g.add_argument("--data", default=DEMO, help="folder that holds the tasks")
    g.add_argument("--task", default="species", help="name below --data, a folder, or a manifest")
    g.add_argument("--split", choices=("train", "valid", "test"), default="test", help="of the task")
    g.add_argument("--label", default="species", help="colour: species (the task's labels), individual, source, or "
                   "another column of its CSV; with --events: what the calls are in tables that have no labels")
    g.add_argument("--perplexity", type=_perplexity, default="auto", help="auto: n / 100 within 30 and 50, at most a "
                                                                         "third of n; or a number")
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


def _perplexity(text):
    return text if text == "auto" else cli.positive(text)


# ------------------------------------------------------------------------------------------- a map of embeddings

def open_clips(args):
    """(name, Split, label of each clip (n,)) of the clips to show: a task's split, or a whole manifest."""
    from dataclasses import replace

    import numpy as np

    from wren.sound import demo
    from wren.sound.opening import open_manifest
    from wren.tasks import Split, load_task
    if Path(args.task).is_file():
        rows = open_manifest(args.task)
        name, table, split = Path(args.task).stem, Path(args.task), Split(rows, None, None)
        own = np.array(rows.text("label")) if "label" in rows.texts else None
    else:
        if args.data == DEMO and not Path(args.task).is_dir():
            demo.ensure(DEMO)
        task = load_task(args.task, root=args.data)
        name, split = f"{task.name} ({args.split})", task.splits[args.split]
        table, own = Path(split.rows.origin), own_labels(split.targets, task.labels)
    keep = np.arange(len(split))
    if len(split) > args.points:
        keep = np.sort(np.random.default_rng(args.seed).permutation(len(split))[:args.points])
        split = replace(split, rows=split.rows.select(keep))
    column = read_column(table, args.label)
    if column:
        labels = np.array([column.get(split.rows.path(i)) or "(none)" for i in range(len(split))])
    elif args.label == "species" and own is not None:
        labels = own[keep]
    else:
        raise UserError(f"--label {args.label}: {table} has no such column")
    return name, split, labels


def own_labels(targets, labels):
    """A task's targets, int (n,) or bool (n, C), as one text a clip (n,)."""
    import numpy as np
    if targets.ndim == 1:
        return np.array(labels)[targets]
    return np.array([labels[row.argmax()] if row.sum() == 1 else "(several)" if row.any() else "(none)"
                     for row in targets])


def read_column(path, name):
    """{path of a clip: its value in a column of a table}, or {} if there is no such column."""
    import csv
    if path.suffix.lower() not in (".csv", ".tsv") or not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    return {row["path"]: row[name] for row in rows} if rows and {"path", name} <= rows[0].keys() else {}


def open_encoders(args):
    """{name: encoder}: "untrained" is the first of the others with new weights."""
    import torch

    from model import Encoder, load_encoder
    from wren.formats import newest_encoder
    sources = args.checkpoint or ["untrained", str(newest_encoder("runs").parent)]
    found = {s: load_encoder(s, args.format) for s in sources if s != "untrained"}
    if "untrained" in sources:
        if not found:
            raise UserError("--checkpoint untrained: of which encoder? Name a run, a file or a preset beside it")
        torch.manual_seed(args.seed)
        found["untrained"] = Encoder(next(iter(found.values())).config).eval()
    return {s: found[s] for s in dict.fromkeys(sources)}


def flatten(vectors, perplexity="auto", seed=0):
    """vectors (n, D) -> (map (n, 2), features (n, D) as kNN sees them, what was done).

    Features get mean 0 and deviation 1, then length 1 (as in evaluate.py), then PCA to 50 dimensions, then t-SNE that
    starts from the first two (Kobak and Berens 2019), with learning rate n / 12. 50,000 points take six minutes on
    one core (Barnes-Hut trees, 50 dimensions, a perplexity of 50), less on several.
    """
    import numpy as np
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler, normalize
    from threadpoolctl import threadpool_limits
    x = normalize(StandardScaler().fit_transform(vectors))
    n, dims = len(x), min(50, *x.shape)
    flat = PCA(dims, random_state=seed).fit_transform(x)
    perplexity = min(float(np.clip(n / 100, 30, 50)) if perplexity == "auto" else perplexity, (n - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, n_jobs=-1)
    with threadpool_limits(1 if n < 5000 else None, "openmp"):  # with few points threads wait longer than they work
        flat = tsne.fit_transform(flat)
    return flat, x, {"dimensions": dims, "seed": seed, "perplexity": perplexity}


def separation(features, codes, seed=0):
    """{"purity", "chance", "silhouette"} of classes in the full space, not in the map.

    purity: the share of a clip's 10 nearest neighbours (cosine) with its label; chance: that share among all others;
    silhouette: cosine, over at most 5000 clips drawn by `seed`.
    """
    import numpy as np
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors
    n, sizes = len(codes), np.bincount(codes)
    k = min(NEIGHBOURS, n - 1)
    near = NearestNeighbors(n_neighbors=k, metric="cosine").fit(features).kneighbors(return_distance=False)
    purity = (codes[near] == codes[:, None]).mean()
    several = 1 < (sizes > 0).sum() < n
    pick = np.random.default_rng(seed).permutation(n)[:5000]
    return {"purity": float(purity), "chance": float((sizes * (sizes - 1.0)).sum() / (n * (n - 1.0))), "k": k,
            "silhouette": float(silhouette_score(features[pick], codes[pick], metric="cosine")) if several else None}


def plot_map(args):
    """t-SNE of the same clips through several encoders, a panel each."""
    import numpy as np

    from wren.figures import style as figures
    from wren.probing.embeddings import device_of, vectors
    name, split, labels = open_clips(args)
    rows, encoders = split.rows, open_encoders(args)
    if len(rows) < 4:
        raise UserError(f"--task {args.task}: {len(rows)} clips are too few for a map")
    classes, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    kept = np.arange(len(classes))
    if len(classes) > figures.LOOKS:  # the largest keep a look of their own, in alphabetical order
        kept = np.sort(np.argsort(-sizes, kind="stable")[:figures.LOOKS - 1])
    look = np.full(len(classes), figures.LOOKS)
    look[kept] = np.arange(len(kept))
    maps = {source: flatten(x, args.perplexity, args.seed) for source, x in vectors(
        encoders, split, device_of(args.device), args.batch_size, args.workers).items()}
    scores = {source: separation(x, codes, args.seed) for source, (_, x, _) in maps.items()}
    caption = describe_map(args, name, len(rows), len(classes), next(iter(maps.values()))[2], scores)

    def draw(width):
        most = 14 if width < 5 and len(kept) > 30 else 28  # letters of a name
        handles = [figures.handle(figures.shortened(str(classes[k]), most), markeredgecolor="none",
                                  **figures.look(look[k])) for k in kept]
        if len(kept) < len(classes):
            handles.append(figures.handle(f"{len(classes) - len(kept)} others", **figures.look(figures.LOOKS)))
        side = min(width / figures.across(len(maps), width), 3.3)
        figure, axes = figures.panels(width, len(maps), side + 0.15, caption, handles)
        size = float(np.clip(9000 / len(rows), 0.5, 9)) * (side / 3.3)
        for ax, source in zip(axes, maps):
            scatter(ax, maps[source][0], look[codes], size)
            ax.set_title(figures.shortened(source, int(side / 0.065)))
        return figure

    table = [{"checkpoint": source, "path": rows.path(i), "start": int(rows.start[i]), "label": labels[i],
              "x": f"{flat[i, 0]:.5g}", "y": f"{flat[i, 1]:.5g}"}
             for source, (flat, _, _) in maps.items() for i in range(len(rows))]
    about = {"clips": len(rows), "classes": len(classes), "label": args.label, **next(iter(maps.values()))[2],
             "panels": scores}
    return "tsne", draw, caption, table, about


def scatter(ax, places, looks, size):
    """places (n, 2), looks (n,): an index for figures.look. Classes are drawn in a mixed order, so that none covers
    the others."""
    import numpy as np

    from wren.figures import style as figures
    for k in np.random.default_rng(0).permutation(np.unique(looks)):
        some = places[looks == k]
        ax.scatter(*some.T, s=size, linewidths=0, alpha=0.85, rasterized=len(places) > 2000, **figures.look(int(k)))
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_aspect("equal", adjustable="datalim")
    for side in ax.spines.values():
        side.set_visible(True)


def describe_map(args, name, n, classes, done, scores):
    """The caption: what is shown, how it was made, and numbers that do not depend on the map."""
    how = (f"t-SNE (perplexity {done['perplexity']:.0f}, of {done['dimensions']} principal components, seed "
           f"{args.seed})")
    of = f" ({args.label})" * (args.label != "species")  # that stands for the task's labels
    first, parts = next(iter(scores.values())), []
    for source, s in scores.items():
        silhouette = "" if s["silhouette"] is None else f", silhouette {s['silhouette']:.3f}"
        parts.append(f"{source}: purity {s['purity']:.3f}{silhouette}")
    return (f"{name}: {n} clips of {classes} classes{of}, {how}. Purity: share of the {first['k']} "
            f"nearest neighbours in the full space with the clip's label (chance {first['chance']:.3f}). "
            f"{'; '.join(parts)}.")


# ---------------------------------------------------------------------------------------------------------- scaling

def plot_scaling(args):
    """Score against pre-training clips, of runs and of the published GPM-BT."""
    from wren.figures import scaling
    places = args.scaling or ([] if args.published else ["runs"])
    points, probe, notes = scaling.run_points(places, args.probe) if places else ([], None, [])
    points += scaling.published_points() if args.published else []
    for note in notes:
        print(f"note: {note}")
    drawn, lines = scaling.drawing(points)
    caption = scaling.describe(points, lines, probe)
    table = [{k: p[k] for k in ("series", "run", "clips", "seed", "column", "value", "low", "high")} for p in points]
    return "scaling", lambda width: drawn(width, caption), caption, table, {"probe": probe, "lines": lines}


# -------------------------------------------------------------------------------------------------------- story

def main(argv=None):
    args = parse_args(argv)
    if args.published and args.scaling is None:
        raise UserError("--published belongs to --scaling: python plot_tsne.py --scaling --published")
    if args.scaling is not None:
        figure = plot_scaling(args)
    elif args.curves:
        from wren.figures import curves
        figure = curves.plot(args)
    elif args.events or args.masks is not None:
        from wren.figures import spectrograms
        figure = spectrograms.plot(args)
    else:
        figure = plot_map(args)
    from wren.figures import style as figures
    name, draw, caption, table, about = figure
    out = Path(args.out)
    if out.suffix in (".png", ".pdf"):  # a file, not a folder
        out, name = out.parent, out.stem
    path = figures.save(draw, out, name, caption, table, about)
    print(f"{caption}\nwritten to {path}, and beside it .pdf, -column.png, -column.pdf, .csv, .json")


if __name__ == "__main__":
    cli.run(main)
