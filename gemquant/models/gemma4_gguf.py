"""Gemma 4 in llama.cpp: names, keys and vocabulary.

Source: llama.cpp ``conversion/gemma.py`` (``Gemma4Model``), ``src/models/gemma4.cpp``; gguf-py
``tensor_mapping.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gemquant.errors import CheckpointError, UnsupportedError
from gemquant.models.gemma2 import IN_GGUF
from gemquant.models.mmproj import GEMMA4_MMPROJ
from gemquant.models.structure import (
    FULL,
    PER_LAYER_NORM,
    PER_LAYER_PROJECTION,
    PER_LAYER_TABLE,
    SLIDING,
    GgufFacts,
    GgufKey,
    GgufKeys,
)

_NEVER = 1e30
"""By what llama.cpp divides the frequency of what does not rotate."""


def _full_layer(config: Mapping[str, Any]) -> int:
    return list(config["layer_types"]).index(FULL)


def _own(config: Mapping[str, Any], layer: int) -> Mapping[str, int]:
    own: Mapping[str, int] = config["per_layer_config"].get(str(layer), {})
    return own


def _full_width(config: Mapping[str, Any]) -> int:
    return _own(config, _full_layer(config)).get("head_dim", config["head_dim"])


def _rope_factors(config: Mapping[str, Any]) -> Sequence[float]:
    width, share = _full_width(config), config["rope_parameters"][FULL]["partial_rotary_factor"]
    turning = int(width * share / 2)
    return [1.0] * turning + [_NEVER] * (width // 2 - turning)


def _keys(config: Mapping[str, Any]) -> Mapping[str, GgufKey]:
    layers, width = config["num_hidden_layers"], _full_width(config)
    shared, inner = config["num_kv_shared_layers"], config["intermediate_size"]
    keys: dict[str, GgufKey] = {}
    if config["use_double_wide_mlp"]:
        keys["feed_forward_length"] = [inner] * (layers - shared) + [2 * inner] * shared
    if "num_key_value_heads" in _own(config, _full_layer(config)):
        heads = config["num_key_value_heads"]
        each = [_own(config, n).get("num_key_value_heads", heads) for n in range(layers)]
        keys["attention.head_count_kv"] = each
    keys |= {
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.shared_kv_layers": shared,
        "embedding_length_per_layer_input": config.get("hidden_size_per_layer_input", 0),
        "attention.sliding_window_pattern": [k == SLIDING for k in config["layer_types"]],
        "attention.key_length_swa": config["head_dim"],
        "attention.value_length_swa": config["head_dim"],
    }
    if config.get("moe_intermediate_size"):
        keys["expert_feed_forward_length"] = config["moe_intermediate_size"]
    return {**keys, "rope.dimension_count": width, "rope.dimension_count_swa": config["head_dim"]}


def _from_keys(file: GgufKeys) -> Mapping[str, Any]:
    def each(key: str) -> list[Any]:
        value, layers = file.keys.get(key), file.keys.get("block_count")
        if not isinstance(value, Sequence) or isinstance(value, str):
            return [value] * (layers if type(layers) is int and 0 < layers <= 1024 else 1)
        if len(value) != layers:
            raise CheckpointError(f"metadata key {key}: {len(value)} values for {layers} layers.")
        return list(value)

    slides = [bool(sliding) for sliding in each("attention.sliding_window_pattern")]
    heads, inner = each("attention.head_count_kv"), each("feed_forward_length")
    full = slides.index(False) if False in slides else -1
    own = {"head_dim": file.keys.get("attention.key_length")}
    sliding_heads = heads[slides.index(True)] if True in slides else heads[full]
    # As the converter writes it: one number for all layers, or one for each.
    if isinstance(file.keys.get("attention.head_count_kv"), Sequence):
        own["num_key_value_heads"] = heads[full]
    experts = file.keys.get("expert_count", 0)
    return {
        "layer_types": [SLIDING if sliding else FULL for sliding in slides],
        "head_dim": file.keys.get("attention.key_length_swa"),
        "num_key_value_heads": sliding_heads,
        "per_layer_config": {str(n): own for n, sliding in enumerate(slides) if not sliding},
        "intermediate_size": inner[0],
        "use_double_wide_mlp": isinstance(file.keys.get("feed_forward_length"), Sequence),
        "num_kv_shared_layers": file.keys.get("attention.shared_kv_layers", 0),
        "attention_k_eq_v": bool(file.tensors) and f"blk.{full}.attn_v.weight" not in file.tensors,
        "hidden_size_per_layer_input": file.keys.get("embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": file.vocab_size,
        "enable_moe_block": bool(experts),
        "num_experts": experts or None,
        "top_k_experts": file.keys.get("expert_used_count"),
        "moe_intermediate_size": file.keys.get("expert_feed_forward_length"),
        "rope_parameters": {FULL: _rope(file.rope_factors)},
    }


def _rope(factors: Sequence[float]) -> Mapping[str, Any]:
    turning = sum(factor == 1.0 for factor in factors)
    if list(factors) != [1.0] * turning + [factors[-1]] * (len(factors) - turning) or any(
        factor < _NEVER / 10 for factor in factors[turning:]
    ):
        raise UnsupportedError("rope_freqs.weight: other factors than 1 and then 1e30.")
    share = turning / len(factors) if factors else 0.25
    return {"rope_type": "proportional", "partial_rotary_factor": share}


def _refused(config: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
    """Keys, their values, and why llama.cpp cannot have them."""
    types = config["layer_types"]
    sizes = {(kind, *sorted(_own(config, n).items())) for n, kind in enumerate(types)}
    if len(sizes) > len({kind for kind, *_ in sizes}) or any(
        kind == SLIDING and own for kind, *own in sizes
    ):
        rule = "llama.cpp has one size of head for sliding layers, and one for full ones"
        yield "per_layer_config", config["per_layer_config"], rule
    rows, tokens = config.get("vocab_size_per_layer_input"), config["vocab_size"]
    if config.get("hidden_size_per_layer_input") and rows != tokens:
        yield "vocab_size_per_layer_input", rows, f"llama.cpp reads vocab_size {tokens} rows"


IN_GGUF4 = GgufFacts(
    architecture="gemma4",
    tensors={
        **IN_GGUF,
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_gate_inp": "router.proj",
        "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
        "post_ffw_norm_1": "post_feedforward_layernorm_1",
        "post_ffw_norm_2": "post_feedforward_layernorm_2",
        "inp_gate": "per_layer_input_gate",
        "proj": "per_layer_projection",
        "post_norm": "post_per_layer_input_norm",
    },
    parameters={
        "layer_output_scale.weight": "layer_scalar",
        "ffn_gate_inp.scale": "router.scale",
        "ffn_down_exps.scale": "router.per_expert_scale",
        "ffn_gate_up_exps.weight": "experts.gate_up_proj",
        "ffn_down_exps.weight": "experts.down_proj",
    },
    older={
        "ffn_gate_exps.weight": "experts.gate_proj",
        "ffn_up_exps.weight": "experts.up_proj",
    },
    outside={
        "per_layer_token_embd.weight": PER_LAYER_TABLE,
        "per_layer_model_proj.weight": PER_LAYER_PROJECTION,
        "per_layer_proj_norm.weight": PER_LAYER_NORM,
    },
    in_float32=frozenset({"ffn_gate_inp"}),
    in_16_bits=frozenset({"per_layer_model_proj"}),
    untied_head=True,
    requires_softcaps=True,
    requires_window=True,
    writes_rope_base=True,
    block_count_first=True,
    rope_types=("proportional",),
    rope_factors=_rope_factors,
    keys=_keys,
    from_keys=_from_keys,
    refused=_refused,
    mmproj=GEMMA4_MMPROJ,
    merges=True,
    visible_tokens=frozenset(
        {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
         "<tool_response|>", '<|"|>'}
    ),
)  # fmt: skip
