"""Every failure is one screen on stderr and an exit code; stdout stays empty."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import click
import pytest

import gemquant.__main__ as program
from gemquant.errors import ArtifactError
from tests.unit.cli.conftest import Run


def failing_with(error: BaseException) -> click.Group:
    @click.group()
    def cli() -> None:
        pass

    @cli.command()
    def fail() -> None:
        raise error

    return cli


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["awq"], "error: MODEL: missing.\n  hint: Name a folder"),
        (["awq", "m", "--samples", "x"], "error: --samples: 'x' is not a valid integer."),
        (["awq", "m", "--bits", "5"], "error: --bits 5: must be one of 2, 3, 4, 6, 8."),
        (["awq", "m", "--group-size", "100"], "error: --group-size 100: must be one of"),
        (["awq", "m", "--target", "cudda"], "error: --target cudda: no such target.\n  hint: Did"),
        (["awq", "m", "--exporter", "mlx"], "error: --exporter mlx: not a container of target"),
        (["awq", "m", "--device", "tpu"], "error: --device tpu: must be cpu, cuda, cuda:N or mps."),
        (["awq", "m", "--recipe", "none"], "error: none: cannot be read: No such file"),
        (["targets", "cudda"], "error: --target cudda: no such target."),
    ],
)
def test_a_bad_command_line_exits_with_2_and_says_what_is_wrong(
    run: Run, args: list[str], message: str
) -> None:
    result = run(*args)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(message)


def test_everything_wrong_is_reported_at_once(run: Run) -> None:
    result = run("awq", "--samples", "0", "--bits", "5", "--target", "gpu")
    assert result.err.startswith("error: 4 problems:\n  1. --bits 5:")


def test_a_folder_that_is_no_artifact_exits_with_6(run: Run) -> None:
    assert run("show", ".").code == 6


LONG = "a" * 5000


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["awq", LONG], 3),
        (["awq", "a/" * 1900], 3),
        (["awq", "~nobody-of-this-name/x"], 3),
        (["awq", ".", "--target-folder", "~nobody-of-this-name/x"], 2),
        (["show", LONG], 2),
        (["verify", LONG], 2),
        (["push", LONG, "me/x"], 2),
        (["bench", LONG], 2),
    ],
)
def test_a_path_that_cannot_exist_is_no_defect(run: Run, args: list[str], code: int) -> None:
    result = run(*args)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")


def test_an_error_has_no_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "cli", failing_with(ArtifactError("bad.", hint="Do this.")))
    result = run("fail")
    assert (result.code, result.err) == (6, "error: bad.\n  hint: Do this.\n")


TITLE, SHOWN = "\x1b]0;owned\x07\x9b2J\u202etxt", r"\u001b]0;owned\u0007\u009b2J\u202etxt"


@pytest.mark.parametrize("error", [ArtifactError, click.UsageError])
def test_terminal_sequences_in_an_error_are_visible(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    monkeypatch.setattr(program, "cli", failing_with(error(f"{TITLE} is bad.")))
    assert f"{SHOWN} is bad." in run("fail").err


def test_terminal_sequences_in_a_defect_and_its_traceback_are_visible(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "cli", failing_with(ValueError(TITLE)))
    monkeypatch.setenv("GEMQUANT_DEBUG", "1")
    shown = run("fail").err
    assert SHOWN in shown
    assert "\x1b" not in shown


def test_terminal_sequences_in_a_log_line_are_visible(run: Run) -> None:
    run("targets", "-v")  # adds the handler
    handler = logging.getLogger("gemquant").handlers[0]
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr(click, "echo", lambda text, **_: lines.append(text))
        handler.emit(logging.makeLogRecord({"msg": TITLE, "levelname": "INFO", "name": "g"}))
    assert lines == [f"INFO g: {SHOWN}"]


def test_a_traceback_is_printed_when_debugging(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "cli", failing_with(ArtifactError("bad.")))
    monkeypatch.setenv("GEMQUANT_DEBUG", "1")
    assert "Traceback" in run("fail").err


def test_a_defect_exits_with_70_and_says_how_to_report_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "cli", failing_with(KeyError("rows")))
    result = run("fail")
    assert result.code == 70
    assert result.err.startswith("internal error: KeyError: 'rows'\n")
    assert "with -vv" in result.err


def test_an_interrupt_exits_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "cli", failing_with(KeyboardInterrupt()))
    assert run("fail").code == 130


def test_a_reader_that_leaves_is_no_cause_for_words() -> None:
    script = "import sys; from gemquant.__main__ import main; sys.exit(main(['targets', '--json']))"
    with subprocess.Popen(
        [sys.executable, "-c", f"import time; time.sleep(0.3); {script}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (1, b"")


def test_verify_reports_every_artifact(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    result = run("verify", "a", "b", "--json", "--quiet")
    assert result.code == 6
    assert [(r["path"], r["valid"]) for r in json.loads(result.out)] == [
        ("a", False),
        ("b", False),
    ]
