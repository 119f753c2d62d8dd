"""An ONNX artifact measured beside its original: the same tokens come out of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.unit.cli.conftest import Run

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_onnxruntime_generates_what_transformers_does(run: Run, tmp_path: Path) -> None:
    for module in ("onnx", "onnxruntime", "onnxruntime_genai"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    write_tiny_gemma(tmp_path / "model", "gemma2")
    made = run("onnx", "model", "--bits", "32", "--no-eval", "-o", "out", "--threads", "1")
    assert made.code == 0, made.err
    short = ("--prompt-tokens", "24", "--new-tokens", "8", "--repetitions", "1", "--threads", "1")
    given = ("out", "model", "--modes", "default,eager", "--compute-dtype", "float32", *short)
    result = run("bench", *given, "--json")
    assert result.code == 0, result.err
    onnx, transformers = json.loads(result.out)["rows"]
    assert (onnx["runtime"], onnx["container"]) == ("onnxruntime-genai", "onnx")
    assert onnx["figures"]["greedy_tokens"] == transformers["figures"]["greedy_tokens"]
    assert len(onnx["figures"]["greedy_tokens"]) == 8
