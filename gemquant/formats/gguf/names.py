"""llama.cpp's names for Gemma's tensors.

Norms are stored there as their gain (1 + w in Gemma 1 to 3), by which its kernel multiplies.

Source: gguf-py ``tensor_mapping.py``; llama.cpp ``convert_hf_to_gguf.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gemquant.errors import refuse
from gemquant.models.architecture import ARCHITECTURES, container_problems
from gemquant.models.structure import EMBEDDING, FINAL_NORM, HEAD

_LAYER_NUMBER = re.compile(r"blk\.(\d+)\.")

_OUTSIDE = {"token_embd.weight": EMBEDDING, "output_norm.weight": FINAL_NORM, "output.weight": HEAD}
_FROM_OUTSIDE = {ours: theirs for theirs, ours in _OUTSIDE.items()}
_LAYER = re.compile(r"blk\.(\d{1,4})\.(\w+)\.weight")


def from_gguf(name: str, model_type: str) -> str | None:
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
    module = ARCHITECTURES[model_type].gguf.tensors.get(part)
    return None if module is None else f"model.layers.{int(index)}.{module}.weight"


def to_gguf(name: str, model_type: str) -> str:
    """Return llama.cpp's name for one of Gemma's tensors; the inverse of ``from_gguf``.

    >>> to_gguf("model.layers.3.pre_feedforward_layernorm.weight", "gemma2")
    'blk.3.ffn_norm.weight'
    """
    refuse(container_problems(model_type, "gguf"))
    if name in _FROM_OUTSIDE:
        return _FROM_OUTSIDE[name]
    _, _, index, module = name.removesuffix(".weight").split(".", 3)
    parts = {ours: theirs for theirs, ours in ARCHITECTURES[model_type].gguf.tensors.items()}
    return f"blk.{index}.{parts[module]}.weight"


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
