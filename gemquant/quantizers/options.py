"""Options that quantizers share: bits, group size, --skip; and the checks of their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Self

from gemquant.core.options import option
from gemquant.core.protocols import PER_CHANNEL, AffineScheme, GridShare, GridUse, Quantizer
from gemquant.errors import GemquantError, UnsupportedError, UsageError
from gemquant.models.architecture import kept_reason
from gemquant.models.structure import EMBEDDING, HEAD, PER_LAYER_TABLE
from gemquant.quantizers import qat as grids

BITS = (2, 3, 4, 6, 8)
GROUP_SIZES = (32, 64, 128, PER_CHANNEL)
_ON_GRID = "--group-size 32 --symmetric"


def patterns(skip: str) -> tuple[str, ...]:
    """Split a comma-separated list of module patterns."""
    return tuple(part.strip() for part in skip.split(",") if part.strip())


def is_skipped(name: str, skip: str) -> bool:
    """Whether a pattern matches this weight's module, or its architecture keeps it in 16 bits.

    >>> is_skipped("model.layers.0.mlp.down_proj.weight", "*.down_proj, layers.3.*")
    True
    >>> is_skipped("model.layers.3.mlp.up_proj.weight", "layers.3.*")
    True
    """
    module = name.removesuffix(".weight")
    short = module.removeprefix("model.")
    return kept_reason(name) is not None or any(
        fnmatchcase(module, pattern) or fnmatchcase(short, pattern) for pattern in patterns(skip)
    )


def unused_patterns(linears: Iterable[str], skip: str) -> list[GemquantError]:
    """One error for each pattern that matches no layer, probably a typing error."""
    names = list(linears)
    return [
        UsageError(
            f"--skip {pattern}: no linear layer has this name.",
            hint="Names look like layers.0.mlp.down_proj; * matches anything.",
        )
        for pattern in patterns(skip)
        if not any(is_skipped(name, pattern) for name in names)
    ]


def indivisible(
    linears: Mapping[str, tuple[int, int]], group_size: int, skip: str
) -> list[GemquantError]:
    """One error for each input width that the group size does not divide, naming its layers.

    linears: full weight name → (out, in).
    """
    if group_size == PER_CHANNEL:
        return []
    by_width: dict[int, list[str]] = {}
    for name, (_, columns) in linears.items():
        if not is_skipped(name, skip) and columns % group_size:
            by_width.setdefault(columns, []).append(name.removesuffix(".weight"))
    problems: list[GemquantError] = []
    for columns, names in by_width.items():
        divisors = [str(size) for size in GROUP_SIZES if size > 0 and columns % size == 0]
        counted = "1 layer" if len(names) == 1 else f"{len(names)} layers"
        choices = ", ".join([*divisors, f"{PER_CHANNEL} (per channel)"])
        problems.append(
            UnsupportedError(
                f"{columns} input channels are not a multiple of the group size {group_size}, in "
                f"{counted}: {', '.join(names)}.",
                hint=f"Use --group-size {choices}, or leave the layers out with --skip.",
            )
        )
    return problems


@dataclass(frozen=True)
class AffineOptions(Quantizer):
    """One affine scheme for every decoder linear; for the head and the embedding on request."""

    bits: int = option(4, "Bits per weight.", choices=BITS)
    group_size: int = option(
        128, "Input channels that share one scale; -1 for a whole channel.", choices=GROUP_SIZES
    )
    symmetric: bool = option(False, "Fix the zero point at the middle instead of storing one.")
    skip: str = option("", "Layers to leave in floating point: comma-separated patterns.")
    quantize_head: bool = option(False, "Quantize the head too, untied from the embedding.")
    quantize_embedding: bool = option(
        False,
        "Quantize the embedding too, and with it a head that is tied to it; a per-layer one to 8 "
        "bits (mlx).",
    )
    qat: str = option("auto", grids.HELP, choices=grids.CHOICES)

    found: GridUse = field(default_factory=GridUse)

    @property
    def scheme(self) -> AffineScheme:
        """The one scheme."""
        return AffineScheme(self.bits, self.group_size, self.symmetric)

    def scheme_for(self, name: str, shape: tuple[int, int]) -> AffineScheme | None:
        """The scheme, or None for a skipped layer and an unrequested vocabulary matrix.

        A per-layer embedding has 8 bits: with 4, models were reported to write garbage.
        """
        if name == PER_LAYER_TABLE and self.quantize_embedding:
            return AffineScheme(8, 64 if shape[1] % 64 == 0 else 32, self.symmetric)
        optional = {EMBEDDING: self.quantize_embedding, HEAD: self.quantize_head}
        if not optional.get(name, True) or is_skipped(name, self.skip):
            return None
        return self.scheme

    def with_grids(self, survey: grids.Survey) -> Self:
        """Carry over matrices on a grid of this group size; UsageError where --qat on cannot."""
        use = grids.grid_use(
            self.qat, survey, holds=self._holds, wanted=self._wants, instead=_ON_GRID
        )
        return replace(self, found=use)

    @property
    def grid_use(self) -> GridUse:
        """What lies on a 4-bit grid, and what of it is carried over."""
        return self.found

    @property
    def notes(self) -> Sequence[str]:
        """What is carried over, or could be."""
        return grids.use_notes(self.found, self._wants, _ON_GRID)

    def _wants(self, name: str, share: GridShare) -> bool:
        return self.scheme_for(name, share.shape) is not None

    def _holds(self, name: str, share: GridShare) -> bool:
        scheme = self.scheme_for(name, share.shape)
        return scheme is not None and scheme.bits >= 4 and scheme.group_size in share.group_sizes

    def problems(self, linears: Mapping[str, tuple[int, int]]) -> list[GemquantError]:
        """Layers that the group size does not divide; patterns that match nothing."""
        return [
            *indivisible(linears, self.group_size, self.skip),
            *unused_patterns(linears, self.skip),
        ]
