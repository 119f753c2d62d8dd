"""Containers of integer codes with scales: what their exporters share, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from gemquant.core.protocols import (
    PER_CHANNEL,
    AffineScheme,
    AffineWeight,
    ArtifactHeader,
    Layout,
    QuantizedSpec,
    QuantizedWeight,
)
from gemquant.core.scheme import Scheme, describe
from gemquant.errors import GemquantError, UnsupportedError, listed
from gemquant.formats.packed import PackedFolder
from gemquant.formats.packed_weights import module_of

_USUAL_GROUP_SIZES = (256, 128, 64, 32)


@dataclass(frozen=True)
class AffineFolder(PackedFolder):
    """A container of affine weights.

    bits: widths that it stores. group_sizes: those that its kernels have; None for any.
    """

    bits: ClassVar[Sequence[int]]
    group_sizes: ClassVar[Sequence[int] | None] = None

    def problems(self, header: ArtifactHeader) -> list[GemquantError]:
        """Kinds of weights, matrices, widths and group sizes that the container lacks."""
        layout, schemes = header.layout, affine_schemes(header.layout)
        return [
            *other_kinds(layout, self.name),
            *super().problems(header),
            *missing_bits(schemes, self.bits, self.name),
            *missing_group_sizes(schemes, self.group_sizes, self.name),
            *indivisible_inputs(layout),
            *self.limits(header, schemes),
        ]

    def limits(
        self,
        header: ArtifactHeader,  # noqa: ARG002
        schemes: Mapping[str, AffineScheme],  # noqa: ARG002
    ) -> list[GemquantError]:
        """Further problems, of this container alone. schemes: of affine weights, by name."""
        return []


@dataclass(frozen=True)
class AffineLinear:
    """Base of a ``PackedLinear`` of affine weights.

    biased: the container stores biases, so that zero points may be any float32. by_rows: of
    ``PackedLinear``.
    """

    scale_dtype: torch.dtype
    biased: ClassVar[bool] = False
    by_rows: ClassVar[bool] = False

    def check(self, name: str, weight: QuantizedWeight, spec: QuantizedSpec) -> None:
        """Refuse a weight that is not as announced, or would not survive packing."""
        scheme, affine = affine_scheme(spec), affine_weight(weight)
        groups = (spec.shape[0], scheme.groups(spec.shape[1]))
        whole = not self.biased or affine.zero_points.dtype != torch.float32
        zero_dtype = torch.uint8 if whole else torch.float32
        expected = (scheme, spec.shape, groups, groups, torch.uint8, zero_dtype, self.scale_dtype)
        actual = (
            affine.scheme,
            affine.shape,
            tuple(affine.scales.shape),
            tuple(affine.zero_points.shape),
            affine.codes.dtype,
            affine.zero_points.dtype,
            affine.scales.dtype,
        )
        if actual != expected:
            raise ValueError(f"{name} came as {actual}, announced as {expected}.")
        limit = 2**scheme.bits
        if int(affine.codes.max()) >= limit or (whole and int(affine.zero_points.max()) >= limit):
            raise ValueError(f"{name} has codes or zero points that do not fit {scheme.bits} bits.")
        if scheme.symmetric and not bool((affine.zero_points == limit // 2).all()):
            raise ValueError(f"{name} is symmetric, but has zero points other than {limit // 2}.")
        if not torch.isfinite(affine.scales).all():
            raise UnsupportedError(
                f"{name} has scales beyond {self.scale_dtype}.",
                hint="Use a container in bfloat16, such as compressed-tensors.",
            )


def affine_scheme(spec: QuantizedSpec) -> AffineScheme:
    """Return a layer's scheme; TypeError for a kind that ``other_kinds`` refuses."""
    if not isinstance(spec.scheme, AffineScheme):
        raise TypeError(f"{spec.scheme} is not affine.")
    return spec.scheme


def affine_weight(weight: QuantizedWeight) -> AffineWeight:
    """Return the weight as an affine one; TypeError for another kind."""
    if not isinstance(weight, AffineWeight):
        raise TypeError(f"{type(weight).__name__} is not an affine weight.")
    return weight


def affine_schemes(layout: Layout) -> dict[str, AffineScheme]:
    """Scheme of every layer stored as integer codes, by the weight's name."""
    return {
        name: spec.scheme
        for name, spec in layout.items()
        if isinstance(spec, QuantizedSpec) and isinstance(spec.scheme, AffineScheme)
    }


def other_kinds(layout: Layout, container: str) -> list[UnsupportedError]:
    """Refuse what is not integer codes with scales, once for each scheme."""
    layers: dict[str, list[str]] = {}
    for name, spec in layout.items():
        if isinstance(spec, QuantizedSpec) and not isinstance(spec.scheme, AffineScheme):
            layers.setdefault(describe(spec.scheme), []).append(module_of(name))
    return [
        UnsupportedError(
            f"{container} stores integer codes; asked for {words} in {listed(names, 3)}.",
            hint="Leave --exporter out: the target chooses a container that holds it.",
        )
        for words, names in layers.items()
    ]


def indivisible_inputs(layout: Layout) -> list[UnsupportedError]:
    """Name every layer whose input channels do not divide into groups, per group size."""
    bad: dict[int, dict[str, int]] = {}
    for name, spec in layout.items():
        if not isinstance(spec, QuantizedSpec):
            continue
        size, columns = spec.scheme.group_size, spec.shape[1]
        if size != PER_CHANNEL and columns % size:
            bad.setdefault(size, {})[module_of(name)] = columns
    problems = []
    for size, layers in bad.items():
        layers_listed = listed([f"{module} ({columns})" for module, columns in layers.items()])
        fits = [n for n in _USUAL_GROUP_SIZES if all(c % n == 0 for c in layers.values())]
        problems.append(
            UnsupportedError(
                f"Group size {size} does not divide the input channels of {layers_listed}.",
                hint=f"These would fit: {listed([*fits, 'one group per channel'])}.",
            )
        )
    return problems


def missing_bits(
    schemes: Mapping[str, Scheme], offered: Sequence[int], container: str
) -> list[UnsupportedError]:
    """Refuse widths that a container's kernels do not have."""
    missing = sorted({scheme.bits for scheme in schemes.values()} - set(offered))
    if not missing:
        return []
    return [
        UnsupportedError(
            f"{container} stores {listed(offered)} bits; asked for {listed(missing)}.",
            hint=f"Use --bits {listed(offered)}, or another container.",
        )
    ]


def missing_group_sizes(
    schemes: Mapping[str, Scheme], offered: Sequence[int] | None, container: str
) -> list[UnsupportedError]:
    """Refuse group sizes that a container's kernels do not have."""
    missing = sorted({scheme.group_size for scheme in schemes.values()} - set(offered or ()))
    if offered is None or not missing:
        return []
    words = ["one group per channel" if size == PER_CHANNEL else size for size in missing]
    return [
        UnsupportedError(
            f"{container} stores groups of {listed(offered)}; asked for {listed(words)}.",
            hint=f"Use --group-size {listed(offered)}, or another container.",
        )
    ]
