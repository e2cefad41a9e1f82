"""Training curves of runs."""
import json
from pathlib import Path

from wren.cli import UserError
from wren.figures.style import GREY, handle, look, panels

BOOKKEEPING = ("step", "clips", "epoch", "chance", "skips", "audio_per_second", "data_wait", "memory_gb", "mfu",
               "count")  # of log.jsonl, without a panel
LAST = {"accuracy": "accuracy", "spread": "spread of clips", "lr": "learning rate",
        "grad_norm": "gradient norm", "clips_per_second": "speed (clips/s)"}  # after the loss and its parts


def read_log(run):
    """The rows of a run folder's log.jsonl; the last may be half written. [] where there is none."""
    path = Path(run) / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def plot(args):
    """A panel for each quantity of log.jsonl, training solid, held out dashed, a colour a run."""
    table, chances = [], {}
    for run in args.curves:
        steps = [row for row in read_log(run) if "commit" not in row]
        if not steps:
            raise UserError(f"{run}/log.jsonl: no such log, or no step in it yet; --curves takes run folders of "
                            "pretrain.py")
        chances[run] = next((row["chance"] for row in reversed(steps) if row.get("chance")), None)
        table += [{"run": run, "step": row["step"], "quantity": key, "value": value} for row in steps
                  for key, value in row.items()
                  if key.removeprefix("valid_") not in BOOKKEEPING and isinstance(value, (int, float))]
    found = dict.fromkeys(row["quantity"].removeprefix("valid_") for row in table)
    quantities = sorted(found, key=lambda key: (key != "loss", list(LAST).index(key) + 1 if key in LAST else 0))
    held = any(row["quantity"].startswith("valid_") for row in table)
    caption = (f"Pre-training of {', '.join(chances)}. Solid: training, mean over the steps since the last row"
               f"{'; dashed: held-out clips' * held}. Parts of the loss are before their weights.")

    def draw(width):
        handles = [handle(run, color=look(k)["color"], linestyle="-") for k, run in enumerate(chances)]
        for label, style, shown in (("training", "-", held), ("held out", "--", held),
                                    ("chance", ":", "accuracy" in found and any(chances.values()))):
            handles += [handle(label, color=GREY, linestyle=style)] * shown
        figure, axes = panels(width, len(quantities), 1.45, caption, handles)
        for ax, key in zip(axes, quantities):
            for k, run in enumerate(chances):
                color = look(k)["color"]
                for quantity, style in ((key, "-"), (f"valid_{key}", "--")):
                    dots = [(r["step"], r["value"]) for r in table if (r["run"], r["quantity"]) == (run, quantity)]
                    if dots:  # a single one would not show as a line
                        ax.plot(*zip(*dots), style, color=color, markersize=3, marker="o" if len(dots) == 1 else "")
                if key == "accuracy" and chances[run]:
                    ax.axhline(chances[run], color=color, linestyle=":", linewidth=0.8)
            ax.set(ylabel=LAST.get(key, key.replace("_", " ")), xlabel="step")
            ax.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
        return figure
    return "curves", draw, caption, table, {"runs": list(chances), "quantities": quantities}
