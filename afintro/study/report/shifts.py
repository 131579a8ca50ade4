"""How answers about itself move when a model is trained: adapter minus base on the same items, by category, beside controls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from afintro.evaluation.hierarchical import HierarchicalBootstrap, benjamini_hochberg
from afintro.evaluation.intervals import RESAMPLES, Estimate, mean_of
from afintro.study.scoring.items import CEILING, CONTROLS, FLOOR, SELF_REPORTS, Item, groups

UNTAUGHT = ("no_steer", "random_labels", "random_labels_v2")
"""Variants that nothing told what steering is."""
CONTROL_VARIANTS = (*UNTAUGHT, "neutral_red_blue", "neutral_foo_bar")
"""What other variants stand beside: their shift cannot come from detecting steering when asked suggestively."""
DISCOVERY = 0.05
FINE = 20_000  # resamples behind a p-value: the smallest, times the size of the family, has to stay below DISCOVERY
LOW_SHARE = 0.5  # of items with low mass, above which a group is not interpreted
BOUNDS = (-2.0, 2.0)  # of a difference of two shifts


@dataclass(frozen=True)
class Tested:
    """An estimate with its p-value of being 0, and that adjusted for the family of tests."""

    estimate: Estimate
    p: float | None
    adjusted: float | None = None

    @property
    def found(self) -> bool:
        """Among the discoveries of its family."""
        return self.adjusted is not None and self.adjusted < DISCOVERY


@dataclass(frozen=True)
class Shift:
    """How one variant answers a group of items otherwise than its base.

    Args:
        variant: The variant.
        group: A category, or :data:`SELF_REPORTS`, :data:`CONTROLS`, :data:`TRAINED`.
        worded: Mean shift of P(yes) over items as they were first worded, reversed twins left out.
        corrected: Half the difference between an item's shift and its twin's: what is said to be so, whatever the wording.
        reversed: Mean shift over reversed twins.
        bias: Half the sum of an item's shift and its twin's: a tendency to say yes to anything.
        whole: As ``worded``, of the probability of "yes" over the whole vocabulary.
        room: As ``worded``, over items that were neither at floor nor at ceiling.
        edge: As ``worded``, over those that were.
        expected: Mean shift of the probability of the expected answer, over items and twins that have one.
        floor: Items whose base P(yes) is below :data:`FLOOR`, of those in ``worded``.
        ceiling: Those above :data:`CEILING`.
        low_mass: Share of items and twins with low mass in base or adapter.
        units: How many there are at each level of the bootstrap.
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
        """Whether at least half of the items have their mass on the two answers."""
        return self.low_mass <= LOW_SHARE


@dataclass(frozen=True)
class Difference:
    """A variant's shift minus a control's on the same items and seeds; ``low_mass`` of both together."""

    variant: str
    control: str
    group: str
    worded: Tested
    corrected: Tested
    low_mass: float

    @property
    def interpretable(self) -> bool:
        return self.low_mass <= LOW_SHARE


One = TypeVar("One", Shift, Difference)


def shift(variant: str, group: str, items: Sequence[Item], seed: int) -> Shift:
    """All that a group of items shows of one variant.

    Args:
        variant: Its name.
        group: The group's.
        items: At least one.
        seed: Seeds the bootstrap.
    """
    worded = [item for item in items if not item.reversed]
    again = [item for item in items if item.reversed]
    room = [item for item in worded if not item.at_edge]
    edge = [item for item in worded if item.at_edge]
    known = [item for item in items if item.expected is not None]
    twins = _twins(items)
    return Shift(
        variant,
        group,
        worded=_tested(worded, _shifts(worded), seed),
        corrected=_corrected(twins, seed),
        reversed=_mean(again, _shifts(again), seed),
        bias=_mean([one for one, _ in twins], [(one.shift + other.shift) / 2 for one, other in twins], seed),
        whole=_mean(worded, [item.whole for item in worded], seed),
        room=_mean(room, _shifts(room), seed),
        edge=_mean(edge, _shifts(edge), seed),
        expected=_mean(known, [item.shift if item.expected == "yes" else -item.shift for item in known], seed),
        floor=sum(item.base < FLOOR for item in worded),
        ceiling=sum(item.base > CEILING for item in worded),
        low_mass=_low_mass(items),
        units=_bootstrap(items, seed, 1).units,
    )


def difference(
    variant: str, control: str, group: str, items: Sequence[Item], theirs: Sequence[Item], seed: int
) -> Difference | None:
    """A variant's shift minus a control's, on the items of a group that both answered; None where there is none."""
    there = {item.key: item for item in theirs}
    shared = [_beside(item, there[item.key]) for item in items if item.key in there]
    if not shared:
        return None
    worded = [item for item in shared if not item.reversed]
    tested = _tested(worded, _shifts(worded), seed)
    return Difference(variant, control, group, tested, _corrected(_twins(shared), seed), _low_mass(shared))


def _beside(own: Item, other: Item) -> Item:
    """An item whose shift is the difference of two variants' shifts."""
    return replace(own, adapter=own.shift, base=other.shift, low_mass=own.low_mass or other.low_mass)


def differences(by_variant: Mapping[str, Sequence[Item]], seed: int) -> list[Difference]:
    """Every variant minus each control variant, over self-reports and over controls; p-values adjusted over all of them."""
    found = []
    for variant, items in by_variant.items():
        for control in CONTROL_VARIANTS:
            if control in by_variant and control != variant:
                own, theirs = groups(items), groups(by_variant[control])
                for group in (SELF_REPORTS, CONTROLS):
                    one = difference(variant, control, group, own.get(group, []), theirs.get(group, []), seed)
                    found.extend([] if one is None else [one])
    return adjusted(found)


def adjusted(family: Sequence[One]) -> list[One]:
    """The same with p-values adjusted over all of them: one family as worded, one with polarity corrected."""
    worded = benjamini_hochberg([one.worded.p for one in family])
    corrected = benjamini_hochberg([one.corrected.p for one in family])
    return [
        replace(one, worded=replace(one.worded, adjusted=p), corrected=replace(one.corrected, adjusted=q))
        for one, p, q in zip(family, worded, corrected, strict=True)
    ]


def _shifts(items: Sequence[Item]) -> list[float]:
    return [item.shift for item in items]


def _low_mass(items: Sequence[Item]) -> float:
    return sum(item.low_mass for item in items) / len(items)


def _twins(items: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Each item with its reversed twin, where both were asked in one seed and context."""
    by_key = {item.key: item for item in items}
    found = []
    for item in items:
        original = by_key.get((item.seed, item.context, item.family))
        if item.reversed and original is not None:
            found.append((original, item))
    return found


def _corrected(twins: Sequence[tuple[Item, Item]], seed: int) -> Tested:
    """Mean over an item and its twin with the twin's sign turned."""
    return _tested([one for one, _ in twins], [(one.shift - other.shift) / 2 for one, other in twins], seed)


def _tested(items: Sequence[Item], values: Sequence[float], seed: int) -> Tested:
    drawn = _bootstrap(items, seed, FINE).resample({"mean": mean_of(values)}, BOUNDS)["mean"]
    return Tested(drawn.estimate, drawn.p_value())


def _mean(items: Sequence[Item], values: Sequence[float], seed: int) -> Estimate:
    return _bootstrap(items, seed, RESAMPLES).estimate(mean_of(values), BOUNDS)


def _bootstrap(items: Sequence[Item], seed: int, resamples: int) -> HierarchicalBootstrap:
    """Over seeds, contexts and questions; an item and its twin are one question."""
    levels: dict[str, Sequence[str | int | None]] = {
        "seed": [item.seed for item in items],
        "context": [item.context for item in items],
        "question": [item.family for item in items],
    }
    return HierarchicalBootstrap(levels, seed, resamples)
