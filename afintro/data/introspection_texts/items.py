"""Define the items of the introspection study's texts; a wrong value raises a ValueError that names the field."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KINDS = ("plain", "odd")
# What "yes" means in each style; in styles with options, what naming an option means. The style "neutral" has no polarity.
POLARITY: Mapping[str, tuple[str, ...]] = {
    "suggestive": ("steered", "unsteered"),
    "vague": ("steered", "unsteered"),
    "food": ("food", "other"),
    "concept": ("present", "absent"),
    "neutral": (),
}
WITH_OPTIONS = ("neutral", "concept")
FAMILIES = ("self_prediction", "self_calibration", "token_prediction")


@dataclass(frozen=True)
class Context:
    """A conversation that is read with or without steering.

    Args:
        id: Unique identifier.
        topic: Broad topic.
        kind: ``plain``, or ``odd``: typos, code, shouting, number lists, broken text. An unsteered odd context is a negative
            item that tells a detector of steering from a detector of strangeness.
        food: Whether the context is about food or drink, which is the label of the food control.
        system: The system turn.
        user: The user's turn.
        assistant: The assistant's turn.
    """

    id: str
    topic: str
    kind: str
    food: bool
    system: str
    user: str
    assistant: str

    def __post_init__(self) -> None:
        _check_among("kind", self.kind, KINDS)

    @property
    def text(self) -> str:
        """Return the text that a split keeps apart."""
        return "\n".join((self.system, self.user, self.assistant))

    @property
    def family(self) -> str:
        """Return the id that the item shares with its reversed twin."""
        return self.id

    @property
    def group(self) -> str:
        """Return the group that is represented in every split."""
        return self.topic if self.kind == "plain" else self.kind


@dataclass(frozen=True)
class Question:
    """A wording of the detection question.

    Args:
        id: Unique identifier.
        style: A key of :data:`POLARITY`.
        text: The question; with ``{a}`` and ``{b}`` once each if the question names its options.
        yes_means: A polarity of the style; None for neutral questions.
        reversed_of: Id of the twin question of opposite polarity; None for an original.
    """

    id: str
    style: str
    text: str
    yes_means: str | None
    reversed_of: str | None

    def __post_init__(self) -> None:
        _check_among("style", self.style, tuple(POLARITY))
        _check_among("yes_means", self.yes_means, POLARITY[self.style] or (None,))
        _check_placeholders("text", self.text, ("{a}", "{b}") if self.style in WITH_OPTIONS else ())

    @property
    def family(self) -> str:
        """Return the id that the item shares with its reversed twin."""
        return self.reversed_of or self.id

    @property
    def group(self) -> str:
        """Return the group that is represented in every split."""
        return self.style


@dataclass(frozen=True)
class Category:
    """A category of self-reports; ``note`` says what P(yes) to expect of an untrained model, and why."""

    id: str
    control: bool
    note: str


@dataclass(frozen=True)
class SelfReport:
    """A yes-no question about the model itself, or a control.

    Args:
        id: Unique identifier.
        category: Id of the item's category.
        control: Whether the question is a control, which is not about the model.
        question: The question.
        reversed_of: Id of the twin item of opposite polarity; None for an original.
        expected: ``yes`` or ``no`` for controls; None for questions about the model, whose answer nobody knows.
    """

    id: str
    category: str
    control: bool
    question: str
    reversed_of: str | None
    expected: str | None

    def __post_init__(self) -> None:
        _check_among("expected", self.expected, ("yes", "no") if self.control else (None,))
        _check_placeholders("question", self.question, ())

    @property
    def text(self) -> str:
        """Return the text that a split keeps apart."""
        return self.question

    @property
    def family(self) -> str:
        """Return the id that the item shares with its reversed twin."""
        return self.reversed_of or self.id

    @property
    def group(self) -> str:
        """Return the group that is represented in every split."""
        return self.category


@dataclass(frozen=True)
class ConceptPair:
    """Two concepts to be told apart; each is a single common noun."""

    id: str
    a: str
    b: str

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            if not getattr(self, name).isalpha():
                raise ValueError(f"field {name!r} is {getattr(self, name)!r}, not a single word")


@dataclass(frozen=True)
class Template:
    """A text about a concept, and its neutral counterpart; the difference of their activations represents the concept."""

    id: str
    concept: str
    neutral: str

    def __post_init__(self) -> None:
        if "{concept}" not in self.concept:
            raise ValueError("field 'concept' has no {concept}")
        _check_placeholders("neutral", self.neutral, ())

    def about(self, concept: str) -> str:
        """Return the text about ``concept``."""
        return self.concept.replace("{concept}", concept)


@dataclass(frozen=True)
class Task:
    """A property that the model predicts of its own answer; ``{prompt}`` in ``ask`` stands for the prompt to be answered."""

    id: str
    family: str
    ask: str

    def __post_init__(self) -> None:
        _check_among("family", self.family, FAMILIES)
        _check_placeholders("ask", self.ask, ("{prompt}",))


@dataclass(frozen=True)
class Prompt:
    """A prompt of a task; ``options`` are the answers that count, and an empty list means that any answer counts."""

    id: str
    task: str
    text: str
    options: list[str]

    def __post_init__(self) -> None:
        text = self.text.lower()
        missing = [option for option in self.options if not isinstance(option, str) or option.lower() not in text]
        if missing or len(set(self.options)) < len(self.options):
            raise ValueError("field 'options' holds an option that the text does not name, or an option twice")


@dataclass(frozen=True)
class Probe:
    """A message that needs no label."""

    id: str
    text: str


@dataclass(frozen=True)
class SelfReports:
    """The content of ``self_reports.json``."""

    categories: list[Category]
    items: list[SelfReport]


@dataclass(frozen=True)
class Concepts:
    """The content of ``concepts.json``; every template is used with every concept."""

    pairs: list[ConceptPair]
    templates: list[Template]


@dataclass(frozen=True)
class SelfPrediction:
    """The content of ``self_prediction.json``; neutral detection names its two options as ``{a}`` and ``{b}``."""

    tasks: list[Task]
    prompts: list[Prompt]
    identity_probes: list[Probe]
    neutral_detection: list[Probe]
    chat_openers: list[Probe]
    realtime: list[Probe]


def _check_among(name: str, value: str | None, allowed: Sequence[str | None]) -> None:
    if value not in allowed:
        raise ValueError(f"field {name!r} is {value!r}, not {' or '.join(map(repr, allowed))}")


def _check_placeholders(name: str, text: str, placeholders: Sequence[str]) -> None:
    """Check that a text holds each placeholder once and no other brace."""
    braces = text.count("{") + text.count("}")
    if any(text.count(placeholder) != 1 for placeholder in placeholders) or braces != 2 * len(placeholders):
        raise ValueError(f"field {name!r} must hold {' and '.join(placeholders) or 'no braces'}, once each")
