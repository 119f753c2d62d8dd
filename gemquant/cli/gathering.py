"""Run steps that may complain, and report all complaints together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gemquant.errors import GemquantError, Problems, refuse

T = TypeVar("T")


@dataclass(frozen=True)
class Attempt(Generic[T]):
    """What became of a step."""

    outcome: T | GemquantError

    @property
    def succeeded(self) -> bool:
        """Whether there is a result."""
        return not isinstance(self.outcome, GemquantError)

    @property
    def value(self) -> T:
        """The step's result; raises the step's own complaint if there is none.

        A step that needs the result of one that failed thus fails with the same complaint, which
        is reported once.
        """
        if isinstance(self.outcome, GemquantError):
            raise self.outcome
        return self.outcome


class Gathering:
    """Runs steps one after the other and keeps what they complain about."""

    def __init__(self) -> None:
        self._problems: dict[str, GemquantError] = {}

    def attempt(self, step: Callable[[], T]) -> Attempt[T]:
        """Run one step."""
        try:
            return Attempt(step())
        except GemquantError as error:
            several = error.problems if isinstance(error, Problems) else (error,)
            self._problems |= {str(problem): problem for problem in several}
            return Attempt(error)

    def refuse(self) -> None:
        """Raise everything gathered so far; return quietly if there is nothing."""
        refuse(list(self._problems.values()))
