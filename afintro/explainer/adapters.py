"""Export a trained adapter as a stock PEFT directory with the injector's weights beside it, and load it again."""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from afintro.data.files import write_json
from afintro.errors import UserError

INJECTOR_FILE = "injector.safetensors"


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


def import_adapter(model: PeftModel, directory: Path, injector: nn.Module | None = None) -> None:
    """Load the weights of a PEFT directory into the adapter that ``model`` has, and into the injector.

    Args:
        model: The base with an adapter of the same settings.
        directory: A folder that :func:`export_adapter` wrote.
        injector: The injector to load; None for a task without vectors.

    Raises:
        UserError: Weights are absent or do not fit.
    """
    if injector is not None:
        _import_injector(injector, directory / INJECTOR_FILE)
    loaded: Any = set_peft_model_state_dict(model, load_peft_weights(str(directory), device="cpu"))
    unexpected = loaded.unexpected_keys
    if unexpected:
        raise UserError(
            f"has weights that do not fit ({unexpected[0]})", where=str(directory), remedy="use another adapter"
        )


def _import_injector(injector: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UserError("is absent", where=str(path), remedy="export the adapter again, with its injector")
    stored = load_file(str(path))
    expected = {name: tensor.shape for name, tensor in injector.state_dict().items()}
    wrong = sorted(n for n in {*expected, *stored} if n not in stored or stored[n].shape != expected.get(n))
    if wrong:
        raise UserError(f"has weights that do not fit ({wrong[0]})", where=str(path), remedy="use another adapter")
    injector.load_state_dict(stored)
