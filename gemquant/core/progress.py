"""What long work reports to."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What long work reports to: tasks counted in steps, and remarks."""

    def start(self, task: str, total: int) -> None:
        """A task of ``total`` steps begins; 0: of unknown length, until another one begins."""

    def advance(self, task: str, amount: int = 1) -> None:
        """Some steps of a task are done."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


class Silence:
    """Progress that says nothing."""

    def start(self, task: str, total: int) -> None:
        """Say nothing."""

    def advance(self, task: str, amount: int = 1) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
