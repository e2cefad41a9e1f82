"""What is said about scores: values with intervals, paired differences, events, tables for a terminal or Markdown."""
import json
import shutil
from functools import partial
from itertools import combinations, product
from pathlib import Path

import numpy as np

from wren.probing import scoring
from wren.probing.metrics import MIN_GROUPS, interval
from wren.probing.probes import knn_probe, ridge

# in the order of tables
PROBES = {"knn": "kNN", "linear": "linear", "attentive": "attentive", "prototype": "prototype"}
METRICS = {"accuracy": "accuracy", "map": "mAP"}
RANKING = {"cmap": "cmAP", "auroc": "AUROC", "event_f1": "event F1 (IoU 0.3)", "onset_f1": "onset F1 (0.2 s)"}
GROUPS = {**scoring.WEIGHTS, "all": sum(scoring.WEIGHTS.values())}  # of BEANS, and how many sets each has


# -------------------------------------------------------------------------------------------------------- judging

def row(task, kind, name, scores, seed):
    """One result: scores is a list of (n, C), of several seeds or draws, whose values are averaged."""
    split = task.splits["test"]
    judged = scoring.clip_results(task, scores[0], split, seed)
    judged.pop("confusion", None)
    values = [scoring.metric_of(task.metric, one, split.targets) for one in scores]
    if len(scores) > 1:
        sampled = np.mean([scoring.draws(task.metric, one, split, seed) for one in scores], axis=0)
        judged |= {"value": float(np.mean(values)), "ci95": interval(sampled, split.groups)}
        judged.pop("per_class")
    return {"task": task.name, "group": task.group, "probe": kind, "encoder": name, "metric": task.metric, **judged,
            "seed": seed, "values": values}


def compare(task, scores_of, encoders, seed):
    """Paired differences of each checkpoint and what follows it in the table, for the probes that are shown; of
    untrained encoders only its own architecture's. scores_of {(probe, encoder): [scores (n, C)]}."""
    rows, split = [], task.splits["test"]
    for kind in main_rows([{"probe": kind} for kind in dict.fromkeys(kind for kind, _ in scores_of)]):
        own = {name: scores for (probe, name), scores in scores_of.items() if probe == kind["probe"]}
        sampled = {name: np.mean([scoring.draws(task.metric, one, split, seed) for one in scores], axis=0)
                   for name, scores in own.items()}
        value = {name: np.mean([scoring.metric_of(task.metric, one, split.targets) for one in scores])
                 for name, scores in own.items()}
        for a, b in combinations(own, 2):
            fair = not b.startswith("untrained") or encoders[a].config.name == encoders[b].config.name
            if fair and not a.startswith("untrained") and a != "mel statistics":
                rows.append({"task": task.name, "probe": kind["probe"], "a": a, "b": b, "metric": task.metric,
                             "value": float(value[a] - value[b]),
                             "ci95": interval(sampled[a] - sampled[b], split.groups)})
    return rows


def first_numbers(path, task, device):
    """Lines for the end of a first run: kNN and linear (ridge) accuracy on a task's test split of an encoder, of the
    same one untrained, and of mel statistics; and what they say of pre-training."""
    import torch

    from model import Encoder, load_encoder
    from wren.probing.embeddings import MelStatistics, vectors
    trained = load_encoder(path)
    torch.manual_seed(0)
    encoders = {"this encoder": trained, "untrained": Encoder(trained.config).eval(),
                "mel statistics": MelStatistics(trained.config.sample_rate)}
    x = {name: vectors(encoders, split, device) for name, split in task.splits.items()}
    y, metric = {name: split.targets for name, split in task.splits.items()}, partial(scoring.metric_of, task.metric)
    chance, scores = scoring.chance(task, task.splits["test"]), []
    lines = [f"  {task.name}, {len(y['test'])} test clips, chance {chance:.3f}     kNN  linear"]
    for name in encoders:
        data = x["train"][name], y["train"], x["valid"][name], y["valid"], x["test"][name], len(task.labels), metric
        scores.append([metric(fit(*data).test, y["test"]) for fit in (knn_probe, ridge)])
        lines.append(f"    {name:<{len(lines[0]) - 18}}{scores[-1][0]:.3f}   {scores[-1][1]:.3f}")
    for name, other in zip(list(encoders)[1:], scores[1:]):
        worse = [probe for probe, own, theirs in zip(("kNN", "linear"), scores[0], other) if own <= theirs]
        if worse:
            lines.append(f"    by {' and '.join(worse)} this encoder is no better than {name}")
    return lines


def detection_scores(task, fit):
    """How many annotated events are found in window scores; each class's threshold is chosen on validation. A window
    speaks for its middle, as long as the hop: overlapping windows would make every event longer than it is."""

    def parts(split, scores):
        start, end = split.times()
        middle, half = (start + end) / 2, task.hop_seconds / 2
        rows = [np.flatnonzero(split.file_index == i) for i in range(len(split.files))]
        return [(f[0], scores[r], middle[r] - half, middle[r] + half) for f, r in zip(split.files, rows) if len(r)]
    held, split = task.splits["valid"], task.splits["test"]
    thresholds = scoring.event_thresholds(parts(held, fit.valid), task.labels, held.events)
    found = parts(split, fit.test)
    return scoring.event_results(found, task.labels, thresholds, split.events) | {
        "thresholds": dict(zip(task.labels, thresholds))}


# --------------------------------------------------------------------------------------------------------- tables

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
    """Without the parts that a row is the best of."""
    return [r for r in rows if not r["probe"].startswith("linear-")]


def copies(task, other, sets, others):
    """How alike an encoder embeds the same test clips as both tasks hold them, at two sample rates for example: the
    mean cosine, and that of other clips, of vectors from which their mean in the second task is subtracted."""
    names = [[Path(t.splits["test"].rows.path(i)).stem for i in range(len(t.splits["test"]))] for t in (task, other)]
    if names[0] != names[1]:
        return ""
    lines = []
    for name, splits in sets.items():
        one, two = (s["test"].vectors().astype(np.float32) for s in (splits, others[name]))
        one, two = one - two.mean(0), two - two.mean(0)
        one, two = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, two))
        same, apart = (float((one * x).sum(1).mean()) for x in (two, np.roll(two, 1, 0)))
        lines.append(f"{short(name, list(sets))} {same:.3f} ({apart:.3f})")
    return f"cosine of a clip and its copy in {other.name} (of other clips): " + ", ".join(lines)


def task_table(task, rows, differences, markdown=False):
    """One task: a line a probe and encoder, and paired differences."""
    names = list(dict.fromkeys(r["encoder"] for r in rows))
    order = [*PROBES, *(r["probe"] for r in rows)]
    shown = sorted(main_rows(rows), key=lambda r: (order.index(r["probe"]), names.index(r["encoder"])))
    lines, out = [], []
    for r, last in zip(shown, [None, *shown]):
        note = ", ".join(f"{k} {_plain(v)}" for k, v in r["choice"].items())
        if len(r["values"]) > 1:
            note += f"; {min(r['values']):.3f} to {max(r['values']):.3f}"
        again = last is not None and last["probe"] == r["probe"] and not markdown
        lines.append(["" if again else PROBES.get(r["probe"], r["probe"]), short(r["encoder"], names),
                      f"{r['value']:.3f}", interval_of(r["ci95"]), note])
    if shown:
        unit = "windows" if task.kind == "detection" else "clips"
        few = " (too few for an interval)" if shown[0]["recordings"] < MIN_GROUPS else ""
        out = [f"\n{task.name}: {METRICS[task.metric]}, {len(task.labels)} classes, {shown[0]['n_test']} test {unit} "
               f"of {shown[0]['recordings']} recordings{few}, chance {shown[0]['chance']:.3f}",
               table(["probe", "encoder", "value", "95 % interval", "chosen on validation"], lines, markdown), ""]
    if shown and task.metric == "map":  # what mAP alone does not say
        columns = [c for c in RANKING if any(c in r for r in shown)]
        cells = [[PROBES.get(r["probe"], r["probe"]), short(r["encoder"], names), *(number(r.get(c)) for c in columns)]
                 for r in shown]
        out += [table(["probe", "encoder", *(RANKING[c] for c in columns)], cells, markdown), ""]
    out += [f"{'- ' * markdown}{PROBES.get(d['probe'], d['probe'])}: {short(d['a'], names)} − {short(d['b'], names)} "
            f"= {d['value']:.3f} {interval_of(d['ci95'])}"
            for d in sorted(differences, key=lambda d: order.index(d["probe"]))]
    return "\n".join(out)


def choice_table(rows, markdown=False):
    """What each pooling or layer of one encoder scores on validation; the default and the winner are marked."""
    kinds = list(rows[0]["valid"])
    lines = []
    for r in rows:
        note = ", ".join(word for word in ("default", "won") if r[word])
        lines.append([str(r["choice"]), *(number(r["valid"][k]) for k in kinds),
                      *(number((r["test"] or {}).get(k)) for k in kinds), note])
    title, flag = {"pool": ("pooling", "--pool"), "layers": ("layer", "--depth")}[rows[0]["setting"]]
    header = [title, *(f"{PROBES.get(k, k)}, validation" for k in kinds), *(f"{PROBES.get(k, k)}, test" for k in kinds)]
    best = next(r for r in rows if r["won"])
    said = "the default won" if best["default"] else f"{flag} {best['choice']} won"
    return (f"\n{rows[0]['task']}: each {title} of {short(rows[0]['encoder'])}\n"
            f"{table([*header, ''], lines, markdown)}\n{said} on validation")


def summary(results, markdown=False):
    """Means over tasks, a line a probe and encoder: plain, or for BEANS's sets by group, beside published rows."""
    shown = main_rows(results)
    names = list(dict.fromkeys(r["encoder"] for r in shown))
    count = len(dict.fromkeys(r["task"] for r in shown))
    beans = all(r["group"] for r in shown)
    groups = GROUPS if beans else {"all": count}
    kinds, lines = dict.fromkeys(r["probe"] for r in shown), []
    for kind, name in product(sorted(kinds, key=[*PROBES, *kinds].index), names):
        own = [r for r in shown if r["probe"] == kind and r["encoder"] == name]
        if len(own) == count:  # a mean over fewer tasks would stand beside others as if it were the same
            means = scoring.group_means(own) if beans else {"all": (sum(r["value"] for r in own) / count, count)}
            lines.append([PROBES.get(kind, kind), short(name, names), *group_cells(means, groups)])
    out = f"\nmeans over {count} tasks\n" + table(["probe", "encoder", *groups], lines, markdown)
    return out + (ladder(markdown) if beans else "")


def group_cells(means, groups=None):
    """A cell for each group of BEANS: its mean, and over how many of its tasks if not all are there."""
    return ["–" if g not in means else f"{means[g][0]:.3f}" + (f" ({means[g][1]} of {n})" if means[g][1] < n else "")
            for g, n in (groups or GROUPS).items()]


def ladder(markdown=False):
    """Published BEANS averages, a table for each protocol: numbers of two protocols are not comparable."""
    rows = json.loads((Path(__file__).parent / "published.json").read_text())["rows"]
    out = "\n\npublished, each protocol apart; compare inside one only"
    for protocol in dict.fromkeys(r["protocol"] for r in rows):
        lines = [[r["name"], *(number(r[g]) for g in GROUPS), r["source"]] for r in rows if r["protocol"] == protocol]
        out += "\n\n" + table([f"protocol {protocol}", *GROUPS, "source"], lines, markdown)
    return out


def number(value):
    return "–" if value is None else f"{value:.3f}"


def interval_of(pair):
    return "–" if None in pair else f"[{pair[0]:.3f}, {pair[1]:.3f}]"  # None: there are too few recordings


def _plain(value):
    if isinstance(value, list):
        return " ".join(f"{v:.2f}" for v in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
