"""Scores of a fine-tuned model on a split: windows, frames, events, thresholds, tables."""
from math import ceil

import numpy as np
import torch
from sklearn.metrics import confusion_matrix

from wren.nets.lengths import valid_until
from wren.probing import metrics
from wren.probing.embeddings import batches

BATCH = 32  # clips a forward pass
GAP = 0.2  # seconds: frames of a class at most this far apart are one event
THRESHOLDS = 1 / (1 + np.exp(-np.linspace(-4, 4, 33)))  # 0.018 … 0.982, even in logits


class FrameTargets:
    """Which classes are on in each frame of a window: row -> bool (T', C).

    A frame is on if a call fills half of it, or if the call's middle lies in it (calls shorter than half a frame).
    """

    def __init__(self, split, labels, frame_seconds):
        self.starts, self.ends = split.times()
        self.frame_seconds, self.classes = frame_seconds, len(labels)
        code = {label: k for k, label in enumerate(labels)}
        place = {path: k for k, (path, _, _) in enumerate(split.files)}
        self.file_index, calls = split.file_index, [[] for _ in split.files]
        for event in split.events:
            calls[place[event.file]].append((event.start, event.end, code[event.label]))
        self.calls = [np.array(rows, float).reshape(-1, 3) for rows in calls]

    def __call__(self, row):
        frames = ceil((self.ends[row] - self.starts[row]) / self.frame_seconds - 1e-6)
        begin = self.starts[row] + np.arange(frames) * self.frame_seconds
        out = np.zeros((frames, self.classes), dtype=bool)
        calls = self.calls[self.file_index[row]]
        for start, end, k in calls[(calls[:, 1] >= begin[0]) & (calls[:, 0] < begin[-1] + self.frame_seconds)]:
            overlap = np.minimum(end, begin + self.frame_seconds) - np.maximum(start, begin)
            middle = (start + end) / 2
            holds_middle = (begin <= middle) & (middle < begin + self.frame_seconds)
            out[:, int(k)] |= (overlap >= self.frame_seconds / 2) | holds_middle
        return out


@torch.inference_mode()
def predict(model, split, procs, autocast, workers=0, frames=False):
    """Scores (n, C) float64 of every row of a split and, if asked for, frame scores (n, T', C) float32; each process
    does its share, all have the result."""
    model.eval()
    scores = torch.zeros(len(split), len(model.labels), dtype=torch.float64, device=procs.device)
    found, longest = [], 0
    for batch in batches(split, model.encoder.config, procs.device, BATCH, workers, procs.rank, procs.world, "scoring"):
        for rows, rate, streams, wave, lengths in batch:
            with autocast():
                logits, frame_logits, columns = model(wave, lengths, rate=rate, streams=streams)
            scores[rows] = model.probabilities(logits).double()
            if frames:
                keep = valid_until(columns, frame_logits.shape[1])
                found.append((rows, model.probabilities(frame_logits) * keep[..., None]))
                longest = max(longest, frame_logits.shape[1])
    scores = procs.sum(scores).cpu().numpy()
    if not frames:
        return scores, None
    out = torch.zeros(len(split), max(procs.gather(longest)), len(model.labels), device=procs.device)
    for rows, part in found:
        out[rows, :part.shape[1]] = part
    return scores, procs.sum(out).cpu().numpy()


def metric_of(name, scores, targets):
    """The task's main metric: accuracy, or BEANS's mAP; 0 for a model that has diverged."""
    if not np.isfinite(scores).all():
        return 0.0
    if name == "accuracy":
        return float(np.mean(scores.argmax(1) == targets))
    return metrics.mean_average_precision(scores, targets)


# --------------------------------------------------------------------------------------------------------- events

def stitch(scores, starts, seconds, frame_seconds):
    """Frame scores of overlapping windows of one recording, averaged on one grid of time.

    scores (W, T', C), starts (W,) of the windows and their lengths `seconds` (W,), frame_seconds
    -> scores (T, C), start (T,) and end (T,) of each frame, seconds.
    """
    offset = np.arange(scores.shape[1]) * frame_seconds
    keep = offset < seconds[:, None] - 1e-6  # (W, T')
    first = starts.min()
    cell = np.floor((starts[:, None] + offset + frame_seconds / 2 - first) / frame_seconds).astype(int)[keep]
    count = np.bincount(cell)
    total = np.zeros((len(count), scores.shape[2]))
    np.add.at(total, cell, scores[keep])
    used = np.flatnonzero(count)
    begin = first + used * frame_seconds
    return total[used] / count[used, None], begin, begin + frame_seconds


def recordings(split, frame_scores, frame_seconds):
    """[(file, scores (T, C), starts (T,), ends (T,))] of a detection split."""
    starts, ends = split.times()
    out = []
    for k, (path, _, _) in enumerate(split.files):
        rows = np.flatnonzero(split.file_index == k)
        if len(rows):
            out.append((path, *stitch(frame_scores[rows], starts[rows], (ends - starts)[rows], frame_seconds)))
    return out


def shortest_event(events):
    """What is too short to be a call: half of the length that 95 % of the annotations exceed, seconds."""
    return float(0.5 * np.percentile([event.end - event.start for event in events], 5)) if events else 0.0


def detect(tracks, labels, threshold, minimum=0.0):
    """Events of all recordings, as `recordings` gives them, that last `minimum` seconds."""
    return [event for path, scores, starts, ends in tracks for event in metrics.decode_events(
        scores, starts, ends, labels, threshold, minimum=minimum, gap=GAP, file=path)]


def event_thresholds(tracks, labels, events, minimum=0.0, iou=0.3):
    """A threshold for each class, by its event F1 -> list of C; see `best_thresholds`."""
    wanted = np.array([sum(event.label == label for event in events) for label in labels])
    f1, found = np.zeros((2, len(THRESHOLDS), len(labels)))
    for k, threshold in enumerate(THRESHOLDS):
        each = metrics.match_events(detect(tracks, labels, threshold, minimum), events, iou)["per_class"]
        for c, row in ((labels.index(label), row) for label, row in each.items()):
            f1[k, c], found[k, c] = row["f1"], row["tp"] + row["fp"]
    return best_thresholds(f1, found, wanted)


def clip_thresholds(scores, truth):
    """A threshold for each class, by its F1 over clips: scores, truth (n, C) -> list of C; see `best_thresholds`."""
    found, right = np.zeros((2, len(THRESHOLDS), scores.shape[1]))
    for k, threshold in enumerate(THRESHOLDS):
        on = scores >= threshold
        found[k], right[k] = on.sum(0), (on & truth).sum(0)
    wanted = truth.sum(0)
    return best_thresholds(2 * right / np.maximum(found + wanted, 1), found, wanted)


def best_thresholds(f1, found, wanted):
    """f1, found (33, C): F1 and how much is found at each of THRESHOLDS; wanted (C,): how much there is -> list of C.

    The best F1 among the thresholds that find at most twice what there is, the middle one of equals: the F1 of a
    class that is hardly known is best where everything is found, which would flood whoever reads it. A class of which
    nothing is found so has 0.5, or more if 0.5 or what is above it would flood; one of which there is nothing has 0.5.
    """
    out = []
    for score, count, annotated in zip(f1.T, found.T, wanted):
        sober = count <= 2 * annotated
        score = np.where(sober, score, 0.0)
        if annotated and score.max() > 0:
            equal = np.flatnonzero(score == score.max())
            out.append(float(THRESHOLDS[equal[(len(equal) - 1) // 2]]))
        else:
            above = np.logical_and.accumulate(sober[::-1])[::-1]  # at low thresholds all may be one endless event
            out.append(max(0.5, float(THRESHOLDS[above.argmax() if above.any() else -1])) if annotated else 0.5)
    return out


# -------------------------------------------------------------------------------------------------------- results

def chance(task, split):
    """What guessing scores: accuracy of a class at random, or mAP, which is the mean share of positives."""
    return 1 / len(task.labels) if task.metric == "accuracy" else float(split.targets.mean())


def doubt(metric, value, by_chance, events=False):
    """A sentence about a model whose validation score is less than a tenth of the way from chance to 1, else ""."""
    if value is None or value - by_chance >= 0.1 * (1 - by_chance):
        return ""
    return (f"validation {metric} {value:.3f} where chance is {by_chance:.3f}: barely above chance; "
            + ("most events will be wrong; train longer, label more, or give --threshold to extract.py" if events else
               "train longer or label more"))


def draws(metric, scores, split, seed):
    """The task's metric of scores (n, C) in bootstrap draws of the split's recordings: float64 (1000,), of mAP (200,).
    Draws of two models take the same recordings: subtract them for their paired difference."""
    if metric == "accuracy":
        return metrics.mean_draws(scores.argmax(1) == split.targets, split.groups, 1000, seed)
    return metrics.metric_draws(metrics.mean_average_precision, scores, split.targets, split.groups, 200, seed)


def clip_results(task, scores, split, seed):
    """What a result row says about scores (n, C): value, interval, chance, and the score of each class."""
    targets = split.targets
    out = {"value": metric_of(task.metric, scores, targets),
           "ci95": metrics.interval(draws(task.metric, scores, split, seed), split.groups),
           "chance": chance(task, split), "n_test": len(split), "recordings": len(np.unique(split.groups))}
    if task.metric == "accuracy":
        table = confusion_matrix(targets, scores.argmax(1), labels=range(len(task.labels)))
        counts = table.sum(1)
        each = [right / n if n else None for right, n in zip(table.diagonal().tolist(), counts.tolist())]
        out["confusion"] = table.tolist()
    else:
        counts, each = targets.sum(0), metrics.average_precision(scores, targets).tolist()
        of_cmap = metrics.metric_draws(metrics.cmap, scores, targets, split.groups, 200, seed)
        out |= {"cmap": metrics.cmap(scores, targets), "cmap_ci95": metrics.interval(of_cmap, split.groups),
                "auroc": metrics.auroc(scores, targets)}
    per_class = {label: {"value": value, "n": int(n)} for label, value, n in zip(task.labels, each, counts)}
    return out | {"per_class": per_class}


def event_results(tracks, labels, thresholds, events, minimum=0.0, iou=0.3):
    """Event precision, recall and F1 at the thresholds, matched by IoU, by onsets within 0.2 s, and by onsets within
    20 ms and offsets within the larger of 20 ms and 20 % of the call (sed_eval's rule with a narrow collar); median
    absolute errors of onset and offset, ms, of what IoU matched."""
    found = detect(tracks, labels, np.array(thresholds), minimum)
    by_overlap = metrics.match_events(found, events, iou)
    by_onset = metrics.match_events(found, events, onset_collar=0.2)
    narrow = metrics.match_events(found, events, onset_collar=0.02, offset_collar=0.02, offset_share=0.2)
    errors = {name: by_overlap[name] for name in ("onset_error_ms", "offset_error_ms")}
    return {"event_f1": by_overlap["f1"], "events": by_overlap | {"iou": iou}, "onset_f1": by_onset["f1"],
            "collar_f1": narrow["f1"], **errors}


# ---------------------------------------------------------------------------------------------------------- BEANS

WEIGHTS = {"classification": 5, "detection": 5, "auxiliary": 2}  # sets of BEANS in each group


def group_means(rows):
    """Result rows -> {group: (mean over its tasks, number of tasks)}, and "all": the mean over the twelve sets, that
    is the groups weighted 5 / 5 / 2 (as far as they are there). Seeds and folds of a task are averaged first."""
    means = {}
    for group in WEIGHTS:
        tasks = dict.fromkeys(row["task"] for row in rows if row.get("group") == group)
        values = [np.mean([row["value"] for row in rows if row["task"] == task]) for task in tasks]
        if values:
            means[group] = float(np.mean(values)), len(values)
    if means:
        weights = [WEIGHTS[group] for group in means]
        means["all"] = (float(np.average([value for value, _ in means.values()], weights=weights)),
                        sum(n for _, n in means.values()))
    return means
