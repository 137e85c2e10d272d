"""Tiny configs of the families: what each model's config adds to COMMON, with every feature in use.

Windows and thresholds are apart: `REACH` brings them below the length of short test sequences.
"""

from typing import Any

from orpo_mlx.doctor import toys

VOCABULARY = 384
COMMON: dict[str, Any] = toys.COMMON | {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
}
EXPERTS: dict[str, Any] = toys.EXPERTS | {"moe_intermediate_size": 32}
DELTA_NET: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 3,
    "partial_rotary_factor": 0.5,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 512,
        },
    },
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "gemma2": {"query_pre_attn_scalar": 16.0},
    "gemma3_text": {"sliding_window_pattern": 3, "query_pre_attn_scalar": 16.0},
    "gemma4_text": {
        "num_hidden_layers": 5, "sliding_window_pattern": 2, "global_head_dim": 32,
        "num_global_key_value_heads": 1, "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY,
        "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
        "moe_intermediate_size": 32,
        "rope_parameters": {
            "full_attention": {
                "rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25,
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "phi3": {},
    "cohere2": {"sliding_window_pattern": 2, "layer_norm_eps": 1e-5},
    "granite": {
        "logits_scaling": 2.0, "attention_multiplier": 0.25, "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5, "attention_bias": False, "mlp_bias": False,
    },
    "olmo2": {"tie_word_embeddings": False},
    "olmo3": {
        "sliding_window": 256,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "smollm3": {"no_rope_layer_interval": 2},
    "glm4": {"attention_bias": True, "partial_rotary_factor": 0.5},
    "starcoder2": {"norm_epsilon": 1e-5},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1,
        "topk_group": 1, "topk_method": "noaux_tc", "norm_topk_prob": True,
        "first_k_dense_replace": 1, "moe_layer_freq": 1, "moe_intermediate_size": 32,
        "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 32,
        "qk_nope_head_dim": 32, "v_head_dim": 32,
    },
    "minicpm3": {
        "num_key_value_heads": 4, "dim_model_base": 32, "q_lora_rank": 32, "kv_lora_rank": 32,
        "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "scale_depth": 1.4, "scale_emb": 2.0,
        "rope_scaling": {
            "type": "longrope", "long_factor": [1.5] * 16, "short_factor": [1.0] * 16,
        },
    },
    "lfm2": {
        "norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3, "block_dim": 64,
        "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": False,
        "block_ff_dim": 96, "full_attn_idxs": [1],
    },
    "qwen3_next": EXPERTS | DELTA_NET | {"shared_expert_intermediate_size": 32},
    "qwen3_5": {
        "text_config": COMMON | DELTA_NET | {
            "model_type": "qwen3_5_text",
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
            },
        },
    },
    "falcon_h1": {
        "mamba_d_conv": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 16,
        "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_chunk_size": 16,
    },
    "mamba2": {
        "num_heads": 8, "head_dim": 16, "state_size": 16, "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4, "n_groups": 2, "use_bias": False, "use_conv_bias": True,
        "time_step_limit": [0.001, 0.1], "time_step_rank": "auto",
    },
    # Not among the families that must be fast.
    "granitemoe": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "attention_multiplier": 0.25,
        "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0,
        "attention_bias": False, "mlp_bias": False,
    },
    "internlm2": {"bias": False},
    "dbrx": {
        "tie_word_embeddings": False, "d_model": 64, "n_heads": 4, "n_layers": 3,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gemma3n": {
        "text_config": COMMON | {
            "model_type": "gemma3n_text", "num_hidden_layers": 4, "intermediate_size": [96] * 4,
            "num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCABULARY,
            "sliding_window": 256, "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": 30.0, "hidden_size_per_layer_input": 16,
            "altup_num_inputs": 4, "altup_coef_clip": 120.0, "altup_correct_scale": True,
            "altup_active_idx": 0, "laurel_rank": 8, "rope_scaling": None,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.0] * 4,
        },
    },
}  # fmt: skip

# The 25 whose fast path is shown exact.
FAST = [*FAMILIES][:25]

SLIDING = {
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
YARN = {
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 32,
}
# What a family's config also has where sequences are to pass every window and rope threshold.
REACH: dict[str, dict[str, Any]] = {
    "llama": SLIDING | {
        "rope_scaling": {
            "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "ministral3": SLIDING | {
        "rope_parameters": YARN | {
            "rope_type": "yarn", "rope_theta": 10000.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
    "qwen2": {"tie_word_embeddings": False},
    "gemma3_text": {"sliding_window": 24},
    "gemma4_text": {"sliding_window": 24},
    "phi3": {
        "original_max_position_embeddings": 32,
        "rope_scaling": {
            "type": "longrope", "long_factor": [1.5] * 8, "short_factor": [1.0] * 8,
        },
    },
    "cohere2": {"sliding_window": 24},
    "olmo3": SLIDING | {"rope_scaling": YARN | {"rope_type": "yarn", "attention_factor": 1.1}},
    "gpt_oss": SLIDING,
    "deepseek_v3": {
        "rope_scaling": YARN | {"type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "minicpm3": {
        "rope_scaling": {
            "type": "longrope", "long_factor": [1.5] * 16, "short_factor": [1.0] * 16,
            "original_max_position_embeddings": 32,
        },
    },
}  # fmt: skip

MLA: dict[str, Any] = {
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
MIXTURE: dict[str, Any] = {
    "num_experts": 4,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
KDA: dict[str, Any] = (
    MLA
    | MIXTURE
    | {
        "num_experts_per_token": 2,
        "num_shared_experts": 1,
        "linear_attn_config": {
            "kda_layers": [1, 2],
            "full_attn_layers": [3],
            "num_heads": 4,
            "head_dim": 16,
            "short_conv_kernel_size": 4,
        },
    }
)
LING: dict[str, Any] = MIXTURE | {
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "layer_group_size": 3,
}
# Further families whose layers run over tokens one by one in mlx-lm.
RECURRENT: dict[str, dict[str, Any]] = {
    "kimi_linear": KDA | {"model_max_length": 4096},
    "kimi_k3": KDA
    | {
        "q_lora_rank": 32,
        "activation_situ_beta": 1.0,
        "activation_situ_linear_beta": 1.0,
        "linear_attn_config": KDA["linear_attn_config"] | {"gate_lower_bound": -5.0},
    },
    "olmo_hybrid": DELTA_NET
    | {
        "linear_allow_neg_eigval": True,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    },
    "bailing_moe_v3": MLA
    | LING
    | {
        "moe_shared_expert_intermediate_size": 32,
        "q_lora_rank": 32,
    },
    "bailing_moe_linear": LING
    | {
        "num_shared_experts": 1,
        "norm_topk_prob": True,
        "group_norm_size": 1,
    },
    "jamba": {
        "attn_layer_offset": 2,
        "attn_layer_period": 3,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "mamba": {
        "state_size": 8,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 8,
        "intermediate_size": 128,
    },
    "rwkv7": {
        "norm_eps": 1e-5,
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "recurrent_gemma": {
        "attention_bias": False,
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "attention_window_size": 256,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
}
