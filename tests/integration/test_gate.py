"""A baseline, the same artifact again, and a worse one under its name, as a user does it."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.tiny_gemma import Kind
from tests.unit.cli.conftest import Result, Run

FEW = "--threads 1 --seq-len 24 --eval-windows 8 --group-size 32 --eval-slices english,code".split()
BASELINE = ("--baseline", "base.json", "--threads", "1")


def make(run: Run, model: Path, bits: int) -> None:
    made = run("rtn", str(model), *FEW, "--bits", str(bits), "-o", "gemma-rtn", "--force")
    assert made.code == 0, made.err


def gate(run: Run, *more: str) -> Result:
    return run("gate", "gemma-rtn", *BASELINE, *more)


def test_an_artifact_is_measured_on_what_its_baseline_names(
    run: Run, tiny_folders: dict[Kind, Path]
) -> None:
    make(run, tiny_folders["gemma3_text"], 8)
    few = ("--no-native", "--eval-slices", "english,code", "--eval-windows", "8", "--seq-len", "24")
    measured = run("eval", "gemma-rtn", "--suite", "default", *few, "--output", "eval.json")
    assert measured.code == 0, measured.err
    update = ("--update-baseline", "--reason", "first")
    assert run("gate", "eval.json", *BASELINE, *update).code == 0

    again = gate(run)
    assert (again.code, again.out.splitlines()[0]) == (
        0,
        "gemma-rtn: pass, 11 checks; nothing is worse",
    ), again.err

    make(run, tiny_folders["gemma3_text"], 4)
    worse = gate(run)
    assert worse.code == 10
    assert "level reference, slice 'english': mean KL divergence rose by" in worse.err
    assert "The error of hidden states rises at layer" in worse.err
    assert "bytes changed, and no reason is recorded" in worse.err
