"""Greedy generation gives the same tokens in every batch, and the same as transformers."""

from itertools import accumulate, product, takewhile

import pytest
import torch

from afintro.lm.decoding import KVSlots
from afintro.lm.engine import Continuation, Engine, Job
from afintro.lm.generate import generate_greedy, reached_limit
from afintro.lm.interventions import Intervention, intervene
from afintro.lm.load import load_model
from afintro.lm.lora import Lora, add_lora

LENGTHS = (9, 1, 30, 2, 5, 17, 31, 3, 12, 8)  # below, at and above the sliding window of 8, not sorted
NEW = 16


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(22)
    return [torch.randint(7, 263, (length,), generator=generator).tolist() for length in LENGTHS]


def transformers_tokens(reference, prompt, new):
    """Return what ``generate`` of transformers gives for one prompt, without an end of sequence."""
    reference.generation_config.eos_token_id = None
    output = reference.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=new,
        do_sample=False, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    first, second = torch.cat(output.scores).topk(2).values.unbind(1)
    assert (first - second).min() > 1e-3, "a near tie: rounding could decide it; choose another seed"
    return output.sequences[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def expected(model_directories, plain_model, prompts):
    """Return the reference by architecture, made one prompt at a time."""
    found = {}
    for name, directory in model_directories.items():
        reference = plain_model(directory)
        found[name] = [transformers_tokens(reference, prompt, NEW) for prompt in prompts]
    return found


def run(model, prompts, batch_size, eos=(), new=NEW, **options):
    return generate_greedy(model, prompts, max_new_tokens=new, eos_ids=eos, batch_size=batch_size, **options)


def cut(rows, eos):
    """Cut each row at its first end of sequence."""
    return [list(takewhile(lambda token: token not in eos, row)) for row in rows]


def ends(rows):
    """Return ids that stop the first row at once, the third row in the middle, and other rows wherever they occur."""
    return sorted({rows[0][0], rows[2][5], rows[6][9]})


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_equals_plain_transformers_for_every_batch_size(model, architecture, expected, prompts, batch_size):
    """What shares a pass, and how many, must not change greedy outputs."""
    assert run(model, prompts, batch_size) == expected[architecture]


@pytest.mark.parametrize("batch_size", [3, 64])
def test_an_end_of_sequence_ends_its_row_alone_and_is_left_out(model, architecture, expected, prompts, batch_size):
    eos = ends(expected[architecture])
    wanted = cut(expected[architecture], eos)
    lengths = {len(row) for row in wanted}
    assert 0 in lengths
    assert NEW in lengths
    assert len(lengths) > 3
    assert run(model, prompts, batch_size, eos) == wanted


def passes(model):
    """Record ``(rows, tokens)`` of every forward pass from now on."""
    shapes = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def test_finished_rows_cost_nothing_more(model, architecture, expected, prompts):
    eos = ends(expected[architecture])
    shapes = passes(model)
    run(model, prompts, 64, eos)
    lengths = [len(row) for row in cut(expected[architecture], eos)]
    steps = range(min(NEW, max(lengths) + 1))
    assert shapes == [(1, sum(LENGTHS) - 10), *((sum(length >= step for length in lengths), 1) for step in steps)]


@pytest.mark.parametrize("slots", [1, 3, 4, 7])
def test_slots_are_refilled_as_rows_end(model, architecture, expected, prompts, slots):
    """A simulation from lengths alone says when each prompt is read and how many rows each step has."""
    eos = ends(expected[architecture])
    wanted = cut(expected[architecture], eos)
    queue = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    left, shapes = [], []  # steps that each row in a slot still goes through
    while queue or left:
        if slots - len(left) >= slots / 4 and queue:
            taken, queue = queue[: slots - len(left)], queue[slots - len(left) :]
            left += [min(NEW, len(wanted[i]) + 1) for i in taken]
            if read := sum(len(prompts[i]) - 1 for i in taken):
                shapes.append((1, read))
        shapes.append((len(left), 1))
        left = [steps - 1 for steps in left if steps > 1]
    found = passes(model)
    assert run(model, prompts, slots, eos) == wanted
    assert found == shapes
    if slots > 1:
        batches = [wanted[i : i + slots] for i in range(0, len(wanted), slots)]
        assert sum(tokens == 1 for _, tokens in found) < sum(min(NEW, max(map(len, b)) + 1) for b in batches) + slots


def test_refilling_takes_fewer_passes_than_batches_one_after_the_other(model, architecture, expected, prompts):
    eos = ends(expected[architecture])
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    shapes = passes(model)
    for start in range(0, len(order), 3):
        run(model, [prompts[i] for i in order[start : start + 3]], 3, eos)
    one_after_the_other = len(shapes)
    shapes.clear()
    run(model, prompts, 3, eos)
    assert len(shapes) < one_after_the_other


@pytest.mark.parametrize("most", [1, 20, 31, 60])
def test_long_prefills_are_read_in_parts(model_directories, expected, prompts, most):
    model = load_model(model_directories["llama"])
    shapes = passes(model)
    jobs = [Job(prompt, [Continuation()]) for prompt in prompts]
    settings = {"max_new_tokens": NEW, "eos_ids": [], "batch_size": 64, "done": lambda _: None}
    with torch.inference_mode():
        Engine(model, jobs, **settings, prefill_tokens=most).run()
    assert [job.continuations[0].tokens for job in jobs] == expected["llama"]
    read = [tokens for rows, tokens in shapes if rows == 1]
    assert sum(read) == sum(LENGTHS) - 10
    assert all(tokens <= max(most, 30) for tokens in read)
    assert len(read) == {1: 9, 20: 6, 31: 4, 60: 3}[most]


def test_what_slots_held_before_is_not_seen(model, architecture, expected, prompts, monkeypatch):
    """Everything that was never written is poison, because zeros could hide that it is read."""
    write = KVSlots.write

    def poisoned(self, layer, key, value, slots, columns):
        for kept, tensor in ((self.keys, key), (self.values, value)):
            if layer not in kept:
                kept[layer] = tensor.new_full((self.count, tensor.shape[-2], self.capacity, tensor.shape[-1]), 1e4)
        write(self, layer, key, value, slots, columns)

    monkeypatch.setattr(KVSlots, "write", poisoned)
    eos = ends(expected[architecture])
    assert run(model, prompts, 4, eos) == cut(expected[architecture], eos)


def test_the_next_question_gets_a_fresh_cache(model, architecture, expected, prompts):
    """Nothing of one call or batch reaches the next, and the prompts stay unchanged."""
    before = [list(prompt) for prompt in prompts]
    assert run(model, prompts, 4) == run(model, prompts, 4) == expected[architecture]
    assert run(model, prompts[::-1], 4) == expected[architecture][::-1]
    assert prompts == before


@pytest.mark.parametrize("new", [0, 1, 7])
def test_at_most_max_new_tokens(model, architecture, expected, prompts, new):
    assert run(model, prompts, 3, new=new) == [row[:new] for row in expected[architecture]]


def test_positions_count_from_the_start_of_each_prompt(model_directories, prompts):
    """Rotary attention hardly shows a shift by the neighbors, but a shifted row ends before its context does."""
    model, seen = load_model(model_directories["llama"]), []

    def note(_, __, kwargs):
        seen.append({**kwargs, "input_ids": kwargs["input_ids"].clone()})  # the next tokens are written in their place

    model.register_forward_pre_hook(note, with_kwargs=True)
    run(model, prompts, 64, new=3)
    lengths = sorted(LENGTHS, reverse=True)
    whole = [position for length in lengths for position in range(length - 1)]
    steps = [[[length - 1 + step] for length in lengths] for step in range(3)]
    assert [kwargs["position_ids"].tolist() for kwargs in seen] == [[whole], *steps]
    tokens = [token for prompt in sorted(prompts, key=len, reverse=True) for token in prompt[:-1]]
    assert seen[0]["input_ids"].tolist() == [tokens], "end to end, without padding"
    assert seen[0]["cu_seq_lens_q"].tolist() == [0, *accumulate(length - 1 for length in lengths if length > 1)]
    assert seen[1]["input_ids"].tolist() == [prompt[-1:] for prompt in sorted(prompts, key=len, reverse=True)]
    assert [kwargs["attention_mask"] for kwargs in seen] == [None] * 4
    assert [kwargs["use_cache"] for kwargs in seen] == [False] * 4


def test_the_model_itself_is_not_asked_beyond_what_is_needed(model_directories, prompts):
    model = load_model(model_directories["llama"])
    shapes = []
    model.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.logits.shape)))
    run(model, prompts, 64, new=3)
    assert shapes == [(1, 0, 263), *[(10, 1, 263)] * 3]


@pytest.mark.parametrize("batch_size", [3])
def test_prompts_of_one_token_only(model, architecture, model_directories, plain_model, batch_size):
    prompts = [[token] for token in (7, 100, 42, 100)]
    reference = plain_model(model_directories[architecture])
    wanted = [transformers_tokens(reference, prompt, 5) for prompt in prompts]
    assert run(model, prompts, batch_size, new=5) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [2])
def test_many_new_tokens(model, architecture, model_directories, plain_model, prompts, batch_size):
    """Rows end early and late among many new tokens, and one row never ends."""
    chosen, reference = [prompts[i] for i in (1, 6, 7, 9)], plain_model(model_directories[architecture])
    wanted = [transformers_tokens(reference, prompt, 44) for prompt in chosen]
    assert run(model, chosen, batch_size, new=44) == wanted
    for eos in product(
        {ids[i] for ids in wanted for i in range(2, 14)}, {ids[i] for ids in wanted for i in range(18, 32)}
    ):
        ended = cut(wanted, eos)
        lengths = {len(ids) for ids in ended}
        if 44 in lengths and lengths & set(range(2, 15)) and lengths & set(range(18, 33)):
            break
    else:
        raise AssertionError("no such end of sequence; choose other prompts")
    assert run(model, chosen, batch_size, eos, new=44) == ended


def test_equal_prompts_give_equal_rows(model_directories, expected, prompts):
    model = load_model(model_directories["llama"])
    assert run(model, [prompts[3]] * 5, 2) == [expected["llama"][3]] * 5


def test_no_prompts_give_no_results(model_directories):
    assert run(load_model(model_directories["llama"]), [], 4) == []


def test_progress_counts_every_prompt_once(model_directories, prompts):
    done = []
    run(load_model(model_directories["llama"]), prompts, 4, on_done=done.append)
    assert done == [4, 4, 2]


def test_inside_a_peft_model_in_eval_mode(model_directories, architecture, expected, prompts):
    """A fresh LoRA changes nothing, and gradient checkpointing left on does not break decoding."""
    base = load_model(model_directories[architecture])
    wrapped = add_lora(base, Lora(r=2))
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    base.enable_input_require_grads()
    assert run(wrapped.eval(), prompts, 64) == expected[architecture]


def test_steering_reaches_prefill_and_every_decode_step(model_directories, plain_model, prompts):
    """An intervention open around generation acts in each forward pass (here: one prompt of one token)."""
    model = load_model(model_directories["llama"])
    vector = torch.linspace(-4, 4, 32)[None]
    with intervene(model, [Intervention(1, "add", torch.tensor([0]), vector)]) as fired:
        found = run(model, [prompts[1]], 1)
    assert fired == [NEW]
    reference = plain_model(model_directories["llama"])
    reference.model.layers[1].register_forward_hook(lambda _, __, output: output + vector)
    ids = torch.tensor([prompts[1]])
    for _ in range(NEW):
        ids = torch.cat([ids, reference(ids).logits[:, -1:].argmax(-1)], 1)
    assert found == [ids[0, 1:].tolist()]
    assert found != run(model, [prompts[1]], 1)


def test_interventions_on_prompts_act_once_while_the_prompt_is_read(model_directories, prompts, monkeypatch):
    """Count the calls: a flat position of the prompt would belong to another row later on."""
    model, seen, apply = load_model(model_directories["llama"]), [], Intervention.apply

    def counted(self, hidden):
        seen.append((self.positions.tolist(), *hidden.shape[:2]))
        return apply(self, hidden)

    monkeypatch.setattr(Intervention, "apply", counted)
    change = [Intervention(1, "add", torch.tensor([0]), torch.linspace(-4, 4, 32)[None])]
    found = run(model, prompts, 4, interventions=[change if len(prompt) > 4 else [] for prompt in prompts])
    # Where each changed prompt begins, rows, tokens: prompts of 31, 30, 17, 12, then of 9, 8, 5, 3, then of 2 and 1.
    assert seen == [([0, 30, 59, 75], 1, 86), ([0, 8, 15], 1, 21)]
    without = run(model, prompts, 4)
    assert [i for i, ids in enumerate(prompts) if found[i] != without[i] and len(ids) <= 4] == []
    assert found != without
    assert len(seen) == 2


@pytest.mark.parametrize("slots", [3, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("where", ["first", "last", "both, twice", "all"])
@pytest.mark.parametrize(("layer", "mode", "relative"), [(1, "add", False), (0, "add", True), (-1, "replace", False)])
def test_interventions_anywhere_in_a_prompt(
    model_directories, plain_model, prompts, slots, where, layer, mode, relative
):
    """The reference is a plain model that is changed by hand and reads the whole sequence at every step."""
    model, reference = load_model(model_directories["llama"]), plain_model(model_directories["llama"])
    drawn = 4 * torch.randn(40, 32, generator=torch.Generator().manual_seed(8))
    changes, wanted = [], []
    for prompt in prompts:
        last = len(prompt) - 1
        positions = {"first": [0], "last": [last], "both, twice": [last, 0, last, 0], "all": range(last + 1)}[where]
        if relative and len(set(positions)) < len(positions):
            positions = [last]
        change = Intervention(layer, mode, torch.tensor(list(positions)), drawn[: len(positions)], relative)
        changes.append([change])
        ids = list(prompt)
        for _ in range(4):
            with intervene(reference, [change]), torch.inference_mode():
                ids.append(int(reference(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        wanted.append(ids[last + 1 :])
    assert run(model, prompts, slots, new=4, interventions=changes) == wanted


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_limit_is_told_from_an_end_that_comes_with_the_last_allowed_token(
    model, expected, architecture, prompts, batch_size
):
    """Of three end tokens each stops another row; a row whose end comes as token number ``new`` has not reached the limit."""
    rows = expected[architecture]
    stops = ends(rows)
    shortened = cut(rows, stops)
    for new in sorted({len(row) + 1 for row in shortened if len(row) < NEW} | {1, NEW}):
        found = run(model, prompts, batch_size, stops, new)
        ended = [any(token in stops for token in row[:new]) for row in rows]
        assert [reached_limit(tokens, new) for tokens in found] == [not by_itself for by_itself in ended]
