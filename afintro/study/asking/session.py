"""One trained variant, loaded once, for all of its evaluations: the adapter, and the base with the adapter disabled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from afintro.data.introspection_texts.items import Context
from afintro.errors import UserError
from afintro.explainer.checkpoint import read_checkpoint
from afintro.explainer.module import ExplainerModule
from afintro.lm.attention import uses_packed_attention
from afintro.lm.generate import generate_greedy, generate_steered
from afintro.lm.interventions import Steering
from afintro.lm.load import eos_ids
from afintro.lm.shared_prefix import Prefix, last_log_probabilities, lens_logits
from afintro.lm.spans import SpanSteering
from afintro.tasks.base import TaskData
from afintro.tasks.introspection.material import Material
from afintro.tasks.introspection.task import Introspection
from afintro.tasks.introspection.trials import PREFIX, Dialogues

SYSTEMS = ("adapter", "base")
Row = dict[str, Any]


@dataclass
class Scale:
    """How much an evaluation looks at.

    Args:
        contexts: Contexts of a side, at most; odd ones are a quarter of them.
        vectors: Vectors of a side, at most.
        items: Prompts, probes or questions of a kind, at most.
        new_tokens: Length of a written answer, at most.
        slots: Answers that are written at once.
    """

    contexts: int = 24
    vectors: int = 12
    items: int = 1000
    new_tokens: int = 32
    slots: int = 64


@dataclass(frozen=True)
class Query:
    """What is put to a system.

    Args:
        context: Read first; None for none.
        steering: Of the context; None for none.
        question: The user's turn that follows.
        prefix: What the answer begins with.
    """

    context: Context | None
    steering: SpanSteering | None
    question: str
    prefix: str = PREFIX


@dataclass(frozen=True)
class Written:
    """A written answer.

    Args:
        text: Without special tokens.
        cut: Whether it came to :attr:`Scale.new_tokens` before an end; it may have been about to end there.
    """

    text: str
    cut: bool


class Session:
    """A variant's module, data and texts.

    Args:
        module: With its trained adapter, its weights loaded.
        data: The variant's data module.
        seed: Of the variant's training.
        step: At which it was saved.
        scale: How much evaluations look at.
    """

    def __init__(self, module: ExplainerModule, data: Introspection, seed: int, step: int, scale: Scale) -> None:
        self.module, self.data, self.seed, self.step, self.scale = module, data, seed, step, scale
        self.dialogues = Dialogues(module.tokenizer)

    @classmethod
    def open(cls, run: Path, seed: int, scale: Scale = Scale()) -> "Session":  # noqa: B008
        """Load the variant that was trained in a run's folder, at its last checkpoint.

        Raises:
            UserError: No such run, or a checkpoint that does not fit its configuration.
        """
        module, data = _configured(run / "config.yaml")
        checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
        module.to("cuda" if torch.cuda.is_available() else "cpu")
        module.configure_model()
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=False)  # every name was checked
        module.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return cls(module, data, seed, int(checkpoint["global_step"]), scale)

    @property
    def identity(self) -> dict[str, Any]:
        """What its results belong to."""
        return self.module.identity

    @property
    def material(self) -> Material:
        """Texts, vectors, layers and doses."""
        return self.data.material(self.module)

    @property
    def model(self) -> Any:
        """The language model, adapter and all."""
        return self.module.model

    @contextmanager
    def system(self, name: str) -> Iterator[None]:
        """Answer as the trained variant (``adapter``), or as the same weights without it (``base``)."""
        with self.module.evaluating():
            if name == "adapter":
                yield
            else:
                with self.model.disable_adapter():
                    yield

    def contexts(self, side: str, odd: bool = True) -> list[Context]:
        """Contexts of a side, odd ones among them if wanted; the same for every variant of a study."""
        everything: list[Context] = getattr(self.material.contexts, side)
        plain = [context for context in everything if context.kind == "plain"]
        strange = [context for context in everything if context.kind == "odd"] if odd else []
        few = strange[: self.scale.contexts // 4]
        return plain[: self.scale.contexts - len(few)] + few

    def ask(self, queries: Sequence[Query], answers: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of answer tokens over the whole vocabulary.

        Queries that share context and steering share the reading of it.

        Args:
            queries: What is asked.
            answers: Token ids ``[K]`` that may follow, for each query.

        Returns:
            ``[K]`` in nats, for each query.
        """
        prefixes, places = self._prefixes(queries)
        wanted = [[answers[place] for place in own] for own in places]
        found = last_log_probabilities(self.model, prefixes, wanted)
        return _in_order(places, [[scores.tolist() for scores in own] for own in found], len(queries))

    def lens(self, queries: Sequence[Query], answers: tuple[int, int]) -> list[list[float]] | None:
        """Log-odds of two answer tokens as each layer's residual stream has them: ``[layers]`` for each query.

        None for a model whose attention cannot be replaced.
        """
        if not uses_packed_attention(self.model.get_base_model()):
            return None
        prefixes, places = self._prefixes(queries)
        found = lens_logits(self.model, prefixes, answers)
        odds = [[(scores[:, 0] - scores[:, 1]).tolist() for scores in own] for own in found]
        return _in_order(places, odds, len(queries))

    def score(
        self, queries: Sequence[Query], words: Sequence[Sequence[str]], staying: bool = False
    ) -> list[list[float]]:
        """Log-probability of whole words as the answer, whatever tokens they take.

        Args:
            queries: What is asked.
            words: Candidates of each query.
            staying: Steering stays on for question and answer, instead of the context alone.

        Returns:
            In nats, summed over a word's tokens, by query and candidate.
        """
        prefixes, places = self._prefixes(queries)
        answers = [[self.dialogues.word(word) for word in own] for own in words]
        follow = [_following(own) for own in answers]
        longer, wanted = [], []
        for prefix, own in zip(prefixes, places, strict=True):
            heads = [(head, follow[place]) for head, place in zip(prefix.rows, own, strict=True)]
            rows = [(*head, *stem) for head, stems in heads for stem in stems]
            longer.append(Prefix(prefix.ids, prefix.steering, rows, staying))
            wanted.append([tokens for _, stems in heads for tokens in stems.values()])
        scores = last_log_probabilities(self.model, longer, wanted)
        found: list[list[float]] = [[] for _ in queries]
        for own, values in zip(places, scores, strict=True):
            left = iter(values)
            for place in own:
                told = {
                    (*stem, token): float(score)
                    for stem, tokens in follow[place].items()
                    for token, score in zip(tokens, next(left), strict=True)
                }
                found[place] = [sum(told[answer[: end + 1]] for end in range(len(answer))) for answer in answers[place]]
        return found

    def write(self, queries: Sequence[Query], staying: bool = False) -> list[str]:
        """Texts of :meth:`written`."""
        return [answer.text for answer in self.written(queries, staying)]

    def written(self, queries: Sequence[Query], staying: bool = False) -> list[Written]:
        """Greedy answers.

        Args:
            queries: What is asked; the answer is written from the turn's beginning where ``prefix`` is empty.
            staying: Steering stays on for question and answer, instead of the context alone.
        """
        asked = [self.dialogues.asked(query.context, query.question, query.prefix) for query in queries]
        prompts = [one.context + one.question for one in asked]
        options: dict[str, Any] = {
            "max_new_tokens": self.scale.new_tokens,
            "eos_ids": eos_ids(self.model.get_base_model(), self.module.tokenizer),
            "batch_size": self.scale.slots,
        }
        if staying:
            conditions = [[_everywhere(query.steering, self.module.device)] for query in queries]
            ids = [own[0] for own in generate_steered(self.model, prompts, conditions, **options)]
        else:
            changes = [
                [] if query.steering is None else query.steering.on(len(one.context), self.module.device)
                for query, one in zip(queries, asked, strict=True)
            ]
            ids = generate_greedy(self.model, prompts, interventions=changes, **options)
        texts = [str(self.module.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in ids]
        return [Written(text, len(own) >= self.scale.new_tokens) for text, own in zip(texts, ids, strict=True)]

    def _prefixes(self, queries: Sequence[Query]) -> tuple[list[Prefix], list[list[int]]]:
        """Queries by context and steering, and the place of each row among them."""
        groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
        asked = [self.dialogues.asked(query.context, query.question, query.prefix) for query in queries]
        for place, (query, one) in enumerate(zip(queries, asked, strict=True)):
            groups.setdefault((one.context, id(query.steering)), []).append(place)
        prefixes = [
            Prefix(context, queries[own[0]].steering, [asked[place].question for place in own])
            for (context, _), own in groups.items()
        ]
        return prefixes, list(groups.values())


def _following(answers: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    """Every beginning of some answer, the empty one too, and the tokens that follow it: what is read once for all answers."""
    found: dict[tuple[int, ...], dict[int, None]] = {}
    for answer in answers:
        for place, token in enumerate(answer):
            found.setdefault(answer[:place], {})[token] = None
    return {stem: list(tokens) for stem, tokens in found.items()}


def _in_order(places: Sequence[Sequence[int]], found: Sequence[Sequence[Any]], count: int) -> list[Any]:
    ordered: list[Any] = [None] * count
    for own, values in zip(places, found, strict=True):
        for place, value in zip(own, values, strict=True):
            ordered[place] = value
    return ordered


def _everywhere(steering: SpanSteering | None, device: torch.device) -> list[Steering]:
    if steering is None:
        return []
    vector = (steering.size * torch.from_numpy(steering.vector)).to(device)
    return [Steering(layer, vector, "all", steering.relative) for layer in range(*steering.layers)]


def _configured(path: Path) -> tuple[ExplainerModule, Introspection]:
    """The module and the data that a run's configuration names."""
    if not path.is_file():
        raise UserError("no such run", where=str(path), remedy="train the variant first")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ExplainerModule, "model")
    parser.add_subclass_arguments(TaskData, "data")
    content = yaml.safe_load(path.read_text())
    settings = parser.parse_object({name: content[name] for name in ("model", "data")})
    made = parser.instantiate_classes(settings)
    if not isinstance(made.data, Introspection):
        raise UserError(
            f"is {type(made.data).__name__}", where=f"{path}, data", remedy="name a run of the introspection task"
        )
    return made.model, made.data
