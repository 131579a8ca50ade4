"""The study base: what is in its corpus and what is not, its tokens and weights, and what it is measured by."""

import json
import logging
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from afintro.data.introspection_texts import read_contexts, read_questions, read_self_prediction, read_self_reports
from afintro.data.text import render
from afintro.lm.load import load_model, load_tokenizer
from afintro.toys.chat_base import acceptance as study_acceptance
from afintro.toys.chat_base import base as study_base
from afintro.toys.chat_base import words as study_words
from afintro.toys.chat_base.acceptance import RANGES, Asked, option_probabilities, report
from afintro.toys.chat_base.base import SINGLE, STUDY_BASES, StudyBaseSettings, build, encode, make_model
from afintro.toys.chat_base.corpus import dialogues, held_out, study_questions, turns
from afintro.toys.chat_base.questions import PREFIX, SHARES, vocabulary

TINY = StudyBaseSettings(hidden_size=16, feedforward=16, layers=1, heads=2, short=60, dialogues=20, batch_tokens=512)


def folded(text):
    return " ".join(text.lower().split())


@pytest.fixture(scope="module")
def corpus():
    return [*dialogues(3000, 1, short=True), *dialogues(600, 1, short=False)]


@pytest.fixture(scope="module")
def questions(corpus):
    return [question for dialogue in corpus for question in dialogue.questions]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The directory of a base trained for a few steps, measured on few questions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINTRO_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(study_base, "measure", lambda model, tokenizer, seed: dict.fromkeys(RANGES, 0.5))
        return build(TINY)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny)


class TestCorpus:
    def test_is_decided_by_its_seed(self):
        for short in (True, False):
            assert dialogues(30, 7, short=short) == dialogues(30, 7, short=short)
            assert dialogues(30, 7, short=short) != dialogues(30, 8, short=short)

    def test_has_questions_of_every_kind(self, questions):
        assert set(Counter(question.kind for question in questions)) == set(SHARES)

    def test_holds_no_question_of_the_study(self, corpus):
        said = {folded(message["content"]) for dialogue in corpus for message in dialogue.messages}
        forbidden = {folded(text) for text in study_questions()}
        assert not said & forbidden

    def test_the_study_is_asked_in_these_texts(self):
        texts, prediction = set(study_questions()), read_self_prediction()
        assert {item.question for item in read_self_reports().items} <= texts
        assert {item.text for item in read_questions() if "{a}" not in item.text} <= texts
        probes = (*prediction.prompts, *prediction.identity_probes, *prediction.chat_openers, *prediction.realtime)
        assert {item.text for item in probes} <= texts
        assert {"Red or Blue? Pick one.", "bar or foo? Pick one.", "Classify the exchange above: up or down."} <= texts

    def test_no_wording_of_ours_is_one_of_the_study(self):
        ours = [*study_words.COINS, *study_words.CHOICES, *study_words.LISTS, *study_words.MENTIONS]
        ours += [text for text, _ in study_words.FREE]
        assert not {folded(text) for text in ours} & {folded(question.text) for question in read_questions()}

    def test_does_not_ask_about_food_or_steering(self, corpus):
        # Words of the study's contexts may stand in any question; our own wordings have none of these.
        ours = [str(value) for name, value in vars(study_words).items() if name.isupper()]
        assert not re.search(r"food|steer|activation|inject|conscious|feeling", " ".join(ours), re.IGNORECASE)

    def test_a_question_redrawn_where_it_is_the_studys(self, monkeypatch):
        text = dialogues(1, 1, short=True)[0].questions[0].text
        monkeypatch.setattr("afintro.toys.chat_base.corpus.study_questions", lambda: [text])
        assert dialogues(1, 1, short=True)[0].questions[0].text != text

    def test_held_out_questions_are_never_in_training(self, questions):
        assert not any(held_out(question) for question in questions)
        unseen = [one for dialogue in dialogues(100, 1, short=False, unseen=True) for one in dialogue.questions]
        assert all(held_out(question) for question in unseen)

    def test_contexts_are_the_studys_the_grammars_invented_or_none(self, corpus):
        assert {len(dialogue.context) for dialogue in corpus} == {0, 1, 3}
        studied = [turns(context) for context in read_contexts()]
        share = fmean(dialogue.context in studied for dialogue in corpus if len(dialogue.context) == 3)
        assert 0.3 < share < 0.6
        assert all(len(dialogue.questions) == 1 and len(dialogue.context) < 3 for dialogue in corpus[:3000])


class TestLabels:
    def test_mention(self, corpus):
        template = "|".join(re.escape(text).replace(r"\{word\}", r"(\w+)") for text in study_words.MENTIONS)
        checked = 0
        for dialogue in corpus:
            context = "\n".join(message["content"] for message in dialogue.context)
            asked = ""
            for question in dialogue.questions:
                if question.kind == "mention":
                    word = next(filter(None, re.match(template, question.text).groups()))
                    assert (question.answer == "yes") == (word in vocabulary(context))
                    # "Above" is ambiguous, so that a word from the questions in between is neither.
                    assert question.answer == "yes" or word not in vocabulary(asked)
                    checked += 1
                asked += f"\n{question.text}"
        assert checked > 100

    def test_words_that_are_parts_of_others_are_no_mention(self):
        assert vocabulary("The Winter-coat, 3 cats.") == {"the", "winter", "coat", "3", "cats"}

    def test_comparison(self, questions):
        compared = [question for question in questions if question.kind == "comparison"]
        for question in compared:
            first, second = map(int, re.findall(r"\d+", question.text))
            assert (question.answer == "yes") == (first > second)
        assert len(compared) > 500

    def test_membership(self, questions):
        kinds = {member: kind for kind, members in study_words.ONTOLOGY.items() for member in members}
        assert len(kinds) == sum(map(len, study_words.ONTOLOGY.values()))
        for question in questions:
            if question.kind == "membership":
                member, kind = next(
                    (member, kind) for member in kinds for kind in study_words.ONTOLOGY
                    if question.text.startswith(f"Is {member} {kind}?")
                )  # fmt: skip
                assert (question.answer == "yes") == (kinds[member] == kind)

    def test_lists_and_numbers(self, questions):
        kinds = {member: kind for kind, members in study_words.ONTOLOGY.items() for member in members}
        for question in questions:
            if question.kind == "list" and question.certain:
                assert question.text.endswith(f" is {kinds[question.answer]}?")
                assert [kinds[option] for option in question.options].count(kinds[question.answer]) == 1
            if plus := re.fullmatch(r"How much is (\d+) plus (\d+)\?", question.text):
                assert int(question.answer) == int(plus[1]) + int(plus[2])
            if counted := re.fullmatch(r"How many words are these\? (.*)", question.text):
                assert int(question.answer) == len(counted[1].split())

    def test_labels_say_what_the_question_would(self, questions):
        for question in (one for one in questions if one.kind == "label" and one.certain):
            yes, _ = question.options
            if numbers := re.match(r"Is (\d+) (?:larger|more) than (\d+)\?", question.text):
                assert (question.answer == yes) == (int(numbers[1]) > int(numbers[2]))
            assert re.search(rf"{yes} (for yes|if so)|answer {yes};", question.text)

    def test_options_are_named_and_answers_are_among_them(self, questions):
        for question in questions:
            if question.options and set(question.options) != {"yes", "no"}:
                assert all(
                    re.search(rf"(?<!\w){re.escape(option)}(?!\w)", question.text) for option in question.options
                )
            assert not question.options or question.answer in question.options
            assert question.reply == (f"{PREFIX} {question.answer}" if question.options else question.answer)

    @pytest.mark.parametrize("kind", ["coin", "choice", "comparison", "membership", "mention", "label"])
    def test_the_first_option_is_the_answer_half_of_the_time(self, questions, kind):
        firsts = [question.answer == question.options[0] for question in questions if question.kind == kind]
        assert fmean(firsts) == pytest.approx(0.5, abs=3 * 0.5 / len(firsts) ** 0.5)


class TestTokens:
    def test_options_of_the_study_are_one_token_each(self, tokenizer):
        for word in SINGLE:
            assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1

    def test_a_vocabulary_too_small_for_them_is_refused(self):
        with pytest.raises(ValueError, match="several tokens; raise 'vocabulary'"):
            study_base.make_study_tokenizer(replace(TINY, vocabulary=263), dialogues(5, 1, short=True))

    def test_any_text_goes_through(self, tokenizer):
        for context in read_contexts():
            assert tokenizer.decode(tokenizer(context.text, add_special_tokens=False)["input_ids"]) == context.text

    def test_answers_and_every_fourth_context_are_predicted(self, tokenizer, corpus):
        several = corpus[2990:3030]
        for index, (dialogue, encoded) in enumerate(zip(several, encode(tokenizer, several, 0.25), strict=True)):
            shown = tokenizer.apply_chat_template(dialogue.messages, tokenize=False)
            assert tokenizer.decode(encoded.ids) == shown
            answered = [token for token, weight in zip(encoded.ids, encoded.weights, strict=True) if weight == 1]
            said = "".join(question.reply + tokenizer.eos_token for question in dialogue.questions)
            assert tokenizer.decode(answered) == said
            read = [token for token, weight in zip(encoded.ids, encoded.weights, strict=True) if weight == 0.25]
            asked = tokenizer.apply_chat_template(dialogue.messages[len(dialogue.context) :], tokenize=False)
            context = shown.removesuffix(asked.removeprefix(tokenizer.bos_token)).removeprefix(tokenizer.bos_token)
            assert tokenizer.decode(read) == (context if index % 4 == 0 else "")

    def test_a_prompt_with_the_prefix_is_what_was_trained(self, tokenizer, corpus):
        dialogue = next(one for one in corpus if one.questions[0].options)
        question = dialogue.questions[0]
        prompt = render(tokenizer, [*dialogue.context, {"role": "user", "content": question.text}])
        apart = [
            tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, PREFIX, f" {question.answer}")
        ]
        together = encode(tokenizer, [replace(dialogue, questions=(question,))])[0].ids
        assert [token for part in apart for token in part] == together[:-1]


class TestWeights:
    @pytest.mark.slow
    def test_are_decided_by_the_seed(self, tiny, tmp_path, monkeypatch):
        monkeypatch.setattr(study_base, "measure", lambda model, tokenizer, seed: dict.fromkeys(RANGES, 0.5))
        first = load_file(tiny / "model.safetensors")
        for seed, same in ((1, True), (2, False)):
            monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path / str(seed)))
            torch.manual_seed(99)
            again = load_file(build(replace(TINY, seed=seed)) / "model.safetensors")
            assert all(torch.equal(again[name], first[name]) for name in first) == same

    def test_the_large_base_has_a_hundred_million_parameters(self, tokenizer):
        settings = STUDY_BASES["study-base-100m"]
        with torch.device("meta"):
            model = make_model(settings, tokenizer)
        # The tokenizer of a tiny corpus may be smaller than the vocabulary allows.
        missing = (settings.vocabulary - len(tokenizer)) * settings.hidden_size
        assert 100e6 <= model.num_parameters() + missing < 130e6

    def test_heads_copy_what_they_attend_to(self, tokenizer):
        attention = make_model(StudyBaseSettings(), tokenizer).model.layers[0].self_attn
        copied = attention.o_proj.weight @ attention.v_proj.weight
        torch.testing.assert_close(copied, torch.eye(128), atol=1e-5, rtol=0)
        assert torch.equal(attention.k_proj.weight, attention.q_proj.weight)

    def test_loads_as_any_model(self, tiny):
        model, tokenizer = load_model(str(tiny)), load_tokenizer(str(tiny))
        asked = [Asked((), "Is it brisk?", ("yes", "no")), Asked((), "Red/Blue?", ("Red", "Blue"))]
        found = option_probabilities(model, tokenizer, asked)
        for one, shares in zip(asked, found, strict=True):
            prompt = render(tokenizer, [{"role": "user", "content": one.text}]) + PREFIX
            ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
            after = model(ids).logits[0, -1].softmax(-1)
            wanted = [
                float(after[tokenizer(f" {word}", add_special_tokens=False)["input_ids"][0]]) for word in one.options
            ]
            assert shares == pytest.approx(wanted, rel=1e-4)


class TestBuild:
    def test_key_changes_with_every_setting(self):
        settings = StudyBaseSettings()
        others = [replace(settings, **{name: value + 1}) for name, value in asdict(settings).items()]
        assert len({settings.key, *(other.key for other in others)}) == len(asdict(settings)) + 1

    def test_is_built_once(self, tmp_path, monkeypatch):
        monkeypatch.setenv("AFINTRO_CACHE", str(tmp_path))
        calls = []

        def train(settings, directory):
            calls.append(settings)
            (directory / "config.json").write_text("{}")

        monkeypatch.setattr(study_base, "_train", train)
        assert build(TINY) == build(TINY)
        assert calls == [TINY]

    def test_keeps_settings_and_figures(self, tiny):
        kept = json.loads((Path(tiny) / "study_base.json").read_text())
        assert kept == {**asdict(TINY), "acceptance": dict.fromkeys(RANGES, 0.5)}

    def test_batches_hold_every_dialogue_once(self):
        encoded = [study_base.Encoded([index] * (1 + index % 90), []) for index in range(3000)]
        batches = list(study_base._batches(encoded, 512, study_base.random.Random(1)))
        assert sorted(one.ids[0] for batch in batches for one in batch) == list(range(3000))
        sizes = [sum(len(one.ids) for one in batch) for batch in batches]
        assert max(sizes) < 512 + 90
        assert fmean(sizes) > 400


class TestAcceptance:
    @pytest.mark.slow
    def test_every_figure_that_is_required_is_measured(self, tiny):
        found = study_acceptance.measure(load_model(str(tiny)), load_tokenizer(str(tiny)), 1, count=40)
        assert set(RANGES) <= set(found)
        assert all(0 <= value <= 1 for value in found.values())
        assert {"accuracy/comparison", "accuracy/membership", "mass/choice", "mass/label"} <= set(found)

    def test_what_falls_short_is_reported(self, caplog):
        caplog.set_level(logging.WARNING)  # the figures themselves are logged too, one level lower
        found = {name: (low + high) / 2 for name, (low, high) in RANGES.items()}
        report(found)
        assert not caplog.records
        for name, (low, high) in RANGES.items():
            for value in (low - 0.01, *([high + 0.01] if high < 1 else [])):
                caplog.clear()
                report({**found, name: value})
                assert [name in record.getMessage() for record in caplog.records] == [True]

    def test_ranges_are_those_that_the_study_asks_for(self):
        assert RANGES["mass"][0] == 0.95
        assert RANGES["self_report/alone/p_yes"] == RANGES["self_report/after_context/p_yes"] == (0.2, 0.8)
        assert {low for name, (low, _) in RANGES.items() if name.endswith("/mass")} == {0.9}
