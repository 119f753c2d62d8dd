"""A conversation: its messages, and what becomes of them when an answer is cut short."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gemquant.runtimes.chat.engine import Engine, Message
from gemquant.runtimes.chat.sampling import Sampling


class Session:
    """Messages in the order in which they were said; the system's, if there is one, first."""

    def __init__(self, engine: Engine, sampling: Sampling, system: str | None) -> None:
        self._engine, self._sampling = engine, sampling
        self._opening: list[Message] = []
        if system is not None:
            self._opening = [{"role": "system", "content": system}]
        self.messages: list[Message] = list(self._opening)

    def restart(self) -> None:
        """Forget all but the system's words."""
        self.messages = list(self._opening)

    def ask(self, question: str, say: Callable[[str], None]) -> bool:
        """Pass the answer's pieces to ``say``; return whether it was left to its end.

        An interrupt ends the answer, and what was said of it stays part of the conversation. Where
        nothing was said the question is forgotten too, since roles must alternate.
        """
        asked = [*self.messages, {"role": "user", "content": question}]
        said: list[str] = []
        finished = True
        pieces = self._engine.answer(asked, self._sampling, threading.Event())
        try:
            for piece in pieces:
                said.append(piece)
                say(piece)
        except KeyboardInterrupt:
            finished = False
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        if said:
            self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]
        return finished
