"""The settings that a command line can have, which depend on the task that its arguments configure."""

import inspect
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from pkgutil import iter_modules

import yaml
from jsonargparse import ArgumentParser
from lightning import Trainer

import afintro.tasks
from afintro.explainer.module import ExplainerModule
from afintro.shipped import shipped_config
from afintro.tasks.base import TaskData


def task_classes() -> list[type[TaskData]]:
    """Import all tasks of the package, and return every data module class that has a task's name."""
    for module in iter_modules(afintro.tasks.__path__, "afintro.tasks."):
        imported = import_module(module.name)
        for name in getattr(imported, "__all__", ()):
            getattr(imported, name)  # a task's package imports its data module once that is asked for
    classes = [TaskData]
    for known in classes:  # grows while it is read: subclasses of subclasses
        classes += known.__subclasses__()
    return sorted({known for known in classes if known.task}, key=lambda known: known.task)


def configured_task(arguments: Sequence[str]) -> type[TaskData] | None:
    """Return the data module class that a command line configures; None if it names none, or one that does not exist.

    Args:
        arguments: The command line's arguments; of several ``--config`` and ``--data`` the last that names a class counts.
    """
    names = list(_class_names(arguments))
    if not names:
        return None
    module, _, name = names[-1].rpartition(".")
    if not module:
        return next((known for known in task_classes() if known.__name__ == name), None)
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) and issubclass(found, TaskData) else None


def _class_names(arguments: Sequence[str]) -> Iterator[str]:
    words = [word for argument in arguments for word in argument.split("=", 1)]
    for flag, value in pairwise(words):
        if flag in ("--data", "--data.class_path"):
            yield value
        elif flag in ("--config", "-c"):
            try:
                content = yaml.safe_load(Path(shipped_config(value)).read_bytes())
                yield content["data"]["class_path"]
            except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
                continue  # the parser reports a file that cannot be read; an overlay may name no class


def setting_names(task: type[TaskData] | None) -> list[str]:
    """Return the dotted names of all settings of the command line.

    Args:
        task: The data module class that is configured; None for the settings of all tasks.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ExplainerModule, "model", fail_untyped=False)
    names = ["config", "ckpt_path", "other_base", "text_only", "vector_only", "seed_everything", "data.class_path"]
    names += parser.get_defaults().keys()
    for known in task_classes() if task is None else [task]:
        names += _parser_of(known).get_defaults().keys()
    names += [f"trainer.{name}" for name in inspect.signature(Trainer).parameters]
    return list(dict.fromkeys(names))


def settings_help(task: type[TaskData] | None) -> str:
    """Return a description of the ``--data.NAME`` settings.

    Args:
        task: The data module class that is configured; None for those of all tasks, one after the other.
    """
    parts = []
    for known in task_classes() if task is None else [task]:
        _, _, options = _parser_of(known).format_help().partition("\n\n")  # without the usage line
        parts.append(f"Settings of the task {known.task}, --data {known.__name__}:\n\n{options}")
    return "\n".join(parts)


def _parser_of(task: type[TaskData]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(task, "data", fail_untyped=False)
    return parser
