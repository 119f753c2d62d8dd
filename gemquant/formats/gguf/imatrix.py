"""Importance matrices as llama.cpp keeps them: a GGUF, and the older binary form, both unsigned.

The GGUF has the keys ``general.type`` = imatrix, ``imatrix.datasets`` (strings),
``imatrix.chunk_count`` and ``imatrix.chunk_size`` (uint32; a chunk is so many tokens), and for each
linear NAME two float32 tensors:

    NAME.in_sum2   (columns,)   Σx² over all tokens, for each input column
    NAME.counts    (1,)         tokens

Source: llama.cpp ``tools/imatrix/imatrix.cpp`` (``save_imatrix``), ``common/imatrix-loader.cpp``.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor

from gemquant.core.artifact.staging import flush
from gemquant.errors import CheckpointError, GemquantError, OutputError, UnsupportedError, refuse
from gemquant.formats.gguf.header import GgufEntry, read_gguf_header
from gemquant.formats.gguf.imatrix_binary import read_binary
from gemquant.formats.gguf.importance import ImportanceEntry, ImportanceMatrix

_DATASETS, _CHUNKS = "imatrix.datasets", "imatrix.chunk_count"
_CHUNK_TOKENS = "imatrix.chunk_size"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAGIC = b"GGUF"


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read an importance matrix of either form. Memory is bounded by the file's size.

    Raises CheckpointError, or Problems with one for every entry that is damaged.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise CheckpointError(f"{path}: the file is empty.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                read = _read_gguf if data[:4] == _MAGIC else read_binary
                matrix = read(path, data)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    refuse(_value_problems(path, matrix))
    return matrix


def _read_gguf(path: Path, data: mmap.mmap) -> ImportanceMatrix:
    header = read_gguf_header(path, data)
    datasets, chunks, chunk_tokens = _described(path, header.metadata)
    entries: dict[str, ImportanceEntry] = {}
    problems: list[GemquantError] = []
    stems = {name.removesuffix(_SUMS) for name in header.tensors if name.endswith(_SUMS)}
    stems |= {name.removesuffix(_COUNTS) for name in header.tensors if name.endswith(_COUNTS)}
    for stem in sorted(stems):
        try:
            entries[stem] = ImportanceEntry(
                _values(data, header.tensors.get(stem + _SUMS)),
                _count(_values(data, header.tensors.get(stem + _COUNTS))),
            )
        except GemquantError as error:
            problems.append(type(error)(f"{path}: {stem}: {error.message}"))
    refuse(problems)
    if not entries:
        raise CheckpointError(f"{path}: holds no entry.")
    return ImportanceMatrix(entries, datasets, chunks, chunk_tokens)


def _described(path: Path, metadata: Mapping[str, Any]) -> tuple[tuple[str, ...], int, int]:
    missing = [key for key in (_DATASETS, _CHUNKS, _CHUNK_TOKENS) if key not in metadata]
    if missing:
        kind = metadata.get("general.type", metadata.get("general.architecture", "unknown"))
        raise CheckpointError(
            f"{path}: a GGUF ({kind!s:.40}), but not an importance matrix: it lacks "
            f"{', '.join(missing)}."
        )
    datasets, chunks = metadata[_DATASETS], metadata[_CHUNKS]
    chunk_tokens = metadata[_CHUNK_TOKENS]
    listed = isinstance(datasets, Sequence) and not isinstance(datasets, str)
    if not listed or not all(isinstance(name, str) for name in datasets):
        raise CheckpointError(f"{path}: {_DATASETS}: must be a list of strings.")
    for key, value in ((_CHUNKS, chunks), (_CHUNK_TOKENS, chunk_tokens)):
        if type(value) is not int or value < 0:
            raise CheckpointError(f"{path}: {key} {value!r:.40}: must be a count.")
    return tuple(filter(None, datasets)), chunks, chunk_tokens


def _values(data: mmap.mmap, entry: GgufEntry | None) -> Tensor:
    if entry is None:
        raise CheckpointError(f"one of {_SUMS} and {_COUNTS} is missing.")
    if entry.type != GGMLQuantizationType.F32:
        raise CheckpointError(f"stored as {entry.type.name}: must be F32.")
    values = np.frombuffer(data, "<f4", (entry.end - entry.begin) // 4, entry.begin)
    return torch.from_numpy(values.astype(np.float32))  # a copy, which outlives the mapping


def _count(counts: Tensor) -> int:
    if len(counts) != 1:
        raise UnsupportedError(f"{len(counts)} counts: a model of experts, which no Gemma here is.")
    count = float(counts[0])
    if not 0 <= count < 2**63:
        raise CheckpointError(f"count {count}: must be a number of tokens.")
    return round(count)


def _value_problems(path: Path, matrix: ImportanceMatrix) -> list[GemquantError]:
    """Sums of squares are finite and not negative; llama.cpp refuses what is not finite."""
    return [
        CheckpointError(f"{path}: {name}: holds a sum of squares that is negative or not finite.")
        for name, entry in matrix.entries.items()
        if not bool((torch.isfinite(entry.sums) & (entry.sums >= 0)).all())
    ]


class _Writer(GGUFWriter):
    """A GGUF of no architecture."""

    def add_architecture(self) -> None:
        """An importance matrix has none."""


def write_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """Write a GGUF that llama.cpp reads, byte for byte as it would; replaces an older file.

    On any error nothing is left behind and an older file is untouched. Raises OutputError.
    """
    scratch = path.with_name(f".{path.name}.{token_hex(4)}.partial")
    try:
        _write(scratch, matrix)
        flush(scratch)
        scratch.replace(path)
        flush(path.parent)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def _write(path: Path, matrix: ImportanceMatrix) -> None:
    writer = _Writer(path, "imatrix")
    try:
        writer.add_type("imatrix")
        # llama.cpp asks for the key; the package writes no empty list.
        writer.add_array(_DATASETS, list(matrix.datasets) or [""])
        writer.add_uint32(_CHUNKS, matrix.chunks)
        writer.add_uint32(_CHUNK_TOKENS, matrix.chunk_tokens)
        for name in sorted(matrix.entries):
            entry = matrix.entries[name]
            writer.add_tensor(name + _SUMS, entry.sums.numpy())
            writer.add_tensor(name + _COUNTS, np.array([entry.count], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
