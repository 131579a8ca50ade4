"""Counts of the real files of launchnlp/VLAF, where they are at hand."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from afintro.tasks.context_ablation.imports.vlaf import find_pairs, read_source
from afintro.tasks.context_ablation.imports.write import ImportSettings, records_of, split_of

DATA = Path(os.environ.get("AFINTRO_AF_DATA") or Path(__file__).parents[5] / "shared/data/af").parent / "vlaf"
pytestmark = pytest.mark.skipif(
    not DATA.is_dir(),
    reason=f"no files of launchnlp/VLAF at {DATA} (set AFINTRO_AF_DATA; the folder vlaf lies beside it)",
)


@pytest.fixture(scope="module")
def imported():
    """All pairs of the files."""
    pairs, unpaired = find_pairs(DATA)
    return records_of([read_source(*pair) for pair in pairs], unpaired)


def test_every_answer_has_its_partner(imported):
    assert imported.unpaired == []
    sources = {name: (counts.pairs, counts.requests, counts.equal) for name, counts in imported.counts.items()}
    assert sources == {
        "advbench/helpful_only_simple/Llama-3-8B-Instruct": (520, 520, 36),
        "redwood_helpful/helpful_only/Qwen3-8B": (352, 352, 0),
        "redwood_helpful/helpful_only_simple/Llama-3-8B-Instruct": (352, 352, 21),
        "redwood_helpful/helpful_only_simple/Qwen3-8B": (352, 352, 0),
    }
    assert imported.totals == {
        "pairs": 1576, "requests": 871, "equal": 57, "unmatched_monitored": 0, "unmatched_unmonitored": 0, "no_answer": 0,
        "empty_monitored": 0, "empty_unmonitored": 0,
    }  # fmt: skip


@pytest.mark.parametrize("side", ["monitored", "unmonitored"])
def test_the_answers_are_those_of_the_files_side_by_side(imported, side):
    condition = {"monitored": "True", "unmonitored": "False"}[side]
    rows = [row for path in DATA.rglob(f"*_{condition}.json") for row in json.loads(path.read_text())]
    answered = Counter((row["input"], row["response"]) for row in rows)
    assert answered == Counter(
        (getattr(record, f"{side}_prompt"), getattr(record, f"{side}_output")) for record in imported.records
    )
    assert all(record.scenario in record.monitored_prompt for record in imported.records)
    assert all(
        record.monitored_prompt.replace("r>True<", "r>False<") == record.unmonitored_prompt
        for record in imported.records
    )


def test_no_request_is_in_two_splits(imported):
    sides = {}
    for name, rows in split_of(imported.records, ImportSettings()).items():
        for row in rows:
            sides.setdefault(imported.records[row].scenario_id, set()).add(name)
    assert len(sides) == 871
    assert Counter(name for split in sides.values() for name in split).total() == 871
