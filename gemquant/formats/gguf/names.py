"""llama.cpp's names for Gemma's tensors.

Norms are stored there as their gain (1 + w in Gemma 1 to 3), by which its kernel multiplies.

Source: gguf-py ``tensor_mapping.py``; llama.cpp ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from gemquant.models.architecture import (
    ARCHITECTURES,
    places_in_stacks,
    stacked_tensors,
    stored_shapes,
    tensor_shapes,
)
from gemquant.models.structure import EMBEDDING, FINAL_NORM, HEAD, layer_prefix

_LAYER_NUMBER = re.compile(r"blk\.(\d+)\.")

_OUTSIDE = {"token_embd.weight": EMBEDDING, "output_norm.weight": FINAL_NORM, "output.weight": HEAD}
_LAYER = re.compile(r"blk\.(\d{1,4})\.([\w.]+)")
ROPE_FACTORS = "rope_freqs.weight"
"""What no checkpoint has: it is computed from the configuration."""


def from_gguf(name: str, model_type: str) -> str | None:
    """Return Gemma's own name for a GGUF tensor, or None if Gemma has no such tensor.

    >>> from_gguf("blk.3.ffn_norm.weight", "gemma2")
    'model.layers.3.pre_feedforward_layernorm.weight'
    >>> from_gguf("blk.3.ffn_norm.weight", "gemma")
    'model.layers.3.post_attention_layernorm.weight'
    """
    outside = {**_OUTSIDE, **ARCHITECTURES[model_type].gguf.outside}
    if name in outside:
        return outside[name]
    match = _LAYER.fullmatch(name)
    if match is None:
        return None
    index, part = match.groups()
    ours = _of_layers(model_type).get(part, ARCHITECTURES[model_type].gguf.older.get(part))
    return None if ours is None else f"{layer_prefix(int(index))}{ours}"


@cache
def _of_layers(model_type: str) -> dict[str, str]:
    """Names inside a layer: llama.cpp's → Gemma's."""
    facts = ARCHITECTURES[model_type].gguf
    modules = {f"{part}.weight": f"{module}.weight" for part, module in facts.tensors.items()}
    return {**modules, **facts.parameters}


@cache
def _to_gguf(model_type: str) -> tuple[dict[str, str], dict[str, str]]:
    """Gemma's names → llama.cpp's: outside the layers, and inside one."""
    outside = {**_OUTSIDE, **ARCHITECTURES[model_type].gguf.outside}
    inside = _of_layers(model_type)
    return {o: t for t, o in outside.items()}, {o: t for t, o in inside.items()}


def to_gguf(name: str, model_type: str) -> str:
    """Return llama.cpp's name for one of Gemma's tensors; the inverse of ``from_gguf``.

    >>> to_gguf("model.layers.3.pre_feedforward_layernorm.weight", "gemma2")
    'blk.3.ffn_norm.weight'
    """
    outside, inside = _to_gguf(model_type)
    if name in outside:
        return outside[name]
    _, _, index, part = name.split(".", 3)
    return f"blk.{index}.{inside[part]}"


def places(config: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Each tensor's place: in which tensor of llama.cpp's, from which row on. Experts share one."""
    shapes = tensor_shapes(config)
    within = places_in_stacks(stacked_tensors(config), shapes)
    stored = {name: within.get(name, (name, 0)) for name in shapes}
    return {n: (to_gguf(tensor, config["model_type"]), row) for n, (tensor, row) in stored.items()}


def experts_of(config: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """The tensor of llama.cpp's that holds each of Gemma's, and the expert whose part it is."""
    shapes = gguf_shapes(config)
    return {
        name: (tensor, row // shapes[tensor][-2] if row else 0)
        for name, (tensor, row) in places(config).items()
    }


def gguf_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor's GGUF name and shape (rows first), in the order that llama.cpp writes."""
    model_type = config["model_type"]
    named = {to_gguf(name, model_type): shape for name, shape in stored_shapes(config).items()}
    factors = ARCHITECTURES[model_type].gguf.rope_factors(config)
    if factors is not None:
        named[ROPE_FACTORS] = (len(factors),)
    return {name: named[name] for name in stored_order(named)}


def is_norm(name: str) -> bool:
    """Whether a tensor of Gemma's is a norm, which a GGUF stores as its gain."""
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
