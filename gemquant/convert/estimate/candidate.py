"""One way to store a model for a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from gemquant.models.architecture import tensor_shapes
from gemquant.models.structure import EMBEDDING


@dataclass(frozen=True)
class Candidate:
    """container, scheme: as commands name them. command: what makes it.

    file_bytes: of all weight files, exact or estimated as ``size`` says. resident_bytes: of weights
    in memory while it runs. token_bytes: read for every token. requires: versions of what converts
    it and of what runs it. conversion_bytes, conversion_seconds: estimates; None where not known.
    refused: why the container cannot hold this model so, and then there are no sizes.
    """

    container: str
    scheme: str
    command: str
    runtimes: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    file_bytes: int = 0
    resident_bytes: int = 0
    token_bytes: int = 0
    size: Literal["exact", "estimate"] = "exact"
    conversion_bytes: int | None = None
    conversion_seconds: float | None = None
    refused: str | None = None


def weight_count(config: Mapping[str, Any]) -> int:
    """Number of weights; a tied head counts once."""
    return sum(prod(shape) for shape in tensor_shapes(config).values())


def table_size(config: Mapping[str, Any]) -> int:
    """Values of the embedding."""
    return prod(tensor_shapes(config)[EMBEDDING])
