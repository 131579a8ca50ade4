"""Calibration of probabilities: an error that a perfectly calibrated system does not have, and its interval."""

import numpy as np
from numpy.typing import NDArray

from afintro.evaluation.intervals import Clusters, Estimate, Floats
from afintro.evaluation.score_intervals import noncentral_ends

CALIBRATION_BINS = 10


def bins_of(probabilities: Floats) -> NDArray[np.int64]:
    """Return the bin of each probability: ten bins of equal width, of which the last includes 1."""
    return np.digitize(probabilities, np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]).astype(np.int64)


def calibration_error(values: Floats, clusters: Clusters) -> Estimate:
    """Estimate the calibration error: the root mean square of the gaps between probability and truth, without its bias.

    The plain error by bins (Guo et al. 2017, eq. 3) is above 0 by chance alone: 0.06 at 300 items for a perfectly calibrated
    system. What chance adds to the square of each bin's gap is therefore subtracted (Kumar, Liang & Ma 2019, Verified
    Uncertainty Calibration, sec. 4.1). An error that is no larger than chance is 0.

    The sum of squared gaps is a quadratic form in normal variables. Its distribution is a scaled noncentral chi-squared
    distribution with the same mean and variance (Patnaik 1949, Biometrika 36), whose noncentrality is the squared error. Its
    interval reaches at least to the share of items that could have been otherwise although no item was: Wilson's interval of
    no hits. The value is that of independent items, which a reader can compute from probabilities and truth alone; the interval
    counts what clusters add to chance.

    Args:
        values: ``[n, 2]`` float64: probability and truth (0 or 1).
        clusters: The clusters of the items.
    """
    gaps = values[:, 1] - values[:, 0]
    used, bins = np.unique(bins_of(values[:, 0]), return_inverse=True)
    counts = np.bincount(bins).astype(np.float64)
    means = np.bincount(bins, gaps) / counts
    evidence = float(np.abs(gaps).sum())
    effect = clusters.effect(gaps, evidence)
    # Items of a cluster with like probabilities agree more than others, and it is them whose gaps add up in a bin.
    alike = Clusters((clusters.members * CALIBRATION_BINS + bins).tolist())
    correlation = max(effect.correlation, alike.effect(gaps, evidence).correlation)
    together = np.zeros((clusters.count, len(used)))
    np.add.at(together, (clusters.members, bins), 1.0)
    pairs = correlation * (together.T @ together) + (1 - correlation) * np.diag(counts)
    scale = np.sqrt(_variances(values, gaps - means[bins], bins, np.diag(pairs) / counts) / counts)
    chance = pairs * np.outer(scale, scale) / clusters.n  # covariance of the gaps, weighted by the shares of the bins
    independent = float(_variances(values, gaps - means[bins], bins, np.ones(len(used))).sum()) / clusters.n
    observed, mean, spread = (
        float((counts * means**2).sum()) / clusters.n,
        float(np.trace(chance)),
        float((chance**2).sum()),
    )
    value = float(np.sqrt(max(observed - independent, 0.0)))
    if clusters.count < 2:
        return Estimate(value, None, None, clusters.n)
    worth = clusters.n / effect.design
    unseen = effect.quantile**2 / (worth + effect.quantile**2)
    if spread == 0:  # every probability is 0 or 1
        return Estimate(value, max(value - unseen, 0.0), min(value + unseen, 1.0), clusters.n)
    low, high = noncentral_ends(observed, spread / mean, mean**2 / spread)
    return Estimate(value, float(np.sqrt(low)), float(min(max(np.sqrt(high), unseen, value), 1.0)), clusters.n)


def _variances(values: Floats, distances: Floats, bins: NDArray[np.int64], alike: Floats) -> Floats:
    """Estimate the variance of an outcome in each bin: ``[bins]``.

    Distances from a mean of few independent outcomes are too small. What is missing is the variance of as many outcomes as
    agree with one of them, which is taken to be what the probabilities say.

    Args:
        values: See :func:`calibration_error`.
        distances: Distance of each item's gap from the mean gap of its bin, ``[n]``.
        bins: The bin of each item, ``[n]``.
        alike: Number of items of a bin that are worth one independent item, ``[bins]``.
    """
    counts = np.bincount(bins)
    expected = np.bincount(bins, values[:, 0] * (1 - values[:, 0])) / counts
    return (np.bincount(bins, distances**2) + alike * expected) / counts
