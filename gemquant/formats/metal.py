"""transformers' own Metal checkpoints: 2, 4 or 8 bits, bfloat16, safetensors; for Apple GPUs.

Linears are stored as in MLX's checkpoints, their biases under ``qbiases``, and nothing else is
quantized. On a Mac transformers runs MLX's kernels on them; everywhere else it decodes them as it
loads, into bfloat16.

Source: transformers 5.23 ``quantizers/quantizer_metal.py``, ``integrations/metal_quantization.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gemquant.core.protocols import AffineScheme, ArtifactHeader, Container, Layout
from gemquant.errors import ArtifactError, GemquantError
from gemquant.formats.affine import AffineFolder, affine_schemes
from gemquant.formats.mlx import BiasLinear
from gemquant.formats.packed import experts_refused, mixed, plain_linears
from gemquant.formats.packed_weights import PackedLinear
from gemquant.formats.safetensors_reader import SafetensorsFiles

BITS = (2, 4, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Metal(AffineFolder):
    """Exporter for ``quant_method: metal``, in Gemma's own bfloat16."""

    name: ClassVar[str] = "metal"
    types: ClassVar[Container] = Container(torch.bfloat16, torch.bfloat16, biases=True)
    packing: ClassVar[PackedLinear] = BiasLinear(biases="qbiases")
    bits: ClassVar[Sequence[int]] = BITS
    group_sizes: ClassVar[Sequence[int]] = GROUP_SIZES
    holds_towers: ClassVar[bool] = True
    skipped: ClassVar[str] = "modules_to_not_convert"
    tower_patterns: ClassVar[Sequence[str]] = ("{}", "model.{}")

    def limits(
        self,
        header: ArtifactHeader,  # noqa: ARG002
        schemes: Mapping[str, AffineScheme],
    ) -> list[GemquantError]:
        """One scheme for the whole model."""
        words = [f"{s.bits} bits in groups of {s.group_size}" for s in schemes.values()]
        hint = "Use the mlx container for mixed schemes."
        return [*mixed(words, self.name, hint=hint), *experts_refused(schemes, self.name)]

    def quantization(self, layout: Layout) -> Mapping[str, Any]:
        """What transformers looks up; plain linears are named as unconverted."""
        schemes = list(affine_schemes(layout).values())
        return {
            "quant_method": "metal",
            "bits": schemes[0].bits if schemes else 4,
            "group_size": schemes[0].group_size if schemes else 64,
            "modules_to_not_convert": ["lm_head", *plain_linears(layout)],
        }

    def scheme_of(
        self, quantization: Mapping[str, Any], _stored: SafetensorsFiles, module: str
    ) -> AffineScheme:
        """The one scheme of ``quantization_config``."""
        bits, group_size = quantization.get("bits"), quantization.get("group_size")
        method = quantization.get("quant_method")
        if method != "metal" or bits not in BITS or group_size not in GROUP_SIZES:
            raise ArtifactError(
                f"config.json: quantization_config of {module} is {dict(quantization)}, not one of "
                "Metal's schemes."
            )
        return AffineScheme(bits, group_size, symmetric=False)
