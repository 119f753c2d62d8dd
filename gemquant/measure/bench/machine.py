"""The machine and its current condition; None for what the system does not report."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gemquant.core.resources import default_threads, machine_memory_bytes, usable_cpus
from gemquant.measure.bench.document import Accelerator, Conditions, Environment, Machine
from gemquant.runtimes.runtime import installed_version

_CPU = Path("/sys/devices/system/cpu")
_MIB, _GIB = 1 << 20, 1 << 30
_SMI_SECONDS = 20
_SMI_FACTS = ("name", "memory.total", "driver_version", "compute_cap")
_SMI_CONDITIONS = ("pstate", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit")


def environment(packages: Sequence[str]) -> Environment:
    """Describe this machine. packages: distributions whose versions matter."""
    return Environment(
        machine=machine(),
        conditions=conditions(),
        libraries={name: installed_version(name) for name in ("gemquant", *packages)},
    )


def machine() -> Machine:
    """What does not change between runs."""
    memory = machine_memory_bytes()
    return Machine.of(
        (*nvidia_accelerators(), *_apple()),
        system=f"{platform.system()} {platform.machine()}",
        processor=processor(),
        physical_cores=default_threads(),
        logical_processors=len(usable_cpus()),
        memory_gib=None if memory is None else round(memory / _GIB),
    )


def conditions() -> Conditions:
    """What may have changed since the last run."""
    highest = _values("cpufreq/cpuinfo_max_freq")
    limits = [str(int(value) // 1000) for value in highest.split(", ")] if highest else []
    flags = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("flags")]
    return Conditions(
        kernel=platform.release(),
        governor=_values("cpufreq/scaling_governor"),
        clock_mhz=_clocks(),
        clock_limit_mhz=", ".join(limits) or None,
        power=_power(),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        virtual=" hypervisor" in flags[0] if flags else None,
        accelerators=tuple(nvidia_conditions()),
    )


def processor() -> str:
    """Model of the processor."""
    if platform.system() == "Darwin":
        return _answer("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def nvidia_accelerators() -> Sequence[Accelerator]:
    """List the GPUs that nvidia-smi reports; none where it is not installed."""
    return [
        Accelerator(
            name=name,
            memory_bytes=int(memory) * _MIB if memory.isdigit() else None,
            driver=driver,
            compute_capability=capability,
        )
        for name, memory, driver, capability in nvidia_smi(_SMI_FACTS)
    ]


def nvidia_conditions() -> Sequence[str]:
    """Describe power state, clocks and power limit of every GPU."""
    return [
        f"{state}, SM {clock} of {limit} MHz, memory {memory} MHz, power limit {power} W"
        for state, clock, memory, limit, power in nvidia_smi(_SMI_CONDITIONS)
    ]


def nvidia_smi(facts: Sequence[str]) -> list[list[str]]:
    """Ask nvidia-smi for facts: one list per GPU."""
    query = f"--query-gpu={','.join(facts)}"
    output = _answer("nvidia-smi", query, "--format=csv,noheader,nounits", seconds=_SMI_SECONDS)
    rows = [[cell.strip() for cell in line.split(",")] for line in (output or "").splitlines()]
    return [row for row in rows if len(row) == len(facts)]


def _apple() -> Sequence[Accelerator]:
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return []
    name = f"{processor()} GPU"
    return [Accelerator(name=name, memory_bytes=None, driver=None, compute_capability=None)]


# ---------------------------------------------------------------- processors


def _values(fact: str) -> str | None:
    """Return all values of a fact over the processors that this process may use."""
    values = {_text(_CPU / f"cpu{number}" / fact) for number in usable_cpus()} - {None}
    return ", ".join(sorted(filter(None, values))) or None


def _clocks() -> str | None:
    """Return the lowest and highest current clock, in MHz."""
    kilohertz = [
        int(value)
        for number in usable_cpus()
        if (value := _text(_CPU / f"cpu{number}" / "cpufreq/scaling_cur_freq"))
    ]
    clocks = [value / 1000 for value in kilohertz] or [
        float(line.partition(":")[2])
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("cpu MHz")
    ]
    return f"{min(clocks):.0f} to {max(clocks):.0f}" if clocks else None


# ---------------------------------------------------------------- power


def _power() -> str | None:
    if platform.system() == "Darwin":
        output = _answer("pmset", "-g", "ps")
        return output.splitlines()[0].rpartition("'")[0].rpartition("'")[2] if output else None
    facts = []
    supplies = Path("/sys/class/power_supply")
    for supply in sorted(supplies.iterdir()) if supplies.is_dir() else ():
        kind, online = _text(supply / "type"), _text(supply / "online")
        if kind == "Mains" and online is not None:
            facts.append("mains" if online == "1" else "mains unplugged")
        elif kind == "Battery":
            facts.append(f"battery {(_text(supply / 'status') or 'unknown').lower()}")
    profile = _text(Path("/sys/firmware/acpi/platform_profile"))
    return ", ".join([*facts, *([f"profile {profile}"] if profile else [])]) or None


# ---------------------------------------------------------------- reading


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _lines(path: Path) -> list[str]:
    return (_text(path) or "").splitlines()


def _answer(*command: str, seconds: float = 10) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
