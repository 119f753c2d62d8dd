"""What of this installation works, what is missing, and the command that brings it.

A check is a function that returns findings; it imports nothing large and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gemquant.convert.doctor.devices import devices_present
from gemquant.convert.doctor.kernels import kernels_in_use
from gemquant.convert.doctor.packages import core_packages, optional_packages
from gemquant.core.finding import Finding

CHECKS: Sequence[Callable[[], Sequence[Finding]]] = (
    core_packages,
    kernels_in_use,
    optional_packages,
    devices_present,
)
"""Everything that is looked at, in the order of printing."""


def examine() -> list[Finding]:
    """Run every check."""
    return [finding for check in CHECKS for finding in check()]


__all__ = ["CHECKS", "Finding", "examine"]
