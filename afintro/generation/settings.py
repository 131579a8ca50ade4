"""Settings that every generation run has."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from afintro.lm.sampling import Sampling


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
        seed: Recorded with the results; seeds all that is drawn. Greedy generation draws nothing.
        samples: Number of answers to each prompt; more than 1 with a temperature alone.
        temperature: Temperature at which answers are drawn; 0 generates greedily.
        top_p: See :class:`afintro.lm.sampling.Sampling`.
    """

    model: str
    revision: str | None = None
    batch_size: int = 4
    max_new_tokens: int = 256
    dtype: str = "auto"
    control_samples: int = 100
    chat_template_kwargs: dict[str, Any] | None = None
    seed: int = 0
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0

    @property
    def sampling(self) -> Sampling | None:
        """Return how tokens are drawn; None where they are the likeliest."""
        return Sampling(self.temperature, self.top_p) if self.temperature > 0 else None

    def drawn(self) -> dict[str, float | int]:
        """Return what settings and records say of sampling, as JSON values; nothing where answers are greedy."""
        if self.sampling is None:
            return {}
        return {"samples": self.samples, "temperature": self.temperature, "top_p": self.top_p}

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON values; what is newer than old folders is left out where it is not set."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists
        if values["chat_template_kwargs"] is None:
            del values["chat_template_kwargs"]
        for name in ("samples", "temperature", "top_p"):
            del values[name]
        return values | self.drawn()
