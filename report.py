"""Tables of results that fit a terminal, or Markdown."""
import shutil
from pathlib import Path

PROBES = {"knn": "kNN", "knn-raw": "kNN, raw", "linear": "linear", "attentive": "attentive", "prototype": "prototype"}
GROUPS = ("classification", "detection", "auxiliary")


def short(name, names=()):
    """A run folder's last part, as long as that tells it from the others."""
    last = Path(name).name
    return last if sum(Path(n).name == last for n in names) < 2 else str(name)


def table(header, rows, markdown=False):
    """Lines of columns; a number's column is aligned on the right. Fits the terminal by cutting the last column."""
    rows = [[str(cell) for cell in row] for row in rows]
    if markdown:
        lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    room = max(80, shutil.get_terminal_size((118, 24)).columns)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()[:room]
                     for row in [header, *rows])


def main_rows(rows):
    """Without the parts that a row is the best of, and without raw kNN beside the standardised."""
    both = any(r["probe"] == "knn" for r in rows)
    return [r for r in rows if not r["probe"].startswith("linear-") and not (both and r["probe"] == "knn-raw")]


def task_table(task, rows, differences, geometry, markdown=False):
    """One task: a line a probe and encoder, paired differences, and how the embeddings lie."""
    names = list(dict.fromkeys(r["encoder"] for r in rows + geometry))
    raw = {r["encoder"]: r["value"] for r in rows if r["probe"] == "knn-raw"}
    shown = main_rows(rows)
    order = list(dict.fromkeys(r["probe"] for r in shown))
    lines, last = [], None
    for r in sorted(shown, key=lambda r: (order.index(r["probe"]), names.index(r["encoder"]))):
        note = ", ".join(f"{k} {_plain(v)}" for k, v in r["choice"].items())
        if r["probe"] == "knn":
            note += f"; not standardised {raw[r['encoder']]:.3f}"
        if len(r["values"]) > 1:
            spread = max(r["values"]) - min(r["values"])
            note += f"; range {spread:.3f} over {len(r['values'])}"
        if "events" in r:
            note = f"cmAP {r['cmap']:.3f}, AUROC {r['auroc']:.3f}, event F1 {r['events']['iou']['f1']:.3f}; " + note
        lines.append([PROBES.get(r["probe"], r["probe"]) if r["probe"] != last or markdown else "",
                      short(r["encoder"], names), f"{r['value']:.3f}", _interval(r["ci95"]), note])
        last = r["probe"]
    out = []
    if shown:
        r = shown[0]
        metric = {"map": "mAP"}.get(r["metric"], r["metric"])
        out = [f"\n{task.name}: {metric}, {len(task.labels)} classes, {r['n_test']} test "
               f"{'windows' if task.kind == 'detection' else 'clips'} of {len(set(task.splits['test'].groups.tolist()))} "
               f"recordings, chance {r['chance']:.3f}",
               table(["probe", "encoder", "value", "95 % interval", "chosen on validation"], lines, markdown), ""]
    out += [f"{PROBES.get(d['probe'], d['probe'])}: {short(d['a'], names)} − {short(d['b'], names)} = {d['value']:.3f} "
            f"{_interval(d['ci95'])}" for d in differences if d["task"] == task.name]
    some = [g for g in geometry if g["task"] == task.name and "spread" in g]
    if some:
        columns = [c for c in ("nmi", "ari", "purity", "spread", "effective_rank", "duplicates") if c in some[0]]
        titles = {"nmi": "NMI", "ari": "ARI", "effective_rank": "effective rank"}
        out += ["", table(["encoder", *(titles.get(c, c) for c in columns)],
                          [[short(g["encoder"], names), *(_plain(g[c]) for c in columns)] for g in some], markdown)]
    return "\n".join(out)


def summary(results, markdown=False):
    """Means over tasks by group: a line a probe and encoder. A group column appears when a task is in it."""
    shown = main_rows(results)
    names = list(dict.fromkeys(r["encoder"] for r in shown))
    groups = [g for g in GROUPS if any(r["group"] == g for r in shown)]
    count = len(dict.fromkeys(r["task"] for r in shown))
    lines = []
    for kind in dict.fromkeys(r["probe"] for r in shown):
        for name in names:
            mine = [r for r in shown if r["probe"] == kind and r["encoder"] == name]
            if len(mine) == count:  # a mean over fewer tasks would stand beside others as if it were the same
                lines.append([PROBES.get(kind, kind), short(name, names),
                              *(_mean(r["value"] for r in mine if r["group"] == g) for g in groups),
                              _mean(r["value"] for r in mine)])
    return f"\nmeans over {count} tasks\n" + table(["probe", "encoder", *groups, "all"], lines, markdown)


def _mean(values):
    values = list(values)
    return f"{sum(values) / len(values):.3f}" if values else "–"


def _interval(pair):
    return f"[{pair[0]:.3f}, {pair[1]:.3f}]"


def _plain(value):
    if isinstance(value, list):
        return " ".join(f"{v:.2f}" for v in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
