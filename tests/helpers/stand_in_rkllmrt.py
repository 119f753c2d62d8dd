"""Compiles the stand-in for ``librkllmrt``; writes what it takes for a model: a bigram table."""

from __future__ import annotations

import atexit
import shutil
import struct
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

SOURCE = Path(__file__).with_suffix(".c")
STRUCTURES = {"1.1": 110, "1.2.0": 120, "1.2": 121, "1.3": 130}


@cache
def stand_in_runtime(version: str, structures: str | None = None) -> Path:
    """Compile the library of a release; skips where there is no C compiler.

    version: what it calls itself. structures: the release whose it has, where that is another.
    """
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the stand-in for librkllmrt with")
    key = structures or version
    release = STRUCTURES.get(key) or STRUCTURES[key.rpartition(".")[0]]
    folder = Path(mkdtemp(prefix="gemquant-stand-in-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "librkllmrt.so"
    subprocess.run(
        [
            compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror",
            f"-DRELEASE={release}", f'-DNAME="{version}"', "-o", str(library), str(SOURCE),
        ],
        check=True,
    )  # fmt: skip
    return library


def write_table(
    path: Path, table: np.ndarray, *, eos: int = 1, microseconds: int = 0
) -> np.ndarray:
    """Write a model: logits (last, next) float32. Returns the table as the library has it."""
    numbers = np.ascontiguousarray(table, dtype="<f4")
    head = struct.pack("<4i", 0x4B52, len(numbers), eos, microseconds)
    path.write_bytes(head + numbers.tobytes())
    return numbers


def random_table(vocabulary: int, seed: int = 0) -> np.ndarray:
    """A table of random logits, in which no token is followed by itself or by eos (1)."""
    table = np.random.default_rng(seed).normal(size=(vocabulary, vocabulary)).astype("<f4")
    np.fill_diagonal(table, -9.0)
    table[:, 1] = -9.0
    return table


def greedy(table: np.ndarray, last: int, count: int) -> list[int]:
    """The tokens that follow one another."""
    made = []
    for _ in range(count):
        last = int(table[last].argmax())
        made.append(last)
    return made
