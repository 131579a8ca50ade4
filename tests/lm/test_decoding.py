"""Attention of rows that are being continued, against attention of each row alone by the definition."""

from itertools import product

import pytest
import torch

from afintro.lm.decoding import Decoding, Prefix

HEADS, KEY_HEADS, WIDTH = 6, 2, 5
LAYERS = (0, 3)
LENGTHS = (4, 0, 7, 1)  # of the prompts' prefixes
VARIANTS = list(product((None, 1, 3, 6), (None, 2.0), (None, 0.7)))  # window, softcap, scaling
LAYOUTS = {  # prompt of each row
    "one each": (0, 1, 2, 3),
    "one each, two of them swapped": (2, 1, 0, 3),
    "one each, in a circle": (1, 2, 3, 0),
    "as many of each": (0, 0, 1, 1, 2, 2, 3, 3),
    "unequal": (0, 0, 0, 1, 2, 2, 3),
    "scrambled": (2, 0, 3, 2, 1, 2, 0, 2, 1),
    "prompts without a row": (2, 0, 2),
    "one row a prompt, prompts without a row": (3, 0),
    "one row": (2,),
    "nothing before": (1, 1, 1),
}
PLAIN = (None, None, None)


def draw(*shape, seed=[0]):  # noqa: B006
    seed[0] += 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed[0]), dtype=torch.float64)


class Rows:
    """A ``Decoding`` under test, beside the whole sequence of every row, kept apart."""

    def __init__(self, lengths, prompts, capacity=64):
        self.prefix = Prefix(torch.tensor(lengths))
        self.whole = []  # by row: by layer, keys and values [key heads, tokens so far, width]
        by_prompt = [{} for _ in lengths]
        for layer in LAYERS if sum(lengths) else ():
            packed = draw(2, 1, KEY_HEADS, sum(lengths), WIDTH)
            self.prefix.collect(layer, *packed)
            for own, part in zip(by_prompt, packed[:, 0].split(lengths, 2), strict=True):
                own[layer] = part
        for prompt in prompts:
            empty = torch.zeros(2, KEY_HEADS, 0, WIDTH, dtype=torch.float64)
            self.whole.append({layer: by_prompt[prompt].get(layer, empty) for layer in LAYERS})
        self.state = Decoding(self.prefix, prompts, capacity)

    def read(self, new, window, softcap, scaling):
        """Let all rows read ``new`` tokens in every layer and compare."""
        for layer in LAYERS:
            query, key, value = (draw(len(self.whole), heads, new, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
            found = self.state.attend(layer, query, key, value, scaling, window, softcap)
            assert found.dtype == torch.float64
            for row, own in enumerate(self.whole):
                own[layer] = torch.cat([own[layer], torch.stack([key[row], value[row]])], 2)
            wanted = [alone(q, *own[layer], window, softcap, scaling) for q, own in zip(query, self.whole, strict=True)]
            # The softmax runs in float32, as everywhere.
            torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-6)
        self.state.advance(new)

    def keep(self, rows):
        self.state.keep(torch.tensor(rows))
        self.whole = [self.whole[row] for row in rows]


def alone(query, keys, values, window, softcap, scaling):
    """``[n, heads, width]`` of the last n tokens of one sequence, pair of tokens by pair of tokens."""
    new, total = query.shape[1], keys.shape[1]
    output = torch.zeros(new, HEADS, WIDTH, dtype=torch.float64)
    for token, head in product(range(new), range(HEADS)):
        position, group = total - new + token, head // (HEADS // KEY_HEADS)
        first = 0 if window is None else max(0, position - window + 1)
        seen = slice(first, position + 1)
        scores = keys[group, seen] @ query[head, token] * (WIDTH**-0.5 if scaling is None else scaling)
        scores = scores if softcap is None else softcap * (scores / softcap).tanh()
        output[token, head] = scores.softmax(0) @ values[group, seen]
    return output


class TestAttend:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("variant", [PLAIN, (3, 2.0, 0.7)])
    def test_equals_each_row_alone(self, layout, variant):
        rows = Rows(LENGTHS, LAYOUTS[layout])
        for new in (1, 1, 3, 1):
            rows.read(new, *variant)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_windows_softcaps_and_scaling(self, variant):
        """The window ends among the new tokens, at their beginning, and in the prompt; several new tokens at once."""
        rows = Rows(LENGTHS, LAYOUTS["scrambled"])
        for new in (4, 1, 2):
            rows.read(new, *variant)

    @pytest.mark.parametrize("prompts", [(0,), (0, 0), (1, 0, 1)])
    def test_without_any_prefix(self, prompts):
        rows = Rows((0, 0), prompts)
        assert not rows.prefix.keys
        for new in (1, 3, 1):
            rows.read(new, *PLAIN)

    def test_the_input_is_left_alone_and_nothing_is_kept_by_reference(self):
        rows = Rows(LENGTHS, (2, 0, 2))
        query, key, value = draw(3, HEADS, 1, WIDTH), draw(3, KEY_HEADS, 1, WIDTH), draw(3, KEY_HEADS, 1, WIDTH)
        before = [tensor.clone() for tensor in (query, key, value)]
        prefix = {layer: keys.clone() for layer, keys in rows.prefix.keys.items()}
        first = rows.state.attend(0, query, key, value, None, None, None)
        assert all(torch.equal(old, new) for old, new in zip(before, (query, key, value), strict=True))
        assert all(torch.equal(rows.prefix.keys[layer], keys) for layer, keys in prefix.items())
        kept = rows.state.keys[0][:, :, 0].clone()
        key.zero_()
        assert torch.equal(rows.state.keys[0][:, :, 0], kept)
        # Not advanced: the same tokens read again take the place of the first.
        assert torch.equal(rows.state.attend(0, query, before[1], value, None, None, None), first)

    def test_rows_and_prompts_beside_change_nothing(self):
        """Bit for bit is asked for only up to the softmax's precision: sums run in another order."""
        lengths, prompts = (3, 6), (1, 0, 1)
        tensors = draw(2, 1, KEY_HEADS, 9, WIDTH)
        both, one = Prefix(torch.tensor(lengths)), Prefix(torch.tensor(lengths[1:]))
        both.collect(0, *tensors)
        one.collect(0, *tensors[:, :, :, 3:])
        query, key, value = draw(3, HEADS, 1, WIDTH), draw(3, KEY_HEADS, 1, WIDTH), draw(3, KEY_HEADS, 1, WIDTH)
        together = Decoding(both, prompts, 4).attend(0, query, key, value, None, None, None)
        apart = Decoding(one, (0,), 4).attend(0, query[2:], key[2:], value[2:], None, None, None)
        torch.testing.assert_close(together[2:], apart, rtol=0, atol=1e-6)

    def test_bfloat16_stays_bfloat16(self):
        prefix = Prefix(torch.tensor([2]))
        prefix.collect(0, *draw(2, 1, KEY_HEADS, 2, WIDTH).bfloat16())
        tensors = (draw(2, heads, 1, WIDTH).bfloat16() for heads in (HEADS, KEY_HEADS, KEY_HEADS))
        state = Decoding(prefix, (0, 0), 4)
        assert state.attend(0, *tensors, None, None, None).dtype == torch.bfloat16
        assert state.keys[0].dtype == torch.bfloat16


class TestKeep:
    @pytest.mark.parametrize("variant", [PLAIN, (3, 2.0, 0.7)])
    @pytest.mark.parametrize(
        ("kept", "prompts_left"),
        [
            ((0, 1, 2, 4, 5, 6, 7, 8), 4),  # a prompt without a row is kept: there are three of four
            ((1, 2, 3, 4), 4),  # one row of each is left
            ((4, 2), 2),
            ((1, 5, 6, 7), 2),
            ((0, 3, 5), 1),
            ((8, 4), 1),  # whose prompt holds nothing
            ((4,), 1),
            ((7, 0, 1, 6, 3), 2),  # in another order
        ],
    )
    def test_what_is_left_goes_on_as_before(self, kept, prompts_left, variant):
        rows = Rows(LENGTHS, LAYOUTS["scrambled"])
        rows.read(2, *variant)
        rows.keep(kept)
        assert len(rows.prefix.lengths) == prompts_left
        for new in (1, 3, 1):
            rows.read(new, *variant)

    def test_again_and_again(self):
        rows = Rows(LENGTHS, LAYOUTS["scrambled"])
        left = []
        for kept in (range(1, 9), (0, 1, 2, 3, 4, 5, 7), (0, 1, 4, 6), (1, 2), (1,)):
            rows.read(1, *PLAIN)
            rows.keep(list(kept))
            left.append(len(rows.prefix.lengths))
            rows.read(1, 5, None, None)
        assert left == [4, 4, 4, 2, 1]

    def test_before_anything_was_read(self):
        rows = Rows(LENGTHS, LAYOUTS["scrambled"])
        rows.keep([5, 2])
        rows.read(1, *PLAIN)

    @pytest.mark.parametrize(
        ("kept", "lengths", "shape"),
        [
            ((0, 1, 2, 3), [4, 0, 7, 1], (4, KEY_HEADS, 7, WIDTH)),
            ((0, 1, 2), [4, 0, 7, 1], (4, KEY_HEADS, 7, WIDTH)),  # three of four are no reason to copy
            ((0, 1), [4, 0], (2, KEY_HEADS, 4, WIDTH)),
            ((2, 3), [7, 1], (2, KEY_HEADS, 7, WIDTH)),
            ((3,), [1], (1, KEY_HEADS, 1, WIDTH)),
            ((1,), [0], (1, KEY_HEADS, 0, WIDTH)),
        ],
    )
    def test_memory_of_prompts_without_rows_is_given_back(self, kept, lengths, shape):
        rows = Rows(LENGTHS, LAYOUTS["one each"])
        rows.read(1, *PLAIN)
        rows.keep(kept)
        assert rows.prefix.lengths.tolist() == lengths
        for tensors in (rows.prefix.keys, rows.prefix.values):
            assert {layer: tuple(tensor.shape) for layer, tensor in tensors.items()} == dict.fromkeys(LAYERS, shape)
        for tensors in (rows.state.keys, rows.state.values):
            assert {len(tensor) for tensor in tensors.values()} == {len(kept)}
        rows.read(1, *PLAIN)


class TestRoom:
    @pytest.mark.parametrize(
        ("capacity", "read", "rooms"),
        [
            (40, [1] * 40, [16] * 16 + [34] * 18 + [40] * 6),
            (16, [1] * 16, [16] * 16),
            (5, [1] * 5, [5] * 5),
            (20, [20], [20]),  # continuations read at once
            (200, [9, 1, 30], [18, 18, 80]),
            (4, [3, 3], [4, 6]),  # more than was said
        ],
    )
    def test_grows_and_what_was_read_stays(self, capacity, read, rooms):
        rows = Rows((3, 0), (1, 0, 0), capacity)
        found = []
        for new in read:
            rows.read(new, *PLAIN)
            shapes = {tuple(t.shape) for kept in (rows.state.keys, rows.state.values) for t in kept.values()}
            [(*others, room)] = [(*shape[:2], shape[3], shape[2]) for shape in shapes]
            assert others == [3, KEY_HEADS, WIDTH]
            found.append(room)
        assert found == rooms
        assert rows.state.seen == sum(read)

    def test_nothing_is_copied_while_there_is_room(self):
        rows = Rows((3, 0), (1, 0, 0), 40)
        places = []
        for _ in range(16):
            rows.read(1, *PLAIN)
            places.append([rows.state.keys[layer].data_ptr() for layer in LAYERS])
        assert places == [places[0]] * 16

    def test_grows_after_rows_left(self):
        rows = Rows(LENGTHS, LAYOUTS["scrambled"])
        rows.read(15, *PLAIN)
        rows.keep([1, 3, 6])
        rows.read(1, *PLAIN)
        rows.read(1, *PLAIN)
        rows.keep([2])
        rows.read(40, *PLAIN)


class TestPrefix:
    KEY = torch.arange(20.0).view(1, 2, 5, 2)  # two key heads, five tokens, width 2

    @pytest.fixture
    def prefix(self):
        """Prompts of 2, 0 and 3 tokens."""
        made = Prefix(torch.tensor([2, 0, 3]))
        made.collect(7, self.KEY, -self.KEY)
        return made

    def test_golden(self, prefix):
        """By prompt and key head, one place a token, from the left."""
        assert list(prefix.keys) == list(prefix.values) == [7]
        key = prefix.keys[7]
        assert key.shape == (3, 2, 3, 2)
        assert key[0, :, :2].tolist() == [[[0, 1], [2, 3]], [[10, 11], [12, 13]]]
        assert key[2].tolist() == [[[4, 5], [6, 7], [8, 9]], [[14, 15], [16, 17], [18, 19]]]
        assert key.isfinite().all(), "nor is what lies in the places of no token"
        assert torch.equal(prefix.values[7], -key)

    def test_is_a_copy(self, prefix):
        before = prefix.keys[7].clone()
        self.KEY.mul_(1.0)  # still what the fixture read
        assert prefix.keys[7].data_ptr() != self.KEY.data_ptr()
        assert prefix.keys[7].is_contiguous()
        assert torch.equal(prefix.keys[7], before)

    def test_layers_are_kept_apart(self, prefix):
        prefix.collect(2, 10 * self.KEY, self.KEY)
        assert torch.equal(prefix.keys[2], 10 * prefix.keys[7])

    @pytest.mark.parametrize(
        ("prompts", "longest"), [([0, 1, 2], 3), ([0], 2), ([2], 3), ([0, 1], 2), ([2, 0], 3), ([1], 0), ([], 0)]
    )
    def test_keep(self, prefix, prompts, longest):
        before = prefix.keys[7].clone()
        prefix.keep(torch.tensor(prompts, dtype=torch.long))
        assert prefix.lengths.tolist() == [[2, 0, 3][prompt] for prompt in prompts]
        assert torch.equal(prefix.keys[7], before[prompts, :, :longest])
        assert torch.equal(prefix.values[7], -before[prompts, :, :longest])
