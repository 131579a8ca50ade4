"""Weak scaling: the same work for each device on one device and on several, for training and for pair generation.

Training is ``afintro fit`` under an overlay for several processes; generation is the pair generator under torchrun. Bases are
random, and records have realistic lengths. Rates are those of all devices together: of training without its first ten steps,
of generation from the loaded and compiled models to the merged files.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from math import log
from pathlib import Path
from statistics import median
from typing import Any

from afintro.data.files import write_jsonl
from afintro.toys.organism import ToySettings, make_tokenizer
from benchmarks import report
from benchmarks.inputs import SPREAD
from benchmarks.shapes import SHAPES, Shape

ROOT = Path(__file__).parent.parent
TIMEOUT = 180
"""Largest number of seconds of one run."""
LETTERS = "abcdefghijklmnopqrstuvwxyz "
COLUMNS = {"tokens_per_second": "tokens/s:,.0f", "times_one": "times one:.2f", "peak_gb": "peak GB:.1f"}


def prepare(folder: Path, shape: Shape, records: int) -> None:
    """Write a model directory without weights, and records of random letters, where each letter is a token."""
    tokenizer = make_tokenizer(ToySettings(vocabulary=263, context=4096), [])
    tokenizer.save_pretrained(folder / "model")
    config = shape.config()
    config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
    config.save_pretrained(folder / "model")
    drawn = random.Random(0)
    for name, count in (("train", records), ("validation", 8)):
        rows = []
        for _ in range(count):
            lengths = shape.lengths
            size = min(lengths.longest, max(lengths.shortest, drawn.lognormvariate(log(lengths.prompt), SPREAD)))
            outputs = ["".join(drawn.choices(LETTERS, k=drawn.randint(*lengths.answer))) + "." for _ in range(2)]
            rows.append(
                {
                    "ablation_prompt": "".join(drawn.choices(LETTERS, k=int(size))),
                    "system_prompt": "You are monitored.",
                    "random_hint_prediction": outputs[0],
                    "zeroshot_prediction": outputs[1],
                }
            )
        write_jsonl(folder / f"{name}.jsonl", rows)


def finished(command: list[str], cache: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in its own session, and end all of its processes after :data:`TIMEOUT` seconds.

    Args:
        command: The command and its arguments.
        cache: Folder for ``AFINTRO_CACHE``.
        place: Working directory.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "AFINTRO_CACHE": str(cache),
    }
    with subprocess.Popen(
        command, cwd=place, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its processes, which have sessions of their own
            time.sleep(10)
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            errors += f"\ndid not finish within {TIMEOUT} s"
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def failure(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the first error that a command names, or its last line, in place of figures."""
    print(done.stderr, file=sys.stderr)
    lines = done.stderr.strip().splitlines() or ["no output"]
    return {"failed": next((line for line in lines if "Error:" in line), lines[-1])[:300]}


def fit(folder: Path, shape: Shape, overlay: str, devices: int, steps: int, options: list[str]) -> dict[str, Any]:
    """Train, and return tokens per second of all devices from the trainer's log, without the first ten steps.

    Args:
        folder: Holds model and records, and gets the run.
        shape: Shape of the base.
        overlay: Name of the configuration overlay for several processes.
        devices: Number of devices.
        steps: Number of steps.
        options: Further arguments of ``fit``.
    """
    run = folder / f"{overlay}-{devices}"
    bare = shape.dtype.itemsize == 4
    command = [
        sys.executable, "-m", "benchmarks.random_base", "fit", "--config", str(ROOT / "configs/context_ablation.yaml"),
        "--config", str(ROOT / f"configs/{overlay}.yaml"), "--other_base", "null",
        "--trainer.devices", str(devices), "--trainer.max_epochs", "100", "--trainer.max_steps", str(steps),
        "--trainer.limit_val_batches", "0", "--trainer.enable_checkpointing", "false", "--trainer.log_every_n_steps", "5",
        "--trainer.callbacks", "[]", "--trainer.precision", "32-true" if bare else "bf16-mixed",
        "--model.name", str(folder / "model"), "--model.dtype", "float32" if bare else "bfloat16",
        "--model.lora.r", str(shape.lora.r), "--model.lora.alpha", str(shape.lora.alpha),
        "--data.train_path", str(folder / "train.jsonl"), "--data.validation_path", str(folder / "validation.jsonl"),
        "--data.answer_form", "text", "--data.max_tokens", str(shape.budget), *options,
    ]  # fmt: skip
    run.mkdir()
    done = finished(command, folder, run)
    rates = []
    for path in run.glob("lightning_logs/*/*/metrics.csv"):
        for row in csv.DictReader(path.open()):
            if row.get("train/tokens_per_second") and int(row["step"]) >= 10:
                rates.append(float(row["train/tokens_per_second"]))
    if not rates:
        return failure(done)
    memory = [
        line.split("preflight: ")[1].split()[0] for line in done.stderr.splitlines() if "accelerator memory" in line
    ]
    return {
        "tokens_per_second": round(devices * median(rates)), "runs": len(rates), "peak_gb": float(memory[0]) if memory else None
    }  # fmt: skip


def generate(folder: Path, shape: Shape, devices: int, count: int, new: int) -> dict[str, Any]:
    """Generate pairs, and return new tokens per second of all devices, from loaded models to merged files.

    Args:
        folder: Holds model and records, and gets the pairs.
        shape: Shape of the base.
        devices: Number of devices.
        count: Samples of each device.
        new: Number of new tokens of an answer.
    """
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices),
        "-m", "benchmarks.random_base", "pairs", str(folder), str(count), str(new), "256",
    ]  # fmt: skip
    done = finished(command, folder, folder)
    seconds = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("seconds ")]
    if not seconds:
        return failure(done)
    return {"tokens_per_second": round(2 * count * devices * new / seconds[0]), "runs": 1}


def main() -> None:
    """Measure, print the table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--overlays", nargs="*", default=["ddp"], help="overlays in configs/: ddp, fsdp")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--samples", type=int, default=200, help="samples of generation for each device; 0 only trains")
    parser.add_argument("--new", type=int, default=256, help="number of tokens of an answer")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    parser.add_argument(
        "--options",
        nargs=argparse.REMAINDER,
        default=[],
        help="further arguments of fit, such as --model.compile_layers=true",
    )
    args = parser.parse_args()
    shape, rows = SHAPES[args.shape], []
    machine = {"hardware": report.hardware(), "versions": report.versions(), "ceilings": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, shape, max(2000, args.samples * max(args.devices)))
        runs = [(f"fit, {overlay}", overlay) for overlay in args.overlays] + ([("pairs", "")] if args.samples else [])
        for system, overlay in runs:
            first = None
            for devices in args.devices:
                if overlay:
                    figures = fit(folder, shape, overlay, devices, args.steps, args.options)
                else:
                    figures = generate(folder, shape, devices, args.samples, args.new)
                rate = figures.get("tokens_per_second")
                first = first or rate
                times = round(rate / first, 3) if rate and first else None
                rows.append(report.row("scale", args.shape, system, f"{devices} devices", times_one=times, **figures))
                print(f"{system}, {devices} devices: {figures}", flush=True)
                # The file is written after every run, so that a stopped benchmark keeps its results.
                path = report.write(args.results, f"scale-{args.shape}", machine, rows, options=args.options)
    print(report.table(rows, COLUMNS))
    print("written:", path)


if __name__ == "__main__":
    main()
