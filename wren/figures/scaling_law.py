"""Score against the number of pre-training clips: points of runs and of the published table, a law, a figure.

A point is {"series", "column", "clips", "seed", "value", "low", "high", "run"}; low and high are a single run's 95 %
interval over test clips, or None. Two laws are known, in n clips:

    log-linear   score = c + a ln n
    power law    score = c + a n^-alpha, alpha > 0; c is what endless data would give

The log-linear law is the power law's limit for alpha -> 0, so an F-test decides: offset and exponent count as
identifiable with four sizes or more, if the power law leaves significantly (5 %) less error than the straight line,
and if alpha lies inside the range that is searched. Otherwise three parameters would only trade against each other.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import optimize, stats

from wren.cli import UserError
from wren.sound.subsets import BIO_DRAWS

PUBLISHED = Path(__file__).parents[1] / "probing" / "published.json"
GROUPS = ("classification", "detection", "auxiliary")
PROBES = ("finetune", "linear", "knn")  # which is shown when several are there and none is named
BASELINES = ("untrained", "mel statistics")
LOSS = "held-out loss"
ALPHAS = (0.02, 3.0)


# ------------------------------------------------------------------------------------------------------- the law

@dataclass
class Law:
    """A fitted curve. `parameters` c, a (and alpha) in clips; covariance (p, p) of them."""
    kind: str  # "log-linear" or "power law"
    why: str
    parameters: np.ndarray
    covariance: np.ndarray
    variance: float  # of one run about the curve
    dof: int

    def value(self, clips):
        """clips (m,) -> (m,)."""
        return slopes(clips, self.parameters)[:, :2] @ self.parameters[:2]

    def interval(self, clips, run=False):
        """95 % confidence band of the curve at clips (m,), or with `run` the interval of one more run -> (2, m)."""
        x = slopes(clips, self.parameters)
        spread = np.sqrt(np.einsum("mp,pq,mq->m", x, self.covariance, x) + run * self.variance)
        return self.value(clips) + stats.t.ppf(0.975, self.dof) * spread * np.array([[-1], [1]])

    def described(self):
        """Plain values for the figure's JSON."""
        values, errors = self.parameters.tolist(), np.sqrt(np.diag(self.covariance)).tolist()
        about = {"kind": self.kind, "why": self.why, "residual_deviation": self.variance ** 0.5, "dof": self.dof}
        if len(values) == 3:
            return about | {"formula": "c + a n^-alpha", **dict(zip(("c", "a", "alpha"), values)),
                            "c_error": errors[0], "alpha_error": errors[2]}
        decade = float(np.log(10))
        return about | {"formula": "c + a ln n", "c": values[0], "a": values[1], "per_decade": values[1] * decade,
                        "per_decade_error": errors[1] * decade}


def slopes(clips, parameters):
    """d curve / d parameters at clips (m,): columns 1, ln n, or 1, n^-alpha, -a n^-alpha ln n. The first two are what
    c and a multiply in the curve itself."""
    n = np.asarray(clips, float)
    if len(parameters) == 2:
        return np.stack([np.ones_like(n), np.log(n)], axis=1)
    power = n ** -parameters[2]
    return np.stack([np.ones_like(n), power, -parameters[1] * power * np.log(n)], axis=1)


def fit(clips, values):
    """clips (m,), values (m,), one a run -> Law. ValueError with fewer than three different sizes."""
    clips, values = np.asarray(clips, float), np.asarray(values, float)
    sizes = len(np.unique(clips))
    if sizes < 3:
        raise ValueError(f"{sizes} size{'s' * (sizes != 1)} of subset: a law needs at least three")

    def solve(*alpha):
        """The best c and a, of a power law for a given alpha -> (squared error, parameters)."""
        terms = slopes(clips, (0, 0, *alpha))[:, :2]
        best = np.linalg.lstsq(terms, values, rcond=None)[0]
        return float(np.square(terms @ best - values).sum()), np.array([*best, *alpha])

    error, parameters = solve()
    kind, why = "log-linear", f"{sizes} sizes: three parameters need at least four"
    if sizes >= 4:
        start = min(np.geomspace(*ALPHAS, 60), key=lambda alpha: solve(alpha)[0])
        alpha = optimize.minimize_scalar(lambda alpha: solve(alpha)[0], method="bounded", options={"xatol": 1e-10},
                                         bounds=np.clip([0.9 * start, 1.1 * start], *ALPHAS)).x
        bent, bent_parameters = solve(alpha)
        dof, straight = len(clips) - 3, error <= 1e-12 * np.square(values - values.mean()).sum() + 1e-20
        p = 1.0 if straight else float(stats.f.sf((error - bent) / max(bent / dof, 1e-300), 1, dof))
        if not ALPHAS[0] * 1.01 < alpha < ALPHAS[1] / 1.01:
            why = ("no levelling off to tell a power law's offset by" if alpha < 1 else
                   "levelled off too early to tell a power law's exponent")
        elif p < 0.05:
            kind, why = "power law", f"its offset is identifiable: F-test against log-linear, p = {p:.2g}"
            error, parameters = bent, bent_parameters
        else:
            why = f"a power law's offset is not identifiable: F-test against log-linear, p = {p:.2g}"
    design, dof = slopes(clips, parameters), len(clips) - len(parameters)
    return Law(kind, why, parameters, error / dof * np.linalg.inv(design.T @ design), error / dof, dof)


def next_size(clips):
    """The subset after the largest one: the paper's next draw, or twice as many. Some of a draw may be held out."""
    draws = sorted(BIO_DRAWS.values())
    for size, following in zip(draws, draws[1:]):
        if 0.95 * size < max(clips) <= size:
            return following
    return 2 * max(clips)


def study(points):
    """Law, prediction and its check of the points of one series and column -> (Law or None, plain values)."""
    clips, values = np.array([p["clips"] for p in points]), np.array([p["value"] for p in points])
    try:
        law = fit(clips, values)
    except ValueError as error:
        return None, {"law": None, "why": str(error)}
    about = law.described() | {"next": predicted(law, next_size(clips.tolist()))}
    rest = clips < clips.max()
    if len(np.unique(clips[rest])) >= 3:  # would the law without the largest size have foretold it?
        foretold = predicted(fit(clips[rest], values[rest]), int(clips.max()))
        about["check"] = foretold | {"observed": float(values[~rest].mean())}
    return law, about


def predicted(law, clips):
    """What a law says of a size in clips: value, and 95 % intervals of the curve and of a run."""
    return {"clips": int(clips), "value": float(law.value([clips])[0]),
            "curve95": law.interval([clips])[:, 0].tolist(), "run95": law.interval([clips], run=True)[:, 0].tolist()}


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
    """(draw, laws): a panel a column; laws {column: {series: plain values}}."""
    columns = sorted(dict.fromkeys(p["column"] for p in points), key=lambda c: (c == LOSS, c == "all"))
    series = [s for s in dict.fromkeys(p["series"] for p in points) if s not in BASELINES]
    fitted = {(c, s): study(some) for c in columns for s in series
              if (some := [p for p in points if (p["column"], p["series"]) == (c, s)])}
    laws = {c: {s: about for (column, s), (_, about) in fitted.items() if column == c} for c in columns}

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
            panel(ax, column, here, {s: law for (c, s), (law, _) in fitted.items() if c == column}, shapes)
        return figure
    return draw, laws


def panel(ax, column, by_series, laws, shapes):
    """One column: means with intervals, single runs as dots, laws with bands up to the next size."""
    from wren.figures.style import GREY
    sizes, fitted, following, bands = set(), set(), set(), []
    for name, line in zip(BASELINES, ("--", ":")):
        if by_series[name]:
            ax.axhline(np.mean([p["value"] for p in by_series[name]]), color=GREY, linestyle=line, linewidth=0.8)
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
        if law := laws.get(name):
            end = next_size(clips.tolist())
            n = np.geomspace(clips.min(), end, 100)
            ax.plot(n, law.value(n), color=color, linewidth=0.8)
            ax.plot(end, law.value([end]), marker="*", markersize=6, markerfacecolor="white", color=color,
                    markeredgewidth=0.7, zorder=3)
            bands.append((n, *law.interval(n), color))
            fitted |= set(clips)
            following.add(end)
    low, high = ax.get_ylim()
    for n, below, above, color in bands:
        ax.fill_between(n, below, above, color=color, alpha=0.15, linewidth=0)
    wide, room = ax.get_ylim(), (high - low) / 2  # a wide band must not flatten the points
    ax.set_ylim(max(wide[0], low - room), min(wide[1], high + room))
    ax.set_xscale("log")
    every, ticks = sorted(sizes | following), []
    first = sorted(fitted or sizes, reverse=True)
    for size in (first[0], first[-1], *first, *sorted(sizes), *following):  # labels that fit
        if all(abs(np.log(size / other)) > 0.3 * np.log(every[-1] / every[0]) for other in ticks):
            ticks.append(size)
    ax.set_xticks(ticks, [count(size) for size in ticks])
    ax.set_xticks(every, [""] * len(every), minor=True)
    ax.set_xlabel("pre-training clips")
    ax.set_ylabel("loss" if column == LOSS else "score")
    ax.set_title(column)


def describe(points, laws, probe):
    """The caption: what the marks mean, and what each series' law of its last score column says."""
    series = [s for s in dict.fromkeys(p["series"] for p in points) if s not in BASELINES]
    seeds = {len([p for p in points if (p["series"], p["column"], p["clips"]) == key]) for key in
             {(p["series"], p["column"], p["clips"]) for p in points if p["series"] in series}}
    bars = {1: "95 % interval over test clips", 2: "range of two seeds"}.get(max(seeds), "95 % interval of the mean "
                                                                             "over seeds")
    text = [f"Score {f'({probe}) ' * bool(probe)}against pre-training clips"]
    if any(p["low"] is not None for p in points) or max(seeds) > 1:
        text.append(f"bars: {bars}")
    if any(about.get("formula") for column in laws.values() for about in column.values()):
        text.append("lines: least squares; shade: their 95 % confidence; stars: the next subset")
    sentences = ["; ".join(text) + "."]
    for s in series:
        column = [c for c in laws if s in laws[c] and c != LOSS][-1]
        about, following = laws[column][s], laws[column][s].get("next")
        if following is None:
            continue
        law = (f"{about['per_decade']:+.3f} ± {about['per_decade_error']:.3f} a decade" if "per_decade" in about else
               f"towards {about['c']:.3f} ± {about['c_error']:.3f} with exponent {about['alpha']:.2f}")
        low, high = following["run95"]
        sentences.append(f"{s}, {column}: {about['kind']} ({about['why']}), {law}; {following['value']:.3f} foretold "
                         f"at {count(following['clips'])}, one run within [{low:.3f}, {high:.3f}].")
    sizes = {s: {p["clips"] for p in points if p["series"] == s} for s in series}
    if few := [s for s in series if len(sizes[s]) == 2]:
        sentences.append(f"No law for {', '.join(few)}: fewer than three sizes.")
    return " ".join(sentences)
