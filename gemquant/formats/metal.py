"""transformers' own Metal checkpoints: 2, 4 or 8 bits, bfloat16, safetensors; for Apple GPUs.

Linears are stored as ``bias_linear`` describes, their biases under ``qbiases``, and nothing else is
quantized. On a Mac transformers runs MLX's kernels on them; everywhere else it decodes them as it
loads, into bfloat16.

Source: transformers 5.23 ``quantizers/quantizer_metal.py``, ``integrations/metal_quantization.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gemquant.core.protocols import (
    AffineScheme,
    ArtifactHeader,
    Container,
    Layout,
    PlainSpec,
    QuantizedSpec,
)
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError
from gemquant.formats.affine_layers import affine_schemes, other_kinds
from gemquant.formats.bias_linear import BiasLinear
from gemquant.formats.limits import (
    indivisible_inputs,
    listed,
    missing_bits,
    missing_group_sizes,
    quantized_tables,
)
from gemquant.formats.packed_folder import PackedFolder
from gemquant.formats.packed_linear import PackedLinear, module_of
from gemquant.formats.packed_weights import SchemeReader
from gemquant.formats.safetensors.mapped import MappedSafetensors
from gemquant.formats.transformers_config import runtime_config
from gemquant.models.structure import EMBEDDING, HEAD

BITS = (2, 4, 8)
GROUP_SIZES = (32, 64, 128)
LINEAR = BiasLinear("qbiases")


@dataclass(frozen=True)
class Metal(PackedFolder):
    """Exporter for ``quant_method: metal``; satisfies ``protocols.Exporter``."""

    name: ClassVar[str] = "metal"
    packing: ClassVar[PackedLinear] = LINEAR

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

    def config(self, header: ArtifactHeader) -> Mapping[str, Any]:
        """The model's own configuration, and how its layers are quantized."""
        quantization = quantization_config(header.layout)
        return runtime_config(header.config, torch.bfloat16, quantization)

    @property
    def scheme_reader(self) -> SchemeReader:
        """Of this container."""
        return scheme_reader


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
