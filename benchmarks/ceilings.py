"""The limits of the hardware: a matrix product and a copy, measured in the same run as the systems."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Ceilings:
    """Measured limits.

    Args:
        matmul_tflops: Rate of a square matrix product of random numbers, in TFLOP/s: bfloat16 and 8192 wide on an
            accelerator, float32 and 1024 wide on a CPU.
        copy_gb_per_s: Rate of a copy within memory in GB/s, counting bytes read and bytes written.
    """

    matmul_tflops: float
    copy_gb_per_s: float


def seconds(work: Callable[[], object], runs: int = 30, warm_up: int = 5) -> float:
    """Measure the median time of one call, by CUDA events on an accelerator.

    Args:
        work: The call.
        runs: Number of timed calls.
        warm_up: Number of calls before the timed calls.

    Returns:
        Seconds.
    """
    for _ in range(warm_up):
        work()
    if not torch.cuda.is_available():
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return median(times)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for start_event, end_event in events:
        start_event.record()
        work()
        end_event.record()
    torch.cuda.synchronize()
    return median(start_event.elapsed_time(end_event) for start_event, end_event in events) / 1000


def measure() -> Ceilings:
    """Measure both limits of the device in use."""
    on_accelerator = torch.cuda.is_available()
    device, width, dtype = ("cuda", 8192, torch.bfloat16) if on_accelerator else ("cpu", 1024, torch.float32)
    # Random numbers, because zeros run faster: fewer bits switch.
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    flops = 2 * width**3 / seconds(lambda: torch.mm(left, right, out=product))
    size = 2**32 if on_accelerator else 2**28
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rate = 2 * size / seconds(lambda: target.copy_(source))
    return Ceilings(round(flops / 1e12, 4), round(rate / 1e9, 2))
