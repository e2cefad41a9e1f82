"""Accuracy, ranking, events, intervals and the kNN vote against plain references."""
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from wren.tasks.annotations import Event
from wren.probing.metrics import (auroc, average_precision, cmap, decode_events, interval, match_events,
                                  mean_average_precision, mean_draws, metric_draws)
from wren.probing.embeddings import MelStatistics
from wren.probing.probes import nearest, votes


def knn(train, labels, test, k=10, **how):
    """The label with most of the neighbours' weight (m,)."""
    return votes(*nearest(train, test, k, **how), np.asarray(labels), int(np.max(labels)) + 1).argmax(1).numpy()


def bootstrap(values, groups, draws=1000, seed=0):
    return interval(mean_draws(values, groups, draws, seed), groups)


def clusters(n, classes=5, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return (np.eye(classes, dim)[labels] + 0.25 * rng.standard_normal((n, dim))).astype(np.float32), labels


def test_knn_votes_like_scikit_learn_with_the_same_weights():
    (train, labels), (test, _) = clusters(200), clusters(100, seed=1)
    mean, deviation = train.mean(0), train.std(0)
    unit = lambda x: (x - mean) / deviation / np.linalg.norm((x - mean) / deviation, axis=1, keepdims=True)
    reference = KNeighborsClassifier(10, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07), algorithm="brute")
    reference.fit(unit(train), labels)
    assert np.array_equal(knn(train, labels, test), reference.predict(unit(test)))


def test_standardising_uses_the_training_split_only():
    (train, labels), (test, truth) = clusters(200), clusters(100, seed=1)
    shifted = train * np.linspace(0.5, 30, 16) + 4, test * np.linspace(0.5, 30, 16) + 4
    same = knn(train, labels, test)
    assert np.array_equal(knn(shifted[0].astype(np.float32), labels, shifted[1].astype(np.float32)), same)
    assert np.array_equal(knn(train, labels, test[:7]), same[:7]), "a test clip's label depends on no other test clip"
    assert (same == truth).mean() > 0.9


def test_more_neighbours_than_training_clips_is_no_error():
    assert set(knn(np.eye(3, dtype=np.float32), [0, 1, 1], np.eye(3, dtype=np.float32), k=10)) <= {0, 1}


def test_knn_in_chunks_equals_knn_at_once():
    (train, labels), (test, _) = clusters(50), clusters(40, seed=1)
    assert np.array_equal(knn(train, labels, test, chunk=7), knn(train, labels, test))


def test_bootstrap_intervals_cover_the_truth():
    """300 experiments of 100 clips at accuracy 0.7: 95 % of the intervals hold it, within what 300 draws can say."""
    rng = np.random.default_rng(0)
    inside = [lo <= 0.7 <= hi for lo, hi in (bootstrap(rng.random(100) < 0.7, np.arange(100), 200, i) for i in range(300))]
    assert 0.92 <= np.mean(inside) <= 0.98


def test_items_of_one_group_are_drawn_together():
    """20 recordings of 10 identical clips are 20 observations, not 200."""
    values = np.repeat(np.arange(20) % 2, 10)
    wide, narrow = bootstrap(values, np.repeat(np.arange(20), 10)), bootstrap(values, np.arange(200))
    assert wide[1] - wide[0] > 2.5 * (narrow[1] - narrow[0])


def test_mel_statistics_ignore_padding():
    torch.manual_seed(0)
    wave = 0.1 * torch.randn(2, 16000)
    model, lengths = MelStatistics(16000), torch.tensor([16000, 9000])
    both = model(wave, lengths)
    assert both.shape == (2, 256)
    assert torch.allclose(model(wave[1:, :9000])[0], both[1], atol=1e-4)
    assert torch.allclose(model(wave[:1])[0], both[0], atol=1e-4)


@pytest.mark.parametrize("samples", [100, 400, 401])
def test_mel_statistics_take_clips_of_one_window_or_less(samples):
    assert torch.isfinite(MelStatistics(16000)(0.1 * torch.randn(1, samples))).all()


# ------------------------------------------------------------------------------------------------------- ranking

def ranking(kind, n=60, classes=5, seed=0):
    """Scores and truth (n, classes) of one kind of difficulty."""
    rng = np.random.default_rng(seed)
    scores, truth = rng.random((n, classes)), rng.random((n, classes)) < 0.3
    if kind == "ties":
        scores = np.round(4 * scores) / 4
    elif kind == "constant":
        scores[:] = 0.5
    elif kind == "empty class":
        truth[:, 1] = False
    elif kind == "full class":
        truth[:, 1] = True
    elif kind == "one class":
        scores, truth = scores[:, :1], truth[:, :1]
    elif kind == "all negative":
        truth[:] = False
    elif kind == "one row":
        scores, truth = scores[:1], truth[:1]
    return scores.astype(np.float32), truth


KINDS = ["random", "ties", "constant", "empty class", "full class", "one class", "all negative", "one row"]


def beans_average_precision(scores, truth):
    """BEANS's rule, spelled out for one class: the mean over positives of the precision at their rank."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])  # stable, as ours
    hits, total = 0, 0.0
    for rank, i in enumerate(order, 1):
        if truth[i]:
            hits += 1
            total += hits / rank
    return total / max(hits, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_average_precision_follows_the_rule_of_beans(kind):
    for seed in range(5):
        scores, truth = ranking(kind, seed=seed)
        wanted = [beans_average_precision(scores[:, k], truth[:, k]) for k in range(truth.shape[1])]
        assert np.allclose(average_precision(scores, truth), wanted, atol=1e-12)
        assert mean_average_precision(scores, truth) == pytest.approx(np.mean(wanted))  # empty classes stay, as 0


@pytest.mark.parametrize("kind", KINDS)
def test_tie_aware_average_precision_is_scikit_learns(kind):
    for seed in range(5):
        scores, truth = ranking(kind, seed=seed)
        present = truth.any(0)
        if not present.any():
            assert np.isnan(cmap(scores, truth)) and not average_precision(scores, truth, ties=True).any()
            continue
        wanted = [average_precision_score(truth[:, k], scores[:, k]) for k in np.flatnonzero(present)]
        assert np.allclose(average_precision(scores, truth, ties=True)[present], wanted, atol=1e-12)
        assert cmap(scores, truth) == pytest.approx(np.mean(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_auroc_is_scikit_learns_over_classes_with_both_outcomes(kind):
    scores, truth = ranking(kind)
    both = np.flatnonzero(truth.any(0) & ~truth.all(0))
    wanted = np.mean([roc_auc_score(truth[:, k], scores[:, k]) for k in both]) if len(both) else float("nan")
    assert auroc(scores, truth) == pytest.approx(wanted, nan_ok=True)


def test_without_ties_both_average_precisions_agree_and_ignore_the_rows_order():
    scores, truth = ranking("random")
    order = np.random.default_rng(1).permutation(len(scores))
    for ties in (False, True):
        assert np.allclose(average_precision(scores[order], truth[order], ties), average_precision(scores, truth))
    scores, truth = ranking("ties")
    assert np.allclose(average_precision(scores[order], truth[order], True), average_precision(scores, truth, True))


def test_scores_that_are_not_numbers_are_refused():
    scores, truth = ranking("random")
    scores[3, 2] = np.nan
    for function in (average_precision, auroc):
        with pytest.raises(ValueError, match="1 of the 300 scores are NaN"):
            function(scores, truth)
    with pytest.raises(ValueError, match="should both be"):
        average_precision(scores, truth[:, :2])


# -------------------------------------------------------------------------------------------------------- events

def frames(values, hop=0.5, width=0.5, **kwargs):
    """decode_events of one class -> [(start, end, score)]."""
    starts = np.arange(len(values)) * hop
    found = decode_events(np.array(values, float)[:, None], starts, starts + width, ["x"], **kwargs)
    return [(e.start, e.end, pytest.approx(e.score)) for e in found]


def test_runs_above_the_threshold_become_events_with_onset_offset_and_score():
    values = [0.1, 0.5, 0.9, 0.2, 0.7, 0.1]
    assert frames(values) == [(0.5, 1.5, 0.9), (2.0, 2.5, 0.7)]  # reaching the threshold is enough
    assert frames(values, threshold=0.8) == [(1.0, 1.5, 0.9)]
    assert frames(values, threshold=0.95) == [] and frames([0.9]) == [(0.0, 0.5, 0.9)] and frames([]) == []


def test_events_over_small_gaps_are_one_and_short_ones_are_dropped():
    values = [0.1, 0.5, 0.9, 0.2, 0.7, 0.1]
    assert frames(values, gap=0.5) == [(0.5, 2.5, 0.9)] and len(frames(values, gap=0.49)) == 2
    assert frames(values, minimum=1.0) == [(0.5, 1.5, 0.9)]
    assert frames(values, gap=0.5, minimum=2.0) == [(0.5, 2.5, 0.9)]  # joined first


def test_overlapping_windows_give_one_event_where_they_touch():
    assert frames([0.9, 0.1, 0.8, 0.1, 0.1, 0.7], hop=1, width=2) == [(0, 4, 0.9), (5, 7, 0.7)]


def test_frames_that_meet_within_a_sample_are_one_event():
    """0.1 s at 11025 Hz is 1102.5 samples: neighbours are up to a sample apart, or overlap by one."""
    starts = np.rint(np.arange(20) * 1102.5) / 11025
    found = decode_events(np.ones((20, 1)), starts, starts + 1101 / 11025, ["x"], minimum=2.0)
    assert [(e.start, round(e.end, 3)) for e in found] == [(0.0, 2.0)]


def test_smoothing_is_centred_and_sees_at_the_edges_what_is_there():
    values = [0, 0, 0.9, 0, 0, 0.6]
    assert frames(values, smooth=1.5, threshold=0.29) == [(0.5, 2.0, 0.3), (2.5, 3.0, 0.3)]
    assert frames(values, smooth=0.5, threshold=0.5) == [(1.0, 1.5, 0.9), (2.5, 3.0, 0.6)]  # one frame: none


def test_each_class_has_its_threshold_and_missing_windows_end_an_event():
    starts = np.array([0, 1, 2, 5, 6.0])
    found = decode_events(np.full((5, 2), 0.5), starts, starts + 1, ["a", "b"], threshold=[0.4, 0.6], file="f.wav")
    assert found == [Event("f.wav", 0, 3, "a", 0.5), Event("f.wav", 5, 7, "a", 0.5)]


def random_events(rng, n):
    starts = rng.uniform(0, 10, n)
    return [Event(str(rng.choice(["f", "g"])), float(a), float(a + rng.uniform(0.1, 2)), str(rng.choice(["x", "y"])))
            for a in starts]


def most_pairs(fits):
    """The largest one-to-one matching of a small bool matrix, by trying everything."""
    if fits.shape[0] > fits.shape[1]:
        fits = fits.T
    return max((sum(fits[i, j] for i, j in enumerate(columns))
                for columns in permutations(range(fits.shape[1]), fits.shape[0])), default=0)


@pytest.mark.parametrize("rule", [dict(iou=0.0), dict(iou=0.3), dict(iou=0.7), dict(onset_collar=0.3),
                                  dict(onset_collar=0.6, offset_collar=0.2, offset_share=0.5)])
def test_matching_is_the_largest_one_to_one_pairing(rule):
    def fits(p, t):
        if p.file != t.file or p.label != t.label:
            return False
        if "iou" in rule:
            overlap = min(p.end, t.end) - max(p.start, t.start)
            return overlap > 0 and overlap >= rule["iou"] * (max(p.end, t.end) - min(p.start, t.start))
        near = abs(p.start - t.start) <= rule["onset_collar"]
        return near and ("offset_collar" not in rule
                         or abs(p.end - t.end) <= max(0.2, 0.5 * (t.end - t.start)))
    for seed in range(12):
        rng = np.random.default_rng(seed)
        predicted, truth = random_events(rng, 6), random_events(rng, 7)
        found = match_events(predicted, truth, **rule)
        assert found["tp"] == most_pairs(np.array([[fits(p, t) for t in truth] for p in predicted]))
        assert (found["tp"] + found["fp"], found["tp"] + found["fn"]) == (6, 7)
        assert found["f1"] == pytest.approx(2 * found["tp"] / 13)
        assert sum(row["tp"] for row in found["per_class"].values()) == found["tp"]


@pytest.mark.parametrize("call, found, share, hit", [
    ((0, 2), (0, 2.9), 0.5, 1), ((0, 2), (0, 2.9), 0.4, 0), ((0, 0.2), (0, 0.39), 0.5, 1),
    ((0, 0.2), (0, 0.41), 0.5, 0),
    ((1, 2), (0.8, 2), 0.0, 1), ((1, 2), (0.79, 2), 0.0, 0)])
def test_offsets_may_differ_by_the_larger_of_collar_and_share(call, found, share, hit):
    assert match_events([Event("f", *found, "x")], [Event("f", *call, "x")], onset_collar=0.2, offset_collar=0.2,
                        offset_share=share)["tp"] == hit


def test_one_long_prediction_over_two_calls_finds_one_of_them():
    truth = [Event("f", 0, 1, "x"), Event("f", 1.2, 2, "x")]
    found = match_events([Event("f", 0, 2, "x")], truth)
    assert (found["tp"], found["fp"], found["fn"], found["precision"], found["recall"]) == (1, 0, 1, 1.0, 0.5)
    assert match_events([Event("g", 0, 1, "x"), Event("f", 0, 1, "y")], truth)["tp"] == 0  # file and label count
    assert match_events([Event("f", 0, 2, "x")], truth, iou=0.5)["tp"] == 1  # reaching it is enough
    assert match_events([Event("f", 0, 2, "x")], truth, iou=0.51)["tp"] == 0


def test_thousands_of_events_of_one_recording_are_matched():
    rng = np.random.default_rng(0)
    truth = [Event("f", float(a), float(a) + 0.5, "x") for a in np.arange(3000)]
    predicted = [Event("f", e.start + 0.1, e.end + 0.1, "x") for e in truth if rng.random() < 0.5]
    found = match_events(predicted, truth, iou=0.5)
    assert (found["tp"], found["fp"], found["fn"]) == (len(predicted), 0, 3000 - len(predicted))


def test_nothing_to_find_and_nothing_found_divides_nothing():
    found = match_events([], [])
    assert (found["f1"], found["tp"], found["per_class"]) == (0.0, 0, {})
    assert match_events([], [Event("f", 0, 1, "x")])["per_class"]["x"]["fn"] == 1


# ----------------------------------------------------------------------------------------------------- intervals

def bootstrap_metric(function, scores, truth, groups=None, draws=200, seed=0):
    groups = np.arange(len(scores)) if groups is None else groups
    return interval(metric_draws(function, scores, truth, groups, draws, seed), groups)


def test_an_interval_of_a_mean_is_the_same_by_either_bootstrap():
    right = np.random.default_rng(0).random(200) < 0.7
    groups = np.repeat(np.arange(50), 4)
    general = bootstrap_metric(lambda scores, truth: np.mean(scores == truth), right, np.ones(200, bool), groups, 1000)
    assert np.allclose(general, bootstrap(right, groups), atol=1e-12)


def test_grouped_intervals_of_ranking_metrics_cover_the_truth():
    """300 experiments of 60 recordings with four windows each that share their level: the AUROC of a score with unit
    noise around labels 1.5 apart is known in closed form; windows drawn singly would claim too much."""
    from scipy.stats import norm
    rng, inside = np.random.default_rng(0), []
    for i in range(300):
        truth = np.repeat(rng.random(60) < 0.5, 4)[:, None]
        scores = 1.5 * truth + np.repeat(rng.standard_normal(60), 4)[:, None]
        groups = np.repeat(np.arange(60), 4)
        low, high = bootstrap_metric(auroc, scores, truth, groups, draws=100, seed=i)
        inside.append(low <= norm.cdf(1.5 / np.sqrt(2)) <= high)
    assert 0.92 <= np.mean(inside) <= 0.98


def test_draws_without_positives_are_left_out():
    scores, truth = np.arange(6.0)[:, None], np.array([0, 0, 0, 0, 0, 1], bool)[:, None]
    assert bootstrap_metric(cmap, scores, truth, draws=50) == [1.0, 1.0]
    assert np.isnan(bootstrap_metric(cmap, scores, truth & False, draws=5)).all()


def test_draws_of_two_models_take_the_same_items():
    """A model and the same one one item better: paired, the difference is never negative; unpaired it would be."""
    scores, truth = ranking("random", n=200, classes=2)
    better, rows = scores.copy(), np.arange(200)
    better[truth[:, 0].argmax(), 0] = 2
    difference = metric_draws(cmap, better, truth, rows, 100) - metric_draws(cmap, scores, truth, rows, 100)
    assert (difference >= -1e-12).all() and difference.max() > 0
    assert np.ptp(metric_draws(cmap, scores, truth, rows, 100)) > 3 * difference.max()


def test_ranking_metrics_are_resampled_by_order_alone():
    for kind in ("random", "ties"):
        scores, truth = ranking(kind, n=150)
        for function in (mean_average_precision, cmap):
            plain = metric_draws(lambda s, t, f=function: f(s, t), scores, truth, np.arange(150), 20)
            assert np.allclose(metric_draws(function, scores, truth, np.arange(150), 20), plain)


def test_classes_that_a_draw_lacks_do_not_pull_beans_map_down():
    """Twelve recordings, each with a class of its own, all ranked perfectly; four classes are nowhere."""
    groups = np.repeat(np.arange(12), 5)
    truth = np.eye(16, dtype=bool)[groups] & (np.arange(60) % 5 == 0)[:, None]
    scores = truth.astype(float)
    assert mean_average_precision(scores, truth) == 0.75
    assert bootstrap_metric(mean_average_precision, scores, truth, groups, draws=50) == [0.75, 0.75]


@pytest.mark.parametrize("recordings", [1, 2, 4])
def test_a_few_recordings_give_no_interval(recordings):
    scores, truth = ranking("random")
    groups = np.arange(60) % recordings
    assert np.isnan(bootstrap_metric(cmap, scores, truth, groups, draws=5)).all()
    assert np.isnan(bootstrap(truth[:, 0], groups)).all()
    assert not np.isnan(bootstrap_metric(cmap, scores, truth, np.arange(60) % 5, draws=5)).any()
