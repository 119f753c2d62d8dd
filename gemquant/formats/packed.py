"""Safetensors folders whose linears are all packed in one way: the base of their exporters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gemquant.core.protocols import (
    ArtifactHeader,
    Container,
    Exporter,
    Layout,
    PlainSpec,
    QuantizedSpec,
    QuantizedWeight,
    RowChunks,
)
from gemquant.core.scheme import Scheme
from gemquant.core.weights import ChunkedWeight, QuantizedRows
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError, listed
from gemquant.formats.packed_weights import (
    Joined,
    PackedLinear,
    PackedWeights,
    apart,
    module_of,
    plain_stacks,
    stored_specs,
)
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.formats.safetensors_writer import MAX_SHARD_BYTES, SafetensorsWriter, file_sizes
from gemquant.formats.transformers_config import runtime_config
from gemquant.models.architecture import places_in_stacks
from gemquant.models.experts import has_experts
from gemquant.models.structure import EMBEDDING, HEAD, PER_LAYER_TABLE
from gemquant.numerics.precision import narrowed

TABLES = (EMBEDDING, PER_LAYER_TABLE, HEAD)
"""Matrices that are no decoder's linears."""


@dataclass(frozen=True)
class PackedFolder(Exporter):
    """Writes and reads a container; a subclass adds its packing, configuration and limits.

    types: what it stores numbers in. packing: how a linear is stored; None where nothing is
    quantized. plain: matrices that its loaders read in floating point alone.
    """

    name: ClassVar[str]
    resumable: ClassVar[bool] = True
    types: ClassVar[Container]
    packing: ClassVar[PackedLinear | None]
    plain: ClassVar[tuple[str, ...]] = (EMBEDDING, PER_LAYER_TABLE, HEAD)
    max_shard_bytes: int = field(default=MAX_SHARD_BYTES, kw_only=True)

    def quantization(self, layout: Layout) -> Mapping[str, Any] | None:  # noqa: ARG002
        """``quantization_config`` of ``config.json``; None where nothing is quantized."""
        return None

    def scheme_of(
        self,
        quantization: Mapping[str, Any],  # noqa: ARG002
        stored: SafetensorsFiles,  # noqa: ARG002
        module: str,
    ) -> Scheme:
        """Scheme of a module by ``quantization_config``; ArtifactError where there is none."""
        raise ArtifactError(f"{self.name} holds nothing quantized; {module} is.")

    def joined(self, module: str) -> tuple[str, int | None]:
        """The module that a quantized one is stored as, and which of several it is there."""
        return apart(module)

    def container(self, config: Mapping[str, Any]) -> Container:  # noqa: ARG002 (protocol)
        """Types that this format stores."""
        return self.types

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:
        """Refuse an embedding or head that the container's loaders cannot read quantized."""
        return [
            UnsupportedError(
                f"{self.name} cannot hold a quantized {module_of(name)}: its loaders read that "
                "table in floating point.",
                hint=f"Leave {module_of(name)} unquantized, as is the default.",
            )
            for name in self.plain
            if isinstance(header.layout.get(name), QuantizedSpec)
        ]

    def config(self, header: ArtifactHeader) -> Mapping[str, Any]:
        """``config.json``: the model's configuration, and how its layers are quantized."""
        dtype = self.container(header.config).float_dtype
        return runtime_config(header.config, dtype, self.quantization(header.layout))

    def file_sizes(self, header: ArtifactHeader) -> Mapping[str, int]:
        """Exact bytes of every file."""
        stacks = plain_stacks(header.config, header.layout)
        specs = stored_specs(header.layout, self.packing, stacks, self.joined)
        return file_sizes(specs, max_shard_bytes=self.max_shard_bytes)

    @contextmanager
    def create(
        self, folder: Path, header: ArtifactHeader, finished: Collection[str] | None = None
    ) -> Iterator[PackedWriter]:
        """Open a writer in a scratch folder, new or with the tensors of an interrupted run."""
        layout, packing = header.layout, self.packing
        stacks = plain_stacks(header.config, layout)
        stored = None
        if finished is not None:
            done = {name: layout[name] for name in finished}
            stored = stored_specs(done, packing, stacks, self.joined)
        with SafetensorsWriter(
            folder,
            stored_specs(layout, packing, stacks, self.joined),
            max_shard_bytes=self.max_shard_bytes,
            finished=stored,
        ) as files:
            places = places_in_stacks(stacks, {name: spec.shape for name, spec in layout.items()})
            yield PackedWriter(files, layout, packing, self.config(header), places, self.joined)

    def open(self, folder: Path) -> PackedWeights:
        """Read a finished folder back; ArtifactError if its structure is not this container's."""
        return PackedWeights.open(folder, self.packing, self.scheme_of, self.joined)


def mixed(words: Iterable[str], container: str, hint: str | None = None) -> list[GemquantError]:
    """Refuse several schemes, in words, where the container holds one."""
    distinct = sorted(set(words))
    if len(distinct) < 2:
        return []
    return [
        UnsupportedError(
            f"{container} holds one scheme for the whole model; asked for {listed(distinct)}.",
            hint=hint,
        )
    ]


def experts_refused(names: Iterable[str], container: str) -> list[GemquantError]:
    """Refuse quantized experts where transformers alone would read them: it has one tensor of all.

    names: of the quantized weights.
    """
    if not has_experts(names):
        return []
    return [
        UnsupportedError(
            f"{container} holds no experts: transformers loads them as one tensor, which it does "
            "not quantize.",
            hint="Use gemquant gguf, or gemquant rtn or awq with --symmetric for vLLM, or leave "
            "the experts in bfloat16: --skip '*.experts.*'",
        )
    ]


def plain_linears(layout: Layout) -> list[str]:
    """Modules of the decoder's linears that stay in floating point."""
    return [
        module_of(name)
        for name, spec in layout.items()
        if isinstance(spec, PlainSpec) and len(spec.shape) == 2 and name not in TABLES
    ]


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
        places: Mapping[str, tuple[str, int]],
        joined: Joined,
    ) -> None:
        self._files, self._joined = files, joined
        self._places = places
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
            elif isinstance(value, Tensor) and name in self._places:
                stack, first = self._places[name]
                self._files.write_rows(stack, first, narrowed(name, value, spec.dtype))
            elif isinstance(value, Tensor):
                self._files.write(name, narrowed(name, value, spec.dtype))
            else:
                raise ValueError(f"{name} came quantized, announced as {spec.dtype}.")

    def flush(self) -> None:
        """Make what has been stored durable."""
        self._files.flush()

    def finish(self) -> Mapping[str, Any]:
        """Complete the files; return what config.json must hold."""
        self._files.finish()
        return self._config

    def _gather(self, name: str, rows: QuantizedRows, spec: QuantizedSpec) -> None:
        if self._packing is not None and self._packing.by_rows:
            self._packing.check(name, rows.weight, replace(spec, shape=rows.weight.shape))
            for suffix, tensor in self._packing.pack(rows.weight).items():
                self._files.write_rows(f"{module_of(name)}.{suffix}", rows.start, tensor)
            return
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
        module, number = self._joined(module_of(name))
        for suffix, tensor in self._packing.pack(weight).items():
            if number is None:
                self._files.write(f"{module}.{suffix}", tensor)
            else:
                self._files.write_rows(f"{module}.{suffix}", number * tensor.shape[0], tensor)


def _narrowed_chunks(name: str, chunks: RowChunks, spec: PlainSpec) -> RowChunks:
    if chunks.dtype == spec.dtype:
        return chunks

    def converted() -> Iterator[Tensor]:
        for chunk in chunks.chunks():
            yield narrowed(name, chunk, spec.dtype)

    return RowChunks(chunks.shape, spec.dtype, converted)
