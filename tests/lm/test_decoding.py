"""The attention of rows that are being continued equals the attention of each row alone, by the definition."""

from itertools import product

import pytest
import torch

from afintro.lm.decoding import Decoding, KVSlots, PrefixWriter

HEADS, KEY_HEADS, WIDTH = 6, 2, 5
LAYERS = (0, 3)
LENGTHS = (4, 0, 7, 1)  # of the prompts' prefixes
VARIANTS = list(product((None, 1, 3, 6), (None, 2.0), (None, 0.7)))  # window, softcap, scaling
LAYOUTS = {  # prompt of each row
    "one each": (0, 1, 2, 3),
    "one each, two of them swapped": (2, 1, 0, 3),
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


CPU = torch.device("cpu")
STALE = 1e4  # what an earlier sequence left behind; 0 times it is 0, seen it would be everything


def stale(slots):
    """Fill slots with old values."""
    for layer in LAYERS:
        for kept in (slots.keys, slots.values):
            shape = (slots.count, KEY_HEADS, slots.capacity, WIDTH)
            kept[layer] = torch.full(shape, STALE, dtype=torch.float64)
    return slots


class Rows:
    """A ``Decoding`` under test, and beside it the whole sequence of every row."""

    def __init__(self, lengths, prompts, shared=True, capacity=16):
        self.lengths, self.prompts, self.held = list(lengths), list(prompts), [0] * len(prompts)
        self.shared = shared
        packed = draw(len(LAYERS), 2, 1, KEY_HEADS, sum(lengths), WIDTH)
        parts = packed[:, :, 0].split(list(lengths), 3)
        self.whole = [dict(zip(LAYERS, parts[prompt], strict=True)) for prompt in prompts]
        longest = max(lengths)
        if shared:
            slots = stale(KVSlots(len(lengths) + 1, longest, CPU))
            self.fill(slots, range(len(lengths)), range(len(lengths)), packed)
            self.state = Decoding(stale(KVSlots(len(prompts) + 2, capacity, CPU)), slots)
        else:
            self.held = [lengths[prompt] for prompt in prompts]
            slots = stale(KVSlots(len(prompts), longest + capacity, CPU))
            order = torch.cat([torch.arange(sum(lengths)).split(list(lengths))[prompt] for prompt in prompts])
            self.fill(slots, range(len(prompts)), prompts, packed[..., order, :])
            self.state = Decoding(slots, None)
        self.place()

    def fill(self, slots, targets, prompts, packed):
        writer = PrefixWriter(slots, targets, [self.lengths[prompt] for prompt in prompts])
        for layer, tensors in zip(LAYERS, packed, strict=True):
            writer.collect(layer, *tensors)

    def place(self):
        used = [0 if prompt is None else prompt if self.shared else 0 for prompt in self.prompts]
        prompts = [None if prompt is None else use for prompt, use in zip(self.prompts, used, strict=True)]
        self.state.place(prompts, self.held, self.lengths if self.shared else [])

    def read(self, new, window, softcap, scaling):
        """Let all rows read ``new`` tokens in every layer and compare."""
        positions = self.state.prepare(len(self.whole), new)
        for layer in LAYERS:
            query, key, value = (draw(len(self.whole), heads, new, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS))
            found = self.state.attend(layer, query, key, value, scaling, window, softcap)
            assert found.dtype == torch.float64
            for row, own in enumerate(self.whole):
                if self.prompts[row] is None:
                    continue
                assert positions[row].tolist() == list(range(own[layer].shape[2], own[layer].shape[2] + new))
                own[layer] = torch.cat([own[layer], torch.stack([key[row], value[row]])], 2)
                wanted = alone(query[row], *own[layer], window, softcap, scaling)
                # The softmax runs in float32, as everywhere.
                torch.testing.assert_close(found[row], wanted, rtol=0, atol=1e-6)
        self.held = [held + new for held in self.held]
        if new == 1:
            self.state.advance()
        else:
            self.place()


def alone(query, keys, values, window, softcap, scaling):
    """Return the attention ``[n, heads, width]`` of the last n tokens of a sequence, pair of tokens by pair of tokens."""
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
    @pytest.mark.parametrize("shared", [True, False])
    def test_equals_each_row_alone(self, layout, variant, shared):
        rows = Rows(LENGTHS, LAYOUTS[layout], shared)
        for new in (1, 1, 3, 1):
            rows.read(new, *variant)

    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("shared", [True, False])
    def test_windows_softcaps_and_scaling(self, variant, shared):
        """The window ends among the new tokens, before them, and in the prompt, also with several new tokens at once."""
        rows = Rows(LENGTHS, LAYOUTS["scrambled"], shared)
        for new in (4, 1, 2):
            rows.read(new, *variant)

    @pytest.mark.parametrize("prompts", [(0,), (0, 0), (1, 0, 1)])
    def test_without_any_prefix(self, prompts):
        state = Decoding(KVSlots(3, 8, CPU), KVSlots(2, 0, CPU))
        state.place(prompts, [0] * len(prompts), [0, 0])
        rows = Rows((0, 0), prompts)
        rows.state = state
        for new in (1, 3, 1):
            rows.read(new, *PLAIN)

    @pytest.mark.parametrize("shared", [True, False])
    def test_a_slot_without_a_row_changes_nothing_beside_it(self, shared):
        rows = Rows(LENGTHS, (2, 0, 2, 1), shared)
        rows.read(1, *PLAIN)
        rows.prompts[1] = None
        rows.place()
        assert rows.state.live[:4].tolist() == [1, 0, 1, 1]
        for _ in range(3):
            rows.read(1, *PLAIN)
        assert rows.state.row_slots.lengths[1] == 0

    def test_the_input_is_left_alone_and_nothing_is_kept_by_reference(self):
        rows = Rows(LENGTHS, (2, 0, 2))
        query, key, value = draw(3, HEADS, 1, WIDTH), draw(3, KEY_HEADS, 1, WIDTH), draw(3, KEY_HEADS, 1, WIDTH)
        before = [tensor.clone() for tensor in (query, key, value)]
        rows.state.prepare(3)
        first = rows.state.attend(0, query, key, value, None, None, None)
        assert all(torch.equal(old, new) for old, new in zip(before, (query, key, value), strict=True))
        key.zero_()
        # Not advanced: the same tokens read again take the place of the first.
        assert torch.equal(rows.state.attend(0, query, before[1], value, None, None, None), first)

    def test_bfloat16_stays_bfloat16(self):
        slots = KVSlots(1, 2, CPU)
        PrefixWriter(slots, [0], [2]).collect(0, *draw(2, 1, KEY_HEADS, 2, WIDTH).bfloat16())
        tensors = (draw(2, heads, 1, WIDTH).bfloat16() for heads in (HEADS, KEY_HEADS, KEY_HEADS))
        state = Decoding(KVSlots(2, 4, CPU), slots)
        state.place([0, 0], [0, 0], [2])
        state.prepare(2)
        assert state.attend(0, *tensors, None, None, None).dtype == torch.bfloat16
        assert state.row_slots.keys[0].dtype == torch.bfloat16


class TestMove:
    @pytest.mark.parametrize("variant", [PLAIN, (3, 2.0, 0.7)])
    @pytest.mark.parametrize("shared", [True, False])
    def test_moved_rows_go_on_as_before(self, shared, variant):
        rows = Rows(LENGTHS, LAYOUTS["scrambled"], shared)
        rows.read(1, *variant)
        rows.read(1, *variant)
        for sources, targets in (([8, 6], [0, 3]), ([5], [1])):
            for source, target in zip(sources, targets, strict=True):
                for kept in (rows.whole, rows.prompts, rows.held):
                    kept[target] = kept[source]
            rows.state.row_slots.move(sources, targets)
            left = len(rows.whole) - (3 if len(sources) == 2 else 1)
            rows.whole, rows.prompts, rows.held = rows.whole[:left], rows.prompts[:left], rows.held[:left]
            rows.place()
            rows.read(1, *variant)

    def test_moved_prompts_and_refilled_slots(self):
        rows = Rows(LENGTHS, (3, 0, 3))
        rows.read(1, *PLAIN)
        rows.state.prompt_slots.move([3], [1])  # prompt 1, which no row continues, makes place
        rows.lengths, rows.prompts = [4, 1], [1, 0, 1]
        rows.place()
        rows.read(1, *PLAIN)
        packed = draw(len(LAYERS), 2, 1, KEY_HEADS, 6, WIDTH)
        rows.lengths.append(6)
        rows.fill(rows.state.prompt_slots, [2], [2], packed)
        rows.prompts[1], rows.held[1] = 2, 0  # another row in the second slot
        rows.whole[1] = dict(zip(LAYERS, packed[:, :, 0], strict=True))
        rows.place()
        for _ in range(2):
            rows.read(1, *PLAIN)

    def test_nothing_to_move(self):
        KVSlots(1, 1, CPU).move([], [])


class TestFilling:
    KEY = torch.arange(20.0).view(1, 2, 5, 2)  # two key heads, five tokens, width 2

    def test_golden(self):
        """Keys lie by slot and key head, one place a token, from the left."""
        slots = KVSlots(4, 6, CPU)
        writer = PrefixWriter(slots, [3, 1, 0], [2, 0, 3])
        writer.collect(7, self.KEY, -self.KEY)
        key = slots.keys[7]
        assert key.shape == (4, 2, 6, 2)
        assert key[3, :, :2].tolist() == [[[0, 1], [2, 3]], [[10, 11], [12, 13]]]
        assert key[0, :, :3].tolist() == [[[4, 5], [6, 7], [8, 9]], [[14, 15], [16, 17], [18, 19]]]
        assert key.count_nonzero() == 19, "zeros elsewhere"
        assert torch.equal(slots.values[7], -key)
        writer.collect(2, 10 * self.KEY, self.KEY)
        assert torch.equal(slots.keys[2], 10 * key)
