"""The user's own classes of behavior, from a labels file: what each class means, and perhaps patterns that tell it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from afintro.data.yaml_text import load_yaml
from afintro.errors import UserError, one_line
from afintro.generation.behavior import CUT, Behavior
from afintro.generation.reasoning import Reply, take_apart
from afintro.generation.untold import OTHER

_NAME = re.compile(r"[^\W_](?:[\w -]{0,38}[\w-])?")


@dataclass(frozen=True)
class BehaviorClass:
    """One class of behavior.

    Args:
        name: The label.
        definition: What the class means; a judge reads it.
        patterns: Regular expressions, of which one must be found in an answer of the class; upper and lower case are equal.
    """

    name: str
    definition: str
    patterns: tuple[re.Pattern[str], ...] = ()


def read_classes(path: Path) -> tuple[BehaviorClass, ...]:
    """Read a labels file: YAML or JSON with the key ``classes``, by name a definition, or ``{definition, patterns}``.

    Raises:
        UserError: The file is absent or no YAML, has fewer than two classes, or a class that cannot be used.
    """
    remedy = 'write e.g. classes: {answers: "gives an answer", asks: "asks a question back"}; see docs/data.md'
    try:
        content = load_yaml(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path), remedy="give a labels file") from error
    except yaml.YAMLError as error:
        raise UserError(f"cannot be read as YAML ({one_line(error)})", where=str(path), remedy=remedy) from error
    given = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(given, dict) or len(given) < 2:
        raise UserError("must name at least two classes under the key 'classes'", where=str(path), remedy=remedy)
    classes = tuple(_class(name, value, path) for name, value in given.items())
    if len({one.name.lower() for one in classes}) < len(classes):
        what = "names two classes that differ in upper and lower case alone, which a judge's reply does not tell apart"
        raise UserError(what, where=str(path), remedy="rename one of them")
    return classes


def _class(name: Any, value: Any, path: Path) -> BehaviorClass:
    where = f"{path}, class {name!r}"
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.lower() in (OTHER, "none"):
        what = "is no name of a class: up to 40 letters, digits, _, - and inner blanks, and neither 'other' nor 'none'"
        raise UserError(what, where=where, remedy="rename the class; quote names such as 'yes' and 'no'")
    fields = {"definition": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or set(fields) - {"definition", "patterns"} or not fields.get("definition"):
        raise UserError(
            "must be a definition, or hold 'definition' and perhaps 'patterns'", where=where, remedy="say what it means"
        )
    patterns = fields.get("patterns") or []
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise UserError("'patterns' must be a list of texts", where=where, remedy="write patterns: ['...', '...']")
    try:
        found = tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)
    except re.error as error:
        raise UserError(
            f"has a pattern that is no regular expression ({error})", where=where, remedy="mend the pattern"
        ) from error
    return BehaviorClass(name, str(fields["definition"]), found)


class PatternLabeler:
    """Label an answer by the first class, in the order of the file, one of whose patterns is found in the answer.

    Args:
        classes: The classes, each of which has patterns. A pattern that matches everything (``.*``) in the last class makes
            it the class of all that is left.
        name: Who labels, see :func:`file_name`.
    """

    def __init__(self, classes: Sequence[BehaviorClass], name: str) -> None:
        self.classes, self.name = classes, name

    def __call__(self, output: Reply | str) -> Behavior:
        """Label one output."""
        transcript = take_apart(output)
        if transcript.cut:
            return CUT
        text = transcript.reasoning if transcript.answer is None else transcript.answer
        for one in self.classes:
            if any(pattern.search(text) for pattern in one.patterns):
                return Behavior(one.name, f"{one.name}:pattern")
        return Behavior(OTHER, "other:no_pattern")

    def label_all(self, outputs: Sequence[Reply | str]) -> list[Behavior]:
        """Label each output."""
        return [self(output) for output in outputs]


def file_name(path: Path, classes: Sequence[BehaviorClass]) -> str:
    """Name a labels file by its own name and a hash of what it says."""
    content = [[one.name, one.definition, *(pattern.pattern for pattern in one.patterns)] for one in classes]
    return f"{path.name}:{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]}"
