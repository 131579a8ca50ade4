"""Reading a study's folder: the rows that exist, and the reasons of those that do not."""

import pytest

from afintro.data.files import write_json
from afintro.study.results import Plan, StudyResults
from tests.study.made_up import answer, write_rows

PLAN = Plan("small", {"original_v3": ("logprobs", "chat"), "no_steer": ("logprobs",)}, (0, 1))
ROWS = [answer("adapter", "feelings-0", 0.5), answer("base", "feelings-0", 0.4)]


@pytest.fixture
def folder(tmp_path):
    """One variant's self-reports of both seeds."""
    for seed in (0, 1):
        write_rows(tmp_path, "original_v3", "logprobs", seed, ROWS)
    return tmp_path


def line(folder, seed=1):
    return folder / "original_v3" / "logprobs" / f"seed_{seed}.jsonl"


def test_cells_and_names_are_in_the_order_of_the_plan():
    assert PLAN.names == ["logprobs", "chat"]
    assert PLAN.keys[:3] == [
        ("original_v3", "logprobs", 0),
        ("original_v3", "logprobs", 1),
        ("original_v3", "chat", 0),
    ]
    assert len(PLAN.keys) == 6


def test_what_is_there_and_what_is_not(folder):
    results = StudyResults(folder, PLAN)
    assert results.done("original_v3", "logprobs") == [0, 1]
    assert results.done("original_v3", "chat") == []
    assert results.steps["original_v3", "logprobs", 0] == 300
    assert results.missing["no_steer", "logprobs", 1] == "not there"
    assert len(results.missing) == 4


def test_what_the_runner_has_a_reason_against_does_not_count(folder):
    """Whether the rows exist or not: rows of other settings look like any rows."""
    reasons = {("no_steer", "logprobs", 0): "training broke", ("original_v3", "logprobs", 0): "is of other settings"}
    results = StudyResults(folder, Plan("small", PLAN.evaluations, PLAN.seeds, reasons))
    assert results.missing["no_steer", "logprobs", 0] == "training broke"
    assert results.missing["original_v3", "logprobs", 0] == "is of other settings"
    assert results.done("original_v3", "logprobs") == [1]
    assert [row["seed"] for row in results.logprobs("original_v3")] == [1, 1]


def test_rows_bear_the_seed_of_their_file(folder):
    rows = StudyResults(folder, PLAN).logprobs("original_v3")
    assert [row["seed"] for row in rows] == [0, 0, 1, 1]
    assert rows[0]["p_yes"] == 0.5
    assert StudyResults(folder, PLAN).logprobs("no_steer") == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "seed_1.jsonl, line 1: is not JSON"),
        ("[]\n", "seed_1.jsonl, line 1: is not a JSON object"),
        ('{"evaluation": "logprobs", "variant": "no_steer", "seed": 1}\n{}\n', "('no_steer', 'logprobs', 1)"),
        ('{"evaluation": "logprobs", "variant": "original_v3", "seed": 0}\n{}\n', "('original_v3', 'logprobs', 0)"),
        ('{"evaluation": "logprobs", "variant": "original_v3", "seed": 1}\n', "no rows"),
    ],
)
def test_a_broken_head_is_missing_with_its_reason(folder, content, reason):
    line(folder).write_text(content)
    results = StudyResults(folder, PLAN)
    assert reason in results.missing["original_v3", "logprobs", 1]
    assert results.done("original_v3", "logprobs") == [0]


@pytest.mark.parametrize(
    ("row", "reason"),
    [('{"system": "base"', "line 3: is not JSON"), ('{"system": "base"}', "line 3: lacks the field 'question'")],
)
def test_a_broken_row_takes_its_file_out(folder, row, reason):
    """Half a file would be another sample."""
    kept = line(folder).read_text().splitlines()
    line(folder).write_text("\n".join([*kept[:2], row]) + "\n")
    results = StudyResults(folder, PLAN)
    assert [one["seed"] for one in results.logprobs("original_v3")] == [0, 0]
    assert reason in results.missing["original_v3", "logprobs", 1]
    assert results.done("original_v3", "logprobs") == [0]


def test_bytes_that_are_not_text_are_a_reason_too(folder):
    line(folder).write_bytes(b"\xff\xfe\x00")
    assert "is not JSON" in StudyResults(folder, PLAN).missing["original_v3", "logprobs", 1]


class TestSummary:
    def path(self, folder):
        return folder / "original_v3" / "logprobs" / "summary.json"

    def test_is_read(self, folder):
        content = {"metrics": {}, "seeds": [0, 1], "version": 2}
        write_json(self.path(folder), content)
        results = StudyResults(folder, Plan("small", PLAN.evaluations, (1, 0)))
        assert results.summary("original_v3", "logprobs") == content
        assert results.warnings == []

    def test_of_an_earlier_version_is_not_taken_for_this_one(self, folder):
        write_json(self.path(folder), {"metrics": {}, "seeds": [0, 1]})
        results = StudyResults(folder, PLAN)
        assert results.summary("original_v3", "logprobs") is None
        assert "earlier version" in results.warnings[0]

    def test_of_other_seeds_is_not_taken_for_these(self, folder):
        write_json(self.path(folder), {"metrics": {}, "seeds": [0]})
        results = StudyResults(folder, PLAN)
        assert results.summary("original_v3", "logprobs") is None
        assert "of seeds [0], not [0, 1]" in results.warnings[0]

    @pytest.mark.parametrize("content", ["{", "[]", '{"metrics": 3}', None])
    def test_unreadable_is_warned_of(self, folder, content):
        if content is not None:
            self.path(folder).write_text(content)
        results = StudyResults(folder, PLAN)
        assert results.summary("original_v3", "logprobs") is None
        assert "no readable summary.json" in results.warnings[0]

    def test_without_rows_does_not_count(self, folder):
        """Left from rows that were removed."""
        write_json(folder / "no_steer" / "logprobs" / "summary.json", {"metrics": {}})
        results = StudyResults(folder, PLAN)
        assert results.summary("no_steer", "logprobs") is None
        assert results.warnings == []


def test_a_variant_may_have_seeds_of_its_own():
    plan = Plan("small", PLAN.evaluations, (0, 1), seeds_of={"no_steer": (0, 1, 2)})
    assert [key for key in plan.keys if key[0] == "no_steer"] == [("no_steer", "logprobs", seed) for seed in (0, 1, 2)]
    assert {seed for variant, _, seed in plan.keys if variant == "original_v3"} == {0, 1}
