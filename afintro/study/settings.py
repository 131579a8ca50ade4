"""What a study consists of, as its YAML says."""

import difflib
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from afintro.cli_errors import explain
from afintro.errors import UserError
from afintro.study.asking.session import Scale

EVALUATIONS = (
    "detection", "logprobs", "self_prediction", "self_calibration", "token_prediction", "identity", "neutral_detection",
    "chat", "realtime", "concepts",
)  # fmt: skip
GIVEN = ("config", "ckpt_path", "seed_everything", "data.seed", "trainer.logger")
"""Settings of ``fit`` that the runner gives itself."""


@dataclass
class StudySettings:
    """A study: variants times seeds, each trained and evaluated.

    Args:
        name: Of its folder.
        base: Configuration files that all variants are laid over, relative to the study's file.
        variants: Configuration files, or a folder of them, relative to the study's file; a variant is called as its file.
        seeds: Every variant is trained with each.
        evaluations: Those to make; all by default.
        overrides: Settings of ``fit`` by dotted name, for all variants; ``model.name`` for another base.
        scale: How much evaluations look at.
        results: Folder that the study's folder lies in, relative to where the command runs.
    """

    name: str
    base: list[str]
    variants: list[str]
    seeds: list[int]
    evaluations: list[str] = field(default_factory=lambda: list(EVALUATIONS))
    overrides: dict[str, Any] = field(default_factory=dict)
    scale: Scale = field(default_factory=Scale)
    results: str = "results"


@dataclass(frozen=True)
class Study:
    """A study's settings with its files found.

    Args:
        settings: As read.
        base: Paths of the base's files.
        variants: Path of each variant's file, by name, in the order of the settings.
    """

    settings: StudySettings
    base: list[Path]
    variants: dict[str, Path]

    @property
    def folder(self) -> Path:
        """Everything that the study writes is in it."""
        return Path(self.settings.results) / self.settings.name


def read_study(path: Path) -> Study:
    """Read a study's YAML and look for its files.

    Raises:
        UserError: Names the setting.
    """
    settings = _settings(path)
    _check(settings, path)
    found: dict[str, Path] = {}
    for file in [file for name in settings.variants for file in _files(path.parent / name, path, "variants")]:
        _check_name(file.stem, f"{path}, variants")
        if file.stem in found:
            raise UserError(f"{file.stem} is named twice", where=f"{path}, variants", remedy="name it once")
        found[file.stem] = file
    base = [file for name in settings.base for file in _files(path.parent / name, path, "base")]
    for file in (*base, *found.values()):
        read_yaml(file)
    return Study(settings, base, found)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        UserError: Unreadable, or no settings.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"cannot be read ({reason})", where=str(path), remedy="give a YAML file of settings") from error
    if not isinstance(content, dict):
        raise UserError("holds no settings", where=str(path), remedy="give a YAML file of settings")
    return content


def _settings(path: Path) -> StudySettings:
    content = read_yaml(path)
    _check_settings(content, StudySettings, str(path))
    _check_settings(content.get("scale", {}), Scale, f"{path}, scale")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(StudySettings, "study")
    try:
        made = parser.instantiate(parser.parse_object({"study": content})).study
    except ArgumentError as error:
        what, _, remedy = explain(str(error)).partition("\n  remedy: ")
        raise UserError(what, where=str(path), remedy=remedy) from error
    assert isinstance(made, StudySettings)
    return made


def _check(settings: StudySettings, path: Path) -> None:
    """Refuse what types alone do not."""
    _check_name(settings.name, f"{path}, name")
    if unknown := [name for name in settings.evaluations if name not in EVALUATIONS]:
        near = difflib.get_close_matches(unknown[0], EVALUATIONS, n=1)
        remedy = f"{f'did you mean {near[0]}? ' if near else ''}there are {', '.join(EVALUATIONS)}"
        raise UserError(f"no evaluation {unknown[0]!r}", where=f"{path}, evaluations", remedy=remedy)
    for name, given in (("seeds", settings.seeds), ("evaluations", settings.evaluations)):
        if len(set(given)) < len(given):
            raise UserError(f"are {given}", where=f"{path}, {name}", remedy="name each once")
    if not settings.seeds or min(settings.seeds) < 0:
        raise UserError(f"are {settings.seeds}", where=f"{path}, seeds", remedy="give whole numbers from 0")
    if own := [name for name in settings.overrides if name in GIVEN]:
        raise UserError(
            f"holds {own[0]!r}, which the runner gives itself", where=f"{path}, overrides", remedy="leave it out"
        )


def _check_settings(content: Any, owner: type, where: str) -> None:
    """Refuse names that a dataclass does not have, with the nearest that it has."""
    names = list(inspect.signature(owner).parameters)
    if not isinstance(content, dict):
        raise UserError(f"is {content!r}", where=where, remedy=f"give {', '.join(names)}")
    for name in content:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"unknown setting {name!r}", where=where, remedy=f"{hint}there are {', '.join(names)}")


def _files(place: Path, study: Path, setting: str) -> list[Path]:
    """A file, or all YAML files of a folder by name."""
    found = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    if not found or not all(file.is_file() for file in found):
        raise UserError(
            "does not exist", where=f"{study}, {setting}, {place}", remedy="give paths relative to the study's file"
        )
    return found


def _check_name(name: str, where: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"{name!r} is no name of a folder", where=where, remedy="use letters, digits, _ and -")
