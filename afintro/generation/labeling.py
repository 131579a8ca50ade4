"""Who labels the outputs of a run, and who labels them once more."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from afintro.generation.behavior import Behavior, BehaviorLabeler, RuleLabeler
from afintro.generation.judge_labeler import NO_REPLY, UNPARSED
from afintro.generation.reasoning import Reply
from afintro.generation.untold import Labels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labeling:
    """The labelers of a run.

    Args:
        first: Gives the labels.
        second: Labels once more, and the summary says how well both agree; None without.
    """

    first: BehaviorLabeler
    second: BehaviorLabeler | None = None

    def as_json(self, whole: bool = True) -> dict[str, str | bool | None]:
        """Return the labelers' names, as a summary holds them.

        Args:
            whole: Whether each prompt to a judge got a reply; what an endpoint failed to answer is asked again another time.
        """
        names: dict[str, str | bool | None] = {"first": self.first.name}
        names |= {"second": None if self.second is None else self.second.name}
        return names if whole else {**names, "whole": False}


RULES = Labeling(RuleLabeler())


def told_by(summary: Mapping[str, object]) -> object:
    """Return who labeled the records of a summary; rules, where the summary does not say, and a warning that they are older."""
    if "labeler" not in summary:
        log.warning(
            "the records were labeled by the rules of an earlier version, which knew fewer languages and forms, and are not "
            "labeled again; another --labeler, and then --labeler rules, gives the labels of this version"
        )
    return summary.get("labeler", RULES.as_json())


class Lookup:
    """Label all replies of a run at once, and look the labels up.

    Args:
        labeler: Who labels.
        replies: All replies; equal replies are labeled once.
    """

    def __init__(self, labeler: BehaviorLabeler, replies: Sequence[Reply]) -> None:
        self._labels = dict(zip(replies, label_distinct(labeler, replies), strict=True))
        self.whole = all(behavior.rule != NO_REPLY for behavior in self._labels.values())

    def __call__(self, reply: Reply) -> Behavior:
        """Return the label of one of the replies."""
        return self._labels[reply]

    def opinions(self, replies: Sequence[Reply]) -> Labels:
        """Return the labels of some replies, see :func:`opinions`."""
        behaviors = [self(reply) for reply in replies]
        return opinions([one.label for one in behaviors], [one.rule for one in behaviors])


def label_distinct(labeler: BehaviorLabeler, replies: Sequence[Reply]) -> list[Behavior]:
    """Label replies; equal replies are labeled once."""
    distinct = list(dict.fromkeys(replies))
    labels = dict(zip(distinct, labeler.label_all(distinct), strict=True))
    return [labels[reply] for reply in replies]


def opinions(labels: Labels, rules: Sequence[str | None]) -> Labels:
    """Return the labels that a labeler means; None where a judge gave no usable reply, which is no opinion."""
    return [None if rule in (NO_REPLY, UNPARSED) else label for label, rule in zip(labels, rules, strict=True)]


def with_labeler(provenance: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the provenance of a record that says who labeled it; of rules it says nothing, as in files of before."""
    own = {} if name == RULES.first.name else {"labeler": name}
    return {key: value for key, value in provenance.items() if key != "labeler"} | own


def labeler_warnings(
    trained: Iterable[Mapping[str, Any]], evaluated: Iterable[Mapping[str, Any]], where: str
) -> list[str]:
    """Warn where evaluated records were labeled by another labeler than training records.

    Args:
        trained: The provenance of each training record.
        evaluated: The provenance of each evaluated record.
        where: The file of the evaluated records.
    """
    by = [sorted({str(one.get("labeler", RULES.first.name)) for one in side}) for side in (trained, evaluated)]
    if by[0] == by[1]:
        return []
    return [
        f"{where} was labeled by {', '.join(by[1])}, training by {', '.join(by[0])}: their labels do not mean the same"
    ]
