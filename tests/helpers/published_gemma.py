"""Configurations of published Gemmas, as far as sizes, caches and speed depend on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemquant.models.structure import FULL, SLIDING

_GEMMA2: Mapping[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "head_dim": 256,
    "vocab_size": 256000,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}
_GEMMA4: Mapping[str, Any] = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "head_dim": 256,
    "global_head_dim": 512,
    "vocab_size": 262144,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 262144,
    "torch_dtype": "bfloat16",
}
_INPUTS: Mapping[str, Any] = {
    **_GEMMA4,
    "num_attention_heads": 8,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262144,
    "sliding_window": 512,
}
_VALUES_FROM_KEYS: Mapping[str, Any] = {
    **_GEMMA4,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "sliding_window": 1024,
}


def layers(count: int, every: int) -> dict[str, Any]:
    """So many layers, each ``every``-th of full attention."""
    kinds = [FULL if n % every == every - 1 else SLIDING for n in range(count)]
    return {"num_hidden_layers": count, "layer_types": kinds}


PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "gemma-2-2b": {
        **_GEMMA2,
        "num_hidden_layers": 26,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "gemma-2-9b": {
        **_GEMMA2,
        "num_hidden_layers": 42,
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "gemma-2-27b": {
        **_GEMMA2,
        "num_hidden_layers": 46,
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    },
    "gemma-3-1b": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 26,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262144,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 32768,
        "torch_dtype": "bfloat16",
    },
    "gemma-4-e2b": {
        **_INPUTS,
        **layers(35, 5),
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
    },
    "gemma-4-e4b": {
        **_INPUTS,
        **layers(42, 6),
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 18,
    },
    "gemma-4-12b": {
        **_VALUES_FROM_KEYS,
        **layers(48, 6),
        "model_type": "gemma4_unified_text",
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 1,
    },
    "gemma-4-26b-a4b": {
        **_VALUES_FROM_KEYS,
        **layers(30, 6),
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "enable_moe_block": True,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
    },
    "gemma-4-31b": {
        **_VALUES_FROM_KEYS,
        **layers(60, 6),
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "num_global_key_value_heads": 4,
    },
}
"""By name on the Hub; the figures of Gemma 4's 12B are those of a third party's conversion."""


def shape_of(name: str, count: int) -> dict[str, Any]:
    """One of ``PUBLISHED`` with another number of layers, a second table as wide as ever."""
    shape = dict(PUBLISHED[name])
    if "layer_types" not in shape:
        return {**shape, "num_hidden_layers": count}
    depth, every = shape["num_hidden_layers"], 1 + shape["layer_types"].index(FULL)
    if packed := depth * shape["hidden_size_per_layer_input"]:
        if packed % count or count % every:
            raise ValueError(f"{count} layers of {name}: must divide {packed}, in {every}s.")
        shape["hidden_size_per_layer_input"] = packed // count
        shape["num_kv_shared_layers"] = shape["num_kv_shared_layers"] * count // depth
    return {**shape, **layers(count, every)}
