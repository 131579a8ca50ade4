"""The introspection study's texts are many, varied, balanced and without duplicates, and splits share none of them."""

import configparser
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from afintro.data.introspection_texts import (
    FOLDER,
    read_concepts,
    read_contexts,
    read_questions,
    read_self_prediction,
    read_self_reports,
)
from afintro.data.introspection_texts.items import POLARITY, WITH_OPTIONS
from afintro.data.introspection_texts.splits import assert_disjoint, split_texts
from afintro.data.near_duplicates import SHINGLE_WORDS
from afintro.data.splits import find_heldout
from afintro.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
READERS = {
    "contexts.json": read_contexts,
    "questions.json": read_questions,
    "self_reports.json": read_self_reports,
    "concepts.json": read_concepts,
    "self_prediction.json": read_self_prediction,
}
MISSPELT = re.compile(
    r"\b(teh|hte|adn|recieve\w*|seperat\w*|definately|occured|wich|beleive\w*|untill|acheive\w*|neccessary|accomodat\w*|"
    r"wierd|thier|alot|tommorow|embarass\w*|goverment|enviroment|existance|publically|succesful\w*|truely|begining)\b"
)
CONTEXTS, QUESTIONS, REPORTS = read_contexts(), read_questions(), read_self_reports()
CONCEPTS, PREDICTION = read_concepts(), read_self_prediction()
SPLIT_ITEMS = {"contexts": CONTEXTS, "questions": QUESTIONS, "self_reports": REPORTS.items}


def strings(content):
    """Yield all strings of a JSON value."""
    if isinstance(content, str):
        return [content]
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list) else []
    return [text for value in values for text in strings(value)]


def splits(parts):
    return {"train": parts.train, "validation": parts.validation, "test": parts.test}


class TestContexts:
    def test_counts(self):
        topics = Counter(context.topic for context in CONTEXTS)
        assert len(CONTEXTS) >= 210
        assert len(topics) >= 20
        assert min(topics.values()) >= 5
        assert 0.12 <= sum(context.kind == "odd" for context in CONTEXTS) / len(CONTEXTS) <= 0.2
        assert 0.25 <= sum(context.food for context in CONTEXTS) / len(CONTEXTS) <= 0.4

    def test_food_is_in_every_topic(self):
        """Otherwise the topic would give away the answer of the food control."""
        found = {(context.topic, context.food) for context in CONTEXTS}
        topics = {context.topic for context in CONTEXTS}
        assert found == {(topic, food) for topic in topics for food in (True, False)}

    def test_lengths(self):
        lengths = [len(context.text.split()) for context in CONTEXTS]
        short = sum(length < 40 for length in lengths)
        page = sum(length >= 150 for length in lengths)
        for count in (short, len(lengths) - short - page, page):
            assert 0.28 <= count / len(lengths) <= 0.4
        assert min(lengths) <= 15
        assert 300 <= max(lengths) <= 400
        odd = [len(context.text.split()) for context in CONTEXTS if context.kind == "odd"]
        assert min(odd) < 40  # an odd one must not be known by its length
        assert max(odd) >= 150

    def test_turns_are_unique(self):
        for name in ("system", "user", "assistant"):
            turns = Counter(getattr(context, name).lower() for context in CONTEXTS)
            assert [turn for turn, count in turns.items() if count > 1] == []

    def test_no_two_share_a_run_of_words(self):
        owners = defaultdict(set)
        for context in CONTEXTS:
            words = re.findall(r"\w+", context.text.lower())
            for start in range(len(words) - SHINGLE_WORDS + 1):
                owners[" ".join(words[start : start + SHINGLE_WORDS])].add(context.id)
        assert [run for run, ids in owners.items() if len(ids) > 1] == []

    @pytest.mark.parametrize("context", [c for c in CONTEXTS if c.kind == "plain"], ids=lambda context: context.id)
    def test_plain_is_plain(self, context):
        assert not MISSPELT.search(context.text.lower())
        assert not re.search(r"\b([a-z]{2,}) \1\b", context.text.lower())
        assert not re.search(r"[A-Z]{2,}(\s+[A-Z]{2,}){2}", context.text)
        assert not re.search(r"[^\x20-\x7e\n\u00c0-\u017f]", context.text)
        assert context.system[-1] in ".?!"


class TestQuestions:
    def test_counts_and_polarity(self):
        assert {question.style for question in QUESTIONS} == set(POLARITY)
        for style, polarity in POLARITY.items():
            own = [question for question in QUESTIONS if question.style == style]
            assert len(own) >= 40
            meanings = Counter(question.yes_means for question in own)
            assert set(meanings) == set(polarity or (None,))
            assert min(meanings.values()) / len(own) >= 0.25
            for question in own:
                assert (question.reversed_of is not None) == (question.yes_means in polarity[1:])

    def test_options(self):
        for question in QUESTIONS:
            filled = question.text.format(a="Red", b="Blue")
            assert ("Red" in filled and "Blue" in filled) == (question.style in WITH_OPTIONS)

    def test_neutral_and_vague_name_no_steering(self):
        words = r"steer|activation|inject|thought|internal|introspect|vector|layer|hidden|mind|conscious"
        neutral = [question.text for question in QUESTIONS if question.style in ("neutral", "vague")]
        neutral += [probe.text for probe in PREDICTION.neutral_detection]
        assert [text for text in neutral if re.search(words, text.lower())] == []


class TestSelfReports:
    def test_counts(self):
        items = Counter(item.category for item in REPORTS.items)
        assert len(REPORTS.categories) == len(items) == 12
        assert len(REPORTS.items) >= 96
        assert min(items.values()) >= 8
        assert sum(category.control for category in REPORTS.categories) == 4
        assert all(len(category.note.split()) >= 15 for category in REPORTS.categories)

    def test_twins(self):
        twins = {item.reversed_of: item for item in REPORTS.items if item.reversed_of}
        for category in REPORTS.categories:
            own = [item for item in REPORTS.items if item.category == category.id]
            paired = [item for item in own if item.reversed_of or item.id in twins]
            assert len(paired) >= len(own) / 2
        for item in REPORTS.items:
            if item.control and item.id in twins:
                assert {item.expected, twins[item.id].expected} == {"yes", "no"}
        assert all(item.question.endswith("?") for item in REPORTS.items)


class TestConceptsAndPrompts:
    def test_concepts(self):
        names = [name for pair in CONCEPTS.pairs for name in (pair.a, pair.b)]
        assert len(set(names)) == len(names) >= 24
        assert len(CONCEPTS.pairs) >= 12
        assert len(CONCEPTS.templates) >= 8
        assert len({template.neutral for template in CONCEPTS.templates}) == len(CONCEPTS.templates)
        for name in names:
            assert re.fullmatch(r"[a-z]+", name)
            for template in CONCEPTS.templates:
                assert name in template.about(name)
                assert "{" not in template.about(name)
                # A counterpart that named a concept would cancel it out of the contrast.
                assert not re.search(rf"\b{name}\b", template.neutral + template.about(""))

    def test_prompts(self):
        tasks = {task.id: [p for p in PREDICTION.prompts if p.task == task.id] for task in PREDICTION.tasks}
        assert len(PREDICTION.prompts) >= 40
        assert all(len(prompts) >= 10 for prompts in tasks.values())
        with_options = {"among_options", "stated_distribution", "ethical_stance_rule", "ethical_stance_candour"}
        for task, prompts in tasks.items():
            assert all(bool(prompt.options) == (task in with_options) for prompt in prompts)
            if task.startswith("ethical"):
                assert all(len(prompt.options) == 2 for prompt in prompts)
        assert len(PREDICTION.identity_probes) >= 20
        assert len(PREDICTION.neutral_detection) >= 20
        assert len(PREDICTION.chat_openers) >= 12
        assert len(PREDICTION.realtime) >= 10
        for probe in PREDICTION.neutral_detection:
            assert probe.text.count("{a}") == probe.text.count("{b}") == 1

    def test_training_questions_are_no_evaluation_prompts(self):
        probes = [PREDICTION.identity_probes, PREDICTION.neutral_detection, PREDICTION.chat_openers]
        probes += [PREDICTION.realtime, PREDICTION.prompts]
        texts = [probe.text for group in probes for probe in group]
        assert len(set(texts)) == len(texts)
        evaluated = [(text, text) for text in [*texts, *(item.text for item in REPORTS.items)]]
        assert find_heldout([question.text for question in QUESTIONS], evaluated) == []
        assert_disjoint(questions=[question.text for question in QUESTIONS], evaluated=[text for text, _ in evaluated])


class TestSplit:
    @pytest.mark.parametrize("name", SPLIT_ITEMS)
    @pytest.mark.parametrize("seed", [0, 1, 17])
    def test_disjoint_and_whole(self, name, seed):
        items = SPLIT_ITEMS[name]
        parts = splits(split_texts(items, seed))
        assert sorted(item.id for part in parts.values() for item in part) == sorted(item.id for item in items)
        for split in ("validation", "test"):
            assert {item.group for item in parts[split]} == {item.group for item in items}
            assert 0.15 <= len(parts[split]) / len(items) <= 0.25
            train = [item.text for item in parts["train"]]
            assert find_heldout(train, [(item.text, item.id) for item in parts[split]]) == []
        families = [{item.family for item in part} for part in parts.values()]
        assert len(set.union(*families)) == sum(len(family) for family in families)

    @pytest.mark.parametrize("seed", range(5))
    def test_every_side_has_both_labels(self, seed):
        for part in splits(split_texts(CONTEXTS, seed)).values():
            assert 0.15 <= sum(context.food for context in part) / len(part) <= 0.5

    def test_order_does_not_matter(self):
        shuffled = random.Random(0).sample(CONTEXTS, len(CONTEXTS))
        for part, again in zip(
            splits(split_texts(CONTEXTS, 3)).values(), splits(split_texts(shuffled, 3)).values(), strict=True
        ):
            assert {context.id for context in part} == {context.id for context in again}

    def test_golden(self):
        """A changed text may change its split. After an intended change, update the ids and the changelog."""
        contexts, questions, reports = (split_texts(items, 0) for items in SPLIT_ITEMS.values())
        assert [context.id for context in contexts.test[:6]] == [
            "cooking-08", "law-09", "astronomy-06", "astronomy-09", "gardening-02", "gardening-09",
        ]  # fmt: skip
        assert [context.id for context in contexts.validation[-3:]] == ["philosophy-06", "support-08", "biology-11"]
        assert [question.id for question in questions.test if question.style == "vague"] == [
            "vague-01", "vague-01r", "vague-06", "vague-06r", "vague-08", "vague-08r", "vague-22", "vague-22r",
        ]  # fmt: skip
        assert len(reports.test) == len(reports.validation) == 24

    def test_too_small_a_group(self):
        few = [context for context in CONTEXTS if context.topic == "law" and context.kind == "plain"][:2]
        with pytest.raises(UserError, match="group 'law': 2 families are too few"):
            split_texts(few, 0)

    def test_assert_disjoint(self):
        assert_disjoint(train=["one", "one"], test=["two"])
        with pytest.raises(UserError, match="test: shares a text with train: 'one  two'"):
            assert_disjoint(train=["one two"], validation=["three"], test=["one  two"])


class TestStrictness:
    def test_no_white_space_around_any_string(self):
        for name in READERS:
            found = strings(json.loads((FOLDER / name).read_text(encoding="utf-8")))
            assert [text for text in found if text != text.strip() or re.search(r"[ \t]\n", text)] == []

    def test_files_are_package_data(self):
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg")
        assert config["options.package_data"]["afintro.data.introspection_texts"] == "*.json"

    def test_reading_twice_gives_the_same(self):
        assert all(reader() == reader() for reader in READERS.values())

    @pytest.mark.parametrize(
        ("name", "change", "what"),
        [
            ("contexts.json", lambda c: c["contexts"][0].pop("user"), "contexts cooking-01: has no field 'user'"),
            ("contexts.json", lambda c: c["contexts"][1].update(food=1), "cooking-02: field 'food' is int, not bool"),
            ("contexts.json", lambda c: c["contexts"][1].update(kind="new"), "cooking-02: field 'kind' is 'new', not"),
            ("contexts.json", lambda c: c["contexts"][1].update(note=""), "cooking-02: field 'note' is unknown"),
            (
                "contexts.json",
                lambda c: c["contexts"][1].update(user="Hi "),
                "cooking-02: field 'user' is empty or has",
            ),
            ("contexts.json", lambda c: c["contexts"][1].update(user="\ud83d"), "field 'user' holds a lone"),
            ("contexts.json", lambda c: c["contexts"][1].update(id="cooking-01"), "field 'id' is 'cooking-01', which"),
            (
                "contexts.json",
                lambda c: c["contexts"].append(c["contexts"][0] | {"id": "x"}),
                "x: field 'text'",
            ),
            ("contexts.json", lambda c: c["contexts"].append([]), "contexts 226: is list, not an object"),
            ("contexts.json", lambda c: c.update(contexts=[]), "must hold non-empty lists contexts"),
            ("questions.json", lambda c: c["questions"][0].update(style="loud"), "field 'style' is 'loud', not"),
            ("questions.json", lambda c: c["questions"][0].update(text="{a}?"), "field 'text' must hold no braces"),
            ("questions.json", lambda c: c["questions"][-1].update(text="{a}?"), "must hold {a} and {b}, once each"),
            ("questions.json", lambda c: c["questions"][0].update(yes_means=None), "field 'yes_means' is None, not"),
            (
                "questions.json",
                lambda c: c["questions"][1].update(yes_means="steered"),
                "suggestive-01r: field 'reversed_of' is 'suggestive-01'",
            ),
            (
                "questions.json",
                lambda c: c["questions"][1].update(reversed_of="suggestive-02"),
                "suggestive-02r: field",
            ),
            ("questions.json", lambda c: c["questions"][1].update(reversed_of="vague-01"), "suggestive-01r: field"),
            ("self_reports.json", lambda c: c["items"][0].update(category="x"), "consciousness-01: fields 'category'"),
            (
                "self_reports.json",
                lambda c: c["items"][0].update(expected="yes"),
                "field 'expected' is 'yes', not None",
            ),
            ("self_reports.json", lambda c: c.pop("categories"), "must hold non-empty lists categories, items"),
            ("concepts.json", lambda c: c["pairs"][0].update(a="two words"), "field 'a' is 'two words', not"),
            ("concepts.json", lambda c: c["templates"][0].update(concept="x"), "field 'concept' has no {concept}"),
            ("self_prediction.json", lambda c: c["prompts"][0].update(task="x"), "first_character-01: field 'task'"),
            (
                "self_prediction.json",
                lambda c: c["prompts"][0].update(options=["x"]),
                "field 'options' holds an option",
            ),
            ("self_prediction.json", lambda c: c["tasks"][0].update(ask="?"), "field 'ask' must hold {prompt}"),
        ],
    )
    def test_errors_name_file_item_and_field(self, tmp_path, name, change, what):
        content = json.loads((FOLDER / name).read_text(encoding="utf-8"))
        change(content)
        path = tmp_path / name
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=re.escape(what)) as error:
            READERS[name](path)
        assert str(error.value).startswith(str(path))
