"""How configurations are laid over each other: callbacks add up, and a real model leaves the settings of the toy behind."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning import Callback
from lightning.pytorch.callbacks import Checkpoint

from afintro.errors import UserError
from afintro.shipped import shipped_config

CONFIG_FLAGS = ("--config", "-c")
CALLBACKS = "trainer.callbacks"
REAL = "real"  # the folder beside a configuration that holds, under the same name, what changes for a real model


class CommandLine(Callback):
    """Marks, in the list of callbacks that is parsed, where the callbacks of the command line begin; it never runs."""


class LayeredConfig(ActionConfigFile):
    """A ``--config`` whose callbacks are added to those of earlier configurations, instead of taking their place.

    A callback replaces an earlier callback of the same kind; ``callbacks: null`` leaves all earlier callbacks out.
    """

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Apply a configuration file."""
        below = as_list(cfg.get(CALLBACKS))
        super().__call__(parser, cfg, values, option_string)
        result = as_list(cfg.get(CALLBACKS))
        added = result[len(below) :] if result[: len(below)] == below else result
        if below and result:
            cfg[CALLBACKS] = layered(below, added)


def with_added_callbacks(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with every ``--trainer.callbacks X`` as ``--trainer.callbacks+ X``, behind a :class:`CommandLine`."""
    flag, added = f"--{CALLBACKS}", list(arguments)
    places = []
    for place, argument in enumerate(added):
        name, equals, value = argument.partition("=")
        if name not in (flag, f"{flag}+"):
            continue
        value = value if equals else "".join(added[place + 1 : place + 2])
        if value.strip() not in ("null", "[]"):  # which leave out those of the configurations
            added[place] = f"{flag}+{equals}{value if equals else ''}"
            places.append(place)
    if places:
        added[places[0] : places[0]] = [f"{flag}+", f"{CommandLine.__module__}.{CommandLine.__name__}"]
    return added


def layer_command_line(settings: Namespace) -> None:
    """Let the callbacks of the command line replace those of the same kind in the configurations.

    Args:
        settings: The parsed settings of a subcommand.
    """
    callbacks = as_list(settings.get(CALLBACKS))
    marks = [place for place, callback in enumerate(callbacks) if class_of(callback) is CommandLine]
    if marks:
        settings[CALLBACKS] = layered(callbacks[: marks[0]], callbacks[marks[0] + 1 :])


def as_list(callbacks: Any) -> list[Any]:
    """Return parsed callbacks as a list: none, one or several may be configured."""
    if isinstance(callbacks, list):
        return callbacks
    return [callbacks] if isinstance(callbacks, dict | Namespace) else []


def layered(below: Sequence[Any], above: Sequence[Any]) -> list[Any]:
    """Return the callbacks of two layers together; checkpoints that are chosen come before those that are not.

    The last checkpoint remembers which one is the best, so it is written after the best one.

    Args:
        below: Parsed callbacks of the earlier layer.
        above: Parsed callbacks of the later layer, which take the place of the callbacks below of their kinds.
    """
    kept = [old for old in below if not any(_replaces(new, old) for new in above)]
    return sorted([*kept, *above], key=lambda callback: _is_checkpoint(callback) and not monitor_of(callback))


def _replaces(new: Any, old: Any) -> bool:
    """Tell whether a callback is of an earlier one's kind: its class, and of checkpoints whether a metric chooses them."""
    same = issubclass(class_of(new), class_of(old))
    return same and (not _is_checkpoint(old) or bool(monitor_of(new)) == bool(monitor_of(old)))


def class_of(callback: Any) -> type[Callback]:
    """Return the class of a parsed callback."""
    module, _, name = callback["class_path"].rpartition(".")
    found: type[Callback] = getattr(import_module(module), name)
    return found


def _is_checkpoint(callback: Any) -> bool:
    return issubclass(class_of(callback), Checkpoint)


def monitor_of(callback: Any) -> str | None:
    """Return the metric by which a parsed callback chooses or stops; None if it has none."""
    monitor: str | None = (callback.get("init_args") or {}).get("monitor")
    return monitor


def real_layers(arguments: Sequence[str]) -> list[Path]:
    """Return what the configurations of a command line set for a real model, in their order.

    A configuration is made for the toy where a file of its name lies in the folder ``real`` beside it.

    Args:
        arguments: The arguments, with the paths of packaged configurations.
    """
    return [
        layer for name in config_names(arguments) if (layer := Path(name).parent / REAL / Path(name).name).is_file()
    ]


def config_names(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the value of every ``--config``."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    yield from (value for flag, value in pairwise(words) if flag in CONFIG_FLAGS)


def with_real_layers(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with :func:`real_layers`, each right above its configuration: whatever comes later wins."""
    layers = {str(layer.parents[1] / layer.name): str(layer) for layer in real_layers(arguments)}
    result: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag, _, value = argument.partition("=")
        name = value if flag in CONFIG_FLAGS else argument if before in CONFIG_FLAGS else ""
        result.append(argument)
        if (layer := layers.get(str(Path(name)))) is not None:
            result += ["--config", layer]
    return result


def leaves(tree: Any, parent: str = "") -> dict[str, Any]:
    """Return the settings of a configuration by dotted name, as a command line calls them."""
    if not isinstance(tree, dict) or not tree:
        return {parent: tree}
    named = ((key, parent if key == "init_args" else f"{parent}.{key}".removeprefix(".")) for key in tree)
    return {name: value for key, path in named for name, value in leaves(tree[key], path).items()}


def settings_of(layers: Sequence[Path]) -> list[str]:
    """Return the dotted names of all settings of some configurations."""
    trees = (yaml.safe_load(layer.read_text(encoding="utf-8")) for layer in layers)
    return list(dict.fromkeys(name for tree in trees for name in leaves(tree)))


def value_of(settings: Any, name: str) -> Any:
    """Return the parsed value of a setting by its dotted name."""
    inner = settings.data.get("init_args") if name.startswith("data.") else None
    return settings.get(name) if inner is None else inner.get(name.removeprefix("data."))


def with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with every ``--config configs/...`` that exists only in the package as the packaged path."""
    resolved: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if resolved and resolved[-1] in CONFIG_FLAGS:
            resolved.append(_readable_config(argument))
        elif equals and flag in CONFIG_FLAGS:
            resolved.append(f"{flag}={_readable_config(value)}")
        else:
            resolved.append(argument)
    return resolved


def _readable_config(value: str) -> str:
    path = shipped_config(value)
    if Path(path).is_file():
        try:
            Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:  # e.g. UTF-16, in which PowerShell saves what is redirected
            raise UserError("is not UTF-8 text", where=path, remedy="save the file as UTF-8") from error
    return path
