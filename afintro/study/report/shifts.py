"""Estimate how a model's answers about itself shift when it is trained: adapter minus base, and variants minus controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from afintro.evaluation.hierarchical import RESAMPLES, HierarchicalBootstrap, benjamini_hochberg
from afintro.evaluation.intervals import Estimate, mean_of
from afintro.study.scoring.items import CEILING, CONTROLS, FLOOR, SELF_REPORTS, Item, groups

UNTAUGHT = ("no_steer", "random_labels", "random_labels_v2")
"""Variants that were never told what steering is."""
CONTROL_VARIANTS = (*UNTAUGHT, "neutral_red_blue", "neutral_foo_bar")
"""Variants that others are compared with: their shift cannot come from detecting steering when asked suggestively."""
DISCOVERY = 0.05
"""Adjusted p-value below which an effect counts as found."""
P_VALUE_RESAMPLES = 20_000  # the smallest p-value, times the size of the family, has to stay below DISCOVERY
LOW_SHARE = 0.5  # a group with a larger share of items with low mass is not interpreted
BOUNDS = (-2.0, 2.0)  # a difference of two shifts lies between them


@dataclass(frozen=True)
class Tested:
    """An estimate that was tested against 0.

    Args:
        estimate: The estimate.
        p: Two-sided p-value. None if it cannot be computed.
        adjusted: The p-value adjusted for the family of tests.
    """

    estimate: Estimate
    p: float | None
    adjusted: float | None = None

    @property
    def found(self) -> bool:
        """Return whether the effect is among the discoveries of its family."""
        return self.adjusted is not None and self.adjusted < DISCOVERY


@dataclass(frozen=True)
class Shift:
    """How one variant's answers to a group of items differ from its base's answers.

    Args:
        variant: The variant.
        group: A category, or :data:`SELF_REPORTS`, :data:`CONTROLS`, :data:`TRAINED`.
        worded: Mean shift of P(yes) over items as they were first worded, without reversed twins.
        corrected: Mean of half the difference between an item's shift and its twin's: the claim, whatever the wording.
        reversed: Mean shift over reversed twins.
        bias: Mean of half the sum of an item's shift and its twin's: a tendency to say yes to anything.
        whole: Like ``worded``, for the probability of "yes" over the whole vocabulary.
        room: Like ``worded``, over items that were neither at floor nor at ceiling.
        edge: Like ``worded``, over items that were at floor or at ceiling.
        expected: Mean shift of the probability of the expected answer, over items and twins that have one.
        floor: Number of items in ``worded`` whose base P(yes) is below :data:`FLOOR`.
        ceiling: Number of items in ``worded`` whose base P(yes) is above :data:`CEILING`.
        low_mass: Share of items and twins with low mass in base or adapter.
        units: Number of units at each level of the bootstrap.
    """

    variant: str
    group: str
    worded: Tested
    corrected: Tested
    reversed: Estimate
    bias: Estimate
    whole: Estimate
    room: Estimate
    edge: Estimate
    expected: Estimate
    floor: int
    ceiling: int
    low_mass: float
    units: Mapping[str, int]

    @property
    def interpretable(self) -> bool:
        """Return whether at least half of the items have their mass on the two answers."""
        return self.low_mass <= LOW_SHARE


@dataclass(frozen=True)
class Difference:
    """A variant's shift minus a control's shift on the same items and seeds.

    Args:
        variant: The variant.
        control: The control variant.
        group: The group of items.
        worded: Difference of the shifts of items as they were first worded.
        corrected: Difference of the shifts with corrected polarity.
        low_mass: Share of items with low mass under either variant.
    """

    variant: str
    control: str
    group: str
    worded: Tested
    corrected: Tested
    low_mass: float

    @property
    def interpretable(self) -> bool:
        """Return whether at least half of the items have their mass on the two answers."""
        return self.low_mass <= LOW_SHARE


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
        variant,
        group,
        worded=_tested(worded, _shifts(worded), seed),
        corrected=_corrected(twins, seed),
        reversed=_mean(reversed_twins, _shifts(reversed_twins), seed),
        bias=_mean([item for item, _ in twins], [(item.shift + twin.shift) / 2 for item, twin in twins], seed),
        whole=_mean(worded, [item.whole for item in worded], seed),
        room=_mean(room, _shifts(room), seed),
        edge=_mean(edge, _shifts(edge), seed),
        expected=_mean(
            with_answer, [item.shift if item.expected == "yes" else -item.shift for item in with_answer], seed
        ),
        floor=sum(item.base < FLOOR for item in worded),
        ceiling=sum(item.base > CEILING for item in worded),
        low_mass=_low_mass(items),
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
    shared = [_subtract(item, by_key[item.key]) for item in items if item.key in by_key]
    if not shared:
        return None
    worded = [item for item in shared if not item.reversed]
    tested = _tested(worded, _shifts(worded), seed)
    return Difference(variant, control, group, tested, _corrected(_twins(shared), seed), _low_mass(shared))


def _subtract(item: Item, control: Item) -> Item:
    """Return an item whose shift is the difference of two variants' shifts."""
    return replace(item, adapter=item.shift, base=control.shift, low_mass=item.low_mass or control.low_mass)


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


def _low_mass(items: Sequence[Item]) -> float:
    return sum(item.low_mass for item in items) / len(items)


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
    resampled = _bootstrap(items, seed, P_VALUE_RESAMPLES).resample({"mean": mean_of(values)}, BOUNDS)["mean"]
    return Tested(resampled.estimate, resampled.p_value())


def _mean(items: Sequence[Item], values: Sequence[float], seed: int) -> Estimate:
    return _bootstrap(items, seed, RESAMPLES).estimate(mean_of(values), BOUNDS)


def _bootstrap(items: Sequence[Item], seed: int, resamples: int) -> HierarchicalBootstrap:
    """Return a bootstrap over seeds, contexts and questions. An item and its twin are one question."""
    levels: dict[str, Sequence[str | int | None]] = {
        "seed": [item.seed for item in items],
        "context": [item.context for item in items],
        "question": [item.family for item in items],
    }
    return HierarchicalBootstrap(levels, seed, resamples)
