"""transformers' own Metal checkpoints: 2, 4 or 8 bits, bfloat16, safetensors; for Apple GPUs.

Linears are stored as ``bias_linear`` describes, their biases under ``qbiases``, and nothing else is
quantized. On a Mac transformers runs MLX's kernels on them; everywhere else it decodes them as it
loads, into bfloat16.

Source: transformers 5.23 ``quantizers/quantizer_metal.py``, ``integrations/metal_quantization.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from gemquant.checkpoint.mapped import MappedSafetensors
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError
from gemquant.exporters.affine_layers import affine_schemes, other_kinds
from gemquant.exporters.bias_linear import BiasLinear
from gemquant.exporters.limits import (
    indivisible_inputs,
    listed,
    missing_bits,
    missing_group_sizes,
    quantized_tables,
)
from gemquant.exporters.packed_linear import module_of, stored_specs
from gemquant.exporters.packed_weights import PackedWeights
from gemquant.exporters.packed_writer import PackedWriter, packed_writer
from gemquant.exporters.safetensors_writer import MAX_SHARD_BYTES, file_sizes
from gemquant.exporters.transformers_config import runtime_config
from gemquant.gemma.structure import EMBEDDING, HEAD
from gemquant.protocols import (
    AffineScheme,
    ArtifactHeader,
    Container,
    Layout,
    PlainSpec,
    QuantizedSpec,
)

BITS = (2, 4, 8)
GROUP_SIZES = (32, 64, 128)
LINEAR = BiasLinear("qbiases")


@dataclass(frozen=True)
class Metal:
    """Exporter for ``quant_method: metal``; satisfies ``protocols.Exporter``."""

    name: ClassVar[str] = "metal"
    max_shard_bytes: int = MAX_SHARD_BYTES

    def container(self, config: Mapping[str, Any]) -> Container:  # noqa: ARG002 (protocol)
        """bfloat16 throughout: Gemma's own type, and the one that Gemma 3 needs."""
        return Container(torch.bfloat16, torch.bfloat16, biases=True)

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:
        """Widths and group sizes that the kernels have, one scheme, linears of the layers only."""
        quantized = {n: s for n, s in header.layout.items() if isinstance(s, QuantizedSpec)}
        affine = affine_schemes(header.layout)
        problems: list[GemquantError] = [
            *quantized_tables(quantized, (EMBEDDING, HEAD), self.name),
            *other_kinds(header.layout, self.name),
            *missing_bits(affine, BITS, self.name),
            *missing_group_sizes(affine, GROUP_SIZES, self.name),
            *indivisible_inputs(quantized),
        ]
        schemes = {(s.bits, s.group_size) for s in affine.values()}
        if len(schemes) > 1:
            asked = [f"{bits} bits in groups of {size}" for bits, size in sorted(schemes)]
            problems.append(
                UnsupportedError(
                    f"{self.name} holds one scheme for the whole model; asked for {listed(asked)}.",
                    hint="Use the mlx container for mixed schemes.",
                )
            )
        return problems

    def file_sizes(self, header: ArtifactHeader) -> Mapping[str, int]:
        """Exact bytes of every file."""
        specs = stored_specs(header.layout, LINEAR)
        return file_sizes(specs, max_shard_bytes=self.max_shard_bytes)

    def create(self, folder: Path, header: ArtifactHeader) -> AbstractContextManager[PackedWriter]:
        """Open a writer in an existing scratch folder."""
        quantization = quantization_config(header.layout)
        config = runtime_config(header.config, torch.bfloat16, quantization)
        return packed_writer(
            folder, header.layout, LINEAR, config, max_shard_bytes=self.max_shard_bytes
        )

    def open(self, folder: Path) -> PackedWeights:
        """Read a finished folder back; ArtifactError if its structure is not this container's."""
        return PackedWeights.open(folder, LINEAR, scheme_reader)


def quantization_config(layout: Layout) -> dict[str, Any]:
    """Return what transformers looks up; plain linears are named as unconverted."""
    schemes = list(affine_schemes(layout).values())
    plain = [
        module_of(name)
        for name, spec in layout.items()
        if isinstance(spec, PlainSpec) and len(spec.shape) == 2 and name not in (EMBEDDING, HEAD)
    ]
    return {
        "quant_method": "metal",
        "bits": schemes[0].bits if schemes else 4,
        "group_size": schemes[0].group_size if schemes else 64,
        "modules_to_not_convert": ["lm_head", *plain],
    }


def scheme_reader(
    quantization: Mapping[str, Any],
    _stored: MappedSafetensors,
    module: str,
) -> AffineScheme:
    """Return the scheme of a module from ``quantization_config``."""
    bits, group_size = quantization.get("bits"), quantization.get("group_size")
    method = quantization.get("quant_method")
    if method != "metal" or bits not in BITS or group_size not in GROUP_SIZES:
        raise ArtifactError(
            f"config.json: quantization_config of {module} is {dict(quantization)}, not one of "
            "Metal's schemes."
        )
    return AffineScheme(bits, group_size, symmetric=False)
