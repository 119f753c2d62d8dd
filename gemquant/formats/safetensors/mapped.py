"""Tensors of safetensors files, mapped into memory and converted one at a time."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from gemquant.errors import CheckpointError, ProblemCollector
from gemquant.formats.safetensors.header import TensorEntry, read_header

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


class MappedSafetensors:
    """All tensors of one or more safetensors files under the names in their headers.

    Only headers are read on construction. Tensors that are returned in their stored type alias the
    mapped file: they cost no anonymous memory and must not be written to (a write would stay in
    this process; it never reaches the file).

    Raises CheckpointError for a damaged header and for a name that two files hold.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        self._entries: dict[str, tuple[Path, TensorEntry]] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        problems = ProblemCollector()
        headers = {file: problems.attempt(partial(read_header, file)) for file in self._files}
        for file, header in headers.items():
            for name, entry in header.value.items() if header.succeeded else ():
                if name in self._entries:
                    first = self._entries[name][0].name
                    problems.append(CheckpointError(f"{name} is in both {first} and {file.name}."))
                else:
                    self._entries[name] = (file, entry)
        problems.refuse()

    @property
    def files(self) -> Sequence[Path]:
        """The files, in the order given."""
        return self._files

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, by name."""
        return {name: entry.shape for name, (_, entry) in self._entries.items()}

    def format_dtype(self, name: str) -> str:
        """The type as the file spells it: ``BF16``."""
        return self._entries[name][1].dtype

    def stored_dtype(self, name: str) -> torch.dtype:
        """The type as torch spells it. Raises CheckpointError where torch has none."""
        spelled = self.format_dtype(name)
        if spelled not in TORCH_DTYPES:
            raise CheckpointError(f"{name} is stored as {spelled}, which cannot be read here.")
        return TORCH_DTYPES[spelled]

    def read(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows ``start`` to ``stop`` (elements of a vector) in ``dtype``."""
        _, entry = self._entries[name]
        stored = self.stored_dtype(name)
        rows = max(0, min(stop, entry.shape[0]) - start)
        shape = (rows, *entry.shape[1:])
        width = prod(entry.shape[1:]) * stored.itemsize
        return self._view(name, entry.begin + start * width, shape, stored).to(dtype)

    def tensor(self, name: str) -> Tensor:
        """The whole tensor in its stored type, also where it is a scalar."""
        _, entry = self._entries[name]
        return self._view(name, entry.begin, entry.shape, self.stored_dtype(name))

    def _view(self, name: str, offset: int, shape: tuple[int, ...], stored: torch.dtype) -> Tensor:
        file, _ = self._entries[name]
        count = prod(shape)
        if count == 0:
            return torch.empty(shape, dtype=stored)
        if file not in self._maps:
            with file.open("rb") as opened:
                # A private mapping is writable in torch's eyes, so no warning, and stays file
                # memory as long as nobody writes.
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
        mapping = self._maps[file]
        if offset % stored.itemsize:
            raw = bytearray(mapping[offset : offset + count * stored.itemsize])
            return torch.frombuffer(raw, dtype=stored).reshape(shape)
        return torch.frombuffer(mapping, dtype=stored, count=count, offset=offset).reshape(shape)
