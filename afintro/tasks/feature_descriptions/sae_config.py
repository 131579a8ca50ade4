"""What the files beside an autoencoder's weights say of it: its sizes, where its decoder writes, and the layer of that place."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afintro.data.records import read_object
from afintro.errors import UserError

NAMES = ("cfg.json", "config.json", "hyperparams.json")
# A transcoder reads at one place and writes at another; its decoder rows are of the place where it writes.
OUTPUT_PLACES = ("hook_name_out", "hook_point_out", "hf_hook_point_out")
OUTPUT_LAYERS = ("hook_layer_out", "hook_point_layer_out")
PLACES = ("hook_name", "hook_point", "hook_point_in", "hf_hook_point_in", "submodule_name", "act_name")
LAYERS = ("hook_layer", "hook_point_layer", "layer")
SECTIONS = ("metadata", "trainer")  # of newer SAELens; of dictionary_learning
FEATURES = ("d_sae", "num_latents", "dict_size")
WIDTHS = ("d_out", "d_in", "d_model", "activation_dim", "act_size")
OF_PLACE = re.compile(r"(?:^|[._])(\d+)(?=\.|$)|(?:^|_)layer_(\d+)(?=_|$)")
# layer_20, layers.19.mlp, resid_post_layer_12; blocks.8.hook_resid_pre; h.5; L19R of Llama Scope; -l19 at the end (Goodfire).
OF_PATH = (
    re.compile(r"(?:^|[._-])layers?[._-]?(\d+)(?!\d)"),
    re.compile(r"(?:^|\.)(?:blocks|h)\.(\d+)(?=\.|$)"),
    re.compile(r"(?:^|-)L(\d+)(?:R|A|M|TC)(?=-|$)"),
    re.compile(r"-l([1-9]\d*)$"),
)
PARTS = 4  # layer_20/width_16k/average_l0_71/params.npz


@dataclass(frozen=True)
class About:
    """What is known of an autoencoder besides its weights.

    Args:
        config: The file beside the weights that says so, or None.
        features: Number of features, with the name of the field; None where the file does not say.
        width: Length of a decoder row, likewise.
        hook: Name of the place where the decoder writes, or "".
        layer: 0-based number of the block that the hook is named after, or None.
    """

    config: Path | None = None
    features: tuple[str, int] | None = None
    width: tuple[str, int] | None = None
    hook: str = ""
    layer: int | None = None


def about(weights: Path) -> About:
    """Read what the file beside the weights says, and the layer that the path names if the file does not.

    Raises:
        UserError: The file is malformed or contradicts itself.
    """
    path = config_file(weights)
    if path is None:
        return About(layer=layer_of_path(weights))
    content = read_object(path)
    config = {**content, **{k: v for part in SECTIONS for k, v in _section(content, part).items()}}
    hook, layer = _place(config, str(path))
    return About(
        config=path,
        features=_features(config),
        width=_size(config, WIDTHS),
        hook=hook,
        layer=layer_of_path(weights) if layer is None and not hook else layer,
    )


def config_file(weights: Path) -> Path | None:
    """Return the file that describes some weights: in their folder, or above a folder of checkpoints."""
    folders = [weights.parent, *([weights.parent.parent] if weights.parent.name == "checkpoints" else [])]
    return next((folder / name for folder in folders for name in NAMES if (folder / name).is_file()), None)


def layer_of_path(path: Path) -> int | None:
    """Return the layer that the innermost telling part of a path names, or None."""
    parts = path.absolute().parts[-PARTS:]
    for part in reversed([*parts[:-1], path.stem]):
        numbers = {int(number) for pattern in OF_PATH for number in pattern.findall(part)}
        if numbers:
            return numbers.pop() if len(numbers) == 1 else None
    return None


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _place(config: dict[str, Any], where: str) -> tuple[str, int | None]:
    """Return where the decoder writes, and the layer of that; of the output if the file names an output."""
    for places, layers in ((OUTPUT_PLACES, OUTPUT_LAYERS), (PLACES, LAYERS)):
        hooks = {name: config[name] for name in places if isinstance(config.get(name), str) and config[name]}
        numbers = {name: config[name] for name in layers if type(config.get(name)) is int}
        numbers |= {name: number for name, hook in hooks.items() if (number := _number(hook)) is not None}
        if len(set(numbers.values())) > 1:
            what = "names several layers: " + ", ".join(f"{name} {number}" for name, number in numbers.items())
            raise UserError(what, where=where, remedy="correct the file")
        if hooks or numbers:
            return next(iter(hooks.values()), ""), next(iter(numbers.values()), None)
    return "", None


def _number(hook: str) -> int | None:
    """Return the number of the block in a name like ``blocks.40.hook_resid_post`` or ``resid_post_layer_12``."""
    match = OF_PLACE.search(hook)
    return int(match[1] or match[2]) if match else None


def _sizes(config: dict[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for name in names:
        if type(config.get(name)) is int and config[name] > 0:  # sparsify writes 0 for "by the expansion factor"
            yield name, config[name]


def _size(config: dict[str, Any], names: tuple[str, ...]) -> tuple[str, int] | None:
    return next(_sizes(config, names), None)


def _features(config: dict[str, Any]) -> tuple[str, int] | None:
    if size := _size(config, FEATURES):
        return size
    if "hf_hook_point_in" in config:  # Gemma Scope 2, where the width is the number of features
        return _size(config, ("width",))
    inside, factor = _size(config, ("d_in", "d_model")), config.get("expansion_factor")
    if inside and isinstance(factor, int | float):
        return f"{inside[0]} * expansion_factor", int(inside[1] * factor)
    return None
