"""Accuracy, intervals and the kNN vote against plain references."""
import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from metrics import accuracy, bootstrap
from probes import MelStatistics, knn


def clusters(n, classes=5, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return (np.eye(classes, dim)[labels] + 0.25 * rng.standard_normal((n, dim))).astype(np.float32), labels


def test_knn_votes_like_scikit_learn_with_the_same_weights():
    (train, labels), (test, _) = clusters(200), clusters(100, seed=1)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    reference = KNeighborsClassifier(10, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07), algorithm="brute")
    reference.fit(unit(train), labels)
    assert np.array_equal(knn(train, labels, test, standardise=False), reference.predict(unit(test)))


def test_standardising_uses_the_training_split_only():
    (train, labels), (test, truth) = clusters(200), clusters(100, seed=1)
    shifted = train * np.linspace(0.5, 30, 16) + 4, test * np.linspace(0.5, 30, 16) + 4
    same = knn(train, labels, test)
    assert np.array_equal(knn(shifted[0].astype(np.float32), labels, shifted[1].astype(np.float32)), same)
    assert np.array_equal(knn(train, labels, test[:7]), same[:7]), "a test clip's label depends on no other test clip"
    assert accuracy(same, truth) > 0.9


def test_more_neighbours_than_training_clips_is_no_error():
    assert set(knn(np.eye(3, dtype=np.float32), [0, 1, 1], np.eye(3, dtype=np.float32), k=10)) <= {0, 1}


def test_knn_in_chunks_equals_knn_at_once():
    (train, labels), (test, _) = clusters(50), clusters(40, seed=1)
    assert np.array_equal(knn(train, labels, test, chunk=7), knn(train, labels, test))


def test_bootstrap_intervals_cover_the_truth():
    """300 experiments of 100 clips at accuracy 0.7: 95 % of the intervals hold it, within what 300 draws can say."""
    rng = np.random.default_rng(0)
    inside = [lo <= 0.7 <= hi for lo, hi in (bootstrap(rng.random(100) < 0.7, draws=200, seed=i) for i in range(300))]
    assert 0.92 <= np.mean(inside) <= 0.98


def test_items_of_one_group_are_drawn_together():
    """20 recordings of 10 identical clips are 20 observations, not 200."""
    values = np.repeat(np.arange(20) % 2, 10)
    wide, narrow = bootstrap(values, np.repeat(np.arange(20), 10)), bootstrap(values)
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
