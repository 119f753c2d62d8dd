"""Safetensors files whose tensors arrive in any order.

The format is an 8-byte length, a JSON header and the tensors' bytes. Names, types and shapes are
known before the first tensor, so the header is written first, the file is allocated at its final
size, and each tensor goes straight to its offset. The bytes equal those of the safetensors
library: tensors sorted by type, then by name, header padded with spaces to 8 bytes.

Source: https://github.com/huggingface/safetensors, README and ``safetensors/src/tensor.rs``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from gemquant.core.protocols import PlainSpec, RowChunks
from gemquant.errors import listed
from gemquant.formats.preallocated import FileLayout, PreallocatedFiles, grouped, reported
from gemquant.numerics.packing import reinterpreted

MAX_SHARD_BYTES = 5_000_000_000
INDEX_FILE = "model.safetensors.index.json"

# In the library's order, the widest first.
TYPE_NAMES: Mapping[torch.dtype, str] = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPE_ORDER: Mapping[torch.dtype, int] = {dtype: n for n, dtype in enumerate(TYPE_NAMES)}


def stored_bytes(spec: PlainSpec) -> int:
    """Return the bytes of a tensor's data."""
    return math.prod(spec.shape) * spec.dtype.itemsize


def shards(
    tensors: Mapping[str, PlainSpec], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, dict[str, PlainSpec]]:
    """Divide tensors, in their order, into files of at most ``max_shard_bytes`` of data.

    A tensor larger than that has a file to itself. Returns file name → its tensors.
    """
    names = grouped(list(tensors), lambda name: stored_bytes(tensors[name]), max_shard_bytes)
    groups = [{name: tensors[name] for name in group} for group in names]
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {
        f"model-{n:05d}-of-{len(groups):05d}.safetensors": group
        for n, group in enumerate(groups, 1)
    }


def file_sizes(
    tensors: Mapping[str, PlainSpec], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, int]:
    """Return the exact size in bytes of every file, index included."""
    files = shards(tensors, max_shard_bytes=max_shard_bytes)
    sizes = {name: _file_layout(group).size for name, group in files.items()}
    if len(files) > 1:
        sizes[INDEX_FILE] = len(_index(files))
    return sizes


def _file_layout(tensors: Mapping[str, PlainSpec]) -> FileLayout:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    end = 0
    for name in sorted(tensors, key=lambda name: (_TYPE_ORDER[tensors[name].dtype], name)):
        spec = tensors[name]
        begins[name], end = end, end + stored_bytes(spec)
        header[name] = {
            "dtype": TYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begins[name], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    offsets = {name: len(head) + begin for name, begin in begins.items()}
    return FileLayout(head, offsets, len(head) + end)


class SafetensorsWriter:
    """Writes one model's safetensors files into an existing folder; a context manager.

    Wrong names, shapes and types, a tensor given twice, or one still missing at ``finish`` are
    ValueErrors of the caller. A full or unwritable disk is an
    OutputError. The files are complete only after ``finish``.

    finished: names of tensors that an earlier run has stored in these files, which are then
    opened again; None for new files.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, PlainSpec],
        *,
        max_shard_bytes: int = MAX_SHARD_BYTES,
        finished: Collection[str] | None = None,
    ) -> None:
        self._specs = dict(tensors)
        self._rows_written = dict.fromkeys(self._specs, 0)
        self._complete: set[str] = set(finished or ())
        self._folder = folder
        self._shards = shards(self._specs, max_shard_bytes=max_shard_bytes)
        layouts = {folder / name: _file_layout(group) for name, group in self._shards.items()}
        self._files = PreallocatedFiles(layouts, resumed=finished is not None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """Store a whole tensor, without a copy where it is contiguous and on the CPU."""
        spec = self._expect(name, tensor.dtype)
        if tuple(tensor.shape) != spec.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, announced as {spec.shape}.")
        self._store(name, tensor, 0)
        self._complete.add(name)

    def write_rows(self, name: str, first: int, rows: Tensor) -> None:
        """Store some rows of a stack of matrices, counted through all of them, each once."""
        spec = self._expect(name, rows.dtype)
        self._store(name, rows, first * spec.shape[-1] * spec.dtype.itemsize)
        self._rows_written[name] += rows.shape[0]
        if self._rows_written[name] == math.prod(spec.shape[:-1]):
            self._complete.add(name)

    def write_chunks(self, name: str, chunks: RowChunks) -> None:
        """Store a matrix run of rows by run of rows."""
        spec = self._expect(name, chunks.dtype)
        if chunks.shape != spec.shape:
            raise ValueError(f"{name} has shape {chunks.shape}, announced as {spec.shape}.")
        rows, columns = chunks.shape
        row_bytes = columns * spec.dtype.itemsize
        written = 0
        for chunk in chunks.chunks():
            self._expect(name, chunk.dtype)
            if chunk.shape[1:] != (columns,) or written + chunk.shape[0] > rows:
                raise ValueError(
                    f"{name}: rows of shape {tuple(chunk.shape)} at row {written} do not fit "
                    f"{spec.shape}."
                )
            self._store(name, chunk, written * row_bytes)
            written += chunk.shape[0]
        if written != rows:
            raise ValueError(f"{name} ends after {written} of {rows} rows.")
        self._complete.add(name)

    def finish(self) -> None:
        """Check that every tensor has come, write the index, flush and close."""
        missing = [name for name in self._specs if name not in self._complete]
        if missing:
            raise ValueError(f"{len(missing)} tensors were never written: {listed(missing, 8)}.")
        if len(self._shards) > 1:
            with reported(self._folder / INDEX_FILE):
                (self._folder / INDEX_FILE).write_bytes(_index(self._shards))
        self.flush()
        self.close()

    def flush(self) -> None:
        """Make what has been stored durable."""
        self._files.flush()

    def close(self) -> None:
        """Close the files, finished or not."""
        self._files.close()

    def _expect(self, name: str, dtype: torch.dtype) -> PlainSpec:
        if name not in self._specs:
            raise ValueError(f"{name} was not announced.")
        if name in self._complete:
            raise ValueError(f"{name} was written already.")
        spec = self._specs[name]
        if dtype != spec.dtype:
            raise ValueError(f"{name} has type {dtype}, announced as {spec.dtype}.")
        return spec

    def _store(self, name: str, tensor: Tensor, offset: int) -> None:
        self._files.store(name, offset, reinterpreted(tensor.detach().cpu(), torch.uint8))


def _index(files: Mapping[str, Mapping[str, PlainSpec]]) -> bytes:
    """Build the index of tensors by shard, as transformers writes it."""
    total = sum(stored_bytes(spec) for group in files.values() for spec in group.values())
    weight_map = {name: file for file, group in files.items() for name in group}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
