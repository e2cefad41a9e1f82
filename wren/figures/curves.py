"""Training curves of runs."""
import json
from pathlib import Path

from wren.figures import style as figures
from wren.cli import UserError

BOOKKEEPING = ("step", "clips", "epoch", "chance", "skips", "audio_per_second", "data_wait", "memory_gb", "mfu",
               "count")  # of log.jsonl, without a panel
NAMES = {"lr": "learning rate", "clips_per_second": "speed (clips/s)", "grad_norm": "gradient norm",
         "spread": "spread of clips", "accuracy": "patch accuracy", "knn": "online kNN"}


def plot(args):
    """A panel for each quantity of log.jsonl, training solid, held out dashed, a colour a run: the arguments of
    plot_tsne.py -> (name, draw(width), caption, rows of data, settings), as figures.save wants them."""
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
        figure, axes = figures.panels(width, len(panels), 1.45, caption, handles)
        for ax, key in zip(axes, panels):
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
