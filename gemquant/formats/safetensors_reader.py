"""Safetensors files: headers, checked before use, and tensors.

    8 bytes     length n of the header, little-endian
    n bytes     JSON object: name → {"dtype": "BF16", "shape": [r, c], "data_offsets": [begin, end]}
    the rest    the tensors, row-major, one after the other, without gap or overlap

Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gemquant.core.untrusted import duplicate_keys_refused
from gemquant.errors import CheckpointError, GemquantError, ProblemCollector, refuse
from gemquant.formats.source_file import SourceFile

MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation; a 27B Gemma's header has under 100 kB."""

MAX_RANK = 8

_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor's place: bytes ``begin`` to ``end`` of its file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file in the order of their data.

    Raises CheckpointError, or Problems with one for each tensor that is described wrongly.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > size - 8:
            raise CheckpointError(
                f"{path}: truncated: {size} bytes, and the header alone should take "
                f"{8 + length if len(prefix) == 8 else 8}.",
                hint="Download the file again.",
            )
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path}: the header claims {length} bytes; at most {MAX_HEADER_BYTES} are read."
            )
        text = file.read(length)
    entries = _parse(path, text)
    refuse(_layout_problems(path, entries, 8 + length, size))
    return dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))


def _parse(path: Path, text: bytes) -> dict[str, TensorEntry]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=duplicate_keys_refused)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(
            f"{path}: the header is not JSON; this is not a safetensors file."
        ) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object.")
    header.pop("__metadata__", None)
    entries: dict[str, TensorEntry] = {}
    problems: list[GemquantError] = []
    for name, description in header.items():
        try:
            entries[name] = _entry(description, data_start=8 + len(text))
        except CheckpointError as error:
            problems.append(CheckpointError(f"{path}: {name}: {error.message}"))
    refuse(problems)
    return entries


def _entry(description: Any, *, data_start: int) -> TensorEntry:
    if not isinstance(description, dict):
        raise CheckpointError("its description is not an object.")
    dtype = description.get("dtype")
    shape, offsets = _sizes(description.get("shape")), _sizes(description.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise CheckpointError(f"dtype {dtype!r} is not known.")
    if shape is None or len(shape) > MAX_RANK:
        raise CheckpointError(
            f"shape {description.get('shape')!r} is not a list of at most {MAX_RANK} sizes."
        )
    if offsets is None or len(offsets) != 2:
        raise CheckpointError(
            f"data_offsets {description.get('data_offsets')!r} are not two positions."
        )
    bits = math.prod(shape) * _DTYPE_BITS[dtype]
    begin, end = offsets
    if bits % 8 or end - begin != bits // 8:
        raise CheckpointError(
            f"shape {shape} of {dtype} needs {bits / 8:g} bytes, "
            f"and data_offsets {offsets} give {end - begin}."
        )
    return TensorEntry(dtype, tuple(shape), data_start + begin, data_start + end)


def _sizes(values: Any) -> list[int] | None:
    """The list itself if it holds only sizes that fit 63 bits, otherwise None."""
    if isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values):
        return values
    return None


def _layout_problems(
    path: Path, entries: Mapping[str, TensorEntry], data_start: int, size: int
) -> list[GemquantError]:
    problems: list[GemquantError] = []
    position, previous = data_start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            verb = "overlaps" if entry.begin < position else "leaves a gap after"
            problems.append(CheckpointError(f"{path}: {name} {verb} {previous}."))
        position, previous = max(position, entry.end), name
    if position > size:
        problems.append(
            CheckpointError(
                f"{path}: truncated: {size} bytes, and its header describes {position}.",
                hint="Download the file again.",
            )
        )
    elif position < size:
        problems.append(
            CheckpointError(f"{path}: {size - position} bytes after the last tensor, {previous}.")
        )
    return problems


class SafetensorsFiles:
    """All tensors of one or more safetensors files under the names in their headers.

    Only headers are read on construction. naming: other names for the tensors, None for those
    to leave out. others: further files, each with a naming of its own.

    Raises CheckpointError for a damaged header and for a name that two files hold.
    """

    def __init__(
        self,
        files: Sequence[Path],
        naming: Callable[[str], str | None] | None = None,
        others: Mapping[Path, Callable[[str], str | None]] = MappingProxyType({}),
    ) -> None:
        self._files = (*files, *others)
        self._entries: dict[str, tuple[SourceFile, TensorEntry]] = {}
        problems = ProblemCollector()
        headers = {file: problems.attempt(partial(read_header, file)) for file in self._files}
        for file, header in headers.items():
            source, rename = SourceFile(file), others.get(file, naming)
            for stored, entry in header.value.items() if header.succeeded else ():
                name = stored if rename is None else rename(stored)
                if name is None:
                    continue
                if name in self._entries:
                    first = self._entries[name][0].path.name
                    problems.append(CheckpointError(f"{name} is in both {first} and {file.name}."))
                else:
                    self._entries[name] = (source, entry)
        problems.refuse()

    @property
    def files(self) -> Sequence[Path]:
        """The files, in the order given."""
        return self._files

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, by name."""
        return {name: entry.shape for name, (_, entry) in self._entries.items()}

    def file(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._entries[name][0].path

    def format_dtype(self, name: str) -> str:
        """The type as the file spells it: ``BF16``."""
        return self._entries[name][1].dtype

    def stored_dtype(self, name: str) -> torch.dtype:
        """The type as torch spells it. Raises CheckpointError where torch has none."""
        spelled = self.format_dtype(name)
        if spelled not in TORCH_DTYPES:
            raise CheckpointError(f"{name} is stored as {spelled}, which cannot be read.")
        return TORCH_DTYPES[spelled]

    def read(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows ``start`` to ``stop`` (elements of a vector) in ``dtype``."""
        file, entry = self._entries[name]
        stored = self.stored_dtype(name)
        rows = max(0, min(stop, entry.shape[0]) - start)
        shape = (rows, *entry.shape[1:])
        width = math.prod(entry.shape[1:]) * stored.itemsize
        return file.converted(entry.begin + start * width, shape, stored, dtype)

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows ``start`` to ``stop`` of a stack of matrices, counted through all of them."""
        file, entry = self._entries[name]
        stored, width = self.stored_dtype(name), entry.shape[-1]
        begin = entry.begin + start * width * stored.itemsize
        rows = max(0, min(stop, math.prod(entry.shape[:-1])) - start)
        return file.converted(begin, (rows, width), stored, dtype)

    def tensor(self, name: str) -> Tensor:
        """The whole tensor in its stored type, also where it is a scalar."""
        file, entry = self._entries[name]
        return file.tensor(entry.begin, entry.shape, self.stored_dtype(name))
