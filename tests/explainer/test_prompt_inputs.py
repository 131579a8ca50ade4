"""An explainer asks with the date and the settings that it was trained with, whatever the day."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from afintro.data.chat_template import WITHOUT_TEMPLATE
from afintro.data.text import chat, render
from afintro.errors import UserError
from afintro.explainer.checkpoint import IDENTITY, prompt_date, read_checkpoint, resolve_checkpoint
from afintro.explainer.module import ExplainerModule
from afintro.lm.template_inputs import date_of, today
from tests.conftest import Workspace

DATED = "Today: {{ strftime_now('%d.%m.%Y') }}{% if not thinking %} quickly{% endif %}\n"
DAY = "2026-03-05"


@pytest.fixture
def dated(small_model: Path, tmp_path: Path) -> str:
    """The small model with a template that prints the date, and reads a setting."""
    folder = tmp_path / "dated"
    shutil.copytree(small_model, folder)
    template = folder / "chat_template.jinja"
    template.write_text(DATED + template.read_text())
    return str(folder)


def test_identity_has_the_date_and_the_settings(dated: str) -> None:
    settings = {"thinking": True}
    module = ExplainerModule(dated, prompt_date=DAY, chat_template_kwargs=settings)
    assert render(module.tokenizer, chat("S", "U")).startswith("Today: 05.03.2026<|bos|>")
    assert (module.identity["prompt_date"], module.identity["chat_template_kwargs"]) == (DAY, settings)
    hashes = {
        ExplainerModule(dated, prompt_date=day, chat_template_kwargs=given).identity["template_hash"]
        for day in (DAY, "2026-03-06")
        for given in (settings, None)
    }
    assert len(hashes) == 4


def test_nothing_changes_for_other_templates(small_model: Path) -> None:
    """Checkpoints of before stay valid."""
    module = ExplainerModule(str(small_model), prompt_date=DAY)
    assert module.identity == ExplainerModule(str(small_model)).identity
    assert not {"prompt_date", "chat_template_kwargs"} & set(module.identity)


def test_the_date_of_a_checkpoint_is_kept(dated: str, tmp_path: Path) -> None:
    trained = ExplainerModule(dated, prompt_date=DAY)
    checkpoint = {IDENTITY: trained.identity, "state_dict": {}}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    assert prompt_date(tmp_path / "a.ckpt") == DAY
    later, others = ExplainerModule(dated), ExplainerModule(dated, prompt_date="2026-03-06")
    assert date_of(ExplainerModule(dated).tokenizer) == today() != DAY
    for module in (later, others):
        module.keep_date(checkpoint)
    assert later.identity == trained.identity
    assert date_of(others.tokenizer) == "2026-03-06"
    for content in ({}, {IDENTITY: None}):
        torch.save(content, tmp_path / "b.ckpt")
        assert prompt_date(tmp_path / "b.ckpt") is None
    (tmp_path / "c.ckpt").write_text("damaged")
    assert prompt_date(tmp_path / "c.ckpt") is None


def test_another_base_has_the_same_inputs_as_far_as_it_reads_them(dated: str, small_model: Path) -> None:
    module = ExplainerModule(dated, prompt_date=DAY, chat_template_kwargs={"thinking": True})
    assert module.on_base(dated).tokenizer.chat_template == module.tokenizer.chat_template
    assert date_of(module.on_base(dated, "2026-03-06").tokenizer) == "2026-03-06"
    plain = ExplainerModule(str(small_model)).tokenizer.chat_template
    assert module.on_base(str(small_model)).tokenizer.chat_template == plain
    with pytest.raises(UserError, match="thinking"):
        ExplainerModule(str(small_model), chat_template_kwargs={"thinking": True}).tokenizer  # noqa: B018


@pytest.mark.long
def test_a_run_that_is_continued_another_day(workspace: Workspace, dated: str, small_model: Path) -> None:
    """It trains, validates and predicts with the date on which it began, also a comparison whose template alone prints one."""
    name = ("--model.name", dated, "--model.chat_template_kwargs", '{"thinking": true}')
    fit = ("fit", "--config", str(workspace.config), *name, "--other_base", dated)
    first = workspace.run(*fit, "--trainer.max_epochs", "1", "--model.prompt_date", DAY)
    assert first.returncode == 0, first.stderr
    last = resolve_checkpoint("last", workspace.path / "lightning_logs", "context_ablation")
    assert json.loads((workspace.runs()[-1] / "other_base" / "training.json").read_text())["prompt_date"] == DAY
    for command in (fit, ("validate", *fit[1:7]), ("predict", *fit[1:7])):
        again = workspace.run(*command, "--ckpt_path", str(last))
        assert again.returncode == 0, again.stderr
    finished = resolve_checkpoint("last", workspace.path / "lightning_logs", "context_ablation")
    assert finished != last
    identity = read_checkpoint(finished)[IDENTITY]
    assert (identity["prompt_date"], identity["chat_template_kwargs"]) == (DAY, {"thinking": True})
    summary = json.loads((workspace.runs()[-2] / "summary.json").read_text())
    assert summary["model"]["prompt_date"] == DAY
    wrong = workspace.run("validate", *fit[1:7], "--ckpt_path", str(last), "--model.prompt_date", "2026-03-06")
    assert wrong.returncode == 2
    assert "prompt_date" in wrong.stderr
    misspelt = workspace.run(*fit[:5], "--model.chat_template_kwargs", '{"thinkin": true}')
    assert misspelt.returncode == 2
    assert "'thinkin'" in misspelt.stderr


@pytest.mark.long
def test_a_base_without_a_template_is_named_in_the_summary(workspace: Workspace, small_model: Path) -> None:
    bare = workspace.path / "bare"
    shutil.copytree(small_model, bare)
    (bare / "chat_template.jinja").unlink()
    ended = workspace.run(
        "fit", "--config", str(workspace.config), "--model.name", str(bare), "--trainer.max_epochs", "1"
    )
    assert ended.returncode == 0, ended.stderr
    assert (ended.stdout + ended.stderr).count(f"{bare} {WITHOUT_TEMPLATE}") == 1
    assert (
        f"the base model {WITHOUT_TEMPLATE}"
        in json.loads((workspace.runs()[-1] / "summary.json").read_text())["warnings"]
    )
