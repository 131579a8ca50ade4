"""What a command line names is looked for before anything is made: a wrong path is found before a toy is trained for it."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from afintro.data.formats import is_file_name
from afintro.data.sources import split_source
from afintro.errors import UserError
from afintro.lm.adapter import ON, find_adapter
from afintro.lm.load import load_config
from afintro.lm.load_errors import model_place
from afintro.tasks.base import TaskData
from afintro.toys.embedded import is_embedded

SOURCES = ("train_path", "validation_path", "test_path", "test_paths", "heldout")


def check_files(settings: Any, task: type[TaskData]) -> None:
    """Look for the files that the settings of a data module name.

    Args:
        settings: The parsed settings of the data module.
        task: Its class.

    Raises:
        UserError: A file does not exist; the error names the file, and its setting in the remedy.
    """
    for name in SOURCES:
        for source in _each(settings.get(name)):
            path = split_source(source)[0]
            if not Path(path).exists() and _is_local(path):
                raise _absent(path, name)
    for name in task.local_files:
        for source in _each(settings.get(name)):
            if not Path(source).expanduser().exists():
                raise _absent(source, name)
    for name, part in (settings.get("tasks") or {}).items():  # of a mixture
        module, _, kind = part["class_path"].rpartition(".")
        try:
            check_files(part.get("init_args") or {}, getattr(import_module(module), kind))
        except UserError as error:
            remedy = error.remedy.replace("data.", f"data.tasks.{name}.", 1)
            raise UserError(error.what, where=error.where, remedy=remedy) from error


def check_models(names: Iterable[tuple[str, str | None]]) -> None:
    """Look for models: hub ids, directories, GGUF files, adapters; embedded models are made when they are needed.

    Args:
        names: Name and revision of each model.

    Raises:
        UserError: A model is not there; the error names the model.
    """
    for name, revision in names:
        adapter, on, base = name.partition(ON)
        if on and find_adapter(adapter, revision) is None:
            raise UserError("is no adapter", where=model_place(adapter), remedy="give an adapter's directory or hub id")
        known = base if on else name
        if not is_embedded(known):
            load_config(known, None if on else revision)


def check_judges(judges: Sequence[Any]) -> None:
    """Look for the models of judges.

    Args:
        judges: Judges of any kind, of which some have a ``directory`` or, if they ask a local model, a ``revision``.

    Raises:
        UserError: A model is not there; the error names the model.
    """
    for judge in judges:
        directory = getattr(judge, "directory", None)
        if directory is not None and _is_local(directory) and not Path(directory).is_dir():
            raise UserError(
                "does not exist",
                where=f"embedding model {directory!r}",
                remedy="give a local sentence-transformers directory",
            )
        if hasattr(judge, "revision"):
            check_models([(judge.model, judge.revision)])


def _each(value: Any) -> list[str]:
    """Return the names that a setting holds: none, one or several, perhaps each under a name of its own."""
    value = list(value.values()) if isinstance(value, dict) else value
    return [value] if isinstance(value, str) else [name for name in value or () if isinstance(name, str)]


def _is_local(name: str) -> bool:
    """Tell whether a name can only be that of a file or folder of this machine, and no hub id."""
    return is_file_name(Path(name)) or name.startswith(("/", ".", "~")) or name.count("/") > 1


def _absent(path: str, name: str) -> UserError:
    return UserError("does not exist", where=path, remedy=f"check data.{name}")
