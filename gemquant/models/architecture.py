"""What other packages ask about a Gemma: its ``Architecture``, and the tensors of a configuration.

To add a generation, describe it in a file of its own, as ``gemma3.py`` does, and add it to
``ARCHITECTURES``. Nothing else compares a generation's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from gemquant.models.experts import EXPERTS, expert_number, has_experts
from gemquant.models.gemma1 import GEMMA1
from gemquant.models.gemma2 import GEMMA2
from gemquant.models.gemma3 import EMBEDDING_GEMMA, GEMMA3
from gemquant.models.gemma4 import GEMMA4, GEMMA4_UNIFIED
from gemquant.models.structure import (
    DENSE_MODULES,
    EMBEDDING,
    FINAL_NORM,
    FULL,
    HEAD,
    PER_LAYER_INPUTS,
    PER_LAYER_TABLE,
    Architecture,
    LayerStructure,
    Stack,
    layer_prefix,
)

ARCHITECTURES: dict[str, Architecture] = {
    architecture.model_type: architecture
    for architecture in (GEMMA1, GEMMA2, GEMMA3, EMBEDDING_GEMMA, GEMMA4, GEMMA4_UNIFIED)
}
"""Every supported generation by the ``model_type`` of its text model."""


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """Return the architecture of a text configuration."""
    return ARCHITECTURES[config["model_type"]]


def library_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A text configuration in the library's words: of the keys of ``config.json`` alone."""
    model_type = architecture_of(config).library_type or config["model_type"]
    own = {key: value for key, value in config.items() if key != DENSE_MODULES}
    return {**own, "model_type": model_type}


def registered(kind: str) -> str:
    """Return ``kind`` if it is one of ``loading_kind``'s; ValueError otherwise."""
    model_type = kind.removesuffix(EXPERTS).removesuffix(PER_LAYER_INPUTS)
    if model_type not in ARCHITECTURES:
        raise ValueError(f"{model_type!r} is not one of {', '.join(ARCHITECTURES)}")
    return kind


def loading_kind(config: Mapping[str, Any], quantized: Iterable[str] | None = None) -> str:
    """What a runtime must be able to load, as targets name it.

    A ``model_type``; per-layer inputs and quantized experts make a kind of their own.
    quantized: names of the weights stored as codes; None for all linears.
    """
    quantized = linear_shapes(config) if quantized is None else quantized
    inputs = PER_LAYER_INPUTS if PER_LAYER_TABLE in architecture_of(config).outside(config) else ""
    return f"{config['model_type']}{inputs}{EXPERTS if has_experts(quantized) else ''}"


def unread_for_a_token(config: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """Tensors that decoding a token does not read: tables of which it reads a row, and experts.

    Of the experts of a layer as many are left as a token is routed to; which, the token decides.
    """
    rows = {PER_LAYER_TABLE} if config["tie_word_embeddings"] else {PER_LAYER_TABLE, EMBEDDING}
    routed = config.get("top_k_experts") or 0
    return {n for n in names if n in rows or (expert_number(n) or 0) >= max(routed, 1)}


def library_classes() -> dict[str, Architecture]:
    """Map the library's class names, of text models and of multimodal ones, to architectures."""
    return {
        name: architecture
        for architecture in ARCHITECTURES.values()
        for name in (architecture.causal_lm, *architecture.wrappers)
    }


def model_types() -> dict[str, Architecture]:
    """Map every ``model_type``, of text models and of multimodal ones, to its architecture."""
    return {
        name: architecture
        for architecture in ARCHITECTURES.values()
        for name in (architecture.model_type, *architecture.wrappers.values())
    }


def gguf_architectures() -> dict[str, Architecture]:
    """Map llama.cpp's ``general.architecture`` to architectures; of several to the first."""
    first: dict[str, Architecture] = {}
    for architecture in ARCHITECTURES.values():
        first.setdefault(architecture.gguf.architecture, architecture)
    return first


def text_prefixes() -> dict[str, str]:
    """How multimodal checkpoints of any generation name the text model's tensors, and its own."""
    return {
        theirs: ours
        for architecture in ARCHITECTURES.values()
        for theirs, ours in architecture.text_prefixes.items()
    }


@cache
def tower_prefixes() -> tuple[str, ...]:
    """How names of tensors begin that belong to no text model."""
    return tuple(
        prefix + tower
        for architecture in ARCHITECTURES.values()
        for tower in architecture.tower_prefixes
        for prefix in ("", "model.")
    )


def layer_structure(config: Mapping[str, Any], index: int) -> LayerStructure:
    """Describe decoder layer ``index`` of a text configuration; layers may differ."""
    return architecture_of(config).layer(config, index)


def layer_parameters(config: Mapping[str, Any], index: int) -> list[str]:
    """Short names of every parameter of decoder layer ``index``."""
    return list(layer_structure(config, index).shapes)


def linear_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Full names and shapes (out, in) of the linears of all decoder layers, but those kept."""
    return {
        f"{layer_prefix(index)}{name}.weight": shape
        for index in range(config["num_hidden_layers"])
        for name, shape in layer_structure(config, index).linear_shapes.items()
        if kept_reason(name) is None
    }


def kept_reason(name: str) -> str | None:
    """Why a module or weight stays in 16 bits, where some generation says so of its name."""
    module = name.removesuffix(".weight")
    for architecture in ARCHITECTURES.values():
        for end, reason in architecture.kept.items():
            if module.endswith(end):
                return reason
    return None


def stacked_tensors(config: Mapping[str, Any]) -> dict[str, Stack]:
    """Tensors that the library stores for several of ours, with full names."""
    return {
        prefix + name: Stack(stack.shape, tuple(prefix + part for part in stack.parts))
        for index in range(config["num_hidden_layers"])
        for prefix in [layer_prefix(index)]
        for name, stack in layer_structure(config, index).stacks.items()
    }


def expert_count(config: Mapping[str, Any]) -> int:
    """Experts of a layer; 0 where there are none."""
    return max((stack.shape[0] for stack in layer_structure(config, 0).stacks.values()), default=0)


def places_in_stacks(
    stacks: Mapping[str, Stack], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[str, int]]:
    """Where matrices of stacks are: name → the stack, and the first row among all its rows."""
    places: dict[str, tuple[str, int]] = {}
    for name, stack in stacks.items():
        first = 0
        for part in stack.parts:
            places[part] = (name, first)
            first += shapes[part][0]
    return places


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a text-only Gemma with its shape, in the order of the forward pass."""
    hidden = config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config["vocab_size"], hidden)}
    shapes |= architecture_of(config).outside(config)
    for index in range(config["num_hidden_layers"]):
        prefix = layer_prefix(index)
        for name, shape in layer_structure(config, index).shapes.items():
            shapes[prefix + name] = shape
    shapes[FINAL_NORM] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes[HEAD] = shapes[EMBEDDING]
    return shapes


def stored_shapes(
    config: Mapping[str, Any], stacks: Mapping[str, Stack] | None = None
) -> dict[str, tuple[int, ...]]:
    """``tensor_shapes``, with stacks, the library's or others, for the matrices that they hold."""
    stacks = stacked_tensors(config) if stacks is None else stacks
    parts = {part for stack in stacks.values() for part in stack.parts}
    shapes = {name: shape for name, shape in tensor_shapes(config).items() if name not in parts}
    return shapes | {name: stack.shape for name, stack in stacks.items()}


def cached_values(config: Mapping[str, Any], context: int, window: int) -> int:
    """Keys and values that ``context`` tokens leave in the cache.

    window: tokens that a sliding layer keeps of them.
    """
    layers = (layer_structure(config, index) for index in range(config["num_hidden_layers"]))
    return sum(
        layer.cache_values * (context if layer.attention == FULL else min(context, window))
        for layer in layers
    )
