"""Label the outputs of a finished steering run by another labeler."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afintro.data.files import write_json_rows
from afintro.errors import UserError
from afintro.evaluation.figures import write_figure
from afintro.generation.behavior import differ
from afintro.generation.labeling import Lookup
from afintro.tasks.relabeling import Relabeling
from afintro.tasks.steering.records import SteeringRecord, read_steering_records, to_json
from afintro.tasks.steering.summary import Guards, dose_response_figure, summarize


class SteeringRelabeling(Relabeling[SteeringRecord]):
    """Label the steered outputs of a finished run anew, and plot the dose response again.

    Args:
        output_dir: The run's folder.
        splits: Names of the splits.
        directions: Names of the directions, in the order of the table.
    """

    sides = ("original", "steered")
    others = ("unmonitored", "alone")

    def __init__(self, output_dir: Path, splits: Sequence[str], directions: Sequence[str]) -> None:
        super().__init__(output_dir, splits)
        self.directions = directions

    def read(self, path: str) -> list[SteeringRecord]:
        """Read the records of a file."""
        return read_steering_records(path)

    def check(self, records: Sequence[SteeringRecord]) -> None:
        """Refuse records that do not hold all outputs that are to be labeled.

        Raises:
            UserError: The records are of an earlier version.
        """
        if any(record.unmonitored_output is None for record in records):
            what = "holds records of an earlier version, which lack the outputs without monitoring"
            remedy = "generate into another --output_dir with this labeler"
            raise UserError(what, where=str(self.output_dir), remedy=remedy)

    def compared(self, records: Sequence[SteeringRecord]) -> Sequence[SteeringRecord]:
        """Return the coherent records: what a broken text does is no question."""
        return [record for record in records if record.coherent]

    def summarize(self, records: Sequence[SteeringRecord], summary: Mapping[str, Any], label: Lookup) -> dict[str, Any]:
        """Return the rates of the new labels, see :func:`afintro.tasks.steering.summary.summarize`."""
        guards = replace(Guards(**summary["guards"]), alone_behaves_otherwise=_noise(records, label))
        return summarize(records, guards, self.directions)

    def write(self, path: Path, records: Sequence[SteeringRecord]) -> None:
        """Write the records of a file, one after the other: there may be millions."""
        write_json_rows(path, (to_json(record) for record in records))

    def illustrate(self, summary: Mapping[str, Any]) -> None:
        """Plot the dose response."""
        write_figure(dose_response_figure(dict(summary)), self.output_dir / "dose_response.png")


def _noise(records: Sequence[SteeringRecord], label: Lookup) -> int:
    """Count the control prompts whose answer alone behaves otherwise; all conditions of a prompt share it."""
    controls = {record.prompt: record for record in records if record.alone_output is not None}
    return sum(bool(differ(label(r.reply("original")), label(r.reply("alone")))) for r in controls.values())
