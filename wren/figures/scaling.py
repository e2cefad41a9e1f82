"""Score against the number of pre-training clips: points of runs and of the published table, a line, a figure.

A point is {"series", "run", "clips", "seed", "column", "value", "low", "high"}; low and high are a single run's 95 %
interval over test clips, or None. The line is straight in the logarithm of clips, score = c + a log10 n: with the few
sizes and seeds that anyone can afford, what else a law says (where it levels off, what the next size will bring) could
not be told from noise.
"""
import json
from collections import Counter
from pathlib import Path

import numpy as np
from scipy import stats

from wren.cli import UserError, warn
from wren.figures.curves import read_log
from wren.figures.style import GREY, handle, look, panels

PUBLISHED = Path(__file__).parents[1] / "probing" / "published.json"
GROUPS = ("classification", "detection", "auxiliary")
PROBES = ("finetune", "linear", "knn")  # which is shown when several are there and none is named
BASELINES = {"untrained": "--", "mel statistics": ":"}
LOSS = "held-out loss"


# ---------------------------------------------------------------------------------------------------- the points

def point(about, column, value, low=None, high=None):
    return about | {"column": column, "value": value, "low": low, "high": high}


def published_points():
    """The GPM-BT rows of published.json."""
    points = []
    for row in json.loads(PUBLISHED.read_text())["rows"]:
        if row["protocol"] == "gpm-bt":
            parts = ("GPM-BT", row["init"] if row["init"] == "secondary" else "",
                     row["domain"] if row["domain"] == "general" else "", row["mask"])
            about = {"series": " ".join(filter(None, parts)), "run": row["name"], "clips": row["clips"], "seed": None}
            points += [point(about, column, row[column]) for column in (*GROUPS, "all")]
    return points


def run_points(places, probe=None):
    """Points of runs: folders that hold config.json, or folders of such -> (points, probe).

    Scores come from every JSON with "results" in or below these folders whose rows name the run as their encoder;
    untrained encoders and mel statistics become series without a size ("clips" None).
    """
    folders = [Path(place) for place in places]
    if absent := next((folder for folder in folders if not folder.is_dir()), None):
        raise UserError(f"{absent}: no such folder of runs; python pretrain.py makes one")
    paths = {path for folder in folders for path in (*folder.glob("config.json"), *folder.glob("*/config.json"))}
    runs = {path.parent.name: about for path in sorted(paths) if (about := identify(path))}
    scores = read_scores(folders)
    probes = {probe for run, probe, _ in scores if run in runs}
    if not probes:
        raise UserError(f"{', '.join(map(str, places))}: {'no results of runs' if runs else 'no runs'} in or below; "
                        "make them with python pretrain.py --subset N and python evaluate.py --checkpoint runs/NAME")
    if probe and probe not in probes:
        raise UserError(f"--probe {probe}: these results hold {', '.join(sorted(probes))}")
    probe = probe or next((name for name in PROBES if name in probes), min(probes))
    scores = {(run, task): row for (run, kind, task), row in scores.items() if kind == probe}
    columns, points = columns_of([row for (run, _), row in scores.items() if run in runs]), []
    for name, (about, loss) in runs.items():
        points += means(scores, about, columns) + ([] if loss is None else [point(about, LOSS, loss)])
    for name in BASELINES:
        points += means(scores, {"series": name, "run": name, "clips": None, "seed": None}, columns)
    return points, probe


def identify(path):
    """({series, run, clips, seed}, last held-out loss or None) of a run of pretrain.py, or None of another folder that
    has a config.json."""
    config = json.loads(path.read_text())
    if not {"identity", "data"} <= config.keys():
        return None
    identity, data = config["identity"], config["data"]
    parts = (identity["recipe"], identity.get("masking"), "secondary" if identity.get("init") else "",
             "general" if data["subset"] == "2.23M" or identity.get("domain") == "gen" else "")
    losses = [row["valid_loss"] for row in read_log(path.parent) if "valid_loss" in row]
    return {"series": " ".join(filter(None, parts)), "run": path.parent.name, "clips": data["clips"],
            "seed": identity["seed"]}, losses[-1] if losses else None


def read_scores(folders):
    """{(name of the encoder's folder, probe, task): row} of all result files. Where several files have a score the
    newest counts; its rows of several seeds or folds of a probe are averaged, intervals included."""
    files = {path for folder in folders for path in folder.rglob("*.json") if path.name != "config.json"}
    scores = {}
    for path in sorted(files, key=lambda path: path.stat().st_mtime):
        try:
            content = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path}: not JSON; remove it, or make it anew with python evaluate.py") from None
        found = {}
        for row in content.get("results", ()) if isinstance(content, dict) else ():
            found.setdefault((Path(row["encoder"]).name, row["probe"], row["task"]), []).append(row)
        for key, rows in found.items():
            value, low, high = np.mean([(row["value"], *row["ci95"]) for row in rows], axis=0, dtype=float).tolist()
            scores[key] = rows[0] | {"value": value, "ci95": [low, high]}
    return scores


def columns_of(rows):
    """{column: names of its tasks}: BEANS's groups where tasks have them, else one a task; then all of them."""
    groups = {row["task"]: row.get("group") for row in sorted(rows, key=lambda row: row["task"])}
    if any(groups.values()):
        columns = {name: [task for task in groups if (groups[task] or "other") == name] for name in (*GROUPS, "other")}
        columns, whole = {name: tasks for name, tasks in columns.items() if tasks}, "all"
    else:
        columns, whole = {task: [task] for task in groups}, "mean of tasks"  # not to stand in one panel with BEANS's
    return columns | ({whole: list(groups)} if len(columns) > 1 else {})


def means(scores, about, columns):
    """The points of one encoder, means over the column's tasks; a column that lacks a task is left out with a warning.
    The interval of a mean takes the tasks' intervals as independent."""
    points, name = [], about["run"]
    for column, tasks in columns.items():
        if missing := [task for task in tasks if (name, task) not in scores]:
            if name not in BASELINES:
                warn(f"{name}: no score of {', '.join(missing)}, so none in {column}")
            continue
        value = np.array([scores[name, task]["value"] for task in tasks])
        ends = np.array([scores[name, task]["ci95"] for task in tasks], float)  # (tasks, 2)
        below, above = np.sqrt(np.square(ends - value[:, None]).sum(0)) / len(tasks)
        mean = float(value.mean())
        points.append(point(about, column, mean, float(mean - below), float(mean + above)))
    return points


# ---------------------------------------------------------------------------------------------------- the figure

def line(points):
    """Least squares in log10 of clips of the points of one series and column, or None with fewer than three sizes ->
    (plain values with the slope's 95 % interval, (clips, line, lower and upper edge of its 95 % band), 100 of each)."""
    x, y = np.log10([p["clips"] for p in points]), [p["value"] for p in points]
    if len(np.unique(x)) < 3:
        return None
    found = stats.linregress(x, y)
    half = stats.t.ppf(0.975, len(x) - 2) * found.stderr
    at = np.linspace(x.min(), x.max(), 100)
    middle = found.intercept + found.slope * at
    reach = half * np.sqrt(np.square(at - x.mean()) + x.var())
    about = {"formula": "c + a log10 n", "c": found.intercept, "per_decade": found.slope,
             "ci95": [found.slope - half, found.slope + half], "dof": len(x) - 2}
    return about, (10 ** at, middle, middle - reach, middle + reach)


def over_seeds(points):
    """Clips, mean, low and high of each size, (4, sizes): three runs or more get Student's 95 % interval of their mean,
    two their range, one its own interval over test clips (NaN: it has none)."""
    sizes, out = {}, []
    for p in points:
        sizes.setdefault(p["clips"], []).append(p)
    for clips, some in sorted(sizes.items()):
        v = [p["value"] for p in some]
        ends = (some[0]["low"], some[0]["high"]) if len(v) == 1 else (min(v), max(v))
        if len(v) > 2:
            half = stats.t.ppf(0.975, len(v) - 1) * stats.sem(v)
            ends = np.mean(v) - half, np.mean(v) + half
        out.append((clips, np.mean(v), *ends))
    return np.array(out, float).T


def plot(args):
    """Score against pre-training clips, of runs and of the published GPM-BT: a panel a column."""
    places = args.scaling or ([] if args.published else ["runs"])
    points, probe = run_points(places, args.probe) if places else ([], None)
    points += published_points() if args.published else []
    cells = {}  # {column: {series: points}}
    for p in sorted(points, key=lambda p: (p["column"] == LOSS, p["column"] == "all")):
        cells.setdefault(p["column"], {}).setdefault(p["series"], []).append(p)
    series = [s for s in dict.fromkeys(p["series"] for p in points) if s not in BASELINES]
    lines = {column: {s: line(some) for s, some in by_series.items() if s in series}
             for column, by_series in cells.items()}
    caption = describe(cells, series, lines, probe)

    def draw(width):
        looks = {s: look(k) | {"marker": "osD^vPX<>p"[k % 10], "markerfacecolor": "none" if s.startswith("GPM-BT ")
                               else look(k)["color"]} for k, s in enumerate(series)}
        handles = [handle(s, **looks[s]) for s in series]
        handles += [handle(name, color=GREY, linestyle=style) for name, style in BASELINES.items()
                    if any(name in by_series for by_series in cells.values())]
        figure, axes = panels(width, len(cells), 1.8, caption, handles)
        for ax, column in zip(axes, cells):
            panel(ax, cells[column], lines[column], looks)
            ax.set(title=column, xlabel="pre-training clips", ylabel="loss" if column == LOSS else "score")
        return figure
    about = {column: {s: found and found[0] for s, found in by_series.items()} for column, by_series in lines.items()}
    return "scaling", draw, caption, points, {"probe": probe, "lines": about}


def panel(ax, cells, lines, looks):
    """One column: means with intervals, single runs as dots, lines with their bands. All are {series: …}."""
    sizes, bands = set(), []
    for name, points in cells.items():
        if name in BASELINES:
            ax.axhline(np.mean([p["value"] for p in points]), color=GREY, linestyle=BASELINES[name], linewidth=0.8)
            continue
        color, (clips, mean, low, high) = looks[name]["color"], over_seeds(points)
        if len(points) > len(clips):
            ax.plot(*zip(*[(p["clips"], p["value"]) for p in points]), ".", markersize=2, color=color, alpha=0.6)
        known = high > low
        ax.errorbar(clips[known], mean[known], np.maximum(0, [mean - low, high - mean])[:, known], fmt="none",
                    ecolor=color, elinewidth=0.6, capsize=1.5)
        ax.plot(clips, mean, linestyle="none", markersize=4, markeredgewidth=0.8, zorder=3, **looks[name])
        sizes |= set(clips)
        if lines[name]:
            n, middle, *edges = lines[name][1]
            ax.plot(n, middle, color=color, linewidth=0.8)
            bands.append((n, *edges, color))
    low, high = ax.get_ylim()
    for *band, color in bands:
        ax.fill_between(*band, color=color, alpha=0.15, linewidth=0)
    wide, room = ax.get_ylim(), (high - low) / 2  # a wide band must not flatten the points
    ax.set_ylim(max(wide[0], low - room), min(wide[1], high + room))
    ax.set_xscale("log")
    sizes, ticks = sorted(sizes, reverse=True), []
    for size in (sizes[0], sizes[-1], *sizes):  # labels that fit
        if all(abs(np.log(size / other)) > 0.3 * np.log(sizes[0] / sizes[-1]) for other in ticks):
            ticks.append(size)
    ax.set_xticks(ticks, [f"{size / 1e6:.2f}M" if size >= 1e5 else f"{size:,.0f}" for size in ticks])
    ax.set_xticks(sizes, [""] * len(sizes), minor=True)


def describe(cells, series, lines, probe):
    """The caption: what the marks mean, and what each series' line in its last score column says."""
    text = f"Score {f'({probe}) ' * bool(probe)}against pre-training clips"
    drawn = [p for by_series in cells.values() for s in series for p in by_series.get(s, ())]
    seeds = max(Counter((p["series"], p["column"], p["clips"]) for p in drawn).values())
    if seeds > 1:
        text += f"; bars: {'range of two seeds' if seeds == 2 else '95 % interval of the mean over seeds'}"
    elif any(p["low"] is not None for p in drawn):
        text += "; bars: 95 % interval over test clips"
    if any(found for by_series in lines.values() for found in by_series.values()):
        text += "; lines: least squares; shade: their 95 % confidence"
    sentences = [text + "."]
    last = {s: (column, found[0]) for column, by_series in lines.items() if column != LOSS
            for s, found in by_series.items() if found}
    for s, (column, about) in last.items():
        low, high = about["ci95"]
        sentences.append(f"{s}, {column}: {about['per_decade']:+.3f} [{low:.3f}, {high:.3f}] for ten times as many "
                         "clips.")
    if few := [s for s in series if not any(by_series.get(s) for by_series in lines.values())]:
        sentences.append(f"No line for {', '.join(few)}: fewer than three sizes.")
    return " ".join(sentences)
