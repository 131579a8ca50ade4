"""Measure what four-bit base weights (``model.quantize: nf4``) cost: the loss before and after training an adapter on them.

The text is this project's pages: an adapter trains on their first part over plain and over quantized weights, from one seed,
in one order, and both are evaluated on a later part. Run it with ``python -m benchmarks.quantized`` where
``bitsandbytes`` can be imported (``PYTHONPATH=.venv/aside`` after ``make setup-real``).
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afintro.lm.load import load_model, load_tokenizer
from afintro.lm.lora import Lora, add_lora
from afintro.lm.nf4 import quantize_base_nf4
from afintro.toys.embedded import ensure_built
from benchmarks.report import RESULTS, hardware, row, table, versions, write

ROOT = Path(__file__).parents[1]
ROWS, LENGTH, EVALUATED = 4, 128, 8
WARMUP = 8


def texts(tokenizer: Any, steps: int) -> tuple[Tensor, Tensor]:
    """Return the training batches ``[steps, 4, 128]`` and the evaluated rows ``[8, 512]``, token ids of the pages in order."""
    pages = "\n\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    ids = torch.tensor(tokenizer(pages, add_special_tokens=False, verbose=False)["input_ids"])
    used, width = steps * ROWS * LENGTH, ROWS * LENGTH
    return ids[:used].view(steps, ROWS, LENGTH), ids[-EVALUATED * width :].view(EVALUATED, width)


@torch.no_grad()
def mean_loss(model: Any, rows: Tensor) -> float:
    """Return the mean loss of rows of token ids, in nats a token."""
    return float(torch.stack([model(input_ids=ids[None], labels=ids[None]).loss.float() for ids in rows]).mean())


def measure(directory: str, quantized: bool, batches: Tensor, evaluated: Tensor, rate: float) -> dict[str, float]:
    """Train an adapter on every batch once; return the loss of the evaluated rows before and after."""
    torch.manual_seed(0)
    model = add_lora(load_model(directory), Lora())
    if quantized:
        quantize_base_nf4(model, torch.device("cpu"))
    before = mean_loss(model, evaluated)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    for step, ids in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / WARMUP)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"loss_before": before, "loss_after": mean_loss(model, evaluated)}


def main() -> None:
    """Measure both, print a table and write ``quantized.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="hub id, directory, GGUF file or embedded name")
    parser.add_argument("--steps", type=int, default=48, help="optimizer steps of 4 rows of 128 tokens")
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--output_dir", type=Path, default=RESULTS)
    args = parser.parse_args()
    directory = ensure_built(args.model)
    batches, evaluated = texts(load_tokenizer(directory), args.steps)
    rows = []
    for system in ("plain", "nf4"):
        measured = measure(directory, system == "nf4", batches, evaluated, args.learning_rate)
        rows.append(row("quantized", args.model, system, f"{args.steps} steps", **measured))
    print(table(rows, {"loss_before": "loss before:.3f", "loss_after": "loss after:.3f"}))
    machine = {"hardware": hardware(), **versions()}
    print(write(args.output_dir, "quantized", machine, rows))


if __name__ == "__main__":
    main()
