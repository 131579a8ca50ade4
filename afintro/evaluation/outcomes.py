"""What one teacher-forced pass says of examples, and how the processes of a run put together what each found."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from afintro.data.batch import Example
from afintro.data.rows import sizes_of
from afintro.evaluation.metrics import Prediction, unanswered
from afintro.ranks import Ranks


@dataclass(frozen=True)
class Outcome:
    """What one teacher-forced pass says of one example.

    Args:
        example: The example.
        nll: Mean negative log-likelihood of its answer tokens, in nats.
        exact: Whether the arg-max at every answer position is the expected token, end of sequence included; equivalent
            to: the greedy continuation is the expected answer.
        p_changed: Probability of the "changed" branch against the "unchanged" one; None without branches.
    """

    example: Example
    nll: float
    exact: bool
    p_changed: float | None

    def prediction(self, predicted: str | None) -> Prediction:
        """What was found, with the answer written out; None where it was not."""
        item = unanswered(self.example)
        return replace(item, predicted=predicted, exact_match=self.exact, p_changed=self.p_changed)


def answer_limit(examples: Sequence[Example]) -> int:
    """How many tokens an answer is followed for: a little past the longest right one, as no longer one can be right."""
    return int(sizes_of(examples)[:, 1].max(initial=0)) + 8


def gathered(outcomes: Sequence[Outcome], examples: Sequence[Example], ranks: Ranks) -> list[Outcome]:
    """What all processes found, every example once, in the order in which one process would evaluate them."""
    if ranks.size == 1:
        return list(outcomes)
    rows = ranks.gathered([(own.example.uid, own.nll, own.exact, own.p_changed) for own in outcomes])
    found = {uid: (nll, exact, p_changed) for uid, nll, exact, p_changed in rows}
    return [Outcome(item, *found[item.uid]) for item in sorted(examples, key=len) if item.uid in found]
