"""Let an explainer answer items: teacher-forced outcomes, and written answers where the outcome does not give them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from afintro.data.batch import Example, collate, interventions_of
from afintro.evaluation.metrics import Prediction
from afintro.evaluation.outcomes import Outcome, answer_limit, gathered
from afintro.explainer.module import ExplainerModule
from afintro.lm.generate import generate_greedy, reached_limit
from afintro.lm.interventions import Intervention
from afintro.lm.load import eos_ids
from afintro.ranks import ALONE, Ranks
from afintro.tasks.base import TaskData


def answer_items(module: ExplainerModule, items: Sequence[Example], data: TaskData) -> list[Prediction]:
    """Answer items outside of a trainer's loop.

    Args:
        module: The explainer, its weights loaded.
        items: The items, each uid once.
        data: The data module that says how many items a batch holds.

    Returns:
        A prediction of every item, sorted by length; processes share the work and all have the result.
    """
    rows, ranks = data.evaluation_rows(items), module.sharing
    outcomes: list[Outcome] = []
    with module.evaluating():
        for row in range(ranks.rank, len(rows), ranks.size):
            outcomes += module.evaluate_batch(rows[row].to(module.device))
    outcomes = gathered(outcomes, items, ranks)
    return predict_outcomes(module, outcomes, data.settings.batch_size, answer_limit(items), ranks)


def predict_outcomes(
    module: ExplainerModule,
    outcomes: Sequence[Outcome],
    batch_size: int,
    max_new_tokens: int,
    ranks: Ranks = ALONE,
    as_written: bool = False,
) -> list[Prediction]:
    """Add the written answer to each outcome. An exact answer is known; only the others are generated.

    Args:
        module: The explainer that the outcomes are of.
        outcomes: The same outcomes in all of ``ranks``, each uid once.
        batch_size: Number of rows in a forward pass.
        max_new_tokens: Largest number of tokens of an answer.
        ranks: The processes that share the writing.
        as_written: Generate also the exact answers that would be spelled otherwise than the expected answers are, so that no
            expected answer shows in what was written.

    Returns:
        Predictions in the order of the outcomes, the same in all of ``ranks``.
    """
    known = {
        outcome.example.uid: (outcome.example.answer, False)
        for outcome in outcomes
        if outcome.exact and not (as_written and _spelled_otherwise(module, outcome.example, max_new_tokens))
    }
    unknown = [outcome.example for outcome in outcomes if outcome.example.uid not in known]
    mine = unknown[ranks.rank :: ranks.size]
    uids = [example.uid for example in mine]
    written = zip(uids, _written(module, mine, max_new_tokens, batch_size), strict=True)
    answers: dict[str, tuple[str, bool]] = known | dict(ranks.gathered(list(written)))
    return [outcome.prediction(*answers[outcome.example.uid]) for outcome in outcomes]


def write_answers(
    module: ExplainerModule, examples: Sequence[Example], max_new_tokens: int, batch_size: int
) -> list[str]:
    """Answer the prompts of examples greedily.

    Args:
        module: The explainer, its weights loaded.
        examples: The examples; their own answers are not looked at.
        max_new_tokens: Largest number of tokens of an answer.
        batch_size: Number of rows in a forward pass.

    Returns:
        The answers as text, in the order of the examples.
    """
    return [text for text, _ in _written(module, examples, max_new_tokens, batch_size)]


def _written(
    module: ExplainerModule, examples: Sequence[Example], max_new_tokens: int, batch_size: int
) -> list[tuple[str, bool]]:
    """Return each answer, and whether the limit of tokens ended the answer."""
    ids = write_tokens(module, examples, max_new_tokens, batch_size)
    return [(spelled(module, tokens), reached_limit(tokens, max_new_tokens)) for tokens in ids]


def spelled(module: ExplainerModule, tokens: Sequence[int]) -> str:
    """Return the text of an answer's tokens."""
    return str(module.tokenizer.decode(list(tokens), skip_special_tokens=True))


@torch.no_grad()
def write_tokens(
    module: ExplainerModule,
    examples: Sequence[Example],
    max_new_tokens: int,
    batch_size: int,
    on_done: Callable[[int], Any] | None = None,
    on_token: Callable[[int], Any] | None = None,
) -> list[list[int]]:
    """Answer the prompts of examples greedily.

    Args:
        module: The explainer, its weights loaded.
        examples: The examples; their own answers are not looked at.
        max_new_tokens: Largest number of tokens of an answer.
        batch_size: Number of rows in a forward pass.
        on_done: Called with the number of answers just finished, for progress.
        on_token: Called with every new token of any answer, for a person who reads along.

    Returns:
        The token ids of each answer, without the end of sequence.
    """
    model = module.loaded()
    with module.evaluating():
        return generate_greedy(
            model,
            [example.prompt_ids for example in examples],
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids(model.get_base_model(), module.tokenizer),
            batch_size=batch_size,
            interventions=[_on_prompt(module, example) for example in examples],
            on_done=on_done,
            on_token=on_token,
        )


def _spelled_otherwise(module: ExplainerModule, example: Example, max_new_tokens: int) -> bool:
    """Tell whether the greedy answer, which begins with the expected tokens, may have another text than the expected answer."""
    if example.cut or len(example.answer_ids) > max_new_tokens:
        return True
    return spelled(module, example.answer_ids[:-1]) != example.answer


def _on_prompt(module: ExplainerModule, example: Example) -> list[Intervention]:
    """Return what changes while the prompt is read, one vector a position, positions counted in the prompt."""
    changes, _ = interventions_of(collate([example]).to(module.device), module.injector)
    return [change if isinstance(change, Intervention) else change.written_out() for change in changes]
