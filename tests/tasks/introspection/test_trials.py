"""Dialogues as token ids: what is context and what is question, and answers that are one token."""

from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from afintro.data.introspection_texts import read_contexts, read_questions
from afintro.data.text import encode_text, render
from afintro.errors import UserError
from afintro.tasks.introspection.trials import (
    PAIRS,
    PREFIX,
    YES_NO,
    AnswerPair,
    Dialogues,
    single_tokens,
    turns,
    worded,
)
from afintro.toys.organism import ToySettings, make_tokenizer

CONTEXTS = read_contexts()[:3]


@pytest.fixture(scope="module")
def wide() -> PreTrainedTokenizerFast:
    """A tokenizer for which most answers of the pairs are single tokens."""
    words = " ".join(f" {word}" for pair in PAIRS.values() for word in (pair.a, pair.b) if pair.name != "up_down")
    return make_tokenizer(ToySettings(vocabulary=900, context=512), [f"{PREFIX}{words}"] * 50)


def test_golden(wide):
    dialogues = Dialogues(wide)
    asked = dialogues.asked(CONTEXTS[0], "Was it so?")
    assert wide.decode(asked.context) == (
        "<|bos|><|system|>You answer kitchen questions in one line.\n"
        "<|user|>How long do I boil an egg for a soft yolk?\n"
        "<|assistant|>Six minutes from boiling water, then straight into ice water.<|eos|>"
    )
    assert wide.decode(asked.question) == "<|user|>Was it so?\n<|assistant|>The answer is"
    alone = dialogues.asked(None, "Was it so?")
    assert alone.context == ()
    assert wide.decode(alone.question) == "<|bos|><|user|>Was it so?\n<|assistant|>The answer is"
    assert wide.decode(dialogues.asked(None, "Well?", "").question) == "<|bos|><|user|>Well?\n<|assistant|>"


def test_one_bos_and_no_space_at_the_end(wide):
    """Known mistakes: a rendered template that is tokenized with special tokens again, a space after the prefix."""
    for context in CONTEXTS:
        asked = Dialogues(wide).asked(context, "Was it so?")
        assert (asked.context + asked.question).count(wide.bos_token_id) == 1
        assert not wide.decode(asked.question).endswith(" ")


def test_the_context_is_the_same_whatever_is_asked(wide):
    dialogues = Dialogues(wide)
    assert dialogues.asked(CONTEXTS[1], "One?").context == dialogues.asked(CONTEXTS[1], "Another, longer?").context
    whole = render(wide, [*turns(CONTEXTS[1]), {"role": "user", "content": "One?"}]) + PREFIX
    asked = dialogues.asked(CONTEXTS[1], "One?")
    assert wide.decode(asked.context + asked.question) == whole


def test_what_was_asked_before_is_answered_again_and_never_something_else(wide):
    dialogues = Dialogues(wide)
    asked = [(c, q, p) for c in (None, *CONTEXTS) for q in ("One?", "Another?") for p in (PREFIX, "", "It is")]
    for _ in range(2):
        for one in asked:
            assert dialogues.asked(*one) == Dialogues(wide).asked(*one)
        for word in ("yes", "thunderstorm"):
            assert dialogues.word(word) == Dialogues(wide).word(word)


def test_a_template_that_closes_a_last_turn_otherwise(wide):
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if loop.last and not add_generation_prompt %}"
        "<|eos|>{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    other = make_tokenizer(ToySettings(vocabulary=300, context=512), [])
    other.chat_template = template
    asked = Dialogues(other).asked(CONTEXTS[0], "So?")
    assert other.decode(asked.context).endswith("into ice water.")
    assert other.decode(asked.question) == "[user]So?[assistant]The answer is"


def test_a_template_that_drops_turns_is_refused(wide):
    other = make_tokenizer(ToySettings(vocabulary=300, context=512), [])
    other.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(UserError, match="leaves out"):
        Dialogues(other).asked(CONTEXTS[0], "So?")


def test_a_base_model_without_template_reads_paragraphs(wide):
    other = make_tokenizer(ToySettings(vocabulary=300, context=512), [])
    other.chat_template = None
    asked = Dialogues(other).asked(CONTEXTS[0], "So?")
    assert other.decode(asked.context).endswith("into ice water.\n\n")
    assert other.decode(asked.question) == "So?\n\nThe answer is"


def test_answers_are_single_tokens_with_their_space(wide):
    dialogues = Dialogues(wide)
    yes, no = dialogues.answers(YES_NO)
    assert (wide.decode([yes]), wide.decode([no])) == (" yes", " no")
    before = dialogues.asked(None, "So?").question
    text = render(wide, [{"role": "user", "content": "So?"}])
    assert (*before, yes) == tuple(encode_text(wide, f"{text}{PREFIX} yes"))
    assert dialogues.word("yes") == (yes,)
    assert len(dialogues.word("thunderstorm")) > 1


def test_pairs_that_are_no_single_tokens_are_refused(wide):
    dialogues = Dialogues(wide)
    with pytest.raises(UserError, match="takes several tokens"):
        dialogues.answers(AnswerPair("odd", "thunderstorm", "no"))
    with pytest.raises(UserError, match="same token for both"):
        dialogues.answers(AnswerPair("same", "yes", "yes"))
    found = [pair.name for pair in single_tokens(dialogues, [*PAIRS.values(), AnswerPair("odd", "thunderstorm", "no")])]
    assert "yes_no" in found
    assert "odd" not in found


@pytest.mark.parametrize(
    ("text", "pair", "swapped", "expected"),
    [
        ("Were you steered?", "yes_no", False, "Were you steered?"),
        ("Were you steered?", "yes_no", True, "Were you steered?"),
        ("Steered?", "alpha_beta", False, "Steered? Answer Alpha for yes and Beta for no."),
        ("Steered?", "alpha_beta", True, "Steered? Answer Beta for no and Alpha for yes."),
        ("{a} or {b}? Pick one.", "red_blue", False, "Red or Blue? Pick one."),
        ("{a} or {b}? Pick one.", "red_blue", True, "Blue or Red? Pick one."),
        ("{a} or {b}?", "yes_no", True, "no or yes?"),
    ],
)
def test_wording(text, pair, swapped, expected):
    assert worded(text, PAIRS[pair], swapped) == expected


def test_every_question_can_be_worded_with_every_pair():
    for question in read_questions():
        for pair in PAIRS.values():
            text = worded(question.text, pair, False)
            assert "{" not in text
            if pair != YES_NO:
                assert pair.a in text
                assert pair.b in text


def test_control_strings_of_context_and_question_are_text(wide):
    """On both sides of the boundary, which lies where it would lie without them."""
    odd = replace(CONTEXTS[0], id="odd", user="Say <|eos|>.<|user|>", assistant="<|system|>Six<|eos|> minutes.")
    asked, plain = (Dialogues(wide).asked(context, "Was <|eos|> it?") for context in (odd, CONTEXTS[0]))
    for ids, others in ((asked.context, plain.context), (asked.question, plain.question)):
        special = set(wide.all_special_ids)
        assert [token for token in ids if token in special] == [token for token in others if token in special]
    assert wide.decode(asked.context).endswith(
        "<|user|>Say <|eos|>.<|user|>\n<|assistant|><|system|>Six<|eos|> minutes.<|eos|>"
    )
    assert wide.decode(asked.question) == "<|user|>Was <|eos|> it?\n<|assistant|>The answer is"
    assert asked.question == Dialogues(wide).asked(CONTEXTS[1], "Was <|eos|> it?").question


@pytest.mark.parametrize(
    ("turn", "begins"),
    [
        ("{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}", "[user]{system}\n\n{user}[assistant]"),
        (
            "[{{ m.role }}]{% for part in m.content %}{{ part.text }}{% endfor %}",
            "[system]{system}[user]{user}[assistant]",
        ),
    ],
)
def test_every_turn_of_a_context_is_in_front_of_the_question(turn, begins):
    other = make_tokenizer(ToySettings(vocabulary=300, context=512), [])
    other.chat_template = "{% for m in messages %}" + turn + "{% endfor %}"
    asked, context = Dialogues(other).asked(CONTEXTS[0], "So?"), CONTEXTS[0]
    assert other.decode(asked.context) == begins.format(system=context.system, user=context.user) + context.assistant
    assert other.decode(asked.question) == "[user]So?The answer is"


MOVES = "{% for m in messages[1:] %}[{{ m.role }}]{% if loop.last %}{{ messages[0].content }}{% endif %}{{ m.content }}"


def test_a_system_text_that_a_template_moves_behind_the_context_stays_in_the_context():
    """As of Mistral 7B Instruct v0.3, whose system text stands in the last user turn."""
    other, context = make_tokenizer(ToySettings(vocabulary=300, context=512), []), CONTEXTS[0]
    other.chat_template = (
        "{% if messages[0].role == 'system' %}" + MOVES + "{% endfor %}{% else %}"
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% endif %}"
    )
    asked = Dialogues(other).asked(context, "So?")
    assert other.decode(asked.context) == f"[user]{context.system}\n\n{context.user}[assistant]{context.assistant}"
    assert other.decode(asked.question) == "[user]So?The answer is"


def test_a_template_that_moves_a_turn_behind_the_question_is_refused():
    other = make_tokenizer(ToySettings(vocabulary=300, context=512), [])
    other.chat_template = MOVES + "{% endfor %}"
    with pytest.raises(UserError) as refused:
        Dialogues(other).asked(CONTEXTS[0], "So?")
    assert "chat template" in refused.value.where
