"""GGUF, llama.cpp's container: one file, or numbered parts, that holds all there is of a model.

Towers of a multimodal model go into a file of their own, which llama.cpp calls mmproj.

Matrices are in ggml's formats, norms are 1 + w in float32, a tied head is left out.

Source: llama.cpp ``conversion/gemma.py``, ``src/llama-quant.cpp``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from gemquant.core.artifact import MANIFEST_FILE, TowerRecord, read_manifest
from gemquant.core.protocols import ArtifactHeader, Container, Exporter, Layout, QuantizedSpec
from gemquant.core.resources import parse_size
from gemquant.core.weights import BlockScheme
from gemquant.errors import GemquantError, UnsupportedError, UsageError, listed, refuse
from gemquant.formats.checkpoint import Checkpoint
from gemquant.formats.gguf.config import unrepresentable
from gemquant.formats.gguf.metadata import (
    converted_metadata,
    copied_metadata,
    quantized_metadata,
)
from gemquant.formats.gguf.mixtures import FILE_TYPES, file_type
from gemquant.formats.gguf.mmproj import Mmproj, mmproj_problems, mmproj_record
from gemquant.formats.gguf.names import gguf_shapes, places
from gemquant.formats.gguf.source import GgufWeights
from gemquant.formats.gguf.tokenizer import TEMPLATE
from gemquant.formats.gguf.values import Metadata, string, uint32
from gemquant.formats.gguf.writer import (
    GgufWriter,
    StoredTensor,
    file_layouts,
    gguf_writer,
)
from gemquant.formats.preallocated import FileLayout
from gemquant.formats.source_model import Origin
from gemquant.models.mmproj import AUTO, NONE
from gemquant.models.structure import DENSE_MODULES
from gemquant.numerics.ggml_types import TYPES

_TYPE_AT_END = re.compile(rf"[-._]({'|'.join(FILE_TYPES)})$", re.IGNORECASE)


@dataclass(frozen=True)
class GGUF(Exporter):
    """Exporter for llama.cpp. The header's label is the file type: Q4_K_M and so on.

    max_bytes: of tensors' data in one file; None for a single file. mmproj: type of the file of
    towers that goes with it; "auto" for F16 where the model has towers, "none" for no such file.
    """

    name: ClassVar[str] = "gguf"
    resumable: ClassVar[bool] = True
    without_towers: ClassVar[str] = "they go into a file of their own, which --mmproj asks for"
    holds_embeddings: ClassVar[bool] = True
    max_bytes: int | None = None
    mmproj: str = NONE

    @property
    def holds_towers(self) -> bool:
        """In a file of their own."""
        return self.mmproj != NONE

    def configured(self, options: Mapping[str, Any]) -> Self:
        """The exporter for a job's ``split_max_size`` and ``mmproj``."""
        size = options.get("split_max_size")
        limit = parse_size(size, flag="--split-max-size") if size else None
        mmproj = options.get("mmproj", self.mmproj)
        return dataclasses.replace(self, max_bytes=limit, mmproj=mmproj)

    def container(self, config: Mapping[str, Any]) -> Container:  # noqa: ARG002 (protocol)
        """float32 for everything but matrices."""
        return Container(torch.float16, torch.float32, self_contained=True)

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:
        """Matrices in formats other than ggml's, and what llama.cpp would compute differently."""
        others = [
            name
            for name, spec in header.layout.items()
            if len(spec.shape) == 2
            and not (isinstance(spec, QuantizedSpec) and isinstance(spec.scheme, BlockScheme))
        ]
        problems: list[GemquantError] = []
        if others:
            problems.append(
                UnsupportedError(
                    f"gguf holds ggml's formats; {listed(others, 3)} are stored otherwise.",
                    hint="Quantize with: gemquant gguf",
                )
            )
        return [*problems, *unrepresentable(header.config), *self._mmproj_problems(header)]

    def file_sizes(self, header: ArtifactHeader) -> Mapping[str, int]:
        """Exact bytes of every file."""
        return {name: layout.size for name, layout in self._layouts(header).items()}

    def create(
        self, folder: Path, header: ArtifactHeader, finished: Collection[str] | None = None
    ) -> AbstractContextManager[GgufWriter]:
        """Open a writer in a scratch folder, new or with the tensors of an interrupted run."""
        mmproj = self._mmproj(header)
        towers = {name: partial(mmproj.encoded, name) for name in header.towers if mmproj}
        return gguf_writer(
            folder, self._layouts(header), header.layout, header.config, finished, towers
        )

    def tower_records(self, header: ArtifactHeader) -> Sequence[TowerRecord]:
        """The file of towers."""
        if (mmproj := self._mmproj(header)) is None:
            return ()
        return [mmproj_record(mmproj.name, [*mmproj.tensors().values()], mmproj.layout().size)]

    def open(self, folder: Path) -> GgufWeights:
        """Read a finished folder back; ArtifactError if its structure is not this container's."""
        weights = GgufWeights.open(folder)
        if (folder / MANIFEST_FILE).exists():
            refuse(mmproj_problems(folder, read_manifest(folder)))
        return weights

    def _mmproj(self, header: ArtifactHeader) -> Mmproj | None:
        if not header.towers or header.origin is None:
            return None
        return Mmproj(header.origin, "F16" if self.mmproj == AUTO else self.mmproj)

    def _mmproj_problems(self, header: ArtifactHeader) -> list[GemquantError]:
        if (mmproj := self._mmproj(header)) is not None:
            return mmproj.problems()
        if self.mmproj in (AUTO, NONE) or header.origin is None:
            return []
        if header.origin.checkpoint.towers is not None:
            return [UsageError(f"--text-only leaves out what --mmproj {self.mmproj} asks for.")]
        return [
            UsageError(
                f"--mmproj {self.mmproj}: the model has no towers, only text.",
                hint="Leave --mmproj out.",
            )
        ]

    def _layouts(self, header: ArtifactHeader) -> dict[str, FileLayout]:
        if header.origin is None:
            raise ValueError("a GGUF holds tokenizer and provenance; the header has no origin.")
        tensors = stored_tensors(header.layout, header.config)
        kind = file_type(header.label)
        dense = bool(header.config.get(DENSE_MODULES))
        source = _source_metadata(header.origin.checkpoint, header.origin.chosen_template, dense)
        metadata = {
            **quantized_metadata(source, file_type=kind.number),
            **{k: string(v) if isinstance(v, str) else uint32(v) for k, v in header.facts.items()},
        }
        model = _TYPE_AT_END.sub("", header.origin.name)
        text = file_layouts(f"{model}-{kind.name}", tensors, metadata, max_bytes=self.max_bytes)
        mmproj = self._mmproj(header)
        return text if mmproj is None else {**text, mmproj.name: mmproj.layout()}


@lru_cache(maxsize=2)
def _source_metadata(checkpoint: Checkpoint, chosen_template: str | None, dense: bool) -> Metadata:
    """All metadata of a model; a GGUF's own metadata is copied, as llama-quantize copies it.

    dense: with the sizes of an embedding model's Dense modules.
    Cached for the next file of the same model: a vocabulary takes seconds.
    """
    origin = Origin(checkpoint, chosen_template)
    if origin.gguf_metadata is None:
        config = dict(origin.config)
        if DENSE_MODULES in config and not dense:
            config[DENSE_MODULES] = {}
        return converted_metadata(
            config,
            origin.tokenizer_files,
            origin.provenance,
            file_type=FILE_TYPES["BF16"].number,
        )
    metadata = copied_metadata(origin.gguf_metadata, origin.config)
    if not dense:
        metadata = {k: v for k, v in metadata.items() if ".dense_" not in k}
    if origin.template is not None:
        metadata = {k: v for k, v in metadata.items() if not k.startswith(TEMPLATE)}
        metadata[TEMPLATE] = string(origin.template)
    return metadata


def stored_tensors(layout: Layout, config: Mapping[str, Any]) -> Sequence[StoredTensor]:
    """Every tensor of a layout under its GGUF name, in llama.cpp's order."""
    kinds, where = {}, places(config)
    for name, spec in layout.items():
        if isinstance(spec, QuantizedSpec) and isinstance(spec.scheme, BlockScheme):
            kinds[where[name][0]] = spec.scheme.type
    shapes = gguf_shapes(config)
    return [StoredTensor(n, shape, kinds.get(n, TYPES["F32"])) for n, shape in shapes.items()]
