"""A Gemma's ``config.json``, old or new spelling, as the flat text configuration used here.

The result is what transformers 5 would save for the text model: ``rope_parameters`` and
``layer_types`` spelled out, every key present. transformers' configuration object is not built, so
that opening a checkpoint needs no import of several seconds and reports every problem at once; a
test compares the two.

Source: transformers ``configuration_gemma.py``, ``configuration_gemma2.py``,
``configuration_gemma3.py``, ``configuration_gemma4.py`` and the configurations on the Hub.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError, refuse
from gemquant.models.architecture import ARCHITECTURES, library_classes, model_types
from gemquant.models.structure import ACTIVATION, FULL, SLIDING, Architecture

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

_DTYPES = ("bfloat16", "float16", "float32")
_SPECIAL_TOKENS: Mapping[str, int] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
_LOCAL_THETA = 10_000.0
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")


def text_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the text model's configuration in transformers 5's spelling, with every key.

    raw: a parsed ``config.json`` of any supported architecture; the text part of a multimodal
    Gemma 3 is taken out. Raises UnsupportedError for another model, and otherwise one error for
    every key that is wrong.
    """
    architecture = architecture_of_file(raw)
    nested = raw.get("text_config")
    text: Mapping[str, Any] = nested if isinstance(nested, dict) else raw
    problems: list[GemquantError] = []
    config: dict[str, Any] = {
        "architectures": [architecture.causal_lm],
        "model_type": architecture.model_type,
    }
    config |= _dimensions(architecture, text, problems)
    problems += _relation_problems(architecture, config)
    config |= _numbers(architecture, text, problems)
    config |= _tokens(raw, text, problems)
    if architecture.full_attention_every is not None:
        layers = config["num_hidden_layers"]
        config["layer_types"] = _layer_types(architecture, text, layers, problems)
    config["rope_parameters"] = _rope_parameters(architecture, text, problems)
    config |= architecture.settings(text, config, problems)
    problems += _unsupported(architecture, raw, text)
    config[architecture.activation_key] = ACTIVATION
    config |= {"attention_bias": False, "attention_dropout": 0.0, "use_cache": True}
    config["tie_word_embeddings"] = _tied(raw, text, problems)
    spelled = [part.get(key) for part in (raw, text) for key in ("dtype", "torch_dtype")]
    known = [dtype for dtype in spelled if dtype in _DTYPES]
    if known:
        config["dtype"] = known[0]
    refuse(problems)
    return config


_PACKED: Mapping[str, tuple[str, str]] = {
    "gemma": (
        ": weights of quantization-aware training, packed for phones by transformers 5.24",
        "Start from the same model's -qat-q4_0-unquantized, whose grid is carried over",
    ),
}
"""What a ``quant_method`` is, and what to start from instead."""
_DECODED = "compressed-tensors"
"""The ``quant_method`` whose matrices are decoded while a checkpoint is read."""

_NOT_READ: Mapping[str, str] = {
    "gemma3n": "Gemma 3n is not read: each of its layers mixes four hidden states (AltUp), adds a "
    "low-rank branch (LAuReL) and thins out activations; docs/formats.md says what that would take",
}
"""Gemmas that are none of ``ARCHITECTURES``, by how their ``model_type`` begins."""


def corrections(config: Mapping[str, Any]) -> dict[str, str]:
    """What to do about values that were published by mistake, by their keys."""
    known = ARCHITECTURES[config["model_type"]].corrections
    return {
        key: f"config.json: {key} {wrong}: the publisher corrected it to {right}; set that, unless "
        f"the model was trained with {wrong}."
        for key, (wrong, right) in known.items()
        if config.get(key) == wrong
    }


def architecture_of_file(raw: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a parsed ``config.json``; UnsupportedError if it has none."""
    classes, types = library_classes(), model_types()
    supported = ", ".join(classes)
    for begin, reason in _NOT_READ.items():
        if str(raw.get("model_type")).startswith(begin):
            raise UnsupportedError(f"{reason}.", hint=f"Supported are {supported}.")
    names, model_type = raw.get("architectures"), raw.get("model_type")
    if isinstance(names, list) and names:
        for name in names:
            if isinstance(name, str) and name in classes:
                found, typed = classes[name], types.get(str(model_type))
                if typed is not None and typed.vllm_class == name:
                    return typed
                fits = found.library_type == model_type or typed is found
                if model_type is not None and not fits:
                    raise CheckpointError(
                        f"config.json: model_type {model_type!r} and architectures {name!r} "
                        "contradict each other.",
                        hint=f"Of a {found.name} it is {found.library_type or found.model_type!r}.",
                    )
                return found
        raise UnsupportedError(
            f"architecture {', '.join(map(str, names))[:200]}: supported are {supported}."
        )
    if isinstance(model_type, str) and model_type in types:
        return types[model_type]
    raise UnsupportedError(
        f"config.json names no architecture (model_type {model_type!r}): supported are {supported}."
    )


def _whole(value: Any) -> int | None:
    """An integer, also where JSON spells it 256.0; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def _dimensions(
    architecture: Architecture, text: Mapping[str, Any], problems: list[GemquantError]
) -> dict[str, int]:
    dimensions = {}
    for key, default in architecture.dimensions.items():
        listed = text.get(key)
        value = default if listed is None else _whole(listed)
        largest = _LARGEST.get(key, _LARGEST_WIDTH)
        if value is None or not 1 <= value <= largest:
            problems.append(
                CheckpointError(f"config.json: {key} {listed!r}: must be from 1 to {largest}.")
            )
            value = default
        dimensions[key] = value
    return dimensions


def _relation_problems(
    architecture: Architecture, config: Mapping[str, Any]
) -> list[GemquantError]:
    problems: list[GemquantError] = []
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % kv_heads:
        problems.append(
            CheckpointError(
                f"config.json: num_attention_heads {heads} is not a multiple of "
                f"num_key_value_heads {kv_heads}."
            )
        )
    if config["hidden_size"] % heads and architecture.heads_divide_hidden:
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
    architecture: Architecture, text: Mapping[str, Any], problems: list[GemquantError]
) -> dict[str, Any]:
    softcaps = architecture.softcaps
    defaults = {"rms_norm_eps": 1e-6, "initializer_range": 0.02, **softcaps}
    numbers: dict[str, Any] = {}
    for key, default in defaults.items():
        value = text.get(key, default)
        if value is None and key in softcaps:
            numbers[key] = None
        elif type(value) in (int, float) and 0 < value <= sys.float_info.max:
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
        if key == "pad_token_id" and value == -1:
            value = None  # how some trainers write that there is none
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
    architecture: Architecture, raw: Mapping[str, Any], text: Mapping[str, Any]
) -> list[GemquantError]:
    problems: list[GemquantError] = []
    method = raw.get("quantization_config") or text.get("quantization_config")
    name = method.get("quant_method") if isinstance(method, dict) else method
    if method and name != _DECODED:
        what, instead = _PACKED.get(str(name), ("", "Start from the original weights"))
        problems.append(
            UnsupportedError(
                f"the checkpoint is quantized already (quant_method {name!r}{what}).",
                hint=f"{instead}, in bfloat16, float16 or float32.",
            )
        )
    if text.get("attention_bias"):
        problems.append(UnsupportedError("config.json: attention_bias true is not supported."))
    bidirectional = text.get("use_bidirectional_attention")
    if bidirectional and bidirectional != "vision" and not architecture.embeds:  # not of images
        problems.append(
            UnsupportedError(
                f"config.json: use_bidirectional_attention {bidirectional!r}: this is an "
                f"embedding model, not a {architecture.causal_lm}."
            )
        )
    for key in ("hidden_act", "hidden_activation"):
        value = text.get(key)
        if value is not None and value not in architecture.activations:
            problems.append(
                UnsupportedError(f"config.json: {key} {value!r}: only {ACTIVATION} is supported.")
            )
    return problems


def _layer_types(
    architecture: Architecture, text: Mapping[str, Any], layers: int, problems: list[GemquantError]
) -> list[str]:
    """Return the kind of attention of every layer; append what is wrong to ``problems``.

    Where a file lists none, every n-th layer attends to everything and the others slide.
    """
    listed = text.get("layer_types")
    if listed is None:
        every = text.get("sliding_window_pattern", text.get("_sliding_window_pattern"))
        if every is None or not architecture.reads_window_pattern:
            every = architecture.full_attention_every
        if type(every) is not int or every < 1:
            problems.append(
                CheckpointError(
                    f"config.json: sliding_window_pattern {every!r}: must be at least 1."
                )
            )
            every = 1
        return [SLIDING if (index + 1) % every else FULL for index in range(layers)]
    if (
        not isinstance(listed, list)
        or len(listed) != layers
        or any(kind not in (SLIDING, FULL) for kind in listed)
    ):
        problems.append(
            CheckpointError(
                f"config.json: layer_types: must be {layers} times {SLIDING} or {FULL}."
            )
        )
        return []
    return list(listed)


def _rope_parameters(
    architecture: Architecture, text: Mapping[str, Any], problems: list[GemquantError]
) -> dict[str, Any]:
    """Return the parameters of the rotary embedding; append what is wrong to ``problems``.

    One table, or one for full and one for sliding attention; ``rope_scaling`` then belongs to the
    first.
    """
    listed = _table(text, "rope_parameters", problems)
    scaling = _table(text, "rope_scaling", problems)
    theta = text.get("rope_theta", architecture.rope_theta)
    if not architecture.rope_by_layer_type:
        return _rope_table({**scaling, **listed}, theta, problems)
    stray = sorted(set(listed) - {FULL, SLIDING})
    if stray:
        problems.append(
            CheckpointError(
                f"config.json: rope_parameters of a {architecture.name} holds {FULL} and "
                f"{SLIDING}, not {', '.join(stray)}."
            )
        )
    full = {**(_table(listed, FULL, problems) or architecture.rope_full), **scaling}
    sliding = _table(listed, SLIDING, problems)
    local = text.get("rope_local_base_freq", _LOCAL_THETA)
    return {
        FULL: _rope_table(full, theta, problems),
        SLIDING: _rope_table(sliding, local, problems),
    }


def _table(owner: Mapping[str, Any], key: str, problems: list[GemquantError]) -> Mapping[str, Any]:
    value = owner.get(key)
    if value is not None and not isinstance(value, dict):
        problems.append(CheckpointError(f"config.json: {key} {value!r}: must be an object."))
        return {}
    return value or {}


def _rope_table(
    listed: Mapping[str, Any], theta: Any, problems: list[GemquantError]
) -> dict[str, Any]:
    table = {key: value for key, value in listed.items() if key != "type"}
    table.setdefault("rope_type", listed.get("type", "default"))
    table.setdefault("rope_theta", theta)
    if table["rope_type"] not in _ROPE_TYPES:
        problems.append(
            UnsupportedError(
                f"config.json: rope_type {table['rope_type']!r}: supported are "
                f"{', '.join(_ROPE_TYPES)}."
            )
        )
    for key in ("rope_theta", "factor", "partial_rotary_factor"):
        value = table.get(key, 1.0)
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            problems.append(
                CheckpointError(f"config.json: {key} {value!r}: must be a positive number.")
            )
        elif key in table:
            table[key] = float(value)
    return table
