"""Do what is missing of a study: train a variant, make its evaluations, then the next; resume where it was stopped."""

import gc
import importlib
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType

from filelock import FileLock, Timeout

from afintro.cli import run as command_line
from afintro.data.files import file_sha256, write_json
from afintro.errors import UserError
from afintro.study.asking.session import Session
from afintro.study.matrix import DONE, TRAIN, Matrix, Unit, describe_error
from afintro.study.results import SCORINGS, ResultRow

log = logging.getLogger(__name__)

Failure = tuple[Unit, str, str]
"""Unit, stage, reason."""


class Stopped:
    """The handler of SIGTERM and SIGINT: a training ends after its step with a checkpoint, anything else ends at once.

    While Lightning trains, its own handler of SIGTERM is installed. It ends the training and also calls this handler.
    """

    def __init__(self) -> None:
        self.received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if number == signal.SIGINT:
            signal.raise_signal(signal.SIGTERM)  # on SIGINT Lightning would stop, and save, within a step
            return
        self.received = True
        training = signal.getsignal(signal.SIGTERM) is not self
        if not training:
            self.leave()

    def leave(self) -> None:
        """End the process with a shell's exit code for SIGTERM."""
        log.info("study: stopped by a signal; the same command continues from here")
        raise SystemExit(128 + signal.SIGTERM)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Be the handler of both signals inside the ``with`` block."""
        previous = {number: signal.signal(number, self) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Runner:
    """Do what is missing of a study, in this process.

    Several processes may run one study at once, also on several machines that share its folder: a unit belongs to the
    process that locks it first, and a lock ends with its process.

    Args:
        matrix: The cells to do.
    """

    def __init__(self, matrix: Matrix) -> None:
        self.matrix, self.name = matrix, matrix.study.settings.name
        self.stopped, self.began = Stopped(), time.time()
        self.cells = [(unit, stage) for unit in matrix.units for stage in matrix.stages]

    def run(self) -> list[Failure]:
        """Do every unit that no other process is doing, then wait for the other processes and do what they left.

        Returns:
            The cells that failed. The next run tries them again.

        Raises:
            SystemExit: A signal stopped the run. An interrupted training has left a checkpoint.
        """
        failed: list[Failure] = []
        with self.stopped.listening():
            later = [unit for unit in self.matrix.units if not self._do_unless_locked(unit, failed, wait=False)]
            for unit in later:
                log.info("study %s: waiting for another process with %s, seed %d", self.name, unit.variant, unit.seed)
                self._do_unless_locked(unit, failed, wait=True)
        return failed

    def _do_unless_locked(self, unit: Unit, failed: list[Failure], wait: bool) -> bool:
        """Do a unit and return True, or return False if another process is doing it."""
        try:
            with _lock(self.matrix, f"{unit.variant}-seed_{unit.seed}").acquire(timeout=-1 if wait else 0):
                failed += [(unit, stage, reason) for stage, reason in self._do(unit).items() if reason]
        except Timeout:
            return False
        return True

    def _do(self, unit: Unit) -> dict[str, str]:
        """Do what is missing of a unit.

        A stage that fails does not end the other stages, but a training that failed is not evaluated.

        Returns:
            Why a stage failed, by stage; an empty string if it did not fail.
        """
        matrix, ended, opened = self.matrix, dict[str, str](), list[Session]()
        missing = [name for name in matrix.evaluations if not matrix.has_rows(unit, name)]
        if (missing or not matrix.evaluations) and matrix.training_state(unit).name != DONE:
            ended[TRAIN] = self._attempt(unit, TRAIN, partial(self._train, unit))
            gc.collect()  # a model holds itself in circles, and the next one needs the room
        if not ended.get(TRAIN):
            for name in matrix.evaluations:
                work = partial(self._evaluate, unit, name, opened) if name in missing else lambda: None
                ended[name] = self._attempt(unit, name, work)
        opened.clear()
        gc.collect()
        return ended

    def _attempt(self, unit: Unit, stage: str, work: Callable[[], None]) -> str:
        """Do a stage and score the rows that exist; return why that failed, here or in another process of this run."""
        if reason := self.matrix.failed_since(unit, stage, self.began):
            return reason
        try:
            work()
            if stage != TRAIN:
                summarize(self.matrix, unit.variant, stage)
            self.matrix.failure(unit, stage).unlink(missing_ok=True)
        except Exception as error:
            reason = describe_error(error)
            place = (self.name, unit.variant, unit.seed, stage)
            log.error("study %s: %s, seed %d: %s failed: %s", *place, reason, exc_info=not isinstance(error, UserError))
            self.matrix.mark_failed(unit, stage, reason)
        return reason

    def _train(self, unit: Unit) -> None:
        """Train, from the last checkpoint if one exists, and record that the training ended."""
        if fault := self.matrix.training_fault(unit):
            remedy = "remove that folder to train anew, or restore the settings"
            raise UserError(fault, where=str(self.matrix.run(unit)), remedy=remedy)
        self._log_start(unit, TRAIN)
        self.matrix.mark_begun(unit)
        ended = command_line(fit_arguments(self.matrix, unit))
        if self.stopped.received:
            self.stopped.leave()
        if ended.code:
            what, _, remedy = (ended.message or f"exit code {ended.code}").partition("\n  remedy: ")
            raise UserError(what, where="fit", remedy=remedy)
        self.matrix.mark_trained(unit)

    def _evaluate(self, unit: Unit, name: str, opened: list[Session]) -> None:
        """Make an evaluation. The first evaluation of a unit opens a session, which the others share."""
        self._log_start(unit, name)
        if not opened:
            opened.append(Session.open(self.matrix.run(unit), unit.seed, self.matrix.study.settings.scale))
        session = opened[0]
        self.matrix.write_rows(unit, name, session.step, session.identity, _evaluation(name).measure(session))

    def _log_start(self, unit: Unit, stage: str) -> None:
        number = self.cells.index((unit, stage)) + 1
        place = (self.name, number, len(self.cells), unit.variant, unit.seed, stage)
        log.info("study %s: cell %d of %d: %s, seed %d, %s", *place)


def fit_arguments(matrix: Matrix, unit: Unit) -> list[str]:
    """Return the arguments of the command that trains a unit, from its last checkpoint if one exists."""
    run = matrix.run(unit)
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(matrix.folder), "name": unit.variant, "version": run.name},
    }
    arguments = ["fit"]
    for path in (*matrix.study.base, matrix.study.variants[unit.variant]):
        arguments += ["--config", str(path)]
    for name, value in matrix.study.settings.overrides.items():
        arguments += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    arguments += ["--seed_everything", str(unit.seed), "--data.seed", str(unit.seed)]
    arguments += ["--trainer.logger", json.dumps(logger)]
    last = run / "checkpoints" / "last.ckpt"
    return [*arguments, "--ckpt_path", str(last)] if last.is_file() else arguments


def summarize(matrix: Matrix, variant: str, name: str) -> None:
    """Score an evaluation over all seeds of the study that are done, and write ``summary.json``.

    A summary of the same files by this version is kept. The process that comes last sees the rows of all seeds.

    Args:
        matrix: The study's cells.
        variant: The variant.
        name: The evaluation.
    """
    path = matrix.folder / variant / name / "summary.json"
    with _lock(matrix, f"{variant}-{name}"):
        units = [Unit(variant, seed) for seed in sorted(matrix.study.seeds_of(variant))]
        files = {unit.seed: matrix.rows(unit, name) for unit in units if matrix.has_rows(unit, name)}
        hashes = {str(seed): file_sha256(rows) for seed, rows in files.items()}
        version = SCORINGS.get(name, 1)
        existing = json.loads(path.read_text()) if path.is_file() else {}
        if existing.get("files") == hashes and existing.get("version", 1) == version:
            return
        rows = [row for file in files.values() for row in _read_rows(file)]
        described = {"evaluation": name, "version": version, "variant": variant, "seeds": list(files), "files": hashes}
        write_json(path, {**described, "n": len(rows), **_evaluation(name).summarize(rows, 0)})


def _read_rows(path: Path) -> list[ResultRow]:
    """Read the rows of an evaluation, without their header."""
    with path.open(encoding="utf-8") as file:
        next(file)
        return [json.loads(line) for line in file]


def _evaluation(name: str) -> ModuleType:
    return importlib.import_module(f"afintro.study.evaluations.{name}")


def _lock(matrix: Matrix, name: str) -> FileLock:
    path = matrix.folder / ".locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path)
