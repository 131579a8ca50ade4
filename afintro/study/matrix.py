"""The cells of a study and their state, read from the disk alone: what is done, what is missing, what is broken and why."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from afintro.data.files import write_atomic, write_json, write_jsonl
from afintro.errors import UserError
from afintro.explainer.checkpoint import read_checkpoint
from afintro.study.asking.session import Row
from afintro.study.results import Cell as Answered
from afintro.study.results import Plan, read_header
from afintro.study.settings import Study, read_yaml

TRAIN = "train"
DONE, MISSING, BROKEN = "done", "missing", "broken"


@dataclass(frozen=True)
class State:
    """Of one cell: ``done``, ``missing`` or ``broken``, and why where it is broken."""

    name: str
    reason: str = ""


@dataclass(frozen=True)
class Unit:
    """One variant with one seed: a training and its evaluations, which one process does."""

    variant: str
    seed: int


class Matrix:
    """All units of a study.

    Args:
        study: Its settings and files.
        variants: Those to look at; None for all.
        seeds: Likewise.
        evaluations: Likewise.

    Raises:
        UserError: One that the study does not have.
    """

    def __init__(
        self,
        study: Study,
        variants: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        evaluations: Sequence[str] | None = None,
    ) -> None:
        self.study, self.folder = study, study.folder
        self.variants = _chosen(variants, list(study.variants), "--variants")
        self.seeds = _chosen(seeds, study.settings.seeds, "--seeds")
        self.evaluations = _chosen(evaluations, study.settings.evaluations, "--evaluations")
        self._hashes: dict[Unit, str] = {}

    @property
    def units(self) -> list[Unit]:
        """In the order in which they are done: every variant once before any is repeated."""
        return [Unit(variant, seed) for seed in self.seeds for variant in self.variants]

    def run(self, unit: Unit) -> Path:
        """Folder of the unit's training."""
        return self.folder / unit.variant / f"seed_{unit.seed}"

    def rows(self, unit: Unit, evaluation: str) -> Path:
        """File of what an evaluation asked the unit."""
        return self.folder / unit.variant / evaluation / f"seed_{unit.seed}.jsonl"

    def failure(self, unit: Unit, stage: str) -> Path:
        """File that says why a stage failed the last time."""
        return self.folder / unit.variant / ".failed" / f"{stage}-seed_{unit.seed}.txt"

    def settings_hash(self, unit: Unit) -> str:
        """Of everything that decides a training: what the files say, overrides and seed."""
        if unit not in self._hashes:
            files = [*self.study.base, self.study.variants[unit.variant]]
            decisive = [*map(read_yaml, files), self.study.settings.overrides, unit.seed]
            digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode())  # a YAML may hold dates
            self._hashes[unit] = digest.hexdigest()[:16]
        return self._hashes[unit]

    def training_fault(self, unit: Unit) -> str:
        """Why what is there of a training can be neither used nor continued; empty where it can, or nothing is there."""
        run = self.run(unit)
        finished, last = (run / "done.json").is_file(), run / "checkpoints" / "last.ckpt"
        if not finished and not last.is_file():
            return ""
        try:
            record = json.loads((run / ("done.json" if finished else "begun.json")).read_text())
            if record["settings"] != self.settings_hash(unit):
                return "is of other settings than those configured now"
            weights = weights_hash(read_checkpoint(last))
            return (
                "its checkpoint is not the one that it ended with" if finished and weights != record["weights"] else ""
            )
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            return brief(error)

    def training_state(self, unit: Unit) -> State:
        """Done where the training ended, with these settings, and its checkpoint is the one that it ended with."""
        if fault := self.training_fault(unit):
            return State(BROKEN, fault)
        return State(DONE) if (self.run(unit) / "done.json").is_file() else self._unless_failed(unit, TRAIN, MISSING)

    def rows_fault(self, unit: Unit, evaluation: str) -> str:
        """Why the rows that are there of an evaluation cannot be used; empty where they can, or none are there."""
        path = self.rows(unit, evaluation)
        if not path.is_file():
            return ""
        cell: Answered = (unit.variant, evaluation, unit.seed)
        try:
            header = read_header(path, cell)
            content = path.read_bytes()
            complete = content.count(b"\n") == header["rows"] + 1 and content.endswith(b"\n")
        except (OSError, KeyError, TypeError, UserError) as error:
            return brief(error)
        if not complete:
            return f"{path.name} is cut off"
        if header.get("settings") != self.settings_hash(unit):
            return "is of other settings than those configured now"
        if header.get("scale") != asdict(self.study.settings.scale):
            return "is of another scale than that configured now"
        return "" if self.weights(unit) in (None, header.get("weights")) else "is of another training"

    def has_rows(self, unit: Unit, evaluation: str) -> bool:
        """Whether an evaluation was made, of this training and scale, and is whole."""
        return self.rows(unit, evaluation).is_file() and not self.rows_fault(unit, evaluation)

    def evaluation_state(self, unit: Unit, evaluation: str) -> State:
        """Done where it was made, of this training and scale, and could be scored."""
        if fault := self.rows_fault(unit, evaluation):
            return State(BROKEN, fault)
        return self._unless_failed(unit, evaluation, DONE if self.rows(unit, evaluation).is_file() else MISSING)

    def weights(self, unit: Unit) -> str | None:
        """Hash of those that a training ended with; None where none is there, as after its folder was removed to save room."""
        try:
            return str(json.loads((self.run(unit) / "done.json").read_text())["weights"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _unless_failed(self, unit: Unit, stage: str, name: str) -> State:
        reason = self.failed_since(unit, stage, 0)
        return State(BROKEN, reason) if reason else State(name)

    def failed_since(self, unit: Unit, stage: str, moment: float) -> str:
        """Why a stage failed, if its last failure came after a moment (seconds since the epoch); "" if none did."""
        failure = self.failure(unit, stage)
        found = failure.is_file() and failure.stat().st_mtime >= moment
        return failure.read_text().strip() if found else ""

    def state(self, unit: Unit, stage: str) -> State:
        """Of the training or of an evaluation."""
        return self.training_state(unit) if stage == TRAIN else self.evaluation_state(unit, stage)

    @property
    def stages(self) -> list[str]:
        """The training, then the evaluations."""
        return [TRAIN, *self.evaluations]

    def states(self) -> dict[tuple[Unit, str], State]:
        """Of every cell."""
        return {(unit, stage): self.state(unit, stage) for unit in self.units for stage in self.stages}

    def plan(self) -> Plan:
        """What a report is to look for, and why cells are not done."""
        states = self.states()
        reasons = {}
        for unit in self.units:
            training = states[unit, TRAIN].reason
            for stage in self.evaluations:
                state = states[unit, stage]
                if state.name != DONE and (state.reason or training):
                    reasons[unit.variant, stage, unit.seed] = state.reason or f"its training: {training}"
        evaluations = {variant: tuple(self.evaluations) for variant in self.variants}
        return Plan(self.study.settings.name, evaluations, self.seeds, reasons)

    # What the runner leaves.

    def mark_begun(self, unit: Unit) -> None:
        """Record with which settings a training begins: with others it is not continued."""
        write_json(self.run(unit) / "begun.json", {"settings": self.settings_hash(unit)})

    def mark_trained(self, unit: Unit) -> None:
        """Record that a training ended: its step, settings and weights."""
        checkpoint = read_checkpoint(self.run(unit) / "checkpoints" / "last.ckpt")
        write_json(
            self.run(unit) / "done.json",
            {
                "variant": unit.variant,
                "seed": unit.seed,
                "step": int(checkpoint["global_step"]),
                "settings": self.settings_hash(unit),
                "weights": weights_hash(checkpoint),
            },
        )

    def keep_rows(self, unit: Unit, evaluation: str, step: int, identity: dict[str, Any], rows: Sequence[Row]) -> None:
        """Write an evaluation's rows behind a header that says what they are of."""
        header = {
            "evaluation": evaluation,
            "variant": unit.variant,
            "seed": unit.seed,
            "step": step,
            "rows": len(rows),
            "settings": self.settings_hash(unit),
            "weights": self.weights(unit),
            "scale": asdict(self.study.settings.scale),
            "identity": {name: value for name, value in identity.items() if name != "base"},  # a path may differ
        }
        write_jsonl(self.rows(unit, evaluation), [header, *rows])

    def mark_failed(self, unit: Unit, stage: str, reason: str) -> None:
        """Record why a stage failed; the next run tries again."""
        path = self.failure(unit, stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"{reason}\n")


def weights_hash(checkpoint: dict[str, Any]) -> str:
    """Of a checkpoint's step and adapter weights, whatever else its file holds."""
    digest = hashlib.sha256(str(checkpoint["global_step"]).encode())
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def coverage(matrix: Matrix) -> str:
    """Variants by stages: how many seeds are done of how many, and what is broken."""
    states = matrix.states()
    lines = [["variant", *matrix.stages]]
    for variant in matrix.variants:
        cells = [variant]
        for stage in matrix.stages:
            found = [states[Unit(variant, seed), stage].name for seed in matrix.seeds]
            broken = f" ({found.count(BROKEN)} broken)" if BROKEN in found else ""
            cells.append(f"{found.count(DONE)}/{len(found)}{broken}")
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    done = sum(state.name == DONE for state in states.values())
    text.append(f"{done} of {len(states)} cells are done")
    for (unit, stage), state in states.items():
        if state.name == BROKEN:
            text.append(f"broken: {unit.variant}, seed {unit.seed}, {stage}: {state.reason}")
    return "\n".join(text)


def brief(error: Exception) -> str:
    """An error in one line; the kind of one that is no UserError, whose text alone may say little."""
    line = " ".join(str(error).replace("\n  remedy:", "; remedy:").split())[:400]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"


def _chosen(given: Sequence[Any] | None, every: Sequence[Any], option: str) -> list[Any]:
    if given is None:
        return list(every)
    for one in given:
        if one not in every:
            raise UserError(f"no {one!r} in this study", where=option, remedy=f"use {', '.join(map(str, every))}")
    return [one for one in every if one in given]
