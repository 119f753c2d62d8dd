"""A Gemma's configuration as the metadata keys of a GGUF, and what these keys cannot express.

The keys are those that llama.cpp's converter writes, in its order. Three more are written where
llama.cpp would otherwise compute something else than the checkpoint: the rope base and scaling of
Gemma 1 and 2 (it assumes 10000 and none), and a pattern of sliding layers that is not the published
one. llama.cpp infers the scale of queries from the sizes: ``GgufFacts.query_pre_attn_scalar``.

Source: llama.cpp ``conversion/gemma.py``, ``conversion/base.py``, ``src/models/gemma*.cpp``,
``src/llama-model.cpp`` (``load_hparams``).
"""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError, refuse
from gemquant.formats.gguf.values import GgufValue, booleans, float32, int32s, string, uint32
from gemquant.models.architecture import architecture_of, gguf_architectures
from gemquant.models.config import corrections, text_config
from gemquant.models.structure import FULL, SLIDING, Architecture, GgufKey, GgufKeys

_log = logging.getLogger(__name__)

_REQUIRED = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
}
_OPTIONAL = {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.global.freq_base": "rope_theta",
    "rope.freq_base": "rope_theta",
    "rope.local.freq_base": "rope_local_base_freq",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_PATTERN = "attention.sliding_window_pattern"
_EXPERTS = {"expert_count": "num_experts", "expert_used_count": "top_k_experts"}
_OTHER_KINDS = {
    "adapter": (
        "a LoRA adapter",
        "To merge it, give the folder of peft that it was made from: MODEL --lora FOLDER",
    ),
    "imatrix": ("an importance matrix", "Use it: gemquant gguf MODEL --imatrix FILE"),
    "mmproj": ("the vision part of one", "Open the text model's GGUF."),
}
_OF_OLLAMA = ("vision.", "mm.", "rope.local.", "rope.global.")
"""How keys begin that only ollama writes into the file of a text model."""
_TOKENS = {"padding": "pad_token_id", "eos": "eos_token_id", "bos": "bos_token_id"}


def gguf_architecture(metadata: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a GGUF; UnsupportedError if it is no supported Gemma."""
    kind = metadata.get("general.type")
    if isinstance(kind, str) and kind in _OTHER_KINDS:
        what, hint = _OTHER_KINDS[kind]
        raise UnsupportedError(f"This GGUF is no model but {what}.", hint=hint)
    name = metadata.get("general.architecture")
    supported = gguf_architectures()
    if not isinstance(name, str) or name not in supported:
        raise UnsupportedError(
            f"GGUF architecture {name!r}: supported are {', '.join(supported)}.",
            hint="This file holds only the vision part of a model; open the text model's."
            if name == "clip"
            else None,
        )
    return supported[name]


def is_ollamas(metadata: Mapping[str, Any]) -> bool:
    """Whether ollama converted the model: it has keys of its own and leaves others out."""
    prefix = f"{metadata.get('general.architecture')}."
    return any(key.removeprefix(prefix).startswith(_OF_OLLAMA) for key in metadata)


def gguf_config(
    metadata: Mapping[str, Any],
    *,
    vocab_size: int,
    tied: bool,
    tensors: Collection[str] = (),
    rope_factors: Sequence[float] = (),
) -> dict[str, Any]:
    """Return the flat text configuration, as ``gemquant.models.config.text_config`` does.

    vocab_size: rows of the embedding. tied: whether the file holds no head of its own. tensors:
    names of all; rope_factors: the content of one of them, if it is there.
    Raises one error for every key that is missing or wrong.
    """
    architecture = gguf_architecture(metadata)
    prefix = architecture.gguf.architecture
    problems: list[GemquantError] = []
    raw: dict[str, Any] = {
        "architectures": [architecture.causal_lm],
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }
    for key, ours in (_REQUIRED | _OPTIONAL).items():
        value = metadata.get(f"{prefix}.{key}")
        if value is not None:
            raw[ours] = _shortest(value)
        elif key in _REQUIRED:
            problems.append(CheckpointError(f"metadata key {prefix}.{key} is missing."))
    refuse(problems)
    for name, ours in _TOKENS.items():
        value = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is not None:
            raw[ours] = value
    if metadata.get(f"{prefix}.rope.scaling.type") == "linear":
        factor = _shortest(metadata.get(f"{prefix}.rope.scaling.factor", 1.0))
        raw["rope_scaling"] = {"rope_type": "linear", "factor": factor}
    if is_ollamas(metadata):
        raw |= _corrected(architecture, raw, scaled=f"{prefix}.rope.scaling.factor" in metadata)
    raw["query_pre_attn_scalar"] = architecture.gguf.query_pre_attn_scalar(raw)
    pattern = metadata.get(f"{prefix}.{_PATTERN}")
    if isinstance(pattern, Sequence) and not isinstance(pattern, str):
        raw["layer_types"] = [SLIDING if s else FULL for s in pattern]
    elif pattern is not None:
        raw["sliding_window_pattern"] = pattern
    own = {
        key.removeprefix(f"{prefix}."): _shortest(value)
        for key, value in metadata.items()
        if key.startswith(f"{prefix}.")
    }
    raw |= architecture.gguf.from_keys(GgufKeys(own, vocab_size, tensors, rope_factors))
    return text_config(raw)


def _corrected(
    architecture: Architecture, raw: Mapping[str, Any], *, scaled: bool
) -> Mapping[str, Any]:
    """What ollama's own runner computes with instead of what its files say, by their sizes."""
    known = architecture.gguf.ollama.get(raw["num_hidden_layers"], {})
    windowed = raw.get("sliding_window", math.inf) < raw["max_position_embeddings"]
    corrected = {
        key: value
        for key, value in known.items()
        if windowed and raw.get(key) != value and not (scaled and key == "rope_scaling")
    }
    if corrected:
        words = ", ".join(f"{key} is {value}" for key, value in corrected.items())
        _log.warning("The GGUF is ollama's; as in its own runner, %s.", words)
    return corrected


def _shortest(value: Any) -> Any:
    """Undo the widening of a float32: 9.99999997e-07 was written as 1e-06."""
    if not isinstance(value, float):
        return value
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


# ---------------------------------------------------------------- writing

FILE_TYPE = "general.file_type"

_ASSUMED_THETA = 10_000.0


def architecture_metadata(config: Mapping[str, Any], *, file_type: int) -> dict[str, GgufValue]:
    """Return the keys that describe the model, with ``general.file_type`` among them.

    config: as ``gemquant.models.config.text_config`` returns it. file_type: llama.cpp's
    ``llama_ftype``, such as 15 for Q4_K_M.
    """
    gguf = architecture_of(config).gguf
    name = gguf.architecture
    rope = _rope(config, name)
    shapes = {
        f"{name}.context_length": uint32(config["max_position_embeddings"]),
        f"{name}.embedding_length": uint32(config["hidden_size"]),
    }
    blocks = {f"{name}.block_count": uint32(config["num_hidden_layers"])}
    shapes = {**blocks, **shapes} if gguf.block_count_first else {**shapes, **blocks}
    heads = {
        f"{name}.feed_forward_length": uint32(config["intermediate_size"]),
        f"{name}.attention.head_count": uint32(config["num_attention_heads"]),
        f"{name}.attention.head_count_kv": uint32(config["num_key_value_heads"]),
    }
    sizes = {
        f"{name}.attention.layer_norm_rms_epsilon": float32(config["rms_norm_eps"]),
        **{f"{name}.{k}": uint32(config[ours]) for k, ours in _EXPERTS.items() if config.get(ours)},
        f"{name}.attention.key_length": uint32(config["head_dim"]),
        f"{name}.attention.value_length": uint32(config["head_dim"]),
        FILE_TYPE: uint32(file_type),
    }
    own = {f"{name}.{key}": _typed(value) for key, value in gguf.keys(config).items()}
    window = _window(config, name)
    return {**shapes, **heads, **rope, **sizes, **_softcaps(config, name), **window, **own}


def _typed(value: GgufKey) -> GgufValue:
    if isinstance(value, Sequence):
        return (booleans if isinstance(value[0], bool) else int32s)(value)
    return float32(value) if isinstance(value, float) else uint32(value)


def unrepresentable(config: Mapping[str, Any]) -> list[GemquantError]:
    """Everything that llama.cpp would compute differently from this configuration."""
    architecture = architecture_of(config)
    gguf, gemma = architecture.gguf, architecture.name
    problems: list[GemquantError] = []
    corrected = corrections(config)

    def refuse_key(key: str, value: object, rule: str) -> None:
        problems.append(
            UnsupportedError(
                f"config.json: {key} {value!r}: {rule}.",
                hint=corrected.get(key)
                or "Choose another container, for instance --target cpu --exporter "
                "compressed-tensors.",
            )
        )

    if "query_pre_attn_scalar" in config:
        scale, inferred = config["query_pre_attn_scalar"], gguf.query_pre_attn_scalar(config)
        if scale != inferred:
            refuse_key("query_pre_attn_scalar", scale, f"llama.cpp computes with {inferred}")
    for key in architecture.softcaps:
        if gguf.requires_softcaps and config[key] is None:
            refuse_key(key, None, f"llama.cpp always caps a {gemma}")
    cap = config.get("attn_logit_softcapping")
    if cap is not None and not gguf.caps_attention:
        refuse_key("attn_logit_softcapping", cap, f"llama.cpp caps no attention of a {gemma}")
    if not gguf.untied_head and not config["tie_word_embeddings"]:
        refuse_key("tie_word_embeddings", False, f"llama.cpp reads no head of a {gemma}")
    for key, table in _rope_tables(config).items():
        kind, slides = table["rope_type"], key.endswith(SLIDING)
        if slides and kind != "default":
            refuse_key(f"{key}.rope_type", kind, f"llama.cpp scales no sliding layer of a {gemma}")
        elif not slides and kind not in gguf.rope_types:
            known = ", ".join(gguf.rope_types)
            refuse_key(f"{key}.rope_type", kind, f"GGUF export knows {known}")
    for key, value, rule in gguf.refused(config):
        refuse_key(key, value, rule)
    return problems


def _rope_tables(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    parameters = config["rope_parameters"]
    if architecture_of(config).rope_by_layer_type:
        return {f"rope_parameters.{kind}": table for kind, table in parameters.items()}
    return {"rope_parameters": parameters}


def _rope(config: Mapping[str, Any], name: str) -> dict[str, GgufValue]:
    tables, architecture = config["rope_parameters"], architecture_of(config)
    full = tables[FULL] if architecture.rope_by_layer_type else tables
    keys: dict[str, GgufValue] = {}
    if full["rope_type"] == "linear" and full.get("factor") is not None:
        keys[f"{name}.rope.scaling.type"] = string("linear")
        keys[f"{name}.rope.scaling.factor"] = float32(full["factor"])
    # Upstream writes no base for Gemma 1 and 2, where llama.cpp assumes 10000 without one.
    if architecture.gguf.writes_rope_base or full["rope_theta"] != _ASSUMED_THETA:
        keys[f"{name}.rope.freq_base"] = float32(full["rope_theta"])
    if architecture.rope_by_layer_type:
        theta = tables[SLIDING]["rope_theta"]
        keys[f"{name}.rope.freq_base_swa"] = float32(theta)
    return keys


def _softcaps(config: Mapping[str, Any], name: str) -> dict[str, GgufValue]:
    keys = ("attn_logit_softcapping", "final_logit_softcapping")
    return {f"{name}.{key}": float32(config[key]) for key in keys if config.get(key) is not None}


def _window(config: Mapping[str, Any], name: str) -> dict[str, GgufValue]:
    architecture = architecture_of(config)
    if architecture.full_attention_every is None:
        return {}
    sliding = [kind == SLIDING for kind in config["layer_types"]]
    keys: dict[str, GgufValue] = {}
    # Without a window llama.cpp lets every layer of a Gemma 3 see everything.
    if architecture.gguf.requires_window or any(sliding):
        keys[f"{name}.attention.sliding_window"] = uint32(config["sliding_window"])
        if sliding != _published_pattern(config) and _PATTERN not in architecture.gguf.keys(config):
            keys[f"{name}.{_PATTERN}"] = booleans(sliding)
    return keys


def _published_pattern(config: Mapping[str, Any]) -> Sequence[bool]:
    every = architecture_of(config).full_attention_every
    return [
        every is not None and (index + 1) % every != 0
        for index in range(config["num_hidden_layers"])
    ]
