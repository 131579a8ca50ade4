"""Let a system answer prompts, and ask it beforehand what its answers would be."""

from collections.abc import Sequence
from dataclasses import dataclass

from afintro.data.introspection_texts import read_self_prediction
from afintro.data.introspection_texts.items import Prompt
from afintro.study.asking.queries import Query, WrittenAnswer
from afintro.study.asking.session import Session
from afintro.study.results import ResultRow


@dataclass(frozen=True)
class PredictedAnswer:
    """A prompt, the answer to it, and a prediction of that answer. The prediction was written without seeing the answer.

    Args:
        prompt: The prompt.
        answer: What the system writes when it gets the prompt.
        prediction: What the system writes when it gets the task's question about the prompt.
    """

    prompt: Prompt
    answer: WrittenAnswer
    prediction: WrittenAnswer


def prompts_of(session: Session, tasks: Sequence[str]) -> list[Prompt]:
    """Return the prompts of some tasks, for each task at most as many as the session's scale allows."""
    prompts = read_self_prediction().prompts
    return [prompt for task in tasks for prompt in [p for p in prompts if p.task == task][: session.scale.items]]


def lone_query(text: str) -> Query:
    """Return a question without context whose answer is the whole turn."""
    return Query(None, None, text, "")


def prediction_queries(prompts: Sequence[Prompt]) -> list[Query]:
    """Return the task's question about each prompt."""
    wordings = {task.id: task.ask for task in read_self_prediction().tasks}
    return [lone_query(wordings[prompt.task].replace("{prompt}", prompt.text)) for prompt in prompts]


def answer_and_predict(session: Session, prompts: Sequence[Prompt]) -> list[PredictedAnswer]:
    """Let the session's current system answer each prompt and predict each answer."""
    written = session.write([*(lone_query(prompt.text) for prompt in prompts), *prediction_queries(prompts)])
    answers, predictions = written[: len(prompts)], written[len(prompts) :]
    return [PredictedAnswer(*parts) for parts in zip(prompts, answers, predictions, strict=True)]


def prompt_fields(session: Session, system: str, prompt: Prompt) -> ResultRow:
    """Return the fields that every row about a prompt has.

    Args:
        session: The session.
        system: ``adapter`` or ``base``.
        prompt: The prompt.
    """
    where = {"system": system, "seed": session.seed, "context": None, "vector": None, "question": prompt.id}
    return {**where, "task": prompt.task, "prompt": prompt.text}
