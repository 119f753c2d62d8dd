"""What one file of calib_data is made of, and under which licence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from documents import Document
from packages import Package


@dataclass(frozen=True)
class Entry:
    """One file of calib_data.

    path: what was read within the package. kilobytes: how much of it to keep, spread evenly.
    read: unpacked package → documents. notice: the licence's own file within the package, which is
    copied to LICENSES; None where nothing is asked for.
    """

    name: str
    kind: str
    split: str
    package: Package
    path: str
    license: str
    attribution: str
    kilobytes: int
    read: Callable[[Path], list[Document]]
    notice: str | None = None
