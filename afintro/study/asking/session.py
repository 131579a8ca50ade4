"""Open a trained variant once for all of its evaluations: the adapter, and the base with the adapter disabled."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from afintro.data.introspection_texts.items import Context
from afintro.errors import UserError
from afintro.evaluation.intervals import Floats
from afintro.explainer.checkpoint import read_checkpoint
from afintro.explainer.module import ExplainerModule
from afintro.lm.attention import uses_packed_attention
from afintro.lm.generate import generate_greedy, generate_steered
from afintro.lm.interventions import Steering
from afintro.lm.load import eos_ids
from afintro.lm.shared_prefix import Prefix, last_log_probabilities, lens_logits
from afintro.lm.spans import SpanSteering
from afintro.study.asking.norms import context_norms
from afintro.study.asking.queries import Query, WrittenAnswer, in_query_order, next_tokens
from afintro.study.settings import Scale
from afintro.tasks.base import TaskData
from afintro.tasks.introspection.material import Material
from afintro.tasks.introspection.task import Introspection
from afintro.tasks.introspection.trials import Dialogues


class Session:
    """A variant's module, data and texts.

    Args:
        module: The module with its trained adapter and loaded weights.
        data: The variant's data module.
        seed: The seed of the variant's training.
        step: The optimizer step of the checkpoint.
        scale: How much the evaluations look at.
    """

    def __init__(self, module: ExplainerModule, data: Introspection, seed: int, step: int, scale: Scale) -> None:
        self.module, self.data, self.seed, self.step, self.scale = module, data, seed, step, scale
        self.dialogues = Dialogues(module.tokenizer)

    @classmethod
    def open(cls, run: Path, seed: int, scale: Scale = Scale()) -> "Session":  # noqa: B008
        """Load the variant that was trained in a run's folder at its last checkpoint.

        Args:
            run: The folder of the training.
            seed: The seed of the training.
            scale: How much the evaluations look at.

        Raises:
            UserError: The run does not exist, or its checkpoint does not fit its configuration.
        """
        module, data = _read_configuration(run / "config.yaml")
        checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
        module.keep_date(checkpoint)
        module.to("cuda" if torch.cuda.is_available() else "cpu")
        module.configure_model()
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=False)  # every name was checked
        module.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        return cls(module, data, seed, int(checkpoint["global_step"]), scale)

    @property
    def identity(self) -> dict[str, Any]:
        """Return the identity of the model that the results belong to."""
        return self.module.identity

    @property
    def material(self) -> Material:
        """Return the texts, vectors, layers and strengths of the variant."""
        return self.data.material(self.module)

    @property
    def model(self) -> Any:
        """Return the language model with its adapter."""
        return self.module.model

    @contextmanager
    def system(self, name: str) -> Iterator[None]:
        """Answer as one system inside the ``with`` block.

        Args:
            name: ``adapter`` for the trained variant, ``base`` for the same weights without the adapter.
        """
        with self.module.evaluating():
            if name == "adapter":
                yield
            else:
                with self.model.disable_adapter():
                    yield

    def contexts(self, split: str, odd: bool = True) -> list[Context]:
        """Return the contexts of a split, which are the same for every variant of a study.

        Args:
            split: ``train``, ``validation`` or ``test``.
            odd: Whether odd contexts are among them.
        """
        contexts: list[Context] = getattr(self.material.contexts, split)
        plain_contexts = [context for context in contexts if context.kind == "plain"]
        odd_contexts = [context for context in contexts if context.kind == "odd"] if odd else []
        odd_contexts = odd_contexts[: self.scale.contexts // 4]
        return plain_contexts[: self.scale.contexts - len(odd_contexts)] + odd_contexts

    def untrained_contexts(self) -> list[Context]:
        """Return the contexts of the test and validation splits, on which nothing was trained and which chose nothing."""
        both = {context.id: context for split in ("test", "validation") for context in self.contexts(split)}
        return list(both.values())  # a study with a file for one of the two splits has the same contexts in both

    def ask(self, queries: Sequence[Query], answers: Sequence[Sequence[int]]) -> list[list[float]]:
        """Compute log-probabilities of answer tokens over the whole vocabulary.

        Queries with the same context and steering share one reading of the context.

        Args:
            queries: The questions.
            answers: Token ids ``[K]`` that may follow, for each query.

        Returns:
            Log-probabilities ``[K]`` in nats, for each query.
        """
        prefixes, positions = self._group(queries)
        tokens = [[answers[index] for index in members] for members in positions]
        grouped = last_log_probabilities(self.model, prefixes, tokens)
        return in_query_order(positions, [[scores.tolist() for scores in group] for group in grouped], len(queries))

    def lens(self, queries: Sequence[Query], answers: tuple[int, int]) -> list[list[float]] | None:
        """Compute log-odds of two answer tokens from the residual stream after each layer (the logit lens).

        Args:
            queries: The questions.
            answers: The two token ids.

        Returns:
            Log-odds ``[layers]`` in nats, for each query. None for a model whose attention cannot be replaced.
        """
        if not uses_packed_attention(self.model.get_base_model()):
            return None
        prefixes, positions = self._group(queries)
        grouped = lens_logits(self.model, prefixes, answers)
        odds = [[(logits[:, 0] - logits[:, 1]).tolist() for logits in group] for group in grouped]
        return in_query_order(positions, odds, len(queries))

    def norms(self, queries: Sequence[Query]) -> Floats:
        """Measure how large the activations are on the context of each query.

        Args:
            queries: The queries, whose questions are not read.

        Returns:
            ``[queries, layers]`` float64: the logarithm of the mean norm of the residual stream after each decoder layer, over
            the context's positions. The steering of a layer shows from the next layer on.
        """
        contexts = [self.dialogues.asked(query.context, query.question).context for query in queries]
        return context_norms(self.model, contexts, [query.steering for query in queries])

    def score(
        self, queries: Sequence[Query], words: Sequence[Sequence[str]], keep_steering: bool = False
    ) -> list[list[float]]:
        """Compute the log-probability of whole words as the answer, whatever tokens the words take.

        Args:
            queries: The questions.
            words: Candidates ``[K]`` of each query.
            keep_steering: Whether question and answer are steered too, instead of the context alone.

        Returns:
            Log-probabilities ``[K]`` in nats, summed over a word's tokens, for each query.
        """
        prefixes, positions = self._group(queries)
        answers = [[self.dialogues.word(word) for word in candidates] for candidates in words]
        following = [next_tokens(candidates) for candidates in answers]
        longer_prefixes, tokens = [], []
        for prefix, members in zip(prefixes, positions, strict=True):
            questions = [(question, following[index]) for question, index in zip(prefix.rows, members, strict=True)]
            rows = [(*question, *beginning) for question, beginnings in questions for beginning in beginnings]
            longer_prefixes.append(Prefix(prefix.ids, prefix.steering, rows, keep_steering))
            tokens.append([following_tokens for _, beginnings in questions for following_tokens in beginnings.values()])
        grouped = last_log_probabilities(self.model, longer_prefixes, tokens)
        summed: list[list[float]] = [[] for _ in queries]
        for members, scores in zip(positions, grouped, strict=True):
            remaining = iter(scores)
            for index in members:
                by_beginning = {
                    (*beginning, token): float(score)
                    for beginning, following_tokens in following[index].items()
                    for token, score in zip(following_tokens, next(remaining), strict=True)
                }
                summed[index] = [
                    sum(by_beginning[answer[: end + 1]] for end in range(len(answer))) for answer in answers[index]
                ]
        return summed

    def write(self, queries: Sequence[Query], keep_steering: bool = False) -> list[WrittenAnswer]:
        """Generate greedy answers.

        Args:
            queries: The questions. With an empty ``prefix`` the answer is the whole turn.
            keep_steering: Whether question and answer are steered too, instead of the context alone.

        Returns:
            One answer for each query.
        """
        dialogues = [self.dialogues.asked(query.context, query.question, query.prefix) for query in queries]
        prompts = [dialogue.context + dialogue.question for dialogue in dialogues]
        options: dict[str, Any] = {
            "max_new_tokens": self.scale.new_tokens,
            "eos_ids": eos_ids(self.model.get_base_model(), self.module.tokenizer),
            "batch_size": self.scale.batch_size,
        }
        if keep_steering:
            conditions = [[_steering_everywhere(query.steering, self.module.device)] for query in queries]
            ids = [answers[0] for answers in generate_steered(self.model, prompts, conditions, **options)]
        else:
            interventions = [
                [] if query.steering is None else query.steering.on(len(dialogue.context), self.module.device)
                for query, dialogue in zip(queries, dialogues, strict=True)
            ]
            ids = generate_greedy(self.model, prompts, interventions=interventions, **options)
        texts = [str(self.module.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in ids]
        lengths = map(len, ids)
        return [WrittenAnswer(text, n >= self.scale.new_tokens) for text, n in zip(texts, lengths, strict=True)]

    def _group(self, queries: Sequence[Query]) -> tuple[list[Prefix], list[list[int]]]:
        """Group queries by context and steering; return each group and the indices of its members among the queries."""
        groups: dict[tuple[tuple[int, ...], int], list[int]] = {}
        dialogues = [self.dialogues.asked(query.context, query.question, query.prefix) for query in queries]
        for index, (query, dialogue) in enumerate(zip(queries, dialogues, strict=True)):
            groups.setdefault((dialogue.context, id(query.steering)), []).append(index)
        prefixes = [
            Prefix(context, queries[members[0]].steering, [dialogues[index].question for index in members])
            for (context, _), members in groups.items()
        ]
        return prefixes, list(groups.values())


def _steering_everywhere(steering: SpanSteering | None, device: torch.device) -> list[Steering]:
    if steering is None:
        return []
    vector = (steering.size * torch.from_numpy(steering.vector)).to(device)
    return [Steering(layer, vector, "all", steering.relative) for layer in range(*steering.layers)]


def _read_configuration(path: Path) -> tuple[ExplainerModule, Introspection]:
    """Construct the module and the data module that a run's configuration names."""
    if not path.is_file():
        raise UserError("does not exist", where=str(path), remedy="train the variant first")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ExplainerModule, "model")
    parser.add_subclass_arguments(TaskData, "data")
    content = yaml.safe_load(path.read_text())
    settings = parser.parse_object({name: content[name] for name in ("model", "data")})
    instances = parser.instantiate_classes(settings)
    if not isinstance(instances.data, Introspection):
        what = f"must be Introspection, not {type(instances.data).__name__}"
        raise UserError(what, where=f"{path}, data", remedy="name a run of the introspection task")
    return instances.model, instances.data
