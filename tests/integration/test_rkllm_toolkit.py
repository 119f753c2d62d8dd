"""The vendor's real toolkit 1.0.1 converts a tiny Gemma 1 through the real command.

It lies in the repository airockchip/rknn-llm at release v1.0.1 and runs on Python 3.8 with torch
1.12.0, transformers 4.38.0 and numpy 1.23.1; GEMQUANT_RKLLM_PYTHON names that Python. Nothing here
was executed on a board.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers.tiny_rkllm import write_npu_adapter, write_npu_gemma
from tests.unit.cli.conftest import Run

PYTHON = os.environ.get("GEMQUANT_RKLLM_PYTHON", "")

pytestmark = [
    pytest.mark.rkllm,
    pytest.mark.skipif(not PYTHON, reason="GEMQUANT_RKLLM_PYTHON names no Python with 1.0.1"),
]

FEW = "--threads 1 --samples 2 --seq-len 32 --calib text.txt --no-smooth --emulate 0".split()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the quick brown fox\n\nhello world\n\nof and to\n")
    return write_npu_gemma(tmp_path / "tiny-gemma")


def convert(run: Run, model: Path, out: str, *more: str) -> bytes:
    made = run("rkllm", str(model), "--toolkit", PYTHON, "-o", out, *FEW, *more)
    assert made.code == 0, made.err
    assert "converting" in made.err
    (file,) = Path(out).glob("*.rkllm")
    return file.read_bytes()


@pytest.mark.parametrize("level", [0, 1])
def test_a_tiny_gemma_converts_at_both_levels(run: Run, model: Path, level: int) -> None:
    content = convert(run, model, "out", "--optimization-level", str(level))
    manifest = json.loads(Path("out/manifest.json").read_text())
    conversion = manifest["conversion"]
    assert conversion["version"] == "1.0.1"
    assert conversion["python"].startswith("3.8.")
    assert [call["returned"] for call in conversion["calls"]] == [0, 0, 0]
    assert conversion["calls"][1]["arguments"] == {
        "do_quantization": True,
        "optimization_level": level,
        "quantized_dtype": "w8a8",
        "target_platform": "rk3588",
    }
    name = f"tiny-gemma-rk3588-w8a8-opt-{level}-hybrid-ratio-0.0.rkllm"
    assert manifest["files"][name]["bytes"] == len(content)
    assert content[:4].hex() == "daeeb336"
    assert run("verify", "out").code == 0


def test_the_toolkits_own_evaluation_predicts_the_windows(run: Run, model: Path) -> None:
    measured = convert(run, model, "measured", "--simulate", "1")
    assert convert(run, model, "plain") == measured
    (certificate,) = json.loads(Path("measured/manifest.json").read_text())["certificates"]
    assert certificate["level"] == "vendor-sim"
    assert certificate["runtime"].startswith("rkllm-toolkit 1.0.1, its Evaluator: int8 rows")
    losses = [found["kl_mean"]["value"] for found in certificate["slices"]]
    # Measured: 0.019 to 0.037 nats a token on this model of random weights.
    assert all(0.005 < loss < 0.15 for loss in losses), losses


def test_a_lora_that_was_given_is_in_the_result(run: Run, model: Path, tmp_path: Path) -> None:
    adapter = write_npu_adapter(tmp_path / "adapter")
    without = convert(run, model, "without")
    assert convert(run, model, "again") == without
    merged = convert(run, model, "with", "--lora", str(adapter))
    assert len(merged) == len(without)
    assert merged != without


def test_a_prepared_folder_converts_elsewhere(run: Run, model: Path) -> None:
    direct = convert(run, model, "direct")
    wanted = "--prepare-only --toolkit-version 1.0.1 -o ready".split()
    made = run("rkllm", str(model), *FEW, *wanted)
    assert made.code == 0, made.err
    subprocess.run([PYTHON, "ready/convert.py"], check=True, timeout=300)
    (file,) = Path("ready").glob("*.rkllm")
    assert file.read_bytes() == direct


def test_a_smoothed_folder_converts_and_makes_another_file(run: Run, model: Path) -> None:
    Path("long.txt").write_text("the quick brown fox jumps over the lazy dog " * 400)
    plain = convert(run, model, "plain")
    smoothed = convert(run, model, "smoothed", "--calib", "long.txt", "--samples", "16", "--smooth")
    assert len(smoothed) == len(plain)
    assert smoothed != plain
    manifest = json.loads(Path("smoothed/manifest.json").read_text())
    assert manifest["smoothing"]["folds"]
