"""Split the introspection study's texts into training, validation and test, and check that the splits share no text."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from afintro.data.splits import stable_hash
from afintro.errors import UserError


class Text(Protocol):
    """An item that :func:`split_texts` can split: a family stays together, and every split has items of each group."""

    @property
    def text(self) -> str:
        """Return the text that a split keeps apart."""

    @property
    def family(self) -> str:
        """Return the id that the item shares with its reversed twin."""

    @property
    def group(self) -> str:
        """Return the group that is represented in every split."""


Item = TypeVar("Item", bound=Text)


@dataclass(frozen=True)
class Splits(Generic[Item]):
    """Three splits that share no text; each keeps the order of the items."""

    train: list[Item]
    validation: list[Item]
    test: list[Item]


def split_texts(items: Sequence[Item], seed: int, validation: float = 0.2, test: float = 0.2) -> Splits[Item]:
    """Divide contexts, questions or self-reports by a hash of their text.

    The split depends on the seed and on the texts of the group, not on their order. Families are ranked within the group and
    not cut at a threshold, so that every split has a family of each group; a new text may therefore move a few others.

    Args:
        items: Items of any groups. A question and its reversed twin are one family, because each gives the other away.
        seed: Seed of the split.
        validation: Share of each group's families in the validation split.
        test: Share of each group's families in the test split.

    Raises:
        UserError: A group is too small for three splits, or a text would be in two splits.
    """
    groups: dict[str, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        groups[item.group][item.family].append(item)
    split_of: dict[tuple[str, str], str] = {}
    for group, families in groups.items():
        order = sorted(families, key=lambda name: min(stable_hash(f"{seed} {item.text}") for item in families[name]))
        tested, validated = (max(1, round(share * len(order))) for share in (test, validation))
        if tested + validated >= len(order):
            what = f"{len(order)} families are too few for three splits"
            raise UserError(what, where=f"group {group!r}", remedy="add texts, or hold out a smaller share")
        for rank, name in enumerate(order):
            split_of[group, name] = "test" if rank < tested else "validation" if rank < tested + validated else "train"
    parts: dict[str, list[Item]] = {"train": [], "validation": [], "test": []}
    for item in items:
        parts[split_of[item.group, item.family]].append(item)
    assert_disjoint(**{name: [item.text for item in part] for name, part in parts.items()})
    return Splits(**parts)


def assert_disjoint(**collections: Iterable[str]) -> None:
    """Raise a UserError if two named collections share a text, compared by SHA-256 with white space folded."""
    seen: dict[str, str] = {}
    for name, texts in collections.items():
        for text in texts:
            digest = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
            if seen.setdefault(digest, name) != name:
                what = f"shares a text with {seen[digest]}: {text[:60]!r} (SHA-256 {digest[:16]})"
                raise UserError(what, where=name, remedy="remove it from one of them")
