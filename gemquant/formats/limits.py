"""What containers cannot hold, said once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gemquant.core.protocols import QuantizedSpec
from gemquant.core.scheme import PER_CHANNEL, Scheme
from gemquant.errors import UnsupportedError
from gemquant.formats.packed_linear import module_of

_USUAL_GROUP_SIZES = (256, 128, 64, 32)


def listed(values: Sequence[object], limit: int = 12) -> str:
    """Join values for a message; what is beyond ``limit`` is counted."""
    rest = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(map(str, values[:limit])) + rest


def indivisible_inputs(quantized: Mapping[str, QuantizedSpec]) -> list[UnsupportedError]:
    """Name every layer whose input channels do not divide into groups, per group size."""
    bad: dict[int, dict[str, int]] = {}
    for name, spec in quantized.items():
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


def quantized_tables(
    quantized: Mapping[str, QuantizedSpec], refused: Sequence[str], container: str
) -> list[UnsupportedError]:
    """Refuse an embedding or head that the container's loaders cannot read quantized."""
    return [
        UnsupportedError(
            f"{container} cannot hold a quantized {module_of(name)}: its loaders read that table "
            "in floating point.",
            hint=f"Leave {module_of(name)} unquantized, as is the default.",
        )
        for name in refused
        if name in quantized
    ]


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
    schemes: Mapping[str, Scheme], offered: Sequence[int], container: str
) -> list[UnsupportedError]:
    """Refuse group sizes that a container's kernels do not have."""
    missing = sorted({scheme.group_size for scheme in schemes.values()} - set(offered))
    if not missing:
        return []
    words = ["one group per channel" if size == PER_CHANNEL else size for size in missing]
    return [
        UnsupportedError(
            f"{container} stores groups of {listed(offered)}; asked for {listed(words)}.",
            hint=f"Use --group-size {listed(offered)}, or another container.",
        )
    ]
