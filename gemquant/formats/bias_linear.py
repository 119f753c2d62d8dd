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

from gemquant.core.protocols import AffineWeight, PlainSpec, QuantizedSpec, QuantizedWeight
from gemquant.errors import UnsupportedError
from gemquant.formats.affine_layers import affine_scheme, affine_weight, check_affine
from gemquant.numerics.mlx_affine import biases_of, zero_points_of
from gemquant.numerics.packing import pack_bits, packed_width, unpack_bits


@dataclass(frozen=True)
class BiasLinear:
    """The three tensors of one linear; satisfies ``PackedLinear``.

    biases: what the container calls them.
    """

    biases: str
    scale_dtype: torch.dtype = torch.bfloat16

    def specs(self, spec: QuantizedSpec) -> Mapping[str, PlainSpec]:
        """Biases are stored for symmetric schemes too."""
        rows, columns = spec.shape
        scheme = affine_scheme(spec)
        groups = (rows, scheme.groups(columns))
        return {
            "weight": PlainSpec((rows, packed_width(columns, scheme.bits)), torch.uint32),
            "scales": PlainSpec(groups, self.scale_dtype),
            self.biases: PlainSpec(groups, self.scale_dtype),
        }

    def check(self, name: str, weight: QuantizedWeight, spec: QuantizedSpec) -> None:
        """Refuse a weight that is not what was announced.

        UnsupportedError for whole zero points that were not chosen as biases: a bias would be
        rounded once more, after the codes were chosen.
        """
        check_affine(name, weight, spec, self.scale_dtype, biased=True)
        affine = affine_weight(weight)
        if affine.zero_points.dtype == torch.uint8 and not affine.scheme.symmetric:
            raise UnsupportedError(
                f"{name}: this container stores biases, and the quantizer chose whole zero points.",
                hint="Use a symmetric scheme, or a container with zero points.",
            )

    def pack(self, weight: QuantizedWeight) -> Mapping[str, Tensor]:
        """Codes along the rows; biases from the zero points, exactly."""
        affine = affine_weight(weight)
        return {
            "weight": pack_bits(affine.codes, affine.scheme.bits).view(torch.uint32),
            "scales": affine.scales,
            self.biases: biases_of(affine.scales, affine.zero_points),
        }

    def unpack(
        self, stored: Mapping[str, Tensor], spec: QuantizedSpec, start: int, stop: int
    ) -> AffineWeight:
        """Undo pack; zero points come back as float32."""
        words = stored["weight"][start:stop].view(torch.int32)
        scales = stored["scales"][start:stop]
        scheme = affine_scheme(spec)
        return AffineWeight(
            scheme,
            unpack_bits(words, scheme.bits, spec.shape[1]),
            scales,
            zero_points_of(scales, stored[self.biases][start:stop]),
        )
