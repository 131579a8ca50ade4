"""What can go wrong while weights are loaded, in words."""

from collections.abc import Iterable

from safetensors import SafetensorError

from afintro.errors import UserError, one_line

# A truncated file raises a SafetensorError, weights of another shape raise a RuntimeError.
UNLOADABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError)


def model_place(name: str) -> str:
    """Return what error messages call a model."""
    return f"model {name!r}"


def unloadable(name: str, error: Exception) -> UserError:
    """Return the error to raise where a model, tokenizer or adapter cannot be loaded."""
    reason = one_line(error)
    return UserError(
        f"cannot be loaded ({type(error).__name__}: {reason})",
        where=model_place(name),
        remedy="give a hub id that is reachable or cached (HF_HOME, HF_HUB_OFFLINE), a local model or adapter directory, or 'toy'",
    )


def refuse_missing_weights(missing: Iterable[str]) -> None:
    """Refuse missing weights, which transformers and PEFT would draw at random, with a warning."""
    names = sorted(missing)
    if names:
        raise ValueError(f"weights are missing for {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}")


def refuse_unused_weights(unused: Iterable[str], place: str) -> None:
    """Refuse weights of an adapter that its configuration names no module for, and which PEFT would leave out silently.

    Args:
        unused: Names of such weights.
        place: What error messages call the adapter.

    Raises:
        UserError: There are such weights.
    """
    names = sorted(unused)
    if names:
        what = f"has {len(names)} weights that its adapter_config.json names no module for (the first is {names[0]})"
        raise UserError(what, where=place, remedy="use the adapter_config.json that was saved with the weights")
