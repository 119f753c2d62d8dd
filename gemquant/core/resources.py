"""What the machine and the installation offer: data folders, cache, cores, memory."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from gemquant.core.untrusted import user_path
from gemquant.errors import UsageError

UNITS: Mapping[str, int] = {
    letter + rest: base**power
    for power, letter in enumerate("kmgt", 1)
    for rest, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
"""Bytes of each unit, in lower case."""

SMALLEST_SIZE = 1000
PACKAGE = Path(__file__).resolve().parents[1]


def data_folder(name: Literal["calib_data", "targets"]) -> Path:
    """Folder of shipped data: next to the package in a source checkout, inside it in a wheel."""
    checkout = PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    return PACKAGE / "_data" / name


def cache_folder() -> Path:
    """Folder for files made once: $GEMQUANT_CACHE, else the user's cache folder. Not created."""
    if chosen := os.environ.get("GEMQUANT_CACHE"):
        return user_path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gemquant"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gemquant"


# ---------------------------------------------------------------- processor


def default_threads() -> int:
    """Physical cores this process may use; threads beyond them collapse the speed of matmuls."""
    usable = usable_cpus()
    cores = _physical_cores(usable) or len(usable)
    quota = _cgroup_cpus()
    return max(1, min(cores, quota) if quota else cores)


def usable_cpus() -> set[int]:
    """Numbers of the logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def processor_flags() -> frozenset[str]:
    """Names of the processor's features, as Linux writes them; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = [line for line in lines if line.startswith("flags")]
    return frozenset(flags[0].partition(":")[2].split() if flags else ())


def _physical_cores(cpus: set[int]) -> int | None:
    """Count distinct cores under ``cpus``, or None where the system does not tell."""
    if sys.platform == "darwin":
        answer = subprocess.run(
            ["sysctl", "-n", "hw.physicalcpu"], capture_output=True, text=True, check=False
        )
        return int(answer.stdout) if answer.returncode == 0 else None
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            return None
    return len(cores)


def _cgroup_cpus() -> int | None:
    """Whole CPUs that a container's quota allows (cgroup v2), or None without a quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


def free_memory_bytes() -> int | None:
    """Memory that this process may still take; None where the system does not tell.

    On Linux what the kernel holds available, or less where a container's limit (cgroup v2) is
    nearer; on macOS the whole memory, which is what there is to share.
    """
    if sys.platform == "darwin":
        return machine_memory_bytes()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    left = [*available, *_cgroup_memory()]
    return min(left) if available else None


def _cgroup_memory() -> list[int]:
    """Memory left under a container's limit (cgroup v2); empty without one."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return []
    return [] if limit == "max" else [max(0, int(limit) - used)]


def require_device(device: str) -> None:
    """Raise UsageError if this machine, or this torch, does not have a device."""
    if device == "cpu":
        return
    import torch

    kind, _, number = device.partition(":")
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if not (number or "0").isdigit() or int(number or 0) >= present.get(kind, 0):
        raise UsageError(
            f"--device {device}: not on this machine, or not in torch {torch.__version__}.",
            hint="Leave --device out to use the default.",
        )


def open_missing_streams() -> None:
    """Open the null device for standard streams that were closed, as by ``>&-``.

    Otherwise the next file that is opened takes such a stream's number, and what a library prints.
    Streams of other encodings than UTF-8 print a question mark for what they lack.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: SIM115, PTH123
        if number and isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def yield_idle_processors() -> None:
    """Let torch's threads sleep soon while they wait for one another, unless the user decided.

    By default GNU OpenMP's threads spin, which costs nothing on an idle machine; where another
    program wants the same cores, a search over small groups was measured to take a hundred times as
    long. Sleeping at once loses what a second thread gains; spinning for some ten microseconds
    loses neither. Must be called before torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")


# ---------------------------------------------------------------- memory


def machine_memory_bytes() -> int | None:
    """Memory of the machine; None if the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def total_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or a container's limit."""
    machine = machine_memory_bytes() or sys.maxsize
    try:
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return machine


def peak_resident_bytes() -> int | None:
    """Peak resident memory of this process, mapped files included; None where unknown."""
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Unlike getrusage's figure on Linux, this one starts anew with every program.
    return process_status("self", "VmHWM:")


def process_status(pid: int | str, field: str) -> int | None:
    """Bytes in a field of a process's status; None but on Linux."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    values = (int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    return next(values, None)


# ---------------------------------------------------------------- sizes, durations


def parse_size(text: str, *, flag: str) -> int:
    """Read a size with its unit: ``8G`` and ``8GB`` are 8 · 10⁹ bytes, ``8GiB`` is 8 · 2³⁰.

    Raises UsageError, with the flag's name, for anything else and for less than 1 kB.

    >>> [parse_size(text, flag="--memory") for text in ("8G", "1.5 MB", "512MiB")]
    [8000000000, 1500000, 536870912]
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ?([A-Za-z]*)", text.strip())
    unit = match[2].lower() if match else ""
    if match and not unit:
        raise UsageError(f"{flag} {text}: {match[1]} what?", hint=f"As in: {flag} {match[1]}GB")
    size = int(float(match[1]) * UNITS[unit]) if match and unit in UNITS else 0
    if size < SMALLEST_SIZE:
        raise UsageError(
            f"{flag} {text}: must be a number and kB, MB, GB, KiB, MiB or GiB, at least 1kB.",
            hint=f"As in: {flag} 8GB",
        )
    return size


def human_bytes(count: int) -> str:
    """Size with three figures, in powers of 1000.

    >>> human_bytes(999), human_bytes(268_435_456), human_bytes(5_000_000_000)
    ('999 B', '268 MB', '5.00 GB')
    """
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB", "TB"):  # noqa: B007 - the unit reached is used below
        size /= 1000
        if size < 999.5:
            break
    decimals = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{decimals}f} {unit}"


def human_seconds(seconds: float) -> str:
    """Duration in the two largest units.

    >>> human_seconds(8.4), human_seconds(141), human_seconds(40_000)
    ('8 s', '2 min 21 s', '11 h 6 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
