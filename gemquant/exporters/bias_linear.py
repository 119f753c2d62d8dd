"""One quantized linear as MLX and the kernels made from it read it: w = scale · code + bias.

A Linear(in, out) becomes ``weight`` uint32 (out, in · bits / 32), codes low bits first and without
gaps whatever the width, and ``scales`` and biases (out, in / group_size) in the model's type.

Source: the output of ``mlx.core.quantize`` (mlx 0.32); tests compare every width with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gemquant.errors import UnsupportedError
from gemquant.numerics.anchored import biases_of, zero_points_of
from gemquant.numerics.packing import pack_bits, packed_width, unpack_bits
from gemquant.protocols import AffineSpec, AffineWeight, PlainSpec


@dataclass(frozen=True)
class BiasLinear:
    """The three tensors of one linear; satisfies ``PackedLinear``.

    biases: what the container calls them.
    """

    biases: str
    scale_dtype: torch.dtype = torch.bfloat16

    def specs(self, spec: AffineSpec) -> Mapping[str, PlainSpec]:
        """Biases are stored for symmetric schemes too."""
        rows, columns = spec.shape
        groups = (rows, spec.scheme.groups(columns))
        return {
            "weight": PlainSpec((rows, packed_width(columns, spec.scheme.bits)), torch.uint32),
            "scales": PlainSpec(groups, self.scale_dtype),
            self.biases: PlainSpec(groups, self.scale_dtype),
        }

    def pack(self, weight: AffineWeight) -> Mapping[str, Tensor]:
        """Codes along the rows; biases from the zero points, exactly.

        UnsupportedError for whole zero points that were not chosen as biases: a bias would be
        rounded once more, after the codes were chosen.
        """
        if weight.zero_points.dtype == torch.uint8 and not weight.scheme.symmetric:
            raise UnsupportedError(
                "This container stores biases, and the quantizer chose whole zero points.",
                hint="Use a symmetric scheme, or a container with zero points.",
            )
        return {
            "weight": pack_bits(weight.codes, weight.scheme.bits).view(torch.uint32),
            "scales": weight.scales,
            self.biases: biases_of(weight.scales, weight.zero_points),
        }

    def unpack(
        self, stored: Mapping[str, Tensor], spec: AffineSpec, start: int, stop: int
    ) -> AffineWeight:
        """Undo pack; zero points come back as float32."""
        words = stored["weight"][start:stop].view(torch.int32)
        scales = stored["scales"][start:stop]
        return AffineWeight(
            spec.scheme,
            unpack_bits(words, spec.scheme.bits, spec.shape[1]),
            scales,
            zero_points_of(scales, stored[self.biases][start:stop]),
        )
