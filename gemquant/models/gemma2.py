"""Gemma 2: sliding and full attention by turns, soft caps, norms before and after each block.

Source: transformers ``configuration_gemma2.py``, ``modeling_gemma2.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemquant.models.structure import (
    GATED_LAYER_IN_GGUF,
    Architecture,
    GgufFacts,
    LayerStructure,
    MlxFacts,
    gated_layer,
)

NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)

IN_GGUF: Mapping[str, str] = {
    **GATED_LAYER_IN_GGUF,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def _library() -> tuple[type[Any], type[Any]]:
    from transformers.models.gemma2 import Gemma2Config, Gemma2Model

    return Gemma2Config, Gemma2Model


def _layer(config: Mapping[str, Any], index: int) -> LayerStructure:
    return gated_layer(config, index, before_mlp="pre_feedforward_layernorm", norms=NORMS)


GEMMA2 = Architecture(
    name="Gemma 2",
    model_type="gemma2",
    causal_lm="Gemma2ForCausalLM",
    library=_library,
    layer=_layer,
    dimensions={
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
    softcaps={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    full_attention_every=2,
    # The other implementations leave out the soft cap of attention scores.
    eager_attention=True,
    autoawq=True,
    # Of the 9B, for two weeks: https://github.com/huggingface/transformers/issues/31891
    corrections={"query_pre_attn_scalar": (224, 256)},
    gguf=GgufFacts(
        architecture="gemma2",
        tensors=IN_GGUF,
        layers_of_27b=46,
        requires_softcaps=True,
        requires_window=True,
    ),
    mlx=MlxFacts(ignores_window=True),
)
