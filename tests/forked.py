"""Commands in processes of their own, forked from one that has imported everything and done nothing.

A new interpreter spends more time on imports than most commands on their work. One is started by the tests that say so, and
by every command that starts further processes.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])
HASH_SEED = "271828"  # of the process that commands are forked from: sets of strings have another order there than here


class Forked:
    """A command that runs, used as :class:`subprocess.Popen` with pipes is.

    Args:
        program: What ``python -m`` would run, or a path that ends in ``.py``.
        arguments: That it gets.
        folder: It runs in.
        environment: It has, and nothing else.
    """

    def __init__(
        self, program: str, arguments: Sequence[str], folder: Path | str, environment: Mapping[str, str]
    ) -> None:
        self.args = [program, *arguments]
        self._place = tempfile.TemporaryDirectory()
        self.said = [Path(self._place.name) / name for name in ("stdout", "stderr")]
        for path in self.said:
            path.touch()
        self._process = FORKS.Process(target=_main, args=(self.args, str(folder), dict(environment), self.said))
        _start_server()
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, below zero for a signal; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Its exit code once it has ended; after so many seconds it is killed."""
        self._process.join(timeout)
        code = self.returncode
        if code is None:
            self._process.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self.args, timeout, *(path.read_bytes() for path in self.said))
        return code

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it wrote to standard output and standard error, once it has ended."""
        self.wait(timeout)
        output, errors = (path.read_text() for path in self.said)
        return output, errors


def run(
    program: str, arguments: Sequence[str], folder: Path | str, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run it to its end; see :class:`Forked`."""
    process = Forked(program, arguments, folder, environment)
    said = process.communicate(timeout)
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def printed_with_hash_seeds(code: str, *seeds: str) -> set[str]:
    """What ``code`` prints in interpreters with these hash seeds: one text, where nothing depends on the order of a set."""
    return {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in seeds
    }


def _start_server() -> None:
    """Start the process that commands are forked from, unless it runs."""
    with patch.dict(os.environ, PYTHONHASHSEED=HASH_SEED):
        forkserver.ensure_running()


def _main(command: list[str], folder: str, environment: dict[str, str], said: list[Path]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(said, start=1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = command
    if command[0].endswith(".py"):
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
    else:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
