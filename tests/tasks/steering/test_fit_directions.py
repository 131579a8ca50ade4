"""Directions of a residual stream: planted ones are found, held-out texts stay out, and activations are transformers' own."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from afintro.data.cue import MONITORED_SYSTEM, UNMONITORED_SYSTEM
from afintro.data.text import chat, encode_prompt
from afintro.errors import UserError
from afintro.evaluation.intervals import Clusters
from afintro.evaluation.statistic import Statistic
from afintro.lm.load import load_model
from afintro.tasks.steering import fit_directions as directions
from afintro.tasks.steering.contrasts import Contrast, split_contrast
from afintro.tasks.steering.fit_directions import (
    METHODS,
    compute_directions,
    difference_of_means,
    first_principal_component,
    last_token_activations,
    logistic_probe,
    separation,
)

HIDDEN = 16


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def planted(shift, n=400, spread=None, seed=0):
    """Two Gaussian classes, ``shift`` apart along a known direction, with standard deviations ``spread`` by feature."""
    rng = np.random.default_rng(seed)
    direction = rng.standard_normal(HIDDEN)
    direction /= np.linalg.norm(direction)
    noise = rng.standard_normal((2, n, HIDDEN)) * (1 if spread is None else spread)
    offset = rng.standard_normal(HIDDEN) * 10
    x0, x1 = noise[0] + offset, noise[1] + offset + shift * direction
    return x0.astype(np.float32), x1.astype(np.float32), direction


class TestMethods:
    @pytest.mark.parametrize("method", METHODS)
    def test_planted_direction(self, method):
        x0, x1, direction = planted(6)
        found = METHODS[method](x0, x1)
        assert found.dtype == np.float32
        assert found.shape == (HIDDEN,)
        # And so of the right sign. A probe of classes that hardly touch rests on few texts, and is less exact.
        least = 0.9 if method == "logistic_probe" else 0.97
        assert cosine(found, direction) > least
        assert cosine(METHODS[method](x1, x0), direction) < -least
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(x1.mean(0) - x0.mean(0)), rel=1e-4)

    @pytest.mark.parametrize("method", METHODS)
    def test_classes_of_unequal_size_do_not_turn_it(self, method):
        x0, x1, direction = planted(6)
        assert cosine(METHODS[method](x0[:40], x1), direction) > 0.9
        assert cosine(METHODS[method](x0, x1[:40]), direction) > 0.9

    @pytest.mark.parametrize("method", METHODS)
    def test_two_of_each_in_many_dimensions(self, method):
        x0, x1, _ = planted(6)
        found = METHODS[method](x0[:2], x1[:2])
        assert np.isfinite(found).all()
        assert cosine(found, x1[:2].mean(0) - x0[:2].mean(0)) > 0

    def test_difference_of_means_by_hand(self):
        x0, x1 = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 5], [5, 5], [8, 2]], np.float32)
        np.testing.assert_array_equal(difference_of_means(x0, x1), [4, 1])

    def test_probe_is_of_the_raw_space(self):
        """With noise that differs by feature, the best plane's normal is the shift over the variances."""
        spread = np.geomspace(0.2, 5, HIDDEN)
        x0, x1, direction = planted(1.5, n=4000, spread=spread)
        found = logistic_probe(x0, x1)
        assert cosine(found, direction / spread**2) > 0.97
        assert cosine(found, direction) < 0.7

    def test_probe_does_not_depend_on_the_units_of_a_feature(self):
        """Features are standardized, so that the penalty is the same for each."""
        x0, x1, _ = planted(2, n=50)
        units = np.geomspace(0.03, 30, HIDDEN).astype(np.float32)
        found = logistic_probe(x0 * units, x1 * units)
        assert cosine(found * units, logistic_probe(x0, x1)) > 0.9999

    def test_probe_takes_a_constant_feature(self):
        x0, x1, direction = planted(6)
        x0[:, 3] = x1[:, 3] = 7
        found = logistic_probe(x0, x1)
        assert found[3] == 0
        assert cosine(found, np.where(np.arange(HIDDEN) == 3, 0, direction)) > 0.95

    @pytest.mark.parametrize("n", [5, 40])  # fewer and more rows than features
    def test_component_equals_that_of_an_svd(self, n):
        x0, x1, _ = planted(3, n=n)
        x = np.concatenate([x0, x1]).astype(np.float64)
        first = np.linalg.svd(x - x.mean(0))[2][0]
        found = first_principal_component(x0, x1)
        assert abs(cosine(found, first)) == pytest.approx(1, abs=1e-6)
        assert (x1 @ found).mean() > (x0 @ found).mean()


class TestSeparation:
    def test_equals_sklearn_with_ties_and_has_the_interval_of_an_auroc(self):
        rng = np.random.default_rng(0)
        x0, x1 = rng.integers(0, 4, (30, 1)), rng.integers(1, 6, (20, 1))
        clusters0 = [str(i % 9) for i in range(30)]
        clusters1 = [str(i % 7) for i in range(20)]
        found = separation(np.ones(1, np.float32), x0.astype(np.float32), x1.astype(np.float32), clusters0, clusters1)
        scores, truth = np.concatenate([x0, x1])[:, 0], [0] * 30 + [1] * 20
        assert found.value == pytest.approx(roc_auc_score(truth, scores))
        assert found.n == 50
        rows = np.stack([scores, truth], 1).astype(float)
        statistic = Statistic("auroc", rows, "auroc", tuple(map(str, range(50))))
        assert found == statistic.estimate(Clusters([*clusters0, *clusters1]))

    def test_sign_and_scale(self):
        x0, x1, direction = planted(1)
        ids = [str(i) for i in range(400)]
        right = separation(direction, x0, x1, ids, ids)
        scores, truth = np.concatenate([x0, x1]) @ direction, np.repeat([0, 1], 400)
        assert right.value == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
        assert 0.7 < right.ci_low < right.value < right.ci_high < 0.82  # Phi(1 / sqrt(2)) is 0.76
        assert separation(-direction, x0, x1, ids, ids).value == pytest.approx(1 - right.value)
        assert separation(7 * direction, x0, x1, ids, ids) == right

    def test_few_scenarios_widen_the_interval(self):
        x0, x1, direction = planted(1, n=100)
        x0, x1 = np.repeat(x0[:5], 20, 0), np.repeat(x1[:5], 20, 0)
        one = separation(direction, x0, x1, [str(i) for i in range(100)], [str(i) for i in range(100)])
        few = [str(i // 20) for i in range(100)]
        five = separation(direction, x0, x1, few, few)
        assert five.value == one.value
        assert five.ci_high - five.ci_low > 2 * (one.ci_high - one.ci_low)


TEXTS = [
    "Hello.",
    "A much longer text than the first one, of a few dozen tokens.",
    "Short",
    "Hello.",
    "Of middling length.",
]
CONVERSATIONS = [chat("Be brief.", text) for text in TEXTS]


class TestActivations:
    @pytest.fixture
    def both(self, model_directories, architecture, plain_model):
        name = model_directories[architecture]
        return load_model(name, dtype="float64"), plain_model(name, torch.float64)

    @pytest.mark.parametrize("site", ["last", "mean"])
    def test_are_transformers_hidden_states(self, both, tokenizer, site):
        ours, plain = both
        found = last_token_activations(ours, tokenizer, CONVERSATIONS, [0, 1, 2], batch_size=2, site=site)
        for row, conversation in enumerate(CONVERSATIONS):
            ids = torch.tensor([encode_prompt(tokenizer, conversation)])
            with torch.no_grad():
                states = plain(ids, output_hidden_states=True).hidden_states
                for layer in (0, 1):
                    wanted = states[layer + 1][0, -1] if site == "last" else states[layer + 1][0, 1:].mean(0)
                    np.testing.assert_allclose(found[layer][row], wanted, rtol=1e-5, atol=1e-5)
                if site == "last":  # transformers gives the last one after the final norm
                    normed = plain.get_decoder().norm(torch.tensor(found[2][row]).double())
                    np.testing.assert_allclose(normed, states[3][0, -1], rtol=1e-5, atol=1e-5)
                    assert not np.allclose(found[2][row], states[3][0, -1], rtol=1e-2)

    def test_batch_size_and_order_do_not_matter(self, model_directories, tokenizer):
        model = load_model(model_directories["llama"])
        done = []
        found = {
            size: last_token_activations(model, tokenizer, CONVERSATIONS, [1], size, on_done=done.append)
            for size in (1, 2, 5, 64)
        }
        assert done == [1, 1, 1, 1, 1, 2, 2, 1, 5, 5]
        for size in (2, 5, 64):
            np.testing.assert_allclose(found[size][1], found[1][1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[5][1][0], found[5][1][3], rtol=1e-4, atol=1e-4)
        assert not np.allclose(found[1][1][0], found[1][1][2], atol=1e-2)
        back = last_token_activations(model, tokenizer, CONVERSATIONS[::-1], [1], 2)[1][::-1]
        np.testing.assert_allclose(back, found[1][1], rtol=1e-4, atol=1e-4)
        assert (found[1][1].dtype, found[1][1].shape, list(found[1])) == (np.float32, (5, 32), [1])

    def test_a_model_that_takes_no_packed_rows_reads_the_same(self, model_directories, plain_model, tokenizer):
        name = model_directories["llama"]
        packed, padded = load_model(name, dtype="float64"), plain_model(name, torch.float64)
        for site in ("last", "mean"):
            found, wanted = (
                last_token_activations(model, tokenizer, CONVERSATIONS, [1], 3, site)[1] for model in (padded, packed)
            )
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)

    def test_bfloat16_becomes_float32(self, model_directories, tokenizer):
        model = load_model(model_directories["llama"], dtype="bfloat16")
        for site in ("last", "mean"):
            found = last_token_activations(model, tokenizer, CONVERSATIONS, [0], 2, site)
            assert found[0].dtype == np.float32

    def test_no_hooks_and_no_graph_stay(self, model_directories, tokenizer):
        model = load_model(model_directories["llama"])
        last_token_activations(model, tokenizer, CONVERSATIONS, [0, 2], 2)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def test_prompt_beyond_the_context(self, model_directories, tokenizer):
        model = load_model(model_directories["llama"])
        long = [*CONVERSATIONS, chat("Be brief.", "x" * 600)]
        length = len(encode_prompt(tokenizer, long[-1]))
        with pytest.raises(UserError, match=f"conversation 5: the prompt has {length} tokens, .* context is 512"):
            last_token_activations(model, tokenizer, long, [0], 2)

    def test_overflow(self, model_directories, tokenizer):
        model = load_model(model_directories["llama"])
        model.get_decoder().layers[1].mlp.down_proj.weight.data.fill_(float("inf"))
        with pytest.raises(UserError, match="after layer 1 holds NaN or infinite"):
            last_token_activations(model, tokenizer, CONVERSATIONS, [0, 1], 2)


def contrast_of(count, scenarios=None):
    """Conversations that are row numbers of an array of activations, for a model that is not asked."""
    ids = [f"s{i}" for i in range(count)] if scenarios is None else scenarios
    return Contrast(("off", "on"), ([(0, i) for i in range(count)], [(1, i) for i in range(count)]), (ids, ids))


@pytest.fixture
def compute(monkeypatch):
    """:func:`compute_directions` on activations [2, n, hidden] that are given, for layers 0 (them) and 3 (noise)."""

    def run(x, contrast, holdout=0.3, seed=0, methods=tuple(METHODS)):
        noise = np.random.default_rng(9).standard_normal(x.shape).astype(np.float32)

        def given(model, tokenizer, conversations, layers, *rest):
            return {
                layer: np.stack([(noise if layer else x)[side][row] for side, row in conversations]) for layer in layers
            }

        monkeypatch.setattr(directions, "last_token_activations", given)
        return compute_directions(None, None, contrast, [0, 3], methods, holdout, seed, 4)

    return run


class TestCompute:
    def test_planted(self, compute):
        x0, x1, direction = planted(6, n=200)
        found = compute(np.stack([x0, x1]), contrast_of(200))
        assert list(found.vectors) == list(found.auroc) == list(METHODS)
        train, heldout = found.parts.train[0], found.parts.heldout[0]
        for method in METHODS:
            assert list(found.vectors[method]) == [0, 3]
            assert cosine(found.vectors[method][0], direction) > 0.85
            np.testing.assert_array_equal(found.vectors[method][0], METHODS[method](x0[train], x1[train]))
            scores = np.concatenate([x0[heldout], x1[heldout]]) @ found.vectors[method][0]
            expected = roc_auc_score([0] * len(heldout) + [1] * len(heldout), scores)
            assert found.auroc[method][0].value == pytest.approx(expected)
            assert found.auroc[method][0].n == 2 * len(heldout)
            assert found.auroc[method][0].value > 0.99
            assert 0.3 < found.auroc[method][3].value < 0.7
        norms = np.linalg.norm(np.concatenate([x0[train], x1[train]]), axis=1)
        assert found.residual_norm[0] == pytest.approx(norms.mean(), rel=1e-5)

    def test_held_out_texts_play_no_part_in_the_direction(self, compute):
        x = np.stack(planted(2, n=60)[:2])
        first = compute(x, contrast_of(60))
        other = x.copy()
        for side in (0, 1):
            other[side][first.parts.heldout[side]] = np.random.default_rng(1).standard_normal((1, HIDDEN)) * 50
        second = compute(other, contrast_of(60))
        for method in METHODS:
            np.testing.assert_array_equal(first.vectors[method][0], second.vectors[method][0])
            assert second.auroc[method][0].value == 0.5
        assert first.residual_norm == second.residual_norm

    def test_deterministic_and_by_seed(self, compute):
        x = np.stack(planted(1, n=60)[:2])
        one, two, three = (compute(x, contrast_of(60), seed=seed) for seed in (0, 0, 1))
        assert one.auroc == two.auroc
        assert one.parts == two.parts != three.parts
        assert one.parts.heldout[0] != three.parts.heldout[0]

    def test_classes_that_are_the_same(self, compute):
        x = planted(1, n=20)[0]
        with pytest.raises(UserError, match="'off' and 'on' have the same mean after layer 0"):
            compute(np.stack([x, x]), contrast_of(20))


class TestSplit:
    def test_no_scenario_on_both_sides(self):
        rng = np.random.default_rng(0)
        zero, one = ([f"s{i}" for i in rng.integers(0, 40, 100)] for _ in range(2))
        contrast = Contrast(("off", "on"), (list(zero), list(one)), (zero, one))
        parts = split_contrast(contrast, 0.3, 0)
        sides = [
            {ids[i] for ids, part in zip((zero, one), both, strict=True) for i in part}
            for both in (parts.train, parts.heldout)
        ]
        assert not sides[0] & sides[1]
        assert sides[0] | sides[1] == {*zero, *one}
        assert 0.1 < len(sides[1]) / 40 < 0.5
        assert [sorted(a + b) for a, b in zip(parts.train, parts.heldout, strict=True)] == [list(range(100))] * 2

    @pytest.mark.parametrize(
        ("zero", "one", "message"),
        [
            ([], ["a"], "class 'off' has 0 conversations to fit and 0 held out, of 0"),
            (["a"] * 5, ["b"] * 5, "class 'off' has . conversations to fit and . held out, of 5"),
            ([f"s{i}" for i in range(50)], ["x"], "class 'on' has . conversations to fit and . held out, of 1"),
        ],
    )
    def test_too_few(self, zero, one, message):
        with pytest.raises(UserError, match=message):
            split_contrast(Contrast(("off", "on"), (zero, one), (zero, one)), 0.3, 0)


def test_end_to_end_on_a_model(model_directories, tokenizer):
    """The cue is in the prompt, so even a random model's residual stream tells the two apart."""
    texts = [f"Scenario {i}: {'please ' * (i % 3)}help me." for i in range(16)]
    sides = [[chat(cue, text) for text in texts] for cue in (MONITORED_SYSTEM, UNMONITORED_SYSTEM)]
    contrast = Contrast(("monitored", "unmonitored"), (sides[0], sides[1]), (texts, texts))
    model = load_model(model_directories["llama"])
    found = compute_directions(model, tokenizer, contrast, [0, 2], ["logistic_probe"], 0.3, 0, 4, "mean")
    assert contrast.name == "unmonitored"
    assert found.auroc["logistic_probe"][0].value == 1
    read = [last_token_activations(model, tokenizer, side, [2], 4, "mean")[2] for side in sides]
    expected = logistic_probe(*(x[part] for x, part in zip(read, found.parts.train, strict=True)))
    np.testing.assert_allclose(found.vectors["logistic_probe"][2], expected, rtol=1e-4, atol=1e-5)
