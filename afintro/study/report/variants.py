"""Render a table of a study's variants from their files: what each says of itself, and what it changes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from afintro.study.report.tables import table
from afintro.study.settings import Study


def variants_table(study: Study) -> str:
    """Return Markdown: a variant's name, the comment at the head of its file, and the settings that it lays over the base."""
    rows = []
    for name, path in study.variants.items():
        settings = _flatten(yaml.safe_load(path.read_text()) or {})
        changed = ", ".join(f"`{setting}: {value}`" for setting, value in settings)
        rows.append([f"`{name}`", _comment(path), changed])
    return table(["variant", "what it is", "what it changes"], rows)


def _comment(path: Path) -> str:
    lines = path.read_text().splitlines()
    comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return " ".join(comments)


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted names and values, as on the command line."""
    for name, value in settings.items():
        dotted = prefix if name == "init_args" else f"{prefix}.{name}".strip(".")
        if isinstance(value, Mapping):
            yield from _flatten(value, dotted)
        else:
            yield dotted, "null" if value is None else str(value)
