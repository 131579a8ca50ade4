"""Text to token ids. Prompt and answer are tokenised apart, so the boundary between them is known, never searched."""

import hashlib
import re
from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


def chat(system: str, user: str) -> list[Message]:
    """A system and a user turn."""
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def fill(template: str, fields: Mapping[str, str]) -> str:
    """The template with each ``{field}`` replaced by its value; other braces stay as they are.

    Not str.format: a wording may hold other braces. In one pass: a value may hold the name of a field.
    """
    return re.sub(r"\{(\w+)\}", lambda found: fields.get(found[1], found[0]), template)


def _plain(messages: Sequence[Message]) -> str:
    """Turns of a base model without a chat template: paragraphs, the last ending where the answer begins."""
    return "".join(f"{message['content']}\n\n" for message in messages)


def _without_system(messages: Sequence[Message]) -> list[Message]:
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    rest = [dict(message) for message in messages if message["role"] != "system"]
    rest[0]["content"] = f"{system}\n\n{rest[0]['content']}"
    return rest


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], answering: bool = True) -> str:
    """The whole prompt as the model reads it, up to where its answer begins; the turns alone where it is not ``answering``.

    Models whose template refuses a system turn (Gemma, early Mistral) read it at the head of the first user turn.
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
    """Token ids of the rendered prompt. The rendering holds the BOS already, so none is added here."""
    return encode_text(tokenizer, render(tokenizer, messages))


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Token ids of an answer, end of sequence included: without it the explainer would never learn to stop."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token")
    return [*encode_text(tokenizer, answer), tokenizer.eos_token_id]


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text as it is, no special token added."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert isinstance(ids, list)
    return ids


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash of the way prompts are rendered; checkpoints carry it."""
    template = tokenizer.chat_template
    return hashlib.sha256(repr(template if template is not None else _plain([{"content": "x"}])).encode()).hexdigest()[
        :16
    ]
