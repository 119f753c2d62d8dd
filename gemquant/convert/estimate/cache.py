"""The key-value cache: what attention must remember of the tokens before."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

BYTES_PER_VALUE = 2
"""float16 or bfloat16."""


def cache_bytes(config: Mapping[str, Any], context: int, window_cache: Collection[str]) -> int:
    """Bytes of keys and values of ``context`` tokens.

    window_cache: generations whose sliding layers keep their window alone.
    """
    generation = config["model_type"]
    layers = config["num_hidden_layers"]
    kinds = config.get("layer_types") or ["full_attention"] * layers
    window = config.get("sliding_window") or context
    tokens = sum(
        min(context, window)
        if kind == "sliding_attention" and generation in window_cache
        else context
        for kind in kinds
    )
    values = int(config["num_key_value_heads"]) * int(config["head_dim"])
    return 2 * int(tokens) * values * BYTES_PER_VALUE
