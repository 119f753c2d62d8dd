"""Writes a layout of plain and quantized tensors into safetensors files."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from gemquant.core.protocols import (
    Layout,
    PlainSpec,
    QuantizedSpec,
    QuantizedWeight,
    RowChunks,
)
from gemquant.core.weights import ChunkedWeight, QuantizedRows
from gemquant.formats.packed_linear import PackedLinear, module_of, stored_specs
from gemquant.formats.safetensors.writer import SafetensorsWriter
from gemquant.numerics.precision import narrowed


class PackedWriter:
    """Satisfies ``protocols.Writer``.

    Floating-point tensors are rounded to the announced type; a value that overflows there is an
    UnsupportedError. Quantized weights must come in the container's types: the quantizer decides
    how scales are rounded, so that codes and scales belong together.
    """

    def __init__(
        self,
        files: SafetensorsWriter,
        layout: Layout,
        packing: PackedLinear | None,
        config: Mapping[str, Any],
    ) -> None:
        self._files = files
        self._layout = layout
        self._packing = packing
        self._config = config
        self._matrices: dict[str, ChunkedWeight] = {}

    def write(self, tensors: Mapping[str, Any]) -> None:
        """Store tensors (Tensor, QuantizedWeight, RowChunks, QuantizedRows) by Gemma's full names.

        Packing may span rows, so a quantized matrix is stored when its last rows have come.
        """
        for name, value in tensors.items():
            spec = self._layout.get(name)
            if spec is None:
                raise ValueError(f"{name} is not in the layout.")
            if isinstance(spec, QuantizedSpec) and isinstance(value, QuantizedRows):
                self._gather(name, value, spec)
            elif isinstance(spec, QuantizedSpec):
                self._write_quantized(name, value, spec)
            elif isinstance(value, RowChunks):
                self._files.write_chunks(name, _narrowed_chunks(name, value, spec))
            elif isinstance(value, Tensor):
                self._files.write(name, narrowed(name, value, spec.dtype))
            else:
                raise ValueError(f"{name} came quantized, announced as {spec.dtype}.")  # noqa: TRY004

    def flush(self) -> None:
        """Ask the disk to keep what has been stored."""
        self._files.flush()

    def finish(self) -> Mapping[str, Any]:
        """Complete the files; return what config.json must hold."""
        self._files.finish()
        return self._config

    def _gather(self, name: str, rows: QuantizedRows, spec: QuantizedSpec) -> None:
        matrix = self._matrices.setdefault(name, ChunkedWeight(spec.shape))
        if rows.start != matrix.row_count:
            raise ValueError(f"{name}: row {rows.start} came after {matrix.row_count} rows.")
        matrix.append(rows.weight)
        if matrix.row_count >= spec.shape[0]:
            self._write_quantized(name, self._matrices.pop(name).stacked(), spec)

    def _write_quantized(
        self, name: str, weight: Tensor | RowChunks | QuantizedWeight, spec: QuantizedSpec
    ) -> None:
        if isinstance(weight, (Tensor, RowChunks)):
            raise ValueError(f"{name} came unquantized, announced with {spec.scheme}.")  # noqa: TRY004
        assert self._packing is not None, name
        self._packing.check(name, weight, spec)
        for suffix, tensor in self._packing.pack(weight).items():
            self._files.write(f"{module_of(name)}.{suffix}", tensor)


@contextmanager
def packed_writer(
    folder: Path,
    layout: Layout,
    packing: PackedLinear | None,
    config: Mapping[str, Any],
    *,
    max_shard_bytes: int,
    finished: Collection[str] | None = None,
) -> Iterator[PackedWriter]:
    """Open the files of a layout in an existing folder; close them whatever happens.

    packing: None where nothing in the layout is quantized. finished: names in the layout that an
    earlier run has stored in files that are there; None to begin new ones.
    """
    specs = stored_specs(layout, packing)
    stored = None
    if finished is not None:
        stored = stored_specs({name: layout[name] for name in finished}, packing)
    with SafetensorsWriter(
        folder, specs, max_shard_bytes=max_shard_bytes, finished=stored
    ) as files:
        yield PackedWriter(files, layout, packing, config)


def _narrowed_chunks(name: str, chunks: RowChunks, spec: PlainSpec) -> RowChunks:
    if chunks.dtype == spec.dtype:
        return chunks

    def converted() -> Iterator[Tensor]:
        for chunk in chunks.chunks():
            yield narrowed(name, chunk, spec.dtype)

    return RowChunks(chunks.shape, spec.dtype, converted)
