"""Which steering records are asked about: twins, of equal text and opposite verdicts, so that only the vector can tell."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from afintro.data.splits import stable_hash
from afintro.tasks.steering.patches import PatchedRecord
from afintro.tasks.steering.records import SteeringRecord


@dataclass(frozen=True)
class AskedRecord:
    """A record that is asked about.

    Args:
        record: The record.
        twins: Name of the prompt, layer and strength that the record shares with its twin; "" without a twin.
        question_type: The question type of the example that the record gives.
    """

    record: SteeringRecord
    twins: str
    question_type: str


def choose_records(
    records: Sequence[SteeringRecord], pairs_per_cell: int, seed: int, question_type: str
) -> list[AskedRecord]:
    """Choose records so that in every (layer, alpha) cell half of them changed behavior.

    Twins are records of one prompt, layer and alpha under different vectors, one of which changed the behavior while the
    other did not: a reader of the text alone is right about one of the two. Among a prompt's records this prefers records of
    a direction whose verdicts in the cell are out of balance so far, so that the direction alone does not tell either. A
    cell without any twins takes as many changed as unchanged records instead, and so does a cell of patches.

    Args:
        records: Records with behavior labels; broken texts are left out, and so are records whose label is unknown.
        pairs_per_cell: Largest number of pairs of twins of one prompt, layer and alpha.
        seed: Decides, with the uids, which records are taken; the order of the records does not matter.
        question_type: The question type of the chosen records.
    """
    cells: dict[tuple[int, float], dict[str, list[SteeringRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda record: stable_hash(f"{seed} {record.uid}")):
        if record.coherent and record.behavior_changed is not None:
            cells[record.layer, record.alpha][record.prompt].append(record)
    chosen: list[AskedRecord] = []
    for cell in sorted(cells):
        everything = [record for rows in cells[cell].values() for record in rows]
        patched = isinstance(
            everything[0], PatchedRecord
        )  # whose questions name a token too, so that texts are not equal
        pairs = [] if patched else _twins(cells[cell], pairs_per_cell)
        pairs = pairs or _balanced(everything)
        chosen += [AskedRecord(record, twins, question_type) for record, twins in pairs]
    return chosen


def _twins(prompts: dict[str, list[SteeringRecord]], pairs_per_cell: int) -> list[tuple[SteeringRecord, str]]:
    """Return the pairs of one cell, prompt by prompt in the order given, each record with the name of its pair."""
    surplus: Counter[str] = Counter()  # changed minus unchanged so far, by direction
    twins = []
    for records in prompts.values():
        changed = [record for record in records if record.behavior_changed]
        unchanged = [record for record in records if not record.behavior_changed]
        for number in range(min(pairs_per_cell, len(changed), len(unchanged))):
            one = min(changed, key=lambda record: surplus[record.direction])
            other = max(unchanged, key=lambda record: surplus[record.direction])
            changed.remove(one)
            unchanged.remove(other)
            surplus[one.direction] += 1
            surplus[other.direction] -= 1
            name = f"{one.scenario_id}/{stable_hash(one.prompt):016x}/{one.layer}/{one.alpha:g}/{number}"
            twins += [(one, name), (other, name)]
    return twins


def _balanced(records: Sequence[SteeringRecord]) -> list[tuple[SteeringRecord, str]]:
    changed = [record for record in records if record.behavior_changed]
    unchanged = [record for record in records if not record.behavior_changed]
    size = min(len(changed), len(unchanged))
    return [(record, "") for record in (*changed[:size], *unchanged[:size])]


def limited(asked: Sequence[AskedRecord], limit: int | None, seed: int) -> list[AskedRecord]:
    """Keep at most ``limit`` records, in pairs of both verdicts, from all cells and alike from all question types.

    Args:
        asked: Chosen records.
        limit: Largest number of records; None for all.
        seed: Decides, with the pairs' names, which pairs are kept.
    """
    if limit is None or len(asked) <= limit:
        return list(asked)
    pairs: dict[tuple[str, str], list[AskedRecord]] = {}
    seen: Counter[tuple[str, int, float, bool | None]] = Counter()
    for item in asked:
        record = item.record
        place = (item.question_type, record.layer, record.alpha, record.behavior_changed)
        name = item.twins or f"{record.layer}/{record.alpha:g}/{seen[place]}"
        pairs.setdefault((item.question_type, name), []).append(item)
        seen[place] += 1
    drawn = sorted(pairs, key=lambda pair: stable_hash(f"{seed} {pair[1]}"))
    question_types = list(dict.fromkeys(item.question_type for item in asked))
    by_type = [[pair for pair in drawn if pair[0] == question_type] for question_type in question_types]
    turns = [pair for turn in zip_longest(*by_type) for pair in turn if pair is not None]
    kept = set(turns[: max(1, limit // 2)])
    return [item for pair in pairs if pair in kept for item in pairs[pair]][:limit]
