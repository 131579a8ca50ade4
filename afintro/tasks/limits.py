"""The trainer's limits on batches of evaluation: as many items, a fair draw of them, and not the shortest."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from afintro.data.batch import Example
from afintro.data.splits import stable_hash


def limited_count(limit: float, items: int, batch_size: int) -> int | None:
    """Return how many items a limit on batches leaves; None for all of them.

    Args:
        limit: A number of batches (int), or the share of them (float), as ``trainer.limit_val_batches`` is given.
        items: Number of items.
        batch_size: Number of items in a batch of all processes together.
    """
    count = limit * batch_size if isinstance(limit, int) else max(1, round(limit * items))
    return None if limit == 0 or count >= items else int(count)  # 0 leaves the evaluation out, which the trainer does


def fair_draw(examples: Sequence[Example], count: int, primary: str, seed: int) -> list[int]:
    """Draw items so that every question type has its share, and every question type has an item if there is room.

    Args:
        examples: The items.
        count: Number of items to draw; twins stay together.
        primary: The question type that gets an item first.
        seed: Decides the draw, with the uids.

    Returns:
        The places of the items, ascending.
    """
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, example in enumerate(examples):
        groups[example.question_type, example.twins or example.uid].append(place)
    sizes, drawn = Counter(question_type for question_type, _ in groups), Counter[str]()
    turns: list[tuple[float, bool, int, list[int]]] = []
    for question_type, name in sorted(groups, key=lambda group: stable_hash(f"limit {seed} {group[1]}")):
        share = drawn[question_type] / sizes[question_type]
        turns.append((share, question_type != primary, len(turns), groups[question_type, name]))
        drawn[question_type] += 1
    places: list[int] = []
    for *_, group in sorted(turns):
        if places and len(places) + len(group) > count:
            break
        places += group
    return sorted(places)
