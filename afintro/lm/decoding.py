"""Attention while rows are continued: keys and values of a prompt lie in memory once, however many rows continue it.

Each row attends to the prefix of its prompt and to its own new tokens, grouped heads unrepeated, live positions only.
The rows of one prompt read its prefix together, as one matrix product. Softmax over both parts is that of one sequence,
so a row's output is what it would be alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

COMPACT = 0.75  # prompts that no row continues are dropped once fewer than this share is left


@dataclass
class Prefix:
    """Keys and values of P prompts, padded on the right.

    Args:
        lengths: ``[P]`` int64, tokens of each.
        keys: ``[P, key heads, longest, d]`` by layer.
        values: Likewise.
    """

    lengths: Tensor
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def collect(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take the keys and values ``[1, key heads, T, d]`` of a packed row that holds the prompts end to end."""
        starts = torch.cumsum(self.lengths, 0) - self.lengths
        columns = torch.arange(int(self.lengths.max()), device=key.device)
        index = (starts[:, None] + columns).clamp(max=key.shape[2] - 1)
        self.keys[layer] = key[0][:, index].transpose(0, 1).contiguous()
        self.values[layer] = value[0][:, index].transpose(0, 1).contiguous()

    def keep(self, prompts: Tensor) -> None:
        """Drop all other prompts."""
        self.lengths = self.lengths[prompts]
        longest = int(self.lengths.max()) if len(prompts) else 0
        for kept in (self.keys, self.values):
            for layer, tensor in kept.items():
                kept[layer] = tensor[prompts, :, :longest]


class Decoding:
    """The state of R rows that are being continued.

    Args:
        prefix: Of their prompts; may be that of no token at all.
        rows: Prompt of each row.
        capacity: Most new tokens of a row.
    """

    def __init__(self, prefix: Prefix, rows: Sequence[int], capacity: int) -> None:
        self.prefix, self.capacity = prefix, capacity
        self.seen = 0  # new tokens of every row whose keys are kept
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._place(torch.tensor(rows, dtype=torch.long, device=prefix.lengths.device))

    def _place(self, prompts: Tensor) -> None:
        """Lay the rows out as a table ``[P, C]`` of the rows of each prompt."""
        self.prompts = prompts
        counts = torch.bincount(prompts, minlength=len(self.prefix.lengths))
        order = torch.argsort(prompts, stable=True)
        starts = torch.cumsum(counts, 0) - counts
        self.column = torch.empty_like(prompts)
        self.column[order] = torch.arange(len(prompts), device=prompts.device) - starts[prompts[order]]
        width = int(counts.max()) if len(prompts) else 0
        table = torch.zeros(len(counts), width, dtype=torch.long, device=prompts.device)
        table[prompts, self.column] = torch.arange(len(prompts), device=prompts.device)
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}
        self.table = table  # a place without a row holds row 0: its result is not taken
        self.one_each = torch.equal(prompts, torch.arange(len(counts), device=prompts.device))

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        for kept in (self.keys, self.values):
            for layer, tensor in kept.items():
                kept[layer] = tensor[rows]
        prompts = self.prompts[rows]
        used = torch.unique(prompts)
        if len(used) < COMPACT * len(self.prefix.lengths):
            self.prefix.keep(used)
            prompts = torch.searchsorted(used, prompts)
        self._place(prompts)

    def advance(self, tokens: int) -> None:
        """So many new tokens of every row were read by all layers."""
        self.seen += tokens
        self._masks = {}

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
        rows, heads, new, size = query.shape
        groups = heads // key.shape[1]
        own_keys, own_values = self._append(layer, key, value)
        grouped = query.reshape(rows, key.shape[1], groups * new, size) * (size**-0.5 if scaling is None else scaling)
        known = layer in self.prefix.keys
        scores = grouped @ own_keys.mT
        if known:
            scores = torch.cat([self._with_prefix(grouped, self.prefix.keys[layer].mT), scores], -1)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        longest = self.prefix.keys[layer].shape[2] if known else 0
        hidden = self._hidden(new, longest, window, groups)
        weights = scores.float().masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1).to(query.dtype)
        output = weights[..., longest:] @ own_values
        if known:
            output = output + self._with_prefix(weights[..., :longest], self.prefix.values[layer])
        return output.view(rows, heads, new, size).transpose(1, 2)

    def _append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        rows, heads, new, _ = key.shape
        end = self.seen + new
        for kept, tensor in ((self.keys, key), (self.values, value)):
            held = kept.get(layer)
            if held is None or held.shape[2] < end:  # twice as much room each time, up to what can be needed
                room = min(max(16, 2 * end), max(self.capacity, end))
                grown = tensor.new_empty(rows, heads, room, tensor.shape[3])
                if held is not None:
                    grown[:, :, : self.seen] = held[:, :, : self.seen]
                kept[layer] = grown
            kept[layer][:, :, self.seen : end] = tensor
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def _with_prefix(self, left: Tensor, right: Tensor) -> Tensor:
        """``left [R, heads, m, k] @ right [P, heads, k, l]`` of each row's prompt: ``[R, heads, m, l]``."""
        if self.one_each:
            return left @ right
        _, heads, m, k = left.shape
        width = self.table.shape[1]
        together = left[self.table].transpose(1, 2).reshape(len(self.table), heads, width * m, k) @ right
        by_place = together.view(len(self.table), heads, width, m, -1).transpose(1, 2)
        return by_place[self.prompts, self.column]

    def _hidden(self, new: int, longest: int, window: int | None, groups: int) -> Tensor:
        """``[R, 1, groups * new, longest + seen + new]``: positions that a new token does not see; the same in all layers."""
        key = (new, longest, window)
        if key not in self._masks:
            device = self.prompts.device
            lengths = self.prefix.lengths[self.prompts][:, None, None]
            queries = self.seen + torch.arange(new, device=device)[:, None]
            columns = torch.arange(longest, device=device)
            own = torch.arange(self.seen + new, device=device)
            ahead = torch.cat([lengths + queries - columns, (queries - own).expand(len(lengths), -1, -1)], -1)
            beyond = torch.cat([(columns >= lengths).expand(-1, new, -1), ahead[..., longest:] < 0], -1)
            hidden = beyond if window is None else beyond | (ahead >= window)
            self._masks[key] = hidden.repeat(1, groups, 1)[:, None]
        return self._masks[key]
