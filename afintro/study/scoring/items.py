"""Pair the answers of a trained variant and its base to the same self-report item."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from afintro.study.results import ResultRow

SELF_REPORTS, CONTROLS, TRAINED = "self-reports", "controls", "trained on"
YES_NO = "yes_no"  # as in afintro.tasks.introspection.trials, which imports torch, which no report needs
LOW_MASS = 0.5
"""Probability of both answers together below which an answer has low mass."""
FLOOR, CEILING = 0.02, 0.98
"""P(yes) below or above which an item can hardly move any further, or may have been stopped on its way."""
LEAST_PROBABILITY = 1e-300
"""Smallest probability whose logarithm is taken: smaller ones underflow."""


@dataclass(frozen=True)
class Item:
    """One question to one trained variant and to its base.

    Args:
        seed: The seed of the training.
        context: The context that was read first. None if there was no context.
        question: Id of the item.
        family: Id of the item of which this item is the reversed twin, or of the item itself.
        category: The item's category.
        control: Whether the item is about something other than the model.
        trained: Whether the variant was trained on the item.
        expected: The right answer, ``yes`` or ``no``. None if nobody knows it.
        base: P(yes) without the adapter, as a share of the probability of both answers.
        adapter: P(yes) with the adapter, as a share of the probability of both answers.
        shift: Log-odds of yes against no with the adapter minus those without, in nats. Unlike probabilities, log-odds do not
            run into 0 and 1, where a claim would be hidden by a habit of saying yes.
        whole: Shift of the probability of "yes" over the whole vocabulary.
        low_mass: Whether both answers together have less than half of the probability in either system.
    """

    seed: int
    context: str | None
    question: str
    family: str
    category: str
    control: bool
    trained: bool
    expected: str | None
    base: float
    adapter: float
    shift: float
    whole: float
    low_mass: bool

    @property
    def key(self) -> tuple[int, str | None, str]:
        """Return a key that is the same for an item under every variant."""
        return self.seed, self.context, self.question

    @property
    def reversed(self) -> bool:
        """Return whether the item is a reversed twin."""
        return self.family != self.question

    @property
    def moved(self) -> float:
        """Return P(yes) of the adapter minus P(yes) of the base."""
        return self.adapter - self.base

    @property
    def at_floor(self) -> bool:
        """Return whether base or adapter practically never says yes."""
        return min(self.base, self.adapter) < FLOOR

    @property
    def at_ceiling(self) -> bool:
        """Return whether base or adapter practically always says yes."""
        return max(self.base, self.adapter) > CEILING

    @property
    def at_edge(self) -> bool:
        """Return whether base or adapter is at floor or ceiling, where what moved cannot be told from what was cut off."""
        return self.at_floor or self.at_ceiling


def paired_items(rows: Sequence[ResultRow], pair: str = YES_NO) -> tuple[list[Item], int]:
    """Pair the rows of adapter and base about the same item.

    Args:
        rows: Rows of ``logprobs``, of all seeds of one variant.
        pair: The answer pair. Rows of other pairs are left out.

    Returns:
        The items that both systems answered once, and the number of the other items, which have the answer of one system,
        several answers, or no P(yes).
    """
    asked: dict[tuple[int, str | None, str], list[ResultRow]] = defaultdict(list)
    for row in rows:
        if row["pair"] == pair:
            asked[row["seed"], row.get("context"), row["question"]].append(row)
    items = []
    for answers in asked.values():
        systems = {row["system"]: row for row in answers if row["p_yes"] is not None}
        if len(systems) == len(answers) == 2:
            items.append(_item(systems["adapter"], systems["base"]))
    return items, len(asked) - len(items)


def _item(adapter: ResultRow, base: ResultRow) -> Item:
    return Item(
        seed=adapter["seed"],
        context=adapter.get("context"),
        question=adapter["question"],
        family=adapter.get("reversed_of") or adapter["question"],
        category=adapter["category"],
        control=adapter["control"],
        trained=bool(adapter.get("trained")),
        expected=adapter.get("expected"),
        base=base["p_yes"],
        adapter=adapter["p_yes"],
        shift=log_odds(adapter) - log_odds(base),
        whole=adapter["p_a"] - base["p_a"],
        low_mass=min(adapter["mass"], base["mass"]) < LOW_MASS,
    )


def log_odds(row: ResultRow) -> float:
    """Return the log-odds of the first answer against the second, of a row of ``logprobs``, in nats."""
    first, second = (max(float(row[name]), LEAST_PROBABILITY) for name in ("p_a", "p_b"))
    return math.log(first) - math.log(second)


def groups(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Group items into self-reports, controls, and items that the variant was trained on, which count as neither."""
    fresh = [item for item in items if not item.trained]
    by_group = {
        SELF_REPORTS: [item for item in fresh if not item.control],
        CONTROLS: [item for item in fresh if item.control],
        TRAINED: [item for item in items if item.trained],
    }
    return {name: members for name, members in by_group.items() if members}


def categories(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Group items by category. Items that the variant was trained on are left out."""
    by_category: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if not item.trained:
            by_category[item.category].append(item)
    return dict(by_category)
