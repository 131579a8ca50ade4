"""What the hardware can do: a matrix product and a copy, measured in the run that they are compared with."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Ceilings:
    """Measured limits.

    Args:
        matmul_tflops: Of a square product of random numbers: bfloat16, 8192 wide on an accelerator; float32, 1024 on a CPU.
        copy_gb_per_s: Of a copy within memory, bytes read and bytes written both counted.
    """

    matmul_tflops: float
    copy_gb_per_s: float


def seconds(work: Callable[[], object], runs: int = 30, warm_up: int = 5) -> float:
    """Median time of one call, by CUDA events where there is an accelerator."""
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
    """Both limits of the device in use."""
    on_accelerator = torch.cuda.is_available()
    device, width, dtype = ("cuda", 8192, torch.bfloat16) if on_accelerator else ("cpu", 1024, torch.float32)
    # Random numbers: zeros run faster, as fewer bits switch.
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    flops = 2 * width**3 / seconds(lambda: torch.mm(left, right, out=product))
    size = 2**32 if on_accelerator else 2**28
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rate = 2 * size / seconds(lambda: target.copy_(source))
    return Ceilings(round(flops / 1e12, 4), round(rate / 1e9, 2))
