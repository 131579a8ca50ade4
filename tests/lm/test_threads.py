"""Threads follow what the machine lends to the process: affinity, quota, and one thread where the model is tiny."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from afintro.lm.threads import TINY, available_cores, use_threads


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def group(folder: Path, line: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A control group: the file that names it, and the folder where groups are mounted."""
    for name, content in files.items():
        (folder / "mounted" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "mounted" / name).write_text(content)
    (folder / "cgroup").write_text(line)
    return folder / "cgroup", folder / "mounted"


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "3200000 100000\n"}, 8),
        ("0::/job/step\n", {"job/cpu.max": "200000 100000\n", "job/step/cpu.max": "max 100000\n"}, 2),
        ("0::/job/step\n", {"job/cpu.max": "400000 100000\n", "job/step/cpu.max": "200000 100000\n"}, 2),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "200000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 2),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 8),
        ("3:memory:/a\n", {"memory/a/cpu.max": "100000 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "nonsense"}, 8),
        ("0::/\n", {}, 8),
    ],
)
def test_cores_by_affinity_and_by_the_strictest_quota(
    tmp_path: Path, line: str, files: dict[str, str], cores: int
) -> None:
    assert available_cores(*group(tmp_path, line, files)) == cores


def test_affinity_below_the_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5})
    assert available_cores(*group(tmp_path, "0::/\n", {"cpu.max": "400000 100000\n"})) == 1


def test_a_machine_without_control_groups_counts_its_cores(tmp_path: Path) -> None:
    assert available_cores(tmp_path / "absent", tmp_path) == 8


def test_a_tiny_model_gets_one_thread_and_a_larger_one_what_is_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    use_threads(nn.Linear(10, 10))
    assert torch.get_num_threads() == 1
    large = nn.Linear(TINY // 100, 101)
    use_threads(large)
    assert torch.get_num_threads() == available_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    use_threads(large)
    assert torch.get_num_threads() == min(2, available_cores())


def test_threads_wait_without_spinning() -> None:
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
