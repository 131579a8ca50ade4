"""Score descriptions by what they predict: which texts activate the feature, and which do not?"""

from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.metrics import roc_auc_score

from afintro.evaluation.judges import ACTIVATES, Judge

CHANCE = 0.5


@dataclass(frozen=True)
class Detection:
    """A description of a feature, and texts to try the description on.

    Args:
        description: What the feature is said to respond to.
        activating: Texts that activate the feature.
        non_activating: Texts that do not activate the feature.
    """

    description: str
    activating: tuple[str, ...]
    non_activating: tuple[str, ...]

    @property
    def is_worth_asking(self) -> bool:
        """Whether the score is open: not for an empty description, nor with texts of one kind alone."""
        return bool(self.description.strip() and self.activating and self.non_activating)


def functional_auroc(items: Sequence[Detection], scorer: Judge) -> list[float | None]:
    """Measure how well a judge that knows the description alone ranks activating texts above non-activating texts.

    This is detection scoring (Paulo et al. 2024, arXiv:2410.13928) with graded answers in place of yes or no. It asks of
    whole texts what Bills et al. 2023 ("Language models can explain neurons in language models") simulate for every
    token. All texts of all items go to the judge in one call.

    Args:
        items: Descriptions with their texts.
        scorer: Judge that scores ``(description, text)`` under :data:`~afintro.evaluation.judges.ACTIVATES`.

    Returns:
        AUROC in 0..1 for each item. An empty description gets 0.5, which is chance, without being asked about. Texts that
        the judge gave no score are left out. The score of an item is None where no activating text or no non-activating
        text is left.
    """
    asked = [
        (index, text, active)
        for index, item in enumerate(items)
        if item.is_worth_asking
        for texts, active in ((item.activating, True), (item.non_activating, False))
        for text in texts
    ]
    scored: dict[int, list[tuple[float, bool]]] = {}
    scores = scorer.score([(items[index].description, text) for index, text, _ in asked], ACTIVATES)
    for (index, _, active), score in zip(asked, scores, strict=True):
        if score is not None:
            scored.setdefault(index, []).append((score, active))
    return [_auroc(item, scored.get(index, [])) for index, item in enumerate(items)]


def _auroc(item: Detection, scored: Sequence[tuple[float, bool]]) -> float | None:
    if item.activating and item.non_activating and not item.description.strip():
        return CHANCE
    truths = [active for _, active in scored]
    if len(set(truths)) < 2:
        return None
    return float(roc_auc_score(truths, [score for score, _ in scored]))
