"""Near-duplicates are found in prose, and two questions in one template are none."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afintro.data.introspection_texts import read_contexts
from afintro.data.near_duplicates import find_duplicates, join_scenarios, nearest_seen
from afintro.data.words import normalized_words

ROOT = Path(__file__).resolve().parents[2]
PROSE = [context.text for context in read_contexts()]
TEMPLATE = "Our team at {} wants advice: how to {} without spending too much money or time on it this year"
DEEDS = (
    "bake bread", "plant tulips", "fix a faucet", "learn Spanish", "train puppies", "paint walls", "file taxes",
    "grow tomatoes", "sell a car", "rent a flat", "write poems", "cut hair",
)  # fmt: skip


def made_up(count, syllables, seed):
    """Return made-up words, each once, sorted."""
    draw = random.Random(seed)
    found = set()
    while len(found) < count:
        found.add("".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(syllables)) + "n")
    return sorted(found)


NAMES = [word.title() for word in made_up(460, 3, 1)]
PARTS = {
    "trait": made_up(8, 2, 2), "city": made_up(8, 2, 3), "manner": [f"{word}ly" for word in made_up(6, 2, 4)],
    "area": made_up(16, 2, 5), "tier": ["free", "paid"],
}  # fmt: skip
FORMS = (
    "A {trait} {name} from {city} {manner} requests advice about {thing} ({area}, {tier} tier).",
    "{name}, a {trait} team in {city}, {manner} asks us for help with {thing} ({area}, {tier} tier).",
    "On the {tier} tier, {trait} {name} of {city} {manner} wants to know about {thing} in {area}.",
)


def request(draw, **given):
    """Draw what a request says: one of 460 names, and words of its template."""
    drawn = {"name": draw.choice(NAMES), **{part: draw.choice(words) for part, words in PARTS.items()}}
    drawn["thing"] = f"{drawn['area']}{draw.choice('abcd')} {drawn['area']}{draw.choice('efgh')}"
    return drawn | given


def requests(count, forms, seed=0):
    """Return the texts of drawn requests."""
    draw = random.Random(seed)
    return [draw.choice(FORMS[:forms]).format(**request(draw)) for _ in range(count)]


def pairs(texts):
    """Return the pairs of texts that are nearly equal, by index; all texts must differ."""
    found = find_duplicates(texts)
    assert found.distinct.tolist() == list(range(len(texts)))
    return [tuple(pair) for pair in found.pairs.tolist()]


def without(words, index):
    return " ".join(words[:index] + words[index + 1 :])


class TestWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("Don't  STOP,\n«now»!", ["don", "t", "stop", "now"]),
            ("ＡＢＣ ｆull-width", ["abc", "full", "width"]),
            ("天气 good", ["天", "气", "good"]),
            ("ok👍🏽👍", ["ok", "👍", "🏽", "👍"]),
            ("a\u200bb\ufeff c\u00add", ["ab", "cd"]),
            ("हिन्दी", ["हिन्दी"]),
            ("?! ", ["?", "!"]),
            (" \n", []),
            ("", []),
        ],
    )
    def test_words(self, text, words):
        assert normalized_words(text) == words


class TestEqual:
    @pytest.mark.parametrize(
        ("one", "other", "equal"),
        [
            ("How are you?", "how are YOU", True), ("Hi", "hi!", True), ("ok", "no", False), ("你好", "你好！", True),
            ("😀😀", "😀 😀", True), ("😀😡", "😀😀", False), ("!!!", "!!!", True), ("!!!", "???", False), ("", "", False),
            (" ", "", False), ("\ud83d", "\ud83d", True),
        ],
    )  # fmt: skip
    def test_whatever_the_text(self, one, other, equal):
        assert nearest_seen([one], [other]) == ([0] if equal else [None])

    def test_no_text_at_all(self):
        assert find_duplicates([]).pairs.shape == (0, 2)
        assert nearest_seen([], []) == []
        assert nearest_seen(["a"], []) == [None]
        assert join_scenarios([], []) == []


class TestProse:
    def test_no_two_texts_of_different_authors_are_near(self):
        assert pairs(PROSE) == []

    @pytest.mark.parametrize("change", ["typo", "drop", "insert", "rare word", "common word"])
    def test_one_changed_word_is_found(self, change):
        draw = random.Random(0)
        changed = []
        for text in PROSE:
            words = text.split()
            at = draw.randrange(len(words))
            new = {"typo": f"{words[at][:-1]}q", "insert": f"{words[at]} really", "rare word": "zanzibar"}
            changed.append(
                without(words, at)
                if change == "drop"
                else " ".join([*words[:at], new.get(change, "the"), *words[at + 1 :]])
            )
        assert nearest_seen(changed, PROSE) == list(range(len(PROSE)))

    @pytest.mark.parametrize("count", [6, 20, 200])
    def test_in_a_small_and_in_a_larger_corpus(self, count):
        plain = "Please tell me which vegetables grow well beside a shady northern wall in a cold and rainy valley"
        near = plain.replace("cold", "chilly")
        assert nearest_seen([near], [*PROSE[:count], plain]) == [count]

    def test_one_of_few_informative_words_is_content(self):
        texts = ["How do I bake a cake", "How do I bake a ham", "How do I rob a bank", "How do I rob a bank vault"]
        assert pairs([*texts, *PROSE]) == []

    def test_a_misspelling_is_rare_on_one_side_only(self):
        others = [f"b{number} always c{number}" for number in range(50)]
        assert nearest_seen(["a1 a2 alwayz a3 a4"], ["a1 a2 always a3 a4", *others]) == [0]
        assert nearest_seen(["a1 a2 other a3 a4"], ["a1 a2 third a3 a4", *others]) == [None]

    def test_a_passage_is_found_and_a_short_passage_is_not(self):
        words = PROSE[7].split()
        assert nearest_seen([f"{PROSE[40]} {' '.join(words[20:120])}"], PROSE[:20]) == [7]
        assert nearest_seen([f"{PROSE[40]} {' '.join(words[20:32])}"], PROSE[:20]) == [None]

    def test_a_text_with_an_added_sentence_is_found(self):
        assert nearest_seen([f"{text} Thank you very much in advance!" for text in PROSE], PROSE) == list(
            range(len(PROSE))
        )

    def test_the_nearest_is_named_and_the_first_of_equals(self):
        words = PROSE[3].split()
        seen = [*PROSE[:3], " ".join(words[:40]), PROSE[3], PROSE[3]]
        assert nearest_seen([f"{PROSE[3]}!!"], seen) == [4]

    def test_very_long_texts(self):
        draw, vocabulary = random.Random(0), made_up(3000, 2, 1)
        long = [" ".join(draw.choices(vocabulary, k=5000)) for _ in range(6)]
        changed = long[3].split()
        changed[2000] = "else"
        assert pairs([*long, " ".join(changed), " ".join(long[5].split()[1000:3000])]) == [(3, 6), (5, 7)]

    def test_a_script_without_spaces(self):
        texts = [
            "我们公司想知道今年的税务申报截止日期是什么时候。", "我的电脑昨天突然无法启动，屏幕上只显示一行错误信息。",
            "请告诉我如何在家里照顾一只刚出生两周的小猫，需要准备什么？", "我们公司想知道今年的税务申报截止时间是什么时候？",
        ]  # fmt: skip
        assert pairs(texts) == [(0, 3)]


class TestTemplates:
    @pytest.mark.parametrize("count", [2, 3, 6, 12, 200])
    @pytest.mark.parametrize("background", [0, 20, len(PROSE)])
    def test_two_questions_in_one_template_are_different(self, count, background):
        texts = [TEMPLATE.format(NAMES[index], DEEDS[index % 12]) for index in range(count)]
        assert pairs([*texts, *PROSE[:background]]) == []

    @pytest.mark.parametrize("background", [0, len(PROSE)])
    def test_a_slot_of_a_template_is_content(self, background):
        names = [TEMPLATE.format(name, "bake bread") for name in NAMES[:40]]
        assert pairs([*names, *PROSE[:background]]) == []
        deeds = [TEMPLATE.format("Velmont", deed) for deed in DEEDS]
        assert pairs([*deeds, *PROSE[:background]]) == []

    def test_the_same_question_in_a_template_is_found_after_normalization(self):
        texts = [TEMPLATE.format(NAMES[index], DEEDS[index % 12]) for index in range(60)]
        assert nearest_seen([texts[17].upper() + " !!"], texts) == [17]

    def test_a_question_in_a_template_is_found_within_a_longer_text(self):
        texts = [TEMPLATE.format(NAMES[index], DEEDS[index % 12]) for index in range(60)]
        assert nearest_seen([f"Hello! {texts[17]}. Please hurry."], texts) == [17]

    def test_twenty_templates(self):
        draw, words = random.Random(1), made_up(2000, 2, 3)
        templates = [
            [*draw.sample(words, 3), "{}", *draw.sample(words, 4), "{}", *draw.sample(words, 10)] for _ in range(20)
        ]
        texts = [
            " ".join(parts).format(name, draw.choice(DEEDS)) for parts in templates for name in draw.sample(NAMES, 20)
        ]
        assert pairs(texts) == []

    @pytest.mark.parametrize("forms", [1, 3])
    @pytest.mark.parametrize("part", ["name", "thing", "trait", "city", "manner", "tier"])
    def test_a_request_with_one_part_exchanged(self, forms, part):
        """Another name or another thing is another question; any other word carries little."""
        draw = random.Random(2)
        known, asked = [], []
        for index in range(20):
            said, form = request(draw), FORMS[index % forms]
            known.append(form.format(**said))
            other = (
                "quite something" if part == "thing" else next(w for w in [*PARTS.get(part, NAMES)] if w != said[part])
            )
            asked.append(form.format(**said | {part: other}))
        found = [at is not None for at in nearest_seen(asked, [*requests(1000, forms), *known])]
        assert found == [part not in ("name", "thing")] * 20

    @pytest.mark.parametrize("forms", [1, 3])
    def test_labeled_names_in_new_wordings_are_different(self, forms):
        draw = random.Random(3)
        known, asked = ([draw.choice(FORMS[:forms]).format(**request(draw, name=name)) for name in NAMES] for _ in "ab")
        assert sum(at is not None for at in nearest_seen(asked, known)) <= 1


class TestJoin:
    def test_scenarios_with_near_duplicates_share_the_smallest_id(self):
        texts = [*PROSE[:30], PROSE[4].upper(), f"{PROSE[9]} Thanks!"]
        ids = [f"s{index:02}" for index in range(30)] + ["a", "z"]
        expected = [*ids[:4], "a", *ids[5:30], "a", "s09"]
        assert join_scenarios(ids, texts) == expected
        order = random.Random(0).sample(range(32), 32)
        assert join_scenarios([ids[at] for at in order], [texts[at] for at in order]) == [expected[at] for at in order]

    def test_a_chain_joins_and_records_of_one_scenario_stay_together(self):
        texts = [PROSE[0], PROSE[1], PROSE[1] + " So?", PROSE[2], PROSE[2].lower(), PROSE[3], "", ""]
        assert join_scenarios(["d", "d", "c", "c", "b", "e", "f", "g"], texts) == [
            "b",
            "b",
            "b",
            "b",
            "b",
            "e",
            "f",
            "g",
        ]


SEARCH = """
import json, sys
from afintro.data.near_duplicates import find_duplicates
found = find_duplicates(json.load(sys.stdin))
print(json.dumps([found.distinct.tolist(), found.pairs.tolist(), found.likeness.tolist()]))
"""


@pytest.mark.slow
def test_independent_of_the_hash_seed():
    texts = [*PROSE, *(f"{text} Thanks!" for text in PROSE[:20]), *requests(300, 1)]
    outputs = [
        subprocess.run(
            [sys.executable, "-c", SEARCH], input=json.dumps(texts), capture_output=True, text=True, check=True, cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
    assert len(json.loads(outputs[0])[1]) >= 20


@pytest.mark.slow
def test_ten_times_as_many_texts_take_little_more_than_ten_times_as_long():
    seconds = []
    for count in (2000, 20_000):
        texts = requests(count, 3)
        start = time.process_time()
        find_duplicates(texts)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 30 * seconds[0]
