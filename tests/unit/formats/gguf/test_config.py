"""A GGUF's metadata describes the same model as the folder that it was made from."""

from __future__ import annotations

from typing import Any

import pytest

from gemquant.errors import CheckpointError, Problems, UnsupportedError
from gemquant.formats.gguf.config import gguf_config


def metadata(architecture: str = "gemma3", **changes: Any) -> dict[str, Any]:
    values = {
        "embedding_length": 5376, "block_count": 62, "feed_forward_length": 21504,
        "attention.head_count": 32, "attention.head_count_kv": 16, "attention.key_length": 128,
        "context_length": 131072, "attention.layer_norm_rms_epsilon": 9.999999974752427e-07,
        "attention.sliding_window": 1024, "rope.freq_base": 1000000.0,
        "rope.scaling.type": "linear", "rope.scaling.factor": 8.0, **changes,
    }  # fmt: skip
    named = {f"{architecture}.{key}": value for key, value in values.items()}
    return {"general.architecture": architecture, **named}


def config(**changes: Any) -> dict[str, Any]:
    return gguf_config(metadata(**changes), vocab_size=262208, tied=True)


def test_queries_of_a_27b_are_scaled_by_hidden_over_heads() -> None:
    assert config()["query_pre_attn_scalar"] == 168


def test_queries_of_smaller_models_are_scaled_by_the_head_dimension() -> None:
    assert config(block_count=34)["query_pre_attn_scalar"] == 128


def test_numbers_stored_in_32_bits_get_their_own_spelling_back() -> None:
    assert config()["rms_norm_eps"] == 1e-06


def test_linear_scaling_is_carried_over() -> None:
    assert config()["rope_parameters"]["full_attention"] == {
        "rope_type": "linear",
        "factor": 8.0,
        "rope_theta": 1000000.0,
    }


def test_every_sixth_layer_sees_everything() -> None:
    layers = config(block_count=7)["layer_types"]
    assert layers == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]


def test_missing_keys_are_named_together() -> None:
    incomplete = metadata()
    del incomplete["gemma3.block_count"], incomplete["gemma3.embedding_length"]
    with pytest.raises(Problems, match="2 problems") as caught:
        gguf_config(incomplete, vocab_size=10, tied=True)
    assert "gemma3.block_count is missing" in str(caught.value)


def test_a_value_of_the_wrong_type_is_named() -> None:
    with pytest.raises(CheckpointError, match="num_hidden_layers 'x'"):
        config(block_count="x")


def test_another_architecture_lists_the_supported() -> None:
    with pytest.raises(UnsupportedError, match="'llama': supported are gemma, gemma2, gemma3"):
        gguf_config({"general.architecture": "llama"}, vocab_size=10, tied=True)


def test_a_vision_projector_is_explained() -> None:
    with pytest.raises(UnsupportedError) as caught:
        gguf_config({"general.architecture": "clip"}, vocab_size=10, tied=True)
    assert caught.value.hint is not None
    assert "vision part" in caught.value.hint
