"""Progress: plain lines where stderr is no terminal, nothing where it was not wanted."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from gemquant.core.progress import Bars, Lines, print_end, reporter
from tests.helpers.tiny_gemma import write_tiny_gemma
from tests.unit.cli.conftest import Run


def test_lines_mark_start_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.start("blocks", 3)
    for _ in range(3):
        lines.advance("blocks")
    assert capsys.readouterr().err == "blocks: 0/3\nblocks: 3/3\n"


class Clock:
    """Seconds that only a test lets pass."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


def test_lines_say_every_ten_seconds_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lines = Clock(monkeypatch), Lines()
    lines.start("blocks", 9)
    clock.now += 4
    lines.advance("blocks", 2)
    clock.now += 7
    lines.advance("blocks", 2)
    assert capsys.readouterr().err == "blocks: 0/9\nblocks: 4/9, 18 s left\n"


def test_a_resumed_task_does_not_count_what_was_done_before(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lines = Clock(monkeypatch), Lines()
    lines.start("blocks", 100)
    lines.advance("blocks", 90)
    clock.now += 60
    lines.advance("blocks")
    assert capsys.readouterr().err == "blocks: 0/100\nblocks: 91/100, 9 min 0 s left\n"


def test_a_task_that_does_not_advance_is_mentioned_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lines = Clock(monkeypatch), Lines()
    lines.start("opening gemma", 0)
    for _ in range(5):
        clock.now += 5
        lines.remind()
    assert capsys.readouterr().err == (
        "opening gemma\nopening gemma, for 10 s\nopening gemma, for 20 s\n"
    )


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(quiet=True) as progress:
        progress.start("blocks", 1)
        progress.advance("blocks")
        progress.note("done")
    print_end("gemquant show out", quiet=True)
    assert capsys.readouterr().err == ""


def test_nothing_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(quiet=False) as progress:
        progress.note("opening")
    print_end("gemquant show out", quiet=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"opening\ndone in [\d a-z]+, peak memory [\d.]+ [GM]B\nnext: gemquant show out\n", err
    )


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


def test_only_unfinished_tasks_have_a_bar() -> None:
    with Progress(console=Console(file=io.StringIO())) as progress:
        bars = Bars(progress)
        bars.start("opening", 0)
        bars.start("measuring", 2)
        bars.start("layers", 1)
        bars.advance("layers")
        bars.start("comparing", 3)
        assert [task.description for task in progress.tasks] == ["measuring", "comparing"]


def test_every_phase_of_a_conversion_is_named(run: Run, tmp_path: Path) -> None:
    write_tiny_gemma(tmp_path / "model", "gemma2")
    made = run("rtn", "model", "-o", "out", "--threads", "1", "--eval-windows", "1")
    assert made.code == 0, made.err
    phases = [re.split("[:,]", line)[0] for line in made.err.splitlines()]
    assert list(dict.fromkeys(phases)) == [
        "opening model",
        "looking for a 4-bit grid",
        "reading the evaluation text",
        "embedding the text",
        "quantizing layers",
        "comparing predictions",
        "writing and hashing files",
        phases[-3],
        "next",
    ]
    assert phases[-3].startswith("done in ")
    assert made.err.endswith("next: gemquant show out\nnext: gemquant push out ME/out\n")


def test_the_first_line_comes_before_torch_is_imported() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; from gemquant.__main__ import main; "
        "main(['awq', 'nowhere/model'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith("opening nowhere/model\n")
