"""compressed-tensors ``pack-quantized``: bfloat16 scales, any width to 8 bits, safetensors.

A Linear(in, out) becomes ``weight_packed`` int32 (out, ceil(in · bits / 32)), ``weight_scale``
(out, groups), ``weight_shape`` int64 (2) and, unless symmetric, ``weight_zero_point`` int32
(ceil(out · bits / 32), groups), packed down the rows. The library subtracts 2**(bits − 1) from
codes and zero points when it unpacks both, so the unsigned ones are stored as they are.

Source: compressed-tensors 0.20 ``compressors/pack_quantized/``.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from gemquant.numerics.packing import pack_bits, packed_width, unpack_bits


@dataclass(frozen=True)
class PackQuantizedLinear:
    """The tensors of one linear; satisfies ``PackedLinear``."""

    scale_dtype: torch.dtype = torch.bfloat16

    def specs(self, spec: QuantizedSpec) -> Mapping[str, PlainSpec]:
        """``weight_zero_point`` only where the scheme is not symmetric."""
        (rows, columns), scheme = spec.shape, affine_scheme(spec)
        bits, groups = scheme.bits, scheme.groups(columns)
        stored = {
            "weight_packed": PlainSpec((rows, packed_width(columns, bits)), torch.int32),
            "weight_scale": PlainSpec((rows, groups), self.scale_dtype),
            "weight_shape": PlainSpec((2,), torch.int64),
        }
        if not scheme.symmetric:
            words = packed_width(rows, bits)
            stored["weight_zero_point"] = PlainSpec((words, groups), torch.int32)
        return stored

    def check(self, name: str, weight: QuantizedWeight, spec: QuantizedSpec) -> None:
        """Refuse a weight that is not what was announced."""
        check_affine(name, weight, spec, self.scale_dtype)

    def pack(self, weight: QuantizedWeight) -> Mapping[str, Tensor]:
        """Codes along the rows, zero points down the columns."""
        affine = affine_weight(weight)
        bits = affine.scheme.bits
        stored = {
            "weight_packed": pack_bits(affine.codes, bits),
            "weight_scale": affine.scales,
            "weight_shape": torch.tensor(affine.shape, dtype=torch.int64),
        }
        if not affine.scheme.symmetric:
            zero_points = pack_bits(affine.zero_points.t(), bits)
            stored["weight_zero_point"] = zero_points.t().contiguous()
        return stored

    def unpack(
        self, stored: Mapping[str, Tensor], spec: QuantizedSpec, start: int, stop: int
    ) -> AffineWeight:
        """Undo pack; a stored shape that contradicts the model's is an ArtifactError."""
        (rows, columns), scheme = spec.shape, affine_scheme(spec)
        bits = scheme.bits
        if stored["weight_shape"].tolist() != [rows, columns]:
            raise ArtifactError(
                f"weight_shape says {stored['weight_shape'].tolist()}, the model {[rows, columns]}."
            )
        codes = unpack_bits(stored["weight_packed"][start:stop], bits, columns)
        scales = stored["weight_scale"][start:stop]
        if scheme.symmetric:
            zero_points = torch.full(scales.shape, 2 ** (bits - 1), dtype=torch.uint8)
        else:
            packed = stored["weight_zero_point"].t()
            zero_points = unpack_bits(packed, bits, rows).t()[start:stop].contiguous()
        return AffineWeight(scheme, codes, scales, zero_points)


@dataclass(frozen=True)
class CompressedTensors(PackedFolder):
    """Exporter for ``quant_method: compressed-tensors``; satisfies ``protocols.Exporter``."""

    name: ClassVar[str] = "compressed-tensors"
    packing: ClassVar[PackedLinear] = PackQuantizedLinear()

    def container(self, config: Mapping[str, Any]) -> Container:  # noqa: ARG002 (protocol)
        """bfloat16 throughout: Gemma's own type, and the one that Gemma 3 needs."""
        return Container(scale_dtype=torch.bfloat16, float_dtype=torch.bfloat16)

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:
        """Widths to 8 bits, inputs divisible, the embedding in floating point.

        An untied ``lm_head`` may be quantized. The embedding may not: vLLM has no packed
        embedding, and transformers ties it to a head that has no ``weight`` to share.
        """
        quantized = {n: s for n, s in header.layout.items() if isinstance(s, QuantizedSpec)}
        problems: list[GemquantError] = [
            *other_kinds(header.layout, self.name),
            *quantized_tables(quantized, (EMBEDDING,), self.name),
            *indivisible_inputs(quantized),
        ]
        schemes = affine_schemes(header.layout).values()
        bits = sorted({scheme.bits for scheme in schemes} - set(range(1, 9)))
        if bits:
            problems.append(
                UnsupportedError(f"{self.name} stores 1 to 8 bits; asked for {listed(bits)}.")
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
    """Return the library's configuration: one group per scheme, plain linears ignored.

    One scheme targets every Linear by class; several name their modules one by one.
    """
    modules: dict[AffineScheme, list[str]] = {}
    for name, scheme in affine_schemes(layout).items():
        modules.setdefault(scheme, []).append(module_of(name))
    plain = plain_linears(layout)
    head = [] if isinstance(layout.get(HEAD), QuantizedSpec) else ["lm_head"]
    groups = {
        f"group_{n}": {
            "targets": ["Linear"] if len(modules) == 1 else names,
            "weights": _weights_config(scheme),
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
        for n, (scheme, names) in enumerate(modules.items())
    }
    config: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [*head, *plain],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "version": "0.20.0",
    }
    if len(modules) == 1 and not next(iter(modules)).symmetric:
        # transformers 5.23 makes room for an unpacked zero point and refuses the packed one; this
        # key, which only transformers reads, takes its other way: decode while loading.
        config["dequantize"] = True
    return config


def scheme_reader(
    quantization: Mapping[str, Any], _stored: MappedSafetensors, module: str
) -> AffineScheme:
    """Return the scheme of a module from ``quantization_config``."""
    try:
        for group in quantization["config_groups"].values():
            if module in group["targets"] or group["targets"] == ["Linear"]:
                weights = group["weights"]
                size = weights["group_size"] if weights["strategy"] == "group" else PER_CHANNEL
                return AffineScheme(weights["num_bits"], size, weights["symmetric"])
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"config.json: quantization_config is not that of compressed-tensors: {error}."
        ) from error
    raise ArtifactError(f"config.json: no group of quantization_config covers {module}.")


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
