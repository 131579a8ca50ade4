"""Settings of an explainer: which base model, which adapter, and how the adapter is trained."""

from dataclasses import dataclass, field
from typing import Any, Literal

from afintro.errors import UserError
from afintro.lm.adapter import on_base
from afintro.lm.injection import Injection
from afintro.lm.lora import Lora
from afintro.ranges import NonNegativeFloat, NonNegativeInt, check_ranges


@dataclass(frozen=True)
class ExplainerSettings:
    """Settings of an explainer, as they stand under ``model`` in a configuration.

    Args:
        name: Hub id, local model directory, GGUF file, PEFT adapter directory (merged into its base), or the name of an
            embedded model such as ``toy`` or ``smollm2``.
        base: Base model of an adapter, instead of the base that the adapter names (which may have moved); None otherwise.
        revision: Branch, tag or commit on the hub; None for the default branch.
        lora: The adapter.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup_steps: Number of optimizer steps over which the learning rate rises linearly to its peak.
        schedule: Shape of the learning rate after the warm-up; ``linear`` and ``cosine`` end at 0.
        dtype: Dtype of the frozen base weights; adapter weights are float32. ``auto`` is float32 on a CPU, and on an accelerator
            the checkpoint's own dtype (bfloat16 for a float16 checkpoint, over which adapters do not train well).
        gradient_checkpointing: Recompute activations in the backward pass, which saves memory and takes a third more time.
            A number between 0 and 1 recomputes them in that share of the layers, evenly spread.
        compile_layers: Compile the decoder layers: steps are faster after a minute of compilation. For accelerators.
        fp8: Multiply the frozen matrices with their inputs in eight bits: steps are faster still, with a small error in the
            loss. Needs bfloat16 weights and an accelerator of compute capability 8.9 or higher.
        quantize: ``nf4`` keeps the frozen matrices in four bits, a quarter of the memory of bfloat16, with a small error in the
            loss; the exported adapter is loaded on the plain base. Needs the extra ``quantize``.
        chat_template_kwargs: Settings that the model's chat template reads, such as ``{"enable_thinking": False}``.
        prompt_date: Date that the chat template prints, if it prints one, as ``YYYY-MM-DD``; None for the checkpoint's date, and
            for the day on which training begins.
        slot_token: Existing reserved token that marks where a vector enters the prompt; None for a task without vectors.
        injection: How a vector enters the model, for tasks that have vectors.

    Raises:
        UserError: A number is outside of its range, or the matrices would be quantized twice.
    """

    name: str = "toy"
    base: str | None = None
    revision: str | None = None
    lora: Lora = field(default_factory=Lora)
    learning_rate: NonNegativeFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    gradient_checkpointing: bool | float = False
    compile_layers: bool = False
    fp8: bool = False
    quantize: Literal["nf4"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    prompt_date: str | None = None
    slot_token: str | None = None
    injection: Injection = field(default_factory=Injection)

    @property
    def model_name(self) -> str:
        """Return what the model is loaded by: ``name``, with ``base`` if a base is given."""
        return on_base(self.name, self.base)

    def __post_init__(self) -> None:
        check_ranges(self, "model")
        if self.fp8 and self.quantize:
            raise UserError("excludes model.fp8", where="model.quantize", remedy="set one of the two")
