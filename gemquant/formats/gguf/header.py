"""The header of a GGUF file, and of the parts that it was split into, read without trusting them.

    4 bytes  "GGUF"        uint32  version (2 or 3; little-endian)
    uint64   tensors       uint64  metadata entries
    metadata               key (string), type (uint32), value
    tensor descriptions    name (string), rank (uint32), sizes (uint64, innermost first),
                           type (uint32), offset (uint64, from the aligned end of the header)

Strings are a uint64 length and UTF-8 bytes; arrays a type (uint32), a count (uint64), the values.
The ``gguf`` package's reader is not used: it trusts counts and takes seconds for a vocabulary.

Parts are called NAME-00001-of-00003.gguf. Each has the keys ``split.no``, ``split.count`` and
``split.tensors.count``; all other metadata is in the first.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, llama.cpp ``tools/gguf-split``.
"""

from __future__ import annotations

import math
import re
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from gemquant.errors import CheckpointError, GemquantError, refuse
from gemquant.formats.gguf.values import NUMPY_TYPES, GgufValue, Metadata, StoredArray
from gemquant.formats.source_file import SourceFile

MAX_ENTRIES = 1 << 13
"""Metadata entries or tensors; a Gemma has under 100 and under 1000."""

MAX_STRINGS = 1 << 22
"""In one array; Gemma's vocabulary has 2^18."""

MAX_RANK = 4
MAX_NAME_BYTES = 1 << 16
MAX_ALIGNMENT = 1 << 20
MAX_HEADER_BYTES = 1 << 28
"""Most of it is the vocabulary; Gemma's headers have under 2^24 bytes."""

_STEP = 1 << 20

_STRING, _ARRAY, _BOOL = GGUFValueType.STRING, GGUFValueType.ARRAY, GGUFValueType.BOOL


@dataclass(frozen=True)
class GgufEntry:
    """One tensor: shape as in torch (rows first), bytes ``begin`` to ``end`` of the file."""

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key, with types, and tensors by name, in the file's order."""

    typed_metadata: Metadata
    tensors: Mapping[str, GgufEntry]

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata by key, without types."""
        return {key: entry.value for key, entry in self.typed_metadata.items()}


def read_gguf_header(file: SourceFile) -> GgufHeader:
    """Parse the header of a GGUF file.

    Raises CheckpointError, or Problems with one for every tensor that is described wrongly.
    """
    path, reader = file.path, _Reader(file)
    if file.size < 4 or reader.octets(4) != b"GGUF":
        raise CheckpointError(f"{path}: this is not a GGUF file.")
    version, tensor_count, entry_count = reader.scalars("<IQQ")
    if version not in (2, 3):
        raise CheckpointError(
            f"{path}: GGUF version {version}; read are 2 and 3, little-endian.",
            hint="Convert it with a current llama.cpp.",
        )
    for count, what in ((tensor_count, "tensors"), (entry_count, "metadata entries")):
        if count > MAX_ENTRIES:
            raise CheckpointError(f"{path}: claims {count} {what}; at most {MAX_ENTRIES} are read.")
    metadata: dict[str, GgufValue] = {}
    for _ in range(entry_count):
        key = reader.name()
        if key in metadata:
            raise CheckpointError(f"{path}: metadata key {key} appears twice.")
        metadata[key] = reader.value()
    return GgufHeader(metadata, _tensors(reader, tensor_count, _alignment(path, metadata)))


class ForwardReader:
    """Reads a file from its beginning; reading past its end is an error.

    data: what has been read, a little ahead of ``position``.
    """

    def __init__(self, file: SourceFile) -> None:
        self.path, self.size, self.position, self.data = file.path, file.size, 0, bytearray()
        self._file = file

    def advance(self, count: int) -> int:
        """Step over ``count`` bytes and return where they begin."""
        begin = self.position
        if count > self.size - begin:
            raise self.truncated(count)
        self.position = begin + count
        self.load(self.position)
        return begin

    def octets(self, count: int) -> bytes:
        """Read bytes."""
        begin = self.advance(count)
        return bytes(self.data[begin : self.position])

    def load(self, stop: int) -> None:
        """Have all bytes before ``stop`` in memory."""
        if stop > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{self.path}: the header takes more than {MAX_HEADER_BYTES} bytes."
            )
        held = len(self.data)
        if stop > held:
            count = min(max(stop - held, _STEP), self.size - held)
            self.data += self._file.octets(held, count).numpy().data

    def scalars(self, layout: str) -> tuple[Any, ...]:
        """Read numbers of a layout of ``struct``'s."""
        return struct.unpack_from(layout, self.data, self.advance(struct.calcsize(layout)))

    def truncated(self, count: int) -> CheckpointError:
        """The error for ``count`` bytes more than the file has."""
        return CheckpointError(
            f"{self.path}: truncated: the header needs {count} bytes at byte {self.position}, "
            f"and the file has {self.size}.",
            hint="Download the file again.",
        )


class _Reader(ForwardReader):
    """Reads names and metadata values."""

    def text(self, longest: int | None = None) -> str:
        (length,) = self.scalars("<Q")
        if longest is not None and length > longest:
            raise CheckpointError(
                f"{self.path}: a name of {length} bytes; at most {longest} are read."
            )
        return self.octets(length).decode("utf-8", errors="replace")

    def name(self) -> str:
        return self.text(MAX_NAME_BYTES)

    def value(self) -> GgufValue:
        (number,) = self.scalars("<I")
        kind = self._type(number)
        if kind == _STRING:
            return GgufValue(kind, self.text())
        if kind != _ARRAY:
            return GgufValue(kind, self._numbers(kind, 1)[0])
        number, count = self.scalars("<IQ")
        element = self._type(number)
        return GgufValue(kind, self._array(element, count), element)

    def _array(self, element: GGUFValueType, count: int) -> StoredArray:
        if element != _STRING:
            self._require_numbers(element)
            octets = self.octets(count * np.dtype(NUMPY_TYPES[element]).itemsize)
            return StoredArray(octets, element, None)
        # A string takes 8 bytes at least, which bounds the loop by the file's size.
        if count > (self.size - self.position) // 8:
            self.advance(count * 8)
        if count > MAX_STRINGS:
            raise CheckpointError(
                f"{self.path}: an array of {count} strings; at most {MAX_STRINGS} are read."
            )
        begin = position = self.position
        ends = array("Q")
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if position + 8 > self.size:
                break
            if position + 8 > len(self.data):
                self.load(position + 8)
            position += 8 + unpack(self.data, position)[0]
            if position > self.size:
                break
            ends.append(position - begin)
        # Raises where the array ends early.
        self.advance(position - begin if len(ends) == count else self.size - begin + 1)
        return StoredArray(bytes(self.data[begin:position]), element, ends)

    def _type(self, number: int) -> GGUFValueType:
        try:
            return GGUFValueType(number)
        except ValueError:
            raise CheckpointError(
                f"{self.path}: metadata of type {number}, which is unknown."
            ) from None

    def _require_numbers(self, kind: GGUFValueType) -> None:
        if kind not in NUMPY_TYPES:
            raise CheckpointError(f"{self.path}: arrays of type {int(kind)} are not read.")

    def _numbers(self, kind: GGUFValueType, count: int) -> list[Any]:
        self._require_numbers(kind)
        dtype = np.dtype(NUMPY_TYPES[kind])
        numbers = np.frombuffer(self.octets(count * dtype.itemsize), dtype)
        return [bool(n) for n in numbers] if kind == _BOOL else list(numbers.tolist())


def _alignment(path: Path, metadata: Metadata) -> int:
    entry = metadata.get("general.alignment")
    alignment = 32 if entry is None else entry.value
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT:
        raise CheckpointError(f"{path}: general.alignment {alignment!r} is not usable.")
    return alignment


def _tensors(reader: _Reader, count: int, alignment: int) -> dict[str, GgufEntry]:
    path, problems = reader.path, list[GemquantError]()
    tensors: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = reader.name()
        (rank,) = reader.scalars("<I")
        if not 1 <= rank <= MAX_RANK:
            raise CheckpointError(f"{path}: {name}: rank {rank}: must be from 1 to {MAX_RANK}.")
        shape = tuple(reversed(reader.scalars(f"<{rank}Q")))
        kind, offset = reader.scalars("<IQ")
        if name in tensors:
            problems.append(CheckpointError(f"{path}: {name} appears twice."))
            continue
        try:
            tensors[name] = (*_typed(kind, shape), offset)
        except CheckpointError as error:
            problems.append(CheckpointError(f"{path}: {name}: {error.message}"))
    refuse(problems)
    return _placed(reader, tensors, alignment)


def _typed(kind: int, shape: tuple[int, ...]) -> tuple[GGMLQuantizationType, tuple[int, ...], int]:
    """Return type, shape and size in bytes of a tensor, if its rows hold whole blocks."""
    try:
        tensor_type = GGMLQuantizationType(kind)
    except ValueError:
        raise CheckpointError(f"tensor type {kind} is not known.") from None
    values, block_bytes = GGML_QUANT_SIZES[tensor_type]
    if shape[-1] % values:
        raise CheckpointError(
            f"rows of {shape[-1]} are not a multiple of {tensor_type.name}'s block of {values}."
        )
    return tensor_type, shape, math.prod(shape) // values * block_bytes


def _placed(
    reader: _Reader,
    tensors: Mapping[str, tuple[GGMLQuantizationType, tuple[int, ...], int, int]],
    alignment: int,
) -> dict[str, GgufEntry]:
    """Check that tensors are aligned, inside the file, and do not overlap."""
    path, problems = reader.path, list[GemquantError]()
    start = -(-reader.position // alignment) * alignment
    entries: dict[str, GgufEntry] = {}
    position, previous = start, "the header"
    for name, (kind, shape, size, offset) in sorted(tensors.items(), key=lambda item: item[1][3]):
        begin = start + offset
        entries[name] = GgufEntry(kind, shape, begin, begin + size)
        if offset % alignment:
            problems.append(CheckpointError(f"{path}: {name} is not aligned to {alignment}."))
        if begin < position:
            problems.append(CheckpointError(f"{path}: {name} overlaps {previous}."))
        elif begin - position >= alignment:
            problems.append(CheckpointError(f"{path}: {name} leaves a gap after {previous}."))
        position, previous = begin + size, name
    if position > reader.size:
        problems.append(
            CheckpointError(
                f"{path}: truncated: {reader.size} bytes, and its header describes {position}.",
                hint="Download the file again.",
            )
        )
    refuse(problems)
    return entries


# ---------------------------------------------------------------- parts of a split file

MAX_PARTS = 1000
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class GgufPart:
    """One file."""

    file: SourceFile
    header: GgufHeader


def open_parts(path: Path) -> Sequence[GgufPart]:
    """Open a GGUF, and every other part where it is the first of several.

    Raises CheckpointError for a part that is missing, or none of this GGUF.
    """
    first = _opened(path)
    count = first.header.metadata.get("split.count", 1)
    if count in (0, 1):
        return [first]
    match = _PART.fullmatch(path.name)
    if type(count) is not int or count > MAX_PARTS or match is None or int(match[3]) != count:
        raise CheckpointError(
            f"{path}: split.count is {count!r}, which its name does not end in, as in "
            "NAME-00001-of-00003.gguf."
        )
    names = [f"{match[1]}-{number:05d}-of-{match[3]}.gguf" for number in range(1, count + 1)]
    if path.name != names[0]:
        raise CheckpointError(
            f"{path}: one of {count} parts; the metadata is in the first.",
            hint=f"Open {path.with_name(names[0])}.",
        )
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {count} parts are missing: {', '.join(missing[:4])}."
        )
    parts = [first, *(_opened(path.with_name(name)) for name in names[1:])]
    refuse(_problems(parts))
    return parts


def _problems(parts: Sequence[GgufPart]) -> list[GemquantError]:
    problems: list[GemquantError] = []
    seen: set[str] = set()
    for number, part in enumerate(parts):
        metadata = part.header.metadata
        place = (metadata.get("split.no"), metadata.get("split.count"))
        if place != (number, len(parts)):
            problems.append(
                CheckpointError(f"{part.file.path}: says it is part {place[0]!r} of {place[1]!r}.")
            )
        twice = seen & part.header.tensors.keys()
        if twice:
            problems.append(
                CheckpointError(f"{part.file.path}: {min(twice)} is in another part already.")
            )
        seen |= part.header.tensors.keys()
    first = parts[0]
    total = first.header.metadata.get("split.tensors.count")
    if total != len(seen):
        problems.append(
            CheckpointError(f"{first.file.path}: {len(seen)} tensors, and {total!r} are announced.")
        )
    return problems


def _opened(path: Path) -> GgufPart:
    file = SourceFile(path)
    if file.size == 0:
        raise CheckpointError(f"{path}: the file is empty.")
    return GgufPart(file, read_gguf_header(file))
