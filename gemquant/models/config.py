"""A Gemma's ``config.json``, old or new spelling, as the flat text configuration used here.

The result is what transformers 5 would save for the text model: ``rope_parameters`` and
``layer_types`` spelled out, every key present. It is worked out here, not by building transformers'
configuration object, so that opening a checkpoint takes no import of several seconds and every
problem can be reported at once; a test holds the two equal.

Source: transformers ``configuration_gemma.py``, ``configuration_gemma2.py``,
``configuration_gemma3.py`` and the configurations on the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError, refuse
from gemquant.models.attention_config import layer_types, rope_parameters

ARCHITECTURES: Mapping[str, str] = {
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "Gemma3ForConditionalGeneration": "gemma3_text",
}
"""Supported architectures and the ``model_type`` of their text model."""

CAUSAL_LM: Mapping[str, str] = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}

# The values that transformers assumes where a published file leaves a key out.
_DIMENSIONS: Mapping[str, Mapping[str, int]] = {
    "gemma": {
        "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 16,
        "head_dim": 256, "max_position_embeddings": 8192,
    },
    "gemma2": {
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256, "sliding_window": 4096,
    },
    "gemma3_text": {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "max_position_embeddings": 131072,
        "query_pre_attn_scalar": 256, "sliding_window": 4096,
    },
}  # fmt: skip

# Far above any Gemma (27B: hidden 5376, 62 layers), far below what a damaged file may claim.
_LARGEST: Mapping[str, int] = {
    "num_hidden_layers": 1024,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "head_dim": 65536,
    "vocab_size": 2**23,
    "max_position_embeddings": 2**31,
    "sliding_window": 2**31,
}
_LARGEST_WIDTH = 2**20

_SOFTCAPS: Mapping[str, Mapping[str, float | None]] = {
    "gemma": {},
    "gemma2": {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
}
_ACTIVATION = "gelu_pytorch_tanh"
_DTYPES = ("bfloat16", "float16", "float32")
_SPECIAL_TOKENS: Mapping[str, int] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def text_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text model's configuration in transformers 5's spelling, with every key.

    raw: a parsed ``config.json`` of any supported architecture; the text part of a multimodal
    Gemma 3 is taken out. Raises UnsupportedError for another model, and otherwise one error for
    every key that is wrong.
    """
    generation = _generation(raw)
    nested = raw.get("text_config")
    text: Mapping[str, Any] = nested if isinstance(nested, dict) else raw
    problems: list[GemquantError] = []
    config: dict[str, Any] = {"architectures": [CAUSAL_LM[generation]], "model_type": generation}
    config |= _dimensions(generation, text, problems)
    problems += _relation_problems(config)
    config |= _numbers(generation, text, problems)
    config |= _tokens(raw, text, problems)
    if generation != "gemma":
        layers = config["num_hidden_layers"]
        config["layer_types"] = layer_types(generation, text, layers, problems)
    config["rope_parameters"] = rope_parameters(generation, text, problems)
    problems += _unsupported(generation, raw, text)
    config["hidden_act" if generation == "gemma" else "hidden_activation"] = _ACTIVATION
    config |= {"attention_bias": False, "attention_dropout": 0.0, "use_cache": True}
    config["tie_word_embeddings"] = _tied(raw, text, problems)
    spelled = [part.get(key) for part in (raw, text) for key in ("dtype", "torch_dtype")]
    known = [dtype for dtype in spelled if dtype in _DTYPES]
    if known:
        config["dtype"] = known[0]
    refuse(problems)
    return config


def _generation(raw: Mapping[str, Any]) -> str:
    supported = ", ".join(ARCHITECTURES)
    names = raw.get("architectures")
    if isinstance(names, list) and names:
        for name in names:
            if isinstance(name, str) and name in ARCHITECTURES:
                return ARCHITECTURES[name]
        raise UnsupportedError(
            f"architecture {', '.join(map(str, names))[:200]}: supported are {supported}."
        )
    by_type = {**{value: value for value in CAUSAL_LM}, "gemma3": "gemma3_text"}
    model_type = raw.get("model_type")
    if isinstance(model_type, str) and model_type in by_type:
        return by_type[model_type]
    raise UnsupportedError(
        f"config.json names no architecture (model_type {model_type!r}): supported are {supported}."
    )


def _whole(value: Any) -> int | None:
    """An integer, also where JSON spells it 256.0; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _dimensions(
    generation: str, text: Mapping[str, Any], problems: list[GemquantError]
) -> dict[str, int]:
    dimensions = {}
    for key, default in _DIMENSIONS[generation].items():
        given = text.get(key)
        value = default if given is None else _whole(given)
        largest = _LARGEST.get(key, _LARGEST_WIDTH)
        if value is None or not 1 <= value <= largest:
            problems.append(
                CheckpointError(f"config.json: {key} {given!r}: must be from 1 to {largest}.")
            )
            value = default
        dimensions[key] = value
    return dimensions


def _relation_problems(config: Mapping[str, Any]) -> list[GemquantError]:
    problems: list[GemquantError] = []
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % kv_heads:
        problems.append(
            CheckpointError(
                f"config.json: num_attention_heads {heads} is not a multiple of "
                f"num_key_value_heads {kv_heads}."
            )
        )
    if config["hidden_size"] % heads and config["model_type"] != "gemma":
        problems.append(
            CheckpointError(
                f"config.json: hidden_size {config['hidden_size']} is not a multiple of "
                f"num_attention_heads {heads}."
            )
        )
    if config["head_dim"] % 2:
        problems.append(
            CheckpointError(f"config.json: head_dim {config['head_dim']}: must be even.")
        )
    return problems


def _numbers(
    generation: str, text: Mapping[str, Any], problems: list[GemquantError]
) -> dict[str, Any]:
    wanted = {"rms_norm_eps": 1e-6, "initializer_range": 0.02, **_SOFTCAPS[generation]}
    numbers: dict[str, Any] = {}
    for key, default in wanted.items():
        value = text.get(key, default)
        if value is None and key in _SOFTCAPS[generation]:
            numbers[key] = None
        elif type(value) in (int, float) and 0 < value < float("inf"):
            numbers[key] = float(value)
        else:
            problems.append(
                CheckpointError(f"config.json: {key} {value!r}: must be a positive number.")
            )
    return numbers


def _tokens(
    raw: Mapping[str, Any], text: Mapping[str, Any], problems: list[GemquantError]
) -> dict[str, Any]:
    tokens: dict[str, Any] = {}
    for key, default in _SPECIAL_TOKENS.items():
        value = text.get(key, raw.get(key, default))
        listed = value if isinstance(value, list) and key == "eos_token_id" else [value]
        if value is not None and not all(type(item) is int and item >= 0 for item in listed):
            problems.append(CheckpointError(f"config.json: {key} {value!r}: must be a token id."))
        tokens[key] = value
    if tokens["bos_token_id"] is None:
        problems.append(
            CheckpointError("config.json: bos_token_id is null; a Gemma text starts with BOS.")
        )
    return tokens


def _tied(raw: Mapping[str, Any], text: Mapping[str, Any], problems: list[GemquantError]) -> bool:
    tied = raw.get("tie_word_embeddings", text.get("tie_word_embeddings", True))
    if not isinstance(tied, bool):
        problems.append(
            CheckpointError(f"config.json: tie_word_embeddings {tied!r}: must be true or false.")
        )
    return tied is not False


def _unsupported(
    generation: str, raw: Mapping[str, Any], text: Mapping[str, Any]
) -> list[GemquantError]:
    problems: list[GemquantError] = []
    method = raw.get("quantization_config") or text.get("quantization_config")
    if method:
        name = method.get("quant_method") if isinstance(method, dict) else method
        problems.append(
            UnsupportedError(
                f"the checkpoint is quantized already (quant_method {name!r}).",
                hint="Start from the original weights, in bfloat16, float16 or float32.",
            )
        )
    if text.get("attention_bias"):
        problems.append(UnsupportedError("config.json: attention_bias true is not supported."))
    if text.get("use_bidirectional_attention"):
        problems.append(
            UnsupportedError(
                "config.json: use_bidirectional_attention true: this is an embedding model, "
                "not a causal language model."
            )
        )
    # Gemma 1 was published with "gelu", meant as its tanh approximation.
    legacy = ("gelu",) if generation == "gemma" else ()
    for key in ("hidden_act", "hidden_activation"):
        value = text.get(key)
        if value is not None and value not in (_ACTIVATION, *legacy):
            problems.append(
                UnsupportedError(f"config.json: {key} {value!r}: only {_ACTIVATION} is supported.")
            )
    return problems
