"""The cells of a study and their state, read from the disk alone: what is done, what is missing, what is broken and why."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from afintro.checkpoint import read_checkpoint
from afintro.data.records import write_atomic, write_json, write_jsonl
from afintro.errors import UserError
from afintro.study.results import Cell as Answered
from afintro.study.results import Plan, read_header
from afintro.study.session import Row
from afintro.study.settings import Study

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
        """Of everything that decides a training: files, overrides and seed."""
        digest = hashlib.sha256()
        for path in [*self.study.base, self.study.variants[unit.variant]]:
            digest.update(path.read_bytes())
        digest.update(json.dumps([self.study.settings.overrides, unit.seed], sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def train_state(self, unit: Unit) -> State:
        """Done where the training ended, with these settings, and its checkpoint is the one that it ended with."""
        record = self.run(unit) / "done.json"
        if not record.is_file():
            return self._unless_failed(unit, TRAIN)
        try:
            done = json.loads(record.read_text())
            known = done["settings"], done["weights"]
            checkpoint = read_checkpoint(self.run(unit) / "checkpoints" / "last.ckpt")
        except (ValueError, KeyError, UserError) as error:
            return State(BROKEN, str(error).partition("\n")[0])
        if known != (self.settings_hash(unit), weights_hash(checkpoint)):
            return State(BROKEN, "was trained with other settings, or its checkpoint changed")
        return State(DONE)

    def evaluation_state(self, unit: Unit, evaluation: str) -> State:
        """Done where its rows are there, all of them, of this training and scale."""
        path = self.rows(unit, evaluation)
        if not path.is_file():
            return self._unless_failed(unit, evaluation)
        cell: Answered = (unit.variant, evaluation, unit.seed)
        try:
            header = read_header(path, cell)
            complete = sum(1 for _ in path.open("rb")) == header["rows"] + 1 and path.read_bytes().endswith(b"\n")
        except (UserError, KeyError) as error:
            return State(BROKEN, str(error).partition("\n")[0])
        if not complete:
            return State(BROKEN, f"{path.name} is cut off")
        if header.get("settings") != self.settings_hash(unit) or header.get("scale") != asdict(
            self.study.settings.scale
        ):
            return State(BROKEN, "was made with other settings")
        return State(DONE)

    def _unless_failed(self, unit: Unit, stage: str) -> State:
        failure = self.failure(unit, stage)
        return State(BROKEN, failure.read_text().strip()) if failure.is_file() else State(MISSING)

    def state(self, unit: Unit, stage: str) -> State:
        """Of the training or of an evaluation."""
        return self.train_state(unit) if stage == TRAIN else self.evaluation_state(unit, stage)

    @property
    def stages(self) -> list[str]:
        """The training, then the evaluations."""
        return [TRAIN, *self.evaluations]

    def states(self) -> dict[tuple[Unit, str], State]:
        """Of every cell."""
        return {(unit, stage): self.state(unit, stage) for unit in self.units for stage in self.stages}

    def plan(self) -> Plan:
        """What a report is to look for, and why cells are missing."""
        states = self.states()
        reasons = {
            (unit.variant, stage, unit.seed): state.reason
            for (unit, stage), state in states.items()
            if stage != TRAIN and state.reason
        }
        for unit in self.units:
            broken = states[unit, TRAIN].reason
            for stage in self.evaluations if broken else ():
                reasons.setdefault((unit.variant, stage, unit.seed), f"its training: {broken}")
        evaluations = {variant: tuple(self.evaluations) for variant in self.variants}
        return Plan(self.study.settings.name, evaluations, self.seeds, reasons)

    # What the runner leaves.

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
        self.failure(unit, TRAIN).unlink(missing_ok=True)

    def keep_rows(self, unit: Unit, evaluation: str, step: int, identity: dict[str, Any], rows: Sequence[Row]) -> None:
        """Write an evaluation's rows behind a header that says what they are of."""
        header = {
            "evaluation": evaluation,
            "variant": unit.variant,
            "seed": unit.seed,
            "step": step,
            "rows": len(rows),
            "settings": self.settings_hash(unit),
            "scale": asdict(self.study.settings.scale),
            "identity": {name: value for name, value in identity.items() if name != "base"},  # a path may differ
        }
        write_jsonl(self.rows(unit, evaluation), [header, *rows])
        self.failure(unit, evaluation).unlink(missing_ok=True)

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


def _chosen(given: Sequence[Any] | None, every: Sequence[Any], option: str) -> list[Any]:
    if given is None:
        return list(every)
    for one in given:
        if one not in every:
            raise UserError(f"no {one!r} in this study", where=option, remedy=f"use {', '.join(map(str, every))}")
    return [one for one in every if one in given]
