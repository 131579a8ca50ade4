"""Run a study's command in one process for each device; no process outlives the command that started it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import torch


def run_workers(arguments: Sequence[str], count: int) -> int:
    """Run the study's command in several processes, each of which does the units that no other process does.

    Args:
        arguments: The arguments of the command. The number of processes is replaced by 1.
        count: Number of processes.

    Returns:
        The largest exit code of the processes.
    """
    command = [sys.executable, "-m", "afintro.study", *arguments, "--devices", "1", "--worker"]
    workers = []
    for device in visible_devices(count):
        visible = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        workers.append(subprocess.Popen(command, env={**os.environ, **visible}, stdin=subprocess.PIPE))

    def stop(number: int, _: Any) -> None:
        for worker in workers:
            worker.send_signal(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return max(128 - code if code < 0 else code for code in codes)


def visible_devices(count: int) -> list[str | None]:
    """Return the value of CUDA_VISIBLE_DEVICES for each process, or None to leave it where there is no accelerator."""
    if not torch.cuda.is_available():
        return [None] * count
    value = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    names = [name.strip() for name in value.split(",")]
    return [names[place % len(names)] for place in range(count)]


def end_with_parent() -> None:
    """End this worker when the process that started it is gone, even by SIGKILL, which nobody can pass on."""

    def watch() -> None:
        os.read(0, 1)  # returns at the end of input: when nobody holds the other end of the pipe any more
        os._exit(128 + signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
