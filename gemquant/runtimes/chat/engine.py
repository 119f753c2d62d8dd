"""What answers: the part that differs from runtime to runtime."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from gemquant.errors import GemquantError
from gemquant.runtimes.chat.sampling import Sampling

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": "…"}"""


class ContextFullError(GemquantError):
    """The conversation is longer than the model's context."""


class Engine(Protocol):
    """A loaded model that answers one conversation at a time."""

    @property
    def description(self) -> str:
        """Runtime, version and what it computes in."""

    @property
    def context(self) -> int:
        """Tokens that a conversation may have, its answer included."""

    def answer(
        self, messages: Sequence[Message], sampling: Sampling, stop: threading.Event
    ) -> Iterator[str]:
        """Yield the answer piece by piece; soon after ``stop`` is set, no more.

        Raises ContextFullError where the conversation does not fit, another GemquantError where the
        template refuses it.
        """

    def close(self) -> None:
        """Free the model, as far as the runtime can before the process ends."""
