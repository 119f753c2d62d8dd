"""llama.cpp's older importance matrix, usually ``NAME.dat``, read without trusting it.

    int32  entries
    entry  int32 length, name; int32 calls; int32 columns; float32 × columns: Σx² / tokens · calls
    int32  chunks; int32 length, name of the text        (absent in the oldest files)

It has no signature, and its calls are chunks of a size that it does not tell.

Source: llama.cpp ``common/imatrix-loader.cpp`` (``common_imatrix_load_legacy``),
``tools/imatrix/imatrix.cpp`` (``save_imatrix_legacy``).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import numpy as np
import torch

from gemquant.errors import CheckpointError
from gemquant.formats.gguf.importance import ImportanceEntry, ImportanceMatrix

_MAX_ENTRIES = 1 << 16
_MAX_NAME_BYTES = 1 << 12


def read_binary(path: Path, data: mmap.mmap) -> ImportanceMatrix:
    """Parse a mapped file of the older form. Raises CheckpointError."""
    reader = _Reader(path, data)
    count = reader.number("number of entries", 1, _MAX_ENTRIES)
    entries: dict[str, ImportanceEntry] = {}
    for index in range(count):
        name = reader.text(f"entry {index + 1}")
        if name in entries:
            raise CheckpointError(f"{path}: {name} is given twice.")
        calls = reader.number(f"{name}: calls", 0)
        columns = reader.number(f"{name}: columns", 1)
        begin = reader.advance(4 * columns)
        sums = np.frombuffer(data, "<f4", columns, begin).astype(np.float32)
        # Without calls the sums are the weights themselves.
        entries[name] = ImportanceEntry(torch.from_numpy(sums), calls or 1)
    if reader.position == len(data):
        return ImportanceMatrix(entries)
    chunks = reader.number("chunks", 0)
    datasets = (reader.text("name of the text"),) if reader.position < len(data) else ()
    if reader.position < len(data):
        raise CheckpointError(
            f"{path}: goes on after its end: {len(data) - reader.position} bytes."
        )
    return ImportanceMatrix(entries, tuple(filter(None, datasets)), chunks)


class _Reader:
    """Reads forward; whatever would lie past the end of the file is an error."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def advance(self, count: int) -> int:
        """Step over ``count`` bytes and return where they begin."""
        begin = self.position
        if count > len(self.data) - begin:
            raise CheckpointError(
                f"{self.path}: truncated, or no importance matrix: {count} bytes are claimed at "
                f"byte {begin}, and the file has {len(self.data)}."
            )
        self.position = begin + count
        return begin

    def number(self, what: str, smallest: int, largest: int = 2**31 - 1) -> int:
        (value,) = struct.unpack_from("<i", self.data, self.advance(4))
        if not smallest <= value <= largest:
            raise CheckpointError(
                f"{self.path}: damaged, or no importance matrix: {what} {value}: must be from "
                f"{smallest} to {largest}."
            )
        return int(value)

    def text(self, what: str) -> str:
        length = self.number(f"{what}: length of its name", 0, _MAX_NAME_BYTES)
        begin = self.advance(length)
        try:
            return bytes(self.data[begin : begin + length]).decode()
        except UnicodeDecodeError:
            raise CheckpointError(
                f"{self.path}: damaged, or no importance matrix: {what}: its name is not UTF-8."
            ) from None
