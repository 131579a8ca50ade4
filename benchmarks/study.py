"""Detection in the introspection study: all questions together, beside every question by itself.

Both ask the same questions about the same contexts, steered and not, and give log-probabilities of both answers. One by one, each
question is a forward pass over its whole dialogue; together, a context is read once for all of its questions, many at once.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

from afintro.explainer import ExplainerModule
from afintro.lm.branches import Prefix
from afintro.lm.forward import packed_logits
from afintro.lm.load import Lora
from afintro.lm.spans import spans
from afintro.study.conditions import Trial, readings
from afintro.study.evaluations.detection import questions
from afintro.study.session import Query, Scale, Session
from afintro.tasks.introspection import Introspection
from benchmarks import report
from benchmarks.shapes import device_name

RUNS = 3
COLUMNS = {
    "questions_per_second": "questions/s:,.0f", "times_slower": "times as slow:.1f", "largest_difference": "largest difference:.1e",
}  # fmt: skip
Answers = list[list[float]]


def session(model: str, contexts: int) -> Session:
    """A variant with an adapter that was drawn at random, so that it takes part."""
    module = ExplainerModule(model, lora=Lora(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    module.configure_model()
    drawn = torch.Generator().manual_seed(0)
    for name, weight in module.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.02, generator=drawn)
    module.to(device_name()).eval()
    return Session(module, Introspection(longest_context=450), 0, 0, Scale(contexts=contexts))


def one_by_one(opened: Session, queries: Sequence[Query], answers: Sequence[Sequence[int]]) -> Answers:
    """Every dialogue in a pass of its own."""
    found = []
    for query, wanted in zip(queries, answers, strict=True):
        asked = opened.dialogues.asked(query.context, query.question)
        prefix = Prefix(asked.context, query.steering, [asked.question])
        ids = torch.tensor([*prefix.ids, *asked.question], device=opened.module.device)
        bounds = torch.tensor([0, len(ids)], dtype=torch.int32, device=ids.device)
        changes = spans([prefix.steering], [0], [len(prefix.ids)], ids.device)
        logits = packed_logits(opened.model, ids, bounds, bounds[1:] - 1, changes)[0].float()
        found.append(logits.log_softmax(-1)[list(wanted)].tolist())
    return found


def timed(work: Callable[[], Answers]) -> tuple[Answers, float]:
    """What ``work`` returns, and its seconds."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


@torch.inference_mode()
def measure(model: str, contexts: int, runs: int) -> list[report.Row]:
    """A row for each way; they take turns."""
    opened = session(model, contexts)
    pair = opened.data.pair
    trials = [Trial(one, asked, "", pair, True) for one in readings(opened) for asked in questions(opened)]
    queries = [trial.query for trial in trials]
    answers = [opened.dialogues.answers(pair)] * len(queries)
    ways: dict[str, Callable[[], Answers]] = {
        "together": lambda: opened.ask(queries, answers),
        "one by one": lambda: one_by_one(opened, queries, answers),
    }
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Answers] = {}
    for _ in range(runs):
        for name, way in ways.items():
            found[name], seconds = timed(way)
            taken[name].append(seconds)
    first = torch.tensor(found["together"]).exp()
    rows = []
    for name, seconds_of in taken.items():
        slower = median(own / other for own, other in zip(seconds_of, taken["together"], strict=True))
        rows.append(report.row(
            "study", model, name, f"{len(queries)} questions, {len(readings(opened))} readings", runs=runs,
            questions_per_second=round(len(queries) / median(seconds_of), 1), times_slower=round(slower, 2),
            largest_difference=float((torch.tensor(found[name]).exp() - first).abs().max()), seconds=seconds_of,
        ))  # fmt: skip
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="study-base")
    parser.add_argument("--contexts", type=int, default=24)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    args = parser.parse_args()
    rows = measure(args.model, args.contexts, args.runs)
    print(report.table(rows, COLUMNS))
    machine = {"hardware": report.hardware(), "versions": report.versions(), "ceilings": {}}
    print("written:", report.write(args.results, f"study-{Path(args.model).name}", machine, rows))


if __name__ == "__main__":
    main()
