"""Gemma 1: full attention everywhere, one norm before attention and one before the MLP.

Source: transformers ``configuration_gemma.py``, ``modeling_gemma.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemquant.models.structure import (
    ACTIVATION,
    GATED_LAYER_IN_GGUF,
    Architecture,
    GgufFacts,
    LayerStructure,
    gated_layer,
)


def _library() -> tuple[type[Any], type[Any]]:
    from transformers.models.gemma import GemmaConfig, GemmaModel

    return GemmaConfig, GemmaModel


def _layer(config: Mapping[str, Any], index: int) -> LayerStructure:
    return gated_layer(
        config,
        index,
        before_mlp="post_attention_layernorm",
        norms=("input_layernorm", "post_attention_layernorm"),
    )


GEMMA1 = Architecture(
    name="Gemma 1",
    model_type="gemma",
    causal_lm="GemmaForCausalLM",
    library=_library,
    layer=_layer,
    dimensions={
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "max_position_embeddings": 8192,
    },
    activation_key="hidden_act",
    # Gemma 1 was published with "gelu", meant as its tanh approximation.
    activations=(ACTIVATION, "gelu"),
    heads_divide_hidden=False,
    vllm_float16=True,
    autoawq=True,
    gguf=GgufFacts(
        architecture="gemma",
        tensors={**GATED_LAYER_IN_GGUF, "ffn_norm": "post_attention_layernorm"},
        end_of_turn_id=107,
    ),
)
