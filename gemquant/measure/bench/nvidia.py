"""NVIDIA GPUs, as ``nvidia-smi`` tells of them; none where it is not installed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from gemquant.measure.bench.document import Accelerator

_SECONDS = 20
_MIB = 1 << 20
_FACTS = ("name", "memory.total", "driver_version", "compute_cap")
_CONDITIONS = ("pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit")


def nvidia_accelerators() -> Sequence[Accelerator]:
    """Every GPU."""
    return [
        Accelerator(
            name=name,
            memory_bytes=int(memory) * _MIB if memory.isdigit() else None,
            driver=driver,
            compute_capability=capability,
        )
        for name, memory, driver, capability in asked(_FACTS)
    ]


def nvidia_conditions() -> Sequence[str]:
    """Power state, clocks and power limit of every GPU."""
    return [
        f"{state}, SM {clock} of {limit} MHz, memory {memory} MHz, power limit {power} W"
        for state, clock, memory, limit, power in asked(_CONDITIONS)
    ]


def asked(facts: Sequence[str]) -> list[list[str]]:
    """Answers of nvidia-smi, a list for each GPU."""
    query = f"--query-gpu={','.join(facts)}"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode != 0:
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == len(facts)]
