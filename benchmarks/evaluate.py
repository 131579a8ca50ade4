"""Validation of the same items in three ways: one teacher-forced pass, this project's generation, transformers' ``generate``.

Greedy exact match gives the same verdict each way. Generation continues every answer up to the limit that the package sets,
because a random model never stops. Half of the items expect what the model itself writes, so that both verdicts occur. The
figure is items per second; tokens per second count prompt and answer of each item, whatever was computed for it.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from afintro.data.batch import Example, collate
from afintro.evaluation.outcomes import answer_limit
from afintro.explainer.module import ExplainerModule
from afintro.lm.attention import NAME as PACKED
from afintro.lm.compiled import compile_layers
from afintro.lm.generate import generate_greedy
from benchmarks import ceilings, report
from benchmarks.inputs import grouped, stream, take, with_answer
from benchmarks.project import explainer
from benchmarks.shapes import SHAPES, device_name, parameter_count

ITEMS = {"tiny": 64}
BATCH = 64
PEERS = {"generate-64": 64, "generate-4": 4}
FEW = 2
"""Number of batches that ``generate`` at batch size 4 is timed on, because all items would take ten minutes."""
COLUMNS = {
    "items_per_second": "items/s:,.2f", "times_slower": "times as slow:.1f", "exact": "exact:d",
    "verdicts_that_differ": "verdicts that differ:d", "tokens_per_second": "tokens/s:,.0f", "peak_gb": "peak GB:.1f",
}  # fmt: skip
Tokens = list[list[int]]


def by_engine(module: ExplainerModule, prompts: Sequence[Sequence[int]], limit: int) -> Tokens:
    """Generate with this project's engine, as ``ExplainerModule.write`` calls it."""
    assert module.model is not None
    return generate_greedy(module.model, prompts, max_new_tokens=limit, eos_ids=[], batch_size=BATCH)


def by_generate(module: ExplainerModule, prompts: Sequence[Sequence[int]], limit: int, batch: int) -> Tokens:
    """Generate with transformers' ``generate`` on left-padded batches of prompts sorted by length."""
    model: Any = module.model
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    written: Tokens = [[] for _ in prompts]
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        longest = max(len(prompts[i]) for i in chosen)
        pads = [longest - len(prompts[i]) for i in chosen]
        ids = torch.tensor([[0] * pad + list(prompts[i]) for pad, i in zip(pads, chosen, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * len(prompts[i]) for pad, i in zip(pads, chosen, strict=True)])
        output = model.generate(
            input_ids=ids.to(device_name()), attention_mask=mask.to(device_name()), max_new_tokens=limit,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
        for i, row in zip(chosen, output[:, longest:].tolist(), strict=True):
            written[i] = row
    return written


def by_teacher(module: ExplainerModule, items: list[Example], budget: int) -> list[bool]:
    """Judge items as the package does, in packed rows of up to ``budget`` tokens."""
    order = sorted(range(len(items)), key=lambda i: len(items[i]))
    verdicts = [False] * len(items)
    done = 0
    for group in grouped((items[i] for i in order), budget, rest=True):
        for outcome in module.evaluate_batch(collate(group).to(device_name())):
            verdicts[order[done]] = outcome.exact
            done += 1
    return verdicts


def begins(written: Tokens, items: Sequence[Example]) -> list[bool]:
    """Judge generated tokens: exact if the text begins with the expected answer."""
    return [tuple(row[: len(e.answer_ids)]) == e.answer_ids for row, e in zip(written, items, strict=True)]


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Run ``work``; return its result, and its seconds and peak memory."""
    report.forget_peak()
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, {"seconds": time.perf_counter() - start, "peak_gb": report.peak_gb()}


@torch.inference_mode()
def peer(
    module: ExplainerModule, prompts: Sequence[Sequence[int]], limit: int, batch: int
) -> tuple[Tokens, dict[str, Any]]:
    """Time a run of ``generate``; where it fails, the figures hold the reason."""
    chosen = prompts[: FEW * batch] if batch < BATCH else prompts
    try:
        by_generate(module, chosen[:batch], 4, batch)
        return timed(lambda: by_generate(module, chosen, limit, batch))
    except RuntimeError as error:  # out of memory, most likely
        return [], {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}


@torch.inference_mode()
def measure(name: str, count: int, seed: int, peers: Sequence[str], compiled: bool) -> tuple[list[report.Row], int]:
    """Measure a shape: return a row for each system, and the number of weights."""
    shape = SHAPES[name]
    module = explainer(shape, seed)
    module.to(device_name()).eval()
    model: Any = module.model
    drawn = take(stream(shape.lengths, model.config.vocab_size, seed), count)
    prompts, limit = [e.prompt_ids for e in drawn], answer_limit(drawn)
    by_engine(module, prompts, limit)  # warms kernels, graphs and allocator
    written, cost = timed(lambda: by_engine(module, prompts, limit))
    items = [with_answer(e, written[i][: len(e.answer_ids)]) if i % 2 else e for i, e in enumerate(drawn)]
    measured = {f"engine, batch {BATCH}": (begins(written, items), cost)}
    model.get_base_model().set_attn_implementation("sdpa")
    for system in peers:
        text, cost = peer(module, prompts, limit, PEERS[system])
        measured[f"generate, batch {PEERS[system]}"] = (begins(text, items[: len(text)]), cost)
    model.get_base_model().set_attn_implementation(PACKED)
    if compiled:
        compile_layers(model)
    by_teacher(module, items, shape.budget)
    taught, teacher = timed(lambda: by_teacher(module, items, shape.budget))
    rows = []
    for system, (verdicts, cost) in {"teacher-forced": (taught, teacher), **measured}.items():
        setting = f"{len(verdicts)} items, {limit} tokens each"
        if "failed" in cost:
            rows.append(report.row("evaluate", name, system, setting, **cost))
            continue
        seconds, each = cost["seconds"], cost["seconds"] / len(verdicts)
        rows.append(report.row(
            "evaluate", name, system, setting, **cost, runs=1, exact=sum(verdicts),
            tokens_per_second=round(sum(map(len, items[: len(verdicts)])) / seconds, 1),
            items_per_second=round(1 / each, 3), times_slower=round(each / (teacher["seconds"] / count), 2),
            verdicts_that_differ=sum(a != b for a, b in zip(verdicts, taught, strict=False)),
        ))  # fmt: skip
    return rows, parameter_count(model)


def main() -> None:
    """Measure, print the table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--items", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--systems", default=",".join(PEERS), help="comma-separated list of peers to run; empty for the project alone"
    )
    parser.add_argument("--compiled", action="store_true", help="teacher forcing through compiled layers")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    args = parser.parse_args()
    peers = [name for name in args.systems.split(",") if name]
    if unknown := sorted(set(peers) - set(PEERS)):
        parser.error(f"unknown systems: {', '.join(unknown)}; the systems are {', '.join(PEERS)}")
    limits = ceilings.measure()
    report.forget_peak()
    count = args.items or ITEMS.get(args.shape, 256)
    rows, parameters = measure(args.shape, count, args.seed, peers, args.compiled)
    for row in rows:
        if row["system"] == "teacher-forced":  # generation is bound by memory, see benchmarks.generate
            row["tflops"] = round(2 * parameters * row["tokens_per_second"] / 1e12, 6)
            row["fraction_of_ceiling"] = round(row["tflops"] / limits.matmul_tflops, 4)
    print(report.table(rows, COLUMNS))
    machine = {"hardware": report.hardware(), "versions": report.versions(), "ceilings": asdict(limits)}
    print("written:", report.write(args.results, f"evaluate-{args.shape}", machine, rows))


if __name__ == "__main__":
    main()
