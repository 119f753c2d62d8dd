"""compressed-tensors ``pack-quantized``: bfloat16 scales, any width to 8 bits, safetensors.

The tensors of a linear are described in ``checkpoint/pack_quantized.py``, which reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gemquant.core.protocols import (
    PER_CHANNEL,
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
from gemquant.formats.affine import (
    AffineFolder,
    AffineLinear,
    affine_scheme,
    affine_schemes,
    affine_weight,
)
from gemquant.formats.checkpoint.pack_quantized import (
    FORMAT,
    PACKED,
    SCALE,
    SHAPE,
    ZERO_POINT,
    group_scheme,
    stored_shapes,
    unpacked,
)
from gemquant.formats.packed import plain_linears
from gemquant.formats.packed_weights import PackedLinear, module_of
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.models.experts import has_experts
from gemquant.models.structure import EMBEDDING, HEAD, PER_LAYER_TABLE
from gemquant.numerics.packing import pack_bits, unpack_bits


@dataclass(frozen=True)
class PackQuantizedLinear(AffineLinear):
    """The tensors of one linear; satisfies ``PackedLinear``."""

    scale_dtype: torch.dtype = torch.bfloat16

    def specs(self, spec: QuantizedSpec) -> Mapping[str, PlainSpec]:
        """``weight_zero_point`` only where the scheme is not symmetric."""
        types = {PACKED: torch.int32, SCALE: self.scale_dtype, SHAPE: torch.int64}
        shapes = stored_shapes(affine_scheme(spec), spec.shape)
        return {n: PlainSpec(shape, types.get(n, torch.int32)) for n, shape in shapes.items()}

    def pack(self, weight: QuantizedWeight) -> Mapping[str, Tensor]:
        """Codes along the rows, zero points down the columns."""
        affine = affine_weight(weight)
        bits = affine.scheme.bits
        stored = {
            PACKED: pack_bits(affine.codes, bits),
            SCALE: affine.scales,
            SHAPE: torch.tensor(affine.shape, dtype=torch.int64),
        }
        if not affine.scheme.symmetric:
            stored[ZERO_POINT] = pack_bits(affine.zero_points.t(), bits).t().contiguous()
        return stored

    def unpack(
        self, stored: Mapping[str, Tensor], spec: QuantizedSpec, start: int, stop: int
    ) -> AffineWeight:
        """Undo pack; a stored shape that contradicts the model's is an ArtifactError."""
        (rows, columns), scheme = spec.shape, affine_scheme(spec)
        if (shape := stored[SHAPE].tolist()) != [rows, columns]:
            raise ArtifactError(f"{SHAPE} is {shape}, the model {[rows, columns]}.")
        zero_points = None
        if not scheme.symmetric:
            packed = stored[ZERO_POINT].t()
            zero_points = unpack_bits(packed, scheme.bits, rows).t()[start:stop].contiguous()
        codes, scales = stored[PACKED][start:stop], stored[SCALE][start:stop]
        return unpacked(scheme, columns, codes, scales, zero_points)


@dataclass(frozen=True)
class CompressedTensors(AffineFolder):
    """Exporter for ``quant_method: compressed-tensors``, in Gemma's own bfloat16.

    An untied ``lm_head`` may be quantized, the embedding not: neither vLLM nor transformers ties a
    head to packed rows.
    """

    name: ClassVar[str] = "compressed-tensors"
    types: ClassVar[Container] = Container(torch.bfloat16, torch.bfloat16)
    packing: ClassVar[PackedLinear] = PackQuantizedLinear()
    plain: ClassVar[tuple[str, ...]] = (EMBEDDING, PER_LAYER_TABLE)
    holds_towers: ClassVar[bool] = True
    holds_embeddings: ClassVar[bool] = True
    skipped: ClassVar[str] = "ignore"
    tower_patterns: ClassVar[Sequence[str]] = ("re:.*{}.*",)
    bits: ClassVar[Sequence[int]] = range(1, 9)

    def limits(
        self,
        header: ArtifactHeader,  # noqa: ARG002
        schemes: Mapping[str, AffineScheme],
    ) -> list[GemquantError]:
        """Experts without zero points: vLLM, which alone reads quantized ones, has no others."""
        if not has_experts(name for name, scheme in schemes.items() if not scheme.symmetric):
            return []
        return [
            UnsupportedError(
                "vLLM reads no experts with zero points, and transformers no quantized experts.",
                hint="Use --symmetric, or leave them in bfloat16: --skip '*.experts.*'",
            )
        ]

    def quantization(self, layout: Layout) -> Mapping[str, Any]:
        """The library's configuration: one group per scheme, plain linears ignored.

        One scheme targets every Linear by class; several name their modules one by one.
        """
        modules: dict[AffineScheme, list[str]] = {}
        for name, scheme in affine_schemes(layout).items():
            modules.setdefault(scheme, []).append(module_of(name))
        head = isinstance(layout.get(HEAD), QuantizedSpec)
        # vLLM's class of a head is not Linear: it takes a scheme by its name only.
        every = ["Linear", "lm_head"] if head else ["Linear"]
        groups = {
            f"group_{n}": {
                "targets": every if len(modules) == 1 else _with_absent(names, layout),
                "weights": _weights_config(scheme),
                "input_activations": None,
                "output_activations": None,
                "format": FORMAT,
            }
            for n, (scheme, names) in enumerate(modules.items())
        }
        config: dict[str, Any] = {
            "quant_method": "compressed-tensors",
            "format": FORMAT,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": [
                *([] if head else ["lm_head"]),
                *_with_absent(plain_linears(layout), layout),
            ],
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
            "version": "0.20.0",
        }
        if len(modules) == 1 and not next(iter(modules)).symmetric:
            # transformers 5.23 expects an unpacked zero point and refuses the packed one; with this
            # key, which only transformers reads, it decodes while loading.
            config["dequantize"] = True
        return config

    def scheme_of(
        self, quantization: Mapping[str, Any], _stored: SafetensorsFiles, module: str
    ) -> AffineScheme:
        """The scheme of the group that covers the module."""
        try:
            for group in quantization["config_groups"].values():
                if module in group["targets"] or "Linear" in group["targets"]:
                    return group_scheme(group["weights"])
        except (AttributeError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"config.json: quantization_config is not that of compressed-tensors: {error}."
            ) from error
        raise ArtifactError(f"config.json: no group of quantization_config covers {module}.")


def _with_absent(modules: Iterable[str], layout: Layout) -> list[str]:
    """Add the k_proj and v_proj that a layer does not have, next to its q_proj.

    Layers of Gemma 4 read keys or values elsewhere; vLLM's one matrix for q, k and v asks for the
    scheme of all three there too.
    """
    names: list[str] = []
    for module in modules:
        names.append(module)
        layer, _, kind = module.rpartition(".")
        absent = [f"{layer}.{part}" for part in ("k_proj", "v_proj")] if kind == "q_proj" else []
        names += [each for each in absent if f"{each}.weight" not in layout]
    return names


def _weights_config(scheme: AffineScheme) -> dict[str, Any]:
    per_channel = scheme.group_size == PER_CHANNEL
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if per_channel else "group",
        "group_size": None if per_channel else scheme.group_size,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": None,
        "observer_kwargs": {},
    }
