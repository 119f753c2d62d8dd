"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    group: ``program``, ``kernels``, ``runtimes``, ``models``, ``publishing``,
    ``devices``. state: ``warning`` where
    something is missing that not everybody needs; ``problem`` where what is there does not work.
    found: versions, or what is wrong. purpose: what it is for. command: brings or mends it.
    """

    group: str
    name: str
    state: State
    found: str
    purpose: str = ""
    command: str | None = None
