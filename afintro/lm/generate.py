"""Generate greedily, with steering, or by sampling; the tokens do not depend on which prompts are generated together.

All conditions of a prompt (unsteered, and steered in several ways) share the *prefix* of the prompt, which is every token
but the last. Steering at the last position and while decoding changes nothing before the last position, so the tokens
equal the tokens of separate runs.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from afintro.lm.attention import uses_packed_attention
from afintro.lm.engine import Continuation, Engine, Job, Prompt
from afintro.lm.interventions import Intervention, Steering
from afintro.lm.rope import Threshold, thresholds
from afintro.lm.sampling import Sampling
from afintro.lm.uncached import generate_uncached

Condition = Sequence[Steering]
"""How one continuation is steered; an empty condition does not steer."""


def reached_limit(tokens: Sequence[int], max_new_tokens: int) -> bool:
    """Tell whether the limit ended a continuation, and not the model.

    A continuation leaves out the end token, so one that the model ended with its last token is shorter than the limit.

    Args:
        tokens: New tokens, as the functions of this module return them.
        max_new_tokens: The limit under which they were generated.
    """
    return len(tokens) == max_new_tokens


@torch.inference_mode()
def generate_greedy(
    model: nn.Module,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    batch_size: int,
    interventions: Sequence[Sequence[Intervention]] | None = None,
    on_done: Callable[[int], Any] | None = None,
    on_token: Callable[[int], Any] | None = None,
) -> list[list[int]]:
    """Continue every prompt by its most likely tokens.

    In float32 the tokens equal the tokens of one-by-one generation.

    Args:
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`, in eval mode.
        prompts: Token ids of each prompt, special tokens included.
        max_new_tokens: Largest number of new tokens of a prompt.
        eos_ids: Token ids before which a continuation ends.
        batch_size: Number of prompts that are continued together; when a prompt has ended, the next one takes its place.
        interventions: Interventions on each prompt while the prompt is read, positions counted in the prompt.
        on_done: Called with the number of prompts just finished, for progress.
        on_token: Called with every new token, for a person who reads along.

    Returns:
        The new tokens of each prompt, in the order of the prompts.
    """
    continuations, jobs = [], []
    for index, prompt in enumerate(prompts):
        before, last = _split(interventions[index] if interventions is not None else (), len(prompt) - 1)
        continuations.append(Continuation(first=last, tokens=[] if on_token is None else _Heard(on_token)))
        jobs.append(Job(prompt, continuations[-1:], before))
    _run(model, [[job] for job in jobs], max_new_tokens, eos_ids, batch_size, on_done)
    return [continuation.tokens for continuation in continuations]


class _Heard(list[int]):
    """Tokens that are told to a listener as they come."""

    def __init__(self, listener: Callable[[int], Any]) -> None:
        super().__init__()
        self._listener = listener

    def append(self, token: int) -> None:
        super().append(token)
        self._listener(token)


@torch.inference_mode()
def generate_steered(
    model: nn.Module,
    prompts: Sequence[Prompt],
    conditions: Sequence[Sequence[Condition]],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    batch_size: int,
    share_prefix: bool = True,
    on_done: Callable[[int], Any] | None = None,
) -> list[list[list[int]]]:
    """Continue every prompt under each of its conditions.

    Args:
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`, in eval mode.
        prompts: Token ids of each prompt, special tokens included.
        conditions: The conditions of each prompt. A condition that steers the positions ``all`` reads the prompt by itself.
        max_new_tokens: Largest number of new tokens of a continuation.
        eos_ids: Token ids before which a continuation ends.
        batch_size: Number of continuations that go on together. Conditions that share a prompt start together, even if
            there are more of them.
        share_prefix: False reads the prompt once for every condition; the tokens are the same (for comparison).
        on_done: Called with the number of prompts just finished, for progress.

    Returns:
        The new tokens by prompt and condition.

    Raises:
        RuntimeError: A hook did not fire exactly once in a step.
    """
    continuations, jobs = [], []
    for prompt, prompt_conditions in zip(prompts, conditions, strict=True):
        of_prompt = [_continuation(condition) for condition in prompt_conditions]
        together: list[Continuation] = []
        prompt_jobs = []
        for continuation, condition in zip(of_prompt, prompt_conditions, strict=True):
            if share_prefix and not any(steering.positions == "all" for steering in condition):
                together.append(continuation)
            else:
                prompt_jobs.append(Job(prompt, [continuation], _on_prefix(condition, len(prompt) - 1)))
        continuations.append(of_prompt)
        jobs.append([*prompt_jobs, *([Job(prompt, together)] if together else [])])
    _run(model, jobs, max_new_tokens, eos_ids, batch_size, on_done)
    return [[continuation.tokens for continuation in of_prompt] for of_prompt in continuations]


@torch.inference_mode()
def generate_sampled(
    model: nn.Module,
    prompts: Sequence[Prompt],
    streams: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    batch_size: int,
    on_done: Callable[[int], Any] | None = None,
) -> list[list[list[int]]]:
    """Continue every prompt once for each of its streams, by tokens that are drawn from the stream; the prompt is read once.

    In float32 the tokens depend on model, prompt, stream and ``sampling`` alone.

    Args:
        model: A causal LM loaded by :func:`afintro.lm.load.load_model`, in eval mode.
        prompts: Token ids of each prompt, special tokens included.
        streams: The streams of each prompt, see :func:`afintro.lm.sampling.stream_of`. Equal prompts with equal streams have
            equal continuations, so that a stream names all that should differ.
        sampling: How tokens are drawn.
        max_new_tokens: Largest number of new tokens of a continuation.
        eos_ids: Token ids before which a continuation ends.
        batch_size: Number of continuations that go on together. Continuations of one prompt start together, even if there are
            more of them.
        on_done: Called with the number of prompts just finished, for progress.

    Returns:
        The new tokens by prompt and stream.
    """
    continuations = [[Continuation(stream=stream) for stream in of_prompt] for of_prompt in streams]
    jobs = [
        [Job(prompt, of_prompt)] if of_prompt else [] for prompt, of_prompt in zip(prompts, continuations, strict=True)
    ]
    _run(model, jobs, max_new_tokens, eos_ids, batch_size, on_done, sampling)
    return [[continuation.tokens for continuation in of_prompt] for of_prompt in continuations]


def _run(
    model: nn.Module,
    jobs: Sequence[Sequence[Job]],
    max_new_tokens: int,
    eos_ids: Sequence[int],
    batch_size: int,
    on_done: Callable[[int], Any] | None,
    sampling: Sampling | None = None,
) -> None:
    """Finish the jobs of every prompt."""
    report: Callable[[int], Any] = on_done if on_done is not None else lambda _: None
    left = Counter(
        {prompt: len(of_prompt) for prompt, of_prompt in enumerate(jobs) if of_prompt and max_new_tokens > 0}
    )
    prompt_of = {job: prompt for prompt, of_prompt in enumerate(jobs) if left[prompt] for job in of_prompt}

    def done(finished: list[Job]) -> None:
        left.subtract(prompt_of[job] for job in finished)
        prompts_done = sum(left[prompt] == 0 for prompt in {prompt_of[job] for job in finished})
        if prompts_done:
            report(prompts_done)

    if without_jobs := len(jobs) - len(+left):
        report(without_jobs)
    if prompt_of:
        settings: Any = {"max_new_tokens": max_new_tokens, "eos_ids": eos_ids, "batch_size": batch_size}
        settings |= {"done": done, "sampling": sampling}
        changing = thresholds(model)
        parts: dict[bool, list[Job]] = {True: [], False: []}  # by whether keys can be kept
        for job in prompt_of:
            parts[uses_packed_attention(model) and not _outgrows(changing, job, max_new_tokens)].append(job)
        if parts[True]:
            Engine(model, parts[True], **settings).run()
        if parts[False]:
            generate_uncached(model, parts[False], **settings)


def _outgrows(changing: Sequence[Threshold], job: Job, max_new_tokens: int) -> bool:
    """Return whether keys of the prompt have another rotation at the end of its continuations."""
    length = len(job.prompt)
    return any(threshold.between(max(1, length - 1), length + max_new_tokens - 1) for threshold in changing)


def _split(changes: Sequence[Intervention], last: int) -> tuple[list[Intervention], list[Intervention]]:
    """Divide interventions into those before the last position of a prompt, and those at the last position."""
    before, there = [], []
    for change in changes:
        here = change.positions == last
        vectors = change.vectors[here]
        if len(vectors):
            # Where a position is named several times, added vectors sum up, and the last replacement counts.
            vector = vectors.sum(0, keepdim=True) if change.mode == "add" else vectors[-1:]
            there.append(Intervention(change.layer, change.mode, change.positions[here][:1], vector, change.relative))
        if len(vectors) < len(change.positions):
            before.append(
                Intervention(change.layer, change.mode, change.positions[~here], change.vectors[~here], change.relative)
            )
    return before, there


def _continuation(condition: Condition) -> Continuation:
    """Return a continuation that every steering changes at the prompt's last token, and all but ``last`` after it."""
    first = [steering.on([0]) for steering in condition]
    return Continuation(first, [steering.on([0]) for steering in condition if steering.positions != "last"])


def _on_prefix(condition: Condition, length: int) -> list[Intervention]:
    """Return the interventions on the ``length`` tokens before the last token of a prompt."""
    return [steering.on(range(length)) for steering in condition if steering.positions == "all"]
