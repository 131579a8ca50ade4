"""Read the texts of the introspection study strictly, from the JSON files in this folder.

All texts were written for the study. They are data: a changed word changes a result, so a golden test guards the texts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from afintro.data.introspection_texts.items import (
    Category,
    ConceptPair,
    Concepts,
    Context,
    Probe,
    Prompt,
    Question,
    SelfPrediction,
    SelfReport,
    SelfReports,
    Task,
    Template,
)
from afintro.data.records import parse_record, read_object
from afintro.errors import UserError

FOLDER = Path(__file__).parent
Item = TypeVar("Item", Context, Question, Category, SelfReport, ConceptPair, Template, Task, Prompt, Probe)
Twin = TypeVar("Twin", Question, SelfReport)


def read_contexts(path: Path = FOLDER / "contexts.json") -> list[Context]:
    """Read the contexts.

    Raises:
        UserError: The file is wrong; like all errors of this module, the error names file, item and field.
    """
    contexts = _items(path, _sections(path, ("contexts",)), "contexts", Context)
    _check_unique_texts(path, contexts)
    return contexts


def read_questions(path: Path = FOLDER / "questions.json") -> list[Question]:
    """Read the questions, all styles together."""
    questions = _items(path, _sections(path, ("questions",)), "questions", Question)
    _check_unique_texts(path, questions)
    _check_twins(path, questions, lambda question: question.yes_means)
    return questions


def read_self_reports(path: Path = FOLDER / "self_reports.json") -> SelfReports:
    """Read the self-reports, their controls and the categories of both."""
    sections = _sections(path, ("categories", "items"))
    reports = SelfReports(_items(path, sections, "categories", Category), _items(path, sections, "items", SelfReport))
    controls = {category.id: category.control for category in reports.categories}
    for item in reports.items:
        if controls.get(item.category) is not item.control:
            what = f"fields 'category' and 'control' are {item.category!r} and {item.control}, which do not fit any category"
            raise UserError(what, where=f"{path}, {item.id}", remedy="correct the fields, or add the category")
    _check_unique_texts(path, reports.items)
    _check_twins(path, reports.items, lambda item: item.expected)
    return reports


def read_concepts(path: Path = FOLDER / "concepts.json") -> Concepts:
    """Read concept pairs and contrast templates."""
    sections = _sections(path, ("pairs", "templates"))
    return Concepts(_items(path, sections, "pairs", ConceptPair), _items(path, sections, "templates", Template))


def read_self_prediction(path: Path = FOLDER / "self_prediction.json") -> SelfPrediction:
    """Read the tasks and prompts of self-prediction, self-calibration and token prediction, and the probes without labels."""
    sections = _sections(path, tuple(field.name for field in fields(SelfPrediction)))
    tasks, prompts = _items(path, sections, "tasks", Task), _items(path, sections, "prompts", Prompt)
    for prompt in prompts:
        if prompt.task not in {task.id for task in tasks}:
            what = f"field 'task' is {prompt.task!r}, which is not the id of a task"
            raise UserError(what, where=f"{path}, {prompt.id}", remedy="correct the field, or add the task")
    probes = {name: _items(path, sections, name, Probe) for name in sections if name not in ("tasks", "prompts")}
    return SelfPrediction(tasks, prompts, **probes)


def _sections(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return the lists of a file, which must have exactly the given names."""
    content = read_object(path)
    if set(content) != set(names) or not all(isinstance(content[name], list) and content[name] for name in names):
        raise UserError(f"must hold non-empty lists {', '.join(names)}", where=str(path), remedy="correct the file")
    return content


def _items(path: Path, sections: Mapping[str, Any], section: str, kind: type[Item]) -> list[Item]:
    """Return all items of a list, each checked, with unique ids."""
    names = [field.name for field in fields(kind)]
    items: dict[str, Item] = {}
    for index, row in enumerate(sections[section]):
        name = row.get("id") if isinstance(row, dict) else None
        where = f"{path}, {section} {name if isinstance(name, str) else index}"
        try:
            item = parse_record(kind, row, {}, names, "the repository's copy", where)
            _check_strings(row, names)
            if item.id in items:
                raise ValueError(f"field 'id' is {item.id!r}, which is the id of an earlier item")
        except ValueError as error:
            raise UserError(str(error), where=where, remedy="correct the field") from error
        items[item.id] = item
    return list(items.values())


def _check_strings(row: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse unknown fields, and strings that are empty, have white space around them, or hold a lone surrogate."""
    for name, value in row.items():
        if name not in names:
            raise ValueError(f"field {name!r} is unknown")
        for text in value if isinstance(value, list) else [value]:
            # A question that ends in a space would change the token after it.
            if isinstance(text, str) and (not text or text != text.strip()):
                raise ValueError(f"field {name!r} is empty or has white space around it")
            if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError(f"field {name!r} holds a lone surrogate")


def _check_unique_texts(path: Path, items: Sequence[Context | Question | SelfReport]) -> None:
    seen: dict[str, str] = {}
    for item in items:
        folded = " ".join(item.text.lower().split())
        if seen.setdefault(folded, item.id) != item.id:
            what = f"field 'text' is the text of {seen[folded]}"
            raise UserError(what, where=f"{path}, {item.id}", remedy="write another text, or remove the duplicate")


def _check_twins(path: Path, items: Sequence[Twin], polarity: Callable[[Twin], str | None]) -> None:
    """Check that each reversed item names an original of its group with the opposite polarity and without another twin."""
    originals = {item.id: item for item in items if item.reversed_of is None}
    for item in items:
        if item.reversed_of is not None:
            other = originals.pop(item.reversed_of, None)
            agree = other is not None and polarity(item) is not None and polarity(item) == polarity(other)
            if other is None or other.group != item.group or agree:
                what = f"field 'reversed_of' is {item.reversed_of!r}, which is not an original of opposite polarity"
                raise UserError(what, where=f"{path}, {item.id}", remedy="name the twin; an original has one twin only")
