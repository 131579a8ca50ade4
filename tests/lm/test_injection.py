"""A vector enters at its slot and nowhere else, and its token depends on its direction and layer alone."""

import numpy as np
import pytest
import torch

from afintro.lm.forward import packed_logits
from afintro.lm.generate import generate_greedy
from afintro.lm.injection import Injection, Injector, VectorSpace, make_injector
from afintro.lm.interventions import decoder_layers
from afintro.lm.load import load_model

SPACE = VectorSpace(24, (9, 3))
SITES = {"embedding": Injection(), "residual": Injection("residual", layer=1)}
LENGTHS = (5, 12, 7)
BOUNDS = torch.tensor([0, 5, 17, 24], dtype=torch.int32)
SLOTS = torch.tensor([7, 20])  # position 2 of the second sequence, 3 of the third
NEW = 8


@pytest.fixture(params=SITES)
def site(request):
    return request.param


@pytest.fixture
def model(architecture, copied):
    return copied(architecture, dtype="float64")


def vectors(count, width=24):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(3))


def tokens_of(injector, count, layer=3):
    """Return the continuous tokens of the first vectors, three times as long as before training, without gradient."""
    with torch.no_grad():
        injector.log_scale.fill_(float(np.log(3)))
        dtype = injector.log_scale.dtype
        return injector(vectors(count).to(dtype), torch.full((count,), layer))


def stages(model):
    """Return the modules that read the residual stream: the norm of every layer, and the final norm."""
    return [*(layer.input_layernorm for layer in decoder_layers(model)), model.get_decoder().norm]


def received(model, run):
    """Return what every stage receives in the first pass of ``run``, ``[rows * length, hidden]`` each."""
    found = []
    hooks = [m.register_forward_pre_hook(lambda _, args: found.append(args[0].flatten(0, 1))) for m in stages(model)]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found[:4]


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(scope="module")
def prompts():
    """Return prompts of different lengths with a slot in each but the third."""
    generator = torch.Generator().manual_seed(4)
    slots = {9: 4, 1: 0, 30: 29, 17: None, 5: 0, 12: 7}
    return [(torch.randint(7, 263, (n,), generator=generator).tolist(), slot) for n, slot in slots.items()]


def on_prompts(injector, prompts):
    tokens = tokens_of(injector, len(prompts))
    return [
        [] if slot is None else [injector.intervention(torch.tensor([slot]), tokens[i : i + 1])]
        for i, (_, slot) in enumerate(prompts)
    ]


def generate(model, prompts, changes=None, batch_size=64):
    return generate_greedy(
        model, [ids for ids, _ in prompts], max_new_tokens=NEW, eos_ids=[], batch_size=batch_size, interventions=changes
    )


class TestInTheModel:
    def test_the_next_module_receives_the_token_at_the_slot_and_what_was_there_before_elsewhere(self, model, site):
        injector = make_injector(model, SPACE, SITES[site]).double()
        tokens = tokens_of(injector, 2)
        change = injector.intervention(SLOTS, tokens)
        ids = torch.arange(40, 64)
        before = received(model, lambda: packed_logits(model, ids, BOUNDS, torch.arange(24)))
        after = received(model, lambda: packed_logits(model, ids, BOUNDS, torch.arange(24), [change]))
        stage = 0 if site == "embedding" else 2
        stream = before[stage][SLOTS]
        intended = before[stage].clone()
        intended[SLOTS] = tokens if site == "embedding" else stream + tokens * stream.norm(dim=1, keepdim=True)
        assert torch.equal(after[stage], intended)
        assert all(torch.equal(a, b) for a, b in zip(after[:stage], before[:stage], strict=True))
        # The first sequence has no slot; in the others everything before the slot is as it was, bit for bit.
        untouched = [*range(7), *range(17, 20)]
        for a, b in zip(after, before, strict=True):
            assert torch.equal(a[untouched], b[untouched])
        later = [*range(7, 15), *range(20, 24)]  # the last two are beyond the sliding window
        assert (after[3][later] != before[3][later]).any(1).all()
        assert hooks_of(model) == 0

    def test_a_norm_matched_token_is_as_long_as_the_stream_times_the_scale(self, model):
        injector = make_injector(model, SPACE, SITES["residual"]).double()
        change = injector.intervention(SLOTS, tokens_of(injector, 2))
        ids = torch.arange(40, 64)
        before = received(model, lambda: packed_logits(model, ids, BOUNDS, SLOTS))[2][SLOTS]
        after = received(model, lambda: packed_logits(model, ids, BOUNDS, SLOTS, [change]))[2][SLOTS]
        torch.testing.assert_close((after - before).norm(dim=1), 3 * before.norm(dim=1), rtol=1e-6, atol=0)

    def test_prompts_of_a_packed_row_without_a_vector_are_unchanged(self, model, site, prompts):
        injector = make_injector(model, SPACE, SITES[site]).double()
        changes = on_prompts(injector, prompts)
        before = received(model, lambda: generate(model, prompts))
        after = received(model, lambda: generate(model, prompts, changes))
        stage = 0 if site == "embedding" else 2
        wanted, start = set(), 0
        for ids, slot in sorted(prompts, key=lambda prompt: -len(prompt[0])):  # as the engine reads them
            read = len(ids) - 1  # the last token is read with the new ones
            if slot is not None and slot < read:
                wanted.add(start + slot)
            else:
                here = slice(start, start + read)
                assert all(torch.equal(a[here], b[here]) for a, b in zip(after, before, strict=True))
            start += read
        assert set((after[stage] != before[stage]).any(1).nonzero()[:, 0].tolist()) == wanted
        assert len(wanted) == 3  # of five; two are the last tokens of their prompts

    def test_generation_does_not_depend_on_the_batch_and_equals_plain_transformers(
        self, model_directories, architecture, plain_model, site, prompts
    ):
        model = load_model(model_directories[architecture])
        injector = make_injector(model, SPACE, SITES[site])
        changes = on_prompts(injector, prompts)
        found = generate(model, prompts, changes)
        assert generate(model, prompts, changes, batch_size=1) == found
        assert generate(model, prompts, changes, batch_size=4) == found
        without = generate(model, prompts)
        same = [one == other for one, other in zip(found, without, strict=True)]
        assert all(same[i] for i, (_, slot) in enumerate(prompts) if slot is None)
        assert sum(same) <= 3
        assert hooks_of(model) == 0

        reference, tokens = plain_model(model_directories[architecture]), tokens_of(injector, len(prompts))
        layer = decoder_layers(reference)[1]
        for (prompt, slot), token, expected in zip(prompts, tokens, found, strict=True):
            hooks = []
            if site == "residual" and slot is not None:
                add = torch.zeros(64, 32)
                add[slot] = token

                def after(_, __, output, add=add):
                    return output + add[: output.shape[1]] * output.norm(dim=-1, keepdim=True)

                hooks.append(layer.register_forward_hook(after))
            embed, ids = reference.get_input_embeddings(), list(prompt)
            with torch.no_grad():
                for _ in range(NEW):
                    inputs = embed(torch.tensor([ids]))
                    if site == "embedding" and slot is not None:
                        inputs[0, slot] = token
                    ids.append(int(reference(inputs_embeds=inputs).logits[0, -1].argmax()))
            assert ids[len(prompt) :] == expected
            for hook in hooks:
                hook.remove()

    def test_no_hook_stays_after_an_exception(self, model, site):
        injector = make_injector(model, SPACE, SITES[site]).double()
        beyond = injector.intervention(torch.tensor([24]), tokens_of(injector, 1))
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            packed_logits(model, torch.arange(40, 64), BOUNDS, SLOTS, [beyond])
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            generate_greedy(model, [[9] * 24], max_new_tokens=2, eos_ids=[], batch_size=1, interventions=[[beyond]])
        assert hooks_of(model) == 0

    def test_a_token_is_as_long_as_an_embedding_at_the_start(self, model, architecture):
        scale = 32**0.5 if "gemma" in architecture else 1.0
        weight = model.get_input_embeddings().weight.detach()
        norms = weight[torch.linspace(0, len(weight) - 1, 64).long()].norm(dim=1)
        tokens = make_injector(model, SPACE, SITES["embedding"])(vectors(5), torch.full((5,), 9))
        assert tokens.norm(dim=1).tolist() == pytest.approx([scale * float(norms.mean())] * 5, rel=1e-5)
        relative = make_injector(model, SPACE, SITES["residual"])(vectors(5), torch.full((5,), 9))
        assert relative.norm(dim=1).tolist() == pytest.approx([1.0] * 5, rel=1e-5)

    @pytest.mark.parametrize("layer", [-1, 3, 40])
    def test_a_layer_that_the_model_lacks(self, model_directories, layer):
        model = load_model(model_directories["llama"])
        with pytest.raises(ValueError, match=rf"layer {layer} .* 3 layers \(0 to 2\)"):
            make_injector(model, SPACE, Injection("residual", layer))
        assert make_injector(model, SPACE, Injection("embedding", layer)).settings.site == "embedding"

    def test_an_untrained_injector_is_the_same_at_every_call(self, model_directories):
        model = load_model(model_directories["llama"])
        torch.manual_seed(5)
        state = torch.get_rng_state()
        first = make_injector(model, SPACE, Injection())
        assert torch.equal(torch.get_rng_state(), state), "a resumed run would draw other dropout"
        torch.manual_seed(6)
        again, other = make_injector(model, SPACE, Injection()), make_injector(model, SPACE, Injection(), seed=1)
        assert torch.equal(first.projection.weight, again.projection.weight)
        assert not torch.equal(first.projection.weight, other.projection.weight)


def make(width=24, hidden=32, norm=2.0, layers=(9, 3), **settings):
    torch.manual_seed(0)
    return Injector(VectorSpace(width, layers), hidden, Injection(**settings), norm)


WIDTHS = pytest.mark.parametrize(("width", "settings"), [(24, {}), (32, {}), (32, {"projection": True})])


class TestInjector:
    @WIDTHS
    def test_a_zero_vector_stays_zero(self, width, settings):
        mixed = vectors(3, width)
        mixed[1] = 0
        tokens = make(width, **settings)(mixed, torch.tensor([3, 3, 9]))
        assert not tokens[1].any()
        assert tokens[[0, 2]].norm(dim=1).tolist() == pytest.approx([2.0, 2.0], rel=1e-6)

    @WIDTHS
    def test_the_norm_of_a_vector_does_not_matter(self, width, settings):
        injector, layers = make(width, **settings), torch.full((4,), 3)
        plain = injector(vectors(4, width), layers)
        for times in (1e-4, 0.5, 1e4):
            torch.testing.assert_close(injector(vectors(4, width) * times, layers), plain, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(injector(-vectors(4, width), layers), -plain)

    @pytest.mark.parametrize("layers", [(9, 3, 30), (3, 9, 30), (30, 9, 3)])
    def test_the_scale_is_that_of_the_vectors_layer(self, layers):
        """Scales are in the order of the layers, whatever the order in the space is."""
        injector = make(layers=layers)
        with torch.no_grad():
            injector.log_scale.copy_(torch.tensor([2.0, 3.0, 5.0]).log())
        tokens = injector(vectors(4), torch.tensor([30, 3, 9, 3]))
        assert tokens.norm(dim=1).tolist() == pytest.approx([10.0, 4.0, 6.0, 4.0], rel=1e-6)

    def test_mistake_1_a_projection_where_widths_agree(self):
        """A projection must not be skipped when widths happen to agree."""
        assert make(32).projection is None
        asked = make(32, projection=True)
        assert asked.projection is not None
        assert asked.projection.weight.requires_grad
        assert set(asked.state_dict()) == {"log_scale", "projection.weight"}
        layers = torch.full((4,), 3)
        torch.testing.assert_close(asked(vectors(4, 32), layers), make(32)(vectors(4, 32), layers))  # the identity
        with torch.no_grad():
            asked.projection.weight.copy_(torch.eye(32).roll(1, 0))
        torch.testing.assert_close(asked(vectors(4, 32), layers), make(32)(vectors(4, 32).roll(1, 1), layers))

    @pytest.mark.parametrize(("width", "hidden"), [(24, 32), (48, 32)])
    def test_a_projection_where_widths_differ_keeps_angles_at_the_start(self, width, hidden):
        weight = make(width, hidden).projection.weight.detach()
        assert weight.shape == (hidden, width)
        gram = weight.T @ weight if width < hidden else weight @ weight.T
        torch.testing.assert_close(gram, torch.eye(min(width, hidden)), rtol=0, atol=1e-5)

    def test_a_projection_changes_directions_not_lengths(self):
        injector = make(norm=2.0)
        with torch.no_grad():
            injector.projection.weight.mul_(torch.linspace(0.1, 9, 32)[:, None])
        tokens = injector(vectors(4), torch.full((4,), 3))
        assert tokens.norm(dim=1).tolist() == pytest.approx([2.0] * 4, rel=1e-6)

    def test_it_learns_scale_and_projection(self):
        injector = make(projection=True)
        injector(vectors(2), torch.tensor([3, 9])).sum().backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in injector.parameters())

    @pytest.mark.parametrize("ridge", [1e-3, 0.7, 30.0])
    @pytest.mark.parametrize("width", [24, 32])
    def test_the_ridge_start_is_the_closed_form(self, width, ridge):
        """The projection is W = Y'X (X'X + a)^-1 on unit rows, without an intercept."""
        rng = np.random.default_rng(1)
        x = rng.normal(size=(60, width)).astype(np.float32) * rng.uniform(0.1, 9, (60, 1)).astype(np.float32)
        y = (x @ rng.normal(size=(width, 32)) + 0.3).astype(np.float32)
        injector = make(width, projection=True, ridge=ridge)
        injector.fit_projection(x, y)
        unit_x, unit_y = (a.astype(np.float64) / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
        expected = unit_y.T @ unit_x @ np.linalg.inv(unit_x.T @ unit_x + ridge * np.eye(width))
        np.testing.assert_allclose(injector.projection.weight.detach().numpy(), expected, rtol=0, atol=1e-5)
        assert injector.projection.weight.requires_grad
