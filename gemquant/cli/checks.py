"""What is wrong with values on the command line, where several commands have the rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemquant.errors import GemquantError, UsageError

DEVICES = ("cpu", "cuda", "mps")


def too_small(given: Mapping[str, Any], smallest: Mapping[str, int]) -> list[GemquantError]:
    """Numbers below what their option allows, by the option's name."""
    return [
        UsageError(f"--{name.replace('_', '-')} {given[name]}: must be at least {least}.")
        for name, least in smallest.items()
        if given[name] is not None and given[name] < least
    ]


def unknown_place(given: Mapping[str, Any], dtypes: Sequence[str]) -> list[GemquantError]:
    """``--device`` and ``--dtype`` that are none of those that there are."""
    problems: list[GemquantError] = []
    if given["device"] and given["device"].partition(":")[0] not in DEVICES:
        problems.append(
            UsageError(f"--device {given['device']}: must be one of {', '.join(DEVICES)}.")
        )
    if given["dtype"] not in {None, *dtypes}:
        problems.append(
            UsageError(f"--dtype {given['dtype']}: must be one of {', '.join(dtypes)}.")
        )
    return problems
