"""Which steering records are asked about: twins, of equal text and opposite verdicts, so that only the vector can tell."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from afintro.data.splits import stable_hash
from afintro.tasks.steering.records import SteeringRecord


@dataclass(frozen=True)
class Chosen:
    """A record that is asked about; ``twins`` names the prompt and dose that it shares with its twin, "" without one."""

    record: SteeringRecord
    twins: str


def choose(records: Sequence[SteeringRecord], pairs: int, seed: int) -> list[Chosen]:
    """Choose records so that in every (layer, alpha) cell half of them changed behaviour.

    Twins are records of one prompt, layer and alpha under different vectors, one of which changed the behaviour while the
    other did not: who reads the text alone is right on one of them. Among a prompt's records those of a direction are
    preferred whose verdicts in the cell are out of balance so far, so that the direction alone does not tell either. A
    cell without any twins takes as many changed as unchanged records instead.

    Args:
        records: With behaviour labels; broken texts are left out, and so are records whose label is unknown.
        pairs: At most so many pairs of twins of one prompt, layer and alpha.
        seed: Decides, with the uids, what is taken; the order of the records does not matter.
    """
    cells: dict[tuple[int, float], dict[str, list[SteeringRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in sorted(records, key=lambda record: stable_hash(f"{seed} {record.uid}")):
        if record.coherent and record.behavior_changed is not None:
            cells[record.layer, record.alpha][record.prompt].append(record)
    found: list[Chosen] = []
    for cell in sorted(cells):
        found += _twins(cells[cell], pairs) or _balanced([r for own in cells[cell].values() for r in own])
    return found


def _twins(prompts: dict[str, list[SteeringRecord]], pairs: int) -> list[Chosen]:
    """Pairs of one cell, prompt by prompt in the order given."""
    surplus: Counter[str] = Counter()  # changed minus unchanged so far, by direction
    found = []
    for records in prompts.values():
        changed = [record for record in records if record.behavior_changed]
        unchanged = [record for record in records if not record.behavior_changed]
        for number in range(min(pairs, len(changed), len(unchanged))):
            one = min(changed, key=lambda record: surplus[record.direction])
            other = max(unchanged, key=lambda record: surplus[record.direction])
            changed.remove(one)
            unchanged.remove(other)
            surplus[one.direction] += 1
            surplus[other.direction] -= 1
            name = f"{one.scenario_id}/{stable_hash(one.prompt):016x}/{one.layer}/{one.alpha:g}/{number}"
            found += [Chosen(one, name), Chosen(other, name)]
    return found


def _balanced(records: Sequence[SteeringRecord]) -> list[Chosen]:
    changed = [record for record in records if record.behavior_changed]
    unchanged = [record for record in records if not record.behavior_changed]
    size = min(len(changed), len(unchanged))
    return [Chosen(record, "") for record in (*changed[:size], *unchanged[:size])]


def unseen_directions(names: Sequence[str], fraction: float, seed: int) -> frozenset[str]:
    """The directions kept out of training: a share of them, rounded down, drawn by name and seed."""
    ordered = sorted(set(names), key=lambda name: stable_hash(f"{seed} {name}"))
    return frozenset(ordered[: int(fraction * len(ordered))])
