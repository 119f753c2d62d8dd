"""The machine and its condition, as far as it tells; what it does not tell is None."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from gemquant.core.resources import default_threads, usable_cpus
from gemquant.measure.bench.document import Accelerator, Conditions, Environment, Machine
from gemquant.measure.bench.nvidia import nvidia_accelerators, nvidia_conditions

_CPU = Path("/sys/devices/system/cpu")
_GIB = 1 << 30


def environment(packages: Sequence[str]) -> Environment:
    """All that is known of this machine now. packages: distributions whose versions matter."""
    return Environment(
        machine=machine(),
        conditions=conditions(),
        libraries={name: _version(name) for name in ("gemquant", *packages)},
    )


def machine() -> Machine:
    """What does not change between runs."""
    accelerators = (*nvidia_accelerators(), *_apple())
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "physical_cores": default_threads(),
        "logical_processors": len(usable_cpus()),
        "memory_gib": _memory_gib(),
    }
    gpus = [gpu.model_dump(exclude={"driver"}) for gpu in accelerators]
    told = {**facts, "accelerators": gpus}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return Machine.model_validate({**facts, "accelerators": accelerators, "fingerprint": digest})


def conditions() -> Conditions:
    """What may have changed since the last run."""
    return Conditions(
        kernel=platform.release(),
        governor=_each("cpufreq/scaling_governor"),
        clock_mhz=_clocks(),
        clock_limit_mhz=_limit(),
        power=_power(),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        virtual=_virtual(),
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


def _memory_gib() -> int | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    return round(total / _GIB)


def _apple() -> Sequence[Accelerator]:
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return []
    name = f"{processor()} GPU"
    return [Accelerator(name=name, memory_bytes=None, driver=None, compute_capability=None)]


# ---------------------------------------------------------------- processors


def _each(fact: str) -> str | None:
    """Every value of a fact among the processors that this process may use."""
    found = {_text(_CPU / f"cpu{number}" / fact) for number in usable_cpus()} - {None}
    return ", ".join(sorted(filter(None, found))) or None


def _clocks() -> str | None:
    """Lowest and highest clock now, in MHz."""
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


def _limit() -> str | None:
    highest = _each("cpufreq/cpuinfo_max_freq")
    return ", ".join(str(int(value) // 1000) for value in highest.split(", ")) if highest else None


def _virtual() -> bool | None:
    flags = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("flags")]
    return " hypervisor" in flags[0] if flags else None


# ---------------------------------------------------------------- power


def _power() -> str | None:
    if platform.system() == "Darwin":
        said = _answer("pmset", "-g", "ps")
        return said.splitlines()[0].rpartition("'")[0].rpartition("'")[2] if said else None
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


def _answer(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
