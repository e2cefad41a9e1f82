"""t-SNE of the same clips through several encoders, a panel each."""
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize
from threadpoolctl import threadpool_limits

from model import Encoder, load_encoder
from wren.cli import DEMO, UserError
from wren.figures.style import LOOKS, across, handle, look, panels, shortened
from wren.formats import newest_encoder
from wren.probing.embeddings import device_of, vectors
from wren.sound import demo
from wren.sound.opening import open_manifest
from wren.tasks import Split, load_task

NEIGHBOURS = 10  # of the kNN purity, as in evaluate.py


def open_clips(args):
    """(name, Split, label of each clip (n,)) of the clips to show: a task's split, or a whole manifest."""
    path = Path(args.task)
    if path.is_file():
        rows = open_manifest(path)
        name, split = path.stem, Split(rows, None, None)
        labels = rows.text("label") if "label" in rows.texts else None
    else:
        if args.data == DEMO and not path.is_dir():
            demo.ensure(DEMO)
        task = load_task(args.task, root=args.data)
        name, split = f"{task.name} ({args.split})", task.splits[args.split]
        path, labels = Path(split.rows.origin), own_labels(split.targets, task.labels)
    if args.label:
        labels = column_of(path, args.label, split.rows)
    elif labels is None:
        raise UserError(f"{path} has no labels: name another column with --label")
    keep = np.sort(np.random.default_rng(args.seed).permutation(len(split))[:args.points])
    return name, replace(split, rows=split.rows.select(keep)), np.array(labels)[keep]


def own_labels(targets, labels):
    """A task's targets, int (n,) or bool (n, C), as one text a clip."""
    if targets.ndim == 1:
        return [labels[k] for k in targets]
    return [labels[row.argmax()] if row.sum() == 1 else "(several)" if row.any() else "(none)" for row in targets]


def column_of(path, name, rows):
    """A column of the table that lists the clips, one text a row."""
    column = {}
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            table = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            column = {row["path"]: row[name] for row in table if {"path", name} <= row.keys()}
    if not column:
        raise UserError(f"--label {name}: {path} has no such column")
    return [column.get(rows.path(i)) or "(none)" for i in range(len(rows))]


def open_encoders(args):
    """{name: encoder}: "untrained" is the first of the others with new weights."""
    sources = args.checkpoint or ["untrained", str(newest_encoder("runs").parent)]
    found = {source: load_encoder(source, args.format) for source in sources if source != "untrained"}
    if not found:
        raise UserError("--checkpoint untrained: of which encoder? Name a run, a file or a preset beside it")
    if "untrained" in sources:
        torch.manual_seed(args.seed)
        found["untrained"] = Encoder(next(iter(found.values())).config).eval()
    return {source: found[source] for source in sources}


def flatten(vectors, perplexity=None, seed=0):
    """vectors (n, D) -> (map (n, 2), features (n, D) as kNN sees them, what was done).

    Features get mean 0 and deviation 1, then length 1 (as in evaluate.py), then PCA to 50 dimensions, then t-SNE that
    starts from the first two (Kobak and Berens 2019), with learning rate n / 12. 50,000 points take six minutes on
    one core (Barnes-Hut trees, 50 dimensions, a perplexity of 50), less on several.
    """
    x = normalize(StandardScaler().fit_transform(vectors))
    n, dims = len(x), min(50, *x.shape)
    perplexity = min(perplexity or float(np.clip(n / 100, 30, 50)), (n - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, n_jobs=-1)
    with threadpool_limits(1 if n < 5000 else None, "openmp"):  # with few points threads wait longer than they work
        flat = tsne.fit_transform(PCA(dims, random_state=seed).fit_transform(x))
    return flat, x, {"dimensions": dims, "seed": seed, "perplexity": perplexity}


def separation(features, codes, seed=0):
    """{"purity", "chance", "k", "silhouette"} of classes in the full space, not in the map.

    purity: the share of a clip's k = 10 nearest neighbours (cosine) with its label; chance: that share among all
    others; silhouette: cosine, over at most 5000 clips drawn by `seed`.
    """
    n, sizes = len(codes), np.bincount(codes)
    k = min(NEIGHBOURS, n - 1)
    near = NearestNeighbors(n_neighbors=k, metric="cosine").fit(features).kneighbors(return_distance=False)
    silhouette = None
    if 1 < len(sizes) < n:
        silhouette = float(silhouette_score(features, codes, metric="cosine", sample_size=min(n, 5000),
                                            random_state=seed))
    return {"purity": float((codes[near] == codes[:, None]).mean()), "k": k, "silhouette": silhouette,
            "chance": float((sizes * (sizes - 1.0)).sum() / (n * (n - 1.0)))}


def plot(args):
    """The map, and in the caption numbers that do not depend on it."""
    name, split, labels = open_clips(args)
    encoders, rows = open_encoders(args), split.rows
    if len(rows) < 4:
        raise UserError(f"--task {args.task}: {len(rows)} clips are too few for a map")
    classes, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    # the largest keep a look of their own, in alphabetical order
    kept = np.sort(np.argsort(-sizes, kind="stable")[:LOOKS - (len(classes) > LOOKS)])
    looks = np.full(len(classes), LOOKS)
    looks[kept] = np.arange(len(kept))
    maps, found = {}, {}
    for source, x in vectors(encoders, split, device_of(args.device), args.batch_size, args.workers).items():
        maps[source], features, how = flatten(x, args.perplexity, args.seed)
        found[source] = separation(features, codes, args.seed)
    one, scores = next(iter(found.values())), []
    for source, s in found.items():
        silhouette = "" if s["silhouette"] is None else f", silhouette {s['silhouette']:.3f}"
        scores.append(f"{source}: purity {s['purity']:.3f}{silhouette}")
    caption = (f"{name}: {len(rows)} clips of {len(classes)} classes{f' ({args.label})' if args.label else ''}, t-SNE "
               f"(perplexity {how['perplexity']:.0f}, of {how['dimensions']} principal components, seed {args.seed}). "
               f"Purity: share of the {one['k']} nearest neighbours in the full space with the clip's label (chance "
               f"{one['chance']:.3f}). {'; '.join(scores)}.")

    def draw(width):
        most = 14 if width < 5 and len(kept) > 30 else 28  # letters of a name
        handles = [handle(shortened(str(classes[k]), most), markeredgecolor="none", **look(looks[k])) for k in kept]
        if len(kept) < len(classes):
            handles.append(handle(f"{len(classes) - len(kept)} others", **look(LOOKS)))
        side = min(width / across(len(maps), width), 3.3)
        figure, axes = panels(width, len(maps), side + 0.15, caption, handles)
        for ax, (source, flat) in zip(axes, maps.items()):
            scatter(ax, flat, looks[codes], float(np.clip(9000 / len(rows), 0.5, 9)) * side / 3.3)
            ax.set_title(shortened(source, int(side / 0.065)))
        return figure
    table = [{"checkpoint": source, "path": rows.path(i), "start": int(rows.start[i]), "label": labels[i],
              "x": f"{x:.5g}", "y": f"{y:.5g}"} for source, flat in maps.items() for i, (x, y) in enumerate(flat)]
    return "tsne", draw, caption, table, {"clips": len(rows), "classes": len(classes), "label": args.label, **how,
                                          "panels": found}


def scatter(ax, places, looks, size):
    """places (n, 2), looks (n,): an index for style.look. Classes are drawn in a mixed order, so that none covers the
    others."""
    for k in np.random.default_rng(0).permutation(np.unique(looks)):
        some = places[looks == k]
        ax.scatter(*some.T, s=size, linewidths=0, alpha=0.85, rasterized=len(places) > 2000, **look(int(k)))
    ax.set(xticks=[], yticks=[])
    ax.set_aspect("equal", adjustable="datalim")
    ax.spines[:].set_visible(True)
