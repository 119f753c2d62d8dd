"""A safetensors folder whose linears are all packed in one way: what such containers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from gemquant.core.protocols import ArtifactHeader
from gemquant.formats.packed_linear import PackedLinear, stored_specs
from gemquant.formats.packed_weights import PackedWeights, SchemeReader
from gemquant.formats.packed_writer import PackedWriter, packed_writer
from gemquant.formats.safetensors.writer import MAX_SHARD_BYTES, file_sizes


@dataclass(frozen=True)
class PackedFolder(ABC):
    """The half of ``protocols.Exporter`` that writes and reads; a container adds its limits.

    packing: how a linear is stored; None where nothing is quantized.
    """

    packing: ClassVar[PackedLinear | None]
    max_shard_bytes: int = field(default=MAX_SHARD_BYTES, kw_only=True)

    @abstractmethod
    def config(self, header: ArtifactHeader) -> Mapping[str, Any]:
        """What the runtime reads in ``config.json``."""

    @property
    @abstractmethod
    def scheme_reader(self) -> SchemeReader | None:
        """Finds a module's scheme in ``quantization_config``; None where nothing is quantized."""

    def file_sizes(self, header: ArtifactHeader) -> Mapping[str, int]:
        """Exact bytes of every file."""
        specs = stored_specs(header.layout, self.packing)
        return file_sizes(specs, max_shard_bytes=self.max_shard_bytes)

    def create(self, folder: Path, header: ArtifactHeader) -> AbstractContextManager[PackedWriter]:
        """Open a writer in an existing scratch folder."""
        return self._writer(folder, header, None)

    def reopen(
        self, folder: Path, header: ArtifactHeader, finished: Collection[str]
    ) -> AbstractContextManager[PackedWriter]:
        """Open the files of an interrupted writer again; OutputError if they are others."""
        return self._writer(folder, header, finished)

    def _writer(
        self, folder: Path, header: ArtifactHeader, finished: Collection[str] | None
    ) -> AbstractContextManager[PackedWriter]:
        return packed_writer(
            folder,
            header.layout,
            self.packing,
            self.config(header),
            max_shard_bytes=self.max_shard_bytes,
            finished=finished,
        )

    def open(self, folder: Path) -> PackedWeights:
        """Read a finished folder back; ArtifactError if its structure is not this container's."""
        return PackedWeights.open(folder, self.packing, self.scheme_reader)
