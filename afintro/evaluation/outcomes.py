"""Outcomes of one teacher-forced pass, and how the processes of a run combine their outcomes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from afintro.data.batch import Example, sizes_of
from afintro.evaluation.metrics import Prediction, unanswered
from afintro.ranks import Ranks


@dataclass(frozen=True)
class Outcome:
    """Hold what one teacher-forced pass says about one example.

    Args:
        example: The example.
        nll: Mean negative log-likelihood of the answer tokens, in nats.
        exact: Whether the arg-max at every answer position is the expected token, end of sequence included. This is true
            if and only if the greedy continuation is the expected answer, or begins with an expected answer that is cut.
        p_changed: Probability of the "changed" branch against the "unchanged" branch; None without branches.
    """

    example: Example
    nll: float
    exact: bool
    p_changed: float | None

    def prediction(self, predicted: str | None, truncated: bool | None = None) -> Prediction:
        """Make a prediction of the outcome.

        Args:
            predicted: The generated answer; None if no answer was generated.
            truncated: Whether the limit of tokens ended the answer; None if unknown.
        """
        item = unanswered(self.example)
        return replace(item, predicted=predicted, exact_match=self.exact, p_changed=self.p_changed, truncated=truncated)


def answer_limit(examples: Sequence[Example]) -> int:
    """Return the number of tokens to generate: a little more than the longest expected answer has.

    A longer answer cannot be right.
    """
    return int(sizes_of(examples)[:, 1].max(initial=0)) + 8


def gathered(outcomes: Sequence[Outcome], examples: Sequence[Example], ranks: Ranks) -> list[Outcome]:
    """Combine the outcomes of all processes, every example once, in the order of a run with one process.

    Args:
        outcomes: The outcomes of this process.
        examples: The examples that all processes share.
        ranks: The processes of the run.
    """
    if ranks.size == 1:
        return list(outcomes)
    rows = ranks.gathered([(mine.example.uid, mine.nll, mine.exact, mine.p_changed) for mine in outcomes])
    measured = {uid: (nll, exact, p_changed) for uid, nll, exact, p_changed in rows}
    return [Outcome(item, *measured[item.uid]) for item in sorted(examples, key=len) if item.uid in measured]
