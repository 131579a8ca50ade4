"""Does what is missing of a study: trains a variant, asks it everything, then the next; goes on where it was stopped."""

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from filelock import FileLock, Timeout

from afintro.cli import run as command_line
from afintro.data.records import file_sha256, write_json
from afintro.errors import UserError
from afintro.study.matrix import DONE, TRAIN, Matrix, Unit
from afintro.study.session import Row, Session

log = logging.getLogger(__name__)


def run_study(matrix: Matrix) -> list[tuple[Unit, str, str]]:
    """Do all units of a study that nobody else is doing, in this process.

    Several processes may run one study at once, also on several machines that share its folder: a unit belongs to whoever
    locks it first, and a lock ends with its process.

    Returns:
        What failed: unit, stage, reason. The next run tries it again.

    Raises:
        SystemExit: Stopped by SIGTERM while training, after a checkpoint was written.
    """
    failed: list[tuple[Unit, str, str]] = []
    for number, unit in enumerate(matrix.units, start=1):
        lock = FileLock(matrix.folder / ".locks" / f"{unit.variant}-seed_{unit.seed}.lock")
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            with lock.acquire(timeout=0):
                log.info(
                    "study %s: unit %d of %d: %s, seed %d",
                    matrix.study.settings.name,
                    number,
                    len(matrix.units),
                    *_of(unit),
                )
                failed += _do(matrix, unit)
        except Timeout:
            log.info("study %s: %s, seed %d: another process is at it", matrix.study.settings.name, *_of(unit))
    return failed


def _of(unit: Unit) -> tuple[str, int]:
    return unit.variant, unit.seed


def _do(matrix: Matrix, unit: Unit) -> list[tuple[Unit, str, str]]:
    """What is missing of one unit. A stage that fails does not end the others, except that nothing is asked of no training."""
    missing = [name for name in matrix.evaluations if matrix.evaluation_state(unit, name).name != DONE]
    failed: dict[str, str] = {}
    if (missing or not matrix.evaluations) and matrix.train_state(unit).name != DONE:
        failed[TRAIN] = _attempt(matrix, unit, TRAIN, partial(_train, matrix, unit))
    if not failed.get(TRAIN):
        opened: list[Session] = []
        for name in missing:
            failed[name] = _attempt(matrix, unit, name, partial(_evaluate, matrix, unit, name, opened))
        for name in matrix.evaluations:
            failed[name] = failed.get(name) or _attempt(
                matrix, unit, name, partial(_summarise, matrix, unit.variant, name)
            )
    return [(unit, stage, reason) for stage, reason in failed.items() if reason]


def _attempt(matrix: Matrix, unit: Unit, stage: str, work: Callable[[], None]) -> str:
    """Why it failed; empty if it did not. Whatever a stage raises is its own failure."""
    try:
        work()
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        log.error(
            "study: %s, seed %d: %s failed: %s", *_of(unit), stage, reason, exc_info=not isinstance(error, UserError)
        )
        matrix.mark_failed(unit, stage, reason)
        return reason
    return ""


def fit_arguments(matrix: Matrix, unit: Unit) -> list[str]:
    """The command that trains a unit, from its last checkpoint if there is one."""
    run = matrix.run(unit)
    files = [*matrix.study.base, matrix.study.variants[unit.variant]]
    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(run.parent.parent), "name": unit.variant, "version": run.name},
    }
    arguments = ["fit", *(part for path in files for part in ("--config", str(path)))]
    for name, value in matrix.study.settings.overrides.items():
        arguments += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    arguments += ["--seed_everything", str(unit.seed), "--data.seed", str(unit.seed)]
    arguments += ["--trainer.logger", json.dumps(logger)]
    last = run / "checkpoints" / "last.ckpt"
    return [*arguments, "--ckpt_path", str(last)] if last.is_file() else arguments


def _train(matrix: Matrix, unit: Unit) -> None:
    """Train, and record that it ended."""
    record = matrix.run(unit) / "done.json"
    if record.is_file():
        raise UserError(
            matrix.train_state(unit).reason,
            where=str(matrix.run(unit)),
            remedy="remove the variant's folder to train it anew, or give back the settings",
        )
    ended = command_line(fit_arguments(matrix, unit))
    if ended.code == 128 + signal.SIGTERM:
        raise SystemExit(ended.code)
    if ended.code:
        raise RuntimeError(ended.message or f"exit code {ended.code}")
    matrix.mark_trained(unit)


def _evaluate(matrix: Matrix, unit: Unit, name: str, opened: list[Session]) -> None:
    """Ask one evaluation's questions; the session is opened for the first and shared by the others."""
    if not opened:
        opened.append(Session.open(matrix.run(unit), unit.seed, matrix.study.settings.scale))
    session = opened[0]
    rows = _evaluation(name).measure(session)
    matrix.keep_rows(unit, name, session.step, session.identity, rows)
    log.info("study: %s, seed %d: %s: %d rows", *_of(unit), name, len(rows))


def _evaluation(name: str) -> ModuleType:
    return importlib.import_module(f"afintro.study.evaluations.{name}")


def _summarise(matrix: Matrix, variant: str, name: str) -> None:
    """Score an evaluation over all seeds that are done, unless that was done; whoever comes last sees them all."""
    path = matrix.folder / variant / name / "summary.json"
    with FileLock(matrix.folder / ".locks" / f"{variant}-{name}.lock"):
        units = [unit for unit in matrix.units if unit.variant == variant]
        done = [unit for unit in units if matrix.evaluation_state(unit, name).name == DONE]
        files = {
            str(unit.seed): file_sha256(matrix.rows(unit, name)) for unit in sorted(done, key=lambda unit: unit.seed)
        }
        if not done or (path.is_file() and json.loads(path.read_text()).get("files") == files):
            return
        rows = [row for unit in sorted(done, key=lambda unit: unit.seed) for row in read_rows(matrix.rows(unit, name))]
        about = {"evaluation": name, "variant": variant, "seeds": [int(seed) for seed in files], "files": files}
        write_json(path, {**about, "n": len(rows), **_evaluation(name).summarise(rows, 0)})


def read_rows(path: Path) -> list[Row]:
    """The rows of an evaluation behind their header."""
    with path.open(encoding="utf-8") as file:
        next(file)
        return [json.loads(line) for line in file]


def run_on_all_devices(arguments: Sequence[str], devices: int) -> int:
    """The same command in one process a device, each of which does the units that no other does.

    Returns:
        The largest of their exit codes.
    """
    command = [sys.executable, "-m", "afintro.study", *arguments]
    workers = []
    for device in range(devices):
        visible = {"CUDA_VISIBLE_DEVICES": str(device)} if torch.cuda.is_available() else {}
        workers.append(subprocess.Popen(command, env={**os.environ, **visible}))

    def stop(number: int, _: Any) -> None:
        for worker in workers:
            worker.send_signal(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return max(128 - code if code < 0 else code for code in codes)
