"""Label the outputs of a finished run of context ablation by another labeler."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from afintro.data.files import write_json
from afintro.generation.behavior import differ
from afintro.generation.labeling import Lookup
from afintro.generation.reasoning import Reply
from afintro.tasks.context_ablation.conditions import AGAIN, PLACEBOS, SIDES
from afintro.tasks.context_ablation.records import ContextAblationRecord, read_records, to_json
from afintro.tasks.context_ablation.samples import relabeled, representative_fields
from afintro.tasks.context_ablation.summary import Noise, is_control, of_server, summarize
from afintro.tasks.relabeling import Relabeling


class PairsRelabeling(Relabeling[ContextAblationRecord]):
    """Label the pairs of a finished run anew.

    Args:
        output_dir: The run's folder.
        splits: Names of the splits.
        tokenizer: The organism's tokenizer; None if it is not at hand.
    """

    sides = SIDES
    others = (*PLACEBOS, *AGAIN)

    def __init__(self, output_dir: Path, splits: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> None:
        super().__init__(output_dir, splits)
        self.tokenizer = tokenizer

    def read(self, path: str) -> list[ContextAblationRecord]:
        """Read the records of a file."""
        return read_records(path)

    def summarize(
        self, records: Sequence[ContextAblationRecord], summary: Mapping[str, Any], label: Lookup
    ) -> dict[str, Any]:
        """Return the rates of the new labels, see :func:`afintro.tasks.context_ablation.summary.summarize`."""
        noise, unmonitored_noise = (_noise(records, label, *names) for names in zip(SIDES, AGAIN, strict=True))
        measured = any(record.unmonitored_alone_output is not None for record in records)
        rates = summarize(records, noise, self.tokenizer, label, unmonitored_noise if measured else ())
        return of_server(rates, summary)

    def replies(self, record: ContextAblationRecord) -> list[Reply]:
        """Return all outputs of a record, each of its samples included."""
        return super().replies(record) + [reply for of in record.sampled_replies().values() for reply in of]

    def relabeled(self, record: ContextAblationRecord, label: Lookup, name: str) -> ContextAblationRecord:
        """Return a record with new labels; of samples another answer may then stand for all."""
        if record.samples is not None:
            behaviors = {side: [label(reply) for reply in of] for side, of in record.sampled_replies().items()}
            samples = {side: relabeled(answers, behaviors[side]) for side, answers in record.samples.items()}
            record = replace(record, samples=samples, **representative_fields(samples, SIDES))
        return super().relabeled(record, label, name)

    def write(self, path: Path, records: Sequence[ContextAblationRecord]) -> None:
        """Write the records of a file."""
        write_json(path, [to_json(record) for record in records])


def _noise(records: Sequence[ContextAblationRecord], label: Lookup, side: str, again: str) -> Noise:
    """Return what answering alone changes; unknown in files that do not hold what was answered alone."""
    return [
        [None, None]
        if getattr(record, f"{again}_output") is None
        else [
            getattr(record, f"{again}_output") != getattr(record, f"{side}_output"),
            differ(label(record.reply(again)), label(record.reply(side))),
        ]
        for record in records
        if is_control(record)
    ]
