"""Functional score of a description: does it tell the texts that a feature fires on from those it is silent on?"""

from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.metrics import roc_auc_score

from afintro.evaluation.judges import ACTIVATES, Judge


@dataclass(frozen=True)
class Reading:
    """A description of a feature, and texts to try it on.

    Args:
        description: What the feature is said to respond to.
        firing: Texts that it fires on.
        silent: Texts that it does not fire on.
    """

    description: str
    firing: tuple[str, ...]
    silent: tuple[str, ...]


def functional_auroc(items: Sequence[Reading], reader: Judge) -> list[float | None]:
    """How well a reader that knows the description alone ranks firing texts above silent ones.

    Detection scoring (Paulo et al. 2024, arXiv:2410.13928), with graded answers in place of yes or no; it asks of
    whole texts what Bills et al. 2023 ("Language models can explain neurons in language models") simulate for every
    token. All texts of all items go to the reader in one call.

    Args:
        items: Descriptions with their texts.
        reader: Scores ``(description, text)`` under :data:`~afintro.evaluation.judges.ACTIVATES`.

    Returns:
        AUROC in 0..1 for each item: 0.5 is chance, which an empty description gets without being asked. Texts that the
        reader gave no score are left out; None where one side has no text left.
    """
    scores = iter(reader.score([(item.description, text) for item in items for text in _asked(item)], ACTIVATES))
    found: list[float | None] = []
    for item in items:
        fires = [True] * len(item.firing) + [False] * len(item.silent)
        said: list[float | None] = [next(scores) for _ in _asked(item)] or [0.5] * len(fires)
        found.append(_auroc([(score, truth) for score, truth in zip(said, fires, strict=True) if score is not None]))
    return found


def _asked(item: Reading) -> tuple[str, ...]:
    """Nothing is asked where the answer is known: about an empty description, or with texts of one side alone."""
    worth = item.description.strip() and item.firing and item.silent
    return (*item.firing, *item.silent) if worth else ()


def _auroc(scored: Sequence[tuple[float, bool]]) -> float | None:
    truths = {truth for _, truth in scored}
    if len(truths) < 2:
        return None
    return float(roc_auc_score([truth for _, truth in scored], [score for score, _ in scored]))
