"""Gemma 3: Gemma 2's norms, q and k normed too, five sliding layers to a full one, no soft caps.

Full and sliding layers have rotary tables of their own; ``rope_scaling`` belongs to the first.

Source: transformers ``configuration_gemma3.py``, ``modeling_gemma3.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemquant.models.gemma2 import IN_GGUF, NORMS
from gemquant.models.mmproj import GEMMA3_MMPROJ
from gemquant.models.structure import (
    Architecture,
    GgufFacts,
    LayerStructure,
    MlxFacts,
    gated_layer,
)
from gemquant.models.towers import gemma3_image, gemma3_towers


def _library() -> tuple[type[Any], type[Any]]:
    from transformers.models.gemma3 import Gemma3TextConfig, Gemma3TextModel

    return Gemma3TextConfig, Gemma3TextModel


def _layer(config: Mapping[str, Any], index: int) -> LayerStructure:
    return gated_layer(
        config,
        index,
        before_mlp="pre_feedforward_layernorm",
        norms=(*NORMS, "self_attn.q_norm", "self_attn.k_norm"),
    )


def _for_mlx_vlm(raw: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sizes that it looks for elsewhere than they are published."""
    return {
        "": {"hidden_size": text["hidden_size"]},
        "text_config": {"mm_tokens_per_image": raw.get("mm_tokens_per_image", 256)},
    }


_SCALED = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}

GEMMA3 = Architecture(
    name="Gemma 3",
    model_type="gemma3_text",
    causal_lm="Gemma3ForCausalLM",
    library=_library,
    layer=_layer,
    wrappers={"Gemma3ForConditionalGeneration": "gemma3"},
    # As published, and as newer versions of transformers save it.
    text_prefixes={
        "language_model.model.": "model.",
        "model.language_model.": "model.",
        "language_model.lm_head.": "lm_head.",
    },
    towers=("vision_tower.vision_model.", "multi_modal_projector."),
    tower_spellings={"vision_tower.": "vision_tower.vision_model."},
    tower_shapes=gemma3_towers,
    image=gemma3_image,
    dimensions={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
    softcaps={"attn_logit_softcapping": None, "final_logit_softcapping": None},
    full_attention_every=6,
    reads_window_pattern=True,
    rope_theta=1_000_000.0,
    rope_by_layer_type=True,
    overflows_float16=True,
    gguf=GgufFacts(
        architecture="gemma3",
        tensors={
            **IN_GGUF,
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
        },
        layers_of_27b=62,
        untied_head=True,
        caps_attention=False,
        writes_rope_base=True,
        block_count_first=True,
        mmproj=GEMMA3_MMPROJ,
        ollama={26: {"final_logit_softcapping": None}} | dict.fromkeys((34, 48, 62), _SCALED),
    ),
    mlx=MlxFacts(
        untied_head=True, regular_layer_types=True, whole_keys=_for_mlx_vlm, whole_head=False
    ),
)
