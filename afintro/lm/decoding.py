"""Attend while rows are continued: keys and values lie in slots, grouped heads are not repeated, only live positions are read.

A row that shares its prompt with other rows attends to the prompt's slot and to the row's own new tokens; the rows of one
prompt read the prompt together, as one matrix product. Where no prompt is shared, a row's new tokens follow its prompt in one
slot. The softmax runs over both parts as over one sequence, so a row's output is the same as if the row were alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class KVSlots:
    """Hold the keys and values of sequences, one sequence a slot, filled from the left.

    Args:
        count: Number of slots.
        capacity: Largest number of tokens of a sequence.
        device: Device of the tensors.

    Attributes:
        lengths: ``[count]`` int32, the number of tokens that each slot holds.
        keys: By layer, ``[count, key heads, capacity, d]``; allocated when the first keys of a layer arrive, in their dtype.
        values: By layer, with the shape and dtype of ``keys``; the width may differ.
    """

    def __init__(self, count: int, capacity: int, device: torch.device) -> None:
        self.count, self.capacity = count, capacity
        self.lengths = torch.zeros(count, dtype=torch.int32, device=device)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor, columns: Tensor) -> None:
        """Write keys and values to given places.

        Args:
            layer: 0-based index of the layer.
            key: ``[..., key heads, d]``.
            value: ``[..., key heads, d]``.
            slots: int64, the slot of each; broadcasts with ``columns`` to ``[...]``.
            columns: int64, the position of each within its slot.
        """
        for stored, tensor in ((self.keys, key), (self.values, value)):
            self._room(stored, layer, tensor, tensor.shape[-2])[slots, :, columns] = tensor

    def extend(self, layer: int, key: Tensor, value: Tensor, length: int) -> None:
        """Append to each of the first R slots, all of which hold equally many tokens; faster than :meth:`write`.

        Args:
            layer: 0-based index of the layer.
            key: ``[R, key heads, n, d]``.
            value: ``[R, key heads, n, d]``.
            length: Number of tokens that each of the slots holds.
        """
        rows, heads, new, _ = key.shape
        for stored, tensor in ((self.keys, key), (self.values, value)):
            self._room(stored, layer, tensor, heads)[:rows, :, length : length + new] = tensor

    def _room(self, stored: dict[int, Tensor], layer: int, like: Tensor, heads: int) -> Tensor:
        if layer not in stored:
            # Zeros, because attention also reads places that were never written, with weight 0: they must not be NaN.
            stored[layer] = like.new_zeros(self.count, heads, self.capacity, like.shape[-1])
        return stored[layer]

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy the whole slots ``sources`` onto the slots ``targets``."""
        if not sources:
            return
        source, target = (torch.tensor(slots, device=self.lengths.device) for slots in (sources, targets))
        for stored in (self.keys, self.values):
            for tensor in stored.values():
                tensor[target] = tensor[source]


class PrefixWriter:
    """Write the keys and values of a packed row to slots, while the model reads the row.

    Args:
        slots: The slots to write to.
        targets: The slot of each sequence of the row.
        lengths: The number of tokens of each sequence.
    """

    def __init__(self, slots: KVSlots, targets: Sequence[int], lengths: Sequence[int]) -> None:
        device = slots.lengths.device
        self.slots = slots
        index = [slot for slot, length in zip(targets, lengths, strict=True) for _ in range(length)]
        columns = [column for length in lengths for column in range(length)]
        self.index = torch.tensor(index, dtype=torch.long, device=device)
        self.columns = torch.tensor(columns, dtype=torch.long, device=device)

    def collect(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write the keys and values of one layer.

        Args:
            layer: 0-based index of the layer.
            key: ``[1, key heads, T, d]``.
            value: ``[1, key heads, T, d]``.
        """
        self.slots.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1), self.index, self.columns)


class Decoding:
    """Keep and attend to the keys and values of rows that are being continued, in slots that are refilled.

    Args:
        row_slots: One slot a row, for the row's new tokens; without ``prompt_slots``, for its prompt and its new tokens.
        prompt_slots: Slots of prompts that several rows share; None if each row holds its own prompt.
    """

    capturable = False  # whether a CUDA graph of a step can be recorded: here shapes depend on lengths, so it cannot

    def __init__(self, row_slots: KVSlots, prompt_slots: KVSlots | None) -> None:
        self.row_slots, self.prompt_slots = row_slots, prompt_slots
        self.device = row_slots.lengths.device
        self.prompt = torch.zeros(row_slots.count, dtype=torch.long, device=self.device)  # of each row
        self.live = torch.zeros(row_slots.count, dtype=torch.int32, device=self.device)
        self.longest = self.longest_prompt = 0
        self.even = False  # whether all rows hold equally many tokens in their row slots

    def size(self, rows: int) -> int:
        """Return how many row slots, counted from the first, a step goes through when there are ``rows`` rows."""
        return rows

    def place(self, prompts: Sequence[int | None], lengths: Sequence[int], prompt_lengths: Sequence[int]) -> None:
        """Set which rows there are.

        Args:
            prompts: The prompt of each row slot, from the first slot on; None for a slot without a row.
            lengths: The number of tokens that each row slot holds.
            prompt_lengths: The number of tokens of each shared prompt, from the first prompt slot on.
        """
        rows = len(prompts)
        known = [
            0 if prompt is None else prompt for prompt in prompts
        ]  # a slot without a row reads along, without effect
        self.prompt[:rows] = torch.tensor(known, device=self.device)
        self.live[:rows] = torch.tensor([prompt is not None for prompt in prompts], device=self.device)
        held = [0 if prompt is None else length for prompt, length in zip(prompts, lengths, strict=True)]
        self.row_slots.lengths[:rows] = torch.tensor(held, dtype=torch.int32, device=self.device)
        self.longest, self.longest_prompt = max(held, default=0), max(prompt_lengths, default=0)
        self.even = min(held, default=0) == self.longest
        if self.prompt_slots is not None:
            self.prompt_slots.lengths[: len(prompt_lengths)] = torch.tensor(prompt_lengths, device=self.device)
            self._share(known, len(prompt_lengths))

    def _share(self, prompts: Sequence[int], count: int) -> None:
        """Build the table ``[P, C]`` of the rows of each prompt."""
        members: list[list[int]] = [[] for _ in range(count)]
        columns = []
        for row, prompt in enumerate(prompts):
            columns.append(len(members[prompt]))
            members[prompt].append(row)
        width = max(map(len, members), default=0)
        # A place of the table without a row names row 0, whose result is then not read from there.
        self.table = torch.tensor([rows + [0] * (width - len(rows)) for rows in members], device=self.device)
        self.column = torch.tensor(columns, device=self.device)

    def prepare(self, rows: int, new: int = 1) -> Tensor:
        """Return the positions ``[rows, new]`` of the tokens that the next forward pass reads."""
        self.index = torch.arange(rows, device=self.device)[:, None]
        self.columns = self.row_slots.lengths[:rows, None].long() + torch.arange(new, device=self.device)
        self._hidden_by_window: dict[int | None, Tensor] = {}
        if self.prompt_slots is None:
            return self.columns
        return self.columns + self.prompt_slots.lengths[self.prompt[:rows]][:, None]

    def advance(self) -> None:
        """Count the one new token of every row that all layers have now read."""
        rows = len(self.index)
        self.row_slots.lengths[:rows] += self.live[:rows]
        self.longest += 1

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Keep the keys and values of new tokens, and return the attention of these tokens.

        Args:
            layer: 0-based index of the layer.
            query: ``[R, heads, n, d]``.
            key: ``[R, key heads, n, d]``.
            value: ``[R, key heads, n, v]``; ``v`` is ``d`` but for latent attention.
            scaling: Factor on the scores; ``d ** -0.5`` if None.
            window: Width of the sliding window, in tokens; None for full attention.
            softcap: Bound of the scores (Gemma 2); None for no bound.

        Returns:
            ``[R, n, heads, v]``, in the dtype of ``query``.
        """
        if self.even:
            self.row_slots.extend(layer, key, value, self.longest)
        else:
            self.row_slots.write(layer, key.transpose(1, 2), value.transpose(1, 2), self.index, self.columns)
        rows, heads, new, size = query.shape
        groups, end = heads // key.shape[1], self.longest + new
        grouped = query.reshape(rows, key.shape[1], groups * new, size) * (size**-0.5 if scaling is None else scaling)
        scores = grouped @ self.row_slots.keys[layer][:rows, :, :end].mT
        before = self._before(layer)
        if before is not None:
            scores = torch.cat([self._with_prompts(grouped, before[0].mT), scores], -1)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        hidden = self._hidden(new, window, groups, 0 if before is None else self.longest_prompt)
        weights = scores.float().masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1).to(query.dtype)
        output = weights[..., -end:] @ self.row_slots.values[layer][:rows, :, :end]
        if before is not None:
            output = output + self._with_prompts(weights[..., :-end], before[1])
        return output.view(rows, heads, new, -1).transpose(1, 2)

    def _before(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return keys and values of the shared prompts, ``[P, key heads, longest, d]``; None if no prompt holds a token."""
        if self.prompt_slots is None or not self.longest_prompt:
            return None
        keys, values = self.prompt_slots.keys[layer], self.prompt_slots.values[layer]
        return keys[: len(self.table), :, : self.longest_prompt], values[: len(self.table), :, : self.longest_prompt]

    def _with_prompts(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left [R, heads, m, k] @ right [P, heads, k, l]``, right of each row's prompt: ``[R, heads, m, l]``."""
        rows, heads, m, k = left.shape
        count, width = self.table.shape
        together = left[self.table].transpose(1, 2).reshape(count, heads, width * m, k) @ right
        by_place = together.view(count, heads, width, m, -1).transpose(1, 2)
        return by_place[self.prompt[:rows], self.column]

    def _hidden(self, new: int, window: int | None, groups: int, before: int) -> Tensor:
        """Return which positions a new token does not see: ``[R, 1, groups * new or 1, before + longest + new]`` bool."""
        if window not in self._hidden_by_window:
            last = self.columns[..., None]
            held = torch.arange(self.longest + new, device=self.device)
            hidden = held > last if window is None else (held > last) | (held <= last - window)
            if before:
                assert self.prompt_slots is not None
                lengths = self.prompt_slots.lengths[self.prompt[: len(last)]][:, None, None]
                columns = torch.arange(before, device=self.device)
                beyond = (columns >= lengths).expand(-1, new, -1)
                if window is not None:
                    beyond = beyond | (columns <= lengths + last - window)
                hidden = torch.cat([beyond, hidden], -1)
            self._hidden_by_window[window] = (hidden if new == 1 else hidden.repeat(1, groups, 1))[:, None]
        return self._hidden_by_window[window]
