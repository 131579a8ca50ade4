"""Turn text into token ids. Prompt and answer are tokenized separately, so the boundary between them is never searched.

Worker processes import this module to encode many drafts at once, hence it does not import torch.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import tokenizers
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from afintro.data.chat_template import Message as Message
from afintro.data.chat_template import forms, paragraphs
from afintro.data.control_strings import encode_as_text, encode_marked, render_marked, unmark
from afintro.data.control_strings import encode_text as encode_text


def chat(system: str, user: str) -> list[Message]:
    """Return a system turn and a user turn."""
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Replace each ``{field}`` of a template by its value.

    Other braces stay, unlike in ``str.format``. All fields are replaced in one pass, because a value may hold the name of a
    field.
    """
    return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), template)


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answering: bool = True) -> str:
    """Render the prompt as the model reads it.

    Models whose template refuses or leaves out a system turn (Gemma, early Mistral) read the system text at the head of the first
    user turn, see :mod:`afintro.data.chat_template`.

    Args:
        tokenizer: Tokenizer with the chat template, if there is one.
        messages: The turns.
        answering: Whether the prompt ends where the model's answer begins; otherwise it ends with the last turn.

    Raises:
        UserError: The template leaves out the text of a turn.
    """
    return unmark(render_marked(tokenizer, messages, answering))


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], slot: str | None = None
) -> list[int]:
    """Return the token ids of the rendered prompt, which already holds the BOS token.

    Args:
        tokenizer: Tokenizer with the chat template, if there is one.
        messages: The turns; control strings in them are text.
        slot: The token that marks where a vector enters the prompt, a control token wherever a turn holds it; None without.

    Raises:
        UserError: The template leaves out the text of a turn.
    """
    return encode_marked(tokenizer, render_marked(tokenizer, messages, slot=slot))


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str, cut: bool = False) -> list[int]:
    """Return the token ids of an answer with the end of sequence, without which the explainer would never learn to stop.

    Control strings in the answer are text, so that no answer ends before its end.

    Args:
        tokenizer: Tokenizer of the explainer.
        answer: The answer.
        cut: Whether the answer was cut: nobody knows what follows, so the end of sequence is left out.

    Raises:
        ValueError: The tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token")
    return [*encode_as_text(tokenizer, answer), *([] if cut else [tokenizer.eos_token_id])]


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a short hash of the way prompts are rendered, which checkpoints carry."""
    template = tokenizer.chat_template
    rendered = repr(paragraphs([{"content": "x"}]) if template is None else template)
    # Where a template left texts out without a word, prompts were others before the turns were adapted to it.
    rendered += "" if template is None else forms(tokenizer).adapted
    return hashlib.sha256(rendered.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Draft:
    """One question about one record, as text.

    Args:
        uid: Identifier, unique in its split.
        scenario_id: Examples with the same identifier are resampled together.
        question_type: Type of the question, e.g. ``generative_explanation``.
        system: System prompt.
        prompt: The question as a person reads it.
        answer: The expected answer.
        copy_answer: See :class:`afintro.data.batch.Example`.
        twins: See :class:`afintro.data.batch.Example`.
        notes: Further facts that the task keeps of the question, as JSON values.
        cut: Whether the answer is a text that was cut, see :class:`afintro.data.batch.Example`.
        facets: See :class:`afintro.data.batch.Example`.
    """

    uid: str
    scenario_id: str
    question_type: str
    system: str
    prompt: str
    answer: str
    copy_answer: str | None = None
    twins: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    cut: bool = False
    facets: dict[str, str] = field(default_factory=dict)


class Encoded(NamedTuple):
    """Drafts and their token ids in the format of a store.

    Args:
        ids: Token ids of all drafts, prompt and answer in turn, int32, as bytes.
        rows: The drafts as JSON, one after the other.
        sizes: ``[n, 2]`` int32, numbers of tokens of prompt and answer.
        ends: ``[n]`` int64, number of bytes of each row.
        checks: ``[n]`` uint32, CRC-32 of each draft's ids and row.
    """

    ids: bytes
    rows: bytes
    sizes: NDArray[np.int32]
    ends: NDArray[np.int64]
    checks: NDArray[np.uint32]


def token_ids(
    tokenizer: PreTrainedTokenizerBase, draft: Draft, slot: str | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the token ids of a draft's prompt and answer; ``slot`` as for :func:`encode_prompt`."""
    prompt = encode_prompt(tokenizer, chat(draft.system, draft.prompt), slot)
    return tuple(prompt), tuple(encode_answer(tokenizer, draft.answer, draft.cut))


def encode(tokenizer: PreTrainedTokenizerBase, drafts: Sequence[Draft], slot: str | None = None) -> Encoded:
    """Tokenize drafts and lay them end to end; ``slot`` as for :func:`encode_prompt`."""
    ids, rows, sizes = [], [], []
    for draft in drafts:
        prompt, answer = token_ids(tokenizer, draft, slot)
        ids.append(np.array([*prompt, *answer], np.int32).tobytes())
        rows.append(json.dumps(vars(draft), ensure_ascii=False).encode(errors="surrogatepass"))
        sizes.append((len(prompt), len(answer)))
    checks = [crc32(row, crc32(draft_ids)) for draft_ids, row in zip(ids, rows, strict=True)]
    return Encoded(
        b"".join(ids),
        b"".join(rows),
        np.array(sizes, np.int32).reshape(-1, 2),
        np.array([len(row) for row in rows], np.int64),
        np.array(checks, np.uint32),
    )


def encode_in_worker(tokenizer: str, drafts: Sequence[Draft], slot: str | None = None) -> Encoded:
    """Call :func:`encode` in a worker process, with the tokenizer of a folder."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    return encode(_tokenizer(tokenizer), drafts, slot)


@cache
def _tokenizer(directory: str) -> PreTrainedTokenizerBase:
    loaded = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    assert isinstance(loaded, PreTrainedTokenizerBase)
    return loaded


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of everything that decides token ids: tokenizer, its version, chat template, special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    ends = f"{tokenizer.bos_token} {tokenizer.eos_token_id}"
    parts = (type(tokenizer).__name__, tokenizers.__version__, content, template_hash(tokenizer), ends)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
