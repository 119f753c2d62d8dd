"""The configuration as llama.cpp's keys, and what these keys cannot say."""

from __future__ import annotations

from typing import Any

import pytest

from gemquant.formats.gguf.config import architecture_metadata, gguf_config, unrepresentable
from gemquant.models.config import text_config
from tests.helpers.tiny_gemma import GENERATIONS, Kind, tiny_config


def config_of(kind: Kind, **changes: Any) -> dict[str, Any]:
    # llama.cpp divides by the root of head_dim; the tiny Gemmas' own 24 is there to catch that.
    scalar = {} if kind == "gemma" else {"query_pre_attn_scalar": 32}
    return text_config({**tiny_config(kind), **scalar, **changes})


def values(config: dict[str, Any]) -> dict[str, Any]:
    return {key: entry.value for key, entry in architecture_metadata(config, file_type=1).items()}


@pytest.mark.parametrize("kind", GENERATIONS)
def test_what_is_written_is_read_back_as_the_same_configuration(kind: Kind) -> None:
    config = config_of(kind)
    metadata = {
        "general.architecture": {"gemma3_text": "gemma3"}.get(kind, kind),
        **values(config),
        **{
            f"tokenizer.ggml.{name}_token_id": index
            for name, index in (("padding", 0), ("eos", 1), ("bos", 2))
        },
    }
    assert gguf_config(metadata, vocab_size=config["vocab_size"], tied=True) == config


def test_the_published_pattern_of_layers_is_not_written() -> None:
    layers = {"num_hidden_layers": 12, "sliding_window_pattern": 6}
    assert "gemma3.attention.sliding_window_pattern" not in values(
        config_of("gemma3_text", **layers)
    )


def test_another_pattern_of_layers_is_written_layer_by_layer() -> None:
    found = values(config_of("gemma3_text"))
    assert found["gemma3.attention.sliding_window_pattern"] == [True, False, True]


def test_a_gemma_3_without_sliding_layers_has_no_window() -> None:
    found = values(config_of("gemma3_text", sliding_window_pattern=1))
    assert [key for key in found if "sliding" in key] == []


@pytest.mark.parametrize("kind", ["gemma", "gemma2"])
def test_a_rope_base_of_10000_is_what_llama_cpp_assumes(kind: Kind) -> None:
    assert [key for key in values(config_of(kind)) if "rope" in key] == []


@pytest.mark.parametrize("kind", ["gemma", "gemma2"])
def test_another_rope_base_and_scaling_are_written(kind: Kind) -> None:
    changed = config_of(
        kind, rope_theta=50000.0, rope_scaling={"rope_type": "linear", "factor": 2.0}
    )
    assert {key: value for key, value in values(changed).items() if "rope" in key} == {
        f"{kind}.rope.scaling.type": "linear",
        f"{kind}.rope.scaling.factor": 2.0,
        f"{kind}.rope.freq_base": 50000.0,
    }


@pytest.mark.parametrize("kind", GENERATIONS)
def test_a_published_shape_is_representable(kind: Kind) -> None:
    assert unrepresentable(config_of(kind)) == []


def test_a_27b_divides_by_hidden_over_heads() -> None:
    shape = {"num_hidden_layers": 62, "query_pre_attn_scalar": 168, "hidden_size": 5376}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128}
    assert unrepresentable(config_of("gemma3_text", **shape, **heads)) == []


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        pytest.param(
            "gemma2",
            {"query_pre_attn_scalar": 24},
            "query_pre_attn_scalar 24: llama.cpp computes with 32",
            id="scale",
        ),
        pytest.param(
            "gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping None", id="no-cap"
        ),
        pytest.param(
            "gemma3_text", {"attn_logit_softcapping": 50.0}, "caps no attention", id="cap"
        ),
        pytest.param("gemma", {"tie_word_embeddings": False}, "reads no head", id="head"),
        pytest.param(
            "gemma2",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_parameters.rope_type 'yarn'",
            id="yarn",
        ),
        pytest.param(
            "gemma3_text",
            {
                "rope_scaling": None,
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                    "sliding_attention": {
                        "rope_type": "linear",
                        "factor": 2.0,
                        "rope_theta": 1e4,
                    },
                },
            },
            "scales no sliding layer",
            id="sliding-scaling",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_named(
    kind: Kind, changes: dict[str, Any], words: str
) -> None:
    (problem,) = unrepresentable(config_of(kind, **changes))
    assert words in problem.message
    assert problem.exit_code == 4
    assert problem.hint is not None
