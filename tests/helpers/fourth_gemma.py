"""A generation of Gemma that does not exist, in one file: layers differ, and norms multiply by w.

Every second layer attends to everything with heads twice as wide. The last layer has no v_proj: its
values are what its keys' projection gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import gelu

from gemquant.models.structure import (
    FULL,
    GATED_LAYER_IN_GGUF,
    SLIDING,
    Architecture,
    GgufFacts,
    LayerStructure,
    gated_layer,
)

NORMS = ("input_layernorm", "pre_feedforward_layernorm")


def _head_dim(config: Mapping[str, Any], index: int) -> int:
    full = config["layer_types"][index] == FULL
    return int(config["global_head_dim" if full else "head_dim"])


def _layer(config: Mapping[str, Any], index: int) -> LayerStructure:
    return gated_layer(
        config,
        index,
        before_mlp="pre_feedforward_layernorm",
        norms=NORMS,
        norm_offset=0.0,
        head_dim=_head_dim(config, index),
        value_projection=index < config["num_hidden_layers"] - 1,
    )


FOURTH = Architecture(
    name="Gemma X",
    model_type="gemma_x",
    causal_lm="GemmaXForCausalLM",
    library=lambda: (SimpleNamespace, FourthModel),
    layer=_layer,
    dimensions={
        "vocab_size": 600,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "global_head_dim": 64,
        "max_position_embeddings": 512,
        "sliding_window": 8,
    },
    full_attention_every=2,
    norm_offset=0.0,
    gguf=GgufFacts("gemma-x", {**GATED_LAYER_IN_GGUF, "ffn_norm": "pre_feedforward_layernorm"}),
)


# ---------------------------------------------------------------- the model, as a library has it


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class _Rotary(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.widths = {SLIDING: config.head_dim, FULL: config.global_head_dim}

    def forward(self, hidden: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        width = self.widths[kind]
        frequencies = 10_000.0 ** (-torch.arange(0, width, 2, device=hidden.device) / width)
        angles = torch.arange(hidden.shape[1], device=hidden.device)[:, None] * frequencies
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


class _Attention(nn.Module):
    def __init__(self, shapes: Mapping[str, tuple[int, int]], width: int) -> None:
        super().__init__()
        self.width = width
        for name, (rows, columns) in shapes.items():
            setattr(self, name, nn.Linear(columns, rows, bias=False))

    def forward(self, hidden: Tensor, mask: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (-1, self.width)).transpose(1, 2)

        def rotated(states: Tensor) -> Tensor:
            first, second = states.chunk(2, -1)
            return states * rotary[0] + torch.cat([-second, first], -1) * rotary[1]

        query, key = heads(self.q_proj(hidden)), heads(self.k_proj(hidden))
        value = heads(self.v_proj(hidden)) if hasattr(self, "v_proj") else key
        repeats = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(repeats, 1) for states in (rotated(key), value))
        scores = rotated(query) @ key.transpose(-1, -2) * self.width**-0.5 + mask
        output: Tensor = self.o_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return output


class _Mlp(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gate = gelu(self.gate_proj(hidden), approximate="tanh")
        output: Tensor = self.down_proj(gate * self.up_proj(hidden))
        return output


class _Layer(nn.Module):
    def __init__(self, config: Any, index: int) -> None:
        super().__init__()
        shapes = _layer(vars(config), index).linear_shapes
        parts = {n.removeprefix("self_attn."): s for n, s in shapes.items() if "attn" in n}
        self.self_attn = _Attention(parts, _head_dim(vars(config), index))
        self.mlp = _Mlp(config.hidden_size, config.intermediate_size)
        self.input_layernorm = _Norm(config.hidden_size)
        self.pre_feedforward_layernorm = _Norm(config.hidden_size)

    def forward(self, hidden: Tensor, *, mask: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), mask, rotary)
        output: Tensor = hidden + self.mlp(self.pre_feedforward_layernorm(hidden))
        return output


class FourthModel(nn.Module):
    """The model without a head; ``inputs_embeds`` are scaled embeddings."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config, n) for n in range(config.num_hidden_layers))
        self.norm = _Norm(config.hidden_size)
        self.rotary_emb = _Rotary(config)

    def forward(self, inputs_embeds: Tensor, *, use_cache: bool = False) -> Tensor:
        del use_cache
        place = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
        distance = place[:, None] - place
        hidden = inputs_embeds
        for layer, kind in zip(self.layers, self.config.layer_types, strict=True):
            window = self.config.sliding_window if kind == SLIDING else len(place)
            seen = (distance >= 0) & (distance < window)
            mask = torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, -1e9)
            hidden = layer(hidden, mask=mask, rotary=self.rotary_emb(hidden, kind))
        output: Tensor = self.norm(hidden)
        return output


def write_config(folder: Path, vocabulary: int) -> dict[str, Any]:
    """Write a ``config.json`` that leaves every other key to its default."""
    config = {"architectures": [FOURTH.causal_lm], "vocab_size": vocabulary, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return config


def write_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write seeded weights; gains of norms spread around one, as they multiply by w."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        values = torch.exp(0.5 * values) if len(shape) == 1 else values / shape[-1] ** 0.5
        tensors[name] = values.to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
