"""Metadata values as a GGUF file stores them: with their type, and as bytes.

    key (string)   type (uint32)   value
    string         uint64 length, UTF-8 bytes
    array          element type (uint32), uint64 count, values

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
from gguf import GGUFValueType

NUMPY_TYPES: Mapping[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<u1", GGUFValueType.INT8: "<i1", GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2", GGUFValueType.UINT32: "<u4", GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4", GGUFValueType.BOOL: "<u1", GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8", GGUFValueType.FLOAT64: "<f8",
}  # fmt: skip


class StoredArray(Sequence[Any]):
    """An array as stored, decoded during iteration; it takes no more memory than its bytes.

    octets: the values as stored. ends: where each string ends in them; None for numbers.
    """

    def __init__(self, octets: bytes, element: GGUFValueType, ends: Sequence[int] | None) -> None:
        self.octets, self.element, self._ends = octets, element, ends

    def __len__(self) -> int:
        if self._ends is not None:
            return len(self._ends)
        return len(self.octets) // np.dtype(NUMPY_TYPES[self.element]).itemsize

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(self)[index]
        if self._ends is None:
            return self._numbers()[index].item()
        index = range(len(self))[index]
        begin = self._ends[index - 1] if index else 0
        return self.octets[begin + 8 : self._ends[index]].decode("utf-8", errors="replace")

    def __iter__(self) -> Iterator[Any]:
        if self._ends is None:
            return iter(self._numbers().tolist())
        begins = chain((0,), self._ends)
        return (
            self.octets[begin + 8 : end].decode("utf-8", errors="replace")
            for begin, end in zip(begins, self._ends, strict=False)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def _numbers(self) -> np.ndarray[Any, Any]:
        numbers = np.frombuffer(self.octets, NUMPY_TYPES[self.element])
        return numbers != 0 if self.element == GGUFValueType.BOOL else numbers


@dataclass(frozen=True)
class GgufValue:
    """One value and its type; element: the type inside an array."""

    type: GGUFValueType
    value: Any
    element: GGUFValueType | None = None

    @cached_property
    def packed(self) -> bytes:
        """The value as stored after its type."""
        if self.type != GGUFValueType.ARRAY:
            return _packed(self.type, [self.value])
        count = struct.pack("<IQ", self.element, len(self.value))
        if isinstance(self.value, StoredArray):
            return count + self.value.octets
        return count + _packed(self.element, self.value)


Metadata = Mapping[str, GgufValue]
"""Metadata by key, in the order of the file."""


string = partial(GgufValue, GGUFValueType.STRING)
uint32 = partial(GgufValue, GGUFValueType.UINT32)
int32 = partial(GgufValue, GGUFValueType.INT32)
float32 = partial(GgufValue, GGUFValueType.FLOAT32)
boolean = partial(GgufValue, GGUFValueType.BOOL)
strings = partial(GgufValue, GGUFValueType.ARRAY, element=GGUFValueType.STRING)
int32s = partial(GgufValue, GGUFValueType.ARRAY, element=GGUFValueType.INT32)
float32s = partial(GgufValue, GGUFValueType.ARRAY, element=GGUFValueType.FLOAT32)
booleans = partial(GgufValue, GGUFValueType.ARRAY, element=GGUFValueType.BOOL)


def packed_metadata(metadata: Metadata) -> bytes:
    """Return the metadata section: every key, its type and its value."""
    parts: list[bytes] = []
    for key, value in metadata.items():
        parts += [_text(key), struct.pack("<I", value.type), value.packed]
    return b"".join(parts)


def _packed(kind: GGUFValueType | None, values: Sequence[Any]) -> bytes:
    if kind == GGUFValueType.STRING:
        encoded = [value.encode() for value in values]
        # One array of lengths, cut up, is several times faster than a packing for each.
        lengths = np.fromiter(map(len, encoded), "<u8", len(encoded)).tobytes()
        heads = (lengths[at : at + 8] for at in range(0, len(lengths), 8))
        return b"".join(chain.from_iterable(zip(heads, encoded, strict=True)))
    if kind is None or kind not in NUMPY_TYPES:
        raise ValueError(f"GGUF values of type {kind} are not written.")
    return np.asarray(values, dtype=NUMPY_TYPES[kind]).tobytes()


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded
