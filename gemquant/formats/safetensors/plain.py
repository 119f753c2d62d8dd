"""Plain safetensors folders: every tensor in one floating-point type, as models are published.

transformers, vLLM and whatever else reads a Gemma from a folder loads it with no flags.
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
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError
from gemquant.formats.limits import listed
from gemquant.formats.packed_folder import PackedFolder
from gemquant.formats.packed_linear import module_of
from gemquant.formats.packed_weights import PackedWeights
from gemquant.formats.transformers_config import runtime_config


@dataclass(frozen=True)
class PlainSafetensors(PackedFolder):
    """Exporter for folders without quantization; satisfies ``protocols.Exporter``."""

    name: ClassVar[str] = "safetensors"
    packing: ClassVar[None] = None
    dtype: torch.dtype = torch.bfloat16

    def configured(self, options: Mapping[str, Any]) -> Self:
        """Another one, by a job's options: ``dtype`` and ``shard_size``, if it has them."""
        dtype = getattr(torch, options.get("dtype", "bfloat16"))
        size = options.get("shard_size")
        if size is None:
            return dataclasses.replace(self, dtype=dtype)
        limit = parse_size(size, flag="--shard-size")
        return dataclasses.replace(self, dtype=dtype, max_shard_bytes=limit)

    def container(self, config: Mapping[str, Any]) -> Container:  # noqa: ARG002 (protocol)
        """One type for everything."""
        return Container(self.dtype, self.dtype)

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:
        """Nothing quantized has a place here."""
        quantized = [module_of(n) for n, s in header.layout.items() if isinstance(s, QuantizedSpec)]
        if not quantized:
            return []
        return [
            UnsupportedError(
                f"{self.name} holds nothing quantized; asked for it: {listed(quantized, 4)}.",
                hint="Leave --exporter out: the target chooses a container that holds it.",
            )
        ]

    def config(self, header: ArtifactHeader) -> Mapping[str, Any]:
        """The model's own configuration."""
        return runtime_config(header.config, self.dtype, quantization=None)

    @property
    def scheme_reader(self) -> None:
        """Nothing has a scheme here."""
        return None

    def open(self, folder: Path) -> PackedWeights:
        """Read a finished folder back; ArtifactError if its structure is not this container's."""
        return _floating(super().open(folder))


def _floating(weights: PackedWeights) -> PackedWeights:
    """Refuse tensors of integers: they would stand for something else."""
    whole = [name for name in weights.names() if not weights.stored_dtype(name).is_floating_point]
    if whole:
        raise ArtifactError(f"{listed(whole)}: not stored as floating-point numbers.")
    return weights
