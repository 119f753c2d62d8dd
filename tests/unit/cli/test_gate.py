from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gemquant.cli import cli, gate_tables
from gemquant.core.artifact.evaluation import EvaluationDocument
from gemquant.measure.gate.verdict import Verdict
from tests.helpers.tiny_evaluation import artifact, document
from tests.helpers.tiny_gate import divergences, measured
from tests.helpers.tiny_report import check, verdict


def run(folder: Path, *documents: EvaluationDocument, flags: str = "") -> Result:
    """Gate the documents against base.json in the folder."""
    files = []
    for number, each in enumerate(documents):
        files.append(str(folder / f"eval-{number}.json"))
        Path(files[-1]).write_bytes(each.to_json())
    command = ["gate", *files, "--baseline", str(folder / "base.json"), *flags.split()]
    return CliRunner().invoke(cli, command)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a baseline of one artifact."""
    made = run(tmp_path, measured(), flags="--update-baseline --reason first")
    assert made.exit_code == 0, made.output
    return tmp_path


def worse() -> EvaluationDocument:
    return measured({"english": divergences(rise=0.1), "code": divergences(seed=7)})


def test_what_is_as_before_ends_with_0(folder: Path) -> None:
    result = run(folder, measured())
    assert result.exit_code == 0, result.output
    first, last = result.stdout.splitlines()
    assert first.startswith("gemma-awq: pass, ")
    assert first.endswith(" checks; nothing is worse")
    assert last == "pass against base.json (1 update, first)"


def test_what_passes_names_the_check_that_is_closest_to_its_budget(
    capsys: pytest.CaptureFixture[str],
) -> None:
    checks = (check(slice="code"), check(slice="chat").model_copy(update={"high": 0.006}))
    gate_tables.verdict(verdict(document(artifact("a", kl={"chat": [0.1]})), *checks))
    assert capsys.readouterr().out.splitlines()[0] == (
        "a: pass, 2 checks; closest to its budget: chat, KL mean 0 (at most +0.006000) of 0.01"
    )


def test_every_check_of_what_passed_is_printed_when_asked_for(folder: Path) -> None:
    out = run(folder, measured(), flags="-v").stdout
    assert "NLL increase, nats/token" in out
    assert "level reference" in out


def test_a_regression_ends_with_10_and_writes_its_verdict(folder: Path) -> None:
    result = run(folder, worse(), flags=f"--output {folder / 'verdict.json'}")
    assert result.exit_code == 10
    assert "'gemma-awq', regression: level reference, slice 'english': " in result.stderr
    assert Verdict.read(folder / "verdict.json").outcome == "regression"


def test_another_suite_ends_with_11_and_writes_its_verdict_too(folder: Path) -> None:
    now = measured()
    other = now.model_copy(update={"suite": now.suite.model_copy(update={"version": 2})})
    result = run(folder, other, flags=f"--output {folder / 'verdict.json'}")
    assert result.exit_code == 11
    assert Verdict.read(folder / "verdict.json").outcome == "not-comparable"


def test_json_is_one_document_and_the_file_is_the_same(folder: Path) -> None:
    result = run(folder, measured(), flags=f"--json --output {folder / 'verdict.json'}")
    assert json.loads(result.stdout) == json.loads((folder / "verdict.json").read_text())


def test_a_baseline_is_not_written_without_the_flag(folder: Path) -> None:
    before = (folder / "base.json").read_bytes()
    run(folder, worse())
    assert (folder / "base.json").read_bytes() == before


def test_an_update_makes_what_was_worse_the_baseline(folder: Path) -> None:
    updated = run(folder, worse(), flags="--update-baseline --reason accepted")
    assert updated.exit_code == 0
    assert "1 artifact, 2 updates; accepted" in updated.stdout
    assert updated.stdout.splitlines()[1].split()[:3] == ["artifact", "size", "bits"]
    assert run(folder, worse()).exit_code == 0


def test_everything_wrong_with_the_command_is_told_at_once(tmp_path: Path) -> None:
    result = run(tmp_path, measured(), flags="--update-baseline --output v.json")
    assert result.exit_code == 2
    assert "2 problems" in result.stderr
    assert "--update-baseline needs --reason TEXT" in result.stderr


def test_a_reason_without_an_update_is_refused(folder: Path) -> None:
    result = run(folder, measured(), flags="--reason why")
    assert result.exit_code == 2
    assert "without it nothing is written" in result.stderr


def test_all_unreadable_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "budgets.toml").write_text("[budgets]\n")
    (tmp_path / "bench.json").write_text("{}")
    flags = f"--budget {tmp_path / 'budgets.toml'} --bench {tmp_path / 'bench.json'}"
    result = run(tmp_path, measured(), flags=flags)
    assert result.exit_code == 2
    for name in ("base.json", "budgets.toml", "bench.json"):
        assert name in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gate", "base.json", "--baseline", "base.json"), "base.json is a baseline, not an eval"),
        (("gate", "eval-0.json", "--baseline", "eval-0.json"), "is an evaluation, not a baseline."),
        (("report", "base.json", "--markdown", "-"), "It is given as --baseline."),
        (("report", "eval-0.json", "--verdict", "base.json", "--markdown", "-"), "not a verdict."),
    ],
)
def test_a_document_in_anothers_place_is_called_by_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Extra inputs" not in result.stderr


def test_an_artifact_measured_twice_is_refused(folder: Path) -> None:
    result = run(folder, measured(), worse())
    assert result.exit_code == 2
    assert "'gemma-awq' was measured twice" in result.stderr


def test_nan_ends_with_2_and_without_a_traceback(folder: Path) -> None:
    text = measured().to_json().decode().replace('"kl_max": 3.0', '"kl_max": NaN')
    (folder / "nan.json").write_text(text)
    base = str(folder / "base.json")
    result = CliRunner().invoke(cli, ["gate", str(folder / "nan.json"), "--baseline", base])
    assert result.exit_code == 2
    assert "kl_max" in result.stderr


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    hostile = measured(name="\x1b[2Jgemma")
    run(tmp_path, hostile, flags="--update-baseline --reason first")
    result = run(tmp_path, hostile)
    assert result.exit_code == 0
    assert "\x1b" not in result.output
