"""Planted steering effects, whose cause is known: what the rivals of a steering explainer must find."""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np

from afintro.data.batch import Example
from afintro.evaluation.intervals import Estimate
from afintro.evaluation.metrics import Prediction, lead, score, statistics, text_prediction
from afintro.evaluation.statistic import Scores
from afintro.tasks.steering.claims import METRIC, over_directions, rival_warnings
from afintro.tasks.steering.directions import Direction
from afintro.tasks.steering.rivals import every_baseline
from benchmarks.planted.leaks import CHANGED, QUESTION, UNCHANGED, WORDS, example
from benchmarks.planted.systems import ACCURACY, Finding

WIDTH, LAYER = 16, 1
DIRECTIONS, COPIES = 24, 3
STRENGTHS = (1.0, 2.0)


@dataclass(frozen=True)
class Asked:
    """Hold what the verdict on one item may depend on.

    Args:
        named: Whether the text names a nurse, and not a student.
        bit: A random bit of the direction.
        side: Whether the direction has a positive first component.
        coin: A random bit of the item, which nothing tells.
    """

    named: bool
    bit: bool
    side: bool
    coin: bool


CAUSES: dict[str, Callable[[Asked], bool]] = {
    "the vector alone": lambda asked: asked.side,
    "the text alone": lambda asked: asked.named,
    "the identity of the direction": lambda asked: asked.bit,
    "direction times text": lambda asked: asked.bit != asked.named,
    "vector times text": lambda asked: asked.side != asked.named,
}
"""What the planted explainer reads: the verdict is this function of the item."""

CARRIES_OVER = ("the vector alone", "the text alone", "vector times text")
"""The causes that are the same for directions that nobody was taught."""


def nothing_tells(asked: Asked) -> bool:
    """Return a verdict that no reader of vector and text can know."""
    return asked.coin


@dataclass(frozen=True)
class Planted:
    """Hold items with a planted cause, and what the evaluation says of an explainer that knows their answers.

    Args:
        answered: The explainer's answers: right in 97 % of the items.
        rivals: Answers by rival.
    """

    answered: list[Prediction]
    rivals: dict[str, list[Prediction]]

    def lead(self, without: Collection[str] = ()) -> tuple[Estimate, str]:
        """Estimate the explainer's lead in twin accuracy over the best rival.

        Args:
            without: Rivals that are taken away.
        """
        rivals = {name: _scores(said) for name, said in self.rivals.items() if name not in without}
        found = lead(_scores(self.answered), rivals, METRIC)
        assert found is not None
        return found

    def reached(self, name: str) -> Estimate:
        """Estimate the twin accuracy of a rival."""
        return score(_scores(self.rivals[name]))[METRIC]

    @property
    def finding(self) -> Finding:
        """Return what the evaluation says, with the warnings that a run gives."""
        best, name = self.lead()
        leads = {}
        for rival in self.rivals:
            single = lead(_scores(self.answered), {rival: _scores(self.rivals[rival])}, METRIC)
            if single is not None:
                leads[f"lead/{METRIC}/{rival}"] = single[0].as_json()
        reached = self.reached(name).value
        assert reached is not None
        return Finding(self.explained, name, reached, best, tuple(rival_warnings(leads, "unseen_direction")))

    @property
    def explained(self) -> Estimate:
        """Estimate the explainer's twin accuracy."""
        return score(_scores(self.answered))[METRIC]


def planted(seed: int, taught: int = 600, asked: int = 300) -> dict[str, Finding]:
    """Evaluate explainers that read one planted cause, of known and of unseen directions, by what they read.

    Args:
        seed: Seed of directions, prompts and errors.
        taught: Number of training items.
        asked: Number of items.
    """
    rows = [(cause, False) for cause in CAUSES] + [(cause, True) for cause in CARRIES_OVER]
    found = {}
    for cause, unseen in rows:
        of = "unseen directions" if unseen else "known directions"
        found[f"steering, {of}: reads {cause}"] = planted_steering(CAUSES[cause], taught, asked, seed, unseen).finding
    found["steering: knows what nothing tells"] = planted_steering(nothing_tells, taught, asked, seed, False).finding
    return found


def _scores(predictions: list[Prediction]) -> Scores:
    return over_directions(statistics(predictions, QUESTION), predictions)


def planted_steering(cause: Callable[[Asked], bool], taught: int, asked: int, seed: int, unseen: bool) -> Planted:
    """Make items whose verdict has a planted cause, and let all rivals learn and answer.

    Args:
        cause: The verdict of an item.
        taught: Number of training items.
        asked: Number of items, each a scenario of its own.
        seed: Seed of directions, prompts and errors.
        unseen: Whether the items are of directions that are not trained on; else of those that are, as other jittered copies.
    """
    rng = random.Random(f"{seed} {taught} {asked}")
    directions, facts = _directions(seed)
    originals = sorted({name.partition("~")[0] for name in directions})
    known, new = originals[: DIRECTIONS // 2], originals[DIRECTIONS // 2 :]
    train = [_item(rng, f"train{row:05d}", known, range(COPIES - 1), facts, cause) for row in range(taught)]
    copies = range(COPIES) if unseen else range(COPIES - 1, COPIES)
    items = [_item(rng, f"item{row:05d}", new if unseen else known, copies, facts, cause) for row in range(asked)]
    answered = [_answer(item, rng.random() < ACCURACY) for item in items]
    return Planted(answered, every_baseline(train, items, directions))


def _directions(seed: int) -> tuple[dict[str, Direction], dict[str, tuple[bool, bool]]]:
    drawn = np.random.default_rng(seed)
    directions, facts = {}, {}
    for number in range(DIRECTIONS):
        name, side = f"d{number:02d}", number % 2 == 0
        vector = drawn.standard_normal(WIDTH)
        vector[0] = abs(vector[0]) + 1.5 if side else -abs(vector[0]) - 1.5
        facts[name] = (number // 2 % 2 == 0, side)
        for copy in range(COPIES):
            jittered = vector + 0.3 * drawn.standard_normal(WIDTH)
            label = f"{name}~{copy}"
            directions[label] = Direction(label, {LAYER: jittered.astype(np.float32)}, metadata={"family": name})
    return directions, facts


def _item(
    rng: random.Random,
    uid: str,
    names: list[str],
    copies: range,
    facts: dict[str, tuple[bool, bool]],
    cause: Callable[[Asked], bool],
) -> Example:
    name, named = rng.choice(names), rng.random() < 0.5
    asked = Asked(named, *facts[name], rng.random() < 0.5)
    words = rng.choices(WORDS, k=6)
    words.insert(rng.randint(0, 6), "nurse" if named else "student")
    made = example(uid, uid, " ".join(words), cause(asked))
    notes = {"direction": f"{name}~{rng.choice(copies)}", "layer": LAYER, "alpha": rng.choice(STRENGTHS)}
    return replace(made, notes=notes, group=name, twins=f"t{uid}")


def _answer(item: Example, right: bool) -> Prediction:
    wrong = UNCHANGED if item.answer == CHANGED else CHANGED
    return text_prediction(item, item.answer if right else wrong)
