"""Progress on stderr: bars where it is a terminal, plain lines where it is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gemquant.core.progress import Progress, Silence
from gemquant.errors import echo, inert

if TYPE_CHECKING:
    import rich.progress

SECONDS_BETWEEN_LINES = 10.0


class Lines:
    """A line when a task starts and ends, and every ten seconds between."""

    def __init__(self) -> None:
        self._total: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._last = 0.0

    def start(self, task: str, total: int) -> None:
        """Print the task's name."""
        self._total[task], self._done[task] = total, 0
        self._say(f"{task}: 0/{total}")

    def advance(self, task: str, amount: int = 1) -> None:
        """Print the count when the task is done, or ten seconds after the last line."""
        self._done[task] += amount
        finished = self._done[task] >= self._total[task]
        if finished or time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._say(f"{task}: {self._done[task]}/{self._total[task]}")

    def note(self, text: str) -> None:
        """Print the note."""
        self._say(text)

    def _say(self, text: str) -> None:
        self._last = time.monotonic()
        echo(text, err=True)


class Bars:
    """A bar per task, through rich."""

    def __init__(self, progress: rich.progress.Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def start(self, task: str, total: int) -> None:
        """Show a bar."""
        self._tasks[task] = self._progress.add_task(inert(task), total=total)

    def advance(self, task: str, amount: int = 1) -> None:
        """Move the bar."""
        self._progress.advance(self._tasks[task], amount)

    def note(self, text: str) -> None:
        """Print the note above the bars."""
        self._progress.console.print(inert(text), markup=False, highlight=False)


@contextmanager
def reporter(*, quiet: bool) -> Iterator[Progress]:
    """Yield what suits stderr."""
    if quiet:
        yield Silence()
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        import rich.progress
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        with rich.progress.Progress(*columns, console=console, transient=True) as bars:
            yield Bars(bars)
