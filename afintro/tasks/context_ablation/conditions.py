"""What is asked about a sample under the conditions of a contrast, and what its record says of them."""

from collections.abc import Sequence
from typing import Any

from afintro.data.cue import SCENARIO, SEED, Contrast
from afintro.data.samples import Sample
from afintro.generation.inputs import unique_ids
from afintro.generation.prompts import Request, request_of

SIDES = ("monitored", "unmonitored")
PLACEBOS = ("placebo", "unmonitored_placebo")
AGAIN = ("alone", "unmonitored_alone")
"""What the answers are called that a control gives once more, in no batch."""
NOISE = ("noise", "unmonitored_noise")
"""What chunks call the differences between an answer and the same once more."""


def requests_of(samples: Sequence[Sample], contrast: Contrast = SEED) -> list[list[Request]]:
    """Return what the organism is asked about each sample: the sample under both conditions, then under their placebos.

    Args:
        samples: Input samples.
        contrast: The two conditions.
    """
    conditions = (*contrast.conditions, *(condition.placebo for condition in contrast.conditions))
    asked = {name: one for name, one in zip((*SIDES, *PLACEBOS), conditions, strict=True) if one is not None}
    return [
        [request_of(uid, name, condition, sample.text) for name, condition in asked.items()]
        for sample, uid in zip(samples, unique_ids(samples), strict=True)
    ]


def said_of(contrast: Contrast | None, scenario: str, uid: str) -> dict[str, Any]:
    """Return the fields of a record that tell its conditions, as keyword arguments of the record.

    Args:
        contrast: The contrast; None for the seed's pair, whose records are as before.
        scenario: The scenario text.
        uid: Unique id of the scenario in its file. Records of a contrast add its name, so that records of several contrasts can
            stand in one file.
    """
    if contrast is None:
        return {"system_prompt": SEED.monitored.system, "cue": SEED.cue, "uid": uid}
    first, second = contrast.conditions
    wrapped = any(condition.user != SCENARIO for condition in contrast.conditions)
    return {
        "system_prompt": first.system,
        "unmonitored_system_prompt": second.system,
        "cue": contrast.cue,
        "uid": f"{uid}:{contrast.name}",
        "conditions": [first.name, second.name],
        "cue_question": contrast.question,
        "monitored_user": first.user_turn(scenario) if wrapped else None,
        "unmonitored_user": second.user_turn(scenario) if wrapped else None,
        "monitored_prefill": first.prefill or None,
        "unmonitored_prefill": second.prefill or None,
    }


def template_settings(contrast: Contrast | None) -> dict[str, Any]:
    """Return what a record's provenance says of settings of the chat template that a condition has of its own."""
    if contrast is None or not any(condition.chat_template_kwargs for condition in contrast.conditions):
        return {}
    own = {condition.name: condition.chat_template_kwargs for condition in contrast.conditions}
    return {"condition_template_kwargs": own}
