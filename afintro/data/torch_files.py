"""Read files of ``torch.save`` that hold tensors in plain containers; no object of a pickle is ever made."""

from pathlib import Path
from typing import Any

import torch

from afintro.errors import UserError


def load_tensors(path: Path, content: str, mmap: bool = False) -> Any:
    """Read a file through torch's reader of weights alone.

    Args:
        path: The file.
        content: What the tensors are, for the remedy.
        mmap: Whether the tensors stay in the file until they are used.

    Returns:
        Tensors on the processor, dicts and lists of them, numbers and strings.

    Raises:
        UserError: The file is damaged, or holds anything else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a malformed archive or pickle raises almost anything
        what = f"holds something other than tensors, or is cut off ({type(error).__name__})"
        raise UserError(what, where=str(path), remedy=f"save the {content} as a safetensors file") from error
