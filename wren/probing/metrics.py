"""Scores and their uncertainty: average precision, events, bootstrap intervals.

Two averages of average precision are kept apart, because published numbers differ by them: BEANS's
(`mean_average_precision`: a class without positives counts as 0, ties fall as sorting leaves them) and the one of
Perch and BirdSet (`cmap`: tied scores share one threshold, classes without positives are left out).
"""
import numpy as np

from wren.tasks.annotations import Event


# ------------------------------------------------------------------------------------------------------ ranking

def average_precision(scores, truth, ties=False):
    """Average precision of each class: scores (n, C), truth (n, C) bool -> float64 (C,).

    Sum over the positives of the precision at their rank, divided by max(positives, 1) (BEANS, after torchnet's
    APMeter): a class without positives scores 0. Equal scores stay in the order of the rows; with `ties` they share
    the precision at the end of their group, which is scikit-learn's definition and independent of the rows' order.
    """
    scores, truth = _checked(scores, truth)
    out = np.zeros(scores.shape[1])
    for k in range(scores.shape[1]):
        order = np.argsort(-scores[:, k], kind="stable")
        place = last = np.flatnonzero(truth[order, k])
        if ties:
            falling = -scores[order, k]
            last = np.searchsorted(falling, falling[place], side="right") - 1
        precision = np.searchsorted(place, last, side="right") / (last + 1)
        out[k] = precision.sum() / max(len(place), 1)
    return out


def mean_average_precision(scores, truth):
    """BEANS's mAP: the plain mean over all classes of `average_precision`."""
    return float(average_precision(scores, truth).mean())


def cmap(scores, truth):
    """Class-averaged mAP as Perch and BirdSet have it: tie-aware, over the classes that occur; NaN if none does."""
    return _mean_present(average_precision(scores, truth, ties=True), truth)


def _mean_present(values, truth):
    """The mean of values (C,) over the classes that truth (n, C) has."""
    present = np.asarray(truth, bool).any(axis=0)
    return float(values[present].mean()) if present.any() else float("nan")


def auroc(scores, truth):
    """Area under the ROC curve, averaged over the classes that have both positives and negatives; NaN if none has."""
    from sklearn.metrics import roc_auc_score
    scores, truth = _checked(scores, truth)
    both = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
    areas = [roc_auc_score(truth[:, k], scores[:, k]) for k in both]
    return float(np.mean(areas)) if areas else float("nan")


def _checked(scores, truth):
    """Scores and truth as arrays (n, C) that fit together."""
    scores, truth = np.asarray(scores), np.asarray(truth).astype(bool)
    if scores.ndim != 2 or scores.shape != truth.shape:
        raise ValueError(f"scores {scores.shape} and truth {truth.shape} should both be (items, classes)")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of the {scores.size} scores are NaN")
    return scores, truth


# ------------------------------------------------------------------------------------------------------- events

def decode_events(scores, starts, ends, labels, threshold=0.5, smooth=0.0, minimum=0.0, gap=0.0, file=""):
    """Scores of frames or windows of one recording -> list of Event in order of time.

    scores (T, C); starts, ends (T,): each frame's time in seconds, ascending, overlapping or not; labels: C names;
    threshold: a number or (C,), reached by `>=`; smooth: length in seconds of a centred mean over frames; gap:
    frames of one class at most this far apart (s) are one event; minimum: shorter events (s) are dropped. An event
    reaches from the onset of its first frame to the offset of its last; its score is the peak of its frames' smoothed
    scores.
    """
    scores, starts, ends = np.asarray(scores, np.float64), np.asarray(starts, float), np.asarray(ends, float)
    if len(scores) > 1 and smooth > 0:
        scores = _smoothed(scores, smooth / float(np.median(np.diff(starts))))
    slack = 0.01 * float(np.median(ends - starts)) if len(scores) else 0.0  # frames begin and end at whole samples
    events = []
    for k, limit in enumerate(np.broadcast_to(threshold, (len(labels),))):
        frames = np.flatnonzero(scores[:, k] >= limit)
        if not len(frames):
            continue
        apart = starts[frames[1:]] - ends[frames[:-1]] > gap + slack
        first = np.flatnonzero(np.append(True, apart))
        last = np.append(first[1:], len(frames)) - 1
        value = np.maximum.reduceat(scores[frames, k], first)
        onset, offset = starts[frames[first]], ends[frames[last]]
        events += [Event(file, float(a), float(b), labels[k], float(v)) for a, b, v in zip(onset, offset, value)
                   if b - a >= minimum - slack]
    return sorted(events, key=lambda event: (event.start, event.end))


def _smoothed(scores, frames):
    """A centred mean over an odd number of frames (at least `frames`); the edges see what is there."""
    from scipy.ndimage import uniform_filter1d
    size = 2 * int(np.ceil((frames - 1) / 2 - 1e-9)) + 1
    weight = uniform_filter1d(np.ones(len(scores)), size, mode="constant")
    return uniform_filter1d(scores, size, axis=0, mode="constant") / weight[:, None]


def match_events(predicted, truth, iou=0.3, onset_collar=None, offset_collar=None, offset_share=0.0):
    """How many annotated events were found -> dict with precision, recall, f1, tp, fp, fn, macro_f1, per_class, and
    onset_error_ms and offset_error_ms, the median absolute errors over all pairs (None without a pair).

    predicted, truth: lists of Event. Events of one file and label are paired one to one, as many pairs as possible
    (maximum bipartite matching). A pair may match if intersection over union is at least `iou` (0: any overlap;
    DCASE's few-shot task takes 0.3), or, with `onset_collar` seconds, if the onsets lie within it, and with
    `offset_collar` the offsets within the larger of it and `offset_share` of the annotation's length (sed_eval:
    0.2 s, 0.2 s, 0.2 or 0.5).
    """
    from scipy.sparse import csr_matrix, vstack
    from scipy.sparse.csgraph import maximum_bipartite_matching

    groups = {}
    for side, events in enumerate((predicted, truth)):
        for event in events:
            groups.setdefault((event.label, event.file), ([], []))[side].append((event.start, event.end))
    counts, errors = {}, [np.zeros((0, 2))]
    for (label, _), (found, wanted) in groups.items():
        pairs = 0
        if found and wanted:
            found_times, wanted_times = np.array(found), np.array(wanted)
            fits = vstack([csr_matrix(_fits(found_times[i:i + 256], wanted_times, iou, onset_collar, offset_collar,
                                            offset_share)) for i in range(0, len(found), 256)], format="csr")
            partner = maximum_bipartite_matching(fits, perm_type="column")  # (P,), -1: none
            errors.append(np.abs(found_times[partner >= 0] - wanted_times[partner[partner >= 0]]))
            pairs = len(errors[-1])
        counts[label] = counts.get(label, 0) + np.array([pairs, len(found) - pairs, len(wanted) - pairs])
    errors = np.concatenate(errors)
    onset, offset = (1000 * np.median(errors, 0)).tolist() if len(errors) else (None, None)
    return _found(counts) | {"onset_error_ms": onset, "offset_error_ms": offset}


def _fits(found, wanted, iou, onset_collar, offset_collar, offset_share):
    """Which pairs may match: found (P, 2), wanted (Q, 2) start and end -> bool (P, Q)."""
    if onset_collar is not None:
        near = 1e-9 + onset_collar >= np.abs(found[:, None, 0] - wanted[None, :, 0])
        if offset_collar is None:
            return near
        collar = np.maximum(offset_collar, offset_share * (wanted[:, 1] - wanted[:, 0]))
        return near & (np.abs(found[:, None, 1] - wanted[None, :, 1]) <= collar + 1e-9)
    overlap = (np.minimum(found[:, None, 1], wanted[None, :, 1])
               - np.maximum(found[:, None, 0], wanted[None, :, 0])).clip(min=0)
    union = (found[:, 1] - found[:, 0])[:, None] + (wanted[:, 1] - wanted[:, 0]) - overlap
    return (overlap > 0) & (overlap >= iou * union)


def _found(counts):
    """{label: (tp, fp, fn)} -> precision, recall, F1 over all and by class; 0 where nothing is to be divided."""
    def scores(tp, fp, fn):
        return {"precision": float(tp / max(tp + fp, 1)), "recall": float(tp / max(tp + fn, 1)),
                "f1": float(2 * tp / max(2 * tp + fp + fn, 1)), "tp": int(tp), "fp": int(fp), "fn": int(fn)}
    by_class = {label: scores(*counts[label]) for label in sorted(counts)}
    total = scores(*sum(counts.values(), np.zeros(3, int)))
    macro = float(np.mean([row["f1"] for row in by_class.values()])) if by_class else 0.0
    return {**total, "macro_f1": macro, "per_class": by_class}


# ---------------------------------------------------------------------------------------------------- intervals

MIN_GROUPS = 5  # with fewer the draws are few and alike: of two recordings there are three


def interval(values, groups):
    """95 % percentile interval [lo, hi] of a score in bootstrap draws (draws,); draws in which it is NaN (no
    positives) are left out. [NaN, NaN] if all are, or if fewer than MIN_GROUPS groups say too little about others."""
    if len(np.unique(groups)) < MIN_GROUPS or np.isnan(values).all():
        return [float("nan")] * 2
    return np.nanpercentile(values, (2.5, 97.5)).tolist()


def mean_draws(values, groups, draws=1000, seed=0):
    """The mean of `values` (n,) in each bootstrap draw of groups (n,) -> float64 (draws,): items of one group (a
    recording, an individual) are drawn together, since they are not independent."""
    names = np.unique(groups, return_inverse=True)[1]
    totals, sizes = np.bincount(names, np.asarray(values, np.float64)), np.bincount(names)
    rng = np.random.default_rng(seed)
    picks = (rng.integers(len(totals), size=len(totals)) for _ in range(draws))
    return np.array([totals[pick].sum() / sizes[pick].sum() for pick in picks])


def metric_draws(function, scores, truth, groups, draws=1000, seed=0):
    """A metric that is no mean over items, function(scores, truth), in each bootstrap draw of groups -> float64
    (draws,). Draw i takes the same items whatever the scores, so that the draws of two models can be subtracted:
    percentiles of that are the interval of their paired difference.

    BEANS's mAP counts a class without positives as 0. In a draw, that is done for the classes that all items lack; one
    that only the draw lacks is left out, or else the interval would lie below the value itself.
    """
    scores, truth = np.asarray(scores), np.asarray(truth)
    if function in (mean_average_precision, cmap):  # their order says all, and 16-bit integers sort much faster
        scores = np.stack([np.unique(column, return_inverse=True)[1] for column in scores.T], axis=1)
        scores = (scores - 32767).astype(np.int16 if len(scores) <= 65535 else np.int32)
    if function is mean_average_precision:
        share = truth.any(axis=0).mean()

        def function(scores, truth):
            return share * _mean_present(average_precision(scores, truth), truth)
    names = np.unique(groups, return_inverse=True)[1]
    members = np.split(np.argsort(names, kind="stable"), np.cumsum(np.bincount(names))[:-1])
    rng, values = np.random.default_rng(seed), np.empty(draws)
    for i in range(draws):
        rows = np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
        values[i] = function(scores[rows], truth[rows])
    return values
