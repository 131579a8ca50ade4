"""The jobs of the measurement: organisms first, then what they answer, then the cells, then the flip test."""

from collections.abc import Sequence
from pathlib import Path

from afintro.tasks.context_ablation.records import read_records
from benchmarks.privileged import explaining, organisms
from benchmarks.privileged.plan import FLIPPED, NO_POLICY, TEXT_READERS, A, B, Cell, Plan, cells
from benchmarks.privileged.running import Job, Result


def jobs(plan: Plan, seeds: Sequence[int], curve: Sequence[int], work: Path) -> list[Job]:
    """Return all jobs; each stands behind those that it depends on.

    Args:
        plan: The size of the measurement.
        seeds: Seeds of organisms and explainers.
        curve: Numbers of labeled names.
        work: Folder of records and adapters.
    """
    made = []
    for system, cost in ((NO_POLICY, 15), (A, 45), (B, 45)):
        after = () if system == NO_POLICY else (NO_POLICY,)
        made += [
            Job(f"{seed}-organism-{system}", cost, train_organism, (plan, system, seed), _organisms(seed, after))
            for seed in seeds
        ]
    for seed in seeds:
        made += [
            Job(f"{seed}-answers-{name}", 20, answer, (plan, name, seed, work), _organisms(seed, (name,)))
            for name in plan.about
        ]
        made += [
            Job(_flipped(seed, part), 85, train_flipped, (plan, part, seed, work), _organisms(seed, (A,)))
            for part in plan.flips
        ]
    for cell in sorted(cells(plan, seeds, curve), key=lambda cell: (cell.system in TEXT_READERS, -cell.names)):
        needed = (
            f"{cell.seed}-answers-{cell.about}",
            *_organisms(cell.seed, (cell.system,) if cell.system not in TEXT_READERS else ()),
        )
        made.append(Job(cell.key, 5 if cell.system in TEXT_READERS else 40, measure_cell, (cell, plan, work), needed))
    for seed in seeds:
        own = Cell(seed, A, A, plan.labeled).key
        made += [
            Job(flip_key(seed, part), 10, flip, (plan, part, seed, work), (own, _flipped(seed, part)))
            for part in plan.flips
        ]
    return made


def flip_key(seed: int, part: str) -> str:
    """Return the key of the flip test of a seed.

    Args:
        seed: Seed of the measurement.
        part: What the training that flipped bits changed.
    """
    return f"{seed}-flip-{part}"


def _flipped(seed: int, part: str) -> str:
    return f"{seed}-organism-{FLIPPED}-{part}"


def _organisms(seed: int, systems: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{seed}-organism-{system}" for system in systems)


def train_organism(plan: Plan, system: str, seed: int) -> Result:
    """Train the base of an explainer, and return what its folder says of it.

    Args:
        plan: The size of the measurement.
        system: One of :data:`benchmarks.privileged.plan.BASES`.
        seed: Seed of the measurement.
    """
    return organisms.about(organisms.base_of(plan, system, seed))


def train_flipped(plan: Plan, part: str, seed: int, work: Path) -> Result:
    """Train A further to the opposite bits of half of the new names, and let it answer about all new names.

    Args:
        plan: The size of the measurement.
        part: What the training changes, one of :data:`benchmarks.privileged.plan.FLIPS`.
        seed: Seed of the measurement.
        work: Folder of records.
    """
    directory = organisms.flipped(plan, seed, part)
    organisms.answers(directory, {"test": plan.about_new_names(FLIPPED)}, work, plan)
    return organisms.about(directory)


def answer(plan: Plan, name: str, seed: int, work: Path) -> Result:
    """Let an organism answer its scenarios, and return how many there are.

    Args:
        plan: The size of the measurement.
        name: The organism, ``A`` or ``B``.
        seed: Seed of the measurement.
        work: Folder of records.
    """
    asked = plan.scenarios(name, seed)
    organisms.answers(organisms.base_of(plan, name, seed), asked, work, plan)
    return {split: len(drawn) for split, drawn in asked.items()}


def _records(plan: Plan, about: str, seed: int, names: int, work: Path) -> explaining.Splits:
    folder = organisms.answers(organisms.base_of(plan, about, seed), plan.scenarios(about, seed), work, plan)
    return organisms.records_of(folder, plan, plan.labeled_names(about, seed)[:names])


def _adapter(seed: int, work: Path) -> Path:
    return work / f"{seed}-adapter.safetensors"


def measure_cell(cell: Cell, plan: Plan, work: Path) -> Result:
    """Measure a cell; the adapter that the flip test needs is kept.

    Args:
        cell: The cell.
        plan: The size of the measurement.
        work: Folder of records and adapters.
    """
    base = organisms.base_of(plan, cell.about if cell.system in TEXT_READERS else cell.system, cell.seed)
    kept = _adapter(cell.seed, work) if cell == Cell(cell.seed, A, A, plan.labeled) else None
    return explaining.measure(cell, plan, base, _records(plan, cell.about, cell.seed, cell.names, work), kept)


def flip(plan: Plan, part: str, seed: int, work: Path) -> Result:
    """Ask the adapter of A about the names whose bits were changed in A afterwards.

    Args:
        plan: The size of the measurement.
        part: What the training that flipped bits changed.
        seed: Seed of the measurement.
        work: Folder of records and adapters.
    """
    changed, before = organisms.flipped(plan, seed, part), _records(plan, A, seed, plan.labeled, work)
    folder = organisms.answers(changed, {"test": plan.about_new_names(FLIPPED)}, work, plan)
    after = {"test": read_records(str(folder / "test.json"))}
    bases = {"after": changed, "before": organisms.base_of(plan, A, seed)}
    return explaining.measure_flip(plan, bases, {"before": before, "after": after}, _adapter(seed, work))
