"""Compile the C kernels with any C compiler, once for every processor level.

Every library is built from the same sources; ``native`` loads the best that the processor runs.
Products and sums are never fused, so that all levels compute the same bits. Without a compiler
nothing is built, and everything works through slower libraries.

Running this file builds in place, after a change to the sources; the package's own build does the
same. It imports nothing of gemquant: the package does not exist yet when it runs.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCES = FOLDER / "source"
FLAGS = (
    "-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden",
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra",
)  # fmt: skip


def levels() -> Mapping[str, Sequence[str]]:
    """Name of each library → the flags that choose its instructions, the plainest first."""
    if platform.machine().lower() in {"x86_64", "amd64"}:
        return {
            "x86-64": ("-march=x86-64",),
            "x86-64-v3": ("-march=x86-64-v3",),
            "x86-64-v4": ("-march=x86-64-v4", "-mprefer-vector-width=512"),
        }
    return {"generic": ()}  # NEON is part of every 64-bit ARM


def digest() -> str:
    """SHA-256 of the sources and the flags, to notice libraries that are out of date."""
    hashed = hashlib.sha256(repr(FLAGS).encode())
    for path in sorted(SOURCES.iterdir()):
        hashed.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return hashed.hexdigest()


def library_name(level: str) -> str:
    """File name of the library for one level."""
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    return f"kernels-{level}{suffix}"


def compiler() -> list[str] | None:
    """Return the C compiler's command: $CC, else the first of cc, gcc and clang; None for none."""
    if chosen := os.environ.get("CC"):
        return shlex.split(chosen)
    path = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return None if path is None else [path]


def build(folder: Path = FOLDER) -> list[Path]:
    """Compile all levels at once into ``folder``; return what was built, perhaps nothing.

    A compiler that lacks a level, or fails, is reported on stderr; the package works without.
    """
    command = compiler()
    if command is None:
        print("gemquant: no C compiler found; built without native kernels", file=sys.stderr)
        return []
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda level: _compiled(command, level, folder), levels())
        return [path for path in made if path]


def _compiled(command: Sequence[str], level: str, folder: Path) -> Path | None:
    target = folder / library_name(level)
    # Renamed when complete: a running program still uses the library that it has mapped.
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    sources = map(str, sorted(SOURCES.glob("*.c")))
    flags = (*FLAGS, *levels()[level], f'-DGQ_DIGEST="{digest()}"')
    line = [*command, *flags, *sources, "-lm", "-o", str(scratch)]
    try:
        subprocess.run(line, check=True, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        message = getattr(error, "stderr", None) or str(error)
        print(f"gemquant: kernels for {level} were not built: {message}", file=sys.stderr)
        scratch.unlink(missing_ok=True)
        return None
    scratch.replace(target)
    return target


if __name__ == "__main__":
    sys.exit(0 if build() else 1)
