"""Settings that every generation run has."""

from dataclasses import dataclass


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
        seed: Recorded with the results; seeds draws and intervals. Generation itself is greedy.
    """

    model: str
    revision: str | None = None
    batch_size: int = 4
    max_new_tokens: int = 256
    dtype: str = "auto"
    control_samples: int = 100
    seed: int = 0
