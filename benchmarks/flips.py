"""How often a greedy answer changes when the same prompts are run in another batch arrangement, by dtype.

The toy organism answers with this project's engine, once for each batch size. The prompts are texts of its grammar, where
the margins between its likeliest tokens are those of a trained model, and questions that it does not understand, where the
margins are small. A row flips where its tokens differ from those of the same prompt at the first batch size. Intervals are
Wilson's at 95 % over prompts, because those of a bootstrap are empty where nothing flips.
"""

import argparse
import time
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from afintro.data.cue import MONITORED_SYSTEM
from afintro.data.introspection_texts import read_questions, read_self_reports
from afintro.data.text import chat, encode_prompt
from afintro.lm.generate import generate_greedy
from afintro.lm.load import eos_ids, load_model, load_tokenizer
from afintro.toys.embedded import ensure_built
from afintro.toys.organism import scenarios
from benchmarks import report
from benchmarks.shapes import device_name

NEW = 64
"""Largest number of tokens of an answer; the toy ends answers to its grammar after about ten."""
COLUMNS = {
    "flipped": "rows that differ:d", "rows": "rows:d", "rate": "rate:.2%", "ci_low": "low:.2%", "ci_high": "high:.2%",
    "tokens": "tokens:d",
}  # fmt: skip


def texts(count: int) -> dict[str, list[str]]:
    """Return at most ``count`` texts of each kind: scenarios in wordings that the toy never saw, and foreign questions."""
    questions = [question.text for question in read_questions()] + [item.text for item in read_self_reports().items]
    return {"its grammar": [s.text for s in scenarios(count, 7, True)], "foreign texts": questions[:count]}


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Compute the interval of a share (Wilson 1927) of ``hits`` in ``count``, at the normal quantile ``z``."""
    center, spread = hits + z * z / 2, z * sqrt(hits * (count - hits) / count + z * z / 4)
    return max(0.0, (center - spread) / (count + z * z)), (center + spread) / (count + z * z)


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[str], batches: Sequence[int]
) -> list[report.Row]:
    """Answer texts at each batch size, and count the answers that change.

    Args:
        model: The model that answers.
        tokenizer: The model's tokenizer.
        asked: Texts of the prompts.
        batches: Batch sizes; the first is the reference.

    Returns:
        A row for each batch size.
    """
    prompts = [encode_prompt(tokenizer, chat(MONITORED_SYSTEM, text)) for text in asked]
    stop = eos_ids(model, tokenizer)
    rows: list[report.Row] = []
    first: list[list[int]] = []
    for batch in batches:
        started = time.perf_counter()
        written = generate_greedy(model, prompts, max_new_tokens=NEW, eos_ids=stop, batch_size=batch)
        seconds = time.perf_counter() - started
        first = first or written
        flipped = sum(a != b for a, b in zip(first, written, strict=True))
        low, high = wilson(flipped, len(prompts))
        rows.append({
            "batch": batch, "reference": batches[0], "rows": len(prompts), "tokens": sum(map(len, written)), "runs": 1,
            "flipped": flipped, "rate": flipped / len(prompts), "ci_low": low, "ci_high": high, "seconds": round(seconds, 2),
        })  # fmt: skip
    return rows


def main() -> None:
    """Measure, print the table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=500, help="largest number of prompts of each kind")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[1, 8, 64, 256], help="batch sizes; the first is the reference"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    args = parser.parse_args()
    directory, rows = ensure_built("toy"), []
    tokenizer = load_tokenizer(directory)
    for dtype in args.dtypes:
        model = load_model(directory, dtype=dtype).to(device_name())  # type: ignore[arg-type]
        for kind, asked in texts(args.prompts).items():
            for figures in measure(model, tokenizer, asked, args.batches):
                setting = f"{kind}, batch {figures['batch']} against {figures['reference']}"
                rows.append(report.row("flips", "toy", dtype, setting, **figures))
    print(report.table(rows, COLUMNS))
    machine = {"hardware": report.hardware(), "versions": report.versions(), "ceilings": {}}
    print("written:", report.write(args.results, "flips-toy", machine, rows))


if __name__ == "__main__":
    main()
