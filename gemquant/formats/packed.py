"""Safetensors folders whose linears are all packed in one way: the base of their exporters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
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
    PackedLinear,
    PackedWeights,
    apart,
    module_of,
    plain_stacks,
    stored_specs,
)
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.formats.safetensors_writer import MAX_SHARD_BYTES, SafetensorsWriter, file_sizes
from gemquant.formats.transformers_config import (
    bare_name,
    in_whole_model,
    renamed_modules,
    runtime_config,
    whole_config,
)
from gemquant.models.architecture import architecture_of, places_in_stacks
from gemquant.models.experts import has_experts
from gemquant.models.structure import DENSE, EMBEDDING, HEAD, PER_LAYER_TABLE, tower_of
from gemquant.numerics.precision import narrowed

TABLES = (EMBEDDING, PER_LAYER_TABLE, HEAD, *DENSE)
"""Matrices that are no decoder's linears."""


@dataclass(frozen=True)
class PackedFolder(Exporter):
    """Writes and reads a container; a subclass adds its packing, configuration and limits.

    types: what it stores numbers in. packing: how a linear is stored; None where nothing is
    quantized. plain: matrices that its loaders read in floating point alone. skipped: key of
    ``quantization_config`` that names modules which are not quantized. tower_patterns: how it names
    a tower there.
    """

    name: ClassVar[str]
    resumable: ClassVar[bool] = True
    types: ClassVar[Container]
    packing: ClassVar[PackedLinear | None]
    plain: ClassVar[tuple[str, ...]] = (EMBEDDING, PER_LAYER_TABLE, HEAD)
    skipped: ClassVar[str | None] = None
    tower_patterns: ClassVar[Sequence[str]] = ()
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

    def whole_name(self, config: Mapping[str, Any], name: str) -> str:
        """The name in a multimodal file of a tensor of the text model."""
        return architecture_of(config).published_name(name)

    def whole_module(self, module: str) -> str:
        """How ``quantization_config`` of a multimodal artifact names a module of the text model."""
        return in_whole_model(module)

    def tower_name(self, name: str) -> str:
        """The name in the file of a tower's tensor, from that published."""
        return name

    def channels_last(self, name: str) -> bool:  # noqa: ARG002
        """Whether the second axis of a tower's tensor is the last one in the file."""
        return False

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
        quantization = self.quantization(header.layout)
        if architecture_of(header.config).embeds:
            quantization = renamed_modules(quantization, bare_name)
        if not header.towers or header.origin is None:
            return runtime_config(header.config, dtype, quantization)
        if quantization is not None:
            quantization = renamed_modules(quantization, self.whole_module)
            if self.skipped is not None:
                parts = dict.fromkeys(map(tower_of, header.towers))
                patterns = [each.format(part) for part in parts for each in self.tower_patterns]
                listed_before = quantization.get(self.skipped, [])
                quantization = {**quantization, self.skipped: [*listed_before, *patterns]}
        text = runtime_config(header.config, dtype, None)
        return whole_config(header.origin.whole_config, text, quantization)

    def file_sizes(self, header: ArtifactHeader) -> Mapping[str, int]:
        """Exact bytes of every file; those of Dense modules are copied later."""
        specs = self._specs(header, header.layout)
        modules = header.origin.checkpoint.modules if header.origin else None
        copied = {} if modules is None else modules.file_sizes
        return {**file_sizes(specs, max_shard_bytes=self.max_shard_bytes), **copied}

    def _naming(self, header: ArtifactHeader) -> Callable[[str], str]:
        """How a tensor of the text model is named in the file."""
        if architecture_of(header.config).embeds:
            return bare_name
        return partial(self.whole_name, header.config) if header.towers else str

    def _specs(self, header: ArtifactHeader, layout: Layout) -> dict[str, PlainSpec]:
        """Every tensor of the file that belongs to ``layout``, and those of towers."""
        stacks, naming = plain_stacks(header.config, header.layout), self._naming(header)
        layout = {name: spec for name, spec in layout.items() if name not in DENSE}
        specs = stored_specs(layout, self.packing, stacks, self.joined)
        towers = {
            self.tower_name(name): PlainSpec(_moved(spec.shape), spec.dtype)
            if self.channels_last(name)
            else spec
            for name, spec in header.towers.items()
        }
        return {**{naming(name): spec for name, spec in specs.items()}, **towers}

    @contextmanager
    def create(
        self, folder: Path, header: ArtifactHeader, finished: Collection[str] | None = None
    ) -> Iterator[PackedWriter]:
        """Open a writer in a scratch folder, new or with the tensors of an interrupted run."""
        layout, stored = header.layout, None
        if finished is not None:
            done = replace(header, towers={})
            stored = self._specs(done, {name: layout[name] for name in finished})
            stored = {self._naming(header)(name): spec for name, spec in stored.items()}
        with SafetensorsWriter(
            folder,
            self._specs(header, layout),
            max_shard_bytes=self.max_shard_bytes,
            finished=stored,
        ) as files:
            yield PackedWriter(self, files, header, self._naming(header))

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
        folder: PackedFolder,
        files: SafetensorsWriter,
        header: ArtifactHeader,
        naming: Callable[[str], str],
    ) -> None:
        self._folder, self._files, self._naming = folder, files, naming
        self._layout, self._towers = header.layout, header.towers
        self._packing, self._joined = folder.packing, folder.joined
        self._config = folder.config(header)
        stacks = plain_stacks(header.config, header.layout)
        shapes = {name: spec.shape for name, spec in header.layout.items()}
        self._places = places_in_stacks(stacks, shapes)
        self._matrices: dict[str, ChunkedWeight] = {}

    def write(self, tensors: Mapping[str, Any]) -> None:
        """Store tensors (Tensor, QuantizedWeight, RowChunks, QuantizedRows) by Gemma's full names.

        Packing may span rows, so a quantized matrix is stored when its last rows have come.
        """
        for name, value in tensors.items():
            if name in DENSE:  # its file is copied
                continue
            if name in self._towers:
                last = self._folder.channels_last(name)
                tensor = value.movedim(1, -1).contiguous() if last else value
                self._files.write(self._folder.tower_name(name), tensor)
                continue
            spec = self._layout.get(name)
            if spec is None:
                raise ValueError(f"{name} is not in the layout.")
            if isinstance(spec, QuantizedSpec) and isinstance(value, QuantizedRows):
                self._gather(name, value, spec)
            elif isinstance(spec, QuantizedSpec):
                self._write_quantized(name, value, spec)
            elif isinstance(value, RowChunks):
                self._files.write_chunks(self._naming(name), _narrowed_chunks(name, value, spec))
            elif isinstance(value, Tensor) and name in self._places:
                stack, first = self._places[name]
                rows = narrowed(name, value, spec.dtype)
                self._files.write_rows(self._naming(stack), first, rows)
            elif isinstance(value, Tensor):
                self._files.write(self._naming(name), narrowed(name, value, spec.dtype))
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
                stored = self._naming(f"{module_of(name)}.{suffix}")
                self._files.write_rows(stored, rows.start, tensor)
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
            stored = self._naming(f"{module}.{suffix}")
            if number is None:
                self._files.write(stored, tensor)
            else:
                self._files.write_rows(stored, number * tensor.shape[0], tensor)


def _moved(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1])


def _narrowed_chunks(name: str, chunks: RowChunks, spec: PlainSpec) -> RowChunks:
    if chunks.dtype == spec.dtype:
        return chunks

    def converted() -> Iterator[Tensor]:
        for chunk in chunks.chunks():
            yield narrowed(name, chunk, spec.dtype)

    return RowChunks(chunks.shape, spec.dtype, converted)
