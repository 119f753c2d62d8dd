"""The ``config.json`` of an artifact: transformers 5's keys and the older ones.

transformers 5 stores rotary embeddings in ``rope_parameters`` and layer kinds in ``layer_types``.
vLLM, mlx-lm and transformers 4 read ``rope_theta``, ``rope_local_base_freq``, ``rope_scaling`` and
``sliding_window_pattern``, and ``torch_dtype`` for ``dtype``. Both spellings are written, with the
same values; transformers 5 prefers the new one. vLLM takes the first class of ``architectures``
that it knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from gemquant.models.architecture import architecture_of, library_config


def runtime_config(
    config: Mapping[str, Any], dtype: torch.dtype | str, quantization: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what ``config.json`` must hold for the artifact to load with no flags.

    config: the text configuration as ``models.config.text_config`` returns it. quantization: None
    where nothing is quantized.
    """
    name = str(dtype).removeprefix("torch.")
    architecture = architecture_of(config)
    other_keys, vllm_class = architecture.other_keys, architecture.vllm_class
    document = {
        **library_config(config),
        "architectures": [architecture.causal_lm, *([vllm_class] if vllm_class else [])],
        "dtype": name,
        **(_older_keys if other_keys is None else other_keys)(config),
        "torch_dtype": name,
    }
    return (
        document
        if quantization is None
        else {**document, "quantization_config": dict(quantization)}
    )


def in_whole_model(module: str) -> str:
    """The library's name in a multimodal model of a module of the text model.

    >>> in_whole_model("model.layers.0.mlp.up_proj"), in_whole_model("lm_head")
    ('model.language_model.layers.0.mlp.up_proj', 'lm_head')
    """
    return re.sub(r"^model\.", "model.language_model.", module)


def bare_name(name: str) -> str:
    """The library's name, in a model without a head, of one of the text model's."""
    return name.removeprefix("model.")


def renamed_modules(value: Any, naming: Callable[[str], str]) -> Any:
    """A part of a configuration in which every string and key is a module's name or no such."""
    if isinstance(value, dict):
        return {naming(key): renamed_modules(each, naming) for key, each in value.items()}
    if isinstance(value, list):
        return [renamed_modules(each, naming) for each in value]
    return naming(value) if isinstance(value, str) else value


def whole_config(
    published: Mapping[str, Any], text: Mapping[str, Any], quantization: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``config.json`` of a multimodal artifact: as published, with the text model's new part.

    text: what ``runtime_config`` returns. The type and whether the head is tied stand in both.
    """
    architecture = architecture_of(text)
    wrapper = {model_type: name for name, model_type in architecture.wrappers.items()}
    model_type = published.get("model_type", next(iter(wrapper)))
    both = {key: text[key] for key in ("dtype", "torch_dtype", "tie_word_embeddings")}
    document = {
        **{key: value for key, value in published.items() if key != "quantization_config"},
        "architectures": published.get("architectures") or [wrapper[model_type]],
        "model_type": model_type,
        "text_config": {key: value for key, value in text.items() if key != "architectures"},
        **both,
    }
    return document if quantization is None else {**document, "quantization_config": quantization}


def _older_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = config["rope_parameters"]
    everywhere = rope.get("full_attention", rope)
    older = {"rope_theta": everywhere["rope_theta"]}
    scaling = {key: value for key, value in everywhere.items() if key != "rope_theta"}
    if scaling.get("rope_type", "default") != "default":
        older["rope_scaling"] = scaling
    if not architecture_of(config).rope_by_layer_type:
        return older
    older["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    pattern = _sliding_window_pattern(config["layer_types"])
    if pattern is not None:
        older["sliding_window_pattern"] = pattern
    return older


def _sliding_window_pattern(layer_types: list[str]) -> int | None:
    """Return n if every n-th layer, and no other, attends to everything; None if irregular."""
    if "full_attention" not in layer_types:
        return len(layer_types) + 1
    pattern = layer_types.index("full_attention") + 1
    regular = [
        "sliding_attention" if n % pattern else "full_attention"
        for n in range(1, len(layer_types) + 1)
    ]
    return pattern if layer_types == regular else None
