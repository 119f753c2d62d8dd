"""AutoAWQ's GEMM layout: 4 bits, float16, safetensors; read by transformers, vLLM and AutoAWQ.

A Linear(in, out) is stored transposed: ``qweight`` int32 (in, out / 8), ``qzeros`` int32
(groups, out / 8), ``scales`` float16 (groups, out), and w = (q − z) · s.

Source: AutoAWQ ``awq/modules/linear/gemm.py`` and ``awq/utils/packing_utils.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gemquant.core.protocols import (
    AffineScheme,
    AffineWeight,
    ArtifactHeader,
    Container,
    Layout,
    PlainSpec,
    QuantizedSpec,
    QuantizedWeight,
)
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError
from gemquant.formats.affine_layers import (
    affine_scheme,
    affine_schemes,
    affine_weight,
    check_affine,
    other_kinds,
    plain_linears,
)
from gemquant.formats.limits import indivisible_inputs, listed, quantized_tables
from gemquant.formats.packed_folder import PackedFolder
from gemquant.formats.packed_linear import PackedLinear, module_of
from gemquant.formats.packed_weights import SchemeReader
from gemquant.formats.safetensors.mapped import MappedSafetensors
from gemquant.formats.transformers_config import runtime_config
from gemquant.models.structure import EMBEDDING, HEAD
from gemquant.numerics.packing import pack_awq_gemm, unpack_awq_gemm


@dataclass(frozen=True)
class AwqGemmLinear:
    """The three tensors of one linear; satisfies ``PackedLinear``."""

    scale_dtype: torch.dtype = torch.float16

    def specs(self, spec: QuantizedSpec) -> Mapping[str, PlainSpec]:
        """``qweight``, ``qzeros`` (stored for symmetric schemes too: all 8) and ``scales``."""
        rows, columns = spec.shape
        groups = affine_scheme(spec).groups(columns)
        return {
            "qweight": PlainSpec((columns, rows // 8), torch.int32),
            "qzeros": PlainSpec((groups, rows // 8), torch.int32),
            "scales": PlainSpec((groups, rows), self.scale_dtype),
        }

    def check(self, name: str, weight: QuantizedWeight, spec: QuantizedSpec) -> None:
        """Refuse a weight that is not what was announced."""
        check_affine(name, weight, spec, self.scale_dtype)

    def pack(self, weight: QuantizedWeight) -> Mapping[str, Tensor]:
        """Transpose and interleave."""
        affine = affine_weight(weight)
        return {
            "qweight": pack_awq_gemm(affine.codes),
            "qzeros": pack_awq_gemm(affine.zero_points),
            "scales": affine.scales.t().contiguous(),
        }

    def unpack(
        self, stored: Mapping[str, Tensor], spec: QuantizedSpec, start: int, stop: int
    ) -> AffineWeight:
        """Undo pack; all rows are unpacked, as a word holds eight of them."""
        return AffineWeight(
            affine_scheme(spec),
            unpack_awq_gemm(stored["qweight"])[start:stop],
            stored["scales"][:, start:stop].t().contiguous(),
            unpack_awq_gemm(stored["qzeros"])[start:stop],
        )


@dataclass(frozen=True)
class AwqGemm(PackedFolder):
    """Exporter for ``quant_method: awq``, ``version: gemm``; satisfies ``protocols.Exporter``."""

    name: ClassVar[str] = "awq-gemm"
    packing: ClassVar[PackedLinear] = AwqGemmLinear()

    def container(self, config: Mapping[str, Any]) -> Container:  # noqa: ARG002 (protocol)
        """float16 throughout: AWQ's kernels take nothing else."""
        return Container(scale_dtype=torch.float16, float_dtype=torch.float16)

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:
        """4 bits, one group size for the whole model, inputs and outputs divisible."""
        quantized = {n: s for n, s in header.layout.items() if isinstance(s, QuantizedSpec)}
        problems: list[GemquantError] = [
            *other_kinds(header.layout, self.name),
            *quantized_tables(quantized, (EMBEDDING, HEAD), self.name),
            *indivisible_inputs(quantized),
        ]
        schemes = affine_schemes(header.layout)
        bits = sorted({scheme.bits for scheme in schemes.values()} - {4})
        if bits:
            problems.append(
                UnsupportedError(
                    f"{self.name} stores 4 bits; asked for {listed(bits)}.",
                    hint="Use the compressed-tensors container for other widths.",
                )
            )
        sizes = sorted({scheme.group_size for scheme in schemes.values()})
        if len(sizes) > 1:
            problems.append(
                UnsupportedError(
                    f"{self.name} holds one group size for the whole model; asked for "
                    f"{listed(sizes)}.",
                    hint="Use the compressed-tensors container for mixed group sizes.",
                )
            )
        odd = [f"{module_of(n)} ({s.shape[0]})" for n, s in quantized.items() if s.shape[0] % 8]
        if odd:
            problems.append(
                UnsupportedError(
                    f"{self.name} packs 8 output channels into a word; not a multiple of 8: "
                    f"{listed(odd)}.",
                    hint="Use the compressed-tensors container.",
                )
            )
        return problems

    def config(self, header: ArtifactHeader) -> Mapping[str, Any]:
        """The model's own configuration, and how its layers are quantized."""
        quantization = quantization_config(header.layout)
        return runtime_config(header.config, torch.float16, quantization)

    @property
    def scheme_reader(self) -> SchemeReader:
        """Of this container."""
        return scheme_reader


def quantization_config(layout: Layout) -> dict[str, Any]:
    """Return what transformers, vLLM and AutoAWQ look up; plain linears are named as unconverted.

    ``zero_point`` is true also for symmetric schemes: the kernels subtract the stored 8.
    """
    schemes = list(affine_schemes(layout).values())
    plain = plain_linears(layout)
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": schemes[0].group_size if schemes else 128,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["lm_head", *plain],
    }


def scheme_reader(
    quantization: Mapping[str, Any], _stored: MappedSafetensors, module: str
) -> AffineScheme:
    """Return the scheme of a module from ``quantization_config``."""
    expected = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
    found = {key: quantization.get(key) for key in expected}
    if found != expected or not isinstance(quantization.get("group_size"), int):
        raise ArtifactError(
            f"config.json: quantization_config of {module} is {dict(quantization)}, not AWQ GEMM."
        )
    return AffineScheme(bits=4, group_size=quantization["group_size"], symmetric=False)
