"""Progress on stderr: bars where it is a terminal, plain lines where it is not."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from gemquant.core.protocols import Progress, Silence
from gemquant.core.resources import human_bytes, human_seconds, peak_resident_bytes
from gemquant.errors import echo, inert

if TYPE_CHECKING:
    import rich.progress

STARTED = time.monotonic()
SECONDS_BETWEEN_LINES = 10.0


class Lines:
    """A line when a task starts and ends, and every ten seconds between."""

    def __init__(self) -> None:
        self._total: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._task: str | None = None
        self._started = self._last = 0.0
        self._first: tuple[int, float] | None = None

    def start(self, task: str, total: int) -> None:
        """Print the task's name."""
        self._total[task], self._done[task], self._task, self._first = total, 0, task, None
        self._say(f"{task}: 0/{total}" if total else task)
        self._started = self._last

    def advance(self, task: str, amount: int = 1) -> None:
        """Print the count when the task is done, or ten seconds after the last line."""
        self._done[task] += amount
        if self._done[task] >= self._total[task]:
            self._say(f"{task}: {self._done[task]}/{self._total[task]}")
            return
        self._task = task
        self._first = self._first or (self._done[task], time.monotonic())
        self.remind()

    def remind(self) -> None:
        """Print how far the task is, if ten seconds have passed without a line."""
        if self._task is None or time.monotonic() - self._last < SECONDS_BETWEEN_LINES:
            return
        done, total, now = self._done[self._task], self._total[self._task], time.monotonic()
        words = f"{self._task}: {done}/{total}" if total else self._task
        # The first step is no measure: it loads what the others find loaded, or was resumed.
        if self._first and done > self._first[0]:
            left = (now - self._first[1]) / (done - self._first[0]) * (total - done)
            self._say(f"{words}, {human_seconds(left)} left")
        else:
            self._say(f"{words}, for {human_seconds(now - self._started)}")

    def note(self, text: str) -> None:
        """Print the note."""
        self._say(text)

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        echo(text, err=True)


class Bars:
    """A bar for each unfinished task, through rich."""

    def __init__(self, progress: rich.progress.Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def start(self, task: str, total: int) -> None:
        """Show a bar; a task of unknown length before it has ended."""
        for name, number in list(self._tasks.items()):
            known = next(each for each in self._progress.tasks if each.id == number)
            if known.finished or known.total is None or name == task:
                self._progress.remove_task(self._tasks.pop(name))
        self._tasks[task] = self._progress.add_task(
            inert(task), total=total or None, of=f"/{total}" if total else ""
        )

    def advance(self, task: str, amount: int = 1) -> None:
        """Move the bar."""
        if task in self._tasks:
            self._progress.advance(self._tasks[task], amount)

    def note(self, text: str) -> None:
        """Print the note above the bars."""
        self._progress.console.print(inert(text), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def reporter(*, quiet: bool) -> Iterator[Progress]:
    """Yield what suits stderr, or the notebook."""
    if quiet:
        yield Silence()
    elif not sys.stderr.isatty() and not in_notebook():
        lines, ended = Lines(), threading.Event()

        def remind() -> None:
            while not ended.wait(1.0):
                lines.remind()

        thread = threading.Thread(target=remind, daemon=True)
        thread.start()
        try:
            yield lines
        finally:
            ended.set()
            thread.join()
    else:
        import rich.progress
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f}{task.fields[of]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=not in_notebook())
        with rich.progress.Progress(*columns, console=console, transient=True) as bars:
            yield Bars(bars)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this, with the widgets that rich's bars need."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel") and find_spec("ipywidgets") is not None


def print_end(*commands: str, quiet: bool) -> None:
    """Say on stderr what the run took, and what to type next."""
    if quiet:
        return
    peak = peak_resident_bytes()
    memory = f", peak memory {human_bytes(peak)}" if peak else ""
    echo(f"done in {human_seconds(time.monotonic() - STARTED)}{memory}", err=True)
    for command in commands:
        echo(f"next: {command}", err=True)
