"""Interventions change the residual stream exactly as stated, only at the stated positions, and leave no hook behind."""

import pytest
import torch
from torch import nn

from afintro.errors import UserError
from afintro.lm.capture import read_states
from afintro.lm.forward import packed_logits
from afintro.lm.interventions import Intervention, Steering, at_rows, decoder_layers, intervene, residual_width
from afintro.lm.load import load_model
from afintro.lm.lora import Lora, add_lora
from benchmarks.architectures.checks import Case

IDS = torch.arange(40, 56).view(2, 8)  # two rows of eight
POSITIONS = torch.tensor([3, 13])  # row 0 column 3, row 1 column 5
VECTORS = torch.linspace(-3, 3, 64, dtype=torch.float64).view(2, 32)


@pytest.fixture
def model(architecture, copied):
    return copied(architecture, dtype="float64")


@pytest.fixture(scope="module")
def llama(model_directories):
    return load_model(model_directories["llama"], dtype="float64")


def received(model, interventions=(), ids=IDS):
    """Return what every decoder layer and the final norm receive, ``[rows * length, hidden]`` each, and the logits."""
    layers = decoder_layers(model)
    decoder = (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()
    found = []
    next_modules = [layer.input_layernorm for layer in layers] + [decoder.norm]
    hooks = [m.register_forward_pre_hook(lambda _, args: found.append(args[0].flatten(0, 1))) for m in next_modules]
    with torch.no_grad(), intervene(model, interventions) as fired:
        logits = model(input_ids=ids).logits
    for hook in hooks:
        hook.remove()
    return found, logits, fired


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("layer", [-1, 0, 1, 2])
@pytest.mark.parametrize("mode", ["add", "replace"])
def test_the_next_module_receives_exactly_the_intended_rows(model, mode, layer):
    before, plain_logits, _ = received(model)
    after, logits, fired = received(model, [Intervention(layer, mode, POSITIONS, VECTORS)])
    stage = layer + 1  # layer -1 is what decoder layer 0 receives
    intended = before[stage].clone()
    intended[POSITIONS] = VECTORS if mode == "replace" else intended[POSITIONS] + VECTORS
    assert torch.equal(after[stage], intended)
    assert all(torch.equal(a, b) for a, b in zip(after[:stage], before[:stage], strict=True))  # nothing earlier
    assert fired == [1]
    # Causality: positions before the first change keep their logits, later ones do not.
    for row, column in ((0, 3), (1, 5)):
        assert torch.equal(logits[row, :column], plain_logits[row, :column])
        assert not torch.equal(logits[row, column], plain_logits[row, column])


def test_layer_minus_one_counts_the_embedding_scale(model, architecture):
    scale = 32**0.5 if "gemma" in architecture else 1.0
    embedded = model.get_input_embeddings().weight[IDS.flatten()].detach() * scale
    after, _, _ = received(model, [Intervention(-1, "add", POSITIONS, VECTORS)])
    torch.testing.assert_close(after[0], embedded.index_add(0, POSITIONS, VECTORS), rtol=0, atol=1e-6)


def test_positions_of_a_packed_row(model):
    row = torch.arange(40, 56)
    bounds = torch.tensor([0, 6, 16], dtype=torch.int32)
    change = Intervention(1, "add", torch.tensor([8]), VECTORS[:1])
    with torch.no_grad():
        before = packed_logits(model, row, bounds, torch.arange(16))
        after = packed_logits(model, row, bounds, torch.arange(16), [change])
    same = [position for position in range(16) if torch.equal(before[position], after[position])]
    assert same == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("mode", ["add", "replace"])
def test_apply_leaves_its_input_alone(mode):
    hidden = torch.zeros(2, 8, 32, dtype=torch.float64)
    changed = Intervention(0, mode, POSITIONS, VECTORS).apply(hidden)
    assert changed.shape == hidden.shape
    assert not hidden.any()
    assert torch.equal(changed.view(16, 32)[POSITIONS], VECTORS)
    assert changed.view(16, 32).any(1).nonzero().flatten().tolist() == POSITIONS.tolist()


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("mode", ["add", "replace"])
def test_the_model_sees_a_changed_copy(llama, mode, layer):
    """Interventions work out of place: tensors from before an intervention keep their values."""
    kept = []
    source = llama.get_input_embeddings() if layer == -1 else decoder_layers(llama)[layer].mlp.down_proj
    hook = source.register_forward_hook(lambda _, __, output: kept.append((output, output.clone())))
    with torch.no_grad(), intervene(llama, [Intervention(layer, mode, POSITIONS, VECTORS)]):
        llama(input_ids=IDS)
    hook.remove()
    assert len(kept) == 1
    assert torch.equal(*kept[0])


def test_vectors_are_cast_to_the_hidden_states():
    hidden = torch.zeros(1, 4, 32, dtype=torch.bfloat16)
    changed = Intervention(0, "replace", torch.tensor([1]), VECTORS[:1]).apply(hidden)
    assert changed.dtype == torch.bfloat16
    assert torch.equal(changed[0, 1], VECTORS[0].bfloat16())


def test_a_position_named_twice():
    hidden, twice = torch.ones(1, 4, 32, dtype=torch.float64), torch.tensor([2, 2])
    assert torch.equal(Intervention(0, "add", twice, VECTORS).apply(hidden)[0, 2], 1 + VECTORS[0] + VECTORS[1])
    assert torch.equal(Intervention(0, "replace", twice, VECTORS).apply(hidden)[0, 2], VECTORS[1])


@pytest.mark.parametrize("layer", [-1, 1])
def test_interventions_of_one_layer_apply_in_the_order_given(llama, layer):
    replace, add = (Intervention(layer, mode, POSITIONS, VECTORS) for mode in ("replace", "add"))
    stage = layer + 1
    before, _, _ = received(llama)
    replaced_first, _, fired = received(llama, [replace, add])
    assert torch.equal(replaced_first[stage][POSITIONS], 2 * VECTORS)
    assert fired == [1, 1]
    added_first, _, _ = received(llama, [add, replace])
    assert torch.equal(added_first[stage][POSITIONS], VECTORS)
    assert torch.equal(added_first[stage][:3], before[stage][:3])


def test_interventions_at_several_layers_all_act(llama):
    alone = [Intervention(layer, "add", POSITIONS, VECTORS) for layer in (-1, 0, 2)]
    after, _, fired = received(llama, alone)
    first, _, _ = received(llama, alone[:1])
    assert fired == [1, 1, 1]
    assert torch.equal(after[0], first[0])
    assert torch.equal(after[1], first[1].index_add(0, POSITIONS, VECTORS))


def test_no_interventions_change_nothing(llama):
    _before, plain_logits, _ = received(llama)
    _, logits, fired = received(llama, [])
    assert torch.equal(logits, plain_logits)
    assert fired == []


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("mode", ["add", "replace"])
def test_relative_vectors_are_in_units_of_the_hidden_states_norm(model, mode, layer):
    before, _, _ = received(model)
    after, _, _ = received(model, [Intervention(layer, mode, POSITIONS, VECTORS, relative=True)])
    stage = layer + 1
    norms = before[stage][POSITIONS].norm(dim=1, keepdim=True)
    assert not torch.isclose(norms[0], norms[1])
    start = before[stage][POSITIONS] if mode == "add" else 0
    torch.testing.assert_close(after[stage][POSITIONS], start + norms * VECTORS, rtol=1e-12, atol=1e-12)
    others = [position for position in range(16) if position not in POSITIONS]
    assert torch.equal(after[stage][others], before[stage][others])


def test_a_relative_norm_is_not_taken_in_half_precision():
    """A hidden state of 32 entries of 30000 has a norm beyond what float16 holds."""
    hidden = torch.full((1, 4, 32), 3e4, dtype=torch.float16)
    unit = torch.nn.functional.normalize(torch.eye(32)[:1] - torch.eye(32)[1:2], dim=1)
    changed = Intervention(0, "replace", torch.tensor([2]), unit * 0.25, relative=True).apply(hidden)
    assert changed.dtype == torch.float16
    assert float(changed[0, 2].float().norm()) == pytest.approx(0.25 * 3e4 * 32**0.5, rel=1e-3)


def test_interventions_of_several_prompts_become_one_of_a_kind():
    """Positions are shifted by where each prompt begins; interventions of another layer, mode or unit stay apart."""
    vectors = torch.arange(10.0).view(5, 2)

    def make(layer, mode, positions, rows, relative=False):
        return Intervention(layer, mode, torch.tensor(positions), vectors[rows], relative)

    prompts = [
        [make(1, "add", [0, 4], [0, 1]), make(-1, "replace", [2], [2])],
        [],
        [make(1, "add", [3], [3]), make(1, "add", [3], [4], relative=True)],
        [make(1, "replace", [1], [0]), make(2, "add", [1], [0])],
    ]
    merged = at_rows(prompts, [5, 100, 20, 40])
    assert [(m.layer, m.mode, m.relative, m.positions.tolist(), m.vectors[:, 0].tolist()) for m in merged] == [
        (1, "add", False, [5, 9, 23], [0.0, 2.0, 6.0]),
        (-1, "replace", False, [7], [4.0]),
        (1, "replace", False, [41], [0.0]),
        (2, "add", False, [41], [0.0]),
        (1, "add", True, [23], [8.0]),  # the second of its prompt and layer
    ]
    assert prompts[0][0].positions.tolist() == [0, 4]
    assert at_rows([[], []], [0, 9]) == []
    with pytest.raises(ValueError, match="zip"):
        at_rows(prompts, [0])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_each_prompt_keeps_its_order_whatever_the_others_have(llama, order):
    """Interventions of a prompt act in their order, together with other prompts as alone."""
    kinds = (
        Intervention(1, "add", torch.tensor([2]), 9 * VECTORS[:1]),
        Intervention(1, "add", torch.tensor([2]), VECTORS[1:], relative=True),
        Intervention(1, "replace", torch.tensor([2]), VECTORS[1:]),
    )
    prompts = [[kinds[0], kinds[1], kinds[2], kinds[1]], [kinds[1], kinds[2], kinds[0]]]
    prompts = [prompts[row] for row in order]
    together, _, _ = received(llama, at_rows(prompts, [0, 8]))
    for row, changes in enumerate(prompts):
        alone, _, _ = received(llama, changes, IDS[row : row + 1])
        torch.testing.assert_close(together[2].view(2, 8, 32)[row], alone[2], rtol=0, atol=1e-9)


class TestSteering:
    def test_is_an_addition_of_one_vector_at_every_position(self):
        change = Steering(2, VECTORS[0], "all", relative=True).on(range(3, 6))
        assert (change.layer, change.mode, change.relative) == (2, "add", True)
        assert change.positions.tolist() == [3, 4, 5]
        assert change.positions.dtype == torch.long
        assert torch.equal(change.vectors, VECTORS[:1].repeat(3, 1))

    def test_on_no_position_changes_nothing(self):
        hidden = torch.ones(1, 4, 32, dtype=torch.float64)
        assert torch.equal(Steering(0, VECTORS[0]).on([]).apply(hidden), hidden)

    def test_unless_told_otherwise_no_token_is_chosen_without_it_and_it_is_as_long_as_given(self):
        steering = Steering(0, VECTORS[0])
        assert (steering.positions, steering.relative) == ("decode", False)

    def test_unknown_positions(self):
        with pytest.raises(ValueError, match="'prompt', not 'last', 'decode' or 'all'"):
            Steering(0, VECTORS[0], "prompt")

    @pytest.mark.parametrize("shape", [(), (1, 32), (2, 3, 4)])
    def test_a_vector_of_another_shape(self, shape):
        with pytest.raises(ValueError, match=r"vector \(.*\) is not \[hidden\]"):
            Steering(0, torch.zeros(shape))


def test_the_last_position_of_every_row_is_steered_throughout_decoding(llama):
    """The flat positions of an input ``[rows, 1]`` are the rows."""
    vector = Intervention(1, "add", torch.tensor([0, 1]), VECTORS)
    steps, layer = [], decoder_layers(llama)[2].input_layernorm
    hook = layer.register_forward_pre_hook(lambda _, args: steps.append(args[0].clone()))
    with torch.no_grad():
        for token in IDS.T[:3]:
            with intervene(llama, [vector]) as fired:
                llama(input_ids=token[:, None])
            llama(input_ids=token[:, None])
            assert fired == [1]
    hook.remove()
    for steered, unsteered in zip(steps[::2], steps[1::2], strict=True):
        assert torch.equal(steered[:, 0], unsteered[:, 0] + VECTORS)


def test_fired_counts_are_live(llama):
    changes = [Intervention(-1, "add", POSITIONS, VECTORS), Intervention(2, "add", POSITIONS, VECTORS)]
    with torch.no_grad(), intervene(llama, changes) as fired:
        assert fired == [0, 0]
        llama(input_ids=IDS)
        assert fired == [1, 1]
        llama(input_ids=IDS)
        assert fired == [2, 2]
    llama(input_ids=IDS)
    assert fired == [2, 2]


def test_gradient_checkpointing_does_not_fire_twice(model):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    with intervene(model, [Intervention(layer, "add", POSITIONS, VECTORS) for layer in (-1, 1)]) as fired:
        model(input_ids=IDS).logits.sum().backward()
    assert fired == [1, 1]


def test_hooks_are_gone_after_the_block(llama):
    hooks = hooks_of(llama)
    _, plain_logits, _ = received(llama)
    changes = [Intervention(layer, "replace", POSITIONS, VECTORS) for layer in (-1, 0, 2)]
    with intervene(llama, changes):
        assert hooks_of(llama) == hooks + 3
    assert hooks_of(llama) == hooks
    with pytest.raises(RuntimeError, match="inside"), intervene(llama, changes):
        raise RuntimeError("inside")
    assert hooks_of(llama) == hooks
    assert torch.equal(received(llama)[1], plain_logits)


@pytest.mark.parametrize("layer", [-2, 3, 40])
def test_a_layer_that_the_model_lacks(llama, layer):
    """``-2`` must not count from the end, the message names the layers, and earlier interventions are undone."""
    hooks = hooks_of(llama)
    changes = [Intervention(at, "add", POSITIONS, VECTORS) for at in (0, layer)]
    words = rf"layer {layer} .* 3 layers \(-1 to 2\)"
    with pytest.raises(ValueError, match=words), intervene(llama, changes):
        pass
    assert hooks_of(llama) == hooks


def test_a_vector_width_that_does_not_fit_raises_value_error_on_entry(llama):
    """As the docstring of ``intervene`` promises: before any GPU time is spent."""
    hooks = hooks_of(llama)
    narrow = Intervention(1, "add", POSITIONS, VECTORS[:, :31])
    with pytest.raises(ValueError, match=r"31.*32|32.*31"), intervene(llama, [narrow]):
        pass
    assert hooks_of(llama) == hooks


@pytest.mark.parametrize("position", [-1, 16])
@pytest.mark.parametrize("mode", ["add", "replace"])
def test_a_position_outside_of_the_input_raises(llama, mode, position):
    change = Intervention(1, mode, torch.tensor([position]), VECTORS[:1])
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"), intervene(llama, [change]):
        llama(input_ids=IDS)


@pytest.mark.parametrize(
    ("positions", "vectors"),
    [((2,), (3, 32)), ((2, 1), (2, 32)), ((), (1, 32)), ((2,), (2,)), ((2,), (2, 1, 32))],
)
def test_shapes_that_do_not_agree(positions, vectors):
    with pytest.raises(ValueError, match=r"positions .* and vectors"):
        Intervention(0, "add", torch.zeros(positions, dtype=torch.long), torch.zeros(vectors))


def test_an_unknown_mode():
    with pytest.raises(ValueError, match="'subtract', not 'add' or 'replace'"):
        Intervention(0, "subtract", POSITIONS, VECTORS)


def test_inside_a_peft_model(model):
    change = Intervention(1, "replace", POSITIONS, VECTORS)
    expected, logits, _ = received(model, [change])
    wrapped = add_lora(model, Lora(r=2))  # a fresh LoRA changes nothing
    found, found_logits, fired = received(wrapped, [change])
    assert torch.equal(found[2], expected[2])
    assert torch.equal(found_logits, logits)
    assert fired == [1]


class OldLayer(nn.Module):
    """A decoder layer as before transformers 5: it returns a tuple, and its input may come by keyword."""

    def forward(self, hidden_states):
        return hidden_states * 2, "attention weights"


class OldModel(nn.Module):
    def __init__(self, by_keyword):
        super().__init__()
        self.model = nn.ModuleDict({"layers": nn.ModuleList([OldLayer(), OldLayer()])})
        self.by_keyword = by_keyword
        self.embedding = nn.Embedding(5, 2)

    def get_decoder(self):
        return self.model

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, hidden):
        for layer in self.model["layers"]:
            hidden, rest = layer(hidden_states=hidden) if self.by_keyword else layer(hidden)
            assert rest == "attention weights"
        return hidden


@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("mode", ["add", "replace"])
def test_layers_that_return_tuples(mode, layer, by_keyword):
    hidden = torch.ones(1, 3, 2)
    model = OldModel(by_keyword)
    with intervene(model, [Intervention(layer, mode, torch.tensor([1]), torch.full((1, 2), 10.0))]) as fired:
        changed = model(hidden)
    stream = [1.0, 2.0, 4.0][layer + 1]  # before layer 0, after it, after layer 1
    expected = (10 if mode == "replace" else stream + 10) * 4 / stream
    assert changed.tolist() == [[[4, 4], [expected, expected], [4, 4]]]
    assert fired == [1]
    assert hidden.eq(1).all()


def test_an_architecture_with_several_residual_streams_is_refused():
    model = Case("gemma3n_text").model
    for layer in (-1, 0):
        change = Intervention(layer, "add", torch.tensor([0]), torch.ones(1, 32))
        with pytest.raises(UserError, match="streams"), intervene(model, [change]):
            model(input_ids=torch.tensor([[20, 21]]))
        with pytest.raises(UserError, match="streams"):
            read_states(model, [[20, 21]], [layer])


def test_the_residual_stream_may_be_wider_than_the_embedding():
    model = Case("opt").model
    assert model.get_input_embeddings().weight.shape[1] == 24
    assert residual_width(model) == 32
