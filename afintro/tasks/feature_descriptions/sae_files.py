"""Which file of a path holds an autoencoder's weights, where a folder may hold the autoencoders of many layers."""

from collections.abc import Sequence
from pathlib import Path

from afintro.errors import UserError
from afintro.tasks.feature_descriptions.sae_config import about
from afintro.tasks.feature_descriptions.tensor_files import SUFFIXES

# SAELens and OpenMOSS; sparsify; Gemma Scope 2 and 1; dictionary_learning; Llama Scope; temporal autoencoders.
WEIGHTS = (
    "sae_weights.safetensors", "sae.safetensors", "params.safetensors", "params.npz", "ae.pt", "ae_final.pt",
    "final.safetensors", "pruned.safetensors", "sae_weights.pt", "latest_ckpt.safetensors",
)  # fmt: skip
ASIDE = ("sparsity", "activations", "optimizer", "log_feature_sparsity")  # files beside the weights begin so
SHOWN = 10


def weights_file(path: Path, layer: int | None) -> Path:
    """Return the file that holds the weights of an autoencoder.

    Args:
        path: The file itself, or a folder of one or several autoencoders, at any depth.
        layer: The layer to choose where there are several; None chooses nothing.

    Raises:
        UserError: Nothing exists there, or there are several and the layer does not choose one of them; all are named.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError("does not exist", where=str(path), remedy="give the file or the folder of an autoencoder")
    here = [path / name for name in WEIGHTS if (path / name).is_file()]
    found = here if len(here) == 1 else _below(path)
    if not found:
        what = "holds no weights of an autoencoder"
        raise UserError(
            what, where=str(path), remedy=f"give a folder with {', '.join(WEIGHTS[:5])}, or the file itself"
        )
    if len(found) == 1:
        return found[0]
    layers = {file: about(file).layer for file in found}
    chosen = [file for file in found if layers[file] == layer] if layer is not None else found
    if len(chosen) == 1:
        return chosen[0]
    names = [f"{_layer(layers[file])} ({file.relative_to(path)})" for file in chosen or found]
    what = (
        f"holds {len(found)} autoencoders"
        if len(chosen) in (0, len(found))
        else f"holds {len(chosen)} of layer {layer}"
    )
    what += f", none of layer {layer}" if not chosen else ""
    remedy = (
        "give the file of one of them" if chosen and layer is not None else "choose one by --layer, or give its file"
    )
    raise UserError(f"{what}: {_list(names)}", where=str(path), remedy=remedy)


def _below(folder: Path) -> list[Path]:
    """Return the files of known names in a folder and its folders, or all files of tensors if there is none."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    known = [file for file in files if file.name in WEIGHTS]
    return known or [file for file in files if not file.name.startswith(ASIDE)]


def _layer(layer: int | None) -> str:
    return "no layer" if layer is None else f"layer {layer}"


def _list(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
