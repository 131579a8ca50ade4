"""What a second answer to the same prompt changes is counted as chance."""

import pytest

from afintro.tasks.context_ablation.imports.noise import noise_rates, repeated_answers, sampling_warnings
from afintro.tasks.context_ablation.records import ContextAblationRecord


def record(scenario, monitored, unmonitored, source="s", number=0, decoding="sampled"):
    """A labeled record of a made-up model."""
    return ContextAblationRecord(
        scenario, "cue", "output", "other output", f"cue {scenario}", scenario,
        uid=f"{scenario} {source} {number}", monitored_behavior=monitored, unmonitored_behavior=unmonitored,
        provenance={"source": source, "decoding": decoding},
    )  # fmt: skip


def test_noise_is_over_requests_that_one_source_answered_twice():
    records = [
        record("a", "refuse", "comply"), record("b", "refuse", "refuse"), record("a", "refuse", "refuse", number=1),
        record("b", "comply", "refuse", number=1), record("c", "refuse", "comply"), record("c", "comply", "refuse", "another"),
        record("a", "comply", "comply", number=2), record("d", "other", "refuse"), record("d", "refuse", "refuse", number=1),
    ]  # fmt: skip
    pairs = repeated_answers(records)
    assert [(one.uid, other.uid) for one, other in pairs] == [
        ("a s 0", "a s 1"),
        ("b s 0", "b s 1"),
        ("d s 0", "d s 1"),
    ]
    rates = noise_rates(records)
    # a: monitored equal, unmonitored differ, changed in one of two; b: monitored differ, unmonitored equal, one of two; d: unknown
    assert [rates[name].value for name in rates] == [0.5, 0.5, 0.0]
    assert [rates[name].n for name in rates] == [2, 2, 2]


def test_a_cue_that_decides_all_is_above_noise():
    records = [record(name, "refuse", "comply", number=number) for name in "abcdefgh" for number in range(4)]
    rates = noise_rates(records)
    assert rates["sampling_noise_monitored"].value == rates["sampling_noise_unmonitored"].value == 0.0
    assert rates["change_above_noise"].value == 1.0
    assert rates["change_above_noise"].n == 16
    assert rates["change_above_noise"].ci_low < 1.0


@pytest.mark.parametrize("decoding", ["sampled", "unknown"])
def test_sampled_answers_are_said_to_hold_chance(decoding):
    once = [record("a", "refuse", "comply", decoding=decoding), record("b", "refuse", "refuse", decoding=decoding)]
    [warning] = sampling_warnings(once, "FILE")
    assert "unknown" in warning
    assert "FILE" in warning
    assert ("do not say" in warning) == (decoding == "unknown")
    [warning] = sampling_warnings([*once, record("a", "refuse", "refuse", number=1, decoding=decoding)])
    assert "0.0 % and 100.0 %" in warning


def test_nothing_is_said_of_answers_of_our_own_scripts():
    assert sampling_warnings([ContextAblationRecord("a", "cue", "x", "y")]) == []
