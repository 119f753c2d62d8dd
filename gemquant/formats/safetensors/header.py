"""The header of a safetensors file, read without trusting it.

    8 bytes     length n of the header, little-endian
    n bytes     JSON object: name → {"dtype": "BF16", "shape": [r, c], "data_offsets": [begin, end]}
    the rest    the tensors, row-major, one after the other, without gap or overlap

Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemquant.errors import CheckpointError, GemquantError, refuse
from gemquant.formats.checkpoint.bounded_json import duplicate_keys_refused

MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation; a 27B Gemma's header has under 100 kB."""

MAX_RANK = 8

_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: bytes ``begin`` to ``end`` of its file, counted from its start."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file in the order in which they lie in it.

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
