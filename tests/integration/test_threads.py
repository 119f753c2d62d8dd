"""Bytes and thread counts, each run in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny_gemma import Kind
from tests.helpers.tiny_job import contents

QUICK = "--no-eval --group-size 32 --samples 2 --seq-len 64 -q".split()


def make(folder: Path, model: Path, quantizer: str, threads: int, *more: str) -> dict[str, bytes]:
    """Run ``gemquant`` with a thread count; return everything that it wrote."""
    out = folder / f"{quantizer}-{threads}"
    command = [sys.executable, "-m", "gemquant", quantizer, str(model), *QUICK]
    command += ["--threads", str(threads), "-o", str(out), *more]
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return contents(out)


@pytest.mark.parametrize("quantizer", ["rtn", "awq"])
def test_bytes_do_not_depend_on_one_or_two_threads(
    tiny_folders: dict[Kind, Path], tmp_path: Path, quantizer: str
) -> None:
    model = tiny_folders["gemma2"]
    one, two = (make(tmp_path, model, quantizer, threads) for threads in (1, 2))
    assert one == two
