"""Blocks of a tiny Gemma in the vendor's real simulator, rknn-toolkit2 2.5.0 of PyPI.

It needs an environment of its own (docs/rkllm.md); GEMQUANT_RKNN_PYTHON names its Python.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.unit.cli.conftest import Run

PYTHON = os.environ.get("GEMQUANT_RKNN_PYTHON", "")

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(
        not PYTHON, reason="GEMQUANT_RKNN_PYTHON names no Python with rknn-toolkit2"
    ),
]


def test_float16_loses_little_and_int8_more(run: Run, tmp_path: Path) -> None:
    model = write_tiny_gemma(tmp_path / "model", "gemma2")
    wanted = ["--layers", "0,1", "--tokens", "32", "--python", PYTHON, "--json"]
    made = run("rknn-sim", str(model), *wanted)
    assert made.code == 0, made.err
    found = json.loads(made.out)
    assert (found["platform"], found["toolkit"]) == ("rk3588", "2.5.0")
    assert "not RKLLM" in found["note"]
    assert [block["layer"] for block in found["blocks"]] == [0, 1]
    for block in found["blocks"]:
        # Measured: 57 to 63 dB, and 14 to 15 dB.
        assert 50 < block["float16"]["output_db"] < 75
        assert 8 < block["int8"]["output_db"] < 25
