"""The generation engine: prompts queue for slots, rows are continued together, slots are refilled as rows end.

A prompt is read but for its last token, by itself or for several rows at once; the last token and each new one are then
read by decode steps, all rows together. What else is in a step does not change a row.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from afintro.lm.decoding import Decoding, Filling, Slots
from afintro.lm.flash_decoding import FlashDecoding
from afintro.lm.forward import packed_logits
from afintro.lm.interventions import Intervention, at_rows
from afintro.lm.spans import Located
from afintro.lm.step import Step, fill, planes_of

Prompt = Sequence[int]

PREFILL = 32_768  # most tokens that are read in one pass, if a single prompt does not have more
REFILL = 0.25  # share of row slots that must be free before the next prompts are read


@dataclass(eq=False)
class Row:
    """One continuation.

    Args:
        first: Interventions while the last token of the prompt is read; their positions are not looked at.
        later: Interventions while each new token is read.
        tokens: The new tokens; filled by the engine.
    """

    first: Sequence[Intervention] = ()
    later: Sequence[Intervention] = ()
    tokens: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Job:
    """A prompt and the rows that continue it.

    Args:
        prompt: Token ids, at least one.
        rows: At least one.
        changes: Interventions while all but its last token are read, positions counted in it.
    """

    prompt: Prompt
    rows: Sequence[Row]
    changes: Sequence[Intervention] = ()


def read_prefixes(
    model: nn.Module, slots: Slots, targets: Sequence[int], prefixes: Sequence[Prompt], changes: Sequence[Located]
) -> None:
    """Keep the keys and values of every prefix in its slot.

    Args:
        model: The model.
        slots: Where they are kept.
        targets: Slot of each prefix.
        prefixes: Token ids; may be empty.
        changes: Interventions, positions counted in the row that the prefixes make end to end.
    """
    device, lengths = slots.lengths.device, [len(prefix) for prefix in prefixes]
    filling = Filling(slots, targets, lengths)
    read = [length for length in lengths if length]
    if not read:
        return
    bounds = torch.tensor([0, *read]).cumsum(0)
    ids = torch.tensor([token for prefix in prefixes for token in prefix], device=device)
    nowhere = torch.zeros(0, dtype=torch.long, device=device)  # no logits are asked for
    packed_logits(model, ids, bounds.to(device, torch.int32), nowhere, changes, filling)


def starts_of(sequences: Sequence[Prompt]) -> list[int]:
    """Where each of several sequences begins in the row that they make end to end."""
    return [0, *accumulate(map(len, sequences))][:-1]


@dataclass
class _Live:
    """A row in a slot: the token that it reads next, and how many its own slot holds."""

    row: Row
    job: Job
    held: int
    token: int

    @property
    def changes(self) -> Sequence[Intervention]:
        """Interventions on its next token."""
        return self.row.later if self.row.tokens else self.row.first


class Engine:
    """Continues the rows of jobs by their most likely tokens.

    Args:
        model: A causal LM whose attention keeps keys (:func:`afintro.lm.attention.uses_packed_attention`), in eval mode.
        jobs: Read longest first.
        max_new_tokens: At most so many tokens each; at least 1.
        eos_ids: A row ends before one of these.
        slots: Number of row slots; no fewer than the rows of any one job are made.
        done: Called with the jobs just finished.
    """

    def __init__(
        self,
        model: nn.Module,
        jobs: Sequence[Job],
        *,
        max_new_tokens: int,
        eos_ids: Sequence[int],
        slots: int,
        done: Callable[[list[Job]], Any],
    ) -> None:
        self.model, self.max_new_tokens, self.eos, self.done = model, max_new_tokens, set(eos_ids), done
        self.queue = deque(sorted(jobs, key=lambda job: -len(job.prompt)))
        sizes = sorted(len(job.rows) for job in jobs)
        count = min(max(slots, sizes[-1]), sum(sizes))
        self.state = _state(model, count, sizes, len(self.queue[0].prompt) - 1, max_new_tokens)
        changes = (own for job in jobs for row in job.rows for own in (row.first, row.later))
        self.planes = planes_of(changes, count, self.state.device)
        self.places: list[_Live | None] = [None] * count
        self.prompts: list[Job | None] = [None] * (0 if self.state.prompts is None else self.state.prompts.count)
        self.left = Counter({job: len(job.rows) for job in jobs})

    def run(self) -> None:
        """Finish all jobs.

        Raises:
            RuntimeError: A hook did not fire exactly once in a step.
            ValueError: An intervention that does not fit the model.
        """
        step = Step(self.model, self.state, list(self.planes.values()))
        changed = False
        while True:
            changed = self._refill() or changed
            rows = sum(live is not None for live in self.places)
            if not rows:
                return
            size = self.state.size(rows)
            if changed:
                self._compact(size)
                self._tell(step, size)
            changed = self._take(step(size))

    def _refill(self) -> bool:
        """Read the next prompts if there is room; whether it was done."""
        free = [place for place, live in enumerate(self.places) if live is None]
        if len(free) < REFILL * len(self.places):
            return False
        taken: list[tuple[Job, int]] = []
        while self.queue and len(self.queue[0].rows) <= len(free) and (not self.prompts or None in self.prompts):
            job = self.queue.popleft()
            slot, held = free[0], len(job.prompt) - 1
            if self.prompts:
                slot, held = self.prompts.index(None), 0
                self.prompts[slot] = job
            for row in job.rows:
                self.places[free.pop(0)] = _Live(row, job, held, job.prompt[-1])
            taken.append((job, slot))
        slots = self.state.own if self.state.prompts is None else self.state.prompts
        for part in _passes(taken):
            prefixes = [job.prompt[:-1] for job, _ in part]
            changes = at_rows([job.changes for job, _ in part], starts_of(prefixes))
            read_prefixes(self.model, slots, [slot for _, slot in part], prefixes, changes)
        return bool(taken)

    def _compact(self, size: int) -> None:
        """Move rows to the first ``size`` slots, and prompts to the first ones."""
        sources, targets = _into_holes(self.places, size)
        self.state.own.move(sources, targets)
        if self.state.prompts is not None:
            used = sum(job is not None for job in self.prompts)
            self.state.prompts.move(*_into_holes(self.prompts, used))

    def _tell(self, step: Step, size: int) -> None:
        """Write to the device what lies where, which tokens are read next, and what changes while they are."""
        jobs = [job for job in self.prompts if job is not None]
        slot = {job: index for index, job in enumerate(jobs)}
        rows = self.places[:size]
        self.state.place(
            [None if live is None else slot.get(live.job, 0) for live in rows],
            [0 if live is None else live.held for live in rows],
            [len(job.prompt) - 1 for job in jobs],
        )
        step.put([0 if live is None else live.token for live in rows])
        fill(self.planes, [() if live is None else live.changes for live in rows])

    def _take(self, tokens: Sequence[int]) -> bool:
        """Keep the tokens that were chosen; whether something else lies somewhere, or changes, from now on."""
        changed, done = False, []
        for place, token in enumerate(tokens):
            live = self.places[place]
            if live is None:
                continue
            changed |= not live.row.tokens and bool(live.row.first or live.row.later)
            live.held, live.token = live.held + 1, token
            if token not in self.eos:
                live.row.tokens.append(token)
            if token in self.eos or len(live.row.tokens) == self.max_new_tokens:
                self.places[place], changed = None, True
                self.left[live.job] -= 1
                if not self.left[live.job]:
                    done.append(live.job)
        for job in done:
            if self.prompts:
                self.prompts[self.prompts.index(job)] = None
        if done:
            self.done(done)
        return changed


def _state(model: nn.Module, rows: int, sizes: Sequence[int], longest: int, new: int) -> Decoding:
    """Room for ``rows`` rows of ``new`` tokens; ``sizes`` are the rows of each job, ascending."""
    device = next(model.parameters()).device
    kind = FlashDecoding if device.type == "cuda" else Decoding
    if sizes[-1] == 1:
        return kind(Slots(rows, longest + new, device), None)
    # As many prompts as have room for all their rows, and as many again: one has its slot until its last row ends.
    together = sum(total <= rows for total in accumulate(sizes))
    return kind(Slots(rows, new, device), Slots(min(len(sizes), 2 * together), longest, device))


def _passes(taken: Sequence[tuple[Job, int]]) -> list[list[tuple[Job, int]]]:
    """Parts of no more than ``PREFILL`` tokens, or of one job."""
    parts: list[list[tuple[Job, int]]] = []
    room = 0
    for job, slot in taken:
        if not parts or len(job.prompt) > room:
            parts.append([])
            room = PREFILL
        parts[-1].append((job, slot))
        room -= len(job.prompt)
    return parts


def _into_holes(places: list[Any], size: int) -> tuple[list[int], list[int]]:
    """Move what lies behind the first ``size`` places to free ones among them; from where, to where."""
    sources = [place for place in range(size, len(places)) if places[place] is not None]
    targets = [place for place in range(size) if places[place] is None][: len(sources)]
    for source, target in zip(sources, targets, strict=True):
        places[source], places[target] = None, places[source]
    return sources, targets
