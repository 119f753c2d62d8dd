"""Read a GGUF of a Gemma: as a checkpoint, decoded row by row, or back as a finished artifact."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from torch import Tensor

from gemquant.core.artifact import MANIFEST_FILE, read_manifest, structure_problems
from gemquant.core.protocols import Layout, PlainSpec, QuantizedSpec
from gemquant.core.weights import BlockScheme
from gemquant.errors import (
    ArtifactError,
    CheckpointError,
    GemquantError,
    Problems,
    UnsupportedError,
    listed,
    refuse,
)
from gemquant.formats.gguf.config import gguf_architecture, gguf_config
from gemquant.formats.gguf.header import GgufEntry, open_parts
from gemquant.formats.gguf.names import ROPE_FACTORS, from_gguf, is_norm
from gemquant.formats.gguf.values import StoredArray
from gemquant.formats.source_file import SourceFile
from gemquant.models.architecture import (
    places_in_stacks,
    stacked_tensors,
    stored_shapes,
    tensor_shapes,
)
from gemquant.models.experts import separate_stacks
from gemquant.models.mmproj import is_mmproj
from gemquant.models.structure import EMBEDDING, HEAD, Stack
from gemquant.numerics.ggml import dequantize_rows
from gemquant.numerics.ggml_types import TYPES

_log = logging.getLogger(__name__)

_PLAIN: Mapping[GGMLQuantizationType, torch.dtype] = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_TOWERS = ("v.", "a.", "mm.")
"""How tensors of images and sound begin, which ollama stores in the text model's file."""
_CHUNK_VALUES = 1 << 20


class GgufTensors:
    """The tensors of a GGUF under Gemma's own names, norms as w, not as their gain.

    Packed types are declared float32: the decoded values (scale · code, in float32) are in general
    not those of any 16-bit type.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and read its header; raise all problems at once."""
        self._path = path
        parts = open_parts(path)
        self._files = tuple(part.file.path for part in parts)
        self.typed_metadata = parts[0].header.typed_metadata
        self.metadata: Mapping[str, Any] = parts[0].header.metadata
        architecture = gguf_architecture(self.metadata)
        self._norm_offset = architecture.norm_offset
        self._entries: dict[str, GgufEntry] = {}
        self._sources: dict[str, SourceFile] = {}
        unknown: list[str] = []
        towers: list[str] = []
        for part in parts:
            for stored, entry in part.header.tensors.items():
                known = from_gguf(stored, architecture.model_type)
                name = known or stored
                if known is None and stored.startswith(_TOWERS):
                    towers.append(stored)
                    continue
                self._entries[name], self._sources[name] = entry, part.file
                if known is None and stored != ROPE_FACTORS:
                    unknown.append(stored)
        if towers:
            _log.warning(
                "%s: %d tensors for images or sound are left out; the text model is taken: %s.",
                path, len(towers), listed(towers, 2),
            )  # fmt: skip
        if EMBEDDING not in self._entries:
            raise CheckpointError(f"{path}: token_embd.weight is missing.")
        self.config = gguf_config(
            self.metadata,
            vocab_size=self._entries[EMBEDDING].shape[0],
            tied=HEAD not in self._entries,
            tensors=[name for part in parts for name in part.header.tensors],
            rope_factors=self._rope_factors(),
        )
        for name in [name for name in self._entries if architecture.unused(self.config, name)]:
            del self._entries[name]
        self._stacks: dict[str, Stack] = {}
        for name, stack in stacked_tensors(self.config).items():
            apart = separate_stacks(name, stack)
            older = name not in self._entries and apart.keys() & self._entries.keys()
            self._stacks |= apart if older else {name: stack}
        self._places = places_in_stacks(self._stacks, self.shapes)
        refuse(self._problems(unknown))

    @property
    def files(self) -> Sequence[Path]:
        """The GGUF, or its parts."""
        return self._files

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return tensor_shapes(self.config)

    def _rope_factors(self) -> Sequence[float]:
        entry = self._entries.pop(ROPE_FACTORS, None)
        if entry is None or entry.type != GGMLQuantizationType.F32 or len(entry.shape) != 1:
            return ()
        values = self._sources[ROPE_FACTORS].tensor(entry.begin, entry.shape, torch.float32)
        factors: list[float] = values.tolist()
        return factors

    def _entry(self, name: str) -> GgufEntry:
        """The tensor that holds one of Gemma's."""
        stored, _ = self._places.get(name, (name, 0))
        return self._entries[stored]

    def stored_dtype(self, name: str) -> torch.dtype:
        """The stored type of a plain float; float32 for packed types and for norms."""
        if is_norm(name):
            return torch.float32
        return _PLAIN.get(self._entry(name).type, torch.float32)

    @property
    def packed(self) -> Mapping[str, str]:
        """ggml's name of the format of every matrix that is packed."""
        kinds = {name: self.kind(name) for name in self.shapes}
        return {name: kind for name, kind in kinds.items() if kind not in {"F32", "F16", "BF16"}}

    def kind(self, name: str) -> str:
        """ggml's name of a tensor's format."""
        return self._entry(name).type.name

    def blocks(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a matrix as they are stored, (rows, bytes) uint8."""
        stored, first = self._places.get(name, (name, 0))
        entry = self._entries[stored]
        row_bytes = (entry.end - entry.begin) // prod(entry.shape[:-1])
        begin = entry.begin + (first + start) * row_bytes
        return self._sources[stored].tensor(begin, (stop - start, row_bytes), torch.uint8)

    def read(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows ``start`` to ``stop`` (elements of a vector), decoded into ``dtype``."""
        entry = self._entry(name)
        if len(entry.shape) == 1:
            # A vector is one row of blocks.
            whole = self._decode(name, 0, 1).to(torch.float32)[0]
            return (whole - self._norm_offset if is_norm(name) else whole)[start:stop].to(dtype)
        start, stop = max(start, 0), min(stop, self.shapes[name][0])
        columns = entry.shape[-1]
        result = torch.empty((max(stop - start, 0), columns), dtype=dtype)
        step = max(1, _CHUNK_VALUES // columns)
        for begin in range(start, stop, step):
            end = min(begin + step, stop)
            result[begin - start : end - start] = self._decode(name, begin, end)
        return result

    def _decode(self, name: str, start: int, stop: int) -> Tensor:
        """Decode rows; a vector is one row. Plain types as they are, others in float32."""
        entry, blocks = self._entry(name), self.blocks(name, start, stop)
        shape = (stop - start, entry.shape[-1])
        plain = _PLAIN.get(entry.type)
        if plain is not None:
            return blocks.view(plain)
        # A damaged block decodes to NaN or infinity, which the checkpoint reports by name.
        if (kind := TYPES.get(entry.type.name)) is not None:
            return dequantize_rows(blocks, kind).reshape(shape)
        with np.errstate(all="ignore"):
            decoded = quants.dequantize(blocks.numpy(), entry.type)
        return torch.from_numpy(np.ascontiguousarray(decoded, dtype=np.float32)).reshape(shape)

    def _problems(self, unknown: Sequence[str]) -> list[GemquantError]:
        problems: list[GemquantError] = []
        expected = stored_shapes(self.config, self._stacks)
        missing = [name for name in expected if name not in self._entries]
        for names, what in ((missing, "missing"), (unknown, "not part of a Gemma")):
            if names:
                problems.append(
                    CheckpointError(
                        f"{self._path}: {len(names)} tensors are {what}: {listed(names, 8)}."
                    )
                )
        for name, shape in expected.items():
            entry = self._entries.get(name)
            if entry is None:
                continue
            if entry.shape != shape:
                problems.append(
                    CheckpointError(
                        f"{self._path}: {name}: shape {entry.shape}, and the metadata implies "
                        f"{shape}."
                    )
                )
            if entry.type not in _PLAIN and not _decodable(entry.type):
                problems.append(
                    UnsupportedError(
                        f"{self._path}: {name}: type {entry.type.name} cannot be decoded."
                    )
                )
        return problems


def _decodable(kind: GGMLQuantizationType) -> bool:
    """Whether the gguf package decodes a type, tried on one block of zeros."""
    _, block_bytes = GGML_QUANT_SIZES[kind]
    try:
        with np.errstate(all="ignore"):
            quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return kind.name not in {"I8", "I16", "I32", "I64", "F64"}


# ---------------------------------------------------------------- artifacts


class GgufWeights(GgufTensors):
    """The weights of a finished artifact, as llama.cpp decodes them, norms as w.

    layout: what each of Gemma's tensors is stored as.
    """

    def __init__(self, path: Path) -> None:
        """Read the headers; raise all problems at once."""
        super().__init__(path)
        tokens, rows = self.metadata.get("tokenizer.ggml.tokens"), self.config["vocab_size"]
        if isinstance(tokens, StoredArray) and len(tokens) != rows:
            raise ArtifactError(f"{path}: {len(tokens)} tokens, {rows} rows to embed them.")
        self.layout: Layout = {
            name: _spec(name, self.kind(name), shape)
            for name, shape in tensor_shapes(self.config).items()
        }

    @classmethod
    def open(cls, folder: Path) -> GgufWeights:
        """Read the headers; report every difference from what the model needs.

        Where the folder has a manifest, each tensor must be stored as the manifest records it.
        """
        try:
            weights = cls(first_file(folder))
        except Problems as several:
            raise Problems([ArtifactError(each.message) for each in several.problems]) from None
        except GemquantError as error:
            raise ArtifactError(error.message) from None
        except OSError as error:
            raise ArtifactError(f"{folder} cannot be read: {error.strerror}.") from error
        if (folder / MANIFEST_FILE).exists():
            refuse(structure_problems(read_manifest(folder), weights.layout))
        return weights

    def names(self) -> Sequence[str]:
        """Names in the order of the forward pass."""
        return list(self.layout)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from headers alone."""
        return self.layout[name].shape

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor, decoded."""
        return self.rows(name, 0, self.shape(name)[0], dtype)

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return rows of a matrix without decoding the others."""
        return self.read(name, start, stop, dtype or self.stored_dtype(name))


def first_file(folder: Path) -> Path:
    """Return the only GGUF of a folder, or the first of its parts."""
    files = sorted(path for path in folder.glob("*.gguf") if not is_mmproj(path.name))
    if not files:
        raise ArtifactError(f"{folder} holds no .gguf file.")
    return files[0]


def _spec(name: str, type_name: str, shape: tuple[int, ...]) -> PlainSpec | QuantizedSpec:
    kind = TYPES.get(type_name)
    if kind is None:
        raise ArtifactError(f"{name} is {type_name}, which gemquant does not write.")
    if len(shape) == 2:
        return QuantizedSpec((shape[0], shape[1]), BlockScheme(kind))
    if kind.name != "F32":
        raise ArtifactError(f"{name} is {kind.name}; llama.cpp reads vectors as F32.")
    return PlainSpec(shape, torch.float32)
