"""Scores and their uncertainty: accuracy and bootstrap intervals. NumPy only."""
import numpy as np


def accuracy(predicted, truth):
    """Share of equal labels of two integer arrays (n,)."""
    return float(np.mean(np.asarray(predicted) == np.asarray(truth)))


def bootstrap(values, groups=None, draws=1000, seed=0):
    """95 % percentile interval [lo, hi] of the mean of `values` (n,) over resampled items.

    groups (n,): items of one group (a recording, an individual) are drawn together, since they are not independent.
    """
    values = np.asarray(values, dtype=np.float64)
    names = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    totals, sizes = np.bincount(names, values), np.bincount(names)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for i in range(draws):
        pick = rng.integers(len(totals), size=len(totals))
        means[i] = totals[pick].sum() / sizes[pick].sum()
    return [float(v) for v in np.percentile(means, (2.5, 97.5))]
