"""Errors that a user can act on, one exit code per class.

    GemquantError (1)
    ├── UsageError (2)          an option, a recipe or a combination of them is not valid
    ├── CheckpointError (3)     the model cannot be read: missing, truncated, inconsistent, gated
    ├── UnsupportedError (4)    readable, but this model, layer or target is not supported
    ├── CalibrationError (5)    the calibration or evaluation text cannot be used
    ├── ArtifactError (6)       an artifact is not what its manifest says
    ├── OutputError (7)         the destination exists, is read-only, or is full
    ├── RuntimeMissingError (8) an optional package or foreign runtime is not installed
    ├── WorkerError (9)         a foreign tool failed, took too much, or answered nonsense
    ├── RegressionError (10)    an artifact lost more than its budget allows
    ├── NotComparableError (11) two measurements are not of the same thing, or too few to decide
    └── Problems                several at once; exits with the code of the first

An error names the thing, its value and the rule; its ``hint`` is the next command to type.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any, ClassVar, Generic, TypeVar

import click

T = TypeVar("T")

# Controls of terminals and of the direction of writing, what ends a line, and lone surrogates.
_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def inert(text: str) -> str:
    r"""Text in which what a terminal would obey is visible, also in JSON.

    >>> inert("a\x1b]0;b\u202e")
    'a\\u001b]0;b\\u202e'
    """
    return _ACTIVE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def echo(
    text: str = "", *, err: bool = False, nl: bool = True, file: IO[Any] | None = None
) -> None:
    """Print text of any origin: everything that people read goes through here."""
    click.echo(inert(text), err=err, nl=nl, file=file)  # noqa: TID251


class GemquantError(click.ClickException):
    """Base of every error that is reported without a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes two errors the same problem: the class and every field."""
        return type(self), self.message, self.hint

    @property
    def parts(self) -> Sequence[GemquantError]:
        """The single problems that the error stands for."""
        return (self,)

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the message, its hint and its notes to ``file`` (stderr by default)."""
        echo(f"error: {self.with_notes}", file=file, err=file is None)

    @property
    def with_notes(self) -> str:
        """Message, hint and notes."""
        notes = [f"\n  note: {note}" for note in getattr(self, "__notes__", [])]
        return "".join([str(self), *notes])


class UsageError(GemquantError):
    """An option, a recipe or a combination of them is not valid."""

    exit_code = 2


class CheckpointError(GemquantError):
    """The model cannot be read: missing, truncated, inconsistent or gated."""

    exit_code = 3


class SourceLostError(CheckpointError):
    """A weight file shrank, or can be read no longer, while it was in use."""


class UnsupportedError(GemquantError):
    """The input can be read, but this model, layer or target is not supported."""

    exit_code = 4


class CalibrationError(GemquantError):
    """The calibration or evaluation text cannot be used."""

    exit_code = 5


class ArtifactError(GemquantError):
    """An artifact is not what its manifest says."""

    exit_code = 6


class OutputError(GemquantError):
    """The destination exists, cannot be written, or is full."""

    exit_code = 7


class BusyError(OutputError):
    """Another run is writing there at this moment."""


class RuntimeMissingError(GemquantError):
    """An optional package or a foreign runtime is not installed."""

    exit_code = 8


class WorkerError(GemquantError):
    """A foreign tool failed, took more time or memory than it may, or answered nonsense."""

    exit_code = 9


class RegressionError(GemquantError):
    """An artifact lost more than its budget allows."""

    exit_code = 10


class NotComparableError(GemquantError):
    """Two measurements are not of the same model, tokens or level, or too few to decide."""

    exit_code = 11


class Problems(GemquantError):  # noqa: N818 - it holds errors
    """Several errors reported together; exits with the code of the first."""

    def __init__(self, problems: Sequence[GemquantError]) -> None:
        super().__init__(f"{len(problems)} problems:")
        self.problems = tuple(problems)
        self.exit_code = problems[0].exit_code  # type: ignore[misc]

    def __str__(self) -> str:
        lines = [f"  {n}. {each.with_notes}" for n, each in enumerate(self.problems, 1)]
        return os.linesep.join([self.message, *(line.replace("\n", "\n   ") for line in lines)])

    @property
    def parts(self) -> Sequence[GemquantError]:
        """The errors that are reported together."""
        return self.problems


def command_with(arguments: str) -> str:
    """The command that is running, with other arguments, for a hint."""
    context = click.get_current_context(silent=True)
    return f"gemquant {(context and context.info_name) or 'COMMAND'} {arguments}"


def listed(values: Sequence[object], limit: int = 12) -> str:
    """Join values for a message; those beyond ``limit`` are counted."""
    rest = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(map(str, values[:limit])) + rest


def refuse(problems: Iterable[GemquantError]) -> None:
    """Raise all different problems at once; return if there is none."""
    different = {part.identity: part for problem in problems for part in problem.parts}
    match list(different.values()):
        case []:
            return
        case [problem]:
            raise problem
        case several:
            raise Problems(several)


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """The outcome of one step of a check: its result or its error."""

    outcome: T | GemquantError

    @property
    def succeeded(self) -> bool:
        """Whether the step returned."""
        return not isinstance(self.outcome, GemquantError)

    @property
    def value(self) -> T:
        """The step's result; raises the step's error if it failed.

        A later step that needs this result then fails with the same error, which is reported once.
        """
        if isinstance(self.outcome, GemquantError):
            raise self.outcome
        return self.outcome


class ProblemCollector(list[GemquantError]):
    """A list of problems; runs the steps of a check and adds the errors that they raise."""

    def attempt(self, step: Callable[[], T]) -> Attempt[T]:
        """Run one step. A GemquantError is collected; every other exception passes."""
        try:
            return Attempt(step())
        except GemquantError as error:
            self.append(error)
            return Attempt(error)

    def refuse(self) -> None:
        """Raise everything collected so far."""
        refuse(self)
