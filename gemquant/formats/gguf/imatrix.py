"""llama.cpp's importance matrices: how much each input column of each linear counts.

A column counts by the mean square of its activations: Σx² over calibration tokens, divided by their
number. The file is a GGUF with the keys ``general.type`` = imatrix, ``imatrix.datasets`` (strings),
``imatrix.chunk_count`` and ``imatrix.chunk_size`` (uint32; tokens of a chunk), and for each linear
NAME two float32 tensors:

    NAME.in_sum2   (columns,)   Σx² over all tokens, for each input column
    NAME.counts    (1,)         tokens

The experts of a layer are one tensor, (experts, columns) and (experts, 1): of each expert over the
tokens that were routed to it.

The older binary form, usually NAME.dat, has no signature, and its calls are chunks of unknown size:

    int32  entries
    entry  int32 length, name; int32 calls; int32 columns; float32 × columns: Σx² / tokens · calls
    int32  chunks; int32 length, name of the text        (absent in the oldest files)

Source: llama.cpp ``tools/imatrix/imatrix.cpp`` (``save_imatrix``, ``save_imatrix_legacy``),
``common/imatrix-loader.cpp``, ``tools/quantize/quantize.cpp`` (``load_imatrix``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor

from gemquant.core.artifact.staged_files import staged_files
from gemquant.core.protocols import Statistics
from gemquant.errors import (
    CheckpointError,
    GemquantError,
    UsageError,
    listed,
    refuse,
)
from gemquant.formats.gguf.header import ForwardReader, GgufEntry, read_gguf_header
from gemquant.formats.source_file import SourceFile

_EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class ImportanceEntry:
    """One tensor. sums: Σx² float32 by column, expert after expert; counts: an expert's tokens.

    Of a tensor without experts there is one count: of tokens, or of calls in the older format.
    """

    sums: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, *experts: Statistics) -> ImportanceEntry:
        """The entry of a linear, or of a layer's experts, from the statistics of their inputs."""
        sums = torch.cat([each.sum_squares.float().cpu() for each in experts])
        return cls(sums, tuple(each.tokens for each in experts))

    @property
    def weights(self) -> Tensor:
        """Like sums: Σx² / count, or 1 where nothing was counted."""
        counts = torch.tensor(self.counts, dtype=torch.float32)
        counts = counts.repeat_interleave(len(self.sums) // len(self.counts))
        return torch.where(counts > 0, self.sums / counts.clamp(min=1), 1.0)


@dataclass(frozen=True)
class ImportanceMatrix:
    """Entries by GGUF name, and what they were computed from.

    chunks of chunk_tokens each; chunk_tokens is 0 where the file does not say.
    """

    entries: Mapping[str, ImportanceEntry]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_tokens: int = 0


@dataclass(frozen=True)
class Importance:
    """An importance matrix as it applies to one model.

    weights: float32 by GGUF name and column, expert after expert. missing: linears without an
    entry, whose columns count alike. foreign: entries for which the model has no tensor.
    """

    weights: Mapping[str, Tensor]
    missing: tuple[str, ...]
    foreign: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings about linears without an entry."""
        notes = []
        if self.missing:
            notes.append(
                f"the importance matrix has no entry for {len(self.missing)} of "
                f"{len(self.missing) + len(self.weights)} linears, whose columns count alike: "
                f"{listed(self.missing, 4)}."
            )
        if self.foreign:
            notes.append(
                f"{len(self.foreign)} entries of the importance matrix name no tensor of this "
                f"model: {listed(self.foreign, 4)}."
            )
        return tuple(notes)


def importance_for(matrix: ImportanceMatrix, shapes: Mapping[str, tuple[int, ...]]) -> Importance:
    """Match an importance matrix to a model's tensors. shapes: rows first, by GGUF name.

    An entry of the embedding is optional, and ignored where it does not fit, as llama.cpp does.
    Raises UsageError if another entry has other columns than its tensor, or no entry fits at all.
    """
    columns = {n: prod(shape) // shape[-2] for n, shape in shapes.items() if len(shape) > 1}
    fitting = {
        name: entry
        for name, entry in matrix.entries.items()
        if len(entry.sums) == columns.get(name)
    }
    wrong = [n for n in matrix.entries if n in columns and n not in fitting and n != _EMBEDDING]
    if wrong:
        name = wrong[0]
        raise UsageError(
            f"the importance matrix is of another model: {name} has "
            f"{len(matrix.entries[name].sums)} columns in it and {columns[name]} here "
            f"({len(wrong)} such entries).",
            hint="Make one of this model: gemquant imatrix MODEL -o FILE",
        )
    if not fitting:
        raise UsageError(
            f"the importance matrix is of another model: none of its {len(matrix.entries)} "
            "entries names a tensor of this one.",
            hint="Make one of this model: gemquant imatrix MODEL -o FILE",
        )
    linears = [name for name in columns if name.startswith("blk.")]
    return Importance(
        weights={name: entry.weights for name, entry in fitting.items()},
        missing=tuple(name for name in linears if name not in fitting),
        foreign=tuple(name for name in matrix.entries if name not in columns),
    )


# ---------------------------------------------------------------- the older form

_MAX_ENTRIES = 1 << 16
_MAX_NAME_BYTES = 1 << 12


def read_binary(file: SourceFile) -> ImportanceMatrix:
    """Parse a file of the older form. Raises CheckpointError."""
    path, reader = file.path, _BinaryReader(file)
    count = reader.number("number of entries", 1, _MAX_ENTRIES)
    entries: dict[str, ImportanceEntry] = {}
    for index in range(count):
        name = reader.text(f"entry {index + 1}")
        if name in entries:
            raise CheckpointError(f"{path}: {name} appears twice.")
        calls = reader.number(f"{name}: calls", 0)
        columns = reader.number(f"{name}: columns", 1)
        sums = np.frombuffer(reader.octets(4 * columns), "<f4").astype(np.float32)
        # Without calls the sums are the weights themselves.
        entries[name] = ImportanceEntry(torch.from_numpy(sums), (calls or 1,))
    if reader.position == file.size:
        return ImportanceMatrix(entries)
    chunks = reader.number("chunks", 0)
    datasets = (reader.text("name of the text"),) if reader.position < file.size else ()
    if reader.position < file.size:
        raise CheckpointError(f"{path}: {file.size - reader.position} bytes follow its end.")
    return ImportanceMatrix(entries, tuple(filter(None, datasets)), chunks)


class _BinaryReader(ForwardReader):
    """Reads the older form, which nothing but its plausibility identifies."""

    def truncated(self, count: int) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: truncated, or no importance matrix: {count} bytes are claimed at "
            f"byte {self.position}, and the file has {self.size}."
        )

    def number(self, what: str, smallest: int, largest: int = 2**31 - 1) -> int:
        (value,) = self.scalars("<i")
        if not smallest <= value <= largest:
            raise CheckpointError(
                f"{self.path}: damaged, or no importance matrix: {what} {value}: must be from "
                f"{smallest} to {largest}."
            )
        return int(value)

    def text(self, what: str) -> str:
        length = self.number(f"{what}: length of its name", 0, _MAX_NAME_BYTES)
        try:
            return self.octets(length).decode()
        except UnicodeDecodeError:
            raise CheckpointError(
                f"{self.path}: damaged, or no importance matrix: {what}: its name is not UTF-8."
            ) from None


# ---------------------------------------------------------------- files

_DATASETS, _CHUNKS = "imatrix.datasets", "imatrix.chunk_count"
_CHUNK_TOKENS = "imatrix.chunk_size"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAGIC = b"GGUF"


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read an importance matrix of either form. Memory is bounded by the file's size.

    Raises CheckpointError, or Problems with one for every entry that is damaged.
    """
    try:
        file = SourceFile(path)
        if file.size == 0:
            raise CheckpointError(f"{path}: the file is empty.")
        is_gguf = bytes(file.octets(0, min(4, file.size)).tolist()) == _MAGIC
        matrix = _read_gguf(file) if is_gguf else read_binary(file)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    refuse(_value_problems(path, matrix))
    return matrix


def _read_gguf(file: SourceFile) -> ImportanceMatrix:
    path, header = file.path, read_gguf_header(file)
    datasets, chunks, chunk_tokens = _described(path, header.metadata)
    entries: dict[str, ImportanceEntry] = {}
    problems: list[GemquantError] = []
    stems = {name.removesuffix(_SUMS) for name in header.tensors if name.endswith(_SUMS)}
    stems |= {name.removesuffix(_COUNTS) for name in header.tensors if name.endswith(_COUNTS)}
    for stem in sorted(stems):
        try:
            sums = _values(file, header.tensors.get(stem + _SUMS))
            counts = _values(file, header.tensors.get(stem + _COUNTS))
            entries[stem] = ImportanceEntry(sums, _counts(counts, len(sums)))
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
    is_list = isinstance(datasets, Sequence) and not isinstance(datasets, str)
    if not is_list or not all(isinstance(name, str) for name in datasets):
        raise CheckpointError(f"{path}: {_DATASETS}: must be a list of strings.")
    for key, value in ((_CHUNKS, chunks), (_CHUNK_TOKENS, chunk_tokens)):
        if type(value) is not int or value < 0:
            raise CheckpointError(f"{path}: {key} {value!r:.40}: must be a count.")
    return tuple(filter(None, datasets)), chunks, chunk_tokens


def _values(file: SourceFile, entry: GgufEntry | None) -> Tensor:
    if entry is None:
        raise CheckpointError(f"one of {_SUMS} and {_COUNTS} is missing.")
    if entry.type != GGMLQuantizationType.F32:
        raise CheckpointError(f"stored as {entry.type.name}: must be F32.")
    return file.tensor(entry.begin, ((entry.end - entry.begin) // 4,), torch.float32)


def _counts(counts: Tensor, columns: int) -> tuple[int, ...]:
    if not len(counts) or columns % len(counts):
        raise CheckpointError(f"{len(counts)} counts for {columns} columns of all experts.")
    for count in counts.tolist():
        if not 0 <= count < 2**63:
            raise CheckpointError(f"count {count}: must be a number of tokens.")
    return tuple(map(round, counts.tolist()))


def _value_problems(path: Path, matrix: ImportanceMatrix) -> list[GemquantError]:
    """Sums of squares are finite and not negative; llama.cpp refuses what is not finite."""
    return [
        CheckpointError(f"{path}: {name}: holds a sum of squares that is negative or not finite.")
        for name, entry in matrix.entries.items()
        if not bool((torch.isfinite(entry.sums) & (entry.sums >= 0)).all())
    ]


class _Writer(GGUFWriter):
    """A GGUF writer without an architecture."""

    def add_architecture(self) -> None:
        """Leave out the architecture."""


def write_imatrix(path: Path, matrix: ImportanceMatrix) -> None:
    """Write a GGUF that llama.cpp reads, byte for byte as it would; replaces an older file.

    On any error no part of it stays and an older file is untouched. Raises OutputError.
    """
    with staged_files([path]) as scratch:
        _write(scratch / path.name, matrix)


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
            sums, counts = entry.sums.numpy(), np.array(entry.counts, np.float32)
            if len(counts) > 1:
                sums, counts = sums.reshape(len(counts), -1), counts[:, None]
            writer.add_tensor(name + _SUMS, sums)
            writer.add_tensor(name + _COUNTS, counts)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
