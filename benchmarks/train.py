"""Training steps per second beside transformers' Trainer with PEFT and TRL's SFTTrainer.

Every system runs in a process of its own, with the same random weights, adapter and learning rate. The first few steps use the
same examples, and their losses must agree; then the system's own batches are timed. All systems minimize the mean over answer
tokens; for this project this is its usual loss with every example weighted by its answer tokens. Tokens per second count
real tokens, never padding; TFLOP/s count 4N operations a token.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from afintro.data.batch import Example
from benchmarks import report
from benchmarks.inputs import stream, take
from benchmarks.project import explainer, plan, train
from benchmarks.shapes import SHAPES, Shape, parameter_count, training_flops

SAME_STEPS, SAME_EXAMPLES = 6, 4
WARM_UP = 3
TIMEOUT = 300.0
PEERS = ("trainer", "trl")


@dataclass(frozen=True)
class System:
    """One row of the table.

    Args:
        kind: ``afintro``, ``trainer`` or ``trl``.
        setting: Setting in the table.
        options: Arguments of ``ExplainerModule``, ``run_trainer`` or ``run_trl``.
        attention: Attention implementation of the peer's model.
        budget: Number of tokens in a row of this project; None for the shape's number.
    """

    kind: str
    setting: str
    options: dict[str, Any] = field(default_factory=dict)
    attention: str = "sdpa"
    budget: int | None = None


FAST: dict[str, Any] = {"compile_layers": True}
SYSTEMS = {
    "compiled": System("afintro", "bf16, compiled", FAST),
    "checkpointed": System("afintro", "bf16, compiled, checkpointing", {**FAST, "gradient_checkpointing": True}),
    "fp8": System("afintro", "fp8, compiled", {**FAST, "fp8": True}),
    "eager": System("afintro", "bf16, eager"),
    "trainer-4": System("trainer", "padded 4", {"batch": 4}),
    "trainer-liger-8": System("trainer", "padded 8, liger", {"batch": 8, "liger": True}),
    "trainer-ckpt-16": System("trainer", "padded 16, checkpointing", {"batch": 16, "checkpointing": True}),
    "trl-sdpa": System("trl", "packed 8192, liger, sdpa", {"length": 8192, "liger": True}),
    "trl-flex": System("trl", "packed 8192, liger, flex", {"length": 8192, "liger": True}, "flex_attention"),
    "trl-flex-16k": System("trl", "packed 16384, liger, flex", {"length": 16384, "liger": True}, "flex_attention"),
    "trl-sdpa-ckpt": System("trl", "packed 8192, checkpointing, sdpa", {"length": 8192, "checkpointing": True}),
    "trainer-liger-sorted": System(
        "trainer", "padded 8, liger, by length", {"batch": 8, "liger": True, "by_length": True}
    ),
    "checkpointed-32k": System(
        "afintro", "bf16, compiled, checkpointing, 32k", {**FAST, "gradient_checkpointing": True}, budget=32768
    ),
    "cpu": System("afintro", "packed, float32"),
    "cpu-trainer": System("trainer", "padded 16, float32", {"batch": 16}),
    "cpu-trl": System("trl", "packed 1280, float32", {"length": 1280}),
}
LARGE = tuple(SYSTEMS)[:9]
DEFAULT = {"tiny": ("cpu", "cpu-trainer")}
COLUMNS = {
    "tokens_per_second": "tokens/s:,.0f", "median_tokens_per_second": "median:,.0f", "tflops": "TFLOP/s:,.3g",
    "fraction_of_ceiling": "of matmul:.1%", "peak_gb": "peak GB:.1f", "first_loss": "first loss:.4f",
    "last_same_loss": "after same steps:.4f", "loss_gap": "largest gap:.4f",
}  # fmt: skip


class Clock:
    """Measure the time of every step when its end is reported."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.losses: list[Tensor] = []
        self._last = time.perf_counter()

    def __call__(self, tokens: int, loss: Tensor) -> None:
        """Record a finished step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self.tokens.append(tokens)
        self.losses.append(loss)
        self._last = now


def run_steps(
    system: System, shape: Shape, seed: int, same: list[list[Example]], examples: Iterator[Example], steps: int
) -> Clock:
    """Run a system for all its steps.

    Args:
        system: The system.
        shape: Shape of the base.
        seed: Seed of the weights.
        same: Groups of the first steps, which every system shares.
        examples: Stream of the further examples.
        steps: Number of further steps.

    Returns:
        Time, tokens and loss of every step.
    """
    clock = Clock()
    if system.kind == "afintro":
        module = explainer(shape, seed, **system.options)
        for tokens, loss in train(module, plan(same, examples, steps, system.budget or shape.budget)):
            clock(tokens, loss)
        return clock
    from benchmarks.peers import adapted, run_trainer, run_trl

    run: Callable[..., None] = run_trl if system.kind == "trl" else run_trainer
    run(adapted(shape, system.attention, seed), same, examples, steps, clock, **system.options)
    return clock


def measure(system: System, shape: Shape, steps: int, seed: int) -> dict[str, Any]:
    """Measure one system in the calling process."""
    with torch.device("meta"):
        config: Any = shape.config()
    examples = stream(shape.lengths, config.vocab_size, seed)
    same = [take(examples, SAME_EXAMPLES) for _ in range(SAME_STEPS)]
    report.forget_peak()
    clock = run_steps(system, shape, seed, same, examples, WARM_UP + steps)
    skipped = SAME_STEPS + WARM_UP
    tokens, seconds = clock.tokens[skipped:], clock.seconds[skipped:]
    if not tokens:
        raise RuntimeError(f"the system made only {len(clock.tokens)} steps")
    losses = [float(loss) for loss in clock.losses[:SAME_STEPS]]
    return {
        "tokens_per_second": round(sum(tokens) / sum(seconds), 1),
        "median_tokens_per_second": round(median(t / s for t, s in zip(tokens, seconds, strict=True)), 1),
        "peak_gb": report.peak_gb(), "runs": len(tokens), "tokens": tokens, "seconds": seconds,
        "same_losses": losses, "first_loss": losses[0], "last_same_loss": losses[-1],
        "own_losses": [float(loss) for loss in clock.losses[skipped:]],
    }  # fmt: skip


def base_parameters(shape: Shape) -> int:
    """Count the weights of a shape without making them."""
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        return parameter_count(AutoModelForCausalLM.from_config(shape.config()))


def compare(rows: list[report.Row], parameters: int, matmul_tflops: float | None) -> dict[str, float | None]:
    """Add TFLOP/s, share of the ceiling and gap of the losses to the rows.

    Args:
        rows: Rows of all systems, which are changed.
        parameters: Number of weights of the base.
        matmul_tflops: Ceiling in TFLOP/s, or None.

    Returns:
        Rate of this project's best system over the best rate of each peer; None where one of them is missing.
    """
    done = [row for row in rows if row["tokens_per_second"]]
    reference = next((row for row in done if row["system"] == "trainer"), done[0] if done else None)
    for row in done:
        row["tflops"] = round(training_flops(parameters, row["tokens_per_second"]) / 1e12, 6)
        row["fraction_of_ceiling"] = round(row["tflops"] / matmul_tflops, 4) if matmul_tflops else None
        assert reference is not None
        pairs = zip(row["same_losses"], reference["same_losses"], strict=True)
        row["loss_gap"] = max(abs(loss - expected) for loss, expected in pairs)

    def best(kind: str) -> float | None:
        return max((row["tokens_per_second"] for row in done if row["system"] == kind), default=None)

    ours, peers = best("afintro"), {kind: best(kind) for kind in PEERS}
    return {f"over_{kind}": round(ours / rate, 3) if ours and rate else None for kind, rate in peers.items()}


def main() -> None:
    """Run every system in its own process, print one table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--steps", type=int, default=None, help="number of timed steps of each system")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--systems", help=f"comma-separated list of {', '.join(SYSTEMS)}")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    steps = args.steps or (30 if args.shape == "tiny" else 12)
    if args.child == "ceilings":
        report.hand_back(report.measured_ceilings() | {"parameters": base_parameters(SHAPES[args.shape])})
        return
    if args.child:
        report.hand_back(measure(SYSTEMS[args.child], SHAPES[args.shape], steps, args.seed))
        return
    names = args.systems.split(",") if args.systems else DEFAULT.get(args.shape, LARGE)
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        parser.error(f"unknown systems: {', '.join(unknown)}; the systems are {', '.join(SYSTEMS)}")
    common = ["--shape", args.shape, "--steps", str(steps), "--seed", str(args.seed), "--child"]
    machine = report.in_child("benchmarks.train", [*common, "ceilings"], TIMEOUT)
    if "failed" in machine:
        raise SystemExit(f"the ceilings could not be measured: {machine['failed']}")
    rows = []
    for name in names:
        started = time.perf_counter()
        figures = report.in_child("benchmarks.train", [*common, name], TIMEOUT)
        rows.append(report.row("train", args.shape, SYSTEMS[name].kind, SYSTEMS[name].setting, **figures))
        outcome = figures.get("failed") or f"{figures['tokens_per_second']:,.0f} tokens/s"
        print(f"{name}: {outcome} ({time.perf_counter() - started:.0f} s)", flush=True)
        # The file is written after every system, so that a stopped run keeps its results.
        ratios = compare(rows, machine["parameters"], machine["ceilings"]["matmul_tflops"])
        done = names[: len(rows)]
        path = report.write(
            args.results, f"train-{args.shape}", machine, rows,
            ratios=ratios, not_run=[name for name in SYSTEMS if name not in done],
        )  # fmt: skip
    print(report.table(rows, COLUMNS))
    print(f"ceilings: {machine['ceilings']}; this project's best over each peer's best: {ratios}")
    print(f"not run: {', '.join(name for name in SYSTEMS if name not in names)}\nwritten: {path}")


if __name__ == "__main__":
    main()
