"""AutoGPTQ's layout: 2, 4 or 8 bits, symmetric, float16; what rkllm-toolkit imports.

A Linear(in, out) is stored transposed: ``qweight`` int32 (in · bits / 32, out), word k of a column
holding inputs k · 32 / bits and on, low bits first; ``qzeros`` int32 (groups, out · bits / 32),
each zero point less one; ``scales`` float16 (groups, out); ``g_idx`` int32 (in), the group of each
input. w = (q − (z + 1)) · s.

Source: AutoGPTQ 0.7.1 ``nn_modules/qlinear/qlinear_cuda_old.py`` (``pack``) and
``quantization/config.py``; rkllm-toolkit pins that version (rknn-llm 1.3.0,
``rkllm-toolkit/packages/requirements.txt``).
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
from gemquant.formats.packed import plain_linears
from gemquant.formats.packed_weights import PackedLinear, module_of
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.numerics.packing import pack_bits, unpack_bits

BITS = (2, 4, 8)


@dataclass(frozen=True)
class GptqLinear(AffineLinear):
    """The four tensors of one linear; satisfies ``PackedLinear``."""

    scale_dtype: torch.dtype = torch.float16

    def specs(self, spec: QuantizedSpec) -> Mapping[str, PlainSpec]:
        """``qweight``, ``qzeros`` (all alike: the schemes are symmetric), ``scales``, ``g_idx``."""
        (rows, columns), scheme = spec.shape, affine_scheme(spec)
        groups, per_word = scheme.groups(columns), 32 // scheme.bits
        return {
            "qweight": PlainSpec((columns // per_word, rows), torch.int32),
            "qzeros": PlainSpec((groups, rows // per_word), torch.int32),
            "scales": PlainSpec((groups, rows), self.scale_dtype),
            "g_idx": PlainSpec((columns,), torch.int32),
        }

    def pack(self, weight: QuantizedWeight) -> Mapping[str, Tensor]:
        """Words of inputs down the columns, zero points less one along the rows."""
        affine = affine_weight(weight)
        bits, columns = affine.scheme.bits, affine.shape[1]
        groups = affine.scales.shape[1]
        return {
            "qweight": pack_bits(affine.codes, bits).t().contiguous(),
            "qzeros": pack_bits((affine.zero_points - 1).t().contiguous(), bits),
            "scales": affine.scales.t().contiguous(),
            "g_idx": torch.arange(columns, dtype=torch.int32) // (columns // groups),
        }

    def unpack(
        self, stored: Mapping[str, Tensor], spec: QuantizedSpec, start: int, stop: int
    ) -> AffineWeight:
        """Undo pack; a ``g_idx`` in another order than the inputs' is an ArtifactError."""
        (rows, columns), scheme = spec.shape, affine_scheme(spec)
        in_order = torch.arange(columns, dtype=torch.int32) // (columns // scheme.groups(columns))
        if not torch.equal(stored["g_idx"], in_order):
            raise ArtifactError("g_idx is not that of groups in order (desc_act=false).")
        zero_points = unpack_bits(stored["qzeros"], scheme.bits, rows).t()[start:stop] + 1
        words = stored["qweight"][:, start:stop].t().contiguous()
        return AffineWeight(
            scheme,
            unpack_bits(words, scheme.bits, columns),
            stored["scales"][:, start:stop].t().contiguous(),
            zero_points.contiguous(),
        )


@dataclass(frozen=True)
class Gptq(AffineFolder):
    """Exporter for ``quant_method: gptq``; AutoGPTQ's kernels take only float16."""

    name: ClassVar[str] = "gptq"
    without_towers: ClassVar[str] = "rkllm-toolkit imports text models"
    types: ClassVar[Container] = Container(torch.float16, torch.float16)
    packing: ClassVar[PackedLinear] = GptqLinear()
    bits: ClassVar[Sequence[int]] = BITS

    def limits(
        self, header: ArtifactHeader, schemes: Mapping[str, AffineScheme]
    ) -> list[GemquantError]:
        """Symmetric, one scheme for every decoder linear, sizes that fill words."""
        problems: list[GemquantError] = []
        if not all(scheme.symmetric for scheme in schemes.values()):
            problems.append(
                UnsupportedError(
                    f"{self.name} is written symmetric: rkllm-toolkit imports nothing else.",
                    hint="Use --symmetric, or the compressed-tensors container.",
                )
            )
        plain = plain_linears(header.layout)
        if len(set(schemes.values())) > 1 or (schemes and plain):
            problems.append(
                UnsupportedError(
                    f"{self.name} holds one scheme for every decoder linear; "
                    f"in floating point: {listed(plain) or 'none'}.",
                    hint="Leave --skip out, or use the compressed-tensors container.",
                )
            )
        shapes = {name: header.layout[name].shape for name in schemes}
        unfilled = [
            f"{module_of(name)} {shape}"
            for name, shape in shapes.items()
            if any(size % (32 // schemes[name].bits) for size in shape)
        ]
        if unfilled:
            problems.append(
                UnsupportedError(
                    f"{self.name} packs channels into words of 32 bits; not filled by: "
                    f"{listed(unfilled)}.",
                    hint="Use the compressed-tensors container.",
                )
            )
        return problems

    def quantization(self, layout: Layout) -> Mapping[str, Any]:
        """What AutoGPTQ, gptqmodel and transformers look up.

        ``desc_act`` false: inputs stay in order. Nothing here depends on ``damp_percent`` and
        ``true_sequential``, which AutoGPTQ's reader requires.
        """
        scheme = next(iter(affine_schemes(layout).values()), AffineScheme(8, 128, symmetric=True))
        return {
            "quant_method": "gptq",
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "sym": True,
            "desc_act": False,
            "static_groups": False,
            "damp_percent": 0.01,
            "true_sequential": True,
            "lm_head": False,
            "checkpoint_format": "gptq",
        }

    def scheme_of(
        self, quantization: Mapping[str, Any], _stored: SafetensorsFiles, module: str
    ) -> AffineScheme:
        """The one scheme of ``quantization_config``."""
        bits, size = quantization.get("bits"), quantization.get("group_size")
        fixed: dict[str, object] = {"quant_method": "gptq", "checkpoint_format": "gptq"}
        fixed |= {"sym": True, "desc_act": False}
        actual = {key: quantization.get(key) for key in fixed}
        if actual != fixed or bits not in BITS or not isinstance(size, int):
            raise ArtifactError(
                f"config.json: quantization_config of {module} is {dict(quantization)}, not GPTQ "
                "as gemquant writes it."
            )
        return AffineScheme(int(bits), size, symmetric=True)
