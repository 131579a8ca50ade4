"""Estimate how a model's answers about itself shift in training, in log-odds: adapter minus base, variants minus controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeVar

from afintro.evaluation.hierarchical import RESAMPLES, UNBOUNDED, HierarchicalBootstrap, benjamini_hochberg
from afintro.evaluation.intervals import Estimate, mean_of
from afintro.study.scoring.equivalence import Equivalence, SignTest, equivalence, sign_test
from afintro.study.scoring.items import CONTROLS, SELF_REPORTS, Item, groups

UNTAUGHT = ("no_steer", "random_labels", "random_labels_v2")
"""Variants that were never told what steering is."""
NOTHING_TO_DETECT = (
    *UNTAUGHT,
    "balanced_no_steer",
    "balanced_random_labels",
    "food_control",
    "inverse_inference",
    "deny_steering",
)
"""Variants whose training says nothing about steering, or always the same: their detection is to be at chance."""
CONTROL_VARIANTS = (*UNTAUGHT, "neutral_red_blue", "neutral_foo_bar")
"""Variants that others are compared with: their shift cannot come from detecting steering when asked suggestively."""
DISCOVERY = 0.05
"""Adjusted p-value below which an effect counts as found."""
P_VALUE_RESAMPLES = 20_000  # the smallest p-value, times the size of the family, has to stay below DISCOVERY
LOW_SHARE = 0.5  # a group with a larger share of items with low mass is not interpreted
EDGE_SHARE = 0.5  # of a group with a larger share of items at floor or ceiling nothing is said
ODDS_MARGIN = 0.4
"""Shift in log-odds below which a shift counts as none: 0.1 of P(yes) where P(yes) is 0.5."""
UNTESTED, NO_SEEDS = Equivalence(0.0, ODDS_MARGIN, None), SignTest(0, 0, None)
PROBABILITY = (-2.0, 2.0)  # a difference of two shifts of a probability lies between them


@dataclass(frozen=True)
class Tested:
    """An estimate that was tested against 0.

    Args:
        estimate: The estimate.
        p: Two-sided p-value. None if it cannot be computed.
        none: Whether the estimate is equivalent to 0, within :data:`ODDS_MARGIN`.
        seeds: How many trained seeds lie on either side of 0.
        adjusted: The p-value adjusted for the family of tests.
    """

    estimate: Estimate
    p: float | None
    none: Equivalence = UNTESTED
    seeds: SignTest = NO_SEEDS
    adjusted: float | None = None

    @property
    def found(self) -> bool:
        """Return whether the effect is among the discoveries of its family."""
        return self.adjusted is not None and self.adjusted < DISCOVERY


@dataclass(frozen=True)
class Read:
    """What decides whether a group of items can be read.

    Args:
        low_mass: Share of items and twins that have low mass in a system.
        at_edge: Share of items and twins that are at floor or ceiling in a system.
    """

    low_mass: float
    at_edge: float

    @property
    def interpretable(self) -> bool:
        """Return whether at least half of the items have their mass on the two answers."""
        return self.low_mass <= LOW_SHARE

    @property
    def saturated(self) -> bool:
        """Return whether more than half of the items are at floor or ceiling, so that nothing can be said about them."""
        return self.at_edge > EDGE_SHARE

    @property
    def readable(self) -> bool:
        """Return whether the group has mass and room."""
        return self.interpretable and not self.saturated


@dataclass(frozen=True)
class Shift(Read):
    """How one variant's answers to a group of items differ from its base's answers, in log-odds of yes unless said otherwise.

    Args:
        variant: The variant.
        group: A category, or :data:`SELF_REPORTS`, :data:`CONTROLS`, :data:`TRAINED`.
        worded: Mean shift over items as they were first worded, without reversed twins.
        corrected: Mean of half the difference between an item's shift and its twin's: the claim, whatever the wording.
        bias: Mean of half the sum of an item's shift and its twin's: a tendency to say yes to anything.
        reversed: Mean shift over reversed twins.
        probability: Like ``worded``, for P(yes) as a share of the probability of both answers.
        whole: Like ``worded``, for the probability of "yes" over the whole vocabulary.
        room: Like ``worded``, over items that are neither at floor nor at ceiling in base or adapter.
        edge: Like ``worded``, over items that are.
        expected: Mean shift towards the expected answer, over items and twins that have one.
        floor: Number of items in ``worded`` that are at floor in base or adapter.
        ceiling: Number of items in ``worded`` that are at ceiling in base or adapter.
        units: Number of units at each level of the bootstrap.
    """

    variant: str
    group: str
    worded: Tested
    corrected: Tested
    bias: Tested
    reversed: Estimate
    probability: Estimate
    whole: Estimate
    room: Estimate
    edge: Estimate
    expected: Estimate
    floor: int
    ceiling: int
    units: Mapping[str, int]


@dataclass(frozen=True)
class Difference(Read):
    """A variant's shift minus a control's shift on the same items and seeds, in log-odds.

    Args:
        variant: The variant.
        control: The control variant.
        group: The group of items.
        worded: Difference of the shifts of items as they were first worded.
        corrected: Difference of the shifts with corrected polarity.
    """

    variant: str
    control: str
    group: str
    worded: Tested
    corrected: Tested


Comparison = TypeVar("Comparison", Shift, Difference)


def shift(variant: str, group: str, items: Sequence[Item], seed: int) -> Shift:
    """Estimate everything that a group of items shows of one variant.

    Args:
        variant: The variant's name.
        group: The group's name.
        items: One item or more.
        seed: Seeds the bootstrap.
    """
    worded = [item for item in items if not item.reversed]
    reversed_twins = [item for item in items if item.reversed]
    room = [item for item in worded if not item.at_edge]
    edge = [item for item in worded if item.at_edge]
    with_answer = [item for item in items if item.expected is not None]
    twins = _twins(items)
    return Shift(
        variant=variant,
        group=group,
        worded=_tested(worded, _shifts(worded), seed),
        corrected=_corrected(twins, seed),
        bias=_tested([item for item, _ in twins], [(item.shift + twin.shift) / 2 for item, twin in twins], seed),
        reversed=_mean(reversed_twins, _shifts(reversed_twins), seed),
        probability=_mean(worded, [item.moved for item in worded], seed, PROBABILITY),
        whole=_mean(worded, [item.whole for item in worded], seed, PROBABILITY),
        room=_mean(room, _shifts(room), seed),
        edge=_mean(edge, _shifts(edge), seed),
        expected=_mean(
            with_answer, [item.shift if item.expected == "yes" else -item.shift for item in with_answer], seed
        ),
        floor=sum(item.at_floor for item in worded),
        ceiling=sum(item.at_ceiling for item in worded),
        low_mass=_share([item.low_mass for item in items]),
        at_edge=_share([item.at_edge for item in items]),
        units=_bootstrap(items, seed, 1).units,
    )


def difference(
    variant: str, control: str, group: str, items: Sequence[Item], control_items: Sequence[Item], seed: int
) -> Difference | None:
    """Estimate a variant's shift minus a control's shift on the items of a group that both answered.

    Args:
        variant: The variant's name.
        control: The control variant's name.
        group: The group's name.
        items: The variant's items.
        control_items: The control's items.
        seed: Seeds the bootstrap.

    Returns:
        The difference, or None if no item was answered by both.
    """
    by_key = {item.key: item for item in control_items}
    pairs = [(item, by_key[item.key]) for item in items if item.key in by_key]
    if not pairs:
        return None
    shared = [replace(item, shift=item.shift - control.shift) for item, control in pairs]
    worded = [item for item in shared if not item.reversed]
    return Difference(
        variant=variant,
        control=control,
        group=group,
        worded=_tested(worded, _shifts(worded), seed),
        corrected=_corrected(_twins(shared), seed),
        low_mass=_share([item.low_mass or other.low_mass for item, other in pairs]),
        at_edge=_share([item.at_edge or other.at_edge for item, other in pairs]),
    )


def differences(by_variant: Mapping[str, Sequence[Item]], seed: int) -> list[Difference]:
    """Estimate every variant minus each control variant, over self-reports and over controls, with adjusted p-values."""
    compared = []
    for variant, items in by_variant.items():
        for control in CONTROL_VARIANTS:
            if control in by_variant and control != variant:
                by_group, control_by_group = groups(items), groups(by_variant[control])
                for group in (SELF_REPORTS, CONTROLS):
                    pair = by_group.get(group, []), control_by_group.get(group, [])
                    minus_control = difference(variant, control, group, *pair, seed)
                    compared.extend([] if minus_control is None else [minus_control])
    return adjusted(compared)


def adjusted(family: Sequence[Comparison]) -> list[Comparison]:
    """Adjust the p-values by Benjamini and Hochberg (1995), as worded and with corrected polarity in one family each."""
    worded = benjamini_hochberg([member.worded.p for member in family])
    corrected = benjamini_hochberg([member.corrected.p for member in family])
    return [
        replace(member, worded=replace(member.worded, adjusted=p), corrected=replace(member.corrected, adjusted=q))
        for member, p, q in zip(family, worded, corrected, strict=True)
    ]


def _shifts(items: Sequence[Item]) -> list[float]:
    return [item.shift for item in items]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags)


def _twins(items: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Return each item with its reversed twin, if both were asked in the same seed and context."""
    by_key = {item.key: item for item in items}
    twins = []
    for item in items:
        original = by_key.get((item.seed, item.context, item.family))
        if item.reversed and original is not None:
            twins.append((original, item))
    return twins


def _corrected(twins: Sequence[tuple[Item, Item]], seed: int) -> Tested:
    """Test the mean over an item and its twin with the twin's sign turned."""
    return _tested([item for item, _ in twins], [(item.shift - twin.shift) / 2 for item, twin in twins], seed)


def _tested(items: Sequence[Item], values: Sequence[float], seed: int) -> Tested:
    resampled = _bootstrap(items, seed, P_VALUE_RESAMPLES).resample({"mean": mean_of(values)}, UNBOUNDED)["mean"]
    by_seed: dict[int, list[float]] = {}
    for item, value in zip(items, values, strict=True):
        by_seed.setdefault(item.seed, []).append(value)
    seeds = sign_test([fmean(own) for own in by_seed.values()], 0.0)
    return Tested(resampled.estimate, resampled.p_value(), equivalence(resampled, 0.0, ODDS_MARGIN), seeds)


def _mean(
    items: Sequence[Item], values: Sequence[float], seed: int, bounds: tuple[float, float] = UNBOUNDED
) -> Estimate:
    return _bootstrap(items, seed, RESAMPLES).estimate(mean_of(values), bounds)


def _bootstrap(items: Sequence[Item], seed: int, resamples: int) -> HierarchicalBootstrap:
    """Return a bootstrap over seeds, contexts and questions. An item and its twin are one question."""
    levels: dict[str, Sequence[str | int | None]] = {
        "seed": [item.seed for item in items],
        "context": [item.context for item in items],
        "question": [item.family for item in items],
    }
    return HierarchicalBootstrap(levels, seed, resamples)
