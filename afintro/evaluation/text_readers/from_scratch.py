"""A small recurrent reader of tokens in their order, trained from scratch on the prompts that the explainer reads."""

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from torch.nn.utils.rnn import pad_sequence

from afintro.data.batch import Example
from afintro.evaluation.text_readers.training import SEED, Probabilities, Taught, draw

log = logging.getLogger(__name__)

NAME = "from_scratch"
WIDTH = 48
BATCH = 64
PADDING, UNKNOWN = 0, 1
DROPOUT = 0.2
FORGOTTEN = 0.05  # share of tokens that training reads as unknown
LEARNING_RATE = 0.01
FITTED = 0.15  # mean loss of an epoch, under dropout, at which the training prompts are known
PATIENCE = 8  # epochs without a loss lower by one percent
EPOCHS = 100
VISITS = 1_400_000  # tokens that training reads at most, all epochs together, but for the least number of epochs
LEAST_EPOCHS = 8
TOKENS = 400_000  # tokens of training prompts at most
LONGEST = 1024  # tokens of a prompt; of a longer one the middle is left out


class Reader(nn.Module):
    """Two recurrent layers, one for each direction, and the largest activation of every unit over the positions.

    Gated recurrent units (Cho et al. 2014), max-pooling over time (Collobert et al. 2011). The embeddings are pooled too: a
    single telling token then needs no recurrence.

    Args:
        tokens: Size of the vocabulary.
        kinds: Number of kinds of answers.
    """

    def __init__(self, tokens: int, kinds: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, WIDTH, padding_idx=PADDING)
        self.forwards, self.backwards = nn.GRU(WIDTH, WIDTH), nn.GRU(WIDTH, WIDTH)
        self.drop = nn.Dropout(DROPOUT)
        self.answer = nn.Linear(3 * WIDTH, kinds)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ``[T, B]`` int64 ids, padded at the end, to ``[B, kinds]`` logits."""
        padding = ids == PADDING
        embedded = self.drop(self.embed(ids))
        # Each sequence is turned around within its own length, so that padding never precedes a token.
        position, length = torch.arange(len(ids))[:, None], (~padding).sum(0)
        turned = torch.where(padding, position, length - 1 - position)[:, :, None].expand_as(embedded)
        states = torch.cat([embedded, self.forwards(embedded)[0], self.backwards(embedded.gather(0, turned))[0]], -1)
        pooled = states.masked_fill(padding[:, :, None], -torch.inf).amax(0)
        return self.answer(self.drop(pooled))


def read_from_scratch(taught: Taught, items: Sequence[Example]) -> Probabilities:
    """Answer items by a reader that was trained on the training prompts alone, until it knows them.

    Training stops when the loss shows that the prompts are known, or falls no more, or at a bound on the tokens read. The
    global random state, gradient mode and number of threads are left as they are.

    Args:
        taught: Training examples and the kinds of their answers.
        items: Examples to answer.

    Returns:
        ``[items, kinds]`` float64.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums then do not depend on the machine, and small matrices are fastest so
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            torch.manual_seed(SEED)
            return _read(taught, items)
    finally:
        torch.set_num_threads(threads)


def _read(taught: Taught, items: Sequence[Example]) -> Probabilities:
    before, after = _shared_ends([example.prompt_ids for example in taught.examples])

    def told(examples: Sequence[Example]) -> list[Sequence[int]]:
        """Leave out what all training prompts begin and end with, such as the template of the chat."""
        return [_middle_out(example.prompt_ids[before : len(example.prompt_ids) - after]) for example in examples]

    taught = draw(NAME, taught, [len(ids) for ids in told(taught.examples)], TOKENS)
    prompts, counts = _merged(told(taught.examples), taught)
    known = {token: index for index, token in enumerate(sorted(set().union(*prompts)), start=UNKNOWN + 1)}
    model = Reader(len(known) + UNKNOWN + 1, taught.kinds)
    _train(model, _tensors(prompts, known), counts)
    model.eval()
    answers = np.zeros((len(items), taught.kinds))
    with torch.no_grad():
        for rows, ids in _batches(_tensors(told(items), known)):
            answers[rows] = model(ids).double().softmax(-1).numpy()
    return answers


def _merged(prompts: Sequence[Sequence[int]], taught: Taught) -> tuple[list[tuple[int, ...]], Tensor]:
    """Merge equal prompts: return each once, and how often each kind of answer stands behind it, ``[prompts, kinds]``."""
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    counts = torch.zeros(len(rows), taught.kinds)
    for prompt, label in zip(prompts, taught.labels.tolist(), strict=True):
        counts[rows[tuple(prompt)], label] += 1
    return list(rows), counts


def _train(model: Reader, prompts: list[Tensor], counts: Tensor) -> None:
    """Train until the prompts are known, the loss falls no more, or the bound on tokens is reached.

    The loss is the divergence from the shares of the answers to each prompt, so that it is 0 for whoever knows them.

    Args:
        model: The reader.
        prompts: Numbers of the tokens of each prompt.
        counts: ``[prompts, kinds]`` float32, how often each kind of answer stands behind a prompt.
    """
    started, weights = time.monotonic(), counts.sum(1)
    shares = counts / weights[:, None]
    epochs = min(EPOCHS, max(LEAST_EPOCHS, VISITS // sum(map(len, prompts))))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    best, best_epoch, epoch, mean = float("inf"), 0, 0, float("inf")
    for epoch in range(1, epochs + 1):
        total = 0.0
        batches = list(_batches(prompts, shuffled=True))
        for index in torch.randperm(len(batches)).tolist():
            rows, ids = batches[index]
            forgotten = (torch.rand(ids.shape) < FORGOTTEN) & (ids != PADDING)
            logs = model(ids.masked_fill(forgotten, UNKNOWN)).log_softmax(-1)
            losses = kl_div(logs, shares[rows], reduction="none").sum(1) * weights[rows]
            loss = losses.sum() / weights[rows].sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += float(losses.detach().sum())
        mean = total / float(weights.sum())
        log.debug("%s: epoch %d, loss %.3f", NAME, epoch, mean)
        if mean < 0.99 * best:
            best, best_epoch = mean, epoch
        if mean <= FITTED or epoch - best_epoch >= PATIENCE:
            break
    if mean > FITTED:
        log.warning("%s stopped at loss %.2f: it may know its training prompts in part only", NAME, mean)
    log.info(
        "%s learned %d different prompts in %d epochs (%.1f s)", NAME, len(prompts), epoch, time.monotonic() - started
    )


def _batches(prompts: Sequence[Tensor], shuffled: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and their padded ids ``[T, B]``; prompts of like length stand together."""
    order = torch.randperm(len(prompts)) if shuffled else torch.arange(len(prompts))
    lengths = torch.tensor([len(prompts[row]) for row in order.tolist()])
    order = order[torch.argsort(lengths, stable=True)]
    for rows in order.split(BATCH):
        yield rows, pad_sequence([prompts[row] for row in rows.tolist()], padding_value=PADDING)


def _tensors(prompts: Sequence[Sequence[int]], known: dict[int, int]) -> list[Tensor]:
    """Replace tokens by their numbers in training; a prompt without tokens becomes one unknown token."""
    return [torch.tensor([known.get(token, UNKNOWN) for token in ids] or [UNKNOWN]) for ids in prompts]


def _shared_ends(prompts: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Count the tokens that all prompts begin with, and of the rest those that all prompts end with."""
    shortest = min(map(len, prompts))
    first = prompts[0]
    before = after = 0
    while before < shortest and all(ids[before] == first[before] for ids in prompts):
        before += 1
    while after < shortest - before and all(ids[-1 - after] == first[-1 - after] for ids in prompts):
        after += 1
    return before, after


def _middle_out(ids: Sequence[int]) -> Sequence[int]:
    half = LONGEST // 2
    return ids if len(ids) <= LONGEST else (*ids[:half], *ids[-half:])
