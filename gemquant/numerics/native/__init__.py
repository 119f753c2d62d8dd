"""The C kernels, where they were built; callers have a slower path without them.

A kernel works on rows of tensors and holds no lock: ``over_rows`` runs it on several threads.
All levels compute the same bits. $GEMQUANT_NATIVE chooses a level by name, or ``off``.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from gemquant.numerics.native import build

if TYPE_CHECKING:
    from torch import Tensor

REBUILD = f"python {build.FOLDER / 'build.py'}"


@dataclass(frozen=True)
class Status:
    """Which kernels are in use. level: ``x86-64-v4`` and so on, or None. reason: why None."""

    level: str | None
    reason: str | None = None


def status() -> Status:
    """Which kernels are in use, or why none are."""
    return _loaded()[1]


def version() -> str:
    """First digits of the SHA-256 of the kernels' sources, or ``none``: for a manifest.

    Calibrated codes are chosen by sums that the kernels and plain torch add in different orders.
    """
    return build.digest()[:12] if library() is not None else "none"


def library() -> ctypes.CDLL | None:
    """The best library that this processor runs, or None."""
    return _loaded()[0]


@cache
def _loaded() -> tuple[ctypes.CDLL | None, Status]:
    chosen = os.environ.get("GEMQUANT_NATIVE", "")
    names = list(build.levels())
    if chosen == "off":
        return None, Status(None, "GEMQUANT_NATIVE is off")
    if chosen and chosen not in names:
        return None, Status(None, f"GEMQUANT_NATIVE={chosen} is none of {', '.join(names)}, off")
    try:
        name = chosen or _best(names)
        loaded = ctypes.CDLL(str(build.FOLDER / build.library_name(name)))
    except OSError as error:
        built = any((build.FOLDER / build.library_name(each)).is_file() for each in names)
        return None, Status(None, f"not for this machine ({error})" if built else "not built")
    loaded.gq_digest.restype = ctypes.c_char_p
    if loaded.gq_digest().decode() != build.digest():
        return None, Status(None, f"{name} is older than its sources")
    return loaded, Status(name)


def _best(names: Sequence[str]) -> str:
    """The highest level that was built and that the processor has."""
    plainest = ctypes.CDLL(str(build.FOLDER / build.library_name(names[0])))
    runnable = names[: max(1, plainest.gq_processor_level() - 1)]
    built = [name for name in runnable if (build.FOLDER / build.library_name(name)).is_file()]
    return built[-1]


# ---------------------------------------------------------------- calls


def is_usable(tensor: Tensor) -> bool:
    """Whether the kernels can work on a tensor's device."""
    return tensor.device.type == "cpu" and library() is not None


def call(name: str, *arguments: object) -> None:
    """Call a kernel: tensors as addresses, int as int64_t, float as float, the rest as it is."""
    kernels = library()
    assert kernels is not None, "callers ask library() first"
    getattr(kernels, name)(*map(_argument, arguments))


def _argument(value: Any) -> object:
    if hasattr(value, "data_ptr"):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    kind = {int: ctypes.c_int64, float: ctypes.c_float}.get(type(value))
    return value if kind is None else kind(value)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gemquant-kernel")


def over_rows(
    kernel: Callable[[int, int], object], rows: int, *, threads: int, at_least: int = 1
) -> None:
    """Call ``kernel(start, stop)`` on parts of the rows, on several threads.

    at_least: rows in a part; results must not depend on how rows are divided.
    """
    parts = max(1, min(threads, rows // max(1, at_least)))
    if parts == 1:
        kernel(0, rows)
        return
    bounds = [rows * n // parts for n in range(parts + 1)]
    for future in [_pool(threads).submit(kernel, *span) for span in pairwise(bounds)]:
        future.result()
