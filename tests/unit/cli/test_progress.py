"""Progress: plain lines where stderr is no terminal, nothing where it was not wanted."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from gemquant.cli.progress import Bars, Lines, reporter


def test_lines_mark_start_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.start("blocks", 3)
    for _ in range(3):
        lines.advance("blocks")
    assert capsys.readouterr().err == "blocks: 0/3\nblocks: 3/3\n"


def test_lines_say_something_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 4.0, 11.0, 11.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    lines = Lines()
    lines.start("blocks", 9)
    lines.advance("blocks", 2)
    lines.advance("blocks", 2)
    assert capsys.readouterr().err == "blocks: 0/9\nblocks: 4/9\n"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(quiet=True) as progress:
        progress.start("blocks", 1)
        progress.advance("blocks")
        progress.note("done")
    assert capsys.readouterr().err == ""


def test_nothing_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(quiet=False) as progress:
        progress.note("opening")
    assert capsys.readouterr() == ("", "opening\n")


def test_a_terminal_gets_bars() -> None:
    screen = io.StringIO()
    with Progress(console=Console(file=screen, force_terminal=True)) as progress:
        bars = Bars(progress)
        bars.start("blocks", 2)
        bars.advance("blocks", 2)
        bars.note("[not markup]")
    assert "blocks" in screen.getvalue()
    assert "[not markup]" in screen.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_terminal_sequences_in_a_note_are_visible(
    terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=80)
    progress = Bars(Progress(console=console)) if terminal else Lines()
    progress.note("\x1b]0;owned\x07")
    assert printed.getvalue() + capsys.readouterr().err == "\\u001b]0;owned\\u0007\n"
