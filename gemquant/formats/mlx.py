"""MLX's affine checkpoints: bfloat16, safetensors; read by mlx-lm and programs built on it.

``config.json`` holds group size and bits under ``quantization`` and, as mlx-lm writes it too,
``quantization_config``; modules of another scheme are named there, and a module without ``scales``
is plain.

Sources: mlx-lm 0.32 ``utils.py``, ``models/gemma*.py``; the output of ``mlx.core.quantize`` (mlx
0.32), with which tests compare every width.
"""

from __future__ import annotations

from collections import Counter
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
from gemquant.formats.packed_weights import PackedLinear, module_of
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.formats.transformers_config import runtime_config
from gemquant.models.architecture import architecture_of
from gemquant.models.experts import expert_number
from gemquant.models.structure import EMBEDDING
from gemquant.numerics.mlx_affine import biases_of, zero_points_of
from gemquant.numerics.packing import pack_bits, packed_width, unpack_bits

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class BiasLinear(AffineLinear):
    """One linear as w = scale · code + bias; satisfies ``PackedLinear``.

    A Linear(in, out) becomes ``weight`` uint32 (out, in · bits / 32), codes low bits first without
    gaps at any width, and ``scales`` and biases (out, in / group_size) in the model's type.
    biases: the container's name for them.
    """

    scale_dtype: torch.dtype = torch.bfloat16
    biased: ClassVar[bool] = True
    by_rows: ClassVar[bool] = True
    biases: str = "biases"

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
        """Refuse a weight that is not as announced.

        UnsupportedError for whole zero points that were not chosen as biases: a bias would be
        rounded once more, after the codes were chosen.
        """
        super().check(name, weight, spec)
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


@dataclass(frozen=True)
class MLX(AffineFolder):
    """Exporter for MLX's affine mode: bfloat16, as in MLX's own conversions of Gemma."""

    name: ClassVar[str] = "mlx"
    types: ClassVar[Container] = Container(torch.bfloat16, torch.bfloat16, biases=True)
    packing: ClassVar[PackedLinear] = BiasLinear()
    holds_towers: ClassVar[bool] = True
    plain: ClassVar[tuple[str, ...]] = ()
    bits: ClassVar[Sequence[int]] = BITS
    group_sizes: ClassVar[Sequence[int]] = GROUP_SIZES

    def limits(
        self,
        header: ArtifactHeader,
        schemes: Mapping[str, AffineScheme],  # noqa: ARG002
    ) -> list[GemquantError]:
        """Refuse what mlx-lm would load and compute wrongly."""
        return [*_unreadable(header), *self._divided(header.layout)]

    def whole_name(self, config: Mapping[str, Any], name: str) -> str:  # noqa: ARG002
        """As mlx-vlm and mlx-lm name it."""
        return f"language_model.{name}"

    def whole_module(self, module: str) -> str:
        """The same of a module; other keys stay."""
        return f"language_model.{module}" if module.startswith(("model.", "lm_head")) else module

    def tower_name(self, name: str) -> str:
        """As mlx-vlm names it."""
        return name.removeprefix("model.")

    def channels_last(self, name: str) -> bool:
        """Weights of convolutions."""
        return name.endswith(("patch_embedding.weight", ".conv.weight", "_conv1d.weight"))

    def joined(self, module: str) -> tuple[str, int | None]:
        """The experts of a layer are one module with three dimensions."""
        number = expert_number(module)
        return module.replace(f"experts.{number}.", "experts.switch_glu."), number

    def _divided(self, layout: Layout) -> list[GemquantError]:
        """Refuse a layer whose experts are not all stored alike."""
        kinds: dict[str, set[object]] = {}
        for name, spec in layout.items():
            module, number = self.joined(module_of(name))
            if number is not None:
                scheme = spec.scheme if isinstance(spec, QuantizedSpec) else None
                kinds.setdefault(module.rpartition(".")[0], set()).add(scheme)
        mixed = [module for module, schemes in kinds.items() if len(schemes) > 1]
        if not mixed:
            return []
        return [
            UnsupportedError(
                f"{listed(mixed, 3)}: mlx-lm has one scheme for all experts of a layer.",
                hint="Quantize all of them, or leave out all with --skip '*.experts.*'.",
            )
        ]

    def config(self, header: ArtifactHeader) -> Mapping[str, Any]:
        """``config.json``, with the keys that mlx-lm looks up."""
        config, facts = super().config(header), architecture_of(header.config).mlx
        config = {**config, "quantization": config["quantization_config"]}
        if not header.towers:
            return {**config, **facts.keys}
        config["vocab_size"] = header.config["vocab_size"]  # where mlx-lm looks for it
        for part, keys in facts.whole_keys(config, header.config).items():
            config |= {part: {**config[part], **keys}} if part else keys
        return config

    def quantization(self, layout: Layout) -> Mapping[str, Any]:
        """What mlx-lm looks up: the commonest scheme for all, others module by module."""
        schemes = {
            self.joined(module_of(name))[0]: (scheme.group_size, scheme.bits)
            for name, scheme in affine_schemes(layout).items()
        }
        ((common, _),) = Counter(schemes.values()).most_common(1) or [((64, 4), 0)]
        others = {module: scheme for module, scheme in schemes.items() if scheme != common}
        return {
            "group_size": common[0],
            "bits": common[1],
            "mode": "affine",
            **{
                module: {"group_size": size, "bits": bits}
                for module, (size, bits) in others.items()
            },
        }

    def scheme_of(
        self, quantization: Mapping[str, Any], _stored: SafetensorsFiles, module: str
    ) -> AffineScheme:
        """The module's scheme, or the one for all."""
        scheme = {**quantization, **_mapping(quantization.get(module))}
        bits, group_size = scheme.get("bits"), scheme.get("group_size")
        if scheme.get("mode") != "affine" or bits not in BITS or group_size not in GROUP_SIZES:
            raise ArtifactError(
                f"config.json: quantization_config of {module} is mode {scheme.get('mode')!r}, "
                f"bits {bits!r}, group_size {group_size!r}, not one of MLX's affine schemes."
            )
        return AffineScheme(bits, group_size, symmetric=False)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _unreadable(header: ArtifactHeader) -> list[GemquantError]:
    """Refuse what mlx-lm would load and compute wrongly, or mlx-vlm not at all."""
    config, problems = header.config, list[GemquantError]()
    mlx = architecture_of(config).mlx
    own = not config["tie_word_embeddings"] or isinstance(header.layout[EMBEDDING], QuantizedSpec)
    if header.towers and own and not mlx.whole_head:
        problems.append(
            UnsupportedError(
                f"mlx-vlm copies the head of a multimodal {architecture_of(config).name} from its "
                "embedding, and reads neither a head of its own nor a quantized embedding.",
                hint="Leave out --quantize-embedding and --quantize-head, or take the text model "
                "alone: --text-only",
            )
        )
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
