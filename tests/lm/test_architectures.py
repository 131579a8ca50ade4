"""Every family of causal language models: as transformers and PEFT have it, packed or padded, and as the page of models says."""

import re
from pathlib import Path

import pytest

from afintro.lm.interventions import decoder_layers
from afintro.lm.padded import VERIFIED
from benchmarks.architectures.__main__ import END, START, table
from benchmarks.architectures.checks import CHECKS, Case
from benchmarks.architectures.families import NAMES, WRAPPERS

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
# Several residual streams: there is no place where a vector would be added.
LACKING = {"gemma3n_text": {"interventions"}}
# One family of every kind for the fast suite: windows, caps, values of another width, experts, wrappers, lengths that matter.
FAST = {
    "cohere2", "deepseek_v3", "exaone4", "gemma2", "gemma3", "glm4", "gpt2", "gpt_neox", "gpt_oss", "granite", "llama",
    "llama, dynamic RoPE", "llama4_text", "ministral3", "mistral", "mixtral", "nemotron", "olmo2", "opt", "phi3, LongRoPE",
    "qwen2", "qwen3_moe", "smollm3",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.long) for name in NAMES]
)
def test_logits_and_tokens_are_those_of_transformers(name):
    case = Case(name)
    assert CHECKS["logits"](case)
    assert CHECKS["tokens"](case)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_interventions_and_adapters(name):
    case = Case(name)
    assert {check for check in ("interventions", "LoRA") if not CHECKS[check](case)} == LACKING.get(name, set())


@pytest.mark.slow
def test_verified_are_the_families_of_the_table_that_run_packed():
    found = set()
    for name in NAMES:
        kind = name.split(",")[0]
        if kind in VERIFIED:
            case = Case(name)
            config = case.model.config
            found |= {config.model_type, config.get_text_config().model_type}
            assert case.packed
    assert found == VERIFIED


def test_the_table_has_many_families():
    assert len({name.split(",")[0] for name in NAMES}) >= 38
    assert len(WRAPPERS) >= 6


@pytest.mark.parametrize("name", ["llama4_text", "gemma3", "qwen3_vl", "modernbert-decoder", "gpt2"])
def test_decoder_layers_are_those_of_the_language_model(name):
    model = Case(name).plain
    assert len(decoder_layers(model)) == model.config.get_text_config().num_hidden_layers


def test_the_page_has_a_row_for_every_family():
    rows = re.findall(
        r"^\| `([\w-]+)`(, [\w ]+)?(?: \(wrapper\))? \| (packed|padded) \|", PAGE.read_text(), re.MULTILINE
    )
    assert [kind + more for kind, more, _ in rows] == NAMES
    assert {kind for kind, _, how in rows if how == "packed"} <= VERIFIED


@pytest.mark.long
def test_the_page_is_what_its_command_writes():
    written = PAGE.read_text().split(START)[1].split(END)[0].strip()
    assert written == table(NAMES)
