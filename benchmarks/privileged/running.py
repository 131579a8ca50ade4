"""Run jobs that depend on each other, over processes; each result is saved when it is there, and found by the next run."""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar, enable_progress_bar

from afintro.data.files import write_json

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Describe one piece of work.

    Args:
        key: Name of the job, and of the file of its result.
        cost: What the job takes, in seconds of some core; only the ratios between jobs matter.
        make: Makes the result, which is JSON.
        arguments: Arguments of ``make``.
        after: Keys of the jobs that must be finished before.
    """

    key: str
    cost: float
    make: Callable[..., Result]
    arguments: tuple[Any, ...]
    after: tuple[str, ...] = ()


def perform(job: Job, folder: Path) -> float:
    """Make the result of a job with one thread and save it; return the seconds that the job took.

    Args:
        job: The job.
        folder: Gets the result.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = time.monotonic()
    with quiet():
        result = job.make(*job.arguments)
    torch.set_num_threads(threads)
    seconds = time.monotonic() - started
    write_json(folder / f"{job.key}.json", {**result, "seconds": round(seconds, 1)})
    return seconds


def accelerators(processes: int) -> list[str]:
    """Return the accelerator of each process, in turn, as ``CUDA_VISIBLE_DEVICES`` names it; empty where there is none.

    Args:
        processes: Number of processes.
    """
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    visible = [name for name in named.split(",") if name][:count] or [str(number) for number in range(count)] or [""]
    return [visible[number % len(visible)] for number in range(processes)]


def _take(devices: "SimpleQueue[str]") -> None:
    """Let a new process see its accelerator alone, before it starts CUDA: everything that it runs takes the first that it sees."""
    os.environ["CUDA_VISIBLE_DEVICES"] = devices.get()


@contextmanager
def quiet() -> Iterator[None]:
    """Leave the terminal to the lines about progress: labeled names are in the test by design, and loaders need no workers."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "afintro.tasks")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning|transformers")
        disable_progress_bar()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            enable_progress_bar()
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@dataclass
class Pace:
    """Estimate how long work takes from work that was done; organisms that lay in the cache took no time and do not count."""

    cost: float = 0.0
    seconds: float = 0.0

    def add(self, cost: float, seconds: float) -> None:
        """Learn that work of a cost took some seconds."""
        if seconds > 0.01 * cost:
            self.cost, self.seconds = self.cost + cost, self.seconds + seconds

    def of(self, cost: float) -> float:
        """Return the seconds that work of a cost takes."""
        return cost * (self.seconds / self.cost if self.cost else 1.0)


def run_all(jobs: Sequence[Job], folder: Path, processes: int, say: Callable[[str], None]) -> dict[str, Result]:
    """Run the jobs whose results are missing, and return all results by key.

    Args:
        jobs: The jobs; each stands behind those that it depends on.
        folder: The folder of the results.
        processes: Number of jobs that run at once, one core each.
        say: Gets a line after each job, with the time that is left.
    """
    paths = {job.key: folder / f"{job.key}.json" for job in jobs}
    missing = [job for job in jobs if not paths[job.key].exists()]
    if len(missing) < len(jobs):
        say(f"{len(jobs) - len(missing)} of {len(jobs)} results are in {folder}")
    remaining, pace = {job.key: job.cost for job in missing}, Pace()
    for done, (job, seconds) in enumerate(_finished(missing, folder, processes), 1):
        del remaining[job.key]
        pace.add(job.cost, seconds)
        left = pace.of(sum(remaining.values())) / min(processes, max(1, len(remaining)))
        say(f"{done}/{len(missing)} {job.key}: {seconds:.0f} s; about {left:.0f} s left")
    return {key: json.loads(path.read_text()) for key, path in paths.items()}


def _finished(jobs: Sequence[Job], folder: Path, processes: int) -> Iterator[tuple[Job, float]]:
    """Yield each job when its result is saved, and how long it took."""
    if processes == 1:
        yield from ((job, perform(job, folder)) for job in jobs)
        return
    waiting, running = list(jobs), dict[Future[float], Job]()
    os.environ["TQDM_DISABLE"] = "1"  # bars of several processes would overwrite each other
    # Processes of their own: a fork of a process in which PyTorch has started threads may hang.
    context = get_context("spawn")
    devices = context.SimpleQueue()
    for device in accelerators(processes):
        devices.put(device)
    with ProcessPoolExecutor(processes, context, _take, (devices,)) as pool:
        while waiting or running:
            unfinished = {job.key for job in [*waiting, *running.values()]}
            for job in [job for job in waiting if not unfinished & {*job.after}]:
                waiting.remove(job)
                running[pool.submit(perform, job, folder)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
