"""Configurations of published Gemmas, as far as sizes and caches need them."""

from __future__ import annotations

from typing import Any

import pytest

from gemquant.models.config import text_config
from tests.helpers.tiny_gemma import tiny_config


@pytest.fixture
def gemma2_2b() -> dict[str, Any]:
    """google/gemma-2-2b."""
    shape = {
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256000,
        "sliding_window": 4096,
        "max_position_embeddings": 8192,
    }
    return dict(text_config({**tiny_config("gemma2"), **shape}))


def _layers(count: int, every: int) -> dict[str, Any]:
    kinds = [
        "full_attention" if n % every == every - 1 else "sliding_attention" for n in range(count)
    ]
    return {"num_hidden_layers": count, "layer_types": kinds}


_GEMMA4: dict[str, Any] = {
    "model_type": "gemma4_text",
    "head_dim": 256,
    "global_head_dim": 512,
    "vocab_size": 262144,
    "final_logit_softcapping": 30.0,
}
_INPUTS: dict[str, Any] = {
    **_GEMMA4,
    "num_attention_heads": 8,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262144,
    "sliding_window": 512,
}
_VALUES_FROM_KEYS: dict[str, Any] = {
    **_GEMMA4,
    "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0,
    "sliding_window": 1024,
}
GEMMA4: dict[str, dict[str, Any]] = {
    "E2B": {
        **_INPUTS,
        **_layers(35, 5),
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 20,
        "use_double_wide_mlp": True,
    },
    "E4B": {
        **_INPUTS,
        **_layers(42, 6),
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 18,
    },
    "12B": {
        **_VALUES_FROM_KEYS,
        **_layers(48, 6),
        "model_type": "gemma4_unified_text",
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 1,
    },
    "26B-A4B": {
        **_VALUES_FROM_KEYS,
        **_layers(30, 6),
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
    "31B": {
        **_VALUES_FROM_KEYS,
        **_layers(60, 6),
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "num_global_key_value_heads": 4,
    },
}
"""google/gemma-4-…; the 12B's figures are those of a third party's conversion."""


@pytest.fixture
def gemma4(request: pytest.FixtureRequest) -> dict[str, Any]:
    """google/gemma-4-…, by its size."""
    return dict(text_config(GEMMA4[request.param]))


@pytest.fixture
def gemma3_1b() -> dict[str, Any]:
    """google/gemma-3-1b-it."""
    shape = {
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262144,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 32768,
    }
    return dict(text_config({**tiny_config("gemma3_text"), **shape}))
