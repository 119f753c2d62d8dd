"""Which layers see how far, and how positions are rotated, in the old or the new spelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemquant.errors import CheckpointError, GemquantError, UnsupportedError

_FULL_EVERY = {"gemma2": 2, "gemma3_text": 6}
_LAYER_TYPES = ("sliding_attention", "full_attention")
_GLOBAL_THETA = {"gemma": 10_000.0, "gemma2": 10_000.0, "gemma3_text": 1_000_000.0}
_LOCAL_THETA = 10_000.0
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def layer_types(
    generation: str, text: Mapping[str, Any], layers: int, problems: list[GemquantError]
) -> list[str]:
    """Return the kind of attention of every layer of a Gemma 2 or 3; append what is wrong.

    Where a file lists none, every second layer of Gemma 2 and every sixth of Gemma 3 (or as
    ``sliding_window_pattern`` says) sees everything; the others slide.
    """
    given = text.get("layer_types")
    if given is None:
        every = text.get("sliding_window_pattern", text.get("_sliding_window_pattern"))
        if generation == "gemma2" or every is None:
            every = _FULL_EVERY[generation]
        if type(every) is not int or every < 1:
            problems.append(
                CheckpointError(
                    f"config.json: sliding_window_pattern {every!r}: must be at least 1."
                )
            )
            every = 1
        return [_LAYER_TYPES[(index + 1) % every == 0] for index in range(layers)]
    if (
        not isinstance(given, list)
        or len(given) != layers
        or any(kind not in _LAYER_TYPES for kind in given)
    ):
        problems.append(
            CheckpointError(
                f"config.json: layer_types: must be {layers} times {' or '.join(_LAYER_TYPES)}."
            )
        )
        return []
    return list(given)


def rope_parameters(
    generation: str, text: Mapping[str, Any], problems: list[GemquantError]
) -> dict[str, Any]:
    """Return the parameters of the rotary embedding; append what is wrong.

    Gemma 1 and 2 have one table; Gemma 3 has one for full and one for sliding attention, and
    ``rope_scaling`` belongs to the first.
    """
    given, scaling = (
        _table(text, "rope_parameters", problems),
        _table(text, "rope_scaling", problems),
    )
    theta = text.get("rope_theta", _GLOBAL_THETA[generation])
    if generation != "gemma3_text":
        return _rope_table({**scaling, **given}, theta, problems)
    stray = sorted(set(given) - {"full_attention", "sliding_attention"})
    if stray:
        problems.append(
            CheckpointError(
                "config.json: rope_parameters of a Gemma 3 holds full_attention and "
                f"sliding_attention, not {', '.join(stray)}."
            )
        )
    full = {**_table(given, "full_attention", problems), **scaling}
    sliding = _table(given, "sliding_attention", problems)
    local = text.get("rope_local_base_freq", _LOCAL_THETA)
    return {
        "full_attention": _rope_table(full, theta, problems),
        "sliding_attention": _rope_table(sliding, local, problems),
    }


def _table(owner: Mapping[str, Any], key: str, problems: list[GemquantError]) -> Mapping[str, Any]:
    value = owner.get(key)
    if value is not None and not isinstance(value, dict):
        problems.append(CheckpointError(f"config.json: {key} {value!r}: must be an object."))
        return {}
    return value or {}


def _rope_table(
    given: Mapping[str, Any], theta: Any, problems: list[GemquantError]
) -> dict[str, Any]:
    table = {key: value for key, value in given.items() if key != "type"}
    table.setdefault("rope_type", given.get("type", "default"))
    table.setdefault("rope_theta", theta)
    if table["rope_type"] not in _ROPE_TYPES:
        problems.append(
            UnsupportedError(
                f"config.json: rope_type {table['rope_type']!r}: supported are "
                f"{', '.join(_ROPE_TYPES)}."
            )
        )
    for key in ("rope_theta", "factor"):
        value = table.get(key, 1.0)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            problems.append(
                CheckpointError(f"config.json: {key} {value!r}: must be a positive number.")
            )
        elif key in table:
            table[key] = float(value)
    return table
