"""Attention while rows are continued: keys and values in slots, grouped heads unrepeated, live positions only.

A row that shares its prompt with others attends to the prompt's slot and to its own new tokens; the rows of one prompt
read it together, as one matrix product. Where no prompt is shared, a row's new tokens follow its prompt in one slot.
Softmax over all of it is that of one sequence, so a row's output is what it would be alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Slots:
    """Keys and values of sequences, each in a slot of its own, filled from the left.

    Args:
        count: Number of slots.
        capacity: Most tokens of a sequence.
        device: Where they lie.

    Attributes:
        lengths: ``[count]`` int32, tokens held.
        keys: ``[count, key heads, capacity, d]`` by layer, made when a layer's first arrive, in their dtype.
        values: Likewise.
    """

    def __init__(self, count: int, capacity: int, device: torch.device) -> None:
        self.count, self.capacity = count, capacity
        self.lengths = torch.zeros(count, dtype=torch.int32, device=device)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def write(self, layer: int, key: Tensor, value: Tensor, slots: Tensor, columns: Tensor) -> None:
        """Put ``key`` and ``value [..., key heads, d]`` at ``slots`` and ``columns``, which broadcast to ``[...]``."""
        for kept, tensor in ((self.keys, key), (self.values, value)):
            self._room(kept, layer, tensor, tensor.shape[-2])[slots, :, columns] = tensor

    def extend(self, layer: int, key: Tensor, value: Tensor, length: int) -> None:
        """Put ``key`` and ``value [R, key heads, n, d]`` behind the ``length`` tokens of each of the first R slots: faster."""
        rows, heads, new, _ = key.shape
        for kept, tensor in ((self.keys, key), (self.values, value)):
            self._room(kept, layer, tensor, heads)[:rows, :, length : length + new] = tensor

    def _room(self, kept: dict[int, Tensor], layer: int, like: Tensor, heads: int) -> Tensor:
        if layer not in kept:
            # Zeros: what was never written is read as well, with weight 0, and must not be NaN.
            kept[layer] = like.new_zeros(self.count, heads, self.capacity, like.shape[-1])
        return kept[layer]

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole slots onto others."""
        if not sources:
            return
        source, target = (torch.tensor(slots, device=self.lengths.device) for slots in (sources, targets))
        for kept in (self.keys, self.values):
            for tensor in kept.values():
                tensor[target] = tensor[source]


class Filling:
    """Takes the keys and values of a packed row, whose sequences go to slots.

    Args:
        slots: Where they are kept.
        targets: Slot of each sequence.
        lengths: Tokens of each sequence.
    """

    def __init__(self, slots: Slots, targets: Sequence[int], lengths: Sequence[int]) -> None:
        device = slots.lengths.device
        self.slots = slots
        index = [slot for slot, length in zip(targets, lengths, strict=True) for _ in range(length)]
        columns = [column for length in lengths for column in range(length)]
        self.index = torch.tensor(index, dtype=torch.long, device=device)
        self.columns = torch.tensor(columns, dtype=torch.long, device=device)

    def collect(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take ``[1, key heads, T, d]`` each."""
        self.slots.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1), self.index, self.columns)


class Decoding:
    """Rows that are being continued, in slots that are refilled.

    Args:
        own: A slot a row, of its new tokens; where there are no ``prompts``, of its prompt and new tokens.
        prompts: Slots of prompts that rows share.
    """

    capturable = False  # whether a step could be recorded and replayed: its shapes depend on lengths

    def __init__(self, own: Slots, prompts: Slots | None) -> None:
        self.own, self.prompts = own, prompts
        self.device = own.lengths.device
        self.prompt = torch.zeros(own.count, dtype=torch.long, device=self.device)  # of each row
        self.live = torch.zeros(own.count, dtype=torch.int32, device=self.device)
        self.longest = self.longest_prompt = 0
        self.even = False  # whether all rows hold equally many tokens in their own slots

    def size(self, rows: int) -> int:
        """How many row slots, from the first, a step goes through if there are so many rows."""
        return rows

    def place(self, prompts: Sequence[int | None], lengths: Sequence[int], prompt_lengths: Sequence[int]) -> None:
        """Say which rows there are.

        Args:
            prompts: Prompt of each row slot, from the first; None for a slot without a row.
            lengths: Tokens held in each row's own slot.
            prompt_lengths: Tokens of each shared prompt, from the first slot.
        """
        rows, held = len(prompts), zip(prompts, lengths, strict=True)
        known = [0 if prompt is None else prompt for prompt in prompts]  # a slot without a row reads harmlessly along
        self.prompt[:rows] = torch.tensor(known, device=self.device)
        self.live[:rows] = torch.tensor([prompt is not None for prompt in prompts], device=self.device)
        own = [0 if prompt is None else length for prompt, length in held]
        self.own.lengths[:rows] = torch.tensor(own, dtype=torch.int32, device=self.device)
        self.longest, self.longest_prompt = max(own, default=0), max(prompt_lengths, default=0)
        self.even = min(own, default=0) == self.longest
        if self.prompts is not None:
            self.prompts.lengths[: len(prompt_lengths)] = torch.tensor(prompt_lengths, device=self.device)
            self._share(known, len(prompt_lengths))

    def _share(self, prompts: Sequence[int], count: int) -> None:
        """Lay the rows out as a table ``[P, C]`` of the rows of each prompt."""
        members: list[list[int]] = [[] for _ in range(count)]
        columns = []
        for row, prompt in enumerate(prompts):
            columns.append(len(members[prompt]))
            members[prompt].append(row)
        width = max(map(len, members), default=0)
        # A place without a row holds row 0: its result is not taken.
        self.table = torch.tensor([rows + [0] * (width - len(rows)) for rows in members], device=self.device)
        self.column = torch.tensor(columns, device=self.device)

    def prepare(self, rows: int, new: int = 1) -> Tensor:
        """Positions ``[rows, new]`` of the tokens that the next forward pass reads."""
        self.index = torch.arange(rows, device=self.device)[:, None]
        self.columns = self.own.lengths[:rows, None].long() + torch.arange(new, device=self.device)
        self._hidden_by_window: dict[int | None, Tensor] = {}
        if self.prompts is None:
            return self.columns
        return self.columns + self.prompts.lengths[self.prompt[:rows]][:, None]

    def advance(self) -> None:
        """One new token of every row was read by all layers."""
        rows = len(self.index)
        self.own.lengths[:rows] += self.live[:rows]
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
        """Attention of new tokens, whose keys and values are kept.

        Args:
            layer: Index of the layer.
            query: ``[R, heads, n, d]``.
            key: ``[R, key heads, n, d]``.
            value: Likewise.
            scaling: Of the scores; ``d ** -0.5`` if None.
            window: Width of a sliding window, in tokens.
            softcap: Bound of the scores.

        Returns:
            ``[R, n, heads, d]``.
        """
        if self.even:
            self.own.extend(layer, key, value, self.longest)
        else:
            self.own.write(layer, key.transpose(1, 2), value.transpose(1, 2), self.index, self.columns)
        rows, heads, new, size = query.shape
        groups, end = heads // key.shape[1], self.longest + new
        grouped = query.reshape(rows, key.shape[1], groups * new, size) * (size**-0.5 if scaling is None else scaling)
        scores = grouped @ self.own.keys[layer][:rows, :, :end].mT
        before = self._before(layer)
        if before is not None:
            scores = torch.cat([self._with_prompts(grouped, before[0].mT), scores], -1)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        hidden = self._hidden(new, window, groups, 0 if before is None else self.longest_prompt)
        weights = scores.float().masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1).to(query.dtype)
        output = weights[..., -end:] @ self.own.values[layer][:rows, :, :end]
        if before is not None:
            output = output + self._with_prompts(weights[..., :-end], before[1])
        return output.view(rows, heads, new, size).transpose(1, 2)

    def _before(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of shared prompts, ``[P, key heads, longest, d]``; None where none holds a token."""
        if self.prompts is None or not self.longest_prompt:
            return None
        keys, values = self.prompts.keys[layer], self.prompts.values[layer]
        return keys[: len(self.table), :, : self.longest_prompt], values[: len(self.table), :, : self.longest_prompt]

    def _with_prompts(self, left: Tensor, right: Tensor) -> Tensor:
        """``left [R, heads, m, k] @ right [P, heads, k, l]`` of each row's prompt: ``[R, heads, m, l]``."""
        rows, heads, m, k = left.shape
        count, width = self.table.shape
        together = left[self.table].transpose(1, 2).reshape(count, heads, width * m, k) @ right
        by_place = together.view(count, heads, width, m, -1).transpose(1, 2)
        return by_place[self.prompt[:rows], self.column]

    def _hidden(self, new: int, window: int | None, groups: int, before: int) -> Tensor:
        """``[R, 1, groups * new or 1, before + longest + new]``: what a new token does not see; the same in all layers."""
        if window not in self._hidden_by_window:
            last = self.columns[..., None]
            own = torch.arange(self.longest + new, device=self.device)
            hidden = own > last if window is None else (own > last) | (own <= last - window)
            if before:
                assert self.prompts is not None
                lengths = self.prompts.lengths[self.prompt[: len(last)]][:, None, None]
                columns = torch.arange(before, device=self.device)
                beyond = (columns >= lengths).expand(-1, new, -1)
                if window is not None:
                    beyond = beyond | (columns <= lengths + last - window)
                hidden = torch.cat([beyond, hidden], -1)
            self._hidden_by_window[window] = (hidden if new == 1 else hidden.repeat(1, groups, 1))[:, None]
        return self._hidden_by_window[window]
