"""Label the outputs of a finished run of context ablation by another labeler."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from afintro.data.files import write_json
from afintro.generation.behavior import differ
from afintro.generation.labeling import Lookup
from afintro.tasks.context_ablation.records import ContextAblationRecord, read_records, to_json
from afintro.tasks.context_ablation.summary import Noise, summarize
from afintro.tasks.relabeling import Relabeling


class PairsRelabeling(Relabeling[ContextAblationRecord]):
    """Label the pairs of a finished run anew.

    Args:
        output_dir: The run's folder.
        splits: Names of the splits.
        tokenizer: The organism's tokenizer; None if it is not at hand.
    """

    sides = ("monitored", "unmonitored")
    others = ("placebo", "alone")

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
        return summarize(records, _noise(records, label), self.tokenizer, label)

    def write(self, path: Path, records: Sequence[ContextAblationRecord]) -> None:
        """Write the records of a file."""
        write_json(path, [to_json(record) for record in records])


def _noise(records: Sequence[ContextAblationRecord], label: Lookup) -> Noise:
    """Return what answering alone changes; unknown in files that do not hold what was answered alone."""
    return [
        [None, None]
        if record.alone_output is None
        else [
            record.alone_output != record.monitored_output,
            differ(label(record.reply("alone")), label(record.reply("monitored"))),
        ]
        for record in records
        if record.placebo_output is not None
    ]
