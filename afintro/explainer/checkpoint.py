"""Adapter-only checkpoints with an identity block: what they hold, where they lie, and which are refused."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from afintro.data.text import template_hash
from afintro.errors import UserError
from afintro.explainer.settings import ExplainerSettings
from afintro.lm.injection import VectorSpace, VectorSpaces
from afintro.lm.load import fingerprint
from afintro.lm.lora import describe_lora
from afintro.lm.template_inputs import date_of

IDENTITY, BASE_DTYPE = "afintro_identity", "afintro_base_dtype"


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the weights that training changes, by name: what a checkpoint holds."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name in trained}


def whole(value: Any) -> Any:
    """Put together, on the processor, a tensor of which each process holds a piece; all processes call this at once.

    Args:
        value: A sharded tensor; anything else is returned unchanged.
    """
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def identity_of(
    settings: ExplainerSettings,
    space: VectorSpace | VectorSpaces | None,
    directory: str,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Return the identity block of an explainer: everything that its checkpoints depend on.

    Args:
        settings: Name and revision of the base, adapter, slot token and injection.
        space: Where the vectors come from; None for a task without vectors.
        directory: Hub id or directory of the base model.
        tokenizer: The tokenizer whose chat template the prompts are rendered with.
    """
    return {
        "base": settings.model_name,
        "revision": settings.revision,
        "fingerprint": fingerprint(directory),
        "lora": describe_lora(settings.lora),
        "slot_token": settings.slot_token,
        "vectors": None if space is None else {**asdict(space), **asdict(settings.injection)},
        "template_hash": template_hash(tokenizer),
        **({"chat_template_kwargs": settings.chat_template_kwargs} if settings.chat_template_kwargs else {}),
        **({"prompt_date": date} if (date := date_of(tokenizer)) is not None else {}),
    }


def prompt_date(path: Path) -> str | None:
    """Return the date in the prompts that a checkpoint was trained on; None for a chat template that prints no date."""
    try:
        identity = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get(IDENTITY) or {}
    except Exception:  # a damaged file is named when it is loaded as a whole
        return None
    return identity.get("prompt_date")


def check_identity(saved: Mapping[str, Any] | None, current: Mapping[str, Any], where: str) -> None:
    """Refuse a checkpoint that was made for another model.

    The name under which the base was loaded may differ, because a directory may move; its fingerprint, revision and all
    else may not.

    Args:
        saved: The checkpoint's identity block; None if it has none.
        current: The identity of the explainer as configured.
        where: What the message calls the checkpoint.

    Raises:
        UserError: The identities differ; the message has both values of everything that differs.
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

    Args:
        saved: The checkpoint's weights by name.
        module: The explainer as configured.
        where: What the message calls the checkpoint.

    Raises:
        UserError: Names or shapes differ; the message has the first differences.
    """
    expected_shapes = {name: tuple(tensor.shape) for name, tensor in trainable_state(module).items()}
    saved_shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    names = sorted({*expected_shapes, *saved_shapes})
    wrong = [name for name in names if expected_shapes.get(name) != saved_shapes.get(name)]
    if wrong:
        first = "; ".join(
            f"{name}: {saved_shapes.get(name, 'absent')}, expected {expected_shapes.get(name, 'absent')}"
            for name in wrong[:2]
        )
        raise UserError(
            f"has {len(wrong)} weights that do not fit ({first})",
            where=where,
            remedy="the file is damaged: use another checkpoint",
        )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running code from it.

    Raises:
        UserError: The file does not exist or is not a checkpoint.
    """
    if not path.is_file():
        raise UserError("does not exist", where=str(path), remedy="give a .ckpt file, 'best' or 'last'")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and others for a damaged file
        raise UserError(
            f"cannot be read ({type(error).__name__})",
            where=str(path),
            remedy="the file is damaged: use another checkpoint",
        ) from error
    assert isinstance(content, dict)
    return content


def run_of(checkpoint: Path) -> Path:
    """Return the folder of a checkpoint's run; its own folder, where ``dirpath`` of a callback put it elsewhere."""
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder


def runs(root: Path, task: str) -> list[Path]:
    """Return the run folders of a task that hold a checkpoint, oldest first.

    Args:
        root: Folder of all run folders, ``lightning_logs``.
        task: Name of the task.
    """
    folders = [path for path in (root / task).glob("version_*") if any((path / "checkpoints").glob("*.ckpt"))]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("version_")))


def resolve_checkpoint(name: str, root: Path, task: str) -> Path:
    """Return the path of the checkpoint that ``best``, ``last`` or a path means.

    Args:
        name: ``best`` or ``last`` for that of the newest run of the task; anything else is a path.
        root: Folder of all run folders, ``lightning_logs``.
        task: Name of the task.

    Raises:
        UserError: The task has no run with a checkpoint, or the file does not exist.
    """
    if name not in ("best", "last"):
        if not Path(name).is_file():
            raise UserError("does not exist", where=name, remedy="give a .ckpt file, 'best' or 'last'")
        return Path(name)
    folders = runs(root, task)
    if not folders:
        raise UserError(
            f"holds no run of {task} with a checkpoint",
            where=str(root),
            remedy=f"run: python -m afintro fit --config configs/{task}.yaml",
        )
    return checkpoint_of(folders[-1], name)


def checkpoint_of(run: Path, name: str) -> Path:
    """Return the best or the last checkpoint of a run.

    Args:
        run: The run's folder, which holds a checkpoint.
        name: ``best`` or ``last``.
    """
    files = sorted((run / "checkpoints").glob("*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    newest = files[-1]
    if name == "last":
        return newest
    for state in read_checkpoint(newest).get("callbacks", {}).values():
        if isinstance(state, dict) and state.get("monitor") and state.get("best_model_path"):
            best = Path(state["best_model_path"])
            # The run's folder may have moved, or the run have been resumed from another whose checkpoint is still the best.
            for path in (newest.parent / best.name, best):
                if path.is_file():
                    return path
    return newest
