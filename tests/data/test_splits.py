"""The contamination check finds what must not be trained on, and no split divides a scenario."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from afintro.data.splits import (
    check_contamination,
    find_heldout,
    heldout_texts,
    hold_out,
    split_by_scenario,
    stable_hash,
)
from afintro.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def words(start, count):
    """Return ``count`` different words."""
    return " ".join(f"w{number}" for number in range(start, start + count))


def overlapping(shared, size):
    """Return a training text and a held-out text of ``size`` words with ``shared`` eight-word shingles in common."""
    return words(0, size), f"{words(0, shared + 7)} {words(1000, size - shared - 7)}"


def heldout_file(path, *texts):
    path.write_text(json.dumps([{"text": text} for text in texts]))
    return str(path)


@pytest.mark.parametrize(
    "variant",
    ["the user asks for help", "The USER asks... for -- help!", "  the\tuser\n\nasks for “help”"],
)
def test_exact_match_after_normalization(variant):
    (hit,) = find_heldout(["something else entirely", variant], [("The user asks for help.", "gold, record 0")])
    assert (hit.train_index, hit.heldout, hit.containment) == (1, "gold, record 0", 1.0)


@pytest.mark.parametrize(
    "variant", ["the user asks for", "the user asks for help now", "user the asks for help", "theuser asks for help"]
)
def test_a_short_text_of_other_words_is_no_match(variant):
    assert find_heldout([variant], [("the user asks for help", "gold")]) == []


# 27 words have 20 shingles: 6 shared are a containment of 0.3 exactly.
@pytest.mark.parametrize(("shared", "found"), [(4, False), (5, False), (6, True), (7, True), (20, True)])
def test_near_duplicates_from_a_containment_of_three_tenths(shared, found):
    train, heldout = overlapping(shared, 27)
    hits = find_heldout([train], [(heldout, "gold")])
    assert [hit.containment for hit in hits] == ([shared / 20] if found else [])


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("shared", "found"), [(5, False), (6, True)])
def test_containment_is_that_of_the_shorter_text_whichever_it_is(swap, shared, found):
    short, long = words(0, 27), f"{words(500, 60)} {words(0, shared + 7)} {words(600, 60)}"
    train, heldout = (long, short) if swap else (short, long)
    assert len(find_heldout([train], [(heldout, "gold")])) == found


def test_order_of_shingles_does_not_matter_but_order_of_words_does():
    heldout = [(words(0, 40), "gold")]
    assert find_heldout([f"{words(20, 20)} {words(0, 20)}"], heldout)
    assert not find_heldout([" ".join(reversed(words(0, 40).split()))], heldout)


def test_a_repeated_shingle_counts_once():
    refrain = words(0, 8)
    train = f"{refrain} " * 20 + words(100, 60)
    heldout = f"{words(200, 60)} {refrain} {words(300, 60)}"
    assert find_heldout([train], [(heldout, "gold")]) == []


def test_the_closest_held_out_text_is_named_and_the_first_of_equals():
    train, near = overlapping(8, 27)
    _, nearer = overlapping(12, 27)
    hit = find_heldout([train], [(near, "a"), (nearer, "b"), (nearer, "c")])[0]
    assert (hit.heldout, hit.containment) == ("b", 12 / 20)
    hit = find_heldout([train], [(near, "a"), (train, "b"), (train, "c")])[0]
    assert (hit.heldout, hit.containment) == ("b", 1.0)


PATTERN = "Our team at w{} wants advice: how to w{} without spending too much money or time on it this year"


def test_another_question_in_a_template_is_no_match_and_a_copy_within_a_longer_text_is():
    train = [PATTERN.format(number, 1000 + number) for number in range(60)]
    heldout = [(PATTERN.format(number, 1000 + number), f"gold {number}") for number in range(60, 90)]
    assert find_heldout(train, heldout) == []
    hits = find_heldout([*train, f"Question: {heldout[7][0].upper()}! Please hurry."], heldout)
    assert [(hit.train_index, hit.heldout, hit.containment) for hit in hits] == [(60, "gold 67", 1.0)]


def test_a_copy_of_template_words_alone_is_a_match():
    """Whatever many texts hold proves nothing, but that the held-out text stands in each of them whole."""
    phrase = "without spending too much money or time on it this year"
    hits = find_heldout([PATTERN.format(number, 1000 + number) for number in range(60)], [(phrase, "gold")])
    assert [hit.train_index for hit in hits] == list(range(60))


def test_one_changed_word_of_a_held_out_text_is_a_match():
    text = words(0, 15)
    assert find_heldout([text.replace("w7 ", "other ")], [(text, "gold")])[0].heldout == "gold"
    assert find_heldout([text.replace("w7 w8 w9 ", "other words here ")], [(text, "gold")]) == []


def test_nothing_held_out_or_nothing_to_train_on():
    assert find_heldout(["a"], []) == []
    assert find_heldout([], [("a", "gold")]) == []
    assert check_contamination(["a", "b"], ["t0", "t1"], [], "error") == ([0, 1], [])


@pytest.fixture
def gold(tmp_path):
    near = overlapping(8, 27)[1]
    return [
        heldout_file(tmp_path / "gold.json", "exactly this", "unrelated"),
        heldout_file(tmp_path / "more.json", near),
    ]


TRAIN = ["fine", "Exactly this!", overlapping(8, 27)[0], "fine too", "exactly  this"]
NAMES = [f"train.json, record {index}" for index in range(5)]


def test_error_names_every_pair(gold):
    with pytest.raises(UserError) as caught:
        check_contamination(TRAIN, NAMES, gold, "error")
    message = str(caught.value)
    assert "contamination check: 3 training records" in message
    assert f"train.json, record 1 matches {gold[0]}, record 0 (containment 1.00)" in message
    assert f"train.json, record 2 matches {gold[1]}, record 0 (containment 0.40)" in message
    assert f"train.json, record 4 matches {gold[0]}, record 0 (containment 1.00)" in message
    assert "record 0 matches" not in message
    assert "record 3 matches" not in message
    assert "heldout_action: drop" in message


def test_error_names_every_held_out_text_that_a_record_matches(gold, tmp_path):
    """A training text in two held-out sets makes two pairs, and the error names each pair."""
    second = heldout_file(tmp_path / "second.json", "exactly this")
    with pytest.raises(UserError) as caught:
        check_contamination(TRAIN, NAMES, [*gold, second], "error")
    for file in (gold[0], second):
        assert f"train.json, record 1 matches {file}, record 0" in str(caught.value)


def test_drop_keeps_the_rest_and_says_what_went(gold):
    kept, lines = check_contamination(TRAIN, NAMES, gold, "drop")
    assert kept == [0, 3]
    assert lines == [
        f"train.json, record 1 matches {gold[0]}, record 0 (containment 1.00)",
        f"train.json, record 2 matches {gold[1]}, record 0 (containment 0.40)",
        f"train.json, record 4 matches {gold[0]}, record 0 (containment 1.00)",
    ]


@pytest.mark.parametrize("action", ["error", "drop"])
def test_no_hit_keeps_everything(gold, action):
    assert check_contamination(["fine", "fine too"], NAMES, gold, action) == ([0, 1], [])


def test_an_unknown_action(gold):
    with pytest.raises(UserError, match=r"data\.heldout_action: .*'ignore'"):
        check_contamination(TRAIN, NAMES, gold, "ignore")


def test_a_missing_held_out_file_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        check_contamination(TRAIN, NAMES, [str(tmp_path / "gone.json")], "drop")


def test_every_text_field_of_a_held_out_record_counts(tmp_path):
    rows = [
        {"text": "a", "original_text": "b", "prompt": "c", "label": "d"},
        {"ablation_prompt": "e", "text": " "},
        {"text": None, "prompt": "f"},
    ]
    path = tmp_path / "gold.json"
    path.write_text(json.dumps({"samples": rows}))
    expected = [("a", 0), ("b", 0), ("c", 0), ("e", 1), ("f", 2)]
    assert heldout_texts(str(path)) == [(text, f"{path}, record {index}") for text, index in expected]


def test_held_out_samples_of_other_projects(tmp_path):
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    turns += [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = ["x", {"goal": "y", "target": "z"}, {"messages": turns}, {"prompt": "p", "messages": turns[1:]}]
    (tmp_path / "gold.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = str(tmp_path / "gold.jsonl")
    expected = [("x", 0), ("y", 1), ("a", 2), ("c", 2), ("p", 3), ("a", 3), ("c", 3)]
    assert heldout_texts(path) == [(text, f"{path}, record {index}") for text, index in expected]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "a"}, {"label": "b"}], "gold.json, record 1: has none of the fields text, original_text"),
        ([["text"]], "gold.json, record 0: has none of the fields"),
        ([""], "gold.json, record 0: has none of the fields"),
        ([{"messages": [{"role": "system", "content": "a"}]}], "gold.json, record 0: has none of the fields"),
        ([{"text": 3}], "gold.json, record 0: has none of the fields"),
        ([{"text": " "}], "gold.json: holds no text"),
        ([], "gold.json: holds no text"),
    ],
)
def test_a_held_out_file_that_would_guard_nothing(tmp_path, rows, words):
    (tmp_path / "gold.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=words):
        check_contamination(TRAIN, NAMES, [str(tmp_path / "gold.json")], "drop")


REPORT = """
import json, sys
from afintro.data.splits import check_contamination, split_by_scenario
train, names, heldout = json.load(sys.stdin)
print(json.dumps([check_contamination(train, names, heldout, "drop"), split_by_scenario(train, 0.5, 3)]))
"""


@pytest.mark.slow
def test_independent_of_the_hash_seed(gold):
    """No result depends on the order of a set."""
    texts = [*TRAIN, *(overlapping(shared, 40)[0] for shared in range(30))]
    asked = json.dumps([texts, [f"t{i}" for i in range(len(texts))], gold])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", REPORT], input=asked, capture_output=True, text=True, check=True, cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert outputs[0] == outputs[1]
    assert json.loads(outputs[0])[0][0][:2] == [0, 3]


SCENARIOS = [f"scenario {number % 120}" for number in range(400)]


def test_golden_draw():
    """Splits, wordings and orders of existing data depend on these numbers."""
    assert [stable_hash(text) for text in ("", "0 a", "中")] == [
        16406829232824261652, 14946763695692304074, 11918703476990181158,
    ]  # fmt: skip


def test_a_scenario_is_never_on_both_sides():
    first, second = split_by_scenario(SCENARIOS, 0.3, 0)
    assert sorted(first + second) == list(range(400))
    assert first == sorted(first)
    assert second == sorted(second)
    assert not {SCENARIOS[i] for i in first} & {SCENARIOS[i] for i in second}


def test_a_file_that_grows_keeps_its_split():
    _, before = split_by_scenario(SCENARIOS, 0.3, 0)
    _, after = split_by_scenario([*SCENARIOS, *(f"new {number}" for number in range(100))], 0.3, 0)
    assert [index for index in after if index < 400] == before
    _, shuffled = split_by_scenario(SCENARIOS[::-1], 0.3, 0)
    assert sorted(399 - index for index in shuffled) == before


def test_the_fraction_goes_to_the_second_side():
    many = [str(number) for number in range(5000)]
    assert abs(len(split_by_scenario(many, 0.1, 0)[1]) - 500) < 80
    assert split_by_scenario(many, 0.0, 0)[1] == []
    assert split_by_scenario(many, 1.0, 0)[0] == []


def test_a_larger_fraction_only_adds():
    assert set(split_by_scenario(SCENARIOS, 0.2, 0)[1]) < set(split_by_scenario(SCENARIOS, 0.4, 0)[1])


def test_the_seed_decides_and_nothing_else():
    assert split_by_scenario(SCENARIOS, 0.3, 1) == split_by_scenario(SCENARIOS, 0.3, 1)
    assert split_by_scenario(SCENARIOS, 0.3, 1) != split_by_scenario(SCENARIOS, 0.3, 2)


def test_golden_split():
    """Changing the draw would move records between training and validation of every saved run."""
    assert split_by_scenario(["a", "b", "c", "d", "e", "f", "g", "h"], 0.4, 0) == ([0, 1, 2, 3, 5, 7], [4, 6])


SIZES = [40, 1, 7, 3, 3, 1, 12, 5, 2, 2, 9, 1, 6, 4, 4]  # clusters c0, c1, ...: one is larger than any budget below
CLUSTER_NAMES = [f"c{number}" for number in range(len(SIZES))]
CLUSTERS = np.random.default_rng(1).permutation(np.repeat(np.arange(len(SIZES)), SIZES)).astype(np.int32)
KEYS = np.random.default_rng(2).permutation(1000)[: len(CLUSTERS)].astype(np.int64) + (3 << 40)
SPLIT = """
import json, sys
import numpy as np
from afintro.data.splits import hold_out
keys, clusters, names = json.load(sys.stdin)
found = hold_out(np.array(keys), np.array(clusters, np.int32), names, 0.1, 500, 3)
print(json.dumps([part.tolist() for part in found]))
"""


def keys_of(parts, keys=KEYS):
    return [set(keys[part].tolist()) for part in parts]


class TestHoldOut:
    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize(("fraction", "most", "budget"), [(0.1, 500, 10), (0.2, 500, 20), (0.2, 6, 6)])
    def test_the_two_kinds_are_what_they_say(self, seed, fraction, most, budget):
        training, by_cluster, by_feature = hold_out(KEYS, CLUSTERS, CLUSTER_NAMES, fraction, most, seed)
        assert sorted([*training, *by_cluster, *by_feature]) == list(range(100))  # disjoint and complete
        assert all((np.diff(part) > 0).all() for part in (training, by_cluster, by_feature))
        trained, unseen = set(CLUSTERS[training]), set(CLUSTERS[by_cluster])
        assert not unseen & (trained | set(CLUSTERS[by_feature]))
        assert set(CLUSTERS[by_feature]) <= trained, "a held-out feature's cluster is known from training"
        assert len(by_feature) == budget
        # Of small clusters, as many as fit: the smallest left outside has no room any more.
        left_out = min(SIZES[code] for code in trained)
        assert budget - left_out < len(by_cluster) <= budget
        assert 0 in trained, "a cluster above the budget is never held out"

    def test_other_seeds_hold_out_others(self):
        first, second = (hold_out(KEYS, CLUSTERS, CLUSTER_NAMES, 0.1, 500, seed) for seed in (0, 1))
        assert keys_of(first)[1] != keys_of(second)[1]
        none = [False] * len(CLUSTER_NAMES)
        first, second = (hold_out(KEYS, CLUSTERS, CLUSTER_NAMES, 0.1, 500, seed, none) for seed in (0, 1))
        assert keys_of(first)[2] != keys_of(second)[2]

    def test_the_order_of_rows_and_of_names_does_not_matter(self):
        order = np.random.default_rng(3).permutation(100)
        renamed = np.random.default_rng(4).permutation(len(CLUSTER_NAMES))  # new code of each cluster
        names = [CLUSTER_NAMES[code] for code in np.argsort(renamed)]
        before = hold_out(KEYS, CLUSTERS, CLUSTER_NAMES, 0.1, 500, 0)
        after = hold_out(KEYS[order], renamed[CLUSTERS[order]].astype(np.int32), names, 0.1, 500, 0)
        assert keys_of(after, KEYS[order]) == keys_of(before)

    def test_only_some_clusters_may_be_held_out_whole(self):
        whole = [number % 2 == 0 for number in range(len(CLUSTER_NAMES))]
        _, by_cluster, by_feature = hold_out(KEYS, CLUSTERS, CLUSTER_NAMES, 0.2, 500, 0, whole)
        assert len(by_cluster)
        assert not set(CLUSTERS[by_cluster]) & set(range(1, len(CLUSTER_NAMES), 2))
        assert len(by_feature) == 20, "single features are of any"
        _, none, _ = hold_out(KEYS, CLUSTERS, CLUSTER_NAMES, 0.2, 500, 0, [False] * len(CLUSTER_NAMES))
        assert len(none) == 0

    def test_every_cluster_keeps_a_feature(self):
        """A budget larger than the data takes all features but one of each cluster."""
        training, _, by_feature = hold_out(KEYS, CLUSTERS, CLUSTER_NAMES, 1.0, 500, 0, [False] * len(CLUSTER_NAMES))
        assert np.bincount(CLUSTERS[training]).tolist() == [1] * len(CLUSTER_NAMES)
        assert len(by_feature) == 100 - len(CLUSTER_NAMES)

    def test_clusters_of_one_feature_give_none_of_the_second_kind(self):
        alone = np.arange(20, dtype=np.int32)
        training, by_cluster, by_feature = hold_out(KEYS[:20], alone, list("abcdefghijklmnopqrst"), 0.2, 500, 0)
        assert (len(training), len(by_cluster), len(by_feature)) == (16, 4, 0)

    def test_nothing_is_held_out_of_too_few(self):
        training, by_cluster, by_feature = hold_out(KEYS[:9], CLUSTERS[:9], CLUSTER_NAMES, 0.1, 500, 0)
        assert (training.tolist(), len(by_cluster), len(by_feature)) == (list(range(9)), 0, 0)

    def test_a_name_without_features_is_not_drawn(self):
        before = hold_out(KEYS, CLUSTERS, CLUSTER_NAMES, 0.1, 500, 0)
        after = hold_out(KEYS, CLUSTERS, [*CLUSTER_NAMES, *(f"x{number}" for number in range(50))], 0.1, 500, 0)
        assert keys_of(after) == keys_of(before)

    @pytest.mark.slow
    def test_independent_of_the_hash_seed(self):
        asked = json.dumps([KEYS.tolist(), CLUSTERS.tolist(), CLUSTER_NAMES])
        process = subprocess.run(
            [sys.executable, "-c", SPLIT], input=asked, capture_output=True, text=True, check=True, cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        here = hold_out(KEYS, CLUSTERS, CLUSTER_NAMES, 0.1, 500, 3)
        assert json.loads(process.stdout) == [part.tolist() for part in here]

    def test_golden(self):
        """Changing the draw would move features between training and validation of every saved run."""
        clusters = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3], np.int32)
        found = hold_out(np.arange(10), clusters, ["a", "b", "c", "d"], 0.35, 500, 0)
        assert [part.tolist() for part in found] == [[0, 3, 5, 9], [1, 4, 7], [2, 6, 8]]
