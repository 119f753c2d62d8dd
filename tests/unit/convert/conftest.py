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
