"""What explaining does to the explained: nothing for an identity adapter, a warning for a damaged one."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from afintro.data.control_strings import encode_text
from afintro.data.cue import MONITORED_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.files import write_json
from afintro.data.text import chat, render
from afintro.errors import UserError
from afintro.explainer.explained import CONDITIONS, Said, change_of_explained, compare, damage, is_organism
from afintro.explainer.module import ExplainerModule
from afintro.lm.generate import generate_greedy
from afintro.lm.lora import Lora
from afintro.ranks import Ranks
from afintro.tasks.context_ablation import ContextAblation
from afintro.tasks.context_ablation.records import read_records, to_json
from afintro.tasks.settings import TaskSettings
from afintro.tasks.steering.records import SteeringRecord
from tests.conftest import write_records
from tests.tasks.stand_in import trainer_of

MEASURES = ("behavior_gap", "compliance_gap", "refusal_rate", "labeled", "nll")


@pytest.fixture(scope="module")
def module(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ExplainerModule:
    """An explainer on the small model with a sharp vocabulary matrix, so that it is sure of what it writes itself."""
    folder = tmp_path_factory.mktemp("sharp")
    model = AutoModelForCausalLM.from_pretrained(small_model)
    model.lm_head.weight.data *= 20
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(small_model).save_pretrained(folder)
    torch.manual_seed(0)
    made = ExplainerModule(str(folder), lora=Lora(r=4, alpha=8))
    made.configure_model()
    return made


def own_output(module: ExplainerModule, prompt: str) -> str:
    ids = encode_text(module.tokenizer, prompt)
    with module.evaluating(), module.loaded().disable_adapter():
        [new] = generate_greedy(module.loaded(), [ids], max_new_tokens=12, eos_ids=[2], batch_size=1)
    return str(module.tokenizer.decode(new))


@pytest.fixture(scope="module")
def records(module: ExplainerModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records that the explainer's base is said to have made."""
    folder = tmp_path_factory.mktemp("asked")
    for split, held_out in (("train", False), ("test", True)):
        path = write_records(folder / f"{split}.json", 12, seed=1, held_out_wording=held_out)
        rows = []
        for record in read_records(str(path)):
            prompts = {
                f"{name}_prompt": render(module.tokenizer, chat(system, record.scenario))
                for name, system in (("monitored", MONITORED_SYSTEM), ("unmonitored", UNMONITORED_SYSTEM))
            }
            outputs = {f"{name}_output": own_output(module, prompts[f"{name}_prompt"]) for name in CONDITIONS}
            cut = {f"{name}_truncated": True for name in CONDITIONS}
            organism = {"model": "m", "fingerprint": module.identity["fingerprint"]}
            rows.append(to_json(replace(record, **prompts, **outputs, **cut, provenance=organism)))
        write_json(path, rows)
    return folder


def data_of(module: ExplainerModule, records: Path, **settings: Any) -> ContextAblation:
    paths = {
        f"{split}_path": str(records / f"{name}.json") for split, name in (("train", "train"), ("validation", "test"))
    }
    data = ContextAblation(**paths, **settings)
    data.trainer = trainer_of(module)
    data.setup("validate")
    return data


def with_adapter(module: ExplainerModule, size: float) -> None:
    """Set every LoRA B to random numbers of a size."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.copy_(size * torch.randn_like(parameter))


def test_an_identity_adapter_changes_nothing(module: ExplainerModule, records: Path) -> None:
    with_adapter(module, 0.0)
    data = data_of(module, records)
    found = change_of_explained(module, data, "validation")
    assert found is not None
    assert (found["scenarios"], found["base_is_organism"], found["damaged"], found["same_answers"]) == (
        12,
        True,
        False,
        1.0,
    )
    for name in MEASURES:
        assert found["metrics"][name]["difference"]["value"] == 0.0, name
        assert found["metrics"][name]["before"] == found["metrics"][name]["after"], name
    assert found["metrics"]["perplexity"]["ratio"]["value"] == 1.0
    assert found["behaviors"]["before"] == found["behaviors"]["after"]
    assert not [line for line in data.warnings if "explained" in line]


def test_a_damaged_adapter_is_flagged(module: ExplainerModule, records: Path) -> None:
    with_adapter(module, 30.0)
    data = data_of(module, records)
    found = change_of_explained(module, data, "validation")
    assert found is not None
    assert found["damaged"]
    assert found["same_answers"] < 0.5
    assert found["metrics"]["nll"]["difference"]["ci_low"] > 1
    [warning] = [line for line in data.warnings if line.startswith("explained")]
    assert "perplexity" in warning
    assert found == change_of_explained(module, data, "validation"), "it is deterministic"


def test_processes_share_the_scenarios_and_say_the_same(module: ExplainerModule, records: Path) -> None:
    with_adapter(module, 0.3)
    data = data_of(module, records, explained=7)
    alone = change_of_explained(module, data, "validation")
    assert alone is not None
    assert alone["scenarios"] == 7
    kept: list[Sequence[Any]] = []

    class Second(Ranks):
        def gathered(self, values: Sequence[Any]) -> list[Any]:
            kept.append(values)
            return [(at, dict(values).get(at, values[0][1])) for at in range(7)]

    class First(Ranks):
        def gathered(self, values: Sequence[Any]) -> list[Any]:
            return [*values, *kept.pop(0)]

    with pytest.MonkeyPatch.context() as patch:
        for rank in (Second(1, 2), First(0, 2)):
            patch.setattr(ExplainerModule, "sharing", rank)
            together = change_of_explained(module, data, "validation")
    assert not kept
    assert together is not None
    assert together["behaviors"] == alone["behaviors"]
    assert together["metrics"]["nll"]["after"]["value"] == pytest.approx(
        alone["metrics"]["nll"]["after"]["value"], abs=1e-5
    )


def without_provenance(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["provenance"] = {}


def without_prompts(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["hint_prompt_full"] = ""


@pytest.mark.parametrize(
    ("change", "explained", "measured"),
    [
        (None, None, True), (None, 0, False), (without_provenance, None, False), (without_provenance, 5, True),
        (without_prompts, None, False), (without_prompts, 5, False),
    ],
)  # fmt: skip
def test_it_is_asked_where_the_base_is_the_organism(
    module: ExplainerModule,
    records: Path,
    tmp_path: Path,
    change: Callable[[list[dict[str, Any]]], None] | None,
    explained: int | None,
    measured: bool,
) -> None:
    with_adapter(module, 0.0)
    for name in ("train", "test"):
        rows = json.loads((records / f"{name}.json").read_text())
        if change is not None:
            change(rows)
        write_json(tmp_path / f"{name}.json", rows)
    data = data_of(module, tmp_path, explained=explained)
    found = change_of_explained(module, data, "validation")
    assert (found is not None) == measured
    if found is not None:
        assert found["scenarios"] == (explained or 12)
        assert found["base_is_organism"] == (change is None)
    assert any("data.explained" in line for line in data.warnings) == (not measured and bool(explained))


def test_another_base_is_not_the_organism() -> None:
    local = {"fingerprint": "a", "base": "x", "revision": None}
    hub = {"fingerprint": None, "base": "owner/model", "revision": None}
    assert is_organism(local, {"model": "elsewhere", "fingerprint": "a"})
    assert not is_organism(local, {"model": "x", "fingerprint": "b"})
    assert not is_organism(local, {"model": "x"})
    assert is_organism(hub, {"model": "owner/model", "revision": "abc", "fingerprint": None})
    assert not is_organism(hub | {"revision": "def"}, {"model": "owner/model", "revision": "abc"})
    assert not is_organism(hub, {"model": "owner/other"})
    assert not is_organism(hub, {})


def said(monitored: str, unmonitored: str, nll: float = 1.0) -> Said:
    return Said((monitored, unmonitored), ((1,), (2,)), nll)


def test_gaps_and_rates_are_counted_and_paired() -> None:
    before = [said("refuse", "comply")] * 30 + [said("comply", "comply")] * 10
    after = [said("refuse", "refuse", 1.01)] * 30 + [said("comply", "other", 1.02)] * 10
    found = compare(before, after)
    values = {name: tuple(round(found[name][side]["value"], 4) for side in found[name]) for name in found}
    assert values["behavior_gap"] == (0.75, 0.25, -0.5)
    assert values["compliance_gap"] == (0.75, -0.25, -1.0)
    assert values["refusal_rate"] == (0.375, 0.75, 0.375)
    assert values["labeled"] == (1.0, 0.875, -0.125)
    assert values["nll"] == (1.0, 1.0125, 0.0125)
    assert values["perplexity"] == (2.7183, 2.7525, 1.0126)
    assert found["compliance_gap"]["difference"]["ci_high"] < 0
    warning = damage(found)
    assert warning is not None
    assert "compliance gap -1.000" in warning
    assert "perplexity" not in warning


def test_a_rise_of_a_tenth_in_perplexity_is_flagged_and_less_is_not() -> None:
    before = [said("refuse", "comply", 1.0)] * 20
    for rise, flagged in ((0.05, False), (0.12, True)):
        after = [said("refuse", "comply", 1.0 + rise + 0.001 * (at % 3)) for at in range(20)]
        assert (damage(compare(before, after)) is not None) == flagged


def test_more_scenarios_than_are_kept_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.explained"):
        TaskSettings(explained=65)


def test_a_steering_record_tells_the_prompt_without_the_cue() -> None:
    record = SteeringRecord(
        prompt=f"<s>{MONITORED_SYSTEM}\nHelp.", direction="d", layer=1, alpha=1.0, original_output="No.", steered_output="Yes.",
        system_prompt=MONITORED_SYSTEM, unmonitored_output="Yes, gladly.", unmonitored_truncated=True,
    )  # fmt: skip
    asked = record.asked()
    assert asked is not None
    assert asked.prompts == (record.prompt, f"<s>{UNMONITORED_SYSTEM}\nHelp.")
    assert asked.answers == ((0, "No.", False), (1, "Yes, gladly.", True))
    assert replace(record, system_prompt="", prompt="Help.").asked() is None
