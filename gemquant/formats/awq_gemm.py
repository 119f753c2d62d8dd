"""AutoAWQ's GEMM layout: 4 bits, float16, safetensors; read by transformers, vLLM and AutoAWQ.

A Linear(in, out) is stored transposed: ``qweight`` int32 (in, out / 8), ``qzeros`` int32
(groups, out / 8), ``scales`` float16 (groups, out), and w = (q − z) · s.

Source: AutoAWQ ``awq/modules/linear/gemm.py`` and ``awq/utils/packing_utils.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError, listed
from gemquant.formats.affine import (
    AffineFolder,
    AffineLinear,
    affine_scheme,
    affine_schemes,
    affine_weight,
)
from gemquant.formats.packed import experts_refused, plain_linears
from gemquant.formats.packed_weights import PackedLinear, module_of
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.numerics.packing import pack_awq_gemm, unpack_awq_gemm


@dataclass(frozen=True)
class AwqGemmLinear(AffineLinear):
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
class AwqGemm(AffineFolder):
    """Exporter for ``quant_method: awq``, ``version: gemm``; its kernels take only float16."""

    name: ClassVar[str] = "awq-gemm"
    types: ClassVar[Container] = Container(torch.float16, torch.float16)
    packing: ClassVar[PackedLinear] = AwqGemmLinear()
    bits: ClassVar[Sequence[int]] = (4,)
    holds_towers: ClassVar[bool] = True
    skipped: ClassVar[str] = "modules_to_not_convert"
    tower_patterns: ClassVar[Sequence[str]] = ("{}", "model.{}")

    def limits(
        self, header: ArtifactHeader, schemes: Mapping[str, AffineScheme]
    ) -> list[GemquantError]:
        """One group size for the whole model; output channels that fill words."""
        problems = experts_refused(schemes, self.name)
        sizes = sorted({scheme.group_size for scheme in schemes.values()})
        if len(sizes) > 1:
            problems.append(
                UnsupportedError(
                    f"{self.name} holds one group size for the whole model; asked for "
                    f"{listed(sizes)}.",
                    hint="Use the compressed-tensors container for mixed group sizes.",
                )
            )
        rows = {name: header.layout[name].shape[0] for name in schemes}
        unfilled = [f"{module_of(name)} ({count})" for name, count in rows.items() if count % 8]
        if unfilled:
            problems.append(
                UnsupportedError(
                    f"{self.name} packs 8 output channels into a word; not a multiple of 8: "
                    f"{listed(unfilled)}.",
                    hint="Use the compressed-tensors container.",
                )
            )
        return problems

    def quantization(self, layout: Layout) -> Mapping[str, Any]:
        """What transformers, vLLM and AutoAWQ look up; plain linears are named as unconverted.

        ``zero_point`` is true also for symmetric schemes: the kernels subtract the stored 8.
        """
        schemes = list(affine_schemes(layout).values())
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": schemes[0].group_size if schemes else 128,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": ["lm_head", *plain_linears(layout)],
        }

    def scheme_of(
        self, quantization: Mapping[str, Any], _stored: SafetensorsFiles, module: str
    ) -> AffineScheme:
        """The one scheme of ``quantization_config``."""
        expected = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
        actual = {key: quantization.get(key) for key in expected}
        if actual != expected or not isinstance(quantization.get("group_size"), int):
            raise ArtifactError(
                f"config.json: quantization_config of {module} is {dict(quantization)}, not AWQ "
                "GEMM."
            )
        return AffineScheme(bits=4, group_size=quantization["group_size"], symmetric=False)
