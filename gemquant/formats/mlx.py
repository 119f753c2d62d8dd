"""MLX's affine checkpoints: bfloat16, safetensors; read by mlx-lm and whatever builds on it.

Linears are stored as ``bias_linear`` describes, their biases under ``biases``. ``config.json`` says
group size and bits under ``quantization`` and, as mlx-lm writes it too, ``quantization_config``;
modules of another scheme are named there, and a module without ``scales`` is plain.

Source: mlx-lm 0.32 ``utils.py``, ``models/gemma*.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gemquant.core.protocols import (
    AffineScheme,
    ArtifactHeader,
    Container,
    Layout,
    QuantizedSpec,
)
from gemquant.errors import ArtifactError, GemquantError, UnsupportedError
from gemquant.formats.affine_layers import affine_schemes, other_kinds
from gemquant.formats.bias_linear import BiasLinear
from gemquant.formats.limits import (
    indivisible_inputs,
    missing_bits,
    missing_group_sizes,
)
from gemquant.formats.packed_folder import PackedFolder
from gemquant.formats.packed_linear import PackedLinear, module_of
from gemquant.formats.packed_weights import SchemeReader
from gemquant.formats.safetensors.mapped import MappedSafetensors
from gemquant.formats.transformers_config import runtime_config
from gemquant.models.architecture import architecture_of

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
LINEAR = BiasLinear("biases")


@dataclass(frozen=True)
class MLX(PackedFolder):
    """Exporter for MLX's affine mode; satisfies ``protocols.Exporter``."""

    name: ClassVar[str] = "mlx"
    packing: ClassVar[PackedLinear] = LINEAR

    def container(self, config: Mapping[str, Any]) -> Container:  # noqa: ARG002 (protocol)
        """bfloat16 throughout, as in MLX's own conversions of Gemma."""
        return Container(torch.bfloat16, torch.bfloat16, biases=True)

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:
        """Widths and group sizes that MLX has, a head that mlx-lm has, layers in its pattern."""
        quantized = {n: s for n, s in header.layout.items() if isinstance(s, QuantizedSpec)}
        affine = affine_schemes(header.layout)
        return [
            *other_kinds(header.layout, self.name),
            *missing_bits(affine, BITS, self.name),
            *missing_group_sizes(affine, GROUP_SIZES, self.name),
            *indivisible_inputs(quantized),
            *_unreadable(header.config),
        ]

    def config(self, header: ArtifactHeader) -> Mapping[str, Any]:
        """The model's own configuration, and how its layers are quantized, under two names."""
        quantization = quantization_config(header.layout)
        config = runtime_config(header.config, torch.bfloat16, quantization)
        return {**config, "quantization": quantization}

    @property
    def scheme_reader(self) -> SchemeReader:
        """Of this container."""
        return scheme_reader


def quantization_config(layout: Layout) -> dict[str, Any]:
    """Return what mlx-lm looks up: the commonest scheme for all, others module by module."""
    schemes = {
        module_of(name): (scheme.group_size, scheme.bits)
        for name, scheme in affine_schemes(layout).items()
    }
    ((common, _),) = Counter(schemes.values()).most_common(1) or [((64, 4), 0)]
    others = {module: scheme for module, scheme in schemes.items() if scheme != common}
    return {
        "group_size": common[0],
        "bits": common[1],
        "mode": "affine",
        **{module: {"group_size": size, "bits": bits} for module, (size, bits) in others.items()},
    }


def scheme_reader(
    quantization: Mapping[str, Any],
    _stored: MappedSafetensors,
    module: str,
) -> AffineScheme:
    """Return the scheme of a module from ``quantization_config``."""
    scheme = {**quantization, **_mapping(quantization.get(module))}
    bits, group_size = scheme.get("bits"), scheme.get("group_size")
    if scheme.get("mode") != "affine" or bits not in BITS or group_size not in GROUP_SIZES:
        raise ArtifactError(
            f"config.json: quantization_config of {module} is mode {scheme.get('mode')!r}, bits "
            f"{bits!r}, group_size {group_size!r}, not one of MLX's affine schemes."
        )
    return AffineScheme(bits, group_size, symmetric=False)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _unreadable(config: Mapping[str, Any]) -> list[GemquantError]:
    """Refuse what mlx-lm would load and compute wrongly."""
    problems: list[GemquantError] = []
    mlx = architecture_of(config).mlx
    if not config["tie_word_embeddings"] and not mlx.untied_head:
        problems.append(
            UnsupportedError(
                f"mlx-lm ties the head of a {config['model_type']} to its embedding; here it is "
                "untied.",
                hint="Leave out --quantize-head.",
            )
        )
    if mlx.regular_layer_types:
        older = runtime_config(config, torch.bfloat16, {})
        if "sliding_window_pattern" not in older:
            problems.append(
                UnsupportedError(
                    "mlx-lm lets every n-th layer attend to everything; layer_types of this model "
                    "are not regular.",
                    hint="Use another container.",
                )
            )
    return problems
