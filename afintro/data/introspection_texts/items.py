"""What the introspection study's texts consist of. A wrong value is a ValueError that names the field; the readers add where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KINDS = ("plain", "odd")
# What "yes" says in each style; where the question names options, what naming one says of it. "neutral" has no polarity.
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
    """One turn that is read with or without steering.

    Args:
        id: Unique.
        topic: What it is about, broadly.
        kind: ``plain``, or ``odd``: typos, code, shouting, number lists, broken text. An odd one that was not steered is the
            negative that tells a detector of steering from a detector of strangeness.
        food: Whether food or drink is its matter, the label of the food control.
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
        return "\n".join((self.system, self.user, self.assistant))

    @property
    def family(self) -> str:
        return self.id

    @property
    def group(self) -> str:
        return self.topic if self.kind == "plain" else self.kind


@dataclass(frozen=True)
class Question:
    """One wording of the detection question.

    Args:
        id: Unique.
        style: A key of :data:`POLARITY`.
        text: The question; ``{a}`` and ``{b}`` once each where it names its options.
        yes_means: One of the style's polarities; None for neutral questions.
        reversed_of: The question of which it is the twin of opposite polarity.
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
        return self.reversed_of or self.id

    @property
    def group(self) -> str:
        return self.style


@dataclass(frozen=True)
class Category:
    """A category of self-reports; ``note`` is what to expect of an untrained model's P(yes), and why."""

    id: str
    control: bool
    note: str


@dataclass(frozen=True)
class SelfReport:
    """A yes-no question about the model itself, or a control.

    Args:
        id: Unique.
        category: Id of its category.
        control: Whether it is about anything but the model.
        question: The question.
        reversed_of: The item of which it is the twin of opposite polarity.
        expected: ``yes`` or ``no`` for controls, None where nobody knows.
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
        return self.question

    @property
    def family(self) -> str:
        return self.reversed_of or self.id

    @property
    def group(self) -> str:
        return self.category


@dataclass(frozen=True)
class ConceptPair:
    """Two concepts to be told apart, each a single common noun."""

    id: str
    a: str
    b: str

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            if not getattr(self, name).isalpha():
                raise ValueError(f"field {name!r} is {getattr(self, name)!r}, not one word")


@dataclass(frozen=True)
class Template:
    """A text about a concept and its neutral counterpart: the difference of their activations is about the concept."""

    id: str
    concept: str
    neutral: str

    def __post_init__(self) -> None:
        if "{concept}" not in self.concept:
            raise ValueError("field 'concept' has no {concept}")
        _check_placeholders("neutral", self.neutral, ())

    def about(self, concept: str) -> str:
        """The text about this concept."""
        return self.concept.replace("{concept}", concept)


@dataclass(frozen=True)
class Task:
    """A property that the model is to predict of its own answer; ``{prompt}`` in ``ask`` is the prompt to be answered."""

    id: str
    family: str
    ask: str

    def __post_init__(self) -> None:
        _check_among("family", self.family, FAMILIES)
        _check_placeholders("ask", self.ask, ("{prompt}",))


@dataclass(frozen=True)
class Prompt:
    """A prompt of a task; ``options`` are the answers that count, none where any answer does."""

    id: str
    task: str
    text: str
    options: list[str]

    def __post_init__(self) -> None:
        missing = [one for one in self.options if not isinstance(one, str) or one.lower() not in self.text.lower()]
        if missing or len(set(self.options)) < len(self.options):
            raise ValueError("field 'options' holds what the text does not name, or the same twice")


@dataclass(frozen=True)
class Probe:
    """A message that needs no label."""

    id: str
    text: str


@dataclass(frozen=True)
class SelfReports:
    """All of ``self_reports.json``."""

    categories: list[Category]
    items: list[SelfReport]


@dataclass(frozen=True)
class Concepts:
    """All of ``concepts.json``; every template goes with every concept."""

    pairs: list[ConceptPair]
    templates: list[Template]


@dataclass(frozen=True)
class SelfPrediction:
    """All of ``self_prediction.json``; neutral detection names its two options as ``{a}`` and ``{b}``."""

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
    """Each placeholder once, and no other brace."""
    if any(text.count(one) != 1 for one in placeholders) or text.count("{") + text.count("}") != 2 * len(placeholders):
        raise ValueError(f"field {name!r} must hold {' and '.join(placeholders) or 'no braces'}, once each")
