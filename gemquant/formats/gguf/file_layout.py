"""A GGUF before any data: its first bytes, where each tensor begins, how it is split into parts.

    4 bytes  "GGUF"        uint32  version 3
    uint64   tensors       uint64  metadata entries
    metadata               as ``gguf_values`` packs it
    tensor descriptions    name (string), rank (uint32), sizes (uint64, innermost first),
                           type (uint32), offset (uint64, from the data's beginning)
    data                   each tensor padded to 32 bytes, the last one too

Parts are divided as llama.cpp's gguf-split does it: the first has all the metadata.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, llama.cpp ``tools/gguf-split``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from gguf import GGUFValueType

from gemquant.formats.gguf.values import GgufValue, Metadata, int32, packed_metadata
from gemquant.numerics.ggml.types import GgmlType

ALIGNMENT = 32


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: its GGUF name, its shape (rows first) and its format."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType

    @property
    def size_bytes(self) -> int:
        """Bytes of its data, without padding."""
        return prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])

    @property
    def padded_bytes(self) -> int:
        """Bytes until the next tensor begins."""
        return -(-self.size_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class FileLayout:
    """One file. offsets: tensor → where its data begins in the file."""

    head: bytes
    offsets: Mapping[str, int]
    size: int

    @classmethod
    def of(cls, tensors: Sequence[StoredTensor], metadata: Metadata) -> FileLayout:
        """Lay tensors down in the order given."""
        begins = [0, *accumulate(tensor.padded_bytes for tensor in tensors)]
        parts = [
            struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)),
            packed_metadata(metadata),
            *(_described(tensor, begin) for tensor, begin in zip(tensors, begins, strict=False)),
        ]
        head = b"".join(parts)
        head += bytes(-len(head) % ALIGNMENT)
        offsets = {t.name: len(head) + begin for t, begin in zip(tensors, begins, strict=False)}
        return cls(head, offsets, len(head) + begins[-1])


def file_layouts(
    name: str, tensors: Sequence[StoredTensor], metadata: Metadata, *, max_bytes: int | None
) -> dict[str, FileLayout]:
    """Return every file by name: one, or parts of at most ``max_bytes`` of tensors' data.

    A tensor larger than that has a part to itself; the first part has the metadata besides.
    """
    groups = _groups(tensors, max_bytes)
    if len(groups) == 1:
        return {f"{name}.gguf": FileLayout.of(tensors, metadata)}
    layouts = {}
    for number, group in enumerate(groups):
        split = {
            "split.no": GgufValue(GGUFValueType.UINT16, number),
            "split.tensors.count": int32(len(tensors)),
            "split.count": GgufValue(GGUFValueType.UINT16, len(groups)),
        }
        own = {**metadata, **split} if number == 0 else split
        file = f"{name}-{number + 1:05d}-of-{len(groups):05d}.gguf"
        layouts[file] = FileLayout.of(group, own)
    return layouts


def _groups(tensors: Sequence[StoredTensor], max_bytes: int | None) -> list[list[StoredTensor]]:
    groups: list[list[StoredTensor]] = [[]]
    room = max_bytes
    for tensor in tensors:
        if max_bytes is not None and room is not None:
            if tensor.padded_bytes > room and groups[-1]:
                groups.append([])
                room = max_bytes
            room -= tensor.padded_bytes
        groups[-1].append(tensor)
    return groups


def _described(tensor: StoredTensor, begin: int) -> bytes:
    name = tensor.name.encode()
    return b"".join(
        (
            struct.pack("<Q", len(name)),
            name,
            struct.pack("<I", len(tensor.shape)),
            struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape)),
            struct.pack("<IQ", tensor.type.number, begin),
        )
    )
