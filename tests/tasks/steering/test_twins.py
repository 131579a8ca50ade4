"""Twins: who reads the text alone is right on half of them, and who knows the direction alone is hardly better."""

import random
from collections import Counter, defaultdict

import pytest

from afintro.tasks.steering.records import SteeringRecord
from afintro.tasks.steering.twins import choose_records
from tests.forked import printed_with_hash_seeds

DIRECTIONS = ("faking", "random", "orthogonal", "kind")


def record(prompt, direction, changed, layer=1, alpha=2.0, **options):
    return SteeringRecord(prompt, direction, layer, alpha, "a", "b", behavior_changed=changed, **options)


def many(prompts=40, seed=0):
    """Records of every prompt, cell and direction, whose verdicts depend on all of these; some broken or unlabeled."""
    drawn = random.Random(seed)
    found = []
    for prompt in range(prompts):
        for layer in (1, 3):
            for alpha in (-2, 1.0, 4.0):
                for number, direction in enumerate(DIRECTIONS):
                    changed = drawn.random() < 0.2 + 0.15 * number
                    changed = None if drawn.random() < 0.1 else changed
                    coherent = drawn.random() > 0.1
                    found.append(record(f"prompt {prompt}", direction, changed, layer, alpha, coherent=coherent))
    return found


def by_twins(chosen):
    found = defaultdict(list)
    for one in chosen:
        found[one.twins].append(one.record)
    return found


@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_half_of_every_cell_changed(pairs):
    cells = defaultdict(Counter)
    for one in choose_records(many(), pairs, 0, "steering"):
        cells[one.record.layer, one.record.alpha][one.record.behavior_changed] += 1
    assert len(cells) == 6
    assert all(counts[True] == counts[False] > 5 and len(counts) == 2 for counts in cells.values())


@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_twins_differ_in_vector_and_verdict_alone(pairs):
    chosen = choose_records(many(), pairs, 0, "steering")
    for name, twins in by_twins(chosen).items():
        one, other = twins
        assert name
        assert (one.prompt, one.layer, one.alpha) == (other.prompt, other.layer, other.alpha)
        assert {one.behavior_changed, other.behavior_changed} == {True, False}
        assert one.direction != other.direction
    assert len({one.record.uid for one in chosen}) == len(chosen)


def test_who_reads_the_text_alone_is_right_on_exactly_half():
    chosen = choose_records(many(), 5, 0, "steering")
    drawn = random.Random(1)
    says = defaultdict(lambda: drawn.random() < 0.5)  # any answer to a prompt, layer and alpha
    right = [
        says[one.record.prompt, one.record.layer, one.record.alpha] == one.record.behavior_changed for one in chosen
    ]
    assert 2 * sum(right) == len(right) > 100


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_at_most_so_many_pairs_of_one_prompt_layer_and_alpha(pairs):
    records = [record("p", f"d{i}", i < 4) for i in range(9)]  # 4 changed, 5 not
    assert len(choose_records(records, pairs, 0, "steering")) == 2 * pairs
    assert len(choose_records(records, 100, 0, "steering")) == 8
    counts = Counter(
        (o.record.prompt, o.record.layer, o.record.alpha) for o in choose_records(many(), pairs, 0, "steering")
    )
    assert max(counts.values()) <= 2 * pairs


def test_the_order_of_the_records_does_not_matter_and_the_seed_does():
    records = many()
    chosen = choose_records(records, 1, 0, "steering")
    for seed in range(3):
        assert choose_records(random.Random(seed).sample(records, len(records)), 1, 0, "steering") == chosen
    assert {o.record.uid for o in choose_records(records, 1, 1, "steering")} != {o.record.uid for o in chosen}


@pytest.mark.slow
def test_does_not_depend_on_the_hash_seed():
    """Known mistake 15."""
    code = (
        "from afintro.tasks.steering.records import SteeringRecord as R\n"
        "from afintro.tasks.steering.twins import choose_records\n"
        "rs = [R(f'p{i % 7}', f'd{i // 7}', 1, 2.0, 'a', 'b', behavior_changed=i % 3 == 0) for i in range(35)]\n"
        "print([(c.record.uid, c.twins) for c in choose_records(rs, 1, 0, 't')])"
    )
    printed = printed_with_hash_seeds(code, "0", "1")
    assert len(printed) == 1
    assert "/d" in printed.pop()


@pytest.mark.parametrize("spoiled", [{"coherent": False}, {"changed": None}])
def test_broken_texts_and_unknown_verdicts_are_left_out(spoiled):
    good = [record("p", "a", True), record("p", "b", False)]
    bad = [record("p", f"bad{i}", **{"changed": bool(i % 2), **spoiled}) for i in range(6)]
    assert {one.record.direction for one in choose_records([*bad, *good], 5, 0, "steering")} == {"a", "b"}
    assert choose_records([*bad, good[0]], 5, 0, "steering") == []


class TestDirections:
    def share(self, chosen):
        """Changed minus unchanged, by direction."""
        counts = Counter()
        for one in chosen:
            counts[one.record.direction] += 1 if one.record.behavior_changed else -1
        return counts

    def test_a_surplus_of_one_direction_is_evened_out(self):
        """faking changes four prompts in five and the others two in five; among those asked about nobody can tell."""
        drawn = random.Random(3)
        directions = ("faking", *(f"d{i}" for i in range(5)))
        records = [
            record(f"p{i}", d, drawn.random() < (0.8 if d == "faking" else 0.4)) for i in range(60) for d in directions
        ]
        assert sum(1 if r.behavior_changed else -1 for r in records if r.direction == "faking") > 25
        share = self.share(choose_records(records, 1, 0, "steering"))
        assert set(share) == set(directions)
        assert max(map(abs, share.values())) <= 1

    def test_by_hand(self):
        """Whatever p1 takes, p2 must not take the same direction for the same verdict again."""
        records = [record(p, d, c) for p in ("p1", "p2", "p3", "p4") for d, c in (("a", True), ("b", True))]
        records += [record(p, d, False) for p in ("p1", "p2", "p3", "p4") for d in ("c", "d")]
        assert self.share(choose_records(records, 1, 0, "steering")) == {"a": 2, "b": 2, "c": -2, "d": -2}

    def test_where_there_is_no_choice_the_surplus_stays(self):
        records = [record(f"p{i}", d, c) for i in range(4) for d, c in (("a", True), ("b", False))]
        assert self.share(choose_records(records, 1, 0, "steering")) == {"a": 4, "b": -4}

    def test_each_cell_is_balanced_by_itself(self):
        records = [
            record(p, d, c, layer)
            for layer in (1, 2)
            for p in ("p1", "p2")
            for d, c in (("a", True), ("b", True), ("c", False), ("d", False))
        ]
        for layer in (1, 2):
            share = self.share(o for o in choose_records(records, 1, 0, "steering") if o.record.layer == layer)
            assert share == {"a": 1, "b": 1, "c": -1, "d": -1}


class TestWithoutTwins:
    """Every prompt has one record a cell, as the parent framework writes them."""

    RECORDS = tuple(record(f"p{i}", "a", i < 3) for i in range(10))

    def test_as_many_changed_as_unchanged(self):
        chosen = choose_records(self.RECORDS, 2, 0, "steering")
        assert Counter(one.record.behavior_changed for one in chosen) == {True: 3, False: 3}
        assert {one.twins for one in chosen} == {""}
        assert len({one.record.uid for one in chosen}) == 6
        assert choose_records(self.RECORDS[::-1], 2, 0, "steering") == chosen
        assert any(choose_records(self.RECORDS, 2, seed, "steering") != chosen for seed in range(1, 4))

    def test_a_cell_of_one_verdict_gives_nothing(self):
        assert choose_records(self.RECORDS[:3], 2, 0, "steering") == []
        assert choose_records([], 2, 0, "steering") == []

    def test_a_cell_with_twins_beside_it_keeps_to_twins(self):
        twins = [record("p0", "b", False, layer=2), record("p0", "a", True, layer=2), record("p1", "a", True, layer=2)]
        chosen = choose_records([*self.RECORDS, *twins], 2, 0, "steering")
        assert Counter((one.record.layer, bool(one.twins)) for one in chosen) == {(1, False): 6, (2, True): 2}
