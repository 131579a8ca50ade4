"""Greedy generation: the same tokens whatever the batch, and the same as transformers' own."""

from itertools import takewhile

import pytest
import torch

from afintro.lm.generate import generate_greedy
from afintro.lm.interventions import Intervention, intervene
from afintro.lm.load import Lora, add_lora, load_model

LENGTHS = (9, 1, 30, 2, 5, 17, 31, 3, 12, 8)  # below, at and above the sliding window of 8, not sorted
NEW = 16


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(22)
    return [torch.randint(7, 263, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture
def model(model_directories, architecture):
    return load_model(model_directories[architecture])


@pytest.fixture(scope="module")
def expected(model_directories, plain_model, prompts):
    """What transformers' ``generate`` gives, one prompt at a time, never stopping."""
    found = {name: [] for name in model_directories}
    for name, directory in model_directories.items():
        reference = plain_model(directory)
        reference.generation_config.eos_token_id = None
        for prompt in prompts:
            output = reference.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=NEW,
                do_sample=False, output_scores=True, return_dict_in_generate=True,
            )  # fmt: skip
            first, second = torch.cat(output.scores).topk(2).values.unbind(1)
            assert (first - second).min() > 1e-3, "a near tie: rounding could decide it; choose another seed"
            found[name].append(output.sequences[0, len(prompt) :].tolist())
    return found


def run(model, prompts, batch_size, eos=(), new=NEW, **options):
    return generate_greedy(model, prompts, max_new_tokens=new, eos_ids=eos, batch_size=batch_size, **options)


def cut(rows, eos):
    """Each row up to its first end of sequence."""
    return [list(takewhile(lambda token: token not in eos, row)) for row in rows]


def ends(rows):
    """Ids that stop the first row at once, the third in the middle, and others wherever they occur."""
    return sorted({rows[0][0], rows[2][5], rows[6][9]})


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_equals_plain_transformers_for_every_batch_size(model, architecture, expected, prompts, batch_size):
    """field.md 10: left padding and batch size must not change greedy outputs."""
    assert run(model, prompts, batch_size) == expected[architecture]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_an_end_of_sequence_ends_its_row_alone_and_is_left_out(model, architecture, expected, prompts, batch_size):
    eos = ends(expected[architecture])
    wanted = cut(expected[architecture], eos)
    lengths = {len(row) for row in wanted}
    assert 0 in lengths
    assert NEW in lengths
    assert len(lengths) > 3
    assert run(model, prompts, batch_size, eos) == wanted


def test_finished_rows_cost_nothing_more(model, architecture, expected, prompts):
    eos = ends(expected[architecture])
    rows = []
    model.register_forward_pre_hook(lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    run(model, prompts, 64, eos)
    lengths = [len(row) for row in cut(expected[architecture], eos)]
    assert rows == [sum(length >= step for length in lengths) for step in range(min(NEW, max(lengths) + 1))]


def test_the_next_question_gets_a_fresh_cache(model, architecture, expected, prompts):
    """field.md 11: nothing of one call, or of one batch, reaches the next; the prompts are left alone."""
    before = [list(prompt) for prompt in prompts]
    assert run(model, prompts, 4) == run(model, prompts, 4) == expected[architecture]
    assert run(model, prompts[::-1], 4) == expected[architecture][::-1]
    assert prompts == before


@pytest.mark.parametrize("new", [0, 1, 7])
def test_at_most_max_new_tokens(model, architecture, expected, prompts, new):
    assert run(model, prompts, 3, new=new) == [row[:new] for row in expected[architecture]]


def test_positions_count_from_the_start_of_each_prompt(model_directories, prompts):
    """Rotary attention hardly shows a shift by the padding, but a shifted row ends before its context does."""
    model, seen = load_model(model_directories["llama"]), []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append((kwargs["position_ids"], kwargs["attention_mask"])), with_kwargs=True
    )
    run(model, prompts, 64, new=3)
    for step, (positions, mask) in enumerate(seen):
        for row, length in enumerate(sorted(LENGTHS)):
            expected = list(range(length)) if step == 0 else [length + step - 1]
            assert positions[row, -len(expected) :].tolist() == expected
            assert mask[row].tolist() == [0] * (31 - length) + [1] * (length + step)


def test_the_model_itself_is_not_asked_beyond_what_is_needed(model_directories, prompts):
    model = load_model(model_directories["llama"])
    shapes = []
    model.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.logits.shape)))
    run(model, prompts, 64, new=3)
    assert shapes == [(10, 1, 263)] * 3


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
    """field.md 9: an intervention open around generation acts in each forward pass (here: one prompt of one token)."""
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
    """Known mistake 9: counted, not assumed. A flat position of the prompt would be that of another row later on."""
    model, lengths, apply = load_model(model_directories["llama"]), [], Intervention.apply

    def counted(self, hidden):
        lengths.append((len(self.positions), *hidden.shape[:2]))
        return apply(self, hidden)

    monkeypatch.setattr(Intervention, "apply", counted)
    change = [Intervention(1, "add", torch.tensor([0]), torch.linspace(-4, 4, 32)[None])]
    found = run(model, prompts, 4, interventions=[change if len(prompt) > 4 else [] for prompt in prompts])
    assert lengths == [(1, 4, 5), (4, 4, 17), (2, 2, 31)]  # vectors, rows, tokens of each of three batches
    without = run(model, prompts, 4)
    assert [i for i, ids in enumerate(prompts) if found[i] != without[i] and len(ids) <= 4] == []
    assert found != without
    assert len(lengths) == 3
    run(model, [prompts[1]], 1, interventions=[change])
    assert lengths[3:] == [(1, 1, 1)]
