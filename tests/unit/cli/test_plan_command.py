"""`gemquant plan`: tables, JSON, and every complaint at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.unit.cli.conftest import Run


@pytest.mark.parametrize("target", ["cpu", "cuda", "mps", "rk3588", "rk3576", "rk3562", "rv1126b"])
def test_every_target_is_planned_from_a_configuration_alone(
    run: Run, tmp_path: Path, target: str
) -> None:
    folder = write_tiny_gemma(tmp_path / "model", "gemma2")
    (folder / "model.safetensors").unlink()
    made = run("plan", str(folder), "--target", target, "--memory", "8G", "--json")
    assert made.code == 0, made.err
    document = json.loads(made.out)
    assert document["measured"] is False
    assert document["request"] == {
        "memory_bytes": 8_000_000_000,
        "context": 4096,
        "device": None,
        "gb_per_second": None,
    }
    for row in document["candidates"]:
        assert row["fits"]
        assert 0 < row["tokens_per_second_full"] <= row["tokens_per_second"]


def test_the_table_says_what_fits_and_that_nothing_was_measured(
    run: Run, tiny_folder: Path
) -> None:
    made = run("plan", str(tiny_folder), "--target", "rk3588", "--memory", "1M")
    assert made.code == 0, made.err
    assert "no, " in made.out
    assert "short" in made.out
    assert "rkllm-toolkit>=1." in made.out
    assert "nothing was measured on this model" in made.out


def test_every_complaint_is_made_at_once(run: Run) -> None:
    made = run("plan", "--target", "rk3599", "--memory", "8Q", "--context", "0")
    assert made.code == 2
    for part in ("--memory 8Q", "--context 0", "--target rk3599", "MODEL: missing", "4 problems"):
        assert part in made.err
