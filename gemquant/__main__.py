"""Entry point: run the command line and turn every failure into one screen and an exit code."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from types import FrameType
from typing import NoReturn

import click

from gemquant.cli import cli
from gemquant.core.resources import open_missing_streams, yield_idle_processors
from gemquant.errors import GemquantError, OutputError, UsageError, echo

INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h
# 128 + SIGINT, 128 + SIGTERM, as shells report them.
ENDINGS = {False: ("interrupted", 130), True: ("terminated", 143)}
SECONDS_TO_UNWIND = 1.0
LEAST_ALIKE = 0.65
"""Ratio of difflib, from 0 to 1."""
PATH_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_LONGEST_NAME = 300
BROKEN_PIPE = 1  # what Click answers when it notices first


def run() -> int:
    """The program: prepare this process, then run ``main`` on its arguments."""
    open_missing_streams()
    yield_idle_processors()
    # A scratch folder must go on SIGTERM as it does on Ctrl-C.
    signal.signal(signal.SIGTERM, _ends_by(Terminated))
    signal.signal(signal.SIGINT, _ends_by(Interrupted))
    return main()


def main(args: Sequence[str] | None = None) -> int:
    """Run ``gemquant`` with ``args`` (``sys.argv`` by default) and return the exit code."""
    try:
        code = cli.main(args, prog_name="gemquant", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        _trace_if_debugging()
        if isinstance(error, click.NoSuchOption):  # Click offers what is hardly alike
            name = error.option_name
            alike = [each for each in error.possibilities or () if _alike(name, each)]
            error = click.NoSuchOption(name, possibilities=alike, ctx=error.ctx)
        shown = io.StringIO()
        error.show(shown)
        echo(shown.getvalue(), err=True, nl=False)
        return error.exit_code
    except (Terminated, click.Abort, KeyboardInterrupt) as stop:
        _raise_again(0.0)
        ended, code = ENDINGS[isinstance(stop, Terminated)]
        # Click turns a KeyboardInterrupt into its own exception.
        left = _notes(stop) or _notes(stop.__cause__) or ["nothing was left behind"]
        echo(f"{ended}; {left[-1]}", err=True)
        return code
    except OSError as error:
        return _system_failed(error)
    except Exception as error:  # noqa: BLE001 - the last place where it can be explained
        return _internal_error(error)
    return code if isinstance(code, int) else 0


def _alike(wrong: str, known: str) -> bool:
    """Whether a flag may be meant by one that does not exist."""
    return SequenceMatcher(None, wrong.strip("-"), known.strip("-")).ratio() > LEAST_ALIKE


class Terminated(BaseException):
    """SIGTERM arrived."""


class Interrupted(KeyboardInterrupt):
    """SIGINT arrived; for a KeyboardInterrupt itself Python would kill the process at its end."""


def _ends_by(stop: type[BaseException]) -> Callable[[int, FrameType | None], NoReturn]:
    """A handler that raises ``stop``, and again where a library has swallowed it."""

    def end(_signal: int, _frame: FrameType | None) -> NoReturn:
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, again)
        _raise_again(SECONDS_TO_UNWIND)
        raise stop

    def again(number: int, frame: FrameType | None) -> None:
        error = sys.exc_info()[1]
        while error is not None and not isinstance(error, stop):
            error = error.__context__
        if error is None:  # nothing above this frame cleans up after it
            end(number, frame)

    return end


def _raise_again(seconds: float) -> None:
    """Look every so many seconds whether the exception was swallowed; never for 0."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)


def _system_failed(error: OSError) -> int:
    """The exit code of what is no defect: stdout without reader or space, a path that cannot be."""
    named = str(error.filename or "stdout")[:_LONGEST_NAME]
    if error.errno in PATH_ERRORS and error.filename:
        failure: GemquantError = UsageError(f"{named}: {error.strerror}.")
    elif error.errno in (errno.EPIPE, errno.ENOSPC):
        # What is still buffered cannot be written either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return BROKEN_PIPE
        failure = OutputError(f"{named} cannot be written: {error.strerror}.")
    else:
        return _internal_error(error)
    _trace_if_debugging()
    failure.show()
    return failure.exit_code


def _notes(error: BaseException | None) -> list[str]:
    return getattr(error, "__notes__", [])


def _debugging() -> bool:
    return bool(os.environ.get("GEMQUANT_DEBUG")) or (
        logging.getLogger("gemquant").getEffectiveLevel() <= logging.DEBUG
    )


def _trace_if_debugging() -> None:
    if _debugging():
        echo(traceback.format_exc(), err=True)


def _internal_error(error: Exception) -> int:
    _trace_if_debugging()
    echo(f"internal error: {type(error).__name__}: {error}", err=True)
    for note in _notes(error):
        echo(f"  note: {note}", err=True)
    if not _debugging():
        echo(
            "  hint: Run the same command again with -vv to see where it happened, and report\n"
            "        that output together with the command and `gemquant --version`.",
            err=True,
        )
    return INTERNAL_ERROR


if __name__ == "__main__":
    sys.exit(run())
