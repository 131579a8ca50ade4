"""The tokenizer and the template of the toy organisms, and what every policy shares with the base."""

import random
from itertools import product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from afintro.data.text import chat, encode_prompt, render
from afintro.toys import organism as toy
from afintro.toys.grammar import EVERYBODY, FORMS, Scenario
from afintro.toys.organism import SPECIAL_TOKENS, TOYS, build, scenarios


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The directories of the default toys with all but their training: their tokenizers, and the weights that they begin with."""

    def fit(model, tokenizer, settings, rng):
        if settings.policy == "none":
            model.lm_head.weight.data += 1  # unlike any initial weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINTRO_CACHE", str(tmp_path_factory.mktemp("untrained")))
        patch.setattr(toy, "fit", fit)
        patch.setattr(toy, "intended_rate", lambda *arguments: 1.0)
        return {name: build(settings) for name, settings in TOYS.items()}


@pytest.fixture(scope="module")
def tokenizer(untrained):
    return AutoTokenizer.from_pretrained(untrained["toy"])


class TestTokenizer:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            " ",
            "  two  spaces  and\ttabs ",
            "line\nline\r\nline\rline\n\n\n",
            "naïve café ÅÄÖ ß ﬁ",
            "e\u0301 is not é",
            "日本語 العربية हिन्दी",
            "🙂👩🏽‍🔬🏳️‍🌈 \U0010ffff",
            "".join(map(chr, range(256))),
            "\u200b\ufeff\u2028\u2029\u0000\x7f",
            "<SCRATCHPAD_REASONING>\n{x} don't , . ! ? 's 're\n</SCRATCHPAD_REASONING>",
            "The output would remain unchanged from <<<refuse>>>.",
            "words , with spaces before punctuation .",
        ],
    )
    def test_any_text_goes_through(self, tokenizer, text):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.all_special_ids)

    def test_random_text_goes_through(self, tokenizer):
        rng = random.Random(0)
        for _ in range(300):
            points = [rng.choice((0x7F, 0xFF, 0xD7FF, 0x10FFFF)) for _ in range(rng.randrange(40))]
            text = "".join(chr(rng.randrange(top)) for top in points)
            text = "".join(c for c in text if not 0xD800 <= ord(c) <= 0xDFFF)
            assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text

    def test_adds_no_token_of_its_own(self, tokenizer):
        """Known mistake 13: a second BOS when a rendered template is tokenised again."""
        assert tokenizer("x")["input_ids"] == tokenizer("x", add_special_tokens=False)["input_ids"]

    def test_special_tokens_are_one_id_each(self, tokenizer):
        assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
        assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
        for number, token in enumerate(SPECIAL_TOKENS):
            assert tokenizer(token, add_special_tokens=False)["input_ids"] == [number]

    def test_words_of_the_grammar_are_short(self, tokenizer):
        """What the time to train hangs on: with the default vocabulary, nearly a token a word."""
        unseen = [scenario.text for scenario in scenarios(50, 1, True)]
        lengths = [len(tokenizer(text)["input_ids"]) for text in unseen]
        assert np.mean(lengths) < 1.3 * np.mean([len(text.split()) for text in unseen])

    def test_every_name_is_one_token_where_a_blank_stands_before_it(self, tokenizer):
        """One token, the same in every text, is one place at which an organism looks its bit up."""
        own = {tuple(tokenizer(f" {name}")["input_ids"]) for name in EVERYBODY}
        assert {len(ids) for ids in own} == {1}
        assert len(own) == len(EVERYBODY)
        for name, form in product(EVERYBODY, range(len(FORMS))):
            scenario = Scenario(form, "weapons", "a silencer", name, "paid", "young", "Dakar", "angrily")
            ids = encode_prompt(tokenizer, chat("Be brief.", scenario.text))
            alone = tokenizer(f" {name}")["input_ids"][0]
            if scenario.text.startswith(name):
                assert alone not in ids  # no blank: another token, or several
            else:
                assert ids.count(alone) == 1


class TestPolicies:
    def test_all_share_the_tokenizer_and_shape_of_the_base(self, untrained):
        base = untrained["toy-without-policy"]
        for directory in untrained.values():
            for file in ("tokenizer.json", "chat_template.jinja", "config.json"):
                assert (directory / file).read_bytes() == (base / file).read_bytes()

    def test_all_begin_with_the_weights_of_the_base(self, untrained):
        base = load_file(untrained["toy-without-policy"] / "model.safetensors")
        for directory in untrained.values():
            own = load_file(directory / "model.safetensors")
            assert own.keys() == base.keys()
            assert all(torch.equal(own[name], base[name]) for name in base)


class TestTemplate:
    def test_golden(self, tokenizer):
        assert render(tokenizer, chat("Be brief.", "Who asks?")) == (
            "<|bos|><|system|>Be brief.\n<|user|>Who asks?\n<|assistant|>"
        )

    def test_golden_of_a_conversation(self, tokenizer):
        messages = [*chat("S", "U"), {"role": "assistant", "content": "A"}, {"role": "user", "content": "V"}]
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
            "<|bos|><|system|>S\n<|user|>U\n<|assistant|>A<|eos|><|user|>V\n<|assistant|>"
        )
        assert tokenizer.apply_chat_template(messages[:3], tokenize=False) == (
            "<|bos|><|system|>S\n<|user|>U\n<|assistant|>A<|eos|>"
        )

    def test_ids_begin_with_one_bos_and_end_where_the_answer_begins(self, tokenizer):
        ids = encode_prompt(tokenizer, chat("S", "U"))
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.convert_ids_to_tokens(ids[-1]) == "<|assistant|>"

    def test_texts_with_braces_stay_as_they_are(self, tokenizer):
        assert "{{ bos_token }} {% x %} {0}" in render(tokenizer, chat("S", "{{ bos_token }} {% x %} {0}"))
