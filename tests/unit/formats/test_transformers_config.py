from __future__ import annotations

import torch
from transformers import AutoConfig

from gemquant.formats.transformers_config import runtime_config
from gemquant.models.config import text_config
from tests.helpers.tiny_gemma import Kind, tiny_config


def test_transformers_5_reads_the_model_it_was(generation: Kind) -> None:
    config = text_config(tiny_config(generation))
    written = runtime_config(config, torch.bfloat16, {"quant_method": "awq"})
    del written["quantization_config"]
    read = AutoConfig.for_model(**written).to_dict()
    meant = AutoConfig.for_model(**config).to_dict()
    kept_for_others = {"sliding_window_pattern", "_sliding_window_pattern"}
    assert {k: v for k, v in read.items() if k not in kept_for_others} == {
        k: v for k, v in meant.items() if k not in kept_for_others
    }


def test_the_older_keys_of_gemma_3_stand_beside_the_new_ones() -> None:
    config = text_config(tiny_config("gemma3_text"))
    written = runtime_config(config, torch.bfloat16, {})
    older = {
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 2,
        "torch_dtype": "bfloat16",
    }
    assert {key: written[key] for key in older} == older


def test_gemma_2_has_no_rope_scaling_and_one_theta() -> None:
    written = runtime_config(text_config(tiny_config("gemma2")), torch.bfloat16, {})
    assert written["rope_theta"] == 10000.0
    assert "rope_scaling" not in written
    assert "rope_local_base_freq" not in written


def test_an_irregular_order_of_layers_has_no_pattern() -> None:
    config = text_config(tiny_config("gemma3_text"))
    config["layer_types"] = ["full_attention", "sliding_attention", "full_attention"]
    assert "sliding_window_pattern" not in runtime_config(config, torch.bfloat16, {})


def test_the_12b_names_the_class_that_vllm_has() -> None:
    written = runtime_config(text_config(tiny_config("gemma4_unified")), torch.bfloat16, None)
    assert written["architectures"] == ["Gemma4UnifiedForCausalLM", "Gemma4ForCausalLM"]
    assert text_config(written)["model_type"] == "gemma4_unified_text"
