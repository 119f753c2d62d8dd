"""Artifacts with a manifest of version 1 are still shown, verified, measured and judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.tiny_gemma import Kind
from tests.unit.cli.conftest import Run

OLD = json.loads((Path(__file__).parents[1] / "golden" / "manifest_v1.json").read_text())
FEW = ("--eval-windows", "2", "--eval-slices", "english", "--seq-len", "16", "--threads", "1")


@pytest.fixture
def old(run: Run, tiny_folders: dict[Kind, Path]) -> Path:
    """An artifact whose manifest has version 1, with the certificate of one made then."""
    model = str(tiny_folders["gemma3_text"])
    made = run("rtn", model, "--group-size", "32", *FEW, "--no-eval", "-q", "-o", "out")
    assert made.code == 0, made.err
    file = Path("out/manifest.json")
    document = json.loads(file.read_text())
    document |= {"schema_version": 1, "certificates": OLD["certificates"]}
    file.write_text(json.dumps(document))
    return Path("out")


def test_it_is_shown_with_an_interval_from_its_standard_error(run: Run, old: Path) -> None:
    shown = run("show", str(old))
    assert shown.code == 0, shown.err
    row = next(line for line in shown.out.splitlines() if line.startswith("english"))
    assert row.split()[1:4] == ["502,784", "204,268", "1.7"]
    assert "±" not in shown.out


def test_it_verifies_and_its_card_is_made_anew(run: Run, old: Path) -> None:
    assert run("verify", str(old)).code == 0
    assert run("card", str(old)).code == 0
    assert run("verify", str(old)).code == 0
    assert run("card", str(old), "--check").code == 0
    assert json.loads((old / "manifest.json").read_text())["schema_version"] == 2


def test_it_is_measured_and_judged(run: Run, old: Path) -> None:
    measured = run("eval", str(old), *FEW, "--no-native", "-q", "-o", "e.json")
    assert measured.code == 0, measured.err
    first = run("gate", "e.json", "--baseline", "b.json", "--update-baseline", "--reason", "first")
    assert first.code == 0, first.err
    judged = run("gate", str(old), "--baseline", "b.json", "-q", "--threads", "1")
    assert judged.code == 0, judged.err
