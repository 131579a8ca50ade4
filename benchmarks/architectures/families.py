"""Tiny configurations of the causal language models that people use, one of every family, with what is special about each."""

from typing import Any

VOCABULARY = 64
WINDOW = 6  # tokens; shorter than most of the sequences: sliding windows, chunks
CONTEXT = 12  # tokens; original context where rotary frequencies depend on the length

SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}
WIDE = {"head_dim": 8}  # heads of a width of their own
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, **ALTERNATING}
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}
GEMMA4 = {"head_dim": 8, "global_head_dim": 16, **ALTERNATING, **PER_LAYER, "num_kv_shared_layers": 0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SHARED_EXPERT = {"shared_expert_intermediate_size": 24}
LINEAR = {
    "head_dim": 8, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
    "num_key_value_heads": 4, "head_dim": 4,
}  # fmt: skip
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24}
GROUPS = {"n_group": 1, "topk_group": 1}
DENSE_FIRST = {"first_k_dense_replace": 1}
LLAMA4 = {
    "num_hidden_layers": 4, "head_dim": 8, "attention_chunk_size": WINDOW, "num_local_experts": 2, "num_experts_per_tok": 1,
    "intermediate_size_mlp": 48, "floor_scale": 3, "attn_scale": 0.5, "no_rope_layer_interval": 4,
    "interleave_moe_layer_step": 2,
}  # fmt: skip
SCALED_BY_POSITION = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 8, "beta_fast": 32,
    "llama_4_scaling_beta": 0.5, "max_position_embeddings": 64, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [4.0, 8.0, 16.0, 32.0], "original_max_position_embeddings": CONTEXT, "factor": 5.0,
}  # fmt: skip
STATES = {"mamba_n_heads": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_d_head": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
}
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0}

# By model_type; what follows a comma tells configurations of one type apart. All have SIZE, except where names differ.
FAMILIES: dict[str, dict[str, Any]] = {
    "afmoe": {**WIDE, **EXPERTS, "num_dense_layers": 1, **ALTERNATING},
    "apertus": {},
    "arcee": {},
    "bamba": {"attn_layer_indices": [1], **STATES},
    "biogpt": {},
    "bitnet": {},
    "cohere": {"use_qk_norm": True},
    "cohere2": ALTERNATING,
    "cwm": {**WIDE, **ALTERNATING},
    "deepseek_v2": {**LATENT, **ROUTED, **DENSE_FIRST},
    "deepseek_v3": {**LATENT, **ROUTED, **DENSE_FIRST, **GROUPS},
    "diffllama": {},
    "doge": {},
    "dots1": {**WIDE, **ROUTED, **DENSE_FIRST, **GROUPS},
    "ernie4_5": WIDE,
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 1},
    "exaone4": ALTERNATING,
    "exaone_moe": {**ALTERNATING, **EXPERTS, "num_shared_experts": 1, **GROUPS},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, ALiBi": {"alibi": True},
    "falcon_h1": {
        **WIDE, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
    },
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma": {"head_dim": 16},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 20.0},
    "gemma3_text": GEMMA,
    "gemma3n_text": {
        **WIDE, **ALTERNATING, **PER_LAYER, "num_kv_shared_layers": 1, "laurel_rank": 4, "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0],
    },
    "gemma4_text": GEMMA4,
    "gemma4_text, shared keys": {
        **GEMMA4, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
    },
    "glm": WIDE,
    "glm4": WIDE,
    "glm4_moe": {**WIDE, **ROUTED, **DENSE_FIRST},
    "glm4_moe_lite": {**LATENT, **ROUTED, **DENSE_FIRST, **GROUPS},
    "gpt_neox": {},
    "gpt_oss": {**WIDE, **LOCAL_EXPERTS, **ALTERNATING},
    "granite": {
        "attention_multiplier": 0.3, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 1.5,
    },
    "granitemoe": LOCAL_EXPERTS,
    "granitemoehybrid": {
        **LOCAL_EXPERTS, "layer_types": ["mamba", "attention", "mamba"], **STATES, "shared_intermediate_size": 24,
    },
    "granitemoeshared": {**LOCAL_EXPERTS, "shared_intermediate_size": 24},
    "helium": WIDE,
    "hunyuan_v1_dense": WIDE,
    "hunyuan_v1_moe": {**WIDE, "num_experts": 4, "moe_topk": 2},
    "hyperclovax": {},
    "jamba": {
        "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "jetmoe": {**LOCAL_EXPERTS, "kv_channels": 8},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], **EXPERTS, "num_dense_layers": 1},
    "llama": {},
    "llama, dynamic RoPE": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        "max_position_embeddings": CONTEXT,
    },
    "llama4_text": LLAMA4,
    "longcat_flash": {
        **LATENT, "num_hidden_layers": 4, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 24, "moe_topk": 2,
        "n_routed_experts": 4, "zero_expert_num": 1,
    },
    "minicpm3": LATENT,
    "minimax": {
        **WIDE, **LOCAL_EXPERTS, "layer_types": ["linear_attention", "full_attention", "linear_attention"], "block_size": 4,
    },
    "minimax_m2": {**WIDE, **LOCAL_EXPERTS},
    "ministral": {**WIDE, **ALTERNATING},
    "ministral3": {**WIDE, "rope_parameters": SCALED_BY_POSITION},
    "mistral": {"sliding_window": WINDOW},
    "mixtral": LOCAL_EXPERTS,
    "modernbert-decoder": {"local_attention": 2 * WINDOW},
    "nanochat": {},
    "nemotron": WIDE,
    "nemotron_h": {
        **WIDE, "layers_block_type": ["mamba", "attention", "mlp"], "mamba_num_heads": 8, "mamba_head_dim": 8,
        "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8,
    },
    "olmo": {"clip_qkv": 2.0},
    "olmo2": {},
    "olmo3": ALTERNATING,
    "olmo_hybrid": LINEAR,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 24},
    "persimmon": {"num_key_value_heads": 4},
    "phi": {"num_key_value_heads": 4},
    "phi3": {"sliding_window": WINDOW},
    "phi3, LongRoPE": {"rope_parameters": LONG, "original_max_position_embeddings": CONTEXT},
    "phi4_multimodal": {
        "vision_config": {**VISION, "patch_size": 14, "crop_size": 28},
        "audio_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2, "ext_pw_out_channel": 16,
            "depthwise_seperable_out_channel": 16, "nemo_conv_channels": 16, "input_size": 16, "nemo_final_size": 16,
        },
    },
    "phimoe": LOCAL_EXPERTS,
    "phimoe, LongRoPE": {
        **LOCAL_EXPERTS, "rope_parameters": {**LONG, "short_mscale": 1.2, "long_mscale": 1.4},
        "original_max_position_embeddings": CONTEXT,
    },
    "qwen2": {},
    "qwen2_moe": {**EXPERTS, **SHARED_EXPERT},
    "qwen3": WIDE,
    "qwen3_5_moe_text": {**LINEAR, **EXPERTS, **SHARED_EXPERT},
    "qwen3_5_text": LINEAR,
    "qwen3_moe": {**WIDE, **EXPERTS},
    "qwen3_next": {**LINEAR, **EXPERTS, **SHARED_EXPERT},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 64, "block_types": ["recurrent", "attention"]},
    "seed_oss": WIDE,
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "solar_open": {**WIDE, **ROUTED, **GROUPS},
    "stablelm": {"use_qkv_bias": True, "qk_layernorm": True},
    "starcoder2": {"sliding_window": WINDOW},
    "vaultgemma": GEMMA,
    "youtu": LATENT,
    "zamba2": {
        "mamba_d_state": 8, "n_mamba_heads": 8, "mamba_ngroups": 1, "mamba_headdim": 8, "num_mem_blocks": 1,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
    },
}  # fmt: skip

# Families whose configurations name their sizes in another way.
OTHER_NAMES: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    "codegen": {**GPT, "rotary_dim": 4},
    "falcon_mamba": MAMBA,
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": {
        "vocab_size": VOCABULARY, "hidden_size": 32, "attention_types": [[["global", "local"], 2]], "num_layers": 4,
        "num_heads": 4, "window_size": WINDOW, "max_position_embeddings": 64,
    },
    "gptj": {**GPT, "rotary_dim": 4},
    "mamba": MAMBA,
    "mamba2": {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "mpt": {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 3, "expansion_ratio": 2, "max_seq_len": 64},
    "rwkv": {**{k: MAMBA[k] for k in MAMBA if k != "state_size"}, "attention_hidden_size": 32, "intermediate_size": 48},
    "xglm": {"vocab_size": VOCABULARY, "d_model": 32, "ffn_dim": 48, "num_layers": 3, "attention_heads": 4},
}  # fmt: skip

# Wrappers around a language model: the settings of the language model, and those of the wrapper.
WRAPPERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": (GEMMA, {"vision_config": {**VISION, "patch_size": 14}, "mm_tokens_per_image": 4}),
    "gemma4": (
        GEMMA4,
        {"vision_config": {**VISION, "patch_size": 14, "head_dim": 8, "num_key_value_heads": 2, "position_embedding_size": 16}},
    ),
    "llama4": (
        LLAMA4,
        {
            "vision_config": {
                **VISION, "intermediate_size": 64, "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32,
                "projector_output_dim": 32,
            },
        },
    ),
    "mistral3": (
        {"model_type": "mistral"},
        {
            "vision_config": {"model_type": "pixtral", **VISION, "patch_size": 14, "head_dim": 8},
            "vision_feature_layer": -1, "image_token_index": 10,
        },
    ),
    "qwen2_5_vl": ({"rope_parameters": {**SECTIONS, "mrope_section": [1, 1, 2]}}, {"vision_config": QWEN_VISION}),
    "qwen3_5": (LINEAR, {"vision_config": {**QWEN_VISION, "num_position_embeddings": 16}}),
    "qwen3_vl": (
        {**WIDE, "rope_parameters": {**SECTIONS, "mrope_section": [2, 1, 1]}},
        {"vision_config": {**QWEN_VISION, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}},
    ),
}  # fmt: skip

NAMES = sorted([*FAMILIES, *OTHER_NAMES, *WRAPPERS])
