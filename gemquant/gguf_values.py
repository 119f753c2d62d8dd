"""Metadata values as a GGUF file stores them: with their type, and as bytes.

    key (string)   type (uint32)   value
    string         uint64 length, UTF-8 bytes
    array          element type (uint32), uint64 count, values

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import GGUFValueType

NUMPY_TYPES: Mapping[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<u1", GGUFValueType.INT8: "<i1", GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2", GGUFValueType.UINT32: "<u4", GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4", GGUFValueType.BOOL: "<u1", GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8", GGUFValueType.FLOAT64: "<f8",
}  # fmt: skip


@dataclass(frozen=True)
class GgufValue:
    """One value and its type; element: the type inside an array."""

    type: GGUFValueType
    value: Any
    element: GGUFValueType | None = None

    def packed(self) -> bytes:
        """The value as stored after its type."""
        if self.type != GGUFValueType.ARRAY:
            return _packed(self.type, [self.value])
        count = struct.pack("<IQ", self.element, len(self.value))
        return count + _packed(self.element, self.value)


Metadata = Mapping[str, GgufValue]
"""Keys in the order in which the file has them."""


def string(value: str) -> GgufValue:
    """A text."""
    return GgufValue(GGUFValueType.STRING, value)


def uint32(value: int) -> GgufValue:
    """A length, a count, a token id."""
    return GgufValue(GGUFValueType.UINT32, value)


def int32(value: int) -> GgufValue:
    """An integer that may be negative."""
    return GgufValue(GGUFValueType.INT32, value)


def float32(value: float) -> GgufValue:
    """A number."""
    return GgufValue(GGUFValueType.FLOAT32, value)


def boolean(value: bool) -> GgufValue:
    """Yes or no."""
    return GgufValue(GGUFValueType.BOOL, value)


def strings(values: Sequence[str]) -> GgufValue:
    """A list of texts."""
    return GgufValue(GGUFValueType.ARRAY, values, GGUFValueType.STRING)


def int32s(values: Sequence[int]) -> GgufValue:
    """A list of integers."""
    return GgufValue(GGUFValueType.ARRAY, values, GGUFValueType.INT32)


def float32s(values: Sequence[float]) -> GgufValue:
    """A list of numbers."""
    return GgufValue(GGUFValueType.ARRAY, values, GGUFValueType.FLOAT32)


def booleans(values: Sequence[bool]) -> GgufValue:
    """A list of yes and no."""
    return GgufValue(GGUFValueType.ARRAY, values, GGUFValueType.BOOL)


def packed_metadata(metadata: Metadata) -> bytes:
    """Return the metadata section: every key, its type and its value."""
    parts: list[bytes] = []
    for key, value in metadata.items():
        parts += [_text(key), struct.pack("<I", value.type), value.packed()]
    return b"".join(parts)


def _packed(kind: GGUFValueType | None, values: Sequence[Any]) -> bytes:
    if kind == GGUFValueType.STRING:
        return b"".join(map(_text, values))
    if kind is None or kind not in NUMPY_TYPES:
        raise ValueError(f"GGUF values of type {kind} are not written.")
    return np.asarray(values, dtype=NUMPY_TYPES[kind]).tobytes()


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded
