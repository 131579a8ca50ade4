"""Read conditions and contrasts from a cue file: YAML or JSON. The package comes with a file of its own, ``cues.yaml``."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from afintro.data.cue import SCENARIO, Condition, Contrast
from afintro.data.yaml_text import load_yaml
from afintro.errors import UserError, one_line

SHIPPED = Path(__file__).parent / "cues.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_TEXTS = ("system", "user", "prefill")
_FIELDS = (*_TEXTS, "chat_template_kwargs")
_EXAMPLE = "write e.g. conditions: {free: {system: ...}, paid: {system: ...}}; see docs/cues.md"


@dataclass(frozen=True)
class Cues:
    """Conditions and contrasts by their names.

    Args:
        conditions: All conditions that can be named, those that come with the package first.
        contrasts: All contrasts that can be named, likewise.
        default: The contrast that is meant where none is named; None if the file does not say.
    """

    conditions: Mapping[str, Condition]
    contrasts: Mapping[str, Contrast]
    default: Contrast | None

    def contrast(self, names: Sequence[str]) -> Contrast:
        """Return the contrast of two conditions, or the contrast of a name; without names the default.

        Args:
            names: Two names of conditions, one name of a contrast, or nothing.

        Raises:
            UserError: A name is unknown, or the conditions cannot be compared.
        """
        if not names:
            if self.default is None:
                remedy = f"name two conditions, e.g. --contrast {' '.join(list(self.conditions)[-2:])}"
                raise UserError("is missing: the cue file names no contrast", where="--contrast", remedy=remedy)
            return self.default
        if len(names) == 1:
            if names[0] in self.conditions and names[0] not in self.contrasts:
                remedy = f"name a second condition, or one of the contrasts {', '.join(self.contrasts)}"
                raise UserError(f"names the condition {names[0]!r} alone", where="--contrast", remedy=remedy)
            return _known(self.contrasts, names[0], "contrast", "--contrast")
        if len(names) != 2 or names[0] == names[1]:
            raise UserError(
                f"names {' '.join(names)}", where="--contrast", remedy="name two different conditions, or one contrast"
            )
        first, second = (_known(self.conditions, name, "condition", "--contrast") for name in names)
        given = [contrast for contrast in self.contrasts.values() if contrast.conditions == (first, second)]
        made = Contrast(f"{first.name}-{second.name}", first, second, f"{first.name} against {second.name}")
        return given[0] if given else _checked(made, "--contrast")

    def named(self, names: Sequence[str], where: str) -> list[Condition]:
        """Return the conditions of these names.

        Args:
            names: Names of conditions.
            where: The flag that names them, for the error.

        Raises:
            UserError: A name is unknown.
        """
        return [_known(self.conditions, name, "condition", where) for name in names]


@cache
def shipped_cues() -> Cues:
    """Return the conditions and contrasts that come with the package."""
    return _read(SHIPPED, Cues({}, {}, None))


def read_cues(path: Path | None) -> Cues:
    """Return the conditions and contrasts of a cue file beside those that come with the package.

    Args:
        path: The file; None for what comes with the package alone.

    Raises:
        UserError: The file cannot be read, has an unknown key, lacks a name, or gives a name of the package another meaning.
    """
    return shipped_cues() if path is None else _read(path, shipped_cues())


def _read(path: Path, others: Cues) -> Cues:
    content = _mapping(_content(path), ("conditions", "contrasts"), str(path))
    given = _named(content.get("conditions"), f"{path}, conditions")
    if not given and not content.get("contrasts"):
        raise UserError("names no condition", where=str(path), remedy=_EXAMPLE)
    own = {name: _condition(name, fields, f"{path}, condition {name!r}") for name, fields in given.items()}
    conditions = _joined(others.conditions, own, f"{path}, condition")
    named = _named(content.get("contrasts"), f"{path}, contrasts")
    contrasts = {
        name: _contrast(name, fields, conditions, f"{path}, contrast {name!r}") for name, fields in named.items()
    }
    default = next(iter(contrasts.values()), None)
    if default is None and len(own) == 2:
        default = Cues(conditions, others.contrasts, None).contrast(list(own))
    return Cues(conditions, _joined(others.contrasts, contrasts, f"{path}, contrast"), default)


def _content(path: Path) -> Any:
    try:
        return load_yaml(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path), remedy="give a cue file") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        raise UserError(f"cannot be read as YAML ({one_line(error)})", where=str(path), remedy=_EXAMPLE) from error


def _condition(name: str, fields: Any, where: str) -> Condition:
    values = _mapping(fields, (*_FIELDS, "placebo"), where)
    condition = replace(Condition(name), **_prompt_fields(values, where))
    if values.get("placebo") is None:
        return condition
    inner = f"{where}, placebo"
    placebo = replace(
        condition, name=f"{name}/placebo", **_prompt_fields(_mapping(values["placebo"], _FIELDS, inner), inner)
    )
    if placebo.prompt == condition.prompt:
        raise UserError("says what the condition says", where=inner, remedy="say the same in other words")
    return replace(condition, placebo=placebo)


def _prompt_fields(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Check the fields that decide prompts, and leave out those that are not given."""
    given = {name: values[name] for name in _FIELDS if values.get(name) is not None}
    for name in _TEXTS:
        if name in given:
            _text(given[name], f"{where}, {name}")
    if SCENARIO not in given.get("user", SCENARIO):
        raise UserError(
            f"has no {SCENARIO}", where=f"{where}, user", remedy=f"write {SCENARIO} where the scenario belongs"
        )
    settings = given.get("chat_template_kwargs", {})
    if not isinstance(settings, dict) or not all(
        isinstance(key, str) and _is_json(value) for key, value in settings.items()
    ):
        what = "is no mapping from names to JSON values"
        raise UserError(what, where=f"{where}, chat_template_kwargs", remedy="write e.g. {enable_thinking: false}")
    return given


def _contrast(name: str, fields: Any, conditions: Mapping[str, Condition], where: str) -> Contrast:
    values = _mapping(fields, ("conditions", "cue", "question"), where)
    pair = values.get("conditions")
    if (
        not isinstance(pair, list)
        or len(pair) != 2
        or not all(isinstance(one, str) for one in pair)
        or pair[0] == pair[1]
    ):
        raise UserError(
            "does not name two conditions", where=f"{where}, conditions", remedy="write e.g. conditions: [free, paid]"
        )
    first, second = (_known(conditions, one, "condition", f"{where}, conditions") for one in pair)
    texts = {one: values[one] for one in ("cue", "question") if values.get(one) is not None}
    for one, text in texts.items():
        if not _text(text, f"{where}, {one}").strip():
            raise UserError("is empty", where=f"{where}, {one}", remedy="write a text, or leave it out")
    return _checked(Contrast(name, first, second, texts.get("cue", name), texts.get("question")), where)


def _checked(contrast: Contrast, where: str) -> Contrast:
    """Refuse a contrast of two conditions that are the same, or that no general question tells apart."""
    first, second = contrast.conditions
    if first.prompt == second.prompt:
        what = f"compares {first.name} and {second.name}, which say the same"
        raise UserError(what, where=where, remedy="let them differ in what the organism reads")
    if first.text == second.text and contrast.question is None:
        what = f"compares {first.name} and {second.name}, which differ in settings of the chat template alone, without a question"
        raise UserError(
            what, where=where, remedy="name the contrast in the cue file, with the question for the explainer"
        )
    return contrast


def _joined(others: Mapping[str, Any], own: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Add what a file names to what comes with the package; a name has one meaning."""
    for name, value in own.items():
        if others.get(name, value) != value:
            what = "is a name that comes with the package, and means something else there"
            raise UserError(what, where=f"{where} {name!r}", remedy="rename it")
    return {**others, **own}


def _named(value: Any, where: str) -> dict[str, Any]:
    """Return a mapping whose keys are names; an absent one is empty."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"is {_kind(value)}, not a mapping from names", where=where, remedy=_EXAMPLE)
    for name in value:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            what = f"has the name {str(name)[:60]!r}, which is none: up to 40 letters, digits, _, . and -"
            raise UserError(what, where=where, remedy="rename it; quote names such as '1', 'yes' and 'no'")
    return value


def _mapping(value: Any, known: Sequence[str], where: str) -> dict[str, Any]:
    """Return a mapping without unknown keys."""
    if not isinstance(value, dict):
        raise UserError(f"is {_kind(value)}, not a mapping", where=where, remedy=_EXAMPLE)
    unknown = [str(key)[:60] for key in value if key not in known]
    if unknown:
        raise UserError(f"has the unknown key {unknown[0]!r}", where=where, remedy=f"use {', '.join(known)}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"is {_kind(value)}, not a text", where=where, remedy="write a text; quote numbers, yes and no")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError("holds a lone surrogate", where=where, remedy="correct the escape sequence") from error
    return value


def _known(things: Mapping[str, Any], name: str, kind: str, where: str) -> Any:
    if name not in things:
        raise UserError(f"names {name!r}, which is no {kind}", where=where, remedy=f"use one of {', '.join(things)}")
    return things[name]


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _kind(value: Any) -> str:
    return "empty" if value is None else type(value).__name__
