"""Figures of what runs and results hold: training curves, confusion matrices.

Each function takes the arguments of plot_tsne.py and returns (name, draw(width), caption, rows of data, settings), as
figures.save wants them.
"""
import json
from pathlib import Path

import numpy as np

from wren.figures import style as figures
from wren.cli import UserError

BOOKKEEPING = ("step", "clips", "epoch", "chance", "skips", "audio_per_second", "data_wait", "memory_gb", "mfu",
               "count")  # of log.jsonl, without a panel
NAMES = {"lr": "learning rate", "clips_per_second": "speed (clips/s)", "grad_norm": "gradient norm",
         "spread": "spread of clips", "accuracy": "patch accuracy", "knn": "online kNN"}


def plot(args):
    return plot_curves(args) if args.curves else plot_confusion(args)


def plot_curves(args):
    """A panel for each quantity of log.jsonl, training solid, held out dashed, a colour a run."""
    runs = {}
    for source in args.curves:
        path = Path(source) / "log.jsonl"
        if not path.exists():
            raise UserError(f"{path}: no such log; --curves takes run folders of pretrain.py")
        runs[source] = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    table = [{"run": run, "step": row["step"], "quantity": key, "value": value} for run, rows in runs.items()
             for row in rows if "commit" not in row for key, value in row.items()
             if key.removeprefix("valid_") not in BOOKKEEPING and isinstance(value, (int, float))]
    if not table:
        raise UserError(f"{', '.join(args.curves)}: log.jsonl holds no step yet")
    found = dict.fromkeys(r["quantity"].removeprefix("valid_") for r in table)
    last = [k for k in ("accuracy", "knn", "spread", "lr", "grad_norm", "clips_per_second") if k in found]
    panels = [k for k in ("loss",) if k in found] + [k for k in found if k not in ("loss", *last)] + last
    held = any(r["quantity"].startswith("valid_") for r in table)
    caption = (f"Pre-training of {', '.join(runs)}. Solid: training, mean over the steps since the last row"
               f"{'; dashed: held-out clips' * held}. Parts of the loss are before their weights.")

    chances = {run: next((row["chance"] for row in reversed(rows) if row.get("chance")), None)
               for run, rows in runs.items()}

    def draw(width):
        handles = [figures.handle(run, color=figures.look(k)["color"], linestyle="-") for k, run in enumerate(runs)]
        if held:
            handles += [figures.handle("training", color=figures.GREY, linestyle="-"),
                        figures.handle("held out", color=figures.GREY, linestyle="--")]
        if "accuracy" in panels and any(chances.values()):
            handles.append(figures.handle("chance", color=figures.GREY, linestyle=":"))
        down, across = figures.grid_of(len(panels), width)
        figure, body = figures.page(width, 1.45 * down, caption, handles)
        for ax, key in zip(figures.axes_of(body, len(panels), across), panels):
            for k, run in enumerate(runs):
                for quantity, line in ((key, "-"), (f"valid_{key}", "--")):
                    dots = [(r["step"], r["value"]) for r in table if (r["run"], r["quantity"]) == (run, quantity)]
                    if dots:  # a single one would not show as a line
                        ax.plot(*zip(*dots), linestyle=line, color=figures.look(k)["color"], markersize=3,
                                marker="o" if len(dots) == 1 else "")
                if key == "accuracy" and chances[run]:
                    ax.axhline(chances[run], color=figures.look(k)["color"], linestyle=":", linewidth=0.8)
            ax.set(ylabel=NAMES.get(key, key.replace("_", " ")), xlabel="step")
            ax.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
        return figure
    return "curves", draw, caption, table, {"runs": list(runs), "quantities": panels}


def plot_confusion(args):
    """Confusion matrices of the rows of a result file that hold one: {"confusion": [C][C] counts, the truth down, the
    prediction across; "per_class": {label: …} or "labels": [C], in the same order}."""
    path = Path(args.confusion)
    try:
        rows = json.loads(path.read_text()).get("results", [])
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--confusion {path}: not a result file ({error})") from None
    rows = [r | {"labels": r.get("labels") or list(r["per_class"])} for r in rows if r.get("confusion")]
    if not rows:
        raise UserError(f"--confusion {path}: none of its results holds a confusion matrix; finetune.py writes them "
                        "for classification tasks")
    shares = [np.array(r["confusion"], float) for r in rows]
    shares = [m / np.maximum(m.sum(1, keepdims=True), 1) for m in shares]
    titles = [f"{r['task']}, {r.get('probe', '')}: {r['metric']} {r['value']:.3f}" for r in rows]
    encoders = ", ".join(dict.fromkeys(Path(r["encoder"]).name for r in rows))
    caption = (f"Confusion of {encoders}: share of the clips of the class at the left that were taken for "
               f"the class below. {'; '.join(titles)}.")

    def draw(width):
        largest = max(len(m) for m in shares)
        across = 2 if width > 5 and len(shares) > 1 and largest <= 20 else 1
        names = [[figures.shortened(label, 16) for label in r["labels"]] for r in rows]
        room = max(figures.inches(label) for some in names for label in some) + 0.45  # beside and below each matrix
        side = min(width / across - room - 0.7, 4.5, 0.6 + 0.4 * largest)
        figure, body = figures.page(width, (side + room + 0.3) * -(-len(shares) // across), caption)
        for ax, m, some, title in zip(figures.axes_of(body, len(shares), across), shares, names, titles):
            image = ax.imshow(m, vmin=0, vmax=1, cmap="cividis")
            ticks = range(0, len(m), -(-len(m) // int(side / figures.LINE)))  # as many labels as fit
            ax.set_xticks(ticks, [some[k] for k in ticks], rotation=90)
            ax.set_yticks(ticks, [some[k] for k in ticks])
            ax.set(title=figures.shortened(title, int(width / across / 0.07)), xlabel="predicted", ylabel="true")
            body.colorbar(image, ax=ax, shrink=0.6, label="share")
        return figure
    table = [{"task": r["task"], "true": r["labels"][i], "predicted": r["labels"][j], "clips": r["confusion"][i][j]}
             for r in rows for i in range(len(r["labels"])) for j in range(len(r["labels"]))]
    return "confusion", draw, caption, table, {"file": str(path)}
