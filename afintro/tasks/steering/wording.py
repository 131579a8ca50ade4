"""How the explainer is asked about a steering record, and what it should answer."""

from dataclasses import dataclass, field

from afintro.data.splits import stable_hash
from afintro.data.text import Message, chat, fill
from afintro.evaluation.answers import Verdict, two_branch
from afintro.tasks.steering.patches import asked_layers, asked_token
from afintro.tasks.steering.records import SteeringRecord


@dataclass
class SteeringWording:
    """How the explainer is asked.

    Args:
        system: System prompt, with any of the fields below except the slot.
        user: One or several wordings with the fields ``{system_prompt}``, ``{user_prompt}``, ``{layer}``, ``{alpha}``,
            ``{tokens}`` (the token of a patch) and ``{slot}``, which stands in a wording once; which wording a prompt gets
            depends on the prompt alone.
    """

    system: str = "You predict how steering changes the behavior of a language model."
    user: list[str] = field(
        default_factory=lambda: [
            "{system_prompt}\n\n{user_prompt}\n\n"
            "If {alpha} times the vector {slot} were added at layer {layer}, how would the model's response change?"
        ]
    )


_FEATURE = "feature {slot} at layer {layer}"
PATCH_WORDING = SteeringWording(
    user=[
        f"If {_FEATURE} is added to tokens {{tokens}} when processing the text <<<{{user_prompt}}>>>, how would the output change?",
        f"When {_FEATURE} is added at tokens {{tokens}} in the input <<<{{user_prompt}}>>>, what happens to the model's output?",
        "Consider the input text: <<<{user_prompt}>>>. If we steer layer {layer} towards feature {slot} at tokens {tokens}, how "
        "does this affect the generated continuation?",
        "Given the text <<<{user_prompt}>>>, what would be the effect on the output if "
        f"{_FEATURE} is added to tokens {{tokens}}?",
        f"If we steer towards {_FEATURE} and tokens {{tokens}} when processing <<<{{user_prompt}}>>>, how would the model's "
        "response differ?",
    ]
)
"""The parent framework's own questions about a patch (arXiv:2511.08579, its configurations of activation patching)."""


def patch_wording_of(wording: SteeringWording) -> SteeringWording:
    """Return how patches are asked about: a wording that does not name the token asks about steering alone."""
    return wording if any("{tokens}" in text for text in wording.user) else PATCH_WORDING


def render(
    wording: SteeringWording, record: SteeringRecord, slot: str, without_text: bool = False
) -> tuple[list[Message], str]:
    """Return prompt and answer for a record; depends on nothing else. Twins get the same prompt.

    Args:
        wording: How the explainer is asked.
        record: A record with behavior labels.
        slot: The slot token.
        without_text: Whether the prompt's texts are left out, so that only layer, strength and vector are asked about.

    Returns:
        The system and the user message, and the answer.
    """
    user = wording.user[stable_hash(record.prompt) % len(wording.user)]
    fields = {
        "system_prompt": "" if without_text else record.system_prompt,
        "user_prompt": "" if without_text else record.scenario,
        "layer": asked_layers(record),
        "tokens": "" if without_text else asked_token(record),
        "alpha": f"{record.alpha:g}",
        "slot": slot,
    }
    assert record.steered_behavior is not None
    verdict = Verdict(bool(record.behavior_changed), record.steered_behavior)
    return chat(fill(wording.system, fields), fill(user, fields)), two_branch(verdict)
