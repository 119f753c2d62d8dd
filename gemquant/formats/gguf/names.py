"""llama.cpp's names for Gemma's tensors.

Norms are stored there as 1 + w, so that its kernel multiplies by them directly.

Source: gguf-py ``tensor_mapping.py``; llama.cpp ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gemquant.models.structure import EMBEDDING, FINAL_NORM, HEAD

GGUF_ARCHITECTURES: Mapping[str, str] = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
"""llama.cpp's ``general.architecture`` and the model type that it holds."""

_LAYER_NUMBER = re.compile(r"blk\.(\d+)\.")

_OUTSIDE = {"token_embd.weight": EMBEDDING, "output_norm.weight": FINAL_NORM, "output.weight": HEAD}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FROM_OUTSIDE = {ours: theirs for theirs, ours in _OUTSIDE.items()}
_FROM_LAYER = {ours: theirs for theirs, ours in _IN_LAYER.items()}
_LAYER = re.compile(r"blk\.(\d{1,4})\.(\w+)\.weight")


def architecture_of(generation: str) -> str:
    """Return llama.cpp's name for a model type; the inverse of ``GGUF_ARCHITECTURES``.

    >>> architecture_of("gemma3_text")
    'gemma3'
    """
    return {ours: theirs for theirs, ours in GGUF_ARCHITECTURES.items()}[generation]


def from_gguf(name: str, generation: str) -> str | None:
    """Return Gemma's own name for a GGUF tensor, or None if Gemma has no such tensor.

    >>> from_gguf("blk.3.ffn_norm.weight", "gemma2")
    'model.layers.3.pre_feedforward_layernorm.weight'
    >>> from_gguf("blk.3.ffn_norm.weight", "gemma")
    'model.layers.3.post_attention_layernorm.weight'
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match = _LAYER.fullmatch(name)
    if match is None:
        return None
    index, part = match.groups()
    if part == "ffn_norm":
        before_mlp = "post_attention" if generation == "gemma" else "pre_feedforward"
        return f"model.layers.{int(index)}.{before_mlp}_layernorm.weight"
    module = _IN_LAYER.get(part)
    return None if module is None else f"model.layers.{int(index)}.{module}.weight"


def to_gguf(name: str, generation: str) -> str:
    """Return llama.cpp's name for one of Gemma's tensors; the inverse of ``from_gguf``.

    >>> to_gguf("model.layers.3.pre_feedforward_layernorm.weight", "gemma2")
    'blk.3.ffn_norm.weight'
    """
    if name in _FROM_OUTSIDE:
        return _FROM_OUTSIDE[name]
    _, _, index, module = name.removesuffix(".weight").split(".", 3)
    before_mlp = "post_attention" if generation == "gemma" else "pre_feedforward"
    if module == f"{before_mlp}_layernorm":
        return f"blk.{index}.ffn_norm.weight"
    return f"blk.{index}.{_FROM_LAYER[module]}.weight"


def stores_one_plus(name: str) -> bool:
    """Whether a GGUF holds 1 + w for this tensor of Gemma's: true for every norm."""
    return name == FINAL_NORM or name.endswith(("layernorm.weight", "_norm.weight"))


def stored_order(names: Iterable[str]) -> list[str]:
    """Sort llama.cpp's tensor names as its quantizer stores them.

    What belongs to no layer comes first; then layer by layer; by name within each. Its converter
    keeps the order of the safetensors instead.

    Source: llama.cpp ``src/llama-model-loader.h``, ``weight_name_comparer``.

    >>> stored_order(["blk.10.ffn_up.weight", "blk.9.ffn_up.weight", "token_embd.weight"])
    ['token_embd.weight', 'blk.9.ffn_up.weight', 'blk.10.ffn_up.weight']
    """

    def place(name: str) -> tuple[int, bytes]:
        match = _LAYER_NUMBER.match(name)
        return (int(match.group(1)) if match else -1, name.encode())

    return sorted(names, key=place)
