"""Self-report items as a trained variant and its base answer them, paired."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from afintro.study.results import Row

SELF_REPORTS, CONTROLS, TRAINED = "self-reports", "controls", "trained on"
YES_NO = "yes_no"  # of afintro.tasks.introspection.trials, which loads what no report needs
LOW_MASS = 0.5
FLOOR, CEILING = 0.02, 0.98


@dataclass(frozen=True)
class Item:
    """One question to one trained variant, and to its base.

    Args:
        seed: Of the training.
        context: Read first; None without.
        question: The item.
        family: The item of which it is the reversed twin, or itself.
        category: Its category.
        control: Whether it is about anything but the model.
        trained: Whether the variant was trained on it.
        expected: ``yes`` or ``no``; None where nobody knows.
        base: P(yes) of both answers together, without the adapter.
        adapter: The same with it.
        whole: Shift of the probability of "yes" over the whole vocabulary.
        low_mass: Whether both answers together have less than half of the probability, in either system.
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
    whole: float
    low_mass: bool

    @property
    def key(self) -> tuple[int, str | None, str]:
        """The same for one item under every variant."""
        return self.seed, self.context, self.question

    @property
    def reversed(self) -> bool:
        return self.family != self.question

    @property
    def shift(self) -> float:
        return self.adapter - self.base

    @property
    def at_edge(self) -> bool:
        """At floor or ceiling before training: whether it moves that way cannot be seen."""
        return not FLOOR <= self.base <= CEILING


def paired_items(rows: Sequence[Row], pair: str = YES_NO) -> tuple[list[Item], int]:
    """Items that both systems answered once, and the number of the others: with one system's answer, several, or no P(yes).

    Args:
        rows: Of ``logprobs``, all seeds of one variant.
        pair: Answers asked for; rows of other pairs are left out.
    """
    asked: dict[tuple[int, str | None, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["pair"] == pair:
            asked[row["seed"], row.get("context"), row["question"]].append(row)
    items = []
    for answers in asked.values():
        systems = {row["system"]: row for row in answers if row["p_yes"] is not None}
        if len(systems) == len(answers) == 2:
            items.append(_item(systems["adapter"], systems["base"]))
    return items, len(asked) - len(items)


def _item(adapter: Row, base: Row) -> Item:
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
        whole=adapter["p_a"] - base["p_a"],
        low_mass=min(adapter["mass"], base["mass"]) < LOW_MASS,
    )


def groups(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Items of self-reports, of controls, and of those that the variant was trained on, which count in neither."""
    fresh = [item for item in items if not item.trained]
    found = {
        SELF_REPORTS: [item for item in fresh if not item.control],
        CONTROLS: [item for item in fresh if item.control],
        TRAINED: [item for item in items if item.trained],
    }
    return {name: members for name, members in found.items() if members}


def categories(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Items by category, those that the variant was trained on left out."""
    found: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if not item.trained:
            found[item.category].append(item)
    return dict(found)
