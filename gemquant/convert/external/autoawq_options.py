"""The options of ``gemquant awq --engine autoawq``; nothing heavy is imported for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gemquant.core.options import option

ENGINES = ("gemquant", "autoawq")
GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class AutoAwqOptions:
    """AutoAWQ itself, for who must reproduce what it makes."""

    name: ClassVar[str] = "awq"

    engine: str = option("autoawq", "Program that decides the numbers.", choices=("autoawq",))
    bits: int = option(4, "Bits per weight.", choices=(4,))
    group_size: int = option(128, "Input channels that share one scale.", choices=GROUP_SIZES)
    clip: bool = option(True, "Search each group's range instead of covering all of it.")
