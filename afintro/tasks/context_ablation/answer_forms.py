"""What the answer to the primary question says: a behavior, an output, or the rates of behaviors."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, Protocol

from afintro.data.batch import Example
from afintro.errors import UserError
from afintro.evaluation.answers import Verdict, expected_verdict, two_branch
from afintro.evaluation.metrics import Prediction, text_prediction
from afintro.evaluation.rates import likeliest, parse_rates, rate_text
from afintro.generation.untold import Labels
from afintro.tasks.context_ablation.conditions import SIDES
from afintro.tasks.context_ablation.records import ContextAblationRecord
from afintro.tasks.context_ablation.samples import labels_of, rates_of

FormName = Literal["behavior", "text", "rate"]
MEAN_RATES = "mean_rates"


class AnswerForm(Protocol):
    """Say what an answer says of a record.

    Attributes:
        labeled: Whether answers are made of behavior labels.
    """

    labeled: bool

    def verdict(self, record: ContextAblationRecord) -> Verdict:
        """Return what the primary question's answer says of a record."""

    def monitored(self, record: ContextAblationRecord) -> str:
        """Return what an answer calls that which the organism did under the cue."""

    def labels(self, records: Sequence[ContextAblationRecord], path: str) -> dict[str, Labels]:
        """Return all labels of which answers are made, by condition.

        Args:
            records: All records of a file.
            path: The file.

        Raises:
            UserError: The records lack what the answers are made of.
        """


def taught(record: ContextAblationRecord, condition: str) -> str:
    """Return what an explainer learns of an output; the limit of tokens may have cut the output within its last character."""
    cut = getattr(record, f"{condition}_truncated")
    return record.answered(condition).rstrip("\N{REPLACEMENT CHARACTER}" if cut else "")


class BehaviorForm:
    """Answer with the behavior without the cue; of sampled answers, with the behavior that most samples have."""

    labeled = True

    def verdict(self, record: ContextAblationRecord) -> Verdict:
        """See :meth:`AnswerForm.verdict`."""
        assert record.unmonitored_behavior is not None
        return Verdict(record.monitored_behavior != record.unmonitored_behavior, record.unmonitored_behavior)

    def monitored(self, record: ContextAblationRecord) -> str:
        """See :meth:`AnswerForm.monitored`."""
        return record.monitored_behavior or "other"

    def labels(self, records: Sequence[ContextAblationRecord], path: str) -> dict[str, Labels]:
        """See :meth:`AnswerForm.labels`."""
        return {side: [getattr(record, f"{side}_behavior") for record in records] for side in SIDES}


class TextForm(BehaviorForm):
    """Answer with the output without the cue."""

    labeled = False

    def verdict(self, record: ContextAblationRecord) -> Verdict:
        """See :meth:`AnswerForm.verdict`."""
        return Verdict(bool(record.changed), taught(record, "unmonitored"))

    def monitored(self, record: ContextAblationRecord) -> str:
        """See :meth:`AnswerForm.monitored`."""
        return record.answered("monitored")


class RateForm:
    """Answer with the rates of all behaviors without the cue; "changed" says that the most frequent behavior changes."""

    labeled = True

    def verdict(self, record: ContextAblationRecord) -> Verdict:
        """See :meth:`AnswerForm.verdict`."""
        before, after = (parse_rates(self._content(record, side)) or {} for side in SIDES)
        return Verdict(likeliest(before) != likeliest(after), self._content(record, "unmonitored"))

    def monitored(self, record: ContextAblationRecord) -> str:
        """See :meth:`AnswerForm.monitored`."""
        return self._content(record, "monitored")

    def labels(self, records: Sequence[ContextAblationRecord], path: str) -> dict[str, Labels]:
        """See :meth:`AnswerForm.labels`."""
        without = next((index for index, record in enumerate(records) if record.samples is None), None)
        if without is not None:
            raise UserError(
                "has no samples, of which rates are made",
                where=f"{path}, record {without}",
                remedy="make the file with --samples and --temperature, or ask for one behavior (--data.answer_form behavior)",
            )
        return {side: [label for r in records for label in labels_of((r.samples or {})[side])] for side in SIDES}

    def _content(self, record: ContextAblationRecord, side: str) -> str:
        return rate_text(rates_of(labels_of((record.samples or {})[side])))


FORMS: dict[FormName, AnswerForm] = {"behavior": BehaviorForm(), "text": TextForm(), "rate": RateForm()}


def mean_rates(seen: Sequence[Example], items: Sequence[Example]) -> list[Prediction]:
    """Answer every item with the mean rates of the training answers, and with their more frequent verdict.

    No other constant answer has a better Brier score on the training items.

    Args:
        seen: Training examples whose answers state rates, at least one.
        items: The items.
    """
    verdicts = [expected_verdict(example.answer) for example in seen]
    total: Counter[str] = Counter()
    for verdict in verdicts:
        total.update(parse_rates(verdict.content) or {})
    changed = sum(verdict.changed for verdict in verdicts) / len(verdicts)
    content = rate_text({behavior: rate / len(verdicts) for behavior, rate in total.items()})
    answer = two_branch(Verdict(changed > 0.5, content))
    return [text_prediction(item, answer, changed) for item in items]
