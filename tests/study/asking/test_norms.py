"""Norms of a context's activations: those of the model, with the steering in them, whatever shares the pass."""

import numpy as np
import pytest
import torch

from afintro.lm.load import load_model
from afintro.lm.spans import SpanSteering
from afintro.study.asking import norms
from afintro.study.asking.norms import context_norms, fit_norm_probe

CONTEXTS = [[5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16, 17, 18, 19]]


@pytest.fixture(scope="module")
def model(study_model):
    return load_model(str(study_model)).eval()


def unit(model, seed=0):
    vector = np.random.default_rng(seed).normal(size=model.config.hidden_size).astype(np.float32)
    return vector / np.linalg.norm(vector)


def test_are_those_of_the_hidden_states(model):
    found = context_norms(model, CONTEXTS, [None] * 3)
    for row, context in zip(found, CONTEXTS, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([context]), output_hidden_states=True).hidden_states
        wanted = [float(layer.norm(dim=-1).mean().log()) for layer in states[1:-1]]  # the last one is normalized
        assert row[:-1] == pytest.approx(wanted, abs=1e-4)


def test_steering_shows_from_the_next_layer_on_and_in_its_own_context_alone(model):
    steering = SpanSteering(unit(model), (1, 2), 50.0)
    plain = context_norms(model, CONTEXTS, [None] * 3)
    found = context_norms(model, CONTEXTS, [None, steering, None])
    assert found[[0, 2]] == pytest.approx(plain[[0, 2]], abs=1e-5)
    assert found[1, :2] == pytest.approx(plain[1, :2], abs=1e-5)
    assert (found[1, 2:] > plain[1, 2:] + 1).all()


def test_passes_do_not_matter(model, monkeypatch):
    steerings = [SpanSteering(unit(model, seed), (0, 1), 2.0) for seed in range(3)]
    together = context_norms(model, CONTEXTS, steerings)
    monkeypatch.setattr(norms, "TOKENS", 4)
    assert context_norms(model, CONTEXTS, steerings) == pytest.approx(together, abs=1e-5)


def test_a_probe_gives_odds_in_favor_of_steered_whatever_the_shares_of_the_classes():
    rng = np.random.default_rng(0)
    steered = np.arange(100) % 5 == 0
    seen = rng.normal(size=(100, 3)) + 2.0 * steered[:, None]
    odds = fit_norm_probe(seen, list(steered)).decision_function(np.array([[0.0] * 3, [1.0] * 3, [2.0] * 3]))
    assert odds[0] < 0 < odds[2]
    assert odds[1] == pytest.approx(0.0, abs=0.7)  # halfway, although few are steered
