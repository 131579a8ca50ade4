"""What benchmarks are fed with, and how their costs are counted: pure functions."""

from statistics import median

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks import report
from benchmarks.inputs import grouped, stream, take, token_mean
from benchmarks.shapes import FULL, SHAPES, Lengths, cache_bytes, parameter_count, training_flops
from benchmarks.train import compare


def test_lengths_are_log_normal_around_620_and_answers_8_to_256():
    examples = take(stream(FULL, 32768, 0), 2000)
    prompts = [len(e.prompt_ids) for e in examples]
    answers = [len(e.answer_ids) for e in examples]
    assert 600 < median(prompts) < 640
    assert min(prompts) >= 150
    assert max(prompts) <= 1800
    assert min(answers) == 8
    assert max(answers) == 256
    assert 125 < sum(answers) / len(answers) < 139


def test_same_seed_same_examples_and_all_ids_in_the_vocabulary():
    one, other, third = (take(stream(FULL, 100, seed), 5) for seed in (1, 1, 2))
    assert one == other
    assert one != third
    assert all(10 <= token < 100 for e in one for token in e.prompt_ids + e.answer_ids)


def test_groups_hold_every_example_once_within_the_budget():
    examples = take(stream(Lengths(60, 15, 180, (2, 26)), 100, 0), 50)
    groups = list(grouped(examples, 400, rest=True))
    assert [e for group in groups for e in group] == examples
    assert all(sum(map(len, group)) <= 400 for group in groups)
    assert list(grouped(examples, 400)) == groups[:-1]


def test_weights_make_the_loss_the_mean_over_answer_tokens():
    examples = take(stream(Lengths(60, 15, 180, (2, 26)), 100, 0), 4)
    batch = token_mean(examples)
    counts = torch.tensor([float(len(e.answer_ids)) for e in examples])
    nll = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert float((nll * batch.weights).sum() / batch.denominator) == pytest.approx(
        float((nll * counts).sum() / counts.sum())
    )


@pytest.mark.parametrize(
    ("name", "parameters", "bytes_a_token"),
    [
        ("mistral7b", 7_248_023_552, 131_072),
        ("llama8b", 8_030_261_248, 131_072),
        ("qwen32b", 32_763_876_352, 262_144),
    ],
)
def test_shapes_are_those_of_the_published_models(name, parameters, bytes_a_token):
    shape = SHAPES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config())
    assert parameter_count(model) == parameters
    assert cache_bytes(model.config, torch.bfloat16) == bytes_a_token


def test_four_n_a_token():
    assert training_flops(7_248_023_552, 27_200) / 1e12 == pytest.approx(788.6, abs=0.1)


def test_rows_have_the_fields_of_the_contract_and_none_where_nothing_was_measured():
    row = report.row("train", "tiny", "afintro", "packed", tokens_per_second=5.0)
    fields = {"benchmark", "shape", "system", "setting", "tokens_per_second", "fraction_of_ceiling", "peak_gb", "runs"}
    assert set(row) == fields
    assert row["fraction_of_ceiling"] is None
    failed = report.row("train", "tiny", "trl", "packed", failed="ImportError: no trl")
    lines = report.table([row, failed], {"tokens_per_second": "tokens/s:,.0f"}).splitlines()
    assert lines[1].split() == ["afintro", "packed", "5"]
    assert lines[2].endswith("-  ImportError: no trl")


@pytest.mark.slow
def test_a_child_that_dies_is_a_reason_and_not_the_end():
    assert "No module named" in report.in_child("benchmarks.no_such_benchmark", [], 60)["failed"]


def test_the_best_of_each_is_compared_and_a_system_that_failed_is_left_out():
    def row(system, rate, losses):
        return report.row("train", "tiny", system, "", tokens_per_second=rate, same_losses=losses)

    failed = report.row("train", "tiny", "trl", "", failed="ImportError: no trl")
    rows = [
        row("afintro", 100.0, [5.0, 4.0]),
        row("afintro", 300.0, [5.0, 4.25]),
        row("trainer", 100.0, [5.0, 4.0]),
        failed,
    ]
    assert compare(rows, 1_000_000_000, 4.0) == {"over_trainer": 3.0, "over_trl": None}
    assert [row.get("loss_gap") for row in rows] == [0.0, 0.25, 0.0, None]
    assert rows[1]["tflops"] == 1.2
    assert rows[1]["fraction_of_ceiling"] == 0.3
    assert failed["tokens_per_second"] is None
