"""Training, validation and test splits of the introspection study's texts, and the proof that they share none."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from afintro.data.splits import stable_hash
from afintro.errors import UserError


class Text(Protocol):
    """What :func:`split_texts` needs of an item: a family stays together, and a group is represented in every split."""

    @property
    def text(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def group(self) -> str: ...


Item = TypeVar("Item", bound=Text)


@dataclass(frozen=True)
class Splits(Generic[Item]):
    """Three splits that share no text, each in the order given."""

    train: list[Item]
    validation: list[Item]
    test: list[Item]


def split_texts(items: Sequence[Item], seed: int, validation: float = 0.2, test: float = 0.2) -> Splits[Item]:
    """Divide contexts, questions or self-reports by a hash of their text.

    The split depends on the seed and on the texts of the group, not on their order. Families are ranked within the group
    rather than cut at a threshold, so that each group has at least one in each split; a new text may thus move a few.

    Args:
        items: Of any groups. A question and its reversed twin are one family, as the one gives the other away.
        seed: Decides, with the texts.
        validation: Share of each group's families.
        test: Share of each group's families.

    Raises:
        UserError: A group is too small to be in every split, or a text would be in two of them.
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
    """Raise a UserError where two named collections share a text, by SHA-256 with white space folded."""
    seen: dict[str, str] = {}
    for name, texts in collections.items():
        for text in texts:
            digest = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
            if seen.setdefault(digest, name) != name:
                what = f"holds a text of {seen[digest]} as well: {text[:60]!r} (SHA-256 {digest[:16]})"
                raise UserError(what, where=name, remedy="remove it from one of them")
