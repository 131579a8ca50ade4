"""Adapter-only checkpoints with an identity block, and export as a stock PEFT directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from afintro.errors import UserError

IDENTITY = "afintro_identity"


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes, by name: what a checkpoint holds."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name in trained}


def whole(value: Any) -> Any:
    """A tensor of which this process holds a piece, put together on the host; all processes ask at once."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def check_identity(saved: Mapping[str, Any] | None, current: Mapping[str, Any], where: str) -> None:
    """Refuse a checkpoint that was made for another model.

    The name under which the base was loaded may differ (a directory may move); its fingerprint, revision and the rest
    may not.

    Raises:
        UserError: Prints both values of everything that differs.
    """
    if saved is None:
        raise UserError("holds no identity block", where=where, remedy="use a checkpoint written by afintro")
    by_fingerprint = saved.get("fingerprint") is not None and saved.get("fingerprint") == current.get("fingerprint")
    keys = sorted({*saved, *current} - ({"base"} if by_fingerprint else set()))
    differences = [
        f"{key}: {saved.get(key)!r} in the checkpoint, {current.get(key)!r} configured"
        for key in keys
        if saved.get(key) != current.get(key)
    ]
    if differences:
        raise UserError(
            "was made for another model (" + "; ".join(differences) + ")",
            where=where,
            remedy="configure the model that the checkpoint was trained on, or give another checkpoint",
        )


def check_state(saved: Mapping[str, Tensor], module: nn.Module, where: str) -> None:
    """Refuse a checkpoint whose weights are not exactly those that training changes, in name and shape.

    Raises:
        UserError: Names the first differences.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in trainable_state(module).items()}
    found = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    if wanted != found:
        wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        first = "; ".join(
            f"{name}: {found.get(name, 'absent')}, expected {wanted.get(name, 'absent')}" for name in wrong[:2]
        )
        raise UserError(
            f"{len(wrong)} of its weights do not fit ({first})", where=where, remedy="the file is damaged: use another"
        )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Raises:
        UserError: No such file, or not a checkpoint.
    """
    if not path.is_file():
        raise UserError("no such checkpoint", where=str(path), remedy="give a .ckpt file, 'best' or 'last'")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and others for a damaged file
        raise UserError(
            f"cannot be read ({type(error).__name__})", where=str(path), remedy="the file is damaged: use another"
        ) from error
    assert isinstance(content, dict)
    return content


INJECTOR_FILE = "injector.safetensors"


def export_adapter(model: PeftModel, directory: Path, injector: nn.Module | None = None) -> None:
    """Write a stock PEFT directory, loadable by ``PeftModel.from_pretrained``, and the injector's weights beside it."""
    model.save_pretrained(str(directory), safe_serialization=True)
    if injector is not None:
        save_file(injector.state_dict(), str(directory / INJECTOR_FILE))


def import_adapter(model: PeftModel, directory: Path, injector: nn.Module | None = None) -> None:
    """Load a PEFT directory's weights into the adapter that ``model`` has, and into the injector.

    Raises:
        UserError: Weights that do not fit.
    """
    if injector is not None:
        _import_injector(injector, directory / INJECTOR_FILE)
    result: Any = set_peft_model_state_dict(model, load_peft_weights(str(directory), device="cpu"))
    if result.unexpected_keys:
        raise UserError(
            f"has weights that do not fit ({result.unexpected_keys[0]})",
            where=str(directory),
            remedy="use another adapter",
        )


def _import_injector(injector: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UserError("is absent", where=str(path), remedy="export the adapter again, with its injector")
    stored = load_file(str(path))
    wanted = {name: tensor.shape for name, tensor in injector.state_dict().items()}
    wrong = sorted(n for n in {*wanted, *stored} if n not in stored or stored[n].shape != wanted.get(n))
    if wrong:
        raise UserError(f"has weights that do not fit ({wrong[0]})", where=str(path), remedy="use another adapter")
    injector.load_state_dict(stored)


def runs(root: Path, task: str) -> list[Path]:
    """Run folders of a task that hold a checkpoint, oldest first."""
    found = [path for path in (root / task).glob("version_*") if any((path / "checkpoints").glob("*.ckpt"))]
    return sorted(found, key=lambda path: int(path.name.removeprefix("version_")))


def resolve_checkpoint(name: str, root: Path, task: str) -> Path:
    """The checkpoint that ``best`` or ``last`` means: that of the newest run of the task; any other name is a path.

    Raises:
        UserError: There is no such run, or no such file.
    """
    if name not in ("best", "last"):
        if not Path(name).is_file():
            raise UserError("no such checkpoint", where=name, remedy="give a .ckpt file, 'best' or 'last'")
        return Path(name)
    found = runs(root, task)
    if not found:
        raise UserError(
            f"no run of {task} with a checkpoint",
            where=str(root),
            remedy=f"run: python -m afintro fit --config configs/{task}.yaml",
        )
    files = sorted((found[-1] / "checkpoints").glob("*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    newest = files[-1]
    if name == "last":
        return newest
    for state in read_checkpoint(newest).get("callbacks", {}).values():
        if isinstance(state, dict) and state.get("monitor") and state.get("best_model_path"):
            best = newest.parent / Path(state["best_model_path"]).name  # the run's folder may have moved
            if best.is_file():
                return best
    return newest
