"""Gemma 3: Gemma 2's norms, q and k normed too, five sliding layers to a full one, no soft caps.

Full and sliding layers have rotary tables of their own; ``rope_scaling`` belongs to the first.

Source: transformers ``configuration_gemma3.py``, ``modeling_gemma3.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError
from gemquant.models.gemma2 import IN_GGUF, NORMS
from gemquant.models.mmproj import GEMMA3_MMPROJ
from gemquant.models.structure import (
    DENSE,
    DENSE_MODULES,
    Architecture,
    GgufFacts,
    GgufKey,
    GgufKeys,
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

# ---------------------------------------------------------------- the embedding model


def _embedding_settings(
    text: Mapping[str, Any], config: Mapping[str, Any], problems: list[GemquantError]
) -> dict[str, Any]:
    both_sides = text.get("use_bidirectional_attention")
    if both_sides is not True:
        problems.append(
            UnsupportedError(
                f"config.json: use_bidirectional_attention {both_sides!r}: a Gemma without a head "
                "is read as an embedding model, where it is true.",
                hint="Save a language model with its head: AutoModelForCausalLM.",
            )
        )
    modules = text.get(DENSE_MODULES, {})
    widths = [config["hidden_size"]]
    for sizes in modules.values() if isinstance(modules, Mapping) else [modules]:
        fits = isinstance(sizes, list) and len(sizes) == 2 and all(type(n) is int for n in sizes)
        if not fits or sizes[0] != widths[-1] or not 1 <= sizes[1] <= 2**20:
            problems.append(
                CheckpointError(f"a Dense module of {sizes}: must read {widths[-1]} features.")
            )
            return {}
        widths.append(sizes[1])
    return {"use_bidirectional_attention": True, DENSE_MODULES: dict(modules)}


def _dense(config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    return {f"{n}.weight": (sizes[1], sizes[0]) for n, sizes in config[DENSE_MODULES].items()}


def _embedding_keys(config: Mapping[str, Any]) -> Mapping[str, GgufKey]:
    dense = {
        f"{name}_feat_{end}": size
        for name, sizes in config[DENSE_MODULES].items()
        for end, size in zip(("in", "out"), sizes, strict=True)
    }
    return {**dense, "pooling_type": _MEAN}


def _embedding_from_keys(file: GgufKeys) -> Mapping[str, Any]:
    modules = {}
    for weight in DENSE:
        name = weight.removesuffix(".weight")
        if weight in file.tensors:
            modules[name] = [file.keys.get(f"{name}_feat_{end}") for end in ("in", "out")]
    return {"use_bidirectional_attention": True, DENSE_MODULES: modules}


_MEAN = 1
"""llama.cpp's number of mean pooling."""

EMBEDDING_GEMMA = replace(
    GEMMA3,
    name="EmbeddingGemma",
    model_type="gemma3_text+embedding",
    library_type=GEMMA3.model_type,
    causal_lm="Gemma3TextModel",
    # As google/embeddinggemma-300m has them.
    prompts={"query": "task: search result | query: ", "document": "title: none | text: "},
    wrappers={},
    text_prefixes={},
    towers=(),
    tower_spellings={},
    outside=_dense,
    settings=_embedding_settings,
    no_onnx="it has no head, which that of onnxruntime-genai expects",
    gguf=replace(
        GEMMA3.gguf,
        architecture="gemma-embedding",
        outside=dict(zip(DENSE, DENSE, strict=True)),
        keys=_embedding_keys,
        from_keys=_embedding_from_keys,
        ollama={},
    ),
)
"""Gemma 3 without a head: tokens attend to both sides, within the window as many to each.

An embedding is the mean of the final hidden states, then sentence-transformers' Dense modules.
"""
