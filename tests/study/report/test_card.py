"""The card of an adapter says what its prompts hold beside their turns."""

from pathlib import Path

import pytest

from afintro.explainer.checkpoint import IDENTITY
from afintro.study.report.card import Trained, model_card

IDENTITY_BLOCK = {
    "base": "some/base",
    "template_hash": "0123",
    "lora": {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": "all-linear"},
}
DATED = {"chat_template_kwargs": {"enable_thinking": False}, "prompt_date": "2026-03-05"}


@pytest.mark.parametrize("more", [{}, DATED])
def test_settings_and_date_of_the_prompts(tmp_path, more):
    settings = {
        "model": {"name": "some/base"},
        "data": {"class_path": "afintro.tasks.context_ablation.ContextAblation"},
    }
    checkpoint = {IDENTITY: IDENTITY_BLOCK | more, "global_step": 3}
    path = Path(tmp_path / "run" / "checkpoints" / "last.ckpt")
    card = model_card(Trained(settings, checkpoint, path, (("some/base", None),), "some/base", 0.0, None))
    rows = ['| settings of the chat template | `{"enable_thinking": false}` |', "| date in the prompts | 2026-03-05 |"]
    assert [row in card for row in rows] == [bool(more)] * 2
    assert ("date in the prompts" in card) is bool(more)
