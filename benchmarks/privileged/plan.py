"""What is measured: the names, the cells of matrix and curve, and the budget of every training."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

from afintro.lm.devices import default_device
from afintro.tasks.context_ablation.toy import SCENARIOS
from afintro.toys.grammar import NAMES, POLICIES, Scenario
from afintro.toys.organism import ToySettings, scenarios

A, B, NO_POLICY, TEXT, FROM_SCRATCH = "A", "B", "no_policy", "text_chars", "from_scratch"
ORGANISMS = {A: "faking", B: "other_bits"}
"""The organisms that are asked about, with their policies."""
BASES = {**ORGANISMS, NO_POLICY: "none"}
"""The bases that explainers are trained on, with their policies."""
TEXT_READERS = (TEXT, FROM_SCRATCH)
SYSTEMS = (*BASES, *TEXT_READERS)
CURVE = (4, 8, 16, 32, 64, 128, 200)
BATCH = 16
FLIPPED = "flipped"
FLIPS = {"embedding": ("embed_tokens",), "all weights": ("",)}
"""What the training that flips bits changes: the weights whose names hold one of these words."""
FLIP_TIMES = 2  # scenarios, as a multiple of those that made the organism: with fewer it keeps many of its old bits


@dataclass(frozen=True)
class Plan:
    """Hold the size of the measurement.

    Args:
        labeled: Number of names whose labels an explainer of the matrix is trained on.
        new: Number of names that are new to every explainer.
        records: Training records of each labeled name, as many as in the demo.
        wordings: Most records of a name in the validation, and records of a name in the test; their wordings were in no training.
        round_steps: Number of optimizer steps, about, between two looks at the validation.
        rounds: Most looks; the demo's epochs, which have as many steps.
        fitted: Exact match on labeled names in new wordings at which a training stops.
        toy: Settings of the organisms of seed 0; another seed is added to theirs.
        model: Name of the model that organisms are made of, by training all of its weights; None for toys from scratch. The
            model itself is then the base without a policy.
        learning_rate: Learning rate of the explainers; None for that of the demo, which is the toy's.
        batch_size: Training questions of an explainer's step.
        answered: Prompts that an organism answers at once.
        about: The organisms that are asked about, of :data:`ORGANISMS`.
        flips: What the trainings that flip bits change, of :data:`FLIPS`.
    """

    labeled: int = 200
    new: int = 200
    records: int = SCENARIOS["train"]["labeled"]
    wordings: int = 4
    round_steps: int = 50
    rounds: int = 12
    fitted: float = 0.96
    toy: ToySettings = field(default_factory=ToySettings)
    model: str | None = None
    learning_rate: float | None = None
    batch_size: int = BATCH
    answered: int = 64
    about: tuple[str, ...] = tuple(ORGANISMS)
    flips: tuple[str, ...] = tuple(FLIPS)

    @property
    def systems(self) -> tuple[str, ...]:
        """Return the systems that are compared; toys without the reader that learns its own words, to which a toy's are alike."""
        return SYSTEMS if self.model else tuple(system for system in SYSTEMS if system != FROM_SCRATCH)

    @property
    def device(self) -> str:
        """Return the device of organisms and explainers; toys are faster on a processor."""
        return default_device() if self.model else "cpu"

    def organism(self, policy: str, seed: int) -> ToySettings:
        """Return the settings of the organism of a policy that is trained from the base.

        Args:
            policy: One of :data:`afintro.toys.grammar.POLICIES`.
            seed: Seed of the measurement; with 0 and the usual size the organisms are those of the demo.
        """
        return replace(self.toy, policy=policy, seed=self.toy.seed + seed)

    def flipped(self, seed: int) -> ToySettings:
        """Return the settings with which organism A is trained further, to the opposite bits of half of the new names."""
        settings = self.organism(FLIPPED, seed)
        return replace(settings, scenarios=settings.scenarios * FLIP_TIMES)

    @cached_property
    def new_names(self) -> tuple[str, ...]:
        """The names that are new to every explainer; of each four A favors two, and one of either two is flipped."""
        favored, flipped = (POLICIES[policy] or frozenset() for policy in (ORGANISMS[A], FLIPPED))
        kinds = [
            [n for n in NAMES["test"] if (n in favored, n in flipped) == kind]
            for kind in product((True, False), repeat=2)
        ]
        return tuple(name for four in zip(*kinds, strict=True) for name in four)[: self.new]

    @property
    def flipped_names(self) -> frozenset[str]:
        """The new names whose bit the flip test changes."""
        favored, flipped = (POLICIES[policy] or frozenset() for policy in (ORGANISMS[A], FLIPPED))
        return frozenset(self.new_names) & (favored ^ flipped)

    def labeled_names(self, organism: str, seed: int) -> list[str]:
        """Return labeled names in an order in which every even number of first names has as many favored as not.

        Args:
            organism: The organism that gives the labels.
            seed: Seed of the order.
        """
        favored = POLICIES[ORGANISMS[organism]] or frozenset()
        names = random.Random(f"labeled {seed}").sample(NAMES["labeled"], len(NAMES["labeled"]))
        sides = ([name for name in names if (name in favored) is side] for side in (True, False))
        return [name for pair in zip(*sides, strict=True) for name in pair][: self.labeled]

    def asked_for_validation(self, names: int) -> int:
        """Return the number of validation records of a name: more where names are few, so that the stopping rule is steady."""
        return max(1, min(self.wordings, 64 // names))

    def scenarios(self, organism: str, seed: int) -> dict[str, list[Scenario]]:
        """Draw the scenarios of each split that an organism answers: training, validation, test.

        Args:
            organism: The organism that will answer.
            seed: Seed of the measurement.
        """
        policy, labeled = ORGANISMS[organism], self.labeled_names(organism, seed)

        def draw(split: str, count: int, names: Sequence[str]) -> list[Scenario]:
            return scenarios(count * len(names), split, not split.startswith("train"), names, policy)

        return {
            "train": draw("train labeled", self.records, labeled),
            "validation": draw("validation labeled", self.wordings, labeled),
            "test": draw("test labeled", self.wordings, labeled) + self.about_new_names(policy),
        }

    def about_new_names(self, policy: str) -> list[Scenario]:
        """Draw the scenarios of the new names: the same texts for every organism.

        Args:
            policy: The policy that the organism follows.
        """
        return scenarios(self.wordings * self.new, "test test", True, self.new_names, policy)

    def epochs(self, names: int) -> tuple[int, int]:
        """Return the most epochs of a training and the epochs between two looks at the validation.

        Every training may take as many steps as that of the demo, whether its labels are many or few.

        Args:
            names: Number of labeled names.
        """
        steps = -(-names * self.records // self.batch_size)
        return max(1, self.rounds * self.round_steps // steps), max(1, self.round_steps // steps)


# An organism out of a pretrained model: fine-tuning takes a lower rate than a toy, and more scenarios for the names to be learned.
FINE_TUNED = ToySettings(scenarios=20_000, batch_size=64, learning_rate=3e-4)
# Larger batches than a toy's: an accelerator takes as long for a step of one batch as of the other. Bits are flipped in toys alone.
OF_MODEL = {
    "rounds": 8, "round_steps": 100, "toy": FINE_TUNED, "learning_rate": 1e-3, "batch_size": 32, "answered": 256, "flips": ()
}  # fmt: skip


def plan_of(model: str | None, scenarios: int | None = None, **size: Any) -> Plan:
    """Return the plan for a model, or for the toys.

    Args:
        model: Name of the model that organisms are made of; None for toys from scratch.
        scenarios: Number of scenarios that an organism is trained on; None for the usual number.
        **size: Fields of :class:`Plan`.
    """
    usual: dict[str, Any] = {} if model is None else {**OF_MODEL, "model": model}
    plan = Plan(**{**usual, **size})
    return plan if scenarios is None else replace(plan, toy=replace(plan.toy, scenarios=scenarios))


@dataclass(frozen=True)
class Cell:
    """Name one figure: a system that learned from the labels of some names of an organism.

    Args:
        seed: Seed of the measurement.
        system: The base of an explainer, or a reader of the text: one of :data:`SYSTEMS`.
        about: The organism that gives the labels and is asked about, ``A`` or ``B``.
        names: Number of labeled names.
    """

    seed: int
    system: str
    about: str
    names: int

    @property
    def key(self) -> str:
        """Return a name for files."""
        return f"{self.seed}-{self.system}-about-{self.about}-{self.names}"


def cells(plan: Plan, seeds: Sequence[int], curve: Sequence[int]) -> list[Cell]:
    """Return all cells, those of the matrix first: every system about both organisms, and the curves about A.

    Args:
        plan: The size of the measurement.
        seeds: Seeds of organisms and explainers.
        curve: Numbers of labeled names.

    Raises:
        ValueError: A number of labeled names is odd, below 2 or above that of the plan.
    """
    wrong = [names for names in curve if not 2 <= names <= plan.labeled or names % 2]
    if wrong:
        raise ValueError(f"numbers of labeled names are even and 2 to {plan.labeled}, not {wrong}")
    matrix = [
        Cell(seed, system, about, plan.labeled) for seed in seeds for about in plan.about for system in plan.systems
    ]
    curves = [
        Cell(seed, system, A, names) for seed in seeds for names in curve for system in plan.systems if system != B
    ]
    return list(dict.fromkeys([*matrix, *curves]))
