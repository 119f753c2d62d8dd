"""A Gemma's configuration as llama.cpp's metadata keys, and what these keys cannot say.

The keys are those that llama.cpp's converter writes, in its order. Three are written besides, each
only where llama.cpp would otherwise compute something else than the checkpoint: the rope base and
scaling of Gemma 1 and 2 (it assumes 10000 and none), and a pattern of sliding layers that is not
the published one.

Source: llama.cpp ``conversion/gemma.py``, ``conversion/base.py``, ``src/models/gemma*.cpp``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemquant.errors import GemquantError, UnsupportedError
from gemquant.formats.gguf.names import architecture_of
from gemquant.formats.gguf.values import GgufValue, booleans, float32, string, uint32

FILE_TYPE = "general.file_type"

_ASSUMED_THETA = 10_000.0
_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6}
_LAYERS_OF_27B = {"gemma2": 46, "gemma3_text": 62}
_ROPE_TYPES = ("default", "linear")


def architecture_metadata(config: Mapping[str, Any], *, file_type: int) -> dict[str, GgufValue]:
    """Return the keys that describe the model, with ``general.file_type`` among them.

    config: as ``gemquant.models.config.text_config`` returns it. file_type: llama.cpp's
    ``llama_ftype``, such as 15 for Q4_K_M.
    """
    generation, name = config["model_type"], architecture_of(config["model_type"])
    rope = _rope(config, name)
    shapes = {
        f"{name}.context_length": uint32(config["max_position_embeddings"]),
        f"{name}.embedding_length": uint32(config["hidden_size"]),
    }
    blocks = {f"{name}.block_count": uint32(config["num_hidden_layers"])}
    shapes = {**blocks, **shapes} if generation == "gemma3_text" else {**shapes, **blocks}
    heads = {
        f"{name}.feed_forward_length": uint32(config["intermediate_size"]),
        f"{name}.attention.head_count": uint32(config["num_attention_heads"]),
        f"{name}.attention.head_count_kv": uint32(config["num_key_value_heads"]),
    }
    sizes = {
        f"{name}.attention.layer_norm_rms_epsilon": float32(config["rms_norm_eps"]),
        f"{name}.attention.key_length": uint32(config["head_dim"]),
        f"{name}.attention.value_length": uint32(config["head_dim"]),
        FILE_TYPE: uint32(file_type),
    }
    return {**shapes, **heads, **rope, **sizes, **_softcaps(config, name), **_window(config, name)}


def unrepresentable(config: Mapping[str, Any]) -> list[GemquantError]:
    """Everything that llama.cpp would compute differently from this configuration."""
    generation = config["model_type"]
    problems: list[GemquantError] = []

    def refuse_key(key: str, value: object, rule: str) -> None:
        problems.append(
            UnsupportedError(
                f"config.json: {key} {value!r}: {rule}.",
                hint="Choose another container, for instance --target cpu --exporter "
                "compressed-tensors.",
            )
        )

    if generation != "gemma":
        scale, assumed = config["query_pre_attn_scalar"], _assumed_scalar(config)
        if scale != assumed:
            refuse_key("query_pre_attn_scalar", scale, f"llama.cpp computes with {assumed}")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if generation == "gemma2" and config[key] is None:
            refuse_key(key, None, "llama.cpp always caps a Gemma 2")
    if generation == "gemma3_text" and config["attn_logit_softcapping"] is not None:
        value = config["attn_logit_softcapping"]
        refuse_key("attn_logit_softcapping", value, "llama.cpp caps no attention of a Gemma 3")
    if generation != "gemma3_text" and not config["tie_word_embeddings"]:
        refuse_key("tie_word_embeddings", False, "llama.cpp reads no head of a Gemma 1 or 2")
    for key, table in _rope_tables(config).items():
        if table["rope_type"] not in _ROPE_TYPES:
            refuse_key(f"{key}.rope_type", table["rope_type"], "GGUF export knows default, linear")
    sliding = _rope_tables(config).get("rope_parameters.sliding_attention", {})
    if sliding.get("rope_type", "default") != "default":
        refuse_key(
            "rope_parameters.sliding_attention.rope_type",
            sliding["rope_type"],
            "llama.cpp scales no sliding layer of a Gemma 3",
        )
    return problems


def _rope_tables(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    parameters = config["rope_parameters"]
    if config["model_type"] == "gemma3_text":
        return {f"rope_parameters.{kind}": table for kind, table in parameters.items()}
    return {"rope_parameters": parameters}


def _rope(config: Mapping[str, Any], name: str) -> dict[str, GgufValue]:
    tables = config["rope_parameters"]
    gemma3 = config["model_type"] == "gemma3_text"
    full = tables["full_attention"] if gemma3 else tables
    keys: dict[str, GgufValue] = {}
    if full["rope_type"] == "linear" and full.get("factor") is not None:
        keys[f"{name}.rope.scaling.type"] = string("linear")
        keys[f"{name}.rope.scaling.factor"] = float32(full["factor"])
    # Upstream writes no base for Gemma 1 and 2, where llama.cpp assumes 10000 without one.
    if gemma3 or full["rope_theta"] != _ASSUMED_THETA:
        keys[f"{name}.rope.freq_base"] = float32(full["rope_theta"])
    if gemma3:
        theta = tables["sliding_attention"]["rope_theta"]
        keys[f"{name}.rope.freq_base_swa"] = float32(theta)
    return keys


def _softcaps(config: Mapping[str, Any], name: str) -> dict[str, GgufValue]:
    keys = ("attn_logit_softcapping", "final_logit_softcapping")
    return {f"{name}.{key}": float32(config[key]) for key in keys if config.get(key) is not None}


def _window(config: Mapping[str, Any], name: str) -> dict[str, GgufValue]:
    if config["model_type"] == "gemma":
        return {}
    sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
    keys: dict[str, GgufValue] = {}
    # Without a window llama.cpp lets every layer of a Gemma 3 see everything.
    if config["model_type"] == "gemma2" or any(sliding):
        keys[f"{name}.attention.sliding_window"] = uint32(config["sliding_window"])
        if sliding != _published_pattern(config):
            keys[f"{name}.attention.sliding_window_pattern"] = booleans(sliding)
    return keys


def _published_pattern(config: Mapping[str, Any]) -> Sequence[bool]:
    every = _FULL_EVERY[config["model_type"]]
    return [(index + 1) % every != 0 for index in range(config["num_hidden_layers"])]


def _assumed_scalar(config: Mapping[str, Any]) -> int:
    """The query scale's denominator, squared, that llama.cpp infers from sizes."""
    if config["num_hidden_layers"] == _LAYERS_OF_27B[config["model_type"]]:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])
