"""The study base: a small chat model trained from scratch, for the introspection study on machines without a real model.

The study base reads dialogues, answers option questions after ``The answer is`` with nearly all probability on the named
options, and writes short free answers. It has seen the texts of the study's contexts as plain language, but none of the
study's questions, and it was never steered. Its answers about itself are trained to be a coin flip, so that a shift has room in
both directions.
"""

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from afintro.data.cache import build_once, cache_directory
from afintro.data.introspection_texts import read_concepts
from afintro.lm.attention import NAME as PACKED
from afintro.lm.forward import packed_logits
from afintro.lm.threads import use_threads
from afintro.toys.chat_base.acceptance import measure, report
from afintro.toys.chat_base.corpus import Dialogue, dialogues, study_texts
from afintro.toys.organism import ToySettings, make_tokenizer

log = logging.getLogger(__name__)

# Options of the study; each must be one token after a space.
ABOUT = "study_base.json"  # in the directory of a base: how the base was made
SINGLE = (
    "yes", "no", "Red", "Blue", "red", "blue", "foo", "bar", "Alpha", "Beta", "alpha", "beta", "up", "down", "circle", "square",
)  # fmt: skip

WINDOW = 1024
"""Number of consecutive dialogues that are sorted by length before they are cut into batches."""


@dataclass(frozen=True)
class StudyBaseSettings:
    """Hold everything that decides the base's weights; the hash of the settings names the base's folder.

    Args:
        hidden_size: Width of the residual stream.
        feedforward: Width of the feed-forward layers.
        layers: Number of decoder layers.
        heads: Number of attention heads.
        initializer_range: Standard deviation of the initial weights: one over the square root of the width, as in the toy.
        short: Number of training dialogues with one question and no context. They come first, because the base learns to
            attend to the options while few other tokens compete.
        dialogues: Number of training dialogues with a context and several questions, which come afterwards.
        batch_tokens: Approximate number of tokens per step.
        learning_rate: Peak of AdamW's schedule: warm-up over a twentieth of the steps, then linear decay to 2 % of the peak.
        context_weight: Weight of a context token in the loss, relative to an answer token.
        vocabulary: Maximum number of byte-level BPE tokens.
        context: Maximum sequence length in tokens.
        seed: Seed of the corpus and the initial weights.
        version: Number that is raised when the training code or the corpus changes.
    """

    hidden_size: int = 128
    feedforward: int = 384
    layers: int = 6
    heads: int = 4
    initializer_range: float = 0.09
    short: int = 20000
    dialogues: int = 1300
    batch_tokens: int = 1024
    learning_rate: float = 3e-3
    context_weight: float = 0.2
    vocabulary: int = 4096
    context: int = 8192
    seed: int = 1
    version: int = 3

    @property
    def key(self) -> str:
        """Compute a short hash of the settings."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def directory(self) -> Path:
        """Return the cache directory of the model, whether it is trained yet or not."""
        return cache_directory() / "organisms" / f"study-base-{self.key}"


STUDY_BASES = {
    "study-base": StudyBaseSettings(),
    "study-base-100m": StudyBaseSettings(
        hidden_size=768, feedforward=2816, layers=12, heads=12, initializer_range=0.036, short=100000, dialogues=20000,
        batch_tokens=8192, learning_rate=6e-4,
    ),
}  # fmt: skip


def build(settings: StudyBaseSettings) -> Path:
    """Train a study base unless the cache holds it; of two processes that ask at once, only one trains it.

    Args:
        settings: Settings of the study base.

    Returns:
        The directory of the study base.
    """
    directory = settings.directory

    def make(workspace: Path) -> None:
        log.info("study base: training once into %s", directory)
        _train(settings, workspace)

    if not build_once(directory, make):
        log.info("study base: reusing %s", directory)
    return directory


def training_corpus(settings: StudyBaseSettings) -> list[Dialogue]:
    """Draw the training dialogues, in the order of training."""
    short = dialogues(settings.short, settings.seed, short=True)
    return [*short, *dialogues(settings.dialogues, settings.seed, short=False)]


def make_study_tokenizer(settings: StudyBaseSettings, corpus: Sequence[Dialogue]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of the toy's kind on a part of the corpus and on all texts of the study; no weights learn the latter.

    Args:
        settings: Settings of the study base.
        corpus: Training dialogues.

    Raises:
        ValueError: An option of the study would be several tokens.
    """
    chosen = random.Random(settings.seed).sample(corpus, min(len(corpus), 5000))
    contents = [message["content"] for dialogue in chosen for message in dialogue.messages]
    shape = ToySettings(vocabulary=settings.vocabulary, context=settings.context)
    # Concepts are options too: the study asks which of two concepts was added.
    options = [*SINGLE, *(word for pair in read_concepts().pairs for word in (pair.a, pair.b))]
    tokenizer = make_tokenizer(shape, [*contents, *study_texts() * 5, *[f" {word}" for word in options] * 500])
    for word in options:
        if len(tokenizer.encode(f" {word}", add_special_tokens=False)) != 1:
            raise ValueError(f"the option {word!r} has several tokens; raise 'vocabulary'")
    return tokenizer


def make_model(settings: StudyBaseSettings, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Make the base with its initial weights, on the default device.

    Each head initially attends to tokens that resemble the current token, and copies them: the products of query and key
    matrices and of value and output matrices are the identity instead of a random matrix (Trockman and Kolter 2023, "Mimetic
    initialization of self-attention layers", with the sign that copies). With tied embeddings this names a word that was read.
    From a random initialization, learning to name one of the options took several times as many tokens.

    Args:
        settings: Settings of the study base.
        tokenizer: The tokenizer of :func:`make_study_tokenizer`.
    """
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=settings.hidden_size,
            intermediate_size=settings.feedforward,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            vocab_size=len(tokenizer),
            max_position_embeddings=settings.context,
            initializer_range=settings.initializer_range,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            nn.init.orthogonal_(attention.v_proj.weight)
            attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    model.set_attn_implementation(PACKED)
    return model


@dataclass(frozen=True)
class Encoded:
    """Hold a dialogue as token ids, with the weight of each token in the loss: 0 for tokens that are not predicted."""

    ids: list[int]
    weights: list[float]


def encode(
    tokenizer: PreTrainedTokenizerBase, corpus: Sequence[Dialogue], context_weight: float = 0.0
) -> list[Encoded]:
    """Encode dialogues. The loss predicts the answers, end of sequence included, and the context of every fourth dialogue.

    Args:
        tokenizer: The tokenizer of the study base.
        corpus: Dialogues.
        context_weight: Weight of a context token in the loss, relative to an answer token.
    """
    texts = [tokenizer.apply_chat_template(dialogue.messages, tokenize=False) for dialogue in corpus]
    system, user, assistant = (
        tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ("system", "user", "assistant")
    )
    encoded = []
    everything = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    for index, (dialogue, ids) in enumerate(zip(corpus, everything, strict=True)):
        starts = [place for place, token in enumerate(ids) if token in (system, user, assistant)]
        asked = starts[len(dialogue.context)]
        # Logits at all context tokens would cost a fifth of the time; training on them improved nothing.
        weights = [0.0, *[context_weight * (index % 4 == 0)] * (asked - 1), *[0.0] * (len(ids) - asked)]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            if start > asked and ids[start] == assistant:
                weights[start + 1 : end] = [1.0] * (end - start - 1)
        encoded.append(Encoded(ids, weights))
    return encoded


def _train(settings: StudyBaseSettings, directory: Path) -> None:
    corpus = training_corpus(settings)
    tokenizer = make_study_tokenizer(settings, corpus)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = make_model(settings, tokenizer)
        model.to(device)  # type: ignore[arg-type]  # of any module
        use_threads(model)
    _fit(model, encode(tokenizer, corpus, settings.context_weight), settings)
    model.eval()
    acceptance = measure(model, tokenizer, settings.seed)
    report(acceptance)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / ABOUT).write_text(json.dumps({**asdict(settings), "acceptance": acceptance}, indent=2))


def _batches(encoded: Sequence[Encoded], budget: int, rng: random.Random) -> Iterator[list[Encoded]]:
    """Cut dialogues into batches of about ``budget`` tokens, whose dialogues are close in order and similar in length."""
    for start in range(0, len(encoded), WINDOW):
        batches: list[list[Encoded]] = []
        tokens = budget
        for dialogue in sorted(encoded[start : start + WINDOW], key=lambda dialogue: len(dialogue.ids)):
            if tokens >= budget:
                batches.append([])
                tokens = 0
            batches[-1].append(dialogue)
            tokens += len(dialogue.ids)
        rng.shuffle(batches)
        yield from batches


def _fit(model: LlamaForCausalLM, encoded: Sequence[Encoded], settings: StudyBaseSettings) -> None:
    model.train()
    batches = list(_batches(encoded, settings.batch_tokens, random.Random(settings.seed)))
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.01)
    warmup = max(1, len(batches) // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warmup) * max(0.02, 1 - step / len(batches))
    )
    with _fast_attention(model):
        for batch in tqdm(batches, desc="training study base", mininterval=2):
            _loss(model, batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


@contextmanager
def _fast_attention(model: LlamaForCausalLM) -> Iterator[None]:
    """Use the fastest attention while the model is trained; afterwards the model takes packed rows, as everywhere else."""
    if model.device.type == "cuda":
        yield  # the kernel for packed rows
    else:
        # Many short sequences of similar length take 0.6 times as long padded as one by one.
        model.set_attn_implementation("sdpa")
        yield
        model.set_attn_implementation(PACKED)


def _loss(model: nn.Module, batch: Sequence[Encoded]) -> Tensor:
    """Compute the weighted mean of the negative log-likelihood of the predicted tokens."""
    device = next(model.parameters()).device
    ids = torch.tensor([token for dialogue in batch for token in dialogue.ids], device=device)
    weights = torch.tensor([weight for dialogue in batch for weight in dialogue.weights], device=device)
    bounds = torch.tensor([0, *(len(dialogue.ids) for dialogue in batch)], device=device).cumsum(0, dtype=torch.int32)
    predicted = weights.nonzero()[:, 0]
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = packed_logits(model, ids, bounds, predicted - 1)
    losses = F.cross_entropy(logits.float(), ids[predicted], reduction="none")
    return (losses * weights[predicted]).sum() / weights.sum()
