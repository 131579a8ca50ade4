"""Sample tokens from random streams: what a continuation draws depends on its stream alone, whatever is continued beside it.

Tokens are drawn by the Gumbel-max trick (Gumbel 1954; Maddison, Tarlow & Minka 2014, arXiv:1411.0030): the token with the
largest sum of logit and Gumbel noise is a draw from the softmax. The noise of a token is a function of the continuation's
stream, the number of tokens before it, and the token's id: nothing is kept between steps, and no generator is shared. Rounding
in the logits changes a token only where the two largest sums nearly tie, as in greedy decoding; along the cumulative
distribution there would be such a place at the edge of every token.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
MULTIPLIERS, INCREMENTS, ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
LARGEST = 1 - 2**-24  # largest float32 below 1: noise of 1 would be infinite
LIKELY = 1024  # tokens among which the nucleus is looked for on a CPU, where sorting a vocabulary is slow


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        temperature: What logits are divided by, above 0.
        top_p: Tokens are drawn among the nucleus: the likeliest tokens, as few as have at least this probability together, at
            the temperature (Holtzman et al. 2020, arXiv:1904.09751). Of equally likely tokens those with smaller ids come first.
            Above 0, at most 1; 1 is no restriction.

    Raises:
        ValueError: A number is out of range.
    """

    temperature: float
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"the temperature must be above 0, and is {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, and is {self.top_p}")


def stream_of(*names: str | int) -> int:
    """Return the 64-bit stream of a continuation, by everything that names the continuation."""
    return int.from_bytes(hashlib.sha256(json.dumps(names).encode()).digest()[:8], "little")


class RowDraws:
    """Choose the next token of every row, each from its own stream; all state lies in tensors that stay at their addresses.

    Args:
        sampling: How tokens are drawn.
        rows: Number of row slots.
        device: Device of the model.
    """

    def __init__(self, sampling: Sampling, rows: int, device: torch.device) -> None:
        self.sampling = sampling
        self.streams = torch.zeros(rows, 2, dtype=torch.long, device=device)
        self.steps = torch.zeros(rows, dtype=torch.long, device=device)

    def put(self, streams: Sequence[int], steps: Sequence[int]) -> None:
        """Set the stream of each row, from the first row slot on, and how many tokens the row has drawn from it."""
        words = [[stream & WORD, stream >> 32 & WORD] for stream in streams]
        self.streams[: len(words)] = torch.tensor(words, dtype=torch.long, device=self.streams.device).view(-1, 2)
        self.steps[: len(words)] = torch.tensor(steps, dtype=torch.long, device=self.steps.device)

    def next(self, logits: Tensor) -> Tensor:
        """Draw one token of each of the first rows: ``[R]`` for logits ``[R, vocabulary]`` float32."""
        rows = len(logits)
        scores = logits / self.sampling.temperature
        if self.sampling.top_p < 1:
            scores = scores.masked_fill(~nucleus(scores.softmax(-1), self.sampling.top_p), -torch.inf)
        tokens = (scores + gumbel_noise(self.streams[:rows], self.steps[:rows], logits.shape[-1])).argmax(-1)
        self.steps[:rows] += 1
        return tokens


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Tell which tokens belong to the nucleus, see :class:`Sampling`: ``[R, vocabulary]`` bool.

    Args:
        probabilities: ``[R, vocabulary]`` float32.
        top_p: Least probability of the nucleus, above 0.
    """
    sorted_down = _largest(probabilities, top_p)
    before = sorted_down.double().cumsum(-1) - sorted_down
    kept = (before < top_p).sum(-1, keepdim=True)
    least = sorted_down.gather(-1, kept - 1)
    # Which of several equally likely tokens a sort puts first is not defined, so that their ids decide.
    ties = probabilities == least
    room = kept - (sorted_down > least).sum(-1, keepdim=True)
    return (probabilities > least) | (ties & (ties.cumsum(-1) <= room))


def _largest(probabilities: Tensor, top_p: float) -> Tensor:
    """Return the largest probabilities in descending order, as many as surely hold the nucleus, or all of them."""
    if probabilities.device.type == "cpu" and probabilities.shape[-1] > LIKELY:
        likely = probabilities.topk(LIKELY).values
        if bool((likely.sum(-1) > top_p + 1e-5).all()):
            return likely
    return probabilities.sort(descending=True).values


def gumbel_noise(streams: Tensor, steps: Tensor, size: int) -> Tensor:
    """Compute standard Gumbel noise of the first token ids: ``[R, size]`` float32.

    Args:
        streams: ``[R, 2]`` int64, the lower and the upper 32 bits of each row's stream.
        steps: ``[R]`` int64, the number of tokens drawn before.
        size: Number of token ids.
    """
    blocks = torch.arange(-(-size // 4), device=streams.device)[None]
    zero = torch.zeros_like(steps)[:, None]
    words = philox((blocks, steps[:, None], zero, zero), (streams[:, :1], streams[:, 1:]))
    uniform = (torch.stack(words, -1).flatten(1)[:, :size].float() + 0.5) * 2.0**-32
    # Small numbers have the full precision of float32, and the largest noise is where the numbers are smallest.
    return -torch.log(-torch.log1p(-uniform.clamp(max=LARGEST)))


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Compute four random words from each counter by Philox4x32-10.

    Source: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3", SC '11.

    Args:
        counter: Four int64 tensors of words below ``2 ** 32``, which broadcast with each other and with the key.
        key: Two such tensors.

    Returns:
        Four int64 tensors of words below ``2 ** 32``.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # A product of two words has 64 bits: int64 holds them all, with the highest bit as its sign.
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (second >> 32 & WORD) ^ c1 ^ k0,
            second & WORD,
            (first >> 32 & WORD) ^ c3 ^ k1,
            first & WORD,
        )
        k0, k1 = k0 + INCREMENTS[0] & WORD, k1 + INCREMENTS[1] & WORD
    return c0, c1, c2, c3
