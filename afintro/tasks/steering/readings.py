"""Read outputs: their text, their behavior, and whether a steered text broke or only says something else."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from afintro.generation.behavior import Behavior
from afintro.generation.reasoning import Reply
from afintro.lm.shared_prefix import continuation_nll

SURPRISING = 0.1  # the share of tokens at which a text may turn
RATIO = 20.0
REPEATED = 0.5
RUN = 4


@dataclass(frozen=True)
class Coherence:
    """How a text reads to the unsteered model.

    Args:
        perplexity: ``exp`` of the mean negative log-likelihood of the text's tokens without the most surprising tenth (at
            least one token): there the text turns to another behavior, which is the purpose of steering.
        repetition: Share of the text's 4-grams of tokens that occurred in it before.
    """

    perplexity: float
    repetition: float

    def holds(self, original: "Coherence") -> bool:
        """Whether the text is still coherent, compared with the unsteered text to the same prompt.

        A text is broken if its perplexity is more than 20 times that of the unsteered text, or more than half of its 4-grams
        are repetitions and the unsteered text's are not.
        """
        loops = self.repetition > REPEATED >= original.repetition
        return self.perplexity <= RATIO * original.perplexity and not loops


def coherence(tokens: Sequence[int], nll: Sequence[float]) -> Coherence:
    """Measure one text.

    Args:
        tokens: The text's token ids; an empty text is coherent.
        nll: Negative log-likelihood of each token under the unsteered model, in nats; may include the end of sequence.
    """
    kept = sorted(nll)[: len(nll) - max(1, math.floor(SURPRISING * len(nll)))]
    perplexity = math.exp(min(sum(kept) / len(kept), 700.0)) if kept else 1.0
    runs = [tuple(tokens[i : i + RUN]) for i in range(len(tokens) - RUN + 1)]
    return Coherence(perplexity, 1 - len(set(runs)) / len(runs) if runs else 0.0)


@dataclass(frozen=True)
class Reading:
    """One output: its reply, its behavior, and whether the text is coherent."""

    reply: Reply
    behavior: Behavior
    coherence: Coherence
    coherent: bool


def read_outputs(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[Sequence[int]]],
    decode: Callable[[Sequence[int], Sequence[int]], Reply],
    label: Callable[[Reply], Behavior],
    stop: int,
) -> list[list[Reading]]:
    """Read every output; equal outputs to one prompt are read once.

    Args:
        model: The unsteered organism.
        prompts: Token ids.
        outputs: Token ids by prompt and condition; the first condition is the unsteered one.
        decode: Token ids of an output and of its prompt to a reply.
        label: Reply to behavior.
        stop: The token id with which the model ends an output.
    """
    different = [list(dict.fromkeys(tuple(ids) for ids in answers)) for answers in outputs]
    replies = [[decode(ids, prompt) for ids in answers] for prompt, answers in zip(prompts, different, strict=True)]
    ended = [
        [ids if reply.truncated else (*ids, stop) for ids, reply in zip(answers, own, strict=True)]
        for answers, own in zip(different, replies, strict=True)
    ]
    nll = continuation_nll(model, prompts, ended)
    readings = []
    for answers, unique, own, surprises in zip(outputs, different, replies, nll, strict=True):
        original = coherence(unique[0], surprises[0])
        by_ids = {}
        for ids, reply, surprise in zip(unique, own, surprises, strict=True):
            measured = coherence(ids, surprise)
            by_ids[ids] = Reading(reply, label(reply), measured, measured.holds(original))
        readings.append([by_ids[tuple(ids)] for ids in answers])
    return readings
