"""Export a trained adapter as a stock PEFT directory with the injector's weights beside it, and load it again."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from afintro.data.files import write_json
from afintro.errors import UserError

INJECTOR_FILE = "injector.safetensors"
EXPLAINER_FILE = "explainer.json"  # what a checkpoint says of the explainer beside its weights


def export_adapter(model: PeftModel, directory: Path, injector: nn.Module | None = None) -> None:
    """Write a stock PEFT directory, loadable by ``PeftModel.from_pretrained``, and the injector's weights beside it.

    Args:
        model: The base with the adapter.
        directory: Folder that is made or written into.
        injector: Its weights go into ``injector.safetensors``; None for a task without vectors.
    """
    # Without this setting PEFT would write the base's embedding too where the adapter is on the embedding.
    model.save_pretrained(str(directory), safe_serialization=True, save_embedding_layers=False)
    # PEFT writes its sets of module names in an order that changes with the process.
    settings = json.loads((directory / "adapter_config.json").read_text())
    sets = {name for name, value in vars(model.active_peft_config).items() if isinstance(value, set)}
    write_json(directory / "adapter_config.json", {n: sorted(v) if n in sets else v for n, v in settings.items()})
    if injector is not None:
        save_file(injector.state_dict(), str(directory / INJECTOR_FILE))


def name_base(directory: Path, base: str, revision: str | None) -> None:
    """Write into an exported adapter which model it is loaded onto.

    Args:
        directory: The exported adapter.
        base: Directory or hub id.
        revision: Branch, tag or commit on the hub.
    """
    path = directory / "adapter_config.json"
    write_json(path, json.loads(path.read_text()) | {"base_model_name_or_path": base, "revision": revision})


def import_adapter(model: PeftModel, directory: Path, injector: nn.Module | None = None) -> None:
    """Load the weights of a PEFT directory into the adapter that ``model`` has, and into the injector.

    Args:
        model: The base with an adapter of the same settings.
        directory: A folder that :func:`export_adapter` wrote.
        injector: The injector to load; None for a task without vectors.

    Raises:
        UserError: Weights are absent, left over or of another shape.
    """
    if injector is not None:
        _load(injector.state_dict(), directory / INJECTOR_FILE, injector.load_state_dict)
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    _load(expected, directory / SAFETENSORS_WEIGHTS_NAME, partial(set_peft_model_state_dict, model))


def _load(expected: Mapping[str, Tensor], path: Path, load: Callable[[dict[str, Tensor]], object]) -> None:
    """Load a file whose weights have exactly the expected names and shapes; a pickle beside the file is never read."""
    if not path.is_file():
        raise UserError("is absent", where=str(path), remedy="export the adapter again")
    try:
        stored = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path), remedy="export the adapter again") from error
    for name in sorted({*expected, *stored}):
        if name not in stored:
            raise UserError(f"lacks weights ({name})", where=str(path), remedy="export the adapter again")
        if name not in expected or stored[name].shape != expected[name].shape:
            raise UserError(f"has weights that do not fit ({name})", where=str(path), remedy="use another adapter")
    load(stored)
