"""Prompts as a system answers them, beside what it says of its answer when it is only asked about it."""

from collections.abc import Sequence
from dataclasses import dataclass

from afintro.data.introspection_texts import read_self_prediction
from afintro.data.introspection_texts.items import Prompt
from afintro.study.asking.session import Query, Row, Session, Written


@dataclass(frozen=True)
class Foreseen:
    """A prompt, its answer, and the prediction of that answer, which saw neither.

    Args:
        prompt: The prompt.
        answer: Written when it is put.
        prediction: Written when the task's question about it is put.
    """

    prompt: Prompt
    answer: Written
    prediction: Written


def prompts_of(session: Session, tasks: Sequence[str]) -> list[Prompt]:
    """Prompts of some tasks, of each at most as many as the scale has."""
    everything = read_self_prediction().prompts
    return [one for task in tasks for one in [p for p in everything if p.task == task][: session.scale.items]]


def free(text: str) -> Query:
    """A question by itself, whose answer is the whole turn."""
    return Query(None, None, text, "")


def about(prompts: Sequence[Prompt]) -> list[Query]:
    """The question of its task about each prompt."""
    wordings = {task.id: task.ask for task in read_self_prediction().tasks}
    return [free(wordings[prompt.task].replace("{prompt}", prompt.text)) for prompt in prompts]


def foreseen(session: Session, prompts: Sequence[Prompt]) -> list[Foreseen]:
    """Answers and predictions of the system that answers now."""
    written = session.written([*(free(prompt.text) for prompt in prompts), *about(prompts)])
    answers, predictions = written[: len(prompts)], written[len(prompts) :]
    return [Foreseen(*parts) for parts in zip(prompts, answers, predictions, strict=True)]


def head(session: Session, system: str, prompt: Prompt) -> Row:
    """Fields that every row about a prompt has."""
    where = {"system": system, "seed": session.seed, "context": None, "vector": None, "question": prompt.id}
    return {**where, "task": prompt.task, "prompt": prompt.text}
