"""A rendered prompt holds the text of every turn, in the form that the template needs, or is refused."""

import copy
import hashlib
import logging

import pytest

from afintro.data.chat_template import holds
from afintro.data.text import chat, encode_prompt, render, template_hash
from afintro.errors import UserError

TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
# As of old Phi-3: a system turn is skipped without a word.
SKIPS_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}\n{% elif m.role == 'assistant' %}"
    "<|assistant|>{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PARTS = "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
READS_PARTS = "{% for m in messages %}[{{ m.role }}]" + PARTS + "{% endfor %}"
READS_PARTS_SKIPS_SYSTEM = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]" + PARTS + "{% endfor %}"
# As of early Mistral: user and assistant take turns, and nobody else.
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}"
    "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
FEW_SHOT = [
    *chat("Sys", "U1"),
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
]


@pytest.fixture
def changeable(tokenizer):
    return copy.deepcopy(tokenizer)


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        (TURNS, "[system]Sys[user]U1[assistant]A1[user]U2"),
        (SKIPS_SYSTEM, "<|bos|><|user|>Sys\n\nU1\n<|assistant|>A1\n<|user|>U2\n<|assistant|>"),
        (READS_PARTS, "[system]Sys[user]U1[assistant]A1[user]U2"),
        (READS_PARTS_SKIPS_SYSTEM, "[user]Sys\n\nU1[assistant]A1[user]U2"),
        (ALTERNATES, "[user]Sys\n\nU1[assistant]A1[user]U2"),
        ({"default": TURNS, "tool_use": "none"}, "[system]Sys[user]U1[assistant]A1[user]U2"),
        ({"chat": SKIPS_SYSTEM, "rag": ""}, "<|bos|><|user|>Sys\n\nU1\n<|assistant|>A1\n<|user|>U2\n<|assistant|>"),
    ],
)
def test_every_turn_is_in_the_prompt(changeable, template, rendered):
    changeable.chat_template = template
    assert render(changeable, FEW_SHOT) == rendered
    assert changeable.decode(encode_prompt(changeable, FEW_SHOT)) == rendered


def test_the_monitoring_cue_tells_two_prompts_apart(changeable):
    for template in (SKIPS_SYSTEM, READS_PARTS, READS_PARTS_SKIPS_SYSTEM, ALTERNATES):
        changeable.chat_template = template
        assert encode_prompt(changeable, chat("watched", "U")) != encode_prompt(changeable, chat("alone", "U"))


@pytest.mark.parametrize(
    ("messages", "rendered"),
    [
        ([{"role": "system", "content": "S"}], "[user]S"),
        ([{"role": "user", "content": "U"}], "[user]U"),
        ([*chat("S", "U"), {"role": "system", "content": "T"}], "[user]S\n\nT\n\nU"),
        ([{"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}], "[user]S[assistant]A"),
    ],
)
def test_conversations_without_a_user_turn_first(changeable, messages, rendered):
    changeable.chat_template = ALTERNATES
    assert render(changeable, messages) == rendered


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[-1].content }}",  # the last turn alone
        "{{ messages[0].content }}",
        "nothing of it",
        "",
        "{{ raise_exception('closed today') }}",
        "{{ messages.wrong.wrong }}",
        "{% for m in messages %}{{ m.content[:4] }}{% endfor %}",
    ],
)
def test_a_template_that_leaves_out_a_turn_is_refused_by_name(changeable, template):
    changeable.chat_template, changeable.name_or_path = template, "some/model"
    with pytest.raises(UserError) as refused:
        render(changeable, [*chat("Instructions", "Question"), *FEW_SHOT[2:]])
    assert "some/model" in refused.value.where
    assert ("closed today" in str(refused.value)) == ("closed" in template)


def test_templates_without_a_default_are_refused_by_their_names(changeable):
    changeable.chat_template = {"short": TURNS, "long": TURNS}
    with pytest.raises(UserError, match="long, short"):
        render(changeable, FEW_SHOT)


def test_a_text_that_stands_in_another_turn_is_no_proof_of_its_own(changeable):
    """The cue is a part of the scenario, so that only the probe sees that the system turn is lost."""
    changeable.chat_template = SKIPS_SYSTEM
    assert render(changeable, chat("Hi", "Hi there")) == "<|bos|><|user|>Hi\n\nHi there\n<|assistant|>"
    assert not holds("[user]Hi there", chat("Hi", "Hi there"))
    assert holds("[system]Hi[user]Hi there", chat("Hi", "Hi there"))
    assert holds("[user]Hi there\n\nHi", chat("Hi", "Hi there"))  # as a template that puts the system text behind


@pytest.mark.parametrize(
    "written", ["m.content | trim", "m.content | tojson", "m.content | e", "m.content | replace('\n', ' ')"]
)
def test_what_a_template_does_to_white_space_and_quotes_is_no_loss(changeable, written):
    changeable.chat_template = "{% for m in messages %}[{{ m.role }}]{{ " + written + " }}{% endfor %}"
    assert "[user]" in render(changeable, chat('  Say "it".\n\nNow  ', "<b>1 & 2</b>\n"))


def test_reasoning_that_a_template_takes_out_of_earlier_answers_is_no_loss(changeable):
    changeable.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}{% endfor %}"
    turns = [FEW_SHOT[1], {"role": "assistant", "content": "<think>why</think>\n\nA1"}, FEW_SHOT[3]]
    assert render(changeable, turns) == "[user]U1[assistant]\n\nA1[user]U2"
    changeable.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[0] }}{% endfor %}"
    with pytest.raises(UserError):
        render(changeable, turns)


def test_emoji_alone_must_be_there_too(changeable):
    changeable.chat_template = TURNS
    assert render(changeable, chat("🙂", "Hi")) == "[system]🙂[user]Hi"
    assert not holds("[user]Hi", chat("🙂", "Hi"))


def test_the_hash_tells_prompts_apart_that_a_system_text_was_missing_in(changeable):
    """A checkpoint of before that, whose prompts had no system text, does not pass for one with it."""
    plain = {}
    for template in (TURNS, ALTERNATES, SKIPS_SYSTEM, READS_PARTS):
        changeable.chat_template = template
        plain[template] = template_hash(changeable)
    golden = {TURNS: "2da3ad4855edd0fa", ALTERNATES: "ebddb266ee36a57d"}  # the hashes that checkpoints of before carry
    assert {template: plain[template] for template in golden} == golden
    for template in (SKIPS_SYSTEM, READS_PARTS):
        assert plain[template] != hashlib.sha256(repr(template).encode()).hexdigest()[:16]


def test_a_base_model_without_a_template_says_once_how_it_is_asked(changeable, caplog):
    changeable.chat_template, changeable.name_or_path = None, "a/base-model"
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert render(changeable, chat("S", "U")) == "<|bos|>S\n\nU\n\n"
    assert [
        record.message
        for record in caplog.records
        if "a/base-model" in record.message and "paragraphs" in record.message
    ]
    assert len([record for record in caplog.records if "a/base-model" in record.message]) == 1
