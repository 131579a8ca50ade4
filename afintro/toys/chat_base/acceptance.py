"""Measure whether a study base does what the study needs, on questions that the base has never seen."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from afintro.data.introspection_texts import read_contexts, read_questions, read_self_reports
from afintro.data.text import Message, encode_prompt
from afintro.lm.forward import packed_logits
from afintro.toys.chat_base.corpus import dialogues, turns
from afintro.toys.chat_base.questions import PREFIX, Question

log = logging.getLogger(__name__)

BATCH_TOKENS = 8192
SUFFIX = " Answer {a} for yes and {b} for no."
# Acceptable ranges: enough probability on the named options, and room for a shift of P(yes).
RANGES = {
    "mass": (0.95, 1.0),
    "self_report/alone/mass": (0.9, 1.0),
    "self_report/alone/p_yes": (0.2, 0.8),
    "self_report/after_context/mass": (0.9, 1.0),
    "self_report/after_context/p_yes": (0.2, 0.8),
    "neutral/Red_Blue/mass": (0.9, 1.0),
    "neutral/foo_bar/mass": (0.9, 1.0),
    "suggestive/Alpha_Beta/mass": (0.9, 1.0),
    "accuracy/best": (0.65, 1.0),
}


@dataclass(frozen=True)
class Asked:
    """Hold a question, the turns before it, and the options that it names."""

    before: tuple[Message, ...]
    text: str
    options: tuple[str, ...]


@torch.inference_mode()
def option_probabilities(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked]
) -> list[list[float]]:
    """Compute the probability of each option's first token after ``The answer is``, within the full vocabulary.

    Args:
        model: The study base, in eval mode.
        tokenizer: The tokenizer of the study base.
        asked: Questions.

    Returns:
        One probability per option, by question.
    """
    prefix = tokenizer.encode(PREFIX, add_special_tokens=False)
    prompts = [
        [*encode_prompt(tokenizer, [*question.before, {"role": "user", "content": question.text}]), *prefix]
        for question in asked
    ]
    answers: list[list[float]] = []
    while len(answers) < len(asked):
        end, tokens = len(answers), 0
        while end < len(asked) and (tokens == 0 or tokens + len(prompts[end]) <= BATCH_TOKENS):
            tokens += len(prompts[end])
            end += 1
        probabilities = _next_token(model, prompts[len(answers) : end])
        for row, question in zip(probabilities, asked[len(answers) : end], strict=True):
            answers.append(row[_first_tokens(tokenizer, question.options)].tolist())
    return answers


def _first_tokens(tokenizer: PreTrainedTokenizerBase, options: Sequence[str]) -> list[int]:
    return [tokenizer.encode(f" {option}", add_special_tokens=False)[0] for option in options]


def _next_token(model: nn.Module, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Compute the probabilities of the token after each prompt: ``[B, vocabulary]`` float32."""
    device = next(model.parameters()).device
    bounds = torch.tensor([0, *map(len, prompts)], device=device).cumsum(0, dtype=torch.int32)
    ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    return packed_logits(model, ids, bounds, bounds[1:].long() - 1).float().softmax(-1).cpu()


def measure(model: nn.Module, tokenizer: PreTrainedTokenizerBase, seed: int, count: int = 300) -> dict[str, float]:
    """Measure all figures of acceptance.

    Args:
        model: The study base, in eval mode.
        tokenizer: The tokenizer of the study base.
        seed: Seed of the held-out dialogues.
        count: Number of held-out dialogues with a context; half as many short dialogues are added.

    Returns:
        Shares and probabilities by name, each the mean over its questions.
    """
    return {**_synthetic(model, tokenizer, seed, count), **_self_reports(model, tokenizer), **_pairs(model, tokenizer)}


def _synthetic(model: nn.Module, tokenizer: PreTrainedTokenizerBase, seed: int, count: int) -> dict[str, float]:
    """Measure the probability mass on the named options, and how often the likeliest option is the known answer."""
    questions: list[Question] = []
    asked: list[Asked] = []
    for dialogue in (
        *dialogues(count, seed, short=False, unseen=True), *dialogues(count // 2, seed, short=True, unseen=True),
    ):  # fmt: skip
        for number, question in enumerate(dialogue.questions):
            if question.options:
                questions.append(question)
                before = tuple(dialogue.messages[: len(dialogue.context) + 2 * number])
                asked.append(Asked(before, question.text, question.options))
    masses, correct = defaultdict(list), defaultdict(list)
    for question, shares in zip(questions, option_probabilities(model, tokenizer, asked), strict=True):
        # Two options may begin with the same token, whose probability counts once.
        mass = sum(dict(zip(_first_tokens(tokenizer, question.options), shares, strict=True)).values())
        masses[question.kind].append(mass)
        if question.certain:
            correct[question.kind].append(question.options[shares.index(max(shares))] == question.answer)
    figures = {"mass": fmean(value for values in masses.values() for value in values)}
    figures |= {f"mass/{kind}": fmean(values) for kind, values in masses.items()}
    accuracies = {kind: fmean(values) for kind, values in correct.items()}
    figures |= {f"accuracy/{kind}": accuracy for kind, accuracy in accuracies.items()}
    judged = [accuracies[kind] for kind in ("mention", "comparison", "membership") if kind in accuracies]
    return figures | {"accuracy/best": max(judged, default=0.0)}


def _after_contexts() -> list[tuple[Message, ...]]:
    """Return the study's contexts in an order that mixes their topics."""
    contexts = [turns(context) for context in read_contexts()]
    return [contexts[7 * index % len(contexts)] for index in range(len(contexts))]


def _shares(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Asked], name: str, first: str
) -> dict[str, float]:
    """Compute the mean mass on both options, and the mean share of the first option in that mass."""
    both = option_probabilities(model, tokenizer, asked)
    return {f"{name}/mass": fmean(a + b for a, b in both), f"{name}/{first}": fmean(a / (a + b) for a, b in both)}


def _self_reports(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Ask the study's questions about the model, without its controls, with and without a context before them."""
    texts = [item.question for item in read_self_reports().items if not item.control]
    alone = [Asked((), text, ("yes", "no")) for text in texts]
    after = [Asked(context, text, ("yes", "no")) for context, text in zip(_after_contexts(), texts, strict=False)]
    return {
        **_shares(model, tokenizer, alone, "self_report/alone", "p_yes"),
        **_shares(model, tokenizer, after, "self_report/after_context", "p_yes"),
    }


def _pairs(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Ask the study's neutral questions with their pairs, and its suggestive questions as worded and with labels."""
    neutral, suggestive = (
        [question.text for question in read_questions() if question.style == style]
        for style in ("neutral", "suggestive")
    )
    cases = {
        ("neutral", "Red", "Blue"): neutral,
        ("neutral", "foo", "bar"): neutral,
        ("suggestive", "yes", "no"): suggestive,
        **{
            ("suggestive", a, b): [text + SUFFIX for text in suggestive]
            for a, b in (("Red", "Blue"), ("foo", "bar"), ("Alpha", "Beta"), ("up", "down"), ("circle", "square"))
        },
    }
    figures: dict[str, float] = {}
    for (style, a, b), texts in cases.items():
        asked = [
            Asked(context, text.replace("{a}", a).replace("{b}", b), (a, b))
            for context, text in zip(_after_contexts(), texts, strict=False)
        ]
        figures |= _shares(model, tokenizer, asked, f"{style}/{a}_{b}", "p_first")
    return figures


def report(figures: dict[str, float]) -> None:
    """Log all figures, and a warning for each figure that lies outside its range."""
    log.info("study base: %s", ", ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    for name, (low, high) in RANGES.items():
        if not low <= figures[name] <= high:
            log.warning(
                "study base: %s is %.3f, not within %s to %s, so results on it mean little. "
                "Remedy: use another seed, or more dialogues",
                name, figures[name], low, high,
            )  # fmt: skip
