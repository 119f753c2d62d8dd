"""Lay out the GGUF files of a model, and write its tensors into them.

    4 bytes  "GGUF"        uint32  version 3
    uint64   tensors       uint64  metadata entries
    metadata               as ``values.packed_metadata`` packs it
    tensor descriptions    name (string), rank (uint32), sizes (uint64, innermost first),
                           type (uint32), offset (uint64, from the data's beginning)
    data                   each tensor padded to 32 bytes, the last one too

Parts are divided as llama.cpp's gguf-split divides them: the first has all the metadata.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, llama.cpp ``tools/gguf-split``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFValueType
from torch import Tensor

from gemquant.core.protocols import Layout, PlainSpec, QuantizedSpec
from gemquant.core.weights import BlockWeight, QuantizedRows
from gemquant.formats.gguf.names import ROPE_FACTORS, is_norm, places
from gemquant.formats.gguf.values import GgufValue, Metadata, int32, packed_metadata
from gemquant.formats.preallocated import FileLayout, PreallocatedFiles, grouped
from gemquant.models.architecture import architecture_of
from gemquant.numerics.ggml_types import GgmlType

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


def file_layout(tensors: Sequence[StoredTensor], metadata: Metadata) -> FileLayout:
    """Lay out one file: its tensors, in order."""
    begins = [0, *accumulate(tensor.padded_bytes for tensor in tensors)]
    parts = [
        struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)),
        packed_metadata(metadata),
        *(_described(tensor, begin) for tensor, begin in zip(tensors, begins, strict=False)),
    ]
    head = b"".join(parts)
    head += bytes(-len(head) % ALIGNMENT)
    offsets = {t.name: len(head) + begin for t, begin in zip(tensors, begins, strict=False)}
    return FileLayout(head, offsets, len(head) + begins[-1])


def file_layouts(
    name: str, tensors: Sequence[StoredTensor], metadata: Metadata, *, max_bytes: int | None
) -> dict[str, FileLayout]:
    """Return every file by name: one, or parts of at most ``max_bytes`` of tensors' data.

    A tensor larger than that has a part to itself; the first part also has the metadata.
    """
    groups = grouped(tensors, lambda tensor: tensor.padded_bytes, max_bytes)
    if len(groups) == 1:
        return {f"{name}.gguf": file_layout(tensors, metadata)}
    layouts = {}
    for number, group in enumerate(groups):
        split = {
            "split.no": GgufValue(GGUFValueType.UINT16, number),
            "split.tensors.count": int32(len(tensors)),
            "split.count": GgufValue(GGUFValueType.UINT16, len(groups)),
        }
        keys = {**metadata, **split} if number == 0 else split
        file = f"{name}-{number + 1:05d}-of-{len(groups):05d}.gguf"
        layouts[file] = file_layout(group, keys)
    return layouts


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


# ---------------------------------------------------------------- writing


Towers = Mapping[str, Callable[[Tensor], Mapping[str, Tensor]]]
"""Published name of each tensor of a tower → what turns it into bytes under the file's own name."""


class GgufWriter:
    """Writes tensors in any order; the chunks of one matrix arrive in order."""

    def __init__(
        self,
        files: PreallocatedFiles,
        layout: Layout,
        config: Mapping[str, Any],
        finished: Collection[str] = (),
        towers: Towers | None = None,
    ) -> None:
        """finished: names of the tensors that the files already contain."""
        self._files, self._layout, self._places = files, layout, places(config)
        self._towers = dict(towers or {})
        architecture = architecture_of(config)
        self._norm_offset = architecture.norm_offset
        factors = architecture.gguf.rope_factors(config)
        if factors is not None:
            values = torch.tensor(factors, dtype=torch.float32)
            files.store(ROPE_FACTORS, 0, values.view(torch.uint8))
        self._rows = {name: layout[name].shape[0] for name in finished}

    def write(self, tensors: Mapping[str, Any]) -> None:
        """Store Tensor, BlockWeight or QuantizedRows values under Gemma's full names."""
        for name, value in tensors.items():
            if (encode := self._towers.pop(name, None)) is not None:
                for stored, octets in encode(value).items():
                    self._files.store(stored, 0, octets)
                continue
            spec = self._layout.get(name)
            if spec is None:
                raise ValueError(f"{name} is not in the layout.")
            if isinstance(spec, PlainSpec):
                self._write_vector(name, value, spec)
            elif isinstance(value, QuantizedRows):
                self._write_rows(name, value.start, value.weight, spec)
            else:
                self._write_rows(name, 0, value, spec)

    def finish(self) -> Mapping[str, Any]:
        """Check that every tensor is complete, and flush; return no further files."""
        missing = [name for name, spec in self._layout.items() if self._lacking(name, spec)]
        missing += self._towers
        if missing:
            raise ValueError(f"{len(missing)} tensors are not complete: {missing[:8]}.")
        self.flush()
        return {}

    def flush(self) -> None:
        """Sync the files to disk."""
        self._files.flush()

    def _lacking(self, name: str, spec: PlainSpec | QuantizedSpec) -> bool:
        return self._rows.get(name, 0) != spec.shape[0]

    def _write_vector(self, name: str, value: Any, spec: PlainSpec) -> None:
        fits = isinstance(value, Tensor) and tuple(value.shape) == spec.shape
        if not fits or name in self._rows:
            raise ValueError(f"{name} came as {value!r}, announced as {spec}.")
        # Added in float32, as llama.cpp's converter does it.
        values = value.detach().cpu().to(torch.float32)
        stored = values + self._norm_offset if is_norm(name) else values
        self._files.store(self._places[name][0], 0, stored.view(torch.uint8).contiguous())
        self._rows[name] = spec.shape[0]

    def _write_rows(self, name: str, start: int, weight: Any, spec: QuantizedSpec) -> None:
        if not isinstance(weight, BlockWeight) or weight.scheme != spec.scheme:
            raise ValueError(f"{name} came as {type(weight).__name__}, announced as {spec.scheme}.")
        written = self._rows.get(name, 0)
        rows, columns = weight.shape
        if start != written or columns != spec.shape[1] or written + rows > spec.shape[0]:
            raise ValueError(
                f"{name}: rows {start} to {start + rows} of {columns} came after {written} of "
                f"{spec.shape}."
            )
        tensor, first = self._places[name]
        offset = (first + start) * weight.scheme.type.row_bytes(columns)
        self._files.store(tensor, offset, weight.blocks.contiguous())
        self._rows[name] = written + rows


@contextmanager
def gguf_writer(
    folder: Path,
    layouts: Mapping[str, FileLayout],
    layout: Layout,
    config: Mapping[str, Any],
    finished: Collection[str] | None = None,
    towers: Towers | None = None,
) -> Iterator[GgufWriter]:
    """Open the files in an existing folder at their final size; close them on exit.

    finished: names in the layout that an earlier run has stored in files that are there; None to
    begin new ones.
    """
    paths = {folder / name: each for name, each in layouts.items()}
    files = PreallocatedFiles(paths, resumed=finished is not None)
    with closing(files):
        yield GgufWriter(files, layout, config, finished or (), towers)
