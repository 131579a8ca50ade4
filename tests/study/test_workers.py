"""The processes of a study's command: their devices, and their end."""

import os
import subprocess
import sys

import pytest
import torch

from afintro.study import workers


def test_each_worker_has_a_device_of_those_that_are_visible(monkeypatch):
    assert workers.visible_devices(2) == [None, None] or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert workers.visible_devices(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6, 7")
    assert workers.visible_devices(2) == ["6", "7"]
    assert workers.visible_devices(3) == ["6", "7", "6"]


@pytest.mark.slow
def test_a_worker_ends_when_nobody_holds_its_pipe_any_more():
    program = "import time; from afintro.study.workers import end_with_parent as end; end(); print(1, flush=True); time.sleep(60)"
    worker = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )  # fmt: skip
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdout.readline()
    assert worker.poll() is None
    worker.stdin.close()
    assert worker.wait(timeout=20) == 137
