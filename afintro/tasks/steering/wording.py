"""How the explainer is asked about a steering record, and what it should answer."""

from dataclasses import dataclass, field

from afintro.data.splits import stable_hash
from afintro.data.text import Message, chat, fill
from afintro.evaluation.answers import Verdict, two_branch
from afintro.tasks.steering.records import SteeringRecord


@dataclass
class SteeringWording:
    """How the explainer is asked.

    Args:
        system: System prompt, with any of the fields below except the slot.
        user: One or several wordings with the fields ``{system_prompt}``, ``{user_prompt}``, ``{layer}``, ``{alpha}`` and
            ``{slot}``, which stands in a wording once; which wording a prompt gets depends on the prompt alone.
    """

    system: str = "You predict how steering changes the behavior of a language model."
    user: list[str] = field(
        default_factory=lambda: [
            "{system_prompt}\n\n{user_prompt}\n\n"
            "If {alpha} times the vector {slot} were added at layer {layer}, how would the model's response change?"
        ]
    )


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
        "layer": str(record.layer),
        "alpha": f"{record.alpha:g}",
        "slot": slot,
    }
    assert record.steered_behavior is not None
    verdict = Verdict(bool(record.behavior_changed), record.steered_behavior)
    return chat(fill(wording.system, fields), fill(user, fields)), two_branch(verdict)
