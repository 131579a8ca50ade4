"""Turn text into token ids. Prompt and answer are tokenized separately, so the boundary between them is known."""

import hashlib
import re
from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


def chat(system: str, user: str) -> list[Message]:
    """Return a system turn and a user turn."""
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def fill(template: str, fields: Mapping[str, str]) -> str:
    """Replace each ``{field}`` of a template by its value.

    Other braces stay, unlike in ``str.format``. All fields are replaced in one pass, because a value may hold the name of a
    field.
    """
    return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), template)


def _plain(messages: Sequence[Message]) -> str:
    """Render turns for a base model without a chat template: paragraphs, after the last of which the answer begins."""
    return "".join(f"{message['content']}\n\n" for message in messages)


def _without_system(messages: Sequence[Message]) -> list[Message]:
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    rest = [dict(message) for message in messages if message["role"] != "system"]
    rest[0]["content"] = f"{system}\n\n{rest[0]['content']}"
    return rest


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answering: bool = True) -> str:
    """Render the prompt as the model reads it.

    Models whose template refuses a system turn (Gemma, early Mistral) read the system text at the head of the first user turn.

    Args:
        tokenizer: Tokenizer with the chat template, if there is one.
        messages: The turns.
        answering: Whether the prompt ends where the model's answer begins; otherwise it ends with the last turn.
    """
    if tokenizer.chat_template is None:
        return (tokenizer.bos_token or "") + _plain(messages)
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answering)
    except TemplateError:
        text = tokenizer.apply_chat_template(_without_system(messages), tokenize=False, add_generation_prompt=answering)
    assert isinstance(text, str)
    return text


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return the token ids of the rendered prompt, which already holds the BOS token."""
    return encode_text(tokenizer, render(tokenizer, messages))


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Return the token ids of an answer with the end of sequence, without which the explainer would never learn to stop.

    Raises:
        ValueError: The tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token")
    return [*encode_text(tokenizer, answer), tokenizer.eos_token_id]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text, without adding special tokens."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert isinstance(ids, list)
    return ids


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a short hash of the way prompts are rendered, which checkpoints carry."""
    template = tokenizer.chat_template
    return hashlib.sha256(repr(template if template is not None else _plain([{"content": "x"}])).encode()).hexdigest()[
        :16
    ]
