"""Any published spelling of a configuration becomes transformers' own reading of it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma2Config, Gemma3Config, Gemma3TextConfig, GemmaConfig, PreTrainedConfig

from gemquant.errors import CheckpointError, GemquantError, Problems, UnsupportedError
from gemquant.models.config import text_config
from tests.helpers.tiny_gemma import Kind, tiny_config

CLASSES: dict[str, type[PreTrainedConfig]] = {
    "gemma": GemmaConfig,
    "gemma2": Gemma2Config,
    "gemma3_text": Gemma3TextConfig,
}
# The text part of google/gemma-3-4b-it as published: most keys left to their defaults.
PUBLISHED_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "torch_dtype": "bfloat16",
    "eos_token_id": [1, 106],
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"model_type": "siglip_vision_model"},
}
_OWN_OF_FILE = (
    "_name_or_path", "architectures", "transformers_version", "cache_implementation",
    "sliding_window_pattern", "_sliding_window_pattern",  # spelled out in layer_types
)  # fmt: skip


def essential(config: PreTrainedConfig) -> dict[str, Any]:
    """What determines the model, without what names the file."""
    content = config.to_dict()
    if content.get("hidden_activation", "") is None:  # published Gemma 1 files use hidden_act
        del content["hidden_activation"]
    return {key: value for key, value in content.items() if key not in _OWN_OF_FILE}


def refusal(config: dict[str, Any]) -> GemquantError:
    with pytest.raises(GemquantError) as caught:
        text_config(config)
    return caught.value


def test_the_older_spelling_reads_as_in_transformers(generation: Kind) -> None:
    raw = tiny_config(generation)
    ours = CLASSES[generation](**text_config(raw))
    assert essential(ours) == essential(CLASSES[generation](**raw))


def test_the_newer_spelling_reads_as_in_transformers(generation: Kind) -> None:
    raw = CLASSES[generation](**tiny_config(generation)).to_dict()
    ours = CLASSES[generation](**text_config(raw))
    assert essential(ours) == essential(CLASSES[generation](**raw))


def test_reading_a_configuration_again_changes_nothing(generation: Kind) -> None:
    config = text_config(tiny_config(generation))
    assert text_config(config) == config


def test_the_text_part_of_a_multimodal_gemma_reads_as_in_transformers() -> None:
    theirs = Gemma3Config(**PUBLISHED_4B).text_config
    ours = Gemma3TextConfig(**text_config(PUBLISHED_4B))
    left_out = ("dtype", "eos_token_id")  # stand at the top of the published file
    ours_left, theirs_left = (
        {k: v for k, v in essential(c).items() if k not in left_out} for c in (ours, theirs)
    )
    assert ours_left == theirs_left


def test_dtype_and_end_tokens_of_a_multimodal_gemma_come_from_the_top() -> None:
    config = text_config(PUBLISHED_4B)
    assert config["dtype"] == "bfloat16"
    assert config["eos_token_id"] == [1, 106]


def test_a_bare_configuration_gets_its_generations_defaults(generation: Kind) -> None:
    ours = CLASSES[generation](**text_config({"model_type": generation}))
    assert essential(ours) == essential(CLASSES[generation]())


def test_every_second_layer_of_gemma_2_sees_everything() -> None:
    layers = text_config(tiny_config("gemma2"))["layer_types"]
    assert layers == ["sliding_attention", "full_attention", "sliding_attention"]


def test_the_pattern_of_gemma_3_is_followed() -> None:
    config = text_config({**tiny_config("gemma3_text"), "sliding_window_pattern": 3})
    assert config["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]


def test_linear_scaling_of_gemma_3_is_of_full_attention_only() -> None:
    assert text_config(PUBLISHED_4B)["rope_parameters"] == {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }


def test_a_scaling_spelled_type_is_understood() -> None:
    raw = {**tiny_config("gemma2"), "rope_scaling": {"type": "linear", "factor": 2}}
    assert text_config(raw)["rope_parameters"] == {
        "rope_type": "linear",
        "factor": 2.0,
        "rope_theta": 10000.0,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"hidden_size": 0}, "hidden_size 0: must be from 1 to 1048576", id="zero"),
        pytest.param({"hidden_size": -8}, "hidden_size -8", id="negative"),
        pytest.param({"hidden_size": 2**40}, "hidden_size 1099511627776", id="huge"),
        pytest.param({"hidden_size": "128"}, "hidden_size '128'", id="text"),
        pytest.param({"hidden_size": True}, "hidden_size True", id="boolean"),
        pytest.param({"hidden_size": 1.5}, "hidden_size 1.5", id="fraction"),
        pytest.param({"num_hidden_layers": 5000}, "num_hidden_layers 5000", id="layers"),
        pytest.param(
            {"num_key_value_heads": 3},
            "num_attention_heads 8 is not a multiple of num_key_value_heads 3",
            id="kv-heads",
        ),
        pytest.param({"num_attention_heads": 6}, "hidden_size 128 is not a multiple", id="heads"),
        pytest.param({"head_dim": 31}, "head_dim 31: must be even", id="odd-head"),
        pytest.param({"rms_norm_eps": 0}, "rms_norm_eps 0: must be a positive", id="eps"),
        pytest.param({"attn_logit_softcapping": -1.0}, "attn_logit_softcapping -1.0", id="softcap"),
        pytest.param({"layer_types": ["full_attention"]}, "must be 3 times", id="few-layers"),
        pytest.param({"layer_types": ["full"] * 3}, "must be 3 times", id="layer-kind"),
        pytest.param({"rope_theta": "1e4"}, "rope_theta '1e4'", id="theta"),
        pytest.param({"rope_scaling": 8.0}, "rope_scaling 8.0: must be an object", id="scaling"),
        pytest.param({"bos_token_id": None}, "bos_token_id is null", id="no-bos"),
        pytest.param({"eos_token_id": "x"}, "eos_token_id 'x': must be a token id", id="eos"),
        pytest.param({"tie_word_embeddings": 1}, "tie_word_embeddings 1", id="tied"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(changes: dict[str, Any], words: str) -> None:
    error = refusal({**tiny_config("gemma2"), **changes})
    assert isinstance(error, CheckpointError)
    assert words in error.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"attention_bias": True}, "attention_bias", id="bias"),
        pytest.param({"use_bidirectional_attention": True}, "embedding model", id="embedding"),
        pytest.param({"hidden_activation": "silu"}, "only gelu_pytorch_tanh", id="activation"),
        pytest.param({"rope_scaling": {"rope_type": "su"}}, "rope_type 'su'", id="rope"),
        pytest.param(
            {"quantization_config": {"quant_method": "awq"}}, "quantized already", id="quantized"
        ),
        pytest.param(
            {"quantization_config": {"quant_method": "gemma"}},
            "packed for phones by transformers 5.24",
            id="packed",
        ),
    ],
)
def test_what_cannot_be_carried_is_refused(changes: dict[str, Any], words: str) -> None:
    error = refusal({**tiny_config("gemma2"), **changes})
    assert isinstance(error, UnsupportedError)
    assert words in error.message


def test_gemma_1s_legacy_activation_is_the_tanh_one() -> None:
    assert text_config(tiny_config("gemma"))["hidden_act"] == "gelu_pytorch_tanh"


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama"])
def test_a_model_type_of_another_architecture_is_refused(model_type: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        text_config({**tiny_config("gemma2"), "model_type": model_type})
    assert str(caught.value) == (
        f"config.json: model_type '{model_type}' and architectures 'Gemma2ForCausalLM' contradict "
        "each other.\n  hint: Of a Gemma 2 it is 'gemma2'."
    )


def test_all_wrong_values_come_at_once() -> None:
    error = refusal({**tiny_config("gemma2"), "hidden_size": 0, "head_dim": 0, "rms_norm_eps": -1})
    assert isinstance(error, Problems)
    assert len(error.problems) == 3


@pytest.mark.parametrize("raw", [{}, {"model_type": ["gemma"]}, {"architectures": "Gemma"}])
def test_a_file_that_names_no_architecture_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="names no architecture"):
        text_config(raw)
