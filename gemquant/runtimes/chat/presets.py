"""Presets: what a conversation may cost in memory, and what it gives up for that.

The names are those of local-gemma. There they choose a quantization; an artifact is quantized
already, so here they choose what surrounds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from gemquant.core.resources import human_bytes

CacheType = Literal["f32", "f16", "q8_0", "q4_0"]

BITS: Mapping[CacheType, float] = MappingProxyType({"f32": 32, "f16": 16, "q8_0": 8.5, "q4_0": 4.5})
"""Bits per cached number, scales included."""

AUTO = "auto"
_SPARE_BYTES = 500_000_000
"""For activations, the tokenizer, and the program itself."""


@dataclass(frozen=True)
class Preset:
    """What surrounds the weights.

    cache: type of cached keys and values in llama.cpp. context: tokens, unless the model has fewer.
    batch: tokens of a prompt at once. dtype: computed in by transformers. compiled: whether
    transformers compiles the decoder, with a cache of fixed size (NVIDIA GPUs only).
    """

    name: str
    summary: str
    cache: CacheType
    context: int
    batch: int
    dtype: Literal["float32", "bfloat16"]
    compiled: bool


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                "exact",
                "nothing rounded but the weights: 32-bit keys, values and activations",
                cache="f32",
                context=8192,
                batch=512,
                dtype="float32",
                compiled=False,
            ),
            Preset(
                "speed",
                "16-bit keys and values; transformers compiles on NVIDIA GPUs",
                cache="f16",
                context=8192,
                batch=512,
                dtype="bfloat16",
                compiled=True,
            ),
            Preset(
                "memory",
                "8-bit keys and values in llama.cpp, half the context",
                cache="q8_0",
                context=4096,
                batch=256,
                dtype="bfloat16",
                compiled=False,
            ),
            Preset(
                "memory_extreme",
                "4-bit keys and values in llama.cpp, a quarter of the context",
                cache="q4_0",
                context=2048,
                batch=64,
                dtype="bfloat16",
                compiled=False,
            ),
        )
    }
)


@dataclass(frozen=True)
class Choice:
    """A preset and why."""

    preset: Preset
    reason: str


def choose_preset(
    name: str,
    *,
    weights_bytes: int,
    cache_bytes: Callable[[Preset], int],
    free_bytes: int | None,
) -> Choice:
    """Return the preset of a name; for ``auto``, the fastest one that fits.

    cache_bytes: of keys and values at a preset's full context. free_bytes: on the device that
    computes; None where the system does not tell.
    """
    if name != AUTO:
        return Choice(PRESETS[name], PRESETS[name].summary)
    if free_bytes is None:
        return Choice(PRESETS["memory"], "how much memory is free is not known here")
    for candidate in ("speed", "memory", "memory_extreme"):
        preset = PRESETS[candidate]
        cache = cache_bytes(preset)
        if weights_bytes + cache + _SPARE_BYTES <= free_bytes:
            return Choice(
                preset,
                f"{human_bytes(weights_bytes)} of weights and {human_bytes(cache)} of keys and "
                f"values fit in {human_bytes(free_bytes)} of free memory",
            )
    return Choice(
        PRESETS["memory_extreme"],
        f"{human_bytes(weights_bytes)} of weights do not fit in {human_bytes(free_bytes)} of free "
        "memory; they will be read from disk again and again",
    )


def cache_bytes(config: Mapping[str, Any], *, context: int, batch: int, bits: float) -> int:
    """Size of the keys and values of one conversation of ``context`` tokens.

    config: the text model's, flat. A layer with a sliding window keeps the window and a batch.
    """
    width = 2 * config["num_key_value_heads"] * config["head_dim"]
    window = config.get("sliding_window") or context
    kinds = config.get("layer_types") or ["full_attention"] * config["num_hidden_layers"]
    kept = sum(
        min(context, window + batch) if kind == "sliding_attention" else context for kind in kinds
    )
    return int(kept * width * bits / 8)
