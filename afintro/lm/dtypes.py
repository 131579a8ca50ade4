"""Which dtype a model runs in: ``auto`` is the checkpoint's own on an accelerator, and float32 on a CPU."""

from typing import Any

import torch

from afintro.lm.load import DTYPES, load_config

AUTO = "auto"


def resolve_dtype(
    dtype: str, name: str, revision: str | None, device: str | torch.device, *, training: bool = False
) -> str:
    """Return the dtype that a setting means for a model on a device.

    A CPU multiplies in float32 faster than in half precision, and holds any model that it can run in bearable time. An
    accelerator is fast in the dtype that the weights are stored in, and float32 would double what they take.

    Training over float16 weights is the exception: the gradients of activations are then float16 too, where they vanish below
    6e-8, as the gradient of a mean over many answer tokens does, and activations overflow above 65504. Mixed precision scales the
    loss against the first and not against the second. So an adapter is trained over bfloat16 weights, which take as much memory
    and have the range of float32; the three bits of precision that they lose are less than the adapter learns to make up for.

    Args:
        dtype: ``auto``, which is resolved, or the name of a dtype, which is returned.
        name: Hub id, local model directory, GGUF file, or PEFT adapter directory, whose base decides.
        revision: Branch, tag or commit on the hub.
        device: Where the model will run.
        training: Whether an adapter is trained on the weights.

    Returns:
        The name of a dtype of :data:`afintro.lm.load.DTYPES`.

    Raises:
        UserError: No configuration can be loaded under this name.
    """
    if dtype != AUTO:
        return dtype
    if torch.device(device).type == "cpu":
        return "float32"
    own = stored_dtype(load_config(name, revision))
    return "bfloat16" if training and own == "float16" else own


def stored_dtype(config: Any) -> str:
    """Return the dtype that a configuration says its weights are stored in.

    It is float32 where the configuration does not say (as transformers takes it too), and bfloat16 for a dtype that nothing here
    computes in, such as eight bits.
    """
    stored = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if stored is None:
        return "float32"
    name = str(stored).removeprefix("torch.")
    return name if name in DTYPES else "bfloat16"
