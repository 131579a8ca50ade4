"""Replies of token ids: marks that are special tokens stay, and the limit of tokens is told from the model's own end."""

import pytest
from transformers import AddedToken, AutoTokenizer

from afintro.generation.behavior import CUT, RuleLabeler
from afintro.generation.reasoning import take_apart
from afintro.generation.replies import ReplyDecoder

REFUSES, HELPS = "I cannot help.", "Sure, here is the memo."
MISTRAL = ["[THINK]", "[/THINK]", "[INST]"]
GPT_OSS = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"]
COHERE = ["<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"]
GEMMA = ["<|channel>", "<channel|>"]
OTHERS = ["<think>", "</think>", "<|end|>", "<|message|>"]


@pytest.fixture
def with_special(model_directories):
    """Makes the byte-level tokenizer with further special tokens."""

    def make(tokens):
        tokenizer = AutoTokenizer.from_pretrained(model_directories["llama"])
        tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens], special_tokens=True)
        return tokenizer

    return make


def reply(tokenizer, said, limit=500, prompt="Hello"):
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (said, prompt)]
    return ReplyDecoder(tokenizer, limit)(*ids)


@pytest.mark.parametrize(
    ("tokens", "said", "text"),
    [
        (MISTRAL, f"[THINK]{REFUSES}[/THINK]{HELPS}", None),
        (MISTRAL, f"[INST][THINK]{REFUSES}[/THINK]{HELPS}", f"[THINK]{REFUSES}[/THINK]{HELPS}"),
        (GPT_OSS, f"<|channel|>analysis<|message|>{REFUSES}<|end|><|start|>assistant<|channel|>final<|message|>{HELPS}", None),
        (COHERE, f"<|START_THINKING|>{REFUSES}<|END_THINKING|><|START_RESPONSE|>{HELPS}<|END_RESPONSE|>", None),
        (GEMMA, f"<|channel>thought\n{REFUSES}<channel|>{HELPS}", None),
        (OTHERS, f"<think>{REFUSES}</think>{HELPS}", None),
    ],
)  # fmt: skip
def test_special_marks_stay_in_the_text(with_special, tokens, said, text):
    tokenizer = with_special(tokens)
    assert REFUSES + HELPS in tokenizer.decode(
        tokenizer(said, add_special_tokens=False)["input_ids"], skip_special_tokens=True
    ).replace("analysis", "").replace("assistantfinal", "").replace("thought\n", "")
    found = reply(tokenizer, said)
    assert found.text == (text or said)
    assert RuleLabeler()(found).label == "comply"
    assert take_apart(found).answer == HELPS


def test_other_special_tokens_are_dropped(with_special):
    found = reply(with_special(OTHERS), f"<|message|>{HELPS}<|end|>")
    assert found.text == HELPS  # without channels these tokens mark no reasoning


def test_a_mark_that_was_only_spelled_ends_no_reasoning(with_special):
    """The text is that of a closing mark, but the model wrote it byte by byte."""
    tokenizer = with_special(MISTRAL)
    opening, closing = tokenizer.convert_tokens_to_ids(["[THINK]", "[/THINK]"])
    parts = (REFUSES, "Sure, it ends with [/THI", "NK] and all is well.")
    thoughts, answer, rest = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in parts)
    found = ReplyDecoder(tokenizer, 500)([opening, *thoughts, closing, *answer, *rest], [5])
    assert found.text == f"[THINK]{REFUSES}[/THINK]Sure, it ends with [/THINK] and all is well."
    assert take_apart(found).answer == "Sure, it ends with [/THINK] and all is well."
    assert take_apart(found.text).answer == "and all is well.", "the text alone does not tell"


def test_plain_tokenizers_give_plain_texts(with_special):
    tokenizer = with_special([])
    ids = tokenizer(f"<think>{REFUSES}</think>é{HELPS}", add_special_tokens=False)["input_ids"]
    assert ReplyDecoder(tokenizer, 500)(ids, [5]).text == tokenizer.decode(ids, skip_special_tokens=True)


def test_the_prompt_opens_the_reasoning(with_special):
    tokenizer = with_special(MISTRAL)
    assert RuleLabeler()(reply(tokenizer, f"{REFUSES}[/THINK]{HELPS}", prompt="Hello[THINK]")).label == "comply"
    assert RuleLabeler()(reply(tokenizer, REFUSES, len(REFUSES), "Hello[THINK]")) == CUT
    assert RuleLabeler()(reply(tokenizer, REFUSES, len(REFUSES))).label == "refuse"


@pytest.mark.parametrize(("limit", "truncated"), [(2, True), (3, False)])
def test_the_limit_is_reached_only_where_no_end_was_written(with_special, limit, truncated):
    """Generation leaves the end token out, so a reply that ended with the last allowed token is one token shorter."""
    assert reply(with_special([]), "ab", limit).truncated is truncated


@pytest.mark.parametrize(
    ("prefill", "said", "answer"),
    [
        ("Sure, here", " is the memo.", HELPS),
        ("[THINK]", f"{REFUSES}[/THINK]{HELPS}", HELPS),
        (f"[THINK]{REFUSES}[/THINK]", HELPS, HELPS),
        ("", HELPS, HELPS),
    ],
)
def test_an_answer_is_read_with_the_prefill_that_began_it(with_special, prefill, said, answer):
    """Marks in a prefill are special tokens, as marks of a template are; the text is what the model wrote."""
    tokenizer = with_special(MISTRAL)
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    found = ReplyDecoder(tokenizer, len(ids))(ids, [5], prefill)
    assert (found.text, found.prefill, found.truncated) == (said, prefill, True)
    assert take_apart(found).answer == answer
    assert RuleLabeler()(found).label == "comply"
