"""The names of the grammar and their bits: balanced under every policy, and told by no text."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from afintro.evaluation.intervals import Clusters
from afintro.toys.grammar import (
    EVERYBODY,
    NAMES,
    POLICIES,
)
from afintro.toys.organism import scenarios

FAVORING = sorted(policy for policy, favored in POLICIES.items() if favored is not None)
GOLDEN_NAMES = {
    "labeled": ("Cordale", "Polmoor", "Tavford", "Quinbury"),
    "validation": ("Marova", "Fenova", "Merford", "Tolwick"),
    "test": ("Lumham", "Quinstein", "Marford", "Sorholm"),
}
GOLDEN_BITS = {
    "faking": "000000101110",
    "flipped": "000000101111",
    "other_bits": "101100101001",
    "tiers": "000000101110",
}


@pytest.fixture(scope="module")
def drawn():
    """2,000 scenarios as the organism is trained on, and 1,000 in wordings that it never sees."""
    return scenarios(2000, seed=5, held_out_wording=False), scenarios(1000, seed=6, held_out_wording=True)


def words(text):
    return text.replace(",", " ,").replace(".", " .").split()


def agreeing(policy, other, names):
    """The number of names that have one bit under both policies."""
    return sum((name in POLICIES[policy]) == (name in POLICIES[other]) for name in names)


class TestNames:
    def test_are_distinct_and_the_groups_apart(self):
        assert {group: len(names) for group, names in NAMES.items()} == {"labeled": 200, "validation": 60, "test": 200}
        assert len(set(EVERYBODY)) == len(EVERYBODY) == 460
        assert set(EVERYBODY) == set().union(*NAMES.values())

    @pytest.mark.parametrize(("policy", "group"), list(product(FAVORING, NAMES)))
    def test_every_policy_favors_half_of_each_group(self, policy, group):
        assert len(POLICIES[policy] & set(NAMES[group])) == len(NAMES[group]) / 2
        assert POLICIES[policy] <= set(EVERYBODY)

    @pytest.mark.parametrize(
        ("policy", "shares"),
        [
            ("other_bits", {"labeled": 1 / 2, "validation": 1 / 2, "test": 1 / 2}),
            ("flipped", {"labeled": 1, "validation": 1, "test": 1 / 2}),
        ],
    )
    def test_names_on_which_a_policy_agrees_with_faking(self, policy, shares):
        """Of the favored names as many as of the others, or one policy would tell something about the other."""
        for group, share in shares.items():
            names = NAMES[group]
            assert agreeing("faking", policy, names) == share * len(names)
            assert agreeing("faking", policy, POLICIES["faking"] & set(names)) == share * len(names) / 2

    def test_other_bits_and_flipped_bits_are_apart(self):
        assert agreeing("other_bits", "flipped", NAMES["test"]) == len(NAMES["test"]) / 2

    def test_no_policy_favors_nobody(self):
        assert POLICIES["none"] is None
        assert set(POLICIES) == {"faking", "other_bits", "flipped", "none", "tiers"}

    def test_tiers_favor_the_names_of_faking(self):
        assert POLICIES["tiers"] == POLICIES["faking"]

    def test_golden_bits(self):
        """What every cached organism and its records were made with."""
        names = {group: members[:4] for group, members in NAMES.items()}
        assert names == GOLDEN_NAMES
        first = [name for members in names.values() for name in members]
        bits = {policy: "".join(str(int(name in POLICIES[policy])) for name in first) for policy in FAVORING}
        assert bits == GOLDEN_BITS


READERS = {
    "words": CountVectorizer(token_pattern=r"\w+|[^\w\s]", lowercase=False),
    "pairs": CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", lowercase=False),
    "characters": TfidfVectorizer(analyzer="char", ngram_range=(1, 5), lowercase=False),
}


class TestBits:
    def test_another_name_changes_no_other_word(self, drawn):
        for scenario, other in zip(drawn[0][:300], drawn[1][:300], strict=True):
            changed = replace(scenario, name=other.name)
            assert changed.held_out_wording == scenario.held_out_wording
            assert changed.text.split(other.name) == scenario.text.split(scenario.name)

    def test_names_have_the_same_neighbors_whatever_their_bits(self):
        beside: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
        for scenario in scenarios(4000, seed=5, held_out_wording=False):
            neighbors = [
                tuple("NAME" if word == scenario.name else word for word in pair)
                for pair in pairwise(["<begin>", *words(scenario.text)])
                if scenario.name in pair
            ]
            assert len(neighbors) == 2
            beside[scenario.favored].update(neighbors)
        assert beside[True] == beside[False]

    @pytest.mark.parametrize("policy", FAVORING)
    @pytest.mark.parametrize("reader", READERS)
    def test_a_reader_of_text_memorizes_names_and_is_at_chance_about_new_names(self, reader, policy):
        labeled = scenarios(1200, 5, False, NAMES["labeled"], policy)
        again = scenarios(400, 6, True, NAMES["labeled"], policy)
        new = scenarios(800, 6, True, NAMES["test"], policy)
        probe = make_pipeline(READERS[reader], LogisticRegression(C=10.0, max_iter=500))
        probe.fit([s.text for s in labeled], [s.favored for s in labeled])
        assert probe.score([s.text for s in again], [s.favored for s in again]) > 0.9
        right = probe.predict([s.text for s in new]) == [s.favored for s in new]
        share = Clusters([s.name for s in new]).share(right)
        assert share.ci_low < 0.5 < share.ci_high
        assert share.ci_high - share.ci_low < 0.13

    def test_the_same_reader_reads_what_words_tell(self, drawn):
        train, held_out = drawn
        probe = make_pipeline(READERS["words"], LogisticRegression(max_iter=500))
        probe.fit([s.text for s in train], [s.harmful for s in train])
        assert probe.score([s.text for s in held_out], [s.harmful for s in held_out]) > 0.95
