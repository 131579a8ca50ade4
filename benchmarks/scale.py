"""Weak scaling: the same work a device on one device and on several, for training and for pair generation.

Training is ``afintro fit`` itself, under an overlay for several processes; generation is the pair generator under torchrun. Bases
are random, records have the lengths of the design. Rates are those of all devices together; training without its first ten
steps, generation from the loaded and compiled models to the merged files.
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
"""Seconds that one run may take."""
LETTERS = "abcdefghijklmnopqrstuvwxyz "
COLUMNS = {"tokens_per_second": "tokens/s:,.0f", "times_one": "times one:.2f", "peak_gb": "peak GB:.1f"}


def prepare(folder: Path, shape: Shape, records: int) -> None:
    """A model directory without weights, and records of random letters: a letter is a token."""
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
    """A command run in ``place`` in its own session, all of whose processes are ended after :data:`TIMEOUT` seconds."""
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
            errors += f"\nnot done after {TIMEOUT} s"
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def failure(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The first error that a command names, or its last words, as the figures' stand-in."""
    print(done.stderr, file=sys.stderr)
    lines = done.stderr.strip().splitlines() or ["no output"]
    return {"failed": next((line for line in lines if "Error:" in line), lines[-1])[:300]}


def fit(folder: Path, shape: Shape, overlay: str, devices: int, steps: int, options: list[str]) -> dict[str, Any]:
    """Tokens per second of all devices, from the trainer's own log; the first ten steps are not counted."""
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
    """New tokens per second of all devices, from loaded models to merged files."""
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
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--overlays", nargs="*", default=["ddp"], help="of configs/: ddp, fsdp")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--samples", type=int, default=200, help="of generation, a device; 0: train only")
    parser.add_argument("--new", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    parser.add_argument(
        "--options", nargs=argparse.REMAINDER, default=[], help="all that follows is fit's: --model.compile_layers=true"
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
                    found = fit(folder, shape, overlay, devices, args.steps, args.options)
                else:
                    found = generate(folder, shape, devices, args.samples, args.new)
                rate = found.get("tokens_per_second")
                first = first or rate
                times = round(rate / first, 3) if rate and first else None
                rows.append(report.row("scale", args.shape, system, f"{devices} devices", times_one=times, **found))
                print(f"{system}, {devices} devices: {found}", flush=True)
                # After every run: whoever stops the benchmark keeps what there is.
                path = report.write(args.results, f"scale-{args.shape}", machine, rows, options=args.options)
    print(report.table(rows, COLUMNS))
    print("written:", path)


if __name__ == "__main__":
    main()
