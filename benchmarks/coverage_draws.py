"""Made-up evaluations whose truth is known: how items are drawn, what is estimated, and what the estimate should cover.

**Items of one scenario agree.** Every item has a uniform number that decides how it comes out: for a share, whether it is below
``p``. With probability ``sqrt(icc)`` it is the number of the item's scenario, else its own (Lunn & Davies 1998, Biometrika
85(2), 487-490). Two items of a scenario then have a correlation of exactly ``icc``, and every item has mean ``p``. Classes and
scores of items are drawn in the same way, each from numbers of its own; scores of the AUROC are normal, with correlation ``icc``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import betaincinv, ndtri
from scipy.stats import beta

from afintro.evaluation.calibration import CALIBRATION_BINS
from afintro.evaluation.hierarchical import HierarchicalBootstrap
from afintro.evaluation.intervals import SHARE, Clusters, Estimate, Floats, mean_of
from afintro.evaluation.statistic import Statistic


@dataclass(frozen=True)
class Cell:
    """One evaluation that is drawn many times.

    Args:
        kind: What is estimated, a key of :data:`KINDS`.
        p: The true share, mean or AUROC; for macro-F1 the share of right answers of both classes.
        clusters: Number of scenarios.
        sizes: Number of items of a scenario, or ``1-5`` for one to five items in turn.
        icc: Correlation of two items of one scenario.
        setting: What else is special; a key of the settings of the kind.
        seeds: Number of trained seeds, each of which answers all items.
    """

    kind: str
    p: float
    clusters: int
    sizes: str = "1"
    icc: float = 0.0
    setting: str = ""
    seeds: int = 1

    @property
    def members(self) -> np.ndarray:
        """Return the scenario of each item: ``[n]`` int64."""
        each = np.arange(self.clusters) % 5 + 1 if self.sizes == "1-5" else np.full(self.clusters, int(self.sizes))
        return np.repeat(np.arange(self.clusters), each)


@lru_cache(maxsize=4)
def clusters_of(cell: Cell) -> Clusters:
    """Return the scenarios of a cell's items."""
    return Clusters([f"{member:04d}" for member in cell.members])


@dataclass(frozen=True)
class Kind:
    """What is estimated.

    Args:
        draw: Draws a sample of a cell; None where the statistic is undefined because a class is absent.
        estimate: Estimates from a sample, with an interval.
        truth: Returns what the interval should cover.
        settings: The settings of its cells.
    """

    draw: Callable[[Cell, np.random.Generator], Any]
    estimate: Callable[[Clusters, Any], Estimate]
    truth: Callable[[Cell], float]
    settings: tuple[str, ...] = ("",)


def uniforms(cell: Cell, rng: np.random.Generator) -> Floats:
    """Draw the number that decides how each item comes out, see the module: ``[n]`` in 0..1."""
    members = cell.members
    shared = rng.random(len(members)) < np.sqrt(cell.icc)
    return np.where(shared, rng.random(cell.clusters)[members], rng.random(len(members)))


def normals(cell: Cell, rng: np.random.Generator) -> Floats:
    """Draw a standard normal number for each item, correlated within scenarios: ``[n]``."""
    members = cell.members
    common, own = rng.normal(size=cell.clusters)[members], rng.normal(size=len(members))
    return np.sqrt(cell.icc) * common + np.sqrt(1 - cell.icc) * own


def hits(cell: Cell, rng: np.random.Generator) -> Floats:
    """Draw whether each item is a hit: ``[n]``, 0 or 1."""
    return (uniforms(cell, rng) < cell.p).astype(np.float64)


def rival(cell: Cell, own: Floats, rng: np.random.Generator) -> Floats:
    """Draw the hits of a system that copies some outcomes and is half as often right on the others: ``[n]``."""
    copied = rng.random(len(own)) < float(cell.setting)
    return np.where(copied, own, uniforms(cell, rng) < cell.p / 2)


def rival_share(cell: Cell) -> float:
    """Return how often the rival is right."""
    copied = float(cell.setting)
    return copied * cell.p + (1 - copied) * cell.p / 2


def truth_of_items(cell: Cell, share: float, rng: np.random.Generator) -> Floats | None:
    """Draw the class of each item: ``[n]``, 1 for a share of them; None where a class is absent."""
    truth = (uniforms(cell, rng) < share).astype(np.float64)
    return truth if 0 < truth.sum() < len(truth) else None


def f1_sample(cell: Cell, rng: np.random.Generator) -> tuple[Statistic, Statistic | None] | None:
    """Draw verdicts of a system, and of its rival where the setting names a share of copied answers."""
    lead = cell.kind == "lead_f1"
    truth = truth_of_items(cell, 0.5 if lead else float(cell.setting), rng)
    if truth is None:
        return None
    own = hits(cell, rng)
    outcomes = [own, rival(cell, own, rng)] if lead else [own]
    made = [statistic("f1", np.stack([truth, np.where(right > 0, truth, 1 - truth)], 1)) for right in outcomes]
    return made[0], made[1] if lead else None


def macro_f1_of(right: float, share: float) -> float:
    """Return the macro-F1 of answers that are right with one probability in both classes, of which one has a share."""
    scores = [2 * size * right / (2 * size * right + (1 - right)) for size in (share, 1 - share)]
    return sum(scores) / 2


def auroc_sample(cell: Cell, rng: np.random.Generator) -> tuple[Statistic, Statistic | None] | None:
    """Draw scores of a system, and of a rival whose scores share a part of their variance and are less far apart."""
    truth = truth_of_items(cell, 0.5, rng)
    if truth is None:
        return None
    noise = normals(cell, rng)
    own = statistic("auroc", np.stack([noise + truth * ndtri(cell.p) * np.sqrt(2), truth], 1))
    if cell.kind == "auroc":
        return own, None
    copied = float(cell.setting)
    other = np.sqrt(copied) * noise + np.sqrt(1 - copied) * normals(cell, rng)
    return own, statistic("auroc", np.stack([other + truth * ndtri(rival_auroc(cell)) * np.sqrt(2), truth], 1))


def rival_auroc(cell: Cell) -> float:
    """Return the rival's AUROC: halfway to that of chance."""
    return (cell.p + 0.5) / 2


OFF = 0.6
"""Slope of the true probability by the stated probability of an overconfident system."""


def calibration_sample(cell: Cell, rng: np.random.Generator) -> Statistic:
    """Draw probabilities with mean ``p``, and outcomes that follow them or, from an overconfident system, do not."""
    stated = betaincinv(*_beta(cell.p), uniforms(cell, rng))
    outcome = uniforms(cell, rng) < _true(cell, stated)
    return statistic("calibration", np.stack([stated, outcome.astype(np.float64)], 1))


def _beta(mean: float) -> tuple[float, float]:
    return 4 * mean, 4 * (1 - mean)


def _true(cell: Cell, stated: Floats) -> Floats:
    return stated if cell.setting == "calibrated" else 0.5 + OFF * (stated - 0.5)


@lru_cache(maxsize=16)
def calibration_truth(cell: Cell) -> float:
    """Compute the root of the mean square of the bins' expected gaps."""
    stated = beta.ppf((np.arange(200_000) + 0.5) / 200_000, *_beta(cell.p))
    gaps = _true(cell, stated) - stated
    bins = np.minimum((stated * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    sums = np.bincount(bins, gaps, minlength=CALIBRATION_BINS)
    return float(np.sqrt((sums[counts > 0] ** 2 / counts[counts > 0]).sum() / len(stated)))


def statistic(kind: str, values: Floats) -> Statistic:
    """Make a statistic of items without names."""
    return Statistic(kind, values, kind, tuple(map(str, range(len(values)))))


SEED_SPREAD = {"seeds alike": 0.0, "seeds differ": 0.02}
"""Correlation of two answers of one trained seed, by the setting."""


def seeds_sample(cell: Cell, rng: np.random.Generator) -> Floats:
    """Draw hits of several trained seeds on the same questions: ``[seeds, clusters]``.

    A seed's own share has a beta distribution with mean ``p``; the answers of two seeds to one question have the number of
    the question in common as items of one scenario do.
    """
    spread = SEED_SPREAD[cell.setting]
    shares = np.full((cell.seeds, 1), cell.p)
    if spread > 0:
        shares = rng.beta(cell.p * (1 / spread - 1), (1 - cell.p) * (1 / spread - 1), (cell.seeds, 1))
    shape = (cell.seeds, cell.clusters)
    shared = rng.random(shape) < np.sqrt(cell.icc)
    numbers = np.where(shared, rng.random((1, cell.clusters)), rng.random(shape))
    return (numbers < shares).astype(np.float64)


def seeds_estimate(_: Clusters, sample: Floats) -> Estimate:
    """Estimate the share of hits over seeds and questions."""
    seeds, questions = (index.ravel().tolist() for index in np.indices(sample.shape))
    return HierarchicalBootstrap({"seed": seeds, "question": questions}).estimate(mean_of(sample.ravel()), SHARE)


KINDS = {
    "share": Kind(hits, lambda clusters, sample: clusters.share(sample), lambda cell: cell.p),
    "score": Kind(
        lambda cell, rng: betaincinv(2 * cell.p, 2 * (1 - cell.p), uniforms(cell, rng)),
        lambda clusters, sample: clusters.mean(sample, SHARE),
        lambda cell: cell.p,
    ),
    "f1": Kind(
        f1_sample,
        lambda clusters, sample: sample[0].estimate(clusters),
        lambda cell: macro_f1_of(cell.p, float(cell.setting)),
        ("0.5", "0.2"),
    ),
    "auroc": Kind(auroc_sample, lambda clusters, sample: sample[0].estimate(clusters), lambda cell: cell.p),
    "lead_share": Kind(
        lambda cell, rng: (own := hits(cell, rng), rival(cell, own, rng)),
        lambda clusters, sample: clusters.difference(*sample),
        lambda cell: cell.p - rival_share(cell),
        ("0", "0.5", "0.95"),
    ),
    "lead_f1": Kind(
        f1_sample,
        lambda clusters, sample: sample[0].lead(sample[1], clusters),
        lambda cell: macro_f1_of(cell.p, 0.5) - macro_f1_of(rival_share(cell), 0.5),
        ("0", "0.5", "0.95"),
    ),
    "lead_auroc": Kind(
        auroc_sample,
        lambda clusters, sample: sample[0].lead(sample[1], clusters),
        lambda cell: cell.p - rival_auroc(cell),
        ("0", "0.5", "0.95"),
    ),
    "calibration": Kind(
        calibration_sample,
        lambda clusters, sample: sample.estimate(clusters),
        calibration_truth,
        ("calibrated", "overconfident"),
    ),
    "seeds": Kind(seeds_sample, seeds_estimate, lambda cell: cell.p, tuple(SEED_SPREAD)),
}
