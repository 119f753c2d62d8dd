"""The shape of a decoder layer, as data: which linears share an input, and where a scale folds.

Gemma normalizes by (1 + w). Gemma 1 has a norm before attention and one before the feed-forward;
Gemma 2 and 3 have norms before and after each, so that gate and up read the output of
``pre_feedforward_layernorm`` while ``post_attention_layernorm`` follows attention.

Source: transformers ``modeling_gemma.py``, ``modeling_gemma2.py``, ``modeling_gemma3.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Generation = Literal["gemma", "gemma2", "gemma3_text"]

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class NormFold:
    """A scale on the inputs folds into a (1 + w) norm: w' = (1 + w) / s − 1."""

    norm: str


@dataclass(frozen=True)
class RowFold:
    """A scale on the inputs folds into the rows of the linear that produces them.

    repeats: how many inputs each row feeds. Grouped-query attention feeds one value channel to
    several heads, so those inputs must share one scale.
    head_dim: rows per key-value head, where repeats > 1.
    """

    linear: str
    repeats: int = 1
    head_dim: int = 0


@dataclass(frozen=True)
class InputGroup:
    """Linears that read the same input, and what their common scale folds into, if anything."""

    name: str
    linears: tuple[str, ...]
    fold: NormFold | RowFold | None


@dataclass(frozen=True)
class LayerStructure:
    """One decoder layer: its groups of linears and its norms, by short module name."""

    groups: tuple[InputGroup, ...]
    norms: tuple[str, ...]

    @property
    def linears(self) -> tuple[str, ...]:
        """All linears, in the order of their inputs."""
        return tuple(linear for group in self.groups for linear in group.linears)


def head_structure() -> LayerStructure:
    """The head as a layer of one linear, whose input's scale has nowhere to fold."""
    return LayerStructure((InputGroup("head", ("lm_head",), None),), ())


def embedding_structure() -> LayerStructure:
    """The embedding as a layer of one linear, which reads no activations."""
    return LayerStructure((InputGroup("embedding", ("model.embed_tokens",), None),), ())


def layer_prefix(index: int) -> str:
    """Prefix of a decoder layer's tensors: ``model.layers.3.``."""
    return f"model.layers.{index}."


def layer_structure(config: Mapping[str, Any]) -> LayerStructure:
    """Describe the decoder layer of a text configuration (every layer of a Gemma has the same)."""
    generation: Generation = config["model_type"]
    before_mlp = (
        "post_attention_layernorm" if generation == "gemma" else "pre_feedforward_layernorm"
    )
    repeats = config["num_attention_heads"] // config["num_key_value_heads"]
    groups = (
        InputGroup(
            "qkv",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            NormFold("input_layernorm"),
        ),
        InputGroup(
            "o", ("self_attn.o_proj",), RowFold("self_attn.v_proj", repeats, config["head_dim"])
        ),
        InputGroup("gate_up", ("mlp.gate_proj", "mlp.up_proj"), NormFold(before_mlp)),
        InputGroup("down", ("mlp.down_proj",), RowFold("mlp.up_proj")),
    )
    norms = ["input_layernorm", "post_attention_layernorm"]
    if generation != "gemma":
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    if generation == "gemma3_text":
        norms += ["self_attn.q_norm", "self_attn.k_norm"]
    return LayerStructure(groups, tuple(norms))


def linear_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Shapes (out, in) of a decoder layer's linears, by short module name."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"] * config["head_dim"]
    kv_heads = config["num_key_value_heads"] * config["head_dim"]
    return {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (kv_heads, hidden),
        "self_attn.v_proj": (kv_heads, hidden),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a text-only Gemma with its shape, in the order of the forward pass."""
    hidden = config["hidden_size"]
    structure, linears = layer_structure(config), linear_shapes(config)
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config["vocab_size"], hidden)}
    for index in range(config["num_hidden_layers"]):
        prefix = layer_prefix(index)
        for name, shape in linears.items():
            shapes[f"{prefix}{name}.weight"] = shape
        for norm in structure.norms:
            width = config["head_dim"] if norm.startswith("self_attn") else hidden
            shapes[f"{prefix}{norm}.weight"] = (width,)
    shapes[FINAL_NORM] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes[HEAD] = shapes[EMBEDDING]
    return shapes


def layer_parameters(config: Mapping[str, Any]) -> list[str]:
    """Short names of every parameter of a decoder layer."""
    structure = layer_structure(config)
    return [f"{name}.weight" for name in (*structure.linears, *structure.norms)]
