"""Decoding on CUDA: attention of one new token a row by a variable-length kernel, which reads live positions once.

To the kernel each key head of a slot is a sequence of its own, with one head, and the query heads that share it are its
queries: keys and values are read once for all of them, and for all rows that share the slot. Nothing depends on the
number of tokens but the contents of tensors, so a step can be recorded in a CUDA graph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from afintro.lm.decoding import Decoding, Slots

SMALLEST = 16  # row slots below which a smaller step would hardly be faster


def flash(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bounds: Tensor,
    lengths: Tensor,
    most: int,
    scaling: float | None,
) -> tuple[Tensor, Tensor]:
    """Attention of queries to all tokens of their sequence (no causal mask); CUDA, float16 or bfloat16.

    Args:
        query: ``[N, d]``, those of a sequence together.
        keys: ``[S, capacity, d]``.
        values: Likewise.
        bounds: ``[S + 1]`` int32, where the queries of each sequence begin, and N.
        lengths: ``[S]`` int32, tokens of each sequence, from the first.
        most: Most queries of a sequence, or more.
        scaling: Of the scores; ``d ** -0.5`` if None.

    Returns:
        ``[N, d]``, and the logarithm of the sum of exponentials of each query's scores ``[N]`` float32; zeros and minus
        infinity for a sequence without tokens.
    """
    count, capacity, size = keys.shape
    starts = torch.arange(0, (count + 1) * capacity, capacity, dtype=torch.int32, device=keys.device)
    output, total, *_ = torch.ops.aten._flash_attention_forward(
        query[:, None], keys.reshape(-1, 1, size), values.reshape(-1, 1, size), bounds, starts, most, capacity,
        0.0, False, False, scale=scaling, seqused_k=lengths,
    )  # fmt: skip
    # The kernel says plus infinity for a sequence without tokens.
    return output[:, 0], total[0].masked_fill(total[0] == torch.inf, -torch.inf)


class FlashDecoding(Decoding):
    """As :class:`Decoding`, by the kernel where it applies: half precision, no soft-capping, no window in reach."""

    def __init__(self, own: Slots, prompts: Slots | None) -> None:
        super().__init__(own, prompts)
        self.capturable = own.lengths.is_cuda
        self.reach = own.capacity + (0 if prompts is None else prompts.capacity)
        if prompts is not None:
            self.count = torch.zeros(prompts.count, dtype=torch.int32, device=self.device)  # rows of each prompt
            self.start = torch.zeros_like(self.count)  # rows of the prompts before it
            self.rank = torch.zeros_like(self.prompt)  # of each row among those of its prompt

    def size(self, rows: int) -> int:
        """All row slots, or half of them, or half of these: few sizes, as each is recorded."""
        size = self.own.count
        while size // 2 >= max(rows, SMALLEST):
            size //= 2
        return size

    def _share(self, prompts: Sequence[int], count: int) -> None:
        super()._share(prompts, count)
        self.rank[: len(prompts)] = self.column
        rows = torch.bincount(self.prompt[: len(prompts)], minlength=len(self.count))
        self.count.copy_(rows)
        self.start.copy_(rows.cumsum(0) - rows)

    def prepare(self, rows: int, new: int = 1) -> Tensor:
        """Positions ``[rows, new]`` of the tokens that the next forward pass reads."""
        self._plans: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        return super().prepare(rows, new)

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
        """Attention of new tokens, whose keys and values are kept; see :meth:`Decoding.attend`."""
        if not (
            query.shape[2] == 1
            and softcap is None
            and (window is None or window >= self.reach)
            and fits_flash(query, key, value)
        ):
            self.capturable = False
            return super().attend(layer, query, key, value, scaling, window, softcap)
        self.own.write(layer, key.transpose(1, 2), value.transpose(1, 2), self.index, self.columns)
        rows, heads, _, size = query.shape
        key_heads, groups = key.shape[1], heads // key.shape[1]
        bounds, lengths, *shared = self._plan(rows, key_heads, groups)
        flat = query.reshape(-1, size)
        output, total = flash(flat, *_sequences(self.own, layer, rows), bounds, lengths, groups, scaling)
        if self.prompts is not None and layer in self.prompts.keys:
            order, bounds, lengths = shared
            sorted_query = torch.empty_like(flat).view(-1, groups, size)
            sorted_query[order] = flat.view(-1, groups, size)
            before, before_total = flash(
                sorted_query.view(-1, size), *_sequences(self.prompts, layer), bounds, lengths, rows * groups, scaling
            )
            before = before.view(-1, groups, size)[order].view(-1, size)
            before_total = before_total.view(-1, groups)[order].flatten()
            share = torch.sigmoid(before_total - total)[:, None]
            output = torch.lerp(output.float(), before.float(), share).to(query.dtype)
        return output.view(rows, 1, heads, size)

    def _plan(self, rows: int, key_heads: int, groups: int) -> tuple[Tensor, ...]:
        """Bounds of queries and lengths of sequences, the same in all layers with as many heads.

        Of the rows' own slots; then, where prompts are shared, the place of each row and key head when sorted by prompt
        and key head ``[R * key heads]``, and bounds and lengths of these.
        """
        key = (key_heads, groups)
        if key not in self._plans:
            heads = torch.arange(key_heads, dtype=torch.int32, device=self.device)
            bounds = torch.arange(rows * key_heads + 1, dtype=torch.int32, device=self.device) * groups
            plan: tuple[Tensor, ...] = (bounds, _each(self.own.lengths[:rows] + 1, key_heads))
            if self.prompts is not None:
                prompt = self.prompt[:rows]
                first = self.start[:, None] * key_heads + heads * self.count[:, None]  # [P, key heads]
                order = first[prompt] + self.rank[:rows, None]
                plan += (
                    order.flatten(),
                    torch.cat([first.flatten() * groups, bounds[-1:]]),
                    _each(self.prompts.lengths, key_heads),
                )
            self._plans[key] = plan
        return self._plans[key]


def fits_flash(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes such tensors."""
    half = query.dtype == key.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float16)
    return query.is_cuda and half and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256


def _each(lengths: Tensor, key_heads: int) -> Tensor:
    return lengths[:, None].expand(-1, key_heads).flatten().contiguous()  # flatten leaves one row as it is expanded


def _sequences(slots: Slots, layer: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Keys and values ``[count * key heads, capacity, d]`` of the first ``count`` slots."""
    return slots.keys[layer][:count].flatten(0, 1), slots.values[layer][:count].flatten(0, 1)
