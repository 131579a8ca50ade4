"""Goldens at every boundary between messages, text and token ids."""

import copy

import pytest
from tokenizers.processors import TemplateProcessing

from afintro.data.text import chat, encode_answer, encode_prompt, fill, render, template_hash
from afintro.errors import UserError
from afintro.toys.organism import ToySettings, make_tokenizer

# As of Mistral 7B Instruct v0.1: it knows no system turn.
WITHOUT_SYSTEM_TURN = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% elif message.role == 'assistant' %} {{ message.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
# Texts that must go through as they are: braces for Jinja and str.format, scripts, emoji, control characters.
TEXTS = [
    "plain",
    "{{ bos_token }} {% for x in y %} {0} {x!r} %s ${a}",
    "naïve façade — “quoted” … 中文字符 العربية 🙂👩‍👩‍👧",
    "tabs\tand\r\nlines\n\n\nand \u2028 separators\x0b",
    "  spaces at both ends  ",
    "<|slot|> and [INST] and </s>",
    "<<<refuse>>>",
]


@pytest.fixture
def changeable(tokenizer):
    """Return a copy of the tokenizer that, like Llama's, adds a BOS when asked for special tokens."""
    copied = copy.deepcopy(tokenizer)
    copied.backend_tokenizer.post_processor = TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    assert copied("a")["input_ids"] == [1, 71]
    return copied


@pytest.fixture(params=["template", "no template", "no system turn"])
def any_tokenizer(request, changeable):
    if request.param != "template":
        changeable.chat_template = None if request.param == "no template" else WITHOUT_SYSTEM_TURN
    return changeable


def test_chat():
    assert chat("S", "U") == [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("{a} and {b}, {a}", "{b} and two, {b}"),  # in one pass: a value that names a field stays as it is
        ("{{a}} {c} {} {0} {a!r} %s $a {a", "{{b}} {c} {} {0} {a!r} %s $a {a"),
        ("no field", "no field"),
        ("", ""),
    ],
)
def test_fill(template, filled):
    assert fill(template, {"a": "{b}", "b": "two"}) == filled


@pytest.mark.parametrize("value", [*TEXTS, r"\1 \g<0> \n"])
def test_fill_takes_a_value_as_it_is(value):
    assert fill("<{a}>", {"a": value}) == f"<{value}>"


def test_golden_with_a_chat_template(changeable):
    assert render(changeable, chat("Be good.", "Hi {x}")) == "<|bos|><|system|>Be good.\n<|user|>Hi {x}\n<|assistant|>"
    ids = [1, 4, 40, 75, 227, 77, 85, 85, 74, 20, 205, 5, 46, 79, 227, 97, 94, 99, 205, 6]
    assert encode_prompt(changeable, chat("Be good.", "Hi {x}")) == ids


def test_golden_of_a_base_model_without_a_template(changeable):
    changeable.chat_template = None
    assert render(changeable, chat("Be good.", "Hi {x}")) == "<|bos|>Be good.\n\nHi {x}\n\n"
    ids = [1, 40, 75, 227, 77, 85, 85, 74, 20, 205, 205, 46, 79, 227, 97, 94, 99, 205, 205]
    assert encode_prompt(changeable, chat("Be good.", "Hi {x}")) == ids


def test_golden_of_a_template_that_refuses_a_system_turn(changeable):
    """The system text goes to the head of the first user turn: the cue is never lost."""
    changeable.chat_template = WITHOUT_SYSTEM_TURN
    messages = chat("Be good.", "Hi {x}")
    assert render(changeable, messages) == "<|bos|>[INST] Be good.\n\nHi {x} [/INST]"
    ids = [1, 65, 47, 52, 57, 58, 67, 227, 40, 75, 227, 77, 85, 85, 74, 20, 205, 205, 46, 79, 227, 97, 94, 99, 227]
    ids += [65, 21, 47, 52, 57, 58, 67]
    assert encode_prompt(changeable, messages) == ids
    assert messages == chat("Be good.", "Hi {x}")  # the caller's messages are not rewritten


def test_golden_of_solved_examples_in_front(changeable):
    messages = [*chat("S", "U1"), {"role": "assistant", "content": "A1"}, {"role": "user", "content": "U2"}]
    assert (
        render(changeable, messages)
        == "<|bos|><|system|>S\n<|user|>U1\n<|assistant|>A1<|eos|><|user|>U2\n<|assistant|>"
    )
    changeable.chat_template = WITHOUT_SYSTEM_TURN
    assert render(changeable, messages) == "<|bos|>[INST] S\n\nU1 [/INST] A1<|eos|>[INST] U2 [/INST]"
    changeable.chat_template = None
    assert render(changeable, messages) == "<|bos|>S\n\nU1\n\nA1\n\nU2\n\n"


def test_a_tokenizer_without_a_bos(changeable):
    changeable.chat_template, changeable.bos_token = None, None
    assert render(changeable, chat("S", "U")) == "S\n\nU\n\n"
    assert encode_prompt(changeable, chat("S", "U")) == [57, 205, 205, 59, 205, 205]


def test_a_template_that_refuses_the_conversation_itself_is_heard(changeable):
    changeable.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match="never"):
        render(changeable, chat("S", "U"))


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_reaches_the_prompt_word_for_word(any_tokenizer, text):
    rendered = render(any_tokenizer, chat(f"s{text}s", f"u{text}u"))
    assert f"s{text}s" in rendered
    assert f"u{text}u" in rendered
    assert any_tokenizer.decode(encode_prompt(any_tokenizer, chat(f"s{text}s", f"u{text}u"))) == rendered


def test_one_bos_and_it_stands_first(any_tokenizer):
    """A rendered template is not given a second BOS when it is tokenized."""
    ids = encode_prompt(any_tokenizer, chat("S", "U"))
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert 1 not in encode_answer(any_tokenizer, "answer")


@pytest.mark.parametrize("text", [*TEXTS, ""])
def test_an_answer_ends_with_one_end_of_sequence(any_tokenizer, text):
    """Otherwise the explainer never learns to stop."""
    ids = encode_answer(any_tokenizer, text)
    assert ids[-1] == 2
    assert ids.count(2) == 1
    assert any_tokenizer.decode(ids[:-1]) == text


def test_golden_answers(changeable):
    assert encode_answer(changeable, "é{}<<<\n") == [134, 109, 97, 99, 34, 34, 34, 205, 2]
    assert encode_answer(changeable, "") == [2]
    assert encode_answer(changeable, "é{}<<<\n", cut=True) == [134, 109, 97, 99, 34, 34, 34, 205]


@pytest.mark.parametrize("answer", ["\n", "S", "U\n\n", ""])
def test_the_boundary_is_known_even_where_tokens_would_merge_across_it(answer):
    """The answer is never searched, so it may also stand in the prompt, or merge with the prompt's last token."""
    merging = make_tokenizer(ToySettings(vocabulary=300), ["\n\n\n"] * 50)
    merging.chat_template = None
    prompt, ids = encode_prompt(merging, chat("S", "U")), encode_answer(merging, answer)
    assert merging.decode(prompt) == "<|bos|>S\n\nU\n\n"
    assert merging.decode(ids) == f"{answer}<|eos|>"
    if answer == "\n":
        assert merging("S\n\nU\n\n\n")["input_ids"] != prompt[1:] + ids[:-1]  # tokenized as one text it would merge


def test_a_tokenizer_without_an_end_of_sequence(changeable):
    changeable.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence"):
        encode_answer(changeable, "a")


def test_template_hash_tells_templates_apart(changeable):
    found = {template_hash(changeable)}
    assert len(found.copy().pop()) == 16
    for template in (None, "", WITHOUT_SYSTEM_TURN):
        changeable.chat_template = template
        found.add(template_hash(changeable))
        assert template_hash(changeable) == template_hash(copy.deepcopy(changeable))
    assert len(found) == 4
