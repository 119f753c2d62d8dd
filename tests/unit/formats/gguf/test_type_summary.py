"""Sizes, bits per weight and fallbacks of Gemma 3 270M, whose rows of 640 fit no K-quant."""

from __future__ import annotations

from typing import Any

import pytest

from gemquant.formats.gguf.file_types import file_type
from gemquant.formats.gguf.type_summary import bits_per_weight, fallbacks, type_shares
from gemquant.formats.gguf.types import TensorType, TypeRequest, choose_types

GEMMA_3_270M: dict[str, Any] = {
    "model_type": "gemma3_text", "num_hidden_layers": 18, "hidden_size": 640,
    "intermediate_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 1,
    "head_dim": 256, "vocab_size": 262144, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def tensors() -> tuple[TensorType, ...]:
    request = TypeRequest(file_type("Q4_K_M"))
    return choose_types(GEMMA_3_270M, request, has_importance=False).tensors


def test_shares_are_counted_in_tensors_weights_and_bytes(tensors: tuple[TensorType, ...]) -> None:
    shares = {share.type.name: share for share in type_shares(tensors)}
    assert {name: share.tensors for name, share in shares.items()} == {
        "Q8_0": 10, "Q5_0": 81, "Q6_K": 9, "Q4_K": 27, "F32": 109,
    }  # fmt: skip
    # 9 of the ffn_down, 640 rows of 2048 columns: 8 blocks of 210 bytes each.
    assert shares["Q6_K"].size_bytes == 9 * 640 * 8 * 210
    assert shares["Q8_0"].weights == 262144 * 640 + 9 * 256 * 640


def test_the_largest_share_comes_first(tensors: tuple[TensorType, ...]) -> None:
    assert type_shares(tensors)[0].type.name == "Q8_0"


def test_bits_per_weight_count_the_embedding_and_the_fallbacks(
    tensors: tuple[TensorType, ...],
) -> None:
    assert bits_per_weight(tensors) == pytest.approx(7.3581, abs=0.00005)


def test_fallbacks_are_grouped_by_reason(tensors: tuple[TensorType, ...]) -> None:
    groups = {(f.wanted.name, f.type.name): f for f in fallbacks(tensors)}
    assert {key: len(f.names) for key, f in groups.items()} == {
        ("Q6_K", "Q8_0"): 10,
        ("Q4_K", "Q5_0"): 81,
    }
    assert groups["Q6_K", "Q8_0"].names[0] == "token_embd.weight"
