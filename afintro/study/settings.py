"""Read a study's YAML file: which variants, seeds and evaluations the study consists of."""

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from afintro.cli_errors import explain
from afintro.data.yaml_text import load_yaml
from afintro.errors import UserError, one_line

EVALUATIONS = (
    "detection", "logprobs", "self_prediction", "self_calibration", "token_prediction", "identity", "neutral_detection",
    "chat", "realtime", "concepts",
)  # fmt: skip
RUNNER_SETTINGS = ("config", "ckpt_path", "seed_everything", "data.seed", "trainer.logger")
"""Settings of ``fit`` that the runner chooses."""


@dataclass
class Scale:
    """How much an evaluation looks at.

    Args:
        contexts: Largest number of contexts of a split. A quarter of them are odd contexts.
        vectors: Largest number of vectors of a split.
        items: Largest number of prompts, probes or questions of a kind.
        new_tokens: Largest length of a written answer, in tokens.
        batch_size: Number of answers that are written at once. Older studies call it ``slots``.
    """

    contexts: int = 24
    vectors: int = 12
    items: int = 1000
    new_tokens: int = 32
    batch_size: int = 64

    def as_json(self) -> dict[str, int]:
        """Return the scale as headers of rows record it: there ``batch_size`` keeps its older name ``slots``."""
        return {"slots" if name == "batch_size" else name: value for name, value in asdict(self).items()}


@dataclass
class StudySettings:
    """A study: variants times seeds, each of them trained and evaluated.

    Args:
        name: The name of the study and of its folder.
        base: Configuration files that all variants are laid over, relative to the study's file.
        variants: Configuration files, or folders of configuration files, relative to the study's file. A variant is
            named after its file.
        seeds: Training seeds. Every variant is trained with each seed, but for those of ``seeds_of``.
        evaluations: Names of the evaluations to make. The default is all of them.
        overrides: Settings of ``fit`` by dotted name, for all variants, such as ``model.name`` for another base.
        scale: How much the evaluations look at.
        results: The folder that contains the study's folder, relative to the working directory.
        seeds_of: Training seeds of single variants, in place of ``seeds``: a claim of "no effect" takes more seeds.
    """

    name: str
    base: list[str]
    variants: list[str]
    seeds: list[int]
    evaluations: list[str] = field(default_factory=lambda: list(EVALUATIONS))
    overrides: dict[str, Any] = field(default_factory=dict)
    scale: Scale = field(default_factory=Scale)
    results: str = "results"
    seeds_of: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study's settings and the paths of its files.

    Args:
        settings: The settings of the YAML file.
        base: Paths of the base's configuration files.
        variants: Path of each variant's configuration file, by the variant's name, in the order of the settings.
    """

    settings: StudySettings
    base: list[Path]
    variants: dict[str, Path]

    @property
    def folder(self) -> Path:
        """Return the folder that contains everything that the study writes."""
        return Path(self.settings.results) / self.settings.name

    def seeds_of(self, variant: str) -> list[int]:
        """Return the training seeds of a variant."""
        return self.settings.seeds_of.get(variant, self.settings.seeds)


def read_study(path: Path) -> Study:
    """Read a study's YAML file and find the files that it names.

    Raises:
        UserError: A setting is wrong or a file is missing. The error names the setting.
    """
    settings = _read_settings(path)
    _check_values(settings, path)
    variants: dict[str, Path] = {}
    for file in [file for name in settings.variants for file in _find_files(path.parent / name, path, "variants")]:
        _check_folder_name(file.stem, f"{path}, variants")
        if file.stem in variants:
            raise UserError(f"contain {file.stem} twice", where=f"{path}, variants", remedy="name each variant once")
        variants[file.stem] = file
    base = [file for name in settings.base for file in _find_files(path.parent / name, path, "base")]
    for file in (*base, *variants.values()):
        read_yaml(file)
    if unknown := [name for name in settings.seeds_of if name not in variants]:
        what = f"name {unknown[0]!r}, which is not a variant of this study"
        raise UserError(what, where=f"{path}, seeds_of", remedy=f"choose from {', '.join(variants)}")
    return Study(settings, base, variants)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings in a YAML file.

    Raises:
        UserError: The file cannot be read or does not contain a mapping.
    """
    try:
        content = load_yaml(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        reason = one_line(error)
        raise UserError(f"cannot be read ({reason})", where=str(path), remedy="give a YAML file of settings") from error
    if not isinstance(content, dict):
        raise UserError("contains no settings", where=str(path), remedy="give a YAML file of settings")
    return content


def _read_settings(path: Path) -> StudySettings:
    content = read_yaml(path)
    _check_setting_names(content, StudySettings, str(path))
    scale = content.get("scale", {})
    if isinstance(scale, dict) and "slots" in scale:
        if "batch_size" in scale:
            what = "gives both batch_size and slots, which is its older name"
            raise UserError(what, where=f"{path}, scale", remedy="give batch_size alone")
        scale = {"batch_size" if name == "slots" else name: value for name, value in scale.items()}
        content = {**content, "scale": scale}
    _check_setting_names(scale, Scale, f"{path}, scale")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(StudySettings, "study")
    try:
        settings = parser.instantiate(parser.parse_object({"study": content})).study
    except ArgumentError as error:
        what, _, remedy = explain(str(error)).partition("\n  remedy: ")
        raise UserError(what, where=str(path), remedy=remedy) from error
    assert isinstance(settings, StudySettings)
    return settings


def _check_values(settings: StudySettings, path: Path) -> None:
    """Refuse values that their types alone allow."""
    _check_folder_name(settings.name, f"{path}, name")
    if unknown := [name for name in settings.evaluations if name not in EVALUATIONS]:
        near = difflib.get_close_matches(unknown[0], EVALUATIONS, n=1)
        remedy = f"{f'did you mean {near[0]}? ' if near else ''}choose from {', '.join(EVALUATIONS)}"
        what = f"contain {unknown[0]!r}, which is not an evaluation"
        raise UserError(what, where=f"{path}, evaluations", remedy=remedy)
    seeds = {"seeds": settings.seeds, **{f"seeds_of.{name}": own for name, own in settings.seeds_of.items()}}
    listed: dict[str, Sequence[Any]] = {**seeds, "evaluations": settings.evaluations}
    for name, values in listed.items():
        if len(set(values)) < len(values):
            raise UserError(f"contain a value twice: {values}", where=f"{path}, {name}", remedy="name each once")
    for name, own in seeds.items():
        if not own or min(own) < 0:
            what = f"must be one or more whole numbers from 0, not {own}"
            raise UserError(what, where=f"{path}, {name}", remedy="give whole numbers from 0")
    if reserved := [name for name in settings.overrides if name in RUNNER_SETTINGS]:
        what = f"contain {reserved[0]!r}, which the runner chooses"
        raise UserError(what, where=f"{path}, overrides", remedy=f"leave {reserved[0]} out")


def _check_setting_names(content: Any, owner: type, where: str) -> None:
    """Refuse names that a dataclass does not have, and suggest the nearest name that it has."""
    names = list(inspect.signature(owner).parameters)
    if not isinstance(content, dict):
        raise UserError(f"must be settings, not {content!r}", where=where, remedy=f"give {', '.join(names)}")
    for name in content:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            what = f"contains the unknown setting {name!r}"
            raise UserError(what, where=where, remedy=f"{hint}choose from {', '.join(names)}")


def _find_files(place: Path, study: Path, setting: str) -> list[Path]:
    """Return the file itself, or all YAML files of a folder in the order of their names."""
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in files):
        where = f"{study}, {setting}, {place}"
        raise UserError("does not exist", where=where, remedy="give paths relative to the study's file")
    return files


def _check_folder_name(name: str, where: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"cannot name a folder {name!r}", where=where, remedy="use letters, digits, _ and -")
