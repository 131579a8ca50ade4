"""The cache folder, and that a folder in it is built once and appears complete."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from afintro.data.cache import build_once, cache_directory

ROOT = Path(__file__).parents[2]


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("AFINTRO_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "afintro"


def write(folder: Path) -> None:
    (folder / "file").write_text("whole")


def folders(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if entry.is_dir()]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a folder to build, whose parent does not exist yet."""
    return tmp_path / "kind" / "name"


class TestBuildOnce:
    def test_is_made_and_then_left_alone(self, directory: Path) -> None:
        assert build_once(directory, write)
        (directory / "file").write_text("changed")
        assert not build_once(directory, write)
        assert (directory / "file").read_text() == "changed"
        assert folders(directory.parent) == [directory]

    def test_threads_that_ask_at_once_build_once(self, directory: Path) -> None:
        calls, made = [], []

        def make(folder: Path) -> None:
            calls.append(folder)
            time.sleep(0.3)

        threads = [threading.Thread(target=lambda: made.append(build_once(directory, make))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(calls) == 1
        assert sorted(made) == [False, False, False, True]

    def test_appears_whole(self, directory: Path) -> None:
        """A process that sees the folder uses the folder without taking the lock."""

        def make(folder: Path) -> None:
            for number in range(400):
                (folder / str(number)).touch()

        def watch() -> None:
            while not directory.is_dir():
                time.sleep(0)
            seen.append(len(list(directory.iterdir())))

        seen: list[int] = []
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        build_once(directory, make)
        watcher.join(timeout=20)
        assert seen == [400]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_a_build_that_fails_leaves_nothing(self, directory: Path, error: type[BaseException]) -> None:
        def fail(folder: Path) -> None:
            (folder / "file").write_text("half")
            raise error

        with pytest.raises(error):
            build_once(directory, fail)
        assert folders(directory.parent) == []
        assert build_once(directory, write)

    def test_others_may_read_a_shared_cache(self, directory: Path) -> None:
        """A folder made by mkdtemp would have mode 0700 whatever the umask is."""
        umask = os.umask(0o022)
        try:
            build_once(directory, write)
        finally:
            os.umask(umask)
        assert directory.stat().st_mode & 0o777 == 0o755


BUILDER = """
import os, sys, time
from pathlib import Path
from afintro.data.cache import build_once

directory, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def make(folder):
    (folder / "file").write_text("half")
    with log.open("a") as file:
        file.write("building\\n")
    time.sleep(seconds)
    (folder / "file").write_text("whole")

print(build_once(directory, make))
"""


def start_builder(directory: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    """Start a process that builds for some seconds, during which half of a file is written."""
    command = [sys.executable, "-c", BUILDER, str(directory), str(log), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until_building(log: Path, process: subprocess.Popen[str]) -> None:
    while not log.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
class TestProcesses:
    def test_two_that_build_at_once_build_once(self, directory: Path, tmp_path: Path) -> None:
        log = tmp_path / "log"
        first = start_builder(directory, log, 1)
        wait_until_building(log, first)
        assert not build_once(directory, write), "waits for the other, and finds it made"
        assert first.communicate(timeout=60)[0] == "True\n"
        assert log.read_text() == "building\n"
        assert (directory / "file").read_text() == "whole"

    def test_a_killed_build_is_cleared_away_by_the_next(self, directory: Path, tmp_path: Path) -> None:
        """If the folder had a new name every time, each kill would leave another .building- folder behind."""
        process = start_builder(directory, tmp_path / "log", 60)
        wait_until_building(tmp_path / "log", process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        (half,) = folders(directory.parent)
        assert half != directory
        (half / "more").touch()
        assert build_once(directory, write)  # and the lock is free again
        assert folders(directory.parent) == [directory]
        assert [path.name for path in directory.iterdir()] == ["file"]
