"""Settings that every generation run has."""

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What decides the records of a generation run, beside its samples.

    Args:
        model: Hub id, local directory, GGUF file, adapter directory, or the name of an embedded model.
        revision: Branch, tag or commit on the hub.
        batch_size: Sequences per forward pass.
        max_new_tokens: Maximum length of an answer in tokens.
        dtype: The organism's dtype; ``auto`` is its checkpoint's own on an accelerator and float32 on a CPU.
        control_samples: Number of samples, evenly spread, that are also generated for the controls; 0 leaves the controls
            out.
        chat_template_kwargs: Settings that the organism's chat template reads, such as ``{"enable_thinking": False}``.
        seed: Recorded with the results; seeds draws and intervals. Generation itself is greedy.
    """

    model: str
    revision: str | None = None
    batch_size: int = 4
    max_new_tokens: int = 256
    dtype: str = "auto"
    control_samples: int = 100
    chat_template_kwargs: dict[str, Any] | None = None
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; what is newer than old folders is left out where it is not set."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists
        if values["chat_template_kwargs"] is None:
            del values["chat_template_kwargs"]
        return values
