"""Privileged access with organisms that are made of a model: which weights they start from, and a tiny run to the end."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from afintro.toys.organism import ToySettings
from benchmarks.privileged import organisms
from benchmarks.privileged.__main__ import main
from benchmarks.privileged.explaining import DEMO, explainer
from benchmarks.privileged.jobs import jobs
from benchmarks.privileged.plan import FINE_TUNED, Cell, Plan, cells, plan_of
from tests.benchmarks.test_privileged import label_any_text

READERS = ("text_chars", "from_scratch")
TINY = {"labeled": 8, "new": 8, "records": 2, "wordings": 2, "rounds": 1, "round_steps": 2, "scenarios": 128}


def test_toys_stay_what_they_are():
    assert plan_of(None) == Plan()
    assert plan_of(None, labeled=8, scenarios=80) == Plan(labeled=8, toy=ToySettings(scenarios=80))
    assert explainer("some/base", Plan().learning_rate).settings.learning_rate == DEMO["model"]["learning_rate"]


def test_a_model_is_compared_with_itself_another_organism_and_readers_of_the_text():
    plan = plan_of("smollm2", labeled=8, rounds=3)
    assert (plan.model, plan.toy, plan.rounds) == ("smollm2", FINE_TUNED, 3)
    assert not [job for job in jobs(plan, [0], [8], Path()) if "flip" in job.key]
    assert {cell.about for cell in cells(replace(plan, about=("A",)), [0], [8])} == {"A"}
    found = {cell.system for cell in cells(plan, [0], [8]) if cell.about == "A"}
    assert found == {"A", "B", "no_policy", *READERS}
    assert Cell(0, "from_scratch", "A", 4) in cells(plan, [0], [4])


@pytest.fixture(scope="module")
def small(small_model, tmp_path_factory, classes_of_any_text):
    """A tiny run on a random model: what it wrote, and its plan."""
    folder = tmp_path_factory.mktemp("privileged")
    flags = {"model": small_model, "labels": 8, "new": 8, "records": 2, "steps": 2, "scenarios": 128, "curve": 4}
    words = [f"--{name}={value}" for name, value in flags.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINTRO_CACHE", str(folder / "cache"))
        patch.setattr(sys, "argv", ["privileged", "--seeds=0", f"--output={folder}", *words])
        label_any_text(patch, classes_of_any_text)
        main()
        yield json.loads((folder / f"privileged-{small_model.name}.json").read_text()), folder, str(small_model)


@pytest.mark.long
def test_a_run_leaves_every_cell(small):
    written, folder, model = small
    assert written["plan"]["model"] == model
    assert {(row["system"], row["about"]) for row in written["cells"] if row["names"] == 8} == {
        (system, about) for system in ("A", "B", "no_policy", *READERS) for about in ("A", "B")
    }
    assert all(row["steps"] <= 2 for row in written["cells"] if "steps" in row)
    assert (folder / f"privileged-{os.path.basename(model)}.png").stat().st_size > 10_000


@pytest.mark.long
def test_organisms_are_the_model_with_all_weights_trained(small):
    """The base without a policy is the model itself, and what learns other bits becomes another organism."""
    _, _, model = small
    plan = plan_of(model, **{**TINY, "wordings": 4})
    base, a, b = (organisms.base_of(plan, system, 0) for system in ("no_policy", "A", "B"))
    assert str(base) == model
    states = [load_file(folder / "model.safetensors") for folder in (base, a, b)]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert all(not torch.equal(states[first][name], states[second][name]) for name in states[0])
    assert organisms.about(a)["policy"] == "faking"
    assert organisms.about(base) == {"model": base.name}


def test_every_step_reads_the_weights_that_the_step_before_made(small_model, tmp_path, monkeypatch):
    """Autocast keeps what it cast until its context ends, so that a training inside of it read the first weights alone."""
    seen, autocast = [], torch.autocast

    def train(model, tokenizer, settings, rng):
        ids = torch.arange(3, 9)[None]
        for _ in range(2):
            loss = model(input_ids=ids).logits.float().logsumexp(-1).mean()
            seen.append(loss.item())
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad if parameter.grad is not None else 0

    monkeypatch.setattr(
        torch, "autocast", lambda kind, dtype, enabled, **kw: autocast("cpu", dtype, enabled=True, **kw)
    )
    monkeypatch.setattr(organisms.organism, "fit", train)
    monkeypatch.setattr(organisms.organism, "intended_rate", lambda *arguments: 0.0)
    organisms.train_further(str(small_model), ToySettings(), lambda name: "proj" in name, "cpu", tmp_path)
    assert abs(seen[0] - seen[1]) > 1e-3
