"""Quantizers that stand for several artifacts, and what a quantizer tells beyond its schemes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gemquant.core.protocols import Quantizer
from gemquant.core.recipe import Recipe


@runtime_checkable
class Family(Protocol):
    """Options that ask for several artifacts at once, or that mean nothing before the model."""

    def members(self, config: Mapping[str, Any]) -> Sequence[Member]:
        """Decide everything for a model; raises what is wrong with options and model together."""


@dataclass(frozen=True)
class Member:
    """One artifact of a family.

    label: names its folder. options: those that would ask for it alone. notes: what the user should
    know before it is made.
    """

    label: str
    quantizer: Quantizer
    options: Mapping[str, Any]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Substitution:
    """Weights that are not stored as asked, for one reason. stored, reason: in words."""

    names: Sequence[str]
    stored: str
    reason: str


@runtime_checkable
class Telling(Protocol):
    """A quantizer that has something to say of what it does, beyond each layer's scheme."""

    @property
    def substitutions(self) -> Sequence[Substitution]:
        """Weights that are not stored as asked."""

    def facts(self, recipe: Recipe) -> Mapping[str, str | int]:
        """What a container with room for it records, under that container's own keys."""
