"""The evaluations of the introspection study: all questions of an evaluation together, beside every question by itself.

Both ways ask the adapter and the base the same questions about the same contexts, steered and not. One by one, each question
is a pass of its own over its whole dialogue, or an answer that is written alone. Together, a context is read once for all of
its questions, many at once.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch

from afintro.explainer.module import ExplainerModule
from afintro.lm.forward import packed_logits
from afintro.lm.lora import Lora
from afintro.lm.spans import spans
from afintro.study.asking.queries import Query, WrittenAnswer
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow
from afintro.study.settings import EVALUATIONS, Scale
from afintro.tasks.introspection.task import Introspection
from benchmarks import report
from benchmarks.shapes import device_name

RUNS = 3
COLUMNS = {
    "rows_per_second": "rows/s:,.0f", "times_slower": "times as slow:.1f", "largest_difference": "largest difference:.1e",
    "texts_that_differ": "texts that differ:d",
}  # fmt: skip


class OneByOne(Session):
    """A session that asks every question by itself and reads the context again for each question.

    The answers to choose from still share a question, and the logit lens, which few questions use, is as in a session.
    """

    def ask(self, queries: Sequence[Query], answers: Sequence[Sequence[int]]) -> list[list[float]]:
        """Ask as a session does, with a single pass over each dialogue."""
        scores = []
        for query, wanted in zip(queries, answers, strict=True):
            asked = self.dialogues.asked(query.context, query.question, query.prefix)
            ids = torch.tensor([*asked.context, *asked.question], device=self.module.device)
            bounds = torch.tensor([0, len(ids)], dtype=torch.int32, device=ids.device)
            changes = spans([query.steering], [0], [len(asked.context)], ids.device)
            with torch.inference_mode():
                logits = packed_logits(self.model, ids, bounds, bounds[1:] - 1, changes)[0].float()
            scores.append(logits.log_softmax(-1)[list(wanted)].tolist())
        return scores

    def score(
        self, queries: Sequence[Query], words: Sequence[Sequence[str]], keep_steering: bool = False
    ) -> list[list[float]]:
        """Score words as a session does."""
        return [
            Session.score(self, [query], [choices], keep_steering)[0]
            for query, choices in zip(queries, words, strict=True)
        ]

    def write(self, queries: Sequence[Query], keep_steering: bool = False) -> list[WrittenAnswer]:
        """Write answers as a session does."""
        return [Session.write(self, [query], keep_steering)[0] for query in queries]


def sessions(model: str, contexts: int, items: int) -> dict[str, Session]:
    """Make sessions of a variant with a random adapter: together, and one by one.

    Args:
        model: Hub id, directory or embedded name of the base.
        contexts: Number of contexts of each evaluation.
        items: Number of items of each evaluation.
    """
    module = ExplainerModule(model, lora=Lora(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    module.configure_model()
    drawn = torch.Generator().manual_seed(0)
    for name, weight in module.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.02, generator=drawn)
    module.to(device_name()).eval()
    data, scale = Introspection(longest_context=450), Scale(contexts=contexts, items=items)
    return {
        "together": Session(module, data, 0, 0, scale),
        "one by one": OneByOne(module, data, 0, 0, scale),
    }


def asked(evaluation: str, session: Session) -> tuple[list[ResultRow], float]:
    """Run an evaluation; return its rows and its seconds."""
    start = time.perf_counter()
    rows: list[ResultRow] = import_module(f"afintro.study.evaluations.{evaluation}").measure(session)
    return rows, time.perf_counter() - start


def leaves(value: Any) -> Iterator[Any]:
    """Yield all values of a nested row, in order."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


def differences(rows: Sequence[ResultRow], others: Sequence[ResultRow]) -> tuple[float, int]:
    """Return the largest difference of two numbers (log-odds in nats, probabilities), and how many other values differ."""
    largest, texts = 0.0, 0
    for one, other in zip(chain(*map(leaves, rows)), chain(*map(leaves, others)), strict=True):
        if isinstance(one, float) and isinstance(other, float):
            largest = max(largest, abs(one - other))
        else:
            texts += one != other
    return largest, texts


def measure(model: str, contexts: int, items: int, runs: int, evaluations: Sequence[str]) -> list[report.Row]:
    """Measure every evaluation both ways, which take turns.

    Args:
        model: Hub id, directory or embedded name of the base.
        contexts: Number of contexts of each evaluation.
        items: Number of items of each evaluation.
        runs: Number of timed runs.
        evaluations: Names of the evaluations.

    Returns:
        A row for each evaluation and way, and two rows for all evaluations together.
    """
    ways = sessions(model, contexts, items)
    taken: dict[str, dict[str, list[float]]] = {name: {way: [] for way in ways} for name in evaluations}
    rows, count = [], 0
    for name in evaluations:
        rows_of = {way: asked(name, session)[0] for way, session in ways.items()}  # the first run is not timed
        for _ in range(runs):
            for way, session in ways.items():
                rows_of[way], seconds = asked(name, session)
                taken[name][way].append(seconds)
        count += len(rows_of["together"])
        for way, seconds_of in taken[name].items():
            largest, texts = differences(rows_of[way], rows_of["together"])
            rows.append(report.row(
                "study", model, way, f"{name}, {len(rows_of[way])} rows", runs=runs, seconds=seconds_of,
                rows_per_second=round(len(rows_of[way]) / median(seconds_of), 1), largest_difference=largest,
                texts_that_differ=texts, times_slower=round(ratio(seconds_of, taken[name]["together"]), 2),
            ))  # fmt: skip
    for way in ways:
        mine, together = (
            [sum(run) for run in zip(*(taken[n][w] for n in evaluations), strict=True)] for w in (way, "together")
        )
        rows.append(report.row(
            "study", model, way, f"all of these, {count} rows", runs=runs, seconds=mine,
            rows_per_second=round(count / median(mine), 1), times_slower=round(ratio(mine, together), 2),
        ))  # fmt: skip
    return rows


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Return the median ratio over runs, each compared with the other way of the same turn."""
    return median(mine / other for mine, other in zip(seconds, others, strict=True))


def main() -> None:
    """Measure, print the table, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="study-base")
    parser.add_argument("--evaluations", nargs="+", default=list(EVALUATIONS), choices=EVALUATIONS)
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    args = parser.parse_args()
    rows = measure(args.model, args.contexts, args.items, args.runs, args.evaluations)
    print(report.table(rows, COLUMNS))
    machine = {"hardware": report.hardware(), "versions": report.versions(), "ceilings": {}}
    print("written:", report.write(args.results, f"study-{Path(args.model).name}", machine, rows))


if __name__ == "__main__":
    main()
