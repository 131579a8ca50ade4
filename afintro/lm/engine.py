"""Continue prompts: jobs queue for slots, their rows are continued together, and slots are refilled as rows end.

The engine reads all but the last token of a prompt in one pass, once for all rows that share the prompt. Decode steps then
read the last token and each new token, all rows together. The other rows in a step do not change a row's result.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from afintro.lm.decoding import Decoding, KVSlots, PrefixWriter
from afintro.lm.flash_decoding import FlashDecoding
from afintro.lm.forward import packed_logits
from afintro.lm.interventions import Intervention, at_rows
from afintro.lm.sampling import RowDraws, Sampling
from afintro.lm.spans import Located
from afintro.lm.step import DecodeStep, room_for, set_rows

Prompt = Sequence[int]

PREFILL = 32_768  # most prompt tokens in one pass; a single longer prompt is read in a pass of its own
REFILL = 0.25  # share of row slots that must be free before the next prompts are read


@dataclass(eq=False)
class Continuation:
    """One continuation of a prompt.

    Args:
        first: Interventions while the last token of the prompt is read; their positions are ignored.
        later: Interventions while each new token is read; their positions are ignored.
        tokens: The new tokens, which the engine fills in.
        stream: Where its tokens are drawn from, see :func:`afintro.lm.sampling.stream_of`; without sampling of no effect.
    """

    first: Sequence[Intervention] = ()
    later: Sequence[Intervention] = ()
    tokens: list[int] = field(default_factory=list)
    stream: int = 0


@dataclass(eq=False)
class Job:
    """A prompt and its continuations.

    Args:
        prompt: Token ids, at least one.
        continuations: At least one.
        changes: Interventions while all but the last token are read, positions counted in the prompt.
    """

    prompt: Prompt
    continuations: Sequence[Continuation]
    changes: Sequence[Intervention] = ()


def read_prefixes(
    model: nn.Module, slots: KVSlots, targets: Sequence[int], prefixes: Sequence[Prompt], changes: Sequence[Located]
) -> None:
    """Read every prefix and keep its keys and values in a slot.

    Args:
        model: A causal LM that uses packed attention.
        slots: The slots to write to.
        targets: The slot of each prefix.
        prefixes: Token ids of each prefix; a prefix may be empty.
        changes: Interventions, positions counted in the row that all prefixes make end to end.
    """
    device, lengths = slots.lengths.device, [len(prefix) for prefix in prefixes]
    writer = PrefixWriter(slots, targets, lengths)
    filled = [length for length in lengths if length]
    if not filled:
        return
    bounds = torch.tensor([0, *filled]).cumsum(0)
    ids = torch.tensor([token for prefix in prefixes for token in prefix], device=device)
    no_logits = torch.zeros(0, dtype=torch.long, device=device)
    packed_logits(model, ids, bounds.to(device, torch.int32), no_logits, changes, writer)


def starts_of(sequences: Sequence[Prompt]) -> list[int]:
    """Return where each sequence begins in the row that all sequences make end to end."""
    return [0, *accumulate(map(len, sequences))][:-1]


@dataclass
class _Live:
    """A continuation in a row slot: the token that it reads next, and how many tokens its slot holds."""

    continuation: Continuation
    job: Job
    held: int
    token: int

    @property
    def changes(self) -> Sequence[Intervention]:
        """Interventions on its next token."""
        return self.continuation.later if self.continuation.tokens else self.continuation.first


class Engine:
    """Continue the rows of jobs by their most likely tokens, or by tokens that are drawn.

    Args:
        model: A causal LM that uses packed attention (:func:`afintro.lm.attention.uses_packed_attention`), in eval mode.
        jobs: At least one; the longest prompts are read first.
        max_new_tokens: Largest number of new tokens of a continuation; at least 1.
        eos_ids: Token ids before which a continuation ends.
        batch_size: Number of row slots; at least as many are made as the largest job has continuations.
        done: Called with the jobs just finished.
        prefill_tokens: Largest number of prompt tokens in one pass; a longer prompt is read in a pass of its own.
        sampling: How tokens are drawn; None chooses the most likely.
    """

    def __init__(
        self,
        model: nn.Module,
        jobs: Sequence[Job],
        *,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        batch_size: int,
        done: Callable[[list[Job]], Any],
        prefill_tokens: int = PREFILL,
        sampling: Sampling | None = None,
    ) -> None:
        self.model, self.max_new_tokens, self.eos, self.done = model, max_new_tokens, set(eos_ids), done
        self.prefill_tokens = prefill_tokens
        self.queue = deque(sorted(jobs, key=lambda job: -len(job.prompt)))
        sizes = sorted(len(job.continuations) for job in jobs)
        count = min(max(batch_size, sizes[-1]), sum(sizes))
        self.state = _state(model, count, sizes, len(self.queue[0].prompt) - 1, max_new_tokens)
        continuations = [continuation for job in jobs for continuation in job.continuations]
        changes = (of_token for c in continuations for of_token in (c.first, c.later))
        self.interventions = room_for(changes, count, self.state.device)
        self.draws = None if sampling is None else RowDraws(sampling, count, self.state.device)
        self.rows: list[_Live | None] = [None] * count  # by row slot
        shared = self.state.prompt_slots
        self.sharing: list[Job | None] = [None] * (0 if shared is None else shared.count)  # by prompt slot
        self.left = Counter({job: len(job.continuations) for job in jobs})

    def run(self) -> None:
        """Finish all jobs.

        Raises:
            RuntimeError: A hook did not fire exactly once in a step.
            ValueError: An intervention does not fit the model.
        """
        step = DecodeStep(self.model, self.state, list(self.interventions.values()), self.draws)
        changed = False
        while True:
            changed = self._refill() or changed
            rows = sum(live is not None for live in self.rows)
            if not rows:
                return
            size = self.state.size(rows)
            if changed:
                self._compact(size)
                self._upload(step, size)
            changed = self._take(step(size))

    def _refill(self) -> bool:
        """Read the next prompts if there is room, and return whether any were read."""
        free = [place for place, live in enumerate(self.rows) if live is None]
        if len(free) < REFILL * len(self.rows):
            return False
        taken: list[tuple[Job, int]] = []
        while (
            self.queue and len(self.queue[0].continuations) <= len(free) and (not self.sharing or None in self.sharing)
        ):
            job = self.queue.popleft()
            slot, held = free[0], len(job.prompt) - 1
            if self.sharing:
                slot, held = self.sharing.index(None), 0
                self.sharing[slot] = job
            for continuation in job.continuations:
                self.rows[free.pop(0)] = _Live(continuation, job, held, job.prompt[-1])
            taken.append((job, slot))
        slots = self.state.row_slots if self.state.prompt_slots is None else self.state.prompt_slots
        for part in _passes(taken, self.prefill_tokens):
            prefixes = [job.prompt[:-1] for job, _ in part]
            changes = at_rows([job.changes for job, _ in part], starts_of(prefixes))
            read_prefixes(self.model, slots, [slot for _, slot in part], prefixes, changes)
        return bool(taken)

    def _compact(self, size: int) -> None:
        """Move rows to the first ``size`` row slots, and prompts to the first prompt slots."""
        self.state.row_slots.move(*_into_holes(self.rows, size))
        if self.state.prompt_slots is not None:
            used = sum(job is not None for job in self.sharing)
            self.state.prompt_slots.move(*_into_holes(self.sharing, used))

    def _upload(self, step: DecodeStep, size: int) -> None:
        """Upload slot assignments, next input tokens, active interventions and what is drawn next to the device."""
        jobs = [job for job in self.sharing if job is not None]
        slot = {job: index for index, job in enumerate(jobs)}
        rows = self.rows[:size]
        self.state.place(
            [None if live is None else slot.get(live.job, 0) for live in rows],
            [0 if live is None else live.held for live in rows],
            [len(job.prompt) - 1 for job in jobs],
        )
        step.put([0 if live is None else live.token for live in rows])
        set_rows(self.interventions, [() if live is None else live.changes for live in rows])
        if self.draws is not None:
            continuations = [Continuation() if live is None else live.continuation for live in rows]
            self.draws.put([c.stream for c in continuations], [len(c.tokens) for c in continuations])

    def _take(self, tokens: Sequence[int]) -> bool:
        """Keep the tokens that were chosen, and return whether slot assignments or interventions differ from now on."""
        changed, done = False, []
        for place, token in enumerate(tokens):
            live = self.rows[place]
            if live is None:
                continue
            continuation = live.continuation
            changed |= not continuation.tokens and bool(continuation.first or continuation.later)
            live.held, live.token = live.held + 1, token
            if token not in self.eos:
                continuation.tokens.append(token)
            if token in self.eos or len(continuation.tokens) == self.max_new_tokens:
                self.rows[place], changed = None, True
                self.left[live.job] -= 1
                if not self.left[live.job]:
                    done.append(live.job)
        for job in done:
            if self.sharing:
                self.sharing[self.sharing.index(job)] = None
        if done:
            self.done(done)
        return changed


def _state(model: nn.Module, rows: int, sizes: Sequence[int], longest: int, new: int) -> Decoding:
    """Make room for ``rows`` rows of ``new`` tokens; ``sizes`` are the numbers of continuations of jobs, ascending."""
    device = next(model.parameters()).device
    kind = FlashDecoding if device.type == "cuda" else Decoding
    if sizes[-1] == 1:
        return kind(KVSlots(rows, longest + new, device), None)
    # A prompt keeps its slot until its last row ends, so there are twice as many prompt slots as prompts whose rows fit.
    together = sum(total <= rows for total in accumulate(sizes))
    return kind(KVSlots(rows, new, device), KVSlots(min(len(sizes), 2 * together), longest, device))


def _passes(taken: Sequence[tuple[Job, int]], most: int) -> list[list[tuple[Job, int]]]:
    """Divide jobs into parts of at most ``most`` prompt tokens, or of one job."""
    parts: list[list[tuple[Job, int]]] = []
    room = 0
    for job, slot in taken:
        if not parts or len(job.prompt) > room:
            parts.append([])
            room = most
        parts[-1].append((job, slot))
        room -= len(job.prompt)
    return parts


def _into_holes(places: list[Any], size: int) -> tuple[list[int], list[int]]:
    """Move what lies behind the first ``size`` places to free places among them; return the old and the new places."""
    sources = [place for place in range(size, len(places)) if places[place] is not None]
    targets = [place for place in range(size) if places[place] is None][: len(sources)]
    for source, target in zip(sources, targets, strict=True):
        places[source], places[target] = None, places[source]
    return sources, targets
