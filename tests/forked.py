"""Commands in processes of their own, forked from one that has imported everything and done nothing.

A new interpreter spends more time on imports than most commands on their work. ``python -m afintro`` as a user types it is
run by the tests that say so, by those of signals and by the second process of every test with two.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["afintro.cli", "afintro.tasks.context_ablation", "tests.forked"])


def run(
    module: str, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """``python -m module arguments`` in a folder, with that environment and no other."""
    command = [module, *arguments]
    with tempfile.TemporaryDirectory() as place:
        said = [Path(place) / name for name in ("stdout", "stderr")]
        process = FORKS.Process(target=_main, args=(command, folder, dict(environment), said))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout, *(path.read_bytes() for path in said))
        return subprocess.CompletedProcess(command, process.exitcode, *(path.read_text() for path in said))


def _main(command: list[str], folder: Path, environment: dict[str, str], said: list[Path]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(said, start=1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
