"""Decode on CUDA: a variable-length kernel computes the attention of one new token a row and reads live positions once.

The kernel is told that each key head of a slot is a sequence with one head, and that the query heads that share the key head
are the queries of that sequence. Keys and values are then read once for all these heads, and for all rows that share the
slot. Only the contents of tensors depend on the number of tokens, so a step can be recorded in a CUDA graph.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from afintro.lm.decoding import Decoding, KVSlots

SMALLEST = 16  # smallest number of row slots of a step: a step with fewer slots is hardly faster


def flash(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    bounds: Tensor,
    lengths: Tensor,
    most: int,
    scaling: float | None,
) -> tuple[Tensor, Tensor]:
    """Compute the attention of queries to all tokens of their sequence, without a causal mask.

    Runs FlashAttention (Dao 2023, arXiv:2307.08691) on CUDA, in float16 or bfloat16.

    Args:
        query: ``[N, d]``, the queries of one sequence next to each other.
        keys: ``[S, capacity, d]``.
        values: ``[S, capacity, d]``.
        bounds: ``[S + 1]`` int32, the index of the first query of each sequence, and N.
        lengths: ``[S]`` int32, the number of tokens of each sequence.
        most: Upper bound on the number of queries of a sequence.
        scaling: Factor on the scores; ``d ** -0.5`` if None.

    Returns:
        The attention ``[N, d]``, and the logarithm of the sum of exponentials of each query's scores ``[N]`` float32. A
        sequence without tokens gives zeros and minus infinity.
    """
    count, capacity, size = keys.shape
    starts = torch.arange(0, (count + 1) * capacity, capacity, dtype=torch.int32, device=keys.device)
    output, total, *_ = torch.ops.aten._flash_attention_forward(
        query[:, None], keys.reshape(-1, 1, size), values.reshape(-1, 1, size), bounds, starts, most, capacity,
        0.0, False, False, scale=scaling, seqused_k=lengths,
    )  # fmt: skip
    # The kernel returns plus infinity for a sequence without tokens.
    return output[:, 0], total[0].masked_fill(total[0] == torch.inf, -torch.inf)


class FlashDecoding(Decoding):
    """Decode as :class:`Decoding` does, by the kernel where it applies: half precision, no soft-capping, no window in reach."""

    def __init__(self, row_slots: KVSlots, prompt_slots: KVSlots | None) -> None:
        super().__init__(row_slots, prompt_slots)
        self.capturable = row_slots.lengths.is_cuda
        self.reach = row_slots.capacity + (0 if prompt_slots is None else prompt_slots.capacity)
        if prompt_slots is not None:
            self.count = torch.zeros(prompt_slots.count, dtype=torch.int32, device=self.device)  # rows of each prompt
            self.start = torch.zeros_like(self.count)  # rows of the prompts before it
            self.rank = torch.zeros_like(self.prompt)  # of each row among those of its prompt

    def size(self, rows: int) -> int:
        """Return the number of row slots halved as often as it still covers ``rows``: few sizes, because each is recorded."""
        size = self.row_slots.count
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
        """Return the positions ``[rows, new]`` of the tokens that the next forward pass reads."""
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
        """Keep the keys and values of new tokens, and return the attention of these tokens.

        Args:
            layer: 0-based index of the layer.
            query: ``[R, heads, n, d]``.
            key: ``[R, key heads, n, d]``.
            value: ``[R, key heads, n, d]``.
            scaling: Factor on the scores; ``d ** -0.5`` if None.
            window: Width of the sliding window, in tokens; None for full attention.
            softcap: Bound of the scores; None for no bound.

        Returns:
            ``[R, n, heads, d]``, in the dtype of ``query``.
        """
        if not (
            query.shape[2] == 1
            and softcap is None
            and (window is None or window >= self.reach)
            and fits_flash(query, key, value)
        ):
            self.capturable = False
            return super().attend(layer, query, key, value, scaling, window, softcap)
        self.row_slots.write(layer, key.transpose(1, 2), value.transpose(1, 2), self.index, self.columns)
        rows, heads, _, size = query.shape
        key_heads, groups = key.shape[1], heads // key.shape[1]
        bounds, lengths, *shared = self._plan(rows, key_heads, groups)
        flat = query.reshape(-1, size)
        output, total = flash(flat, *_sequences(self.row_slots, layer, rows), bounds, lengths, groups, scaling)
        if self.prompt_slots is not None and layer in self.prompt_slots.keys:
            sequences = _sequences(self.prompt_slots, layer)
            before, before_total = _flash_sorted(flat, sequences, shared, rows * groups, groups, scaling)
            # Each part has its own softmax; the sums of exponentials say how much each part counts in the softmax over both.
            share = torch.sigmoid(before_total - total)[:, None]
            output = torch.lerp(output.float(), before.float(), share).to(query.dtype)
        return output.view(rows, 1, heads, size)

    def _plan(self, rows: int, key_heads: int, groups: int) -> tuple[Tensor, ...]:
        """Return bounds of queries and lengths of sequences; they are the same in all layers with equally many heads.

        Returns:
            Bounds and lengths of the row slots. Where prompts are shared, these follow: the place of each row and key head
            when sorted by prompt and key head, ``[R * key heads]``, and the bounds and lengths of the prompt slots.
        """
        key = (key_heads, groups)
        if key not in self._plans:
            heads = torch.arange(key_heads, dtype=torch.int32, device=self.device)
            bounds = torch.arange(rows * key_heads + 1, dtype=torch.int32, device=self.device) * groups
            plan: tuple[Tensor, ...] = (bounds, _each(self.row_slots.lengths[:rows] + 1, key_heads))
            if self.prompt_slots is not None:
                prompt = self.prompt[:rows]
                first = self.start[:, None] * key_heads + heads * self.count[:, None]  # [P, key heads]
                order = first[prompt] + self.rank[:rows, None]
                plan += (
                    order.flatten(),
                    torch.cat([first.flatten() * groups, bounds[-1:]]),
                    _each(self.prompt_slots.lengths, key_heads),
                )
            self._plans[key] = plan
        return self._plans[key]


def fits_flash(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether the kernel accepts tensors of these devices, dtypes and widths.

    Args:
        query: ``[R, heads, n, d]``.
        key: ``[R, key heads, n, d]``.
        value: ``[R, key heads, n, d]``.
    """
    half = query.dtype == key.dtype == value.dtype and query.dtype in (torch.bfloat16, torch.float16)
    size = query.shape[-1]
    return query.is_cuda and half and size % 8 == 0 and size <= 256 and size == value.shape[-1]


def _flash_sorted(
    query: Tensor,
    sequences: tuple[Tensor, Tensor],
    plan: Sequence[Tensor],
    most: int,
    groups: int,
    scaling: float | None,
) -> tuple[Tensor, Tensor]:
    """Call :func:`flash` with the queries sorted by prompt, and return its results in the order of ``query [N, d]``."""
    order, bounds, lengths = plan
    size = query.shape[-1]
    by_prompt = torch.empty_like(query).view(-1, groups, size)
    by_prompt[order] = query.view(-1, groups, size)
    output, total = flash(by_prompt.view(-1, size), *sequences, bounds, lengths, most, scaling)
    return output.view(-1, groups, size)[order].view(-1, size), total.view(-1, groups)[order].flatten()


def _each(lengths: Tensor, key_heads: int) -> Tensor:
    return (
        lengths[:, None].expand(-1, key_heads).flatten().contiguous()
    )  # flatten returns a single row as an expanded view


def _sequences(slots: KVSlots, layer: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return keys and values ``[count * key heads, capacity, d]`` of the first ``count`` slots (all if None)."""
    return slots.keys[layer][:count].flatten(0, 1), slots.values[layer][:count].flatten(0, 1)
