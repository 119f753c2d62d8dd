"""``gemquant report``: files all at once or not at all, whatever the verdict says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.tiny_evaluation import document
from tests.helpers.tiny_report import check, verdict
from tests.unit.cli.conftest import Run


@pytest.fixture
def documents(tmp_path: Path) -> tuple[str, str]:
    evaluated = document()
    paths = tmp_path / "eval.json", tmp_path / "verdict.json"
    paths[0].write_bytes(evaluated.to_json())
    paths[1].write_bytes(verdict(evaluated, check("regression")).to_json())
    return str(paths[0]), str(paths[1])


def test_every_form_is_written_and_a_regression_exits_with_0(
    run: Run, documents: tuple[str, str], tmp_path: Path
) -> None:
    evaluation, judged = documents
    files = [
        "--markdown",
        "a.md",
        "--junit",
        "b.xml",
        "--html",
        "d.html",
    ]
    done = run("report", evaluation, "--verdict", judged, *files, "--json")
    assert done.code == 0
    assert json.loads(done.out)["verdict"] == "regression"
    assert (tmp_path / "a.md").read_text().startswith("## ❌ gemquant: regression")
    assert (tmp_path / "b.xml").read_text().startswith("<?xml")
    assert (tmp_path / "d.html").read_text().startswith("<!doctype html>")


def test_one_form_may_go_to_stdout(run: Run, documents: tuple[str, str]) -> None:
    done = run("report", documents[0], "--markdown", "-")
    assert done.out.startswith("## gemquant: measured, not gated\n")


def test_all_that_is_wrong_is_told_and_nothing_is_written(
    run: Run, documents: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "old.md").write_text("mine")
    arguments = ["--markdown", "old.md", "--junit", "new.xml", "--markdown-limit", "10"]
    done = run("report", documents[0], "absent.json", *arguments)
    assert done.code == 2
    assert "old.md exists" in done.err
    assert "--junit: needs --verdict" in done.err
    assert "--markdown-limit 10" in done.err
    assert "absent.json" in done.err
    assert not (tmp_path / "new.xml").exists()
    assert (tmp_path / "old.md").read_text() == "mine"


def test_force_replaces_a_file(run: Run, documents: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "old.md").write_text("mine")
    assert run("report", documents[0], "--markdown", "old.md", "--force").code == 0
    assert (tmp_path / "old.md").read_text().startswith("## gemquant")


def test_two_forms_do_not_share_stdout(run: Run, documents: tuple[str, str]) -> None:
    done = run("report", documents[0], "--markdown", "-", "--junit", "-")
    assert done.code == 2
    assert "only one thing can go to stdout" in done.err


def test_nan_in_an_evaluation_is_refused_by_name(
    run: Run, documents: tuple[str, str], tmp_path: Path
) -> None:
    text = Path(documents[0]).read_text()
    broken = tmp_path / "broken.json"
    broken.write_text(text.replace('"kl_max": 3.0', '"kl_max": NaN'))
    done = run("report", str(broken), "--markdown", "-")
    assert (done.code, done.out) == (2, "")
    assert "broken.json" in done.err
    assert "Traceback" not in done.err


def test_a_verdict_on_other_artifacts_is_not_comparable(
    run: Run, documents: tuple[str, str], tmp_path: Path
) -> None:
    evaluated = document()
    (one,) = evaluated.artifacts
    other = evaluated.model_copy(
        update={"artifacts": (one.model_copy(update={"digest": "sha256:other"}),)}
    )
    judged = tmp_path / "other.json"
    judged.write_bytes(verdict(other, check()).to_json())
    done = run("report", documents[0], "--verdict", str(judged), "--markdown", "-")
    assert done.code == 11
