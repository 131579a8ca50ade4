"""Steered generation gives the tokens of a plain model steered by hand, whatever is batched or shared."""

from collections import Counter
from itertools import combinations, takewhile

import pytest
import torch
import torch.nn.functional as F

from afintro.lm.generate import generate_greedy, generate_steered
from afintro.lm.interventions import Steering, decoder_layers
from afintro.lm.load import load_model
from afintro.lm.step import RowInterventions

LENGTHS = (9, 1, 30, 2, 7, 17, 8)  # below, at and above the sliding window of 8, not sorted
NEW = 7
DRAWN = torch.randn(3, 32, generator=torch.Generator().manual_seed(31))
STRONG, OTHER, UNIT = 12 * DRAWN[0], 5 * DRAWN[1], F.normalize(DRAWN[2], dim=0)
CONDITIONS = {
    "none": (),
    "last": (Steering(1, STRONG, "last"),),
    "decode": (Steering(1, STRONG, "decode"),),
    "all": (Steering(1, STRONG, "all"),),
    "embedding": (Steering(-1, OTHER, "decode"),),
    "two layers": (Steering(0, OTHER, "last"), Steering(2, STRONG, "decode")),
    "two layers, one of them on everything": (Steering(2, OTHER, "decode"), Steering(0, STRONG, "all")),
    "relative": (Steering(1, UNIT, "decode", relative=True),),
    "relative on everything": (Steering(1, 0.7 * UNIT, "all", relative=True),),
    # The norm is of what is there when its turn comes, so the order within a condition counts, and is kept.
    "relative first": (Steering(1, UNIT, relative=True), Steering(1, STRONG)),
    "relative second": (Steering(1, STRONG), Steering(1, UNIT, relative=True)),
}
NAMES = tuple(CONDITIONS)
FIRST = {"last": -1, "decode": -1, "late": 0}  # where steering begins, counted from the first new token


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(22)
    return [torch.randint(7, 263, (length,), generator=generator).tolist() for length in LENGTHS]


def steered(length, total, positions):
    """Return 1 at each steered position of a sequence with a prompt of ``length`` tokens, else 0: ``[total, 1]``."""
    where = torch.zeros(total, 1)
    if positions == "all":
        where[:] = 1
    elif positions == "last":
        where[length - 1] = 1
    else:
        where[length + FIRST[positions] :] = 1
    return where


def by_hand(model, prompt, changes):
    """Return the greedy tokens of a plain model that reads all tokens at every step; ``changes`` are (positions, Steering)."""
    layers = decoder_layers(model)
    ids = list(prompt)
    for _ in range(NEW):
        hooks = []
        for positions, steering in changes:
            where = steered(len(prompt), len(ids), positions)

            def change(hidden, where=where, steering=steering):
                size = hidden.norm(dim=-1, keepdim=True) if steering.relative else 1.0
                return hidden + where * size * steering.vector

            if steering.layer == -1:
                hooks.append(
                    layers[0].register_forward_pre_hook(lambda _, args, change=change: (change(args[0]), *args[1:]))
                )
            else:
                hooks.append(
                    layers[steering.layer].register_forward_hook(lambda _, __, output, change=change: change(output))
                )
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        for hook in hooks:
            hook.remove()
        first, second = logits.topk(2).values
        assert first - second > 1e-3, "a near tie: rounding could decide it; choose another seed"
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def expected(model_directories, plain_model, prompts):
    """Return the expected tokens by architecture, prompt and name of the condition, made when first asked for."""
    found = {}

    def of(architecture):
        if architecture not in found:
            reference = plain_model(model_directories[architecture])
            found[architecture] = [
                {
                    name: by_hand(reference, prompt, [(s.positions, s) for s in condition])
                    for name, condition in CONDITIONS.items()
                }
                | {"late": by_hand(reference, prompt, [("late", CONDITIONS["decode"][0])])}
                for prompt in prompts
            ]
        return found[architecture]

    return of


def run(model, prompts, conditions, batch_size=64, eos=(), new=NEW, **options):
    return generate_steered(
        model, prompts, conditions, max_new_tokens=new, eos_ids=eos, batch_size=batch_size, **options
    )


def every(prompts):
    """Give all conditions to every prompt."""
    return [list(CONDITIONS.values()) for _ in prompts]


def rows(expected, names):
    """Return the expected tokens of the named conditions of each prompt."""
    return [[tokens[name] for name in own] for tokens, own in zip(expected, names, strict=True)]


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def count_passes(model):
    """Record ``(rows, tokens)`` of every forward pass from now on."""
    shapes = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.slow
def test_the_reference_tells_the_positions_apart(architecture, expected):
    """Steering one token late, or not at decode steps, gives other tokens; otherwise the tests below would show nothing."""
    found = expected(architecture)
    for one, other in combinations(("none", "last", "decode", "all", "late"), 2):
        assert any(tokens[one] != tokens[other] for tokens in found), (one, other)
    for plain, changed in (("none", "embedding"), ("none", "relative"), ("relative first", "relative second")):
        assert any(tokens[plain] != tokens[changed] for tokens in found), (plain, changed)
    assert found[LENGTHS.index(1)]["decode"] == found[LENGTHS.index(1)]["all"]  # the last token is all there is


@pytest.mark.parametrize(("batch_size", "share_prefix"), [(1, True), (3, False), (64, True), (64, False)])
def test_equals_a_plain_model_steered_by_hand(model, architecture, expected, prompts, batch_size, share_prefix):
    """Steering acts at the stated positions and no others, from the first new token to the last, in every batch."""
    found = run(model, prompts, every(prompts), batch_size, share_prefix=share_prefix)
    assert found == rows(expected(architecture), [NAMES] * len(prompts))


@pytest.mark.parametrize(("batch_size", "share_prefix"), [(9, True), (9, False), (64, True)])
def test_any_order_and_number_of_conditions(model, architecture, expected, prompts, batch_size, share_prefix):
    """Each prompt has other conditions in another order; one prompt has none, and one has a condition twice."""
    names = [NAMES[i:] + NAMES[: max(0, i - 3)] for i in range(len(prompts))]
    names[1], names[4], names[5] = (), NAMES[::-1], ("decode", "none", "decode")
    order = [3, 6, 0, 5, 2, 1, 4]
    conditions = [[CONDITIONS[name] for name in names[i]] for i in order]
    found = run(model, [prompts[i] for i in order], conditions, batch_size, share_prefix=share_prefix)
    assert found == rows([expected(architecture)[i] for i in order], [names[i] for i in order])
    assert found[order.index(1)] == []


@pytest.mark.parametrize("share_prefix", [True, False])
def test_conditions_of_one_prompt_do_not_touch_those_of_another(model, architecture, expected, prompts, share_prefix):
    """Each prompt has one condition, and gets the same tokens alone as beside rows that are steered differently."""
    names = [(NAMES[(3 * i + 1) % len(NAMES)],) for i in range(len(prompts))]
    conditions = [[CONDITIONS[name]] for (name,) in names]
    wanted = rows(expected(architecture), names)
    assert run(model, prompts, conditions, share_prefix=share_prefix) == wanted
    alone = [run(model, [p], [c], share_prefix=share_prefix)[0] for p, c in zip(prompts, conditions, strict=True)]
    assert alone == wanted


@pytest.mark.parametrize(("batch_size", "share_prefix"), [(4, True), (64, False)])
def test_an_end_of_sequence_ends_its_row_alone_and_is_left_out(
    model, architecture, expected, prompts, batch_size, share_prefix
):
    tokens = expected(architecture)
    eos = sorted({tokens[0]["decode"][0], tokens[2]["none"][3], tokens[5]["all"][5]})
    wanted = [
        [list(takewhile(lambda token: token not in eos, ids)) for ids in own]
        for own in rows(tokens, [NAMES] * len(prompts))
    ]
    lengths = {len(ids) for own in wanted for ids in own}
    assert {0, NEW} < lengths
    assert run(model, prompts, every(prompts), batch_size, eos, share_prefix=share_prefix) == wanted


@pytest.mark.parametrize(("new", "share_prefix"), [(0, True), (1, True), (1, False), (5, True)])
def test_at_most_max_new_tokens(model, architecture, expected, prompts, new, share_prefix):
    wanted = [[ids[:new] for ids in own] for own in rows(expected(architecture), [NAMES] * len(prompts))]
    assert run(model, prompts, every(prompts), new=new, share_prefix=share_prefix) == wanted


@pytest.mark.parametrize("share_prefix", [True, False])
def test_prompts_of_one_token_only(
    model, architecture, expected, model_directories, plain_model, prompts, share_prefix
):
    """Nothing is read before the last token of these prompts, so the whole pass has no prefix."""
    names = ("none", "decode", "all", "two layers")
    conditions = [CONDITIONS[name] for name in names]
    reference = plain_model(model_directories[architecture])
    other = [by_hand(reference, [100], [(s.positions, s) for s in condition]) for condition in conditions]
    [own] = rows([expected(architecture)[1]], [names])
    found = run(model, [prompts[1], [100], prompts[1]], [conditions] * 3, share_prefix=share_prefix)
    assert found == [own, other, own]


@pytest.mark.parametrize("share_prefix", [True, False])
def test_a_prompt_of_one_token_that_outlives_all_others(model, architecture, expected, prompts, share_prefix):
    """The remaining rows have a prefix without tokens."""
    names = ("none", "last", "decode", "two layers")
    conditions = [CONDITIONS[name] for name in names]
    own, other = rows([expected(architecture)[i] for i in (1, 0)], [names] * 2)
    eos = {ids[0] for ids in other}
    wanted = [list(takewhile(lambda token: token not in eos, ids)) for ids in own]
    assert sum(len(ids) > 2 for ids in wanted) > 1
    found = run(model, prompts[:2], [conditions] * 2, eos=sorted(eos), share_prefix=share_prefix)
    assert found == [[[]] * 4, wanted]


@pytest.mark.parametrize("share_prefix", [True, False])
def test_an_empty_condition_and_a_vector_of_zeros_are_greedy_generation(model, prompts, share_prefix):
    zero = torch.zeros(32)
    nothing = [
        (),
        (Steering(1, zero, "last"),),
        (Steering(-1, zero), Steering(2, zero)),
        (Steering(0, zero, "all"),),
        (Steering(1, zero, relative=True),),
    ]
    steered = [CONDITIONS["all"], CONDITIONS["decode"]]  # rows beside them do not matter
    found = run(model, prompts, [[*nothing, *steered]] * len(prompts), share_prefix=share_prefix)
    greedy = generate_greedy(model, prompts, max_new_tokens=NEW, eos_ids=(), batch_size=3)
    assert [own[:5] for own in found] == [[ids] * 5 for ids in greedy]


@pytest.mark.slow
def test_nothing_of_one_call_reaches_the_next(model, architecture, expected, prompts):
    """Prompts and vectors stay as they were."""
    before = [list(prompt) for prompt in prompts]
    vectors = [(s, s.vector.clone()) for condition in CONDITIONS.values() for s in condition]
    wanted = rows(expected(architecture), [NAMES] * len(prompts))
    assert run(model, prompts, every(prompts), 3) == run(model, prompts, every(prompts), 3) == wanted
    assert run(model, prompts, [[()]] * len(prompts)) == [[own[0]] for own in wanted]
    assert prompts == before
    assert all(torch.equal(s.vector, vector) for s, vector in vectors)


@pytest.fixture
def llama(model_directories):
    return load_model(model_directories["llama"])


SHARED = [CONDITIONS[name] for name in ("none", "last", "decode", "two layers")]


def test_the_prefix_is_read_once_a_prompt(llama, prompts):
    shapes = count_passes(llama)
    chosen = [prompts[i] for i in (0, 6, 2)]  # 9, 8 and 30 tokens
    run(llama, chosen, [SHARED] * 3, 8, new=3)  # two prompts at a time, longest first
    assert shapes == [(1, 29 + 8), (8, 1), (8, 1), (8, 1), (1, 7), (4, 1), (4, 1), (4, 1)]
    shapes.clear()
    run(llama, chosen, [SHARED] * 3, 8, new=3, share_prefix=False)
    assert shapes == [(1, 4 * (29 + 8)), (8, 1), (8, 1), (8, 1), (1, 4 * 7), (4, 1), (4, 1), (4, 1)]


def test_steering_of_all_positions_reads_the_whole_prompt_for_its_own_rows_alone(llama, prompts):
    shapes = count_passes(llama)
    run(llama, [prompts[0]], [[*SHARED, CONDITIONS["all"]]], new=2)
    assert shapes == [(1, 8 + 8), (5, 1), (5, 1)]
    shapes.clear()
    run(llama, [prompts[1]], [SHARED], new=2)
    assert shapes == [(4, 1), (4, 1)], "a prompt of one token has no prefix"


def test_finished_rows_cost_nothing_more(llama, expected, prompts):
    tokens = expected("llama")[0]
    eos = [tokens["none"][1]]
    lengths = [
        len(list(takewhile(lambda t: t not in eos, tokens[n]))) for n in ("none", "last", "decode", "two layers")
    ]
    assert len(set(lengths)) > 1
    shapes = count_passes(llama)
    run(llama, [prompts[0]], [SHARED], eos=eos)
    assert shapes[1:] == [(sum(n >= step for n in lengths), 1) for step in range(min(NEW, max(lengths) + 1))]


@pytest.mark.parametrize("share_prefix", [True, False])
def test_a_vector_is_added_once_a_step_to_each_row_that_asks_for_it(llama, prompts, monkeypatch, share_prefix):
    """Record what is added to each row, pass by pass and layer by layer."""
    seen, apply = [], RowInterventions.apply

    def watched(self, hidden):
        found = apply(self, hidden)
        seen.append((self.layer, (found - hidden)[:, 0]))
        return found

    monkeypatch.setattr(RowInterventions, "apply", watched)
    asked = [(Steering(1, STRONG, "last"),), (), (Steering(1, STRONG, "decode"), Steering(2, OTHER, "decode"))]
    run(llama, [prompts[3]], [asked], new=3, share_prefix=share_prefix)
    nothing = torch.zeros(32)
    first = [(1, torch.stack([STRONG, nothing, STRONG])), (2, torch.stack([nothing, nothing, OTHER]))]
    later = [(1, torch.stack([nothing, nothing, STRONG])), (2, torch.stack([nothing, nothing, OTHER]))]
    wanted = [*first, *later, *later]
    assert [layer for layer, _ in seen] == [layer for layer, _ in wanted]
    for (_, found), (_, added) in zip(seen, wanted, strict=True):
        torch.testing.assert_close(found, added, rtol=1e-4, atol=1e-4)


def test_rows_that_start_later_are_steered_from_their_own_first_token(model, architecture, expected, prompts):
    """With few slots, rows of several ages lie side by side, each with its own steering."""
    tokens = expected(architecture)
    names = [("last", "decode") if i % 2 else ("two layers", "none", "relative second") for i in range(len(prompts))]
    eos = sorted({tokens[2]["two layers"][2], tokens[5]["decode"][1], tokens[0]["none"][4]})
    wanted = [[list(takewhile(lambda token: token not in eos, ids)) for ids in own] for own in rows(tokens, names)]
    conditions = [[CONDITIONS[name] for name in own] for own in names]
    for slots in (3, 5):
        assert run(model, prompts, conditions, slots, eos) == wanted


def test_vectors_of_one_prompt_do_not_land_in_its_neighbor_in_the_packed_row(llama, prompts):
    """Which positions of the residual stream differ behind the steered layer; prefixes lie end to end, longest first."""
    chosen, seen = [prompts[0], prompts[3]], []
    decoder_layers(llama)[2].register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    zero = (Steering(1, 0 * STRONG, "all"),)
    run(llama, chosen, [[(), CONDITIONS["all"], CONDITIONS["last"]], [CONDITIONS["all"], ()]], new=1)
    run(llama, chosen, [[(), zero, CONDITIONS["last"]], [zero, ()]], new=1)
    assert [tuple(hidden.shape) for hidden in seen] == [(2 * 8 + 2 * 1, 32), (1, 32)] * 2
    steered, plain = seen[0], seen[2]
    where = [*range(8), 16]
    assert (steered != plain).any(1).nonzero()[:, 0].tolist() == where
    torch.testing.assert_close((steered - plain)[where], STRONG.expand(9, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_no_hook_is_left_behind(llama, prompts, share_prefix):
    before = hooks_of(llama)
    inside = []
    probe = llama.get_output_embeddings().register_forward_hook(lambda *_: inside.append(hooks_of(llama)))
    run(llama, prompts, every(prompts), share_prefix=share_prefix)
    probe.remove()
    assert max(inside) > before + 1
    assert hooks_of(llama) == before


@pytest.mark.parametrize("step", [0, 1, 3])  # reading the prefix, its last token, a new one
def test_no_hook_is_left_behind_by_an_exception(llama, expected, prompts, step):
    calls = Counter()

    def fails(*_):
        calls["passes"] += 1
        if calls["passes"] == step + 1:
            raise RuntimeError("out of memory")

    probe = decoder_layers(llama)[2].register_forward_pre_hook(fails)
    before = hooks_of(llama)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(llama, [prompts[0]], [SHARED])
    assert hooks_of(llama) == before
    probe.remove()
    assert run(llama, [prompts[0]], [[CONDITIONS["last"]]]) == [[expected("llama")[0]["last"]]]


def test_a_hook_that_does_not_fire_exactly_once_a_step_is_an_error(llama, prompts):
    layer = decoder_layers(llama)[1]
    forward, again = layer.forward, []

    def twice(*args, **kwargs):
        if not again:
            again.append(True)
            layer(*args, **{**kwargs, "past_key_values": None})
            again.clear()
        return forward(*args, **kwargs)

    layer.forward = twice
    before = hooks_of(llama)
    with pytest.raises(RuntimeError, match=r"hooks fired \[2\] times in one step"):
        run(llama, [prompts[0]], [[CONDITIONS["last"]]])
    assert hooks_of(llama) == before


def test_progress_counts_prompts(llama, prompts):
    done = []
    run(llama, prompts, [[()]] * 7, 3, new=1, on_done=done.append)
    assert done == [3, 3, 1]
    done.clear()
    run(llama, prompts, [SHARED] * 7, 8, new=1, on_done=done.append)
    assert done == [2, 2, 2, 1]
    assert run(llama, [], []) == []
    assert run(llama, prompts, [[]] * 7) == [[]] * 7
