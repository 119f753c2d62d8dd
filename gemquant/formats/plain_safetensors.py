"""Plain safetensors folders: every tensor in one floating-point type, as models are published.

transformers, vLLM and every other reader of such folders load them with no flags.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from gemquant.core.protocols import ArtifactHeader, Container, QuantizedSpec
from gemquant.core.resources import parse_size
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError, listed
from gemquant.formats.packed import PackedFolder
from gemquant.formats.packed_weights import PackedWeights, module_of


@dataclass(frozen=True)
class PlainSafetensors(PackedFolder):
    """Exporter for folders without quantization."""

    name: ClassVar[str] = "safetensors"
    packing: ClassVar[None] = None
    holds_towers: ClassVar[bool] = True
    holds_embeddings: ClassVar[bool] = True
    dtype: torch.dtype = torch.bfloat16

    def configured(self, options: Mapping[str, Any]) -> Self:
        """The exporter for a job's ``dtype`` and ``shard_size``, if it has them."""
        dtype = getattr(torch, options.get("dtype", "bfloat16"))
        size = options.get("shard_size")
        if size is None:
            return dataclasses.replace(self, dtype=dtype)
        limit = parse_size(size, flag="--shard-size")
        return dataclasses.replace(self, dtype=dtype, max_shard_bytes=limit)

    def container(self, config: Mapping[str, Any]) -> Container:  # noqa: ARG002 (protocol)
        """The one type."""
        return Container(self.dtype, self.dtype)

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:
        """Refuse anything quantized."""
        quantized = [module_of(n) for n, s in header.layout.items() if isinstance(s, QuantizedSpec)]
        if not quantized:
            return []
        return [
            UnsupportedError(
                f"{self.name} holds nothing quantized; asked to quantize {listed(quantized, 4)}.",
                hint="Leave --exporter out: the target chooses a container that holds it.",
            )
        ]

    def open(self, folder: Path) -> PackedWeights:
        """Read a finished folder back; ArtifactError if its structure is not this container's."""
        weights = super().open(folder)
        integers = [n for n in weights.names() if not weights.stored_dtype(n).is_floating_point]
        if integers:
            raise ArtifactError(f"{listed(integers)}: not stored as floating-point numbers.")
        return weights
