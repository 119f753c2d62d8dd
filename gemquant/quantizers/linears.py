"""Rules that all quantizers of linear layers share: what is left out, what divides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from gemquant.core.protocols import PER_CHANNEL
from gemquant.errors import GemquantError, UnsupportedError, UsageError

BITS = (2, 3, 4, 6, 8)
GROUP_SIZES = (32, 64, 128, PER_CHANNEL)


def patterns(skip: str) -> tuple[str, ...]:
    """Split a comma-separated list of module patterns."""
    return tuple(part.strip() for part in skip.split(",") if part.strip())


def is_skipped(name: str, skip: str) -> bool:
    """Whether a pattern names this weight's module.

    >>> is_skipped("model.layers.0.mlp.down_proj.weight", "*.down_proj, layers.3.*")
    True
    >>> is_skipped("model.layers.3.mlp.up_proj.weight", "layers.3.*")
    True
    """
    module = name.removesuffix(".weight")
    short = module.removeprefix("model.")
    return any(
        fnmatchcase(module, pattern) or fnmatchcase(short, pattern) for pattern in patterns(skip)
    )


def unused_patterns(linears: Iterable[str], skip: str) -> list[GemquantError]:
    """One error for each pattern that names no layer: a typing mistake, most likely."""
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
        fits = [str(size) for size in GROUP_SIZES if size > 0 and columns % size == 0]
        counted = "1 layer" if len(names) == 1 else f"{len(names)} layers"
        choices = ", ".join([*fits, f"{PER_CHANNEL} (per channel)"])
        problems.append(
            UnsupportedError(
                f"{columns} input channels are not a multiple of the group size {group_size}, in "
                f"{counted}: {', '.join(names)}.",
                hint=f"Use --group-size {choices}, or leave the layers out with --skip.",
            )
        )
    return problems
