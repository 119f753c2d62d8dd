"""Presets: how much memory a conversation may use, and what that costs; size of the KV cache.

The names are those of local-gemma, where they choose a quantization. An artifact is already
quantized, so here they choose everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gemquant.core.resources import human_bytes
from gemquant.models.architecture import cached_values

CacheType = Literal["f32", "f16", "q8_0", "q4_0"]

BITS: Mapping[CacheType, float] = {"f32": 32, "f16": 16, "q8_0": 8.5, "q4_0": 4.5}
"""Bits per cached number, scales included."""

AUTO = "auto"
_SPARE_BYTES = 500_000_000
"""For activations, the tokenizer, and the program itself."""


@dataclass(frozen=True)
class Preset:
    """Everything but the weights.

    cache: type of cached keys and values in llama.cpp. context: tokens, unless the model has fewer.
    batch: prompt tokens at once. dtype: type that transformers computes in. compiled: whether
    transformers compiles the decoder, with a cache of fixed size (NVIDIA GPUs only).
    """

    name: str
    summary: str
    cache: CacheType
    context: int
    batch: int
    dtype: Literal["float32", "bfloat16"]
    compiled: bool = False


_EXACT = "32-bit keys, values and activations: only the weights are rounded"
_SPEED = "16-bit keys and values; transformers compiles on NVIDIA GPUs"
_MEMORY = "8-bit keys and values in llama.cpp, half the context"
_EXTREME = "4-bit keys and values in llama.cpp, a quarter of the context"
PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("exact", _EXACT, "f32", 8192, 512, "float32"),
        Preset("speed", _SPEED, "f16", 8192, 512, "bfloat16", compiled=True),
        Preset("memory", _MEMORY, "q8_0", 4096, 256, "bfloat16"),
        Preset("memory_extreme", _EXTREME, "q4_0", 2048, 64, "bfloat16"),
    )
}


@dataclass(frozen=True)
class Choice:
    """A preset and the reason for it."""

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
    computes; None if unknown.
    """
    if name != AUTO:
        return Choice(PRESETS[name], PRESETS[name].summary)
    if free_bytes is None:
        return Choice(PRESETS["memory"], "the free memory of this machine is unknown")
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
        "memory; they will be read from disk repeatedly",
    )


def kv_cache_bytes(
    config: Mapping[str, Any],
    *,
    tokens: int,
    bits: float = 16,
    batch: int = 0,
    sliding: bool = True,
) -> int:
    """Bytes of the keys and values of one sequence of ``tokens`` tokens.

    config: the text model's, flat. bits: per value. sliding: whether layers with a sliding window
    store only the window and the ``batch`` tokens that are computed at once.
    """
    window = config.get("sliding_window", tokens) + batch
    return int(cached_values(config, tokens, window if sliding else tokens) * bits / 8)
