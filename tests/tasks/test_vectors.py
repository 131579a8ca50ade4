"""Vectors in prompts: where the slot is, and vectors taken away or exchanged."""

from types import SimpleNamespace

import numpy as np
import pytest

from afintro.data.batch import Example, Slot
from afintro.errors import UserError
from afintro.tasks.vectors import shuffled, slot_position, slot_token, vector_of, with_vector, without_vectors

SLOT = "<|slot|>"


@pytest.fixture(scope="module")
def reader(tokenizer):
    return SimpleNamespace(name="m", slot_token=SLOT, tokenizer=tokenizer, context_length=None)


def item(uid, layer=1, answer="", number=None):
    """``number`` is the vector, three times over; that of the uid if absent."""
    vector = np.full(3, uid if number is None else number, dtype=np.float32)
    return Example(str(uid), "s", "q", "p", answer, (1, 3, 2), (2,), slot=Slot(1, layer, vector, scale=2.5))


def numbers(items):
    return [int(vector_of(one)[0]) for one in items]


class TestSlot:
    def test_is_the_configured_token(self, reader):
        assert slot_token(reader) == SLOT

    def test_none_configured(self):
        with pytest.raises(UserError, match=r"^model\.slot_token: is absent\n  remedy: name a reserved token"):
            slot_token(SimpleNamespace(slot_token=None))

    def test_position(self, reader):
        ids = reader.tokenizer.encode(f"ab{SLOT}c", add_special_tokens=False)
        assert ids[2] == 3
        assert slot_position(ids, reader, "item", "wording") == 2
        assert slot_position([3], reader, "item", "wording") == 0

    @pytest.mark.parametrize(("ids", "count"), [([], 0), ([7, 8], 0), ([3, 7, 3], 2)])
    def test_not_exactly_once(self, reader, ids, count):
        with pytest.raises(UserError) as caught:
            slot_position(ids, reader, "prompt of x", "data.wording.user")
        assert str(caught.value) == (
            f"prompt of x: holds the slot token {count} times\n"
            "  remedy: write {slot} once in every wording of data.wording.user"
        )


def test_with_vector_changes_the_vector_alone():
    before = item(4)
    after = with_vector(before, np.array([1, 2, 3], dtype=np.float32))
    assert vector_of(after).tolist() == [1, 2, 3]
    assert after == before  # which compares all but the vector
    assert (after.slot.position, after.slot.layer, after.slot.scale) == (1, 1, 2.5)
    assert numbers([before]) == [4]


def test_without_vectors_are_zeros_of_the_same_shape_and_type():
    items = [item(4), item(5, layer=2)]
    found = without_vectors(items)
    assert found == items
    for one in found:
        assert vector_of(one).dtype == np.float32
        assert vector_of(one).tolist() == [0, 0, 0]
    assert numbers(items) == [4, 5]


def by_answer(one):
    return one.answer


class TestShuffled:
    ITEMS = tuple(item(i, layer=1 + i % 2, answer="xyz"[i % 3]) for i in range(30))

    def test_every_vector_is_of_another_kind_and_the_same_layer(self):
        found = shuffled(self.ITEMS, 0, by_answer)
        assert found == list(self.ITEMS)  # but for the vectors, and in their order
        for one, donor in zip(self.ITEMS, (self.ITEMS[number] for number in numbers(found)), strict=True):
            assert donor.answer != one.answer
            assert donor.slot.layer == one.slot.layer

    def test_kind_is_what_the_caller_says(self):
        found = shuffled(self.ITEMS, 0, lambda one: int(one.uid) < 15)
        assert all((number < 15) != (int(one.uid) < 15) for one, number in zip(self.ITEMS, numbers(found), strict=True))

    def test_the_order_does_not_matter_and_the_seed_does(self):
        found = shuffled(self.ITEMS, 0, by_answer)
        assert numbers(shuffled(self.ITEMS[::-1], 0, by_answer)) == numbers(found)[::-1]
        assert numbers(shuffled(self.ITEMS, 1, by_answer)) != numbers(found)
        assert numbers(self.ITEMS) == list(range(30))

    def test_of_one_kind_another_item_gives_its_vector(self):
        items = [item(i, answer="x") for i in range(6)]
        found = numbers(shuffled(items, 0, by_answer))
        assert sorted(found) == list(range(6))  # each goes to the next one
        assert all(number != own for own, number in enumerate(found))

    def test_one_of_its_kind_gives_to_all_others(self):
        items = [item(0, answer="y"), *(item(i, answer="x") for i in range(1, 5))]
        found = numbers(shuffled(items, 0, by_answer))
        assert found[0] in range(1, 5)
        assert found[1:] == [0] * 4

    def test_alone_in_its_layer_it_keeps_its_vector(self):
        assert numbers(shuffled([item(0), item(1, layer=2)], 0, by_answer)) == [0, 1]
        assert shuffled([], 0, by_answer) == []

    def test_golden(self):
        """Each takes from the next one in the order of sha256("0 <uid>"): no process may find otherwise."""
        assert numbers(shuffled([item(i, answer=str(i)) for i in range(5)], 0, by_answer)) == [3, 0, 1, 4, 2]
