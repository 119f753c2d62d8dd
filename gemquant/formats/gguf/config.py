"""The configuration that a GGUF's metadata describes.

llama.cpp infers the scale of queries from the sizes: ``GgufFacts.query_pre_attn_scalar``.

Source: llama.cpp ``src/llama-model.cpp``, ``load_hparams``, and ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError, refuse
from gemquant.models.architecture import gguf_architectures
from gemquant.models.config import text_config
from gemquant.models.structure import FULL, SLIDING, Architecture

_REQUIRED = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL = {
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_TOKENS = {"padding": "pad_token_id", "eos": "eos_token_id", "bos": "bos_token_id"}


def gguf_architecture(metadata: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a GGUF; UnsupportedError if it is no supported Gemma."""
    name, supported = metadata.get("general.architecture"), gguf_architectures()
    if not isinstance(name, str) or name not in supported:
        raise UnsupportedError(
            f"GGUF architecture {name!r}: supported are {', '.join(supported)}.",
            hint="This file holds only the vision part of a model; open the text model's."
            if name == "clip"
            else None,
        )
    return supported[name]


def gguf_config(metadata: Mapping[str, Any], *, vocab_size: int, tied: bool) -> dict[str, Any]:
    """Return the flat text configuration, as ``gemquant.models.config.text_config`` does.

    vocab_size: rows of the embedding. tied: whether the file holds no head of its own.
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
    raw["query_pre_attn_scalar"] = architecture.gguf.query_pre_attn_scalar(raw)
    pattern = metadata.get(f"{prefix}.attention.sliding_window_pattern")
    if isinstance(pattern, Sequence) and not isinstance(pattern, str):
        raw["layer_types"] = [SLIDING if s else FULL for s in pattern]
    elif pattern is not None:
        raw["sliding_window_pattern"] = pattern
    return text_config(raw)


def _shortest(value: Any) -> Any:
    """Undo the widening of a float32: 9.99999997e-07 was written as 1e-06."""
    if not isinstance(value, float):
        return value
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value
