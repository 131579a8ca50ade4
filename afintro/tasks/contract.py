"""What a task needs to know of the explainer, and what it hands the explainer to answer beside its own questions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from afintro.data.batch import Example


class ExplainerSpec(Protocol):
    """What a task needs to know of the model that reads its prompts.

    Attributes:
        name: Hub id, directory or toy's name of the model.
        slot_token: The token whose embedding a vector replaces; None without vectors.
    """

    name: str
    slot_token: str | None

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit of the model on the hub; None for the default branch."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of prompts and answers."""

    @property
    def context_length(self) -> int | None:
        """Longest sequence that the model reads, in tokens; None if it is unknown."""


@dataclass(frozen=True)
class Control:
    """Items changed in a way that tells where a score comes from.

    Args:
        name: What the answers are called in the table.
        items: The changed items; each keeps the uid of the item that it stands for.
        trained: Whether the trained explainer answers; otherwise the model before training does.
    """

    name: str
    items: list[Example]
    trained: bool


@dataclass(frozen=True)
class AskedScenario:
    """A scenario as the organism was asked about it under the cue and without, and what it answered then.

    Args:
        uid: The record that the scenario is of.
        prompts: The whole prompts, as the organism read them: monitored, then unmonitored.
        answers: The prompts (0 monitored, 1 unmonitored) with the organism's outputs, and whether a limit of tokens cut each.
        organism: Model, revision and fingerprint of the organism, as far as the record says.
    """

    uid: str
    prompts: tuple[str, str]
    answers: tuple[tuple[int, str, bool], ...]
    organism: Mapping[str, Any]
