"""Read the state of a study's cells from the disk alone: what is done, what is missing, what is broken and why."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from afintro.cli_layers import leaves, real_layers
from afintro.data.files import write_atomic, write_json, write_jsonl
from afintro.errors import UserError
from afintro.explainer.checkpoint import read_checkpoint
from afintro.study.results import FORMATS, Plan, ResultRow, read_header
from afintro.study.settings import Study, read_yaml
from afintro.toys.embedded import is_toy

TRAIN = "train"
DONE, MISSING, BROKEN = "done", "missing", "broken"


@dataclass(frozen=True)
class State:
    """The state of one cell.

    Args:
        name: ``done``, ``missing`` or ``broken``.
        reason: Why the cell is broken.
    """

    name: str
    reason: str = ""


@dataclass(frozen=True)
class Unit:
    """One variant with one seed: a training and its evaluations, which a single process does."""

    variant: str
    seed: int


class Matrix:
    """The cells of a study: every unit times its training and its evaluations.

    Args:
        study: The study's settings and files.
        variants: The variants to look at. None means all of the study.
        seeds: The seeds to look at. None means all of the study.
        evaluations: The evaluations to look at. None means all of the study.

    Raises:
        UserError: The study does not have a variant, seed or evaluation.
    """

    def __init__(
        self,
        study: Study,
        variants: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        evaluations: Sequence[str] | None = None,
    ) -> None:
        self.study, self.folder = study, study.folder
        self.variants = _select(variants, list(study.variants), "--variants")
        own = [seed for name in self.variants for seed in study.seeds_of(name)]
        self.seeds = _select(seeds, list(dict.fromkeys([*study.settings.seeds, *own])), "--seeds")
        self.evaluations = _select(evaluations, study.settings.evaluations, "--evaluations")
        self._hashes: dict[Unit, str] = {}

    @property
    def units(self) -> list[Unit]:
        """Return the units in the order of the work: every variant once before any variant is repeated."""
        return [
            Unit(variant, seed) for seed in self.seeds for variant in self.variants if seed in self.seeds_of(variant)
        ]

    def seeds_of(self, variant: str) -> list[int]:
        """Return the chosen seeds of a variant."""
        return [seed for seed in self.study.seeds_of(variant) if seed in self.seeds]

    @property
    def stages(self) -> list[str]:
        """Return the stages of a unit: the training, then the evaluations."""
        return [TRAIN, *self.evaluations]

    # Where a unit's files are.

    def run(self, unit: Unit) -> Path:
        """Return the folder of the unit's training."""
        return self.folder / unit.variant / f"seed_{unit.seed}"

    def rows(self, unit: Unit, evaluation: str) -> Path:
        """Return the file of the rows of an evaluation of the unit."""
        return self.folder / unit.variant / evaluation / f"seed_{unit.seed}.jsonl"

    def failure(self, unit: Unit, stage: str) -> Path:
        """Return the file that says why a stage failed the last time."""
        return self.folder / unit.variant / ".failed" / f"{stage}-seed_{unit.seed}.txt"

    # What the files say.

    def settings_hash(self, unit: Unit) -> str:
        """Return a hash of everything that decides a training: the content of the files, the overrides and the seed."""
        if unit not in self._hashes:
            files = [*self.study.base, self.study.variants[unit.variant]]
            decisive = [*map(read_yaml, files), self.study.settings.overrides, unit.seed, *self._of_a_real_model(files)]
            digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode())  # a YAML may hold dates
            self._hashes[unit] = digest.hexdigest()[:16]
        return self._hashes[unit]

    def _of_a_real_model(self, files: Sequence[Path]) -> list[dict[str, Any]]:
        """Return the settings that files have for a real model, if the study is of one and does not override them all."""
        overrides = self.study.settings.overrides
        if is_toy(str(overrides.get("model.name", "toy"))):
            return []
        layers = real_layers([part for file in files for part in ("--config", str(file))])
        settings = [
            {name: value for name, value in leaves(read_yaml(layer)).items() if name not in overrides}
            for layer in layers
        ]
        return [kept for kept in settings if kept]

    def training_fault(self, unit: Unit) -> str:
        """Return why an existing training cannot be used or continued, or an empty string if it can or none exists."""
        run = self.run(unit)
        finished, last = (run / "done.json").is_file(), run / "checkpoints" / "last.ckpt"
        if not finished and not last.is_file():
            return ""
        try:
            record = json.loads((run / ("done.json" if finished else "begun.json")).read_text())
            if record["settings"] != self.settings_hash(unit):
                return "was made with other settings than those configured now"
            weights = weights_hash(read_checkpoint(last))
            if finished and weights != record["weights"]:
                return "has a checkpoint that is not the one that the training ended with"
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            return describe_error(error)
        return ""

    def training_state(self, unit: Unit) -> State:
        """Return ``done`` if the training ended with these settings and its last checkpoint is intact."""
        if fault := self.training_fault(unit):
            return State(BROKEN, fault)
        finished = (self.run(unit) / "done.json").is_file()
        return State(DONE) if finished else self._state_unless_failed(unit, TRAIN, MISSING)

    def rows_fault(self, unit: Unit, evaluation: str) -> str:
        """Return why the existing rows of an evaluation cannot be used, or an empty string if they can or none exist."""
        path = self.rows(unit, evaluation)
        if not path.is_file():
            return ""
        try:
            header = read_header(path, (unit.variant, evaluation, unit.seed))
            content = path.read_bytes()
            complete = content.count(b"\n") == header["rows"] + 1 and content.endswith(b"\n")
        except (OSError, KeyError, TypeError, UserError) as error:
            return describe_error(error)
        if not complete:
            return f"{path.name} is cut off"
        if header.get("settings") != self.settings_hash(unit):
            return "was made with other settings than those configured now"
        if header.get("format", 1) != FORMATS.get(evaluation, 1):
            return "was made by an earlier version of this evaluation, which asked something else; it is made anew"
        if header.get("scale") != self.study.settings.scale.as_json():
            return "was made with another scale than the one configured now"
        return "" if self.weights(unit) in (None, header.get("weights")) else "belongs to another training"

    def has_rows(self, unit: Unit, evaluation: str) -> bool:
        """Return whether an evaluation has complete rows of this training and scale."""
        return self.rows(unit, evaluation).is_file() and not self.rows_fault(unit, evaluation)

    def evaluation_state(self, unit: Unit, evaluation: str) -> State:
        """Return ``done`` if an evaluation has complete rows of this training and scale and could be scored."""
        if fault := self.rows_fault(unit, evaluation):
            return State(BROKEN, fault)
        exists = self.rows(unit, evaluation).is_file()
        return self._state_unless_failed(unit, evaluation, DONE if exists else MISSING)

    def weights(self, unit: Unit) -> str | None:
        """Return the hash of the weights that a training ended with.

        Returns:
            The hash, or None if there is no record of it, as after the training's folder was removed to save space.
        """
        try:
            return str(json.loads((self.run(unit) / "done.json").read_text())["weights"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _state_unless_failed(self, unit: Unit, stage: str, name: str) -> State:
        reason = self.failed_since(unit, stage, 0)
        return State(BROKEN, reason) if reason else State(name)

    def failed_since(self, unit: Unit, stage: str, moment: float) -> str:
        """Return why a stage failed.

        Args:
            unit: The unit.
            stage: ``train`` or an evaluation.
            moment: Seconds since the epoch. Earlier failures do not count.

        Returns:
            The reason, or an empty string if the stage has not failed since then.
        """
        failure = self.failure(unit, stage)
        failed = failure.is_file() and failure.stat().st_mtime >= moment
        return failure.read_text().strip() if failed else ""

    def state(self, unit: Unit, stage: str) -> State:
        """Return the state of the training or of an evaluation."""
        return self.training_state(unit) if stage == TRAIN else self.evaluation_state(unit, stage)

    def states(self) -> dict[tuple[Unit, str], State]:
        """Return the state of every cell."""
        return {(unit, stage): self.state(unit, stage) for unit in self.units for stage in self.stages}

    def plan(self) -> Plan:
        """Return what a report has to look for, and why cells are not done."""
        states = self.states()
        reasons = {}
        for unit in self.units:
            training = states[unit, TRAIN].reason
            for stage in self.evaluations:
                state = states[unit, stage]
                if state.name != DONE and (state.reason or training):
                    reasons[unit.variant, stage, unit.seed] = state.reason or f"its training: {training}"
        evaluations = {variant: tuple(self.evaluations) for variant in self.variants}
        seeds_of = {variant: self.seeds_of(variant) for variant in self.variants}
        return Plan(self.study.settings.name, evaluations, self.seeds, reasons, seeds_of)

    # What the runner writes.

    def mark_begun(self, unit: Unit) -> None:
        """Record the settings that a training begins with: with other settings it is not continued."""
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

    def write_rows(
        self, unit: Unit, evaluation: str, step: int, identity: dict[str, Any], rows: Sequence[ResultRow]
    ) -> None:
        """Write an evaluation's rows behind a header that says what they belong to.

        Args:
            unit: The unit.
            evaluation: The evaluation.
            step: The optimizer step of the checkpoint.
            identity: The checkpoint's identity. The path of its base is left out, since it may differ between machines.
            rows: The rows.
        """
        header = {
            "evaluation": evaluation,
            "variant": unit.variant,
            "seed": unit.seed,
            "format": FORMATS.get(evaluation, 1),
            "step": step,
            "rows": len(rows),
            "settings": self.settings_hash(unit),
            "weights": self.weights(unit),
            "scale": self.study.settings.scale.as_json(),
            "identity": {name: value for name, value in identity.items() if name != "base"},
        }
        write_jsonl(self.rows(unit, evaluation), [header, *rows])

    def mark_failed(self, unit: Unit, stage: str, reason: str) -> None:
        """Record why a stage failed. The next run tries the stage again.

        Args:
            unit: The unit.
            stage: ``train`` or an evaluation.
            reason: The error in one line.
        """
        path = self.failure(unit, stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"{reason}\n")


def weights_hash(checkpoint: dict[str, Any]) -> str:
    """Return a hash of a checkpoint's step and adapter weights, whatever else its file contains."""
    digest = hashlib.sha256(str(checkpoint["global_step"]).encode())
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def coverage(matrix: Matrix) -> str:
    """Render a text table of variants by stages: how many seeds are done of how many, and what is broken."""
    states = matrix.states()
    lines = [["variant", *matrix.stages]]
    for variant in matrix.variants:
        cells = [variant]
        for stage in matrix.stages:
            names = [states[Unit(variant, seed), stage].name for seed in matrix.seeds_of(variant)]
            broken = f" ({names.count(BROKEN)} broken)" if BROKEN in names else ""
            cells.append(f"{names.count(DONE)}/{len(names)}{broken}")
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    done = sum(state.name == DONE for state in states.values())
    text.append(f"{done} of {len(states)} cells are done")
    for (unit, stage), state in states.items():
        if state.name == BROKEN:
            text.append(f"broken: {unit.variant}, seed {unit.seed}, {stage}: {state.reason}")
    return "\n".join(text)


def describe_error(error: Exception) -> str:
    """Return an error in one line, with its class unless it is a UserError: the text of others alone may say little."""
    line = " ".join(str(error).replace("\n  remedy:", "; remedy:").split())[:400]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"


def _select(wanted: Sequence[Any] | None, available: Sequence[Any], option: str) -> list[Any]:
    if wanted is None:
        return list(available)
    for value in wanted:
        if value not in available:
            what = f"{value!r} is not in this study"
            raise UserError(what, where=option, remedy=f"choose from {', '.join(map(str, available))}")
    return [value for value in available if value in wanted]
