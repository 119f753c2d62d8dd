"""What containers of integer codes share: they hold affine weights and refuse other kinds."""

from __future__ import annotations

import torch

from gemquant.core.protocols import (
    AffineScheme,
    AffineWeight,
    Layout,
    PlainSpec,
    QuantizedSpec,
    QuantizedWeight,
)
from gemquant.core.scheme import describe
from gemquant.errors import UnsupportedError
from gemquant.formats.limits import listed
from gemquant.formats.packed_linear import module_of
from gemquant.models.structure import EMBEDDING, HEAD


def affine_scheme(spec: QuantizedSpec) -> AffineScheme:
    """Return a layer's scheme; TypeError for a kind that ``other_kinds`` would have refused."""
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


def plain_linears(layout: Layout) -> list[str]:
    """Modules of the decoder's linears that stay in floating point."""
    return [
        module_of(name)
        for name, spec in layout.items()
        if isinstance(spec, PlainSpec) and len(spec.shape) == 2 and name not in (EMBEDDING, HEAD)
    ]


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


def check_affine(
    name: str,
    weight: QuantizedWeight,
    spec: QuantizedSpec,
    scale_dtype: torch.dtype,
    *,
    biased: bool = False,
) -> None:
    """Refuse a weight that is not what was announced, or would not survive packing.

    biased: the container stores biases, so that zero points may be float32 and anything.
    """
    scheme, affine = affine_scheme(spec), affine_weight(weight)
    groups = (spec.shape[0], scheme.groups(spec.shape[1]))
    whole = not biased or affine.zero_points.dtype != torch.float32
    zero_dtype = torch.uint8 if whole else torch.float32
    expected = (scheme, spec.shape, groups, groups, torch.uint8, zero_dtype, scale_dtype)
    found = (
        affine.scheme,
        affine.shape,
        tuple(affine.scales.shape),
        tuple(affine.zero_points.shape),
        affine.codes.dtype,
        affine.zero_points.dtype,
        affine.scales.dtype,
    )
    if found != expected:
        raise ValueError(f"{name} came as {found}, announced as {expected}.")
    limit = 2**scheme.bits
    if int(affine.codes.max()) >= limit or (whole and int(affine.zero_points.max()) >= limit):
        raise ValueError(f"{name} has codes or zero points that do not fit {scheme.bits} bits.")
    if scheme.symmetric and not bool((affine.zero_points == limit // 2).all()):
        raise ValueError(f"{name} is symmetric, but has zero points other than {limit // 2}.")
    if not torch.isfinite(affine.scales).all():
        raise UnsupportedError(
            f"{name} has scales beyond {scale_dtype}.",
            hint="Use a container in bfloat16, such as compressed-tensors.",
        )
