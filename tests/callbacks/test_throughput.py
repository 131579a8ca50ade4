"""Tokens per second are counted between two logs, and validation between epochs is not counted."""

from types import SimpleNamespace

import pytest
import torch

import afintro.callbacks.throughput
from afintro.callbacks import Throughput


def test_tokens_per_second_since_the_last_log(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 104.0, 106.0])
    monkeypatch.setattr(afintro.callbacks.throughput.time, "monotonic", lambda: next(clock))
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
    trainer = SimpleNamespace(log_every_n_steps=2, optimizers=[optimizer])
    logged: list[tuple[str, float]] = []
    module = SimpleNamespace(log=lambda name, value: logged.append((name, value)))
    callback = Throughput()
    callback.on_train_epoch_start(trainer, module)
    for index, tokens in enumerate((30, 50, 5, 15)):
        callback.on_train_batch_end(trainer, module, None, SimpleNamespace(input_ids=torch.zeros(tokens)), index)
    assert [value for name, value in logged if name == "train/tokens_per_second"] == [80 / 4, 20 / 2]
    assert [value for name, value in logged if name == "train/learning_rate"] == [0.5] * 4
