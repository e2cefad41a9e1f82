"""Score against the number of pre-training clips: points of runs and of the published table, a line, a figure.

A point is {"series", "column", "clips", "seed", "value", "low", "high", "run"}; low and high are a single run's 95 %
interval over test clips, or None. The line is straight in the logarithm of clips, score = c + a log10 n: with the few
sizes and seeds that anyone can afford, what else a law says (where it levels off, what the next size will bring) could
not be told from noise.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from wren.cli import UserError

PUBLISHED = Path(__file__).parents[1] / "probing" / "published.json"
GROUPS = ("classification", "detection", "auxiliary")
PROBES = ("finetune", "linear", "knn")  # which is shown when several are there and none is named
BASELINES = ("untrained", "mel statistics")
LOSS = "held-out loss"


# ------------------------------------------------------------------------------------------------------ the line

@dataclass
class Line:
    """Least squares of scores (m,), one a run, in log10 of clips (m,)."""
    x: np.ndarray
    y: np.ndarray

    def __post_init__(self):
        self.fit, self.dof = stats.linregress(self.x, self.y), len(self.x) - 2
        self.deviation = float(np.sqrt(np.square(self.y - self.at(self.x)).sum() / self.dof))  # of runs about it
        self.t = stats.t.ppf(0.975, self.dof)

    def at(self, x):
        return self.fit.intercept + self.fit.slope * x

    def band(self, x):
        """95 % confidence band of the line at x (k,) -> (2, k)."""
        middle = self.x.mean()
        apart = np.square(x - middle) / np.square(self.x - middle).sum()
        return self.at(x) + self.t * self.deviation * np.sqrt(1 / len(self.x) + apart) * np.array([[-1], [1]])

    def described(self):
        """Plain values for the figure's JSON."""
        slope, half = float(self.fit.slope), float(self.t * self.fit.stderr)
        return {"formula": "c + a log10 n", "c": float(self.fit.intercept), "per_decade": slope,
                "ci95": [slope - half, slope + half], "residual_deviation": self.deviation, "dof": self.dof}


def fitted(points):
    """The `Line` of the points of one series and column, or None with fewer than three sizes."""
    x = np.log10([p["clips"] for p in points])
    return Line(x, np.array([p["value"] for p in points])) if len(np.unique(x)) > 2 else None


# ---------------------------------------------------------------------------------------------------- the points

def published_points():
    """The GPM-BT rows of published.json."""
    rows = [r for r in json.loads(PUBLISHED.read_text())["rows"] if r["protocol"] == "gpm-bt"]

    def series(row):
        return " ".join(["GPM-BT", *["secondary"] * (row["init"] == "secondary"),
                         *["general"] * (row["domain"] == "general"), row["mask"]])
    return [{"series": series(row), "column": column, "clips": row["clips"], "seed": None, "value": row[column],
             "low": None, "high": None, "run": row["name"]} for row in rows for column in (*GROUPS, "all")]


def run_points(places, probe=None):
    """Points of runs: folders that hold config.json, or folders of such -> (points, probe, notes).

    Scores come from every JSON with "results" in or below these folders whose rows name the run as their encoder;
    untrained encoders and mel statistics become series without a size ("clips" None).
    """
    folders = [Path(place) for place in places]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of runs; python pretrain.py makes one")
    paths = {path for folder in folders for path in (*folder.glob("config.json"), *folder.glob("*/config.json"))}
    runs = {path.parent.name: about for path in sorted(paths) if (about := identify(path.parent))}
    scores = read_scores(folders)
    probes = {key[1] for key in scores if key[0] in runs}
    if not probes:
        raise UserError(f"{', '.join(map(str, places))}: {'no results of runs' if runs else 'no runs'} in or below; "
                        "make them with python pretrain.py --subset N and python evaluate.py --checkpoint runs/NAME")
    if probe and probe not in probes:
        raise UserError(f"--probe {probe}: these results hold {', '.join(sorted(probes))}")
    probe = probe or next((name for name in PROBES if name in probes), min(probes))
    scores = {(key[0], key[2]): row for key, row in scores.items() if key[1] == probe}
    columns = columns_of(row for (encoder, _), row in scores.items() if encoder in runs)
    points, notes = [], []
    for name, (about, loss) in runs.items():
        points += [about | one for one in values(scores, name, columns, notes)]
        if loss is not None:
            points.append(about | {"column": LOSS, "value": loss, "low": None, "high": None})
    for name in BASELINES:
        about = {"series": name, "clips": None, "seed": None, "run": name}
        points += [about | one for one in values(scores, name, columns, [])]
    return points, probe, notes


def identify(folder):
    """({series, clips, seed, run}, last held-out loss or None) of a run of pretrain.py, or None of another folder."""
    config = json.loads((folder / "config.json").read_text())
    if not {"identity", "data"} <= config.keys():
        return None
    identity = config["identity"]
    parts = [identity["recipe"], identity.get("masking") or "", "secondary" if identity.get("init") else "",
             "general" if config["data"]["subset"] == "2.23M" or identity.get("domain") == "gen" else ""]
    log = folder / "log.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")] if log.exists() else []
    loss = next((row["valid_loss"] for row in reversed(rows) if "valid_loss" in row), None)
    return {"series": " ".join(filter(None, parts)), "clips": config["data"]["clips"], "seed": identity["seed"],
            "run": folder.name}, loss


def read_scores(folders):
    """{(name of the encoder's folder, probe, task): row} of all result files. Where several files have a score the
    newest counts; its rows of several seeds or folds of a probe are averaged, intervals included."""
    files = {path for folder in folders for path in folder.rglob("*.json") if path.name != "config.json"}
    scores = {}
    for path in sorted(files, key=lambda p: p.stat().st_mtime):
        try:
            content = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path}: not JSON; remove it, or make it anew with python evaluate.py") from None
        results = content.get("results") if isinstance(content, dict) else None
        found = {}
        for row in results if isinstance(results, list) else []:
            found.setdefault((Path(row["encoder"]).name, row["probe"], row["task"]), []).append(row)
        for key, rows in found.items():
            scores[key] = rows[0] | {"value": float(np.mean([row["value"] for row in rows])),
                                     "ci95": np.array([row["ci95"] for row in rows], float).mean(0).tolist()}
    return scores


def columns_of(rows):
    """{column: names of its tasks}: BEANS's groups where tasks have them, else one a task; then all of them."""
    rows = list(rows)
    grouped, columns = any(row.get("group") in GROUPS for row in rows), {}
    for row in sorted(rows, key=lambda row: row["task"]):
        columns.setdefault((row.get("group") or "other") if grouped else row["task"], set()).add(row["task"])
    columns = {name: columns[name] for name in dict.fromkeys((*GROUPS, *columns)) if name in columns}
    whole = "all" if grouped else "mean of tasks"  # another name: not to stand beside BEANS's in one panel
    return columns | ({whole: set().union(*columns.values())} if len(columns) > 1 else {})


def values(scores, name, columns, notes):
    """[{column, value, low, high}] of one encoder, means over the column's tasks; a column that lacks a task is left
    out and noted. The interval of a mean takes the tasks' intervals as independent."""
    out = []
    for column, tasks in columns.items():
        missing = sorted(task for task in tasks if (name, task) not in scores)
        if missing:
            notes.append(f"{name}: no score of {', '.join(missing)}, so none in {column}")
            continue
        value = np.array([scores[name, task]["value"] for task in tasks])
        low, high = np.array([scores[name, task]["ci95"] for task in tasks], float).T
        half = [float(np.sqrt(np.square(end - value).sum()) / len(tasks)) for end in (low, high)]
        mean = float(value.mean())
        out.append({"column": column, "value": mean, "low": mean - half[0], "high": mean + half[1]})
    return out


def over_seeds(points):
    """[(clips, mean, low, high)] by size: three runs or more get Student's 95 % interval of their mean, two their
    range, one its own interval over test clips."""
    out = []
    for clips in sorted({p["clips"] for p in points}):
        here = [p for p in points if p["clips"] == clips]
        v = np.array([p["value"] for p in here])
        low, high = here[0]["low"], here[0]["high"]
        if len(v) == 2:
            low, high = v.min(), v.max()
        elif len(v) > 2:
            half = stats.t.ppf(0.975, len(v) - 1) * stats.sem(v)
            low, high = v.mean() - half, v.mean() + half
        out.append((clips, *(np.nan if x is None else float(x) for x in (v.mean(), low, high))))
    return out


# ---------------------------------------------------------------------------------------------------- the figure

def count(clips):
    """120000 -> 0.12M, 25000 -> 25k, 400 -> 400."""
    return f"{clips / 1e6:.2f}M" if clips >= 1e5 else f"{clips / 1e3:g}k" if clips >= 1e4 else f"{clips:g}"


def drawing(points):
    """(draw, lines): a panel a column; lines {column: {series: plain values, or None}}."""
    columns = sorted(dict.fromkeys(p["column"] for p in points), key=lambda c: (c == LOSS, c == "all"))
    series = [s for s in dict.fromkeys(p["series"] for p in points) if s not in BASELINES]
    fits = {(c, s): fitted(some) for c in columns for s in series
            if (some := [p for p in points if (p["column"], p["series"]) == (c, s)])}
    lines = {c: {s: fit and fit.described() for (column, s), fit in fits.items() if column == c} for c in columns}

    def draw(width, caption):
        from wren.figures.style import GREY, handle, look, panels
        shapes = {s: look(k) | {"marker": "osD^vPX<>p"[k % 10], "markerfacecolor": "none" if s.startswith("GPM-BT ")
                                else look(k)["color"]} for k, s in enumerate(series)}
        handles = [handle(s, **shapes[s]) for s in series]
        handles += [handle(b, color=GREY, linestyle=line, marker="") for b, line in zip(BASELINES, ("--", ":"))
                    if any(p["series"] == b for p in points)]
        figure, axes = panels(width, len(columns), 1.8, caption, handles)
        for ax, column in zip(axes, columns):
            here = {s: [p for p in points if (p["column"], p["series"]) == (column, s)]
                    for s in (*series, *BASELINES)}
            panel(ax, column, here, {s: fit for (c, s), fit in fits.items() if c == column}, shapes)
        return figure
    return draw, lines


def panel(ax, column, by_series, lines, shapes):
    """One column: means with intervals, single runs as dots, lines with their bands."""
    from wren.figures.style import GREY
    sizes, bands = set(), []
    for name, style in zip(BASELINES, ("--", ":")):
        if by_series[name]:
            ax.axhline(np.mean([p["value"] for p in by_series[name]]), color=GREY, linestyle=style, linewidth=0.8)
    for name, looks in shapes.items():
        points, color = by_series[name], looks["color"]
        if not points:
            continue
        clips, mean, low, high = np.array(over_seeds(points)).T
        if len(points) > len(clips):
            ax.plot(*zip(*[(p["clips"], p["value"]) for p in points]), ".", markersize=2, color=color, alpha=0.6)
        known = high > low
        ax.errorbar(clips[known], mean[known], np.maximum(0, [mean - low, high - mean])[:, known], fmt="none",
                    ecolor=color, elinewidth=0.6, capsize=1.5)
        ax.plot(clips, mean, linestyle="none", markersize=4, markeredgewidth=0.8, zorder=3, **looks)
        sizes |= set(clips)
        if line := lines.get(name):
            n = np.geomspace(clips.min(), clips.max(), 100)
            ax.plot(n, line.at(np.log10(n)), color=color, linewidth=0.8)
            bands.append((n, *line.band(np.log10(n)), color))
    low, high = ax.get_ylim()
    for n, below, above, color in bands:
        ax.fill_between(n, below, above, color=color, alpha=0.15, linewidth=0)
    wide, room = ax.get_ylim(), (high - low) / 2  # a wide band must not flatten the points
    ax.set_ylim(max(wide[0], low - room), min(wide[1], high + room))
    ax.set_xscale("log")
    every, ticks = sorted(sizes), []
    for size in (every[-1], every[0], *reversed(every)):  # labels that fit
        if all(abs(np.log(size / other)) > 0.3 * np.log(every[-1] / every[0]) for other in ticks):
            ticks.append(size)
    ax.set_xticks(ticks, [count(size) for size in ticks])
    ax.set_xticks(every, [""] * len(every), minor=True)
    ax.set_xlabel("pre-training clips")
    ax.set_ylabel("loss" if column == LOSS else "score")
    ax.set_title(column)


def describe(points, lines, probe):
    """The caption: what the marks mean, and what each series' line in its last score column says."""
    series = [s for s in dict.fromkeys(p["series"] for p in points) if s not in BASELINES]
    seeds = {len([p for p in points if (p["series"], p["column"], p["clips"]) == key]) for key in
             {(p["series"], p["column"], p["clips"]) for p in points if p["series"] in series}}
    bars = {1: "95 % interval over test clips", 2: "range of two seeds"}.get(max(seeds), "95 % interval of the mean "
                                                                             "over seeds")
    text = [f"Score {f'({probe}) ' * bool(probe)}against pre-training clips"]
    if any(p["low"] is not None for p in points) or max(seeds) > 1:
        text.append(f"bars: {bars}")
    if any(line for column in lines.values() for line in column.values()):
        text.append("lines: least squares; shade: their 95 % confidence")
    sentences = ["; ".join(text) + "."]
    for s in series:
        column = [c for c in lines if s in lines[c] and c != LOSS][-1]
        if line := lines[column][s]:
            low, high = line["ci95"]
            sentences.append(f"{s}, {column}: {line['per_decade']:+.3f} [{low:.3f}, {high:.3f}] for ten times as many "
                             "clips.")
    if few := [s for s in series if not any(lines[c].get(s) for c in lines)]:
        sentences.append(f"No line for {', '.join(few)}: fewer than three sizes.")
    return " ".join(sentences)
