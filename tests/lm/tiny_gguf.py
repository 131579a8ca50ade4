"""Write a tiny Llama as a GGUF file, as llama.cpp's converter does: its names of weights, its order of query and key rows."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<slot>"]
WORDS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def tiny_llama(seed=0, **changes):
    """Return a random Llama with wide margins between its logits."""
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    settings = {
        **SHAPE,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        **changes,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**settings, **ids, initializer_range=0.2)).eval()


def write_tiny_gguf(path: Path, model, kind=None, architecture="llama", more=None, settings=lambda writer: None):
    """Write the model; ``kind`` is the type of the matrices (None: float32), ``more`` has tensors that no Llama takes."""
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quantize

    config = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([TokenType.CONTROL] * len(SPECIAL) + [TokenType.NORMAL] * (len(WORDS) - len(SPECIAL)))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    settings(writer)
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    for name, tensor in model.state_dict().items():
        array = _rows(name, tensor.numpy(), config)
        if (theirs := _name(name)) is None:
            continue
        if kind is None or array.ndim == 1:
            writer.add_tensor(theirs, array)
        else:
            writer.add_tensor(theirs, quantize(array, GGMLQuantizationType[kind]), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name):
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole or name == "lm_head.weight":
        return whole.get(name)  # tied: a file without an output matrix
    _, _, layer, *rest, _ = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(rest)]}.weight"


def _rows(name, array, config):
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:  # llama.cpp rotates neighboring pairs, transformers rotates halves
            array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
    return np.ascontiguousarray(array)
