"""How many threads a computation on CPU gets: what the machine really lends to this process, and one where the model is tiny.

Threads of OpenMP that wait at the end of every operation by spinning take the cores from each other: with fewer free cores
than threads, a tiny model becomes ten to thirty times slower. So the number of threads follows affinity and quota, waiting is
passive (``afintro/__init__.py``, because OpenMP reads that setting when it is loaded), and a model whose operations last
microseconds uses one thread.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

TINY = 500_000  # parameters; with fewer, an operation takes less time than waking a second thread
GROUPS = Path("/proc/self/cgroup")
ROOT = Path("/sys/fs/cgroup")


def available_cores(groups: Path = GROUPS, root: Path = ROOT) -> int:
    """Return the number of cores that this process may use: by affinity, and by the CPU quota of its control groups.

    A quota of one and a half cores counts as one core, since a second thread would wait for most of its time.

    Args:
        groups: The file that names the process's control groups.
        root: The folder where control groups are mounted.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.floor(quota) for quota in _quotas(groups, root))]))


def _quotas(groups: Path, root: Path) -> Iterator[float]:
    """Yield the quotas in cores of a process's control groups and of all groups above (versions 2 and 1)."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _up(root, path, ("cpu.max",))
        elif "cpu" in controllers.split(","):
            yield from _up(root / "cpu", path, ("cpu.cfs_quota_us", "cpu.cfs_period_us"))


def _up(root: Path, path: str, files: tuple[str, ...]) -> Iterator[float]:
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            return
        try:
            quota, period = " ".join((folder / name).read_text() for name in files).split()
        except (OSError, ValueError):
            continue
        if quota.isdigit() and int(period) > 0:  # "max" and -1 stand for no quota
            yield int(quota) / int(period)


def use_threads(model: nn.Module) -> None:
    """Let PyTorch use as many threads as suit a model on CPU; ``OMP_NUM_THREADS``, if set, stays the most.

    Args:
        model: The model that runs next.
    """
    torch.set_num_threads(_threads(model))


def _threads(model: nn.Module) -> int:
    if sum(parameter.numel() for parameter in model.parameters()) < TINY:
        return 1
    configured = os.environ.get("OMP_NUM_THREADS", "")
    cores = available_cores()
    return min(cores, int(configured)) if configured.isdigit() and int(configured) > 0 else cores
