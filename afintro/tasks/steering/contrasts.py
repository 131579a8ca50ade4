"""Contrasts of two kinds of conversation, which directions are fitted to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from afintro.data.cue import MONITORED_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.records import scenario_id
from afintro.data.samples import Sample
from afintro.data.splits import split_by_scenario
from afintro.data.text import Message, chat
from afintro.errors import UserError

LEAST_TRAINING = 2  # of each class: one point has no spread


@dataclass(frozen=True)
class Contrast:
    """Two classes of conversation; a direction points from the first to the second.

    Args:
        classes: Name of class 0 and of class 1.
        conversations: The conversations of each class; the model reads each up to where its answer begins.
        scenarios: The scenario of each conversation; conversations of one scenario are never split.
    """

    classes: tuple[str, str]
    conversations: tuple[Sequence[Sequence[Message]], Sequence[Sequence[Message]]]
    scenarios: tuple[Sequence[str], Sequence[str]]

    @property
    def name(self) -> str:
        """Return the name of what the direction points to: class 1."""
        return self.classes[1]


def monitoring_contrast(samples: Sequence[Sample]) -> Contrast:
    """Contrast every text without the monitoring cue (class 1) with the same text under the cue (class 0)."""
    scenarios = [sample.scenario_id or scenario_id(sample.text) for sample in samples]
    monitored, unmonitored = (
        [chat(cue, sample.text) for sample in samples] for cue in (MONITORED_SYSTEM, UNMONITORED_SYSTEM)
    )
    return Contrast(("monitored", "unmonitored"), (monitored, unmonitored), (scenarios, scenarios))


def label_contrast(samples: Sequence[Sample]) -> tuple[Contrast, dict[str, int]]:
    """Contrast texts labeled ``alignment_faking`` (class 1) with texts labeled ``aligned`` (class 0), all under the cue.

    Returns:
        The contrast, and the number of samples with each other label.
    """
    classes = ("aligned", "alignment_faking")
    sides = [[sample for sample in samples if sample.label == label] for label in classes]
    zero, one = ([chat(MONITORED_SYSTEM, sample.text) for sample in side] for side in sides)
    ids0, ids1 = ([sample.scenario_id or scenario_id(sample.text) for sample in side] for side in sides)
    others = Counter(sample.label for sample in samples if sample.label not in classes)
    return Contrast(classes, (zero, one), (ids0, ids1)), dict(sorted(others.items()))


@dataclass(frozen=True)
class Parts:
    """The conversations of each class that a direction is fitted to, and those that it is tested on.

    Args:
        train: Indices into class 0 and into class 1.
        heldout: Indices into class 0 and into class 1.
    """

    train: tuple[list[int], list[int]]
    heldout: tuple[list[int], list[int]]


def split_contrast(contrast: Contrast, holdout: float, seed: int) -> Parts:
    """Split both classes by scenario in the same way.

    Args:
        contrast: What to split.
        holdout: Share of the scenarios that is kept for testing, between 0 and 1.
        seed: Seed of the draw.

    Raises:
        UserError: A class has fewer than two conversations to fit, or none to test.
    """
    splits = [split_by_scenario(scenarios, holdout, seed) for scenarios in contrast.scenarios]
    for name, (train, heldout) in zip(contrast.classes, splits, strict=True):
        if len(train) < LEAST_TRAINING or not heldout:
            remedy = f"give more samples, or another --holdout or --seed ({LEAST_TRAINING} and 1 are needed)"
            if not train and not heldout:
                remedy = "give samples of both labels, or say with --label_names which labels mean them; "
                remedy += "--contrast monitoring needs no labels"
            raise UserError(
                f"class {name!r} has {len(train)} conversations to fit and {len(heldout)} held out, "
                f"of {len(train) + len(heldout)}",
                where="split by scenario",
                remedy=remedy,
            )
    (train0, heldout0), (train1, heldout1) = splits
    return Parts((train0, train1), (heldout0, heldout1))
