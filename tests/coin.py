"""A model that tosses a coin: whatever it reads, it writes one of two letters with a known probability."""

from math import log
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HEADS, TAILS = "h", "t"


def save_coin(folder: Path, tokenizer: PreTrainedTokenizerFast, heads: float) -> str:
    """Save a Llama whose layers add nothing and whose tokens all look alike, so that its logits are constant.

    Args:
        folder: Where to save it.
        tokenizer: Its tokenizer, with a token for each letter.
        heads: Probability of :data:`HEADS`.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.model.norm.weight.fill_(1.0)
        model.lm_head.weight.fill_(-100 / 8)
        for letter, share in ((HEADS, heads), (TAILS, 1 - heads)):
            [token] = tokenizer(letter, add_special_tokens=False)["input_ids"]
            model.lm_head.weight[token] = log(share) / 8  # the norm makes every component of the state 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
