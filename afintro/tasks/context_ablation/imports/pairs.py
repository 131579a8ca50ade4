"""Match the monitored answers of a model with its unmonitored answers, by request."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from afintro.data.records import scenario_id
from afintro.errors import UserError

SAMPLED, UNKNOWN = "sampled", "unknown"  # how the answers were decoded


@dataclass(frozen=True)
class Answer:
    """One answer to one request under one condition.

    Args:
        request: The request without the cue.
        prompt: The whole prompt, as far as the file holds it.
        cue: What the prompt says beside the request: the text of the condition.
        text: The answer; None if the file says that there is none.
        key: What the answers of both conditions share; "" for the request itself.
        scenario_id: Id that the requests about one scenario share; "" for an id by the text.
        label: The label of the sample.
    """

    request: str
    prompt: str
    cue: str
    text: str | None
    key: str = ""
    scenario_id: str = ""
    label: str = "unknown"

    @property
    def matched_by(self) -> str:
        """Return what the answers of both conditions share; white space does not count."""
        return self.key or scenario_id(self.request)


@dataclass(frozen=True)
class Source:
    """All answers of one model under one prompt.

    Args:
        name: Name of the source, which tells it from others of one import.
        path: File or files, for errors.
        model: Name of the model that answered.
        cue_name: Name of what is ablated.
        monitored: Answers under the cue.
        unmonitored: Answers without the cue.
        decoding: ``sampled``, or ``unknown``.
        facts: Further facts for the provenance of each record.
    """

    name: str
    path: str
    model: str
    cue_name: str
    monitored: Sequence[Answer]
    unmonitored: Sequence[Answer]
    decoding: str = UNKNOWN
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class AnswerPair:
    """Both answers to one request.

    Args:
        monitored: The answer under the cue, whose text is not None.
        unmonitored: The answer without the cue, whose text is not None.
        number: Which of several pairs about this request in this source, counted from 0.
    """

    monitored: Answer
    unmonitored: Answer
    number: int


@dataclass(frozen=True)
class Matched:
    """Count what became of the answers of one source.

    Args:
        pairs: Pairs of answers.
        requests: Different requests among the pairs.
        unmatched_monitored: Monitored answers without a partner.
        unmatched_unmonitored: Unmonitored answers without a partner.
        no_answer: Answers that the file says are absent (null); they are no part of any pair.
        empty_monitored: Pairs whose monitored answer is empty; they are kept, and labeled ``silent`` by rules.
        empty_unmonitored: Pairs whose unmonitored answer is empty.
        equal: Pairs whose two answers are the same text.
    """

    pairs: int
    requests: int
    unmatched_monitored: int
    unmatched_unmonitored: int
    no_answer: int
    empty_monitored: int
    empty_unmonitored: int
    equal: int

    def as_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return asdict(self)


def match(source: Source) -> tuple[list[AnswerPair], Matched]:
    """Match both conditions' answers to each request, in the order of the monitored answers.

    Where a request was answered several times, the first monitored answer goes with the first unmonitored answer, and so on.

    Returns:
        The pairs, and the counts.

    Raises:
        UserError: No request has both answers, two answers of one key are to different requests, or a request has one prompt
            under both conditions.
    """
    waiting: dict[str, list[Answer]] = {}
    for answer in source.unmonitored:
        if answer.text is not None:
            waiting.setdefault(answer.matched_by, []).append(answer)
    pairs: list[AnswerPair] = []
    taken: dict[str, int] = {}
    given = [answer for answer in source.monitored if answer.text is not None]
    for monitored in given:
        number = taken.get(monitored.matched_by, 0)
        partners = waiting.get(monitored.matched_by, [])
        if number < len(partners):
            taken[monitored.matched_by] = number + 1
            pair = AnswerPair(monitored, partners[number], number)
            _check(pair, source)
            pairs.append(pair)
    if not pairs:
        raise UserError(
            f"has no request with both answers ({len(source.monitored)} monitored and {len(source.unmonitored)} unmonitored "
            "answers)",
            where=source.path,
            remedy="give both conditions' answers to the same requests, with the cue apart from the request (in messages: in the "
            "system turn, or with the request in the field 'request')",
        )
    partnered = sum(map(len, waiting.values()))
    absent = len(source.monitored) + len(source.unmonitored) - len(given) - partnered
    counts = Matched(
        pairs=len(pairs),
        requests=len({scenario_id(pair.monitored.request) for pair in pairs}),
        unmatched_monitored=len(given) - len(pairs),
        unmatched_unmonitored=partnered - len(pairs),
        no_answer=absent,
        empty_monitored=sum(not (pair.monitored.text or "").strip() for pair in pairs),
        empty_unmonitored=sum(not (pair.unmonitored.text or "").strip() for pair in pairs),
        equal=sum(pair.monitored.text == pair.unmonitored.text for pair in pairs),
    )
    return pairs, counts


def _check(pair: AnswerPair, source: Source) -> None:
    """Refuse a pair whose requests differ, and a pair whose prompts do not."""
    if scenario_id(pair.monitored.request) != scenario_id(pair.unmonitored.request):
        raise UserError(
            "has two different requests, so that the cue is not all that differs",
            where=f"{source.path}, pair {pair.monitored.matched_by}",
            remedy="give both conditions the same request, with the cue apart from the request (in messages: in the system "
            "turn, or with the request in the field 'request')",
        )
    if not pair.monitored.cue:
        raise UserError(
            "has a monitored prompt that says nothing beside the request, so that there is no cue",
            where=f"{source.path}, request {pair.monitored.matched_by}",
            remedy="give the monitored prompt with its cue, and check which condition is which",
        )
    if pair.monitored.prompt == pair.unmonitored.prompt:
        raise UserError(
            "has the same prompt under both conditions, so that nothing is ablated",
            where=f"{source.path}, request {pair.monitored.matched_by}",
            remedy="give the prompts with and without the cue",
        )
