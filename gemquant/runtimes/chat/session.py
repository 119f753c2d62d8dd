"""A conversation: its messages, the model that answers, and answers that are cut short."""

from __future__ import annotations

import codecs
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

from gemquant.errors import GemquantError
from gemquant.models.chat import Message
from gemquant.runtimes.sampling import Sampling, stream_from_callback

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from gemquant.runtimes.text import TextInterface
    from gemquant.runtimes.transformers import Transformers


class ContextFullError(GemquantError):
    """The conversation is longer than the model's context."""


class ChatModel(Protocol):
    """A loaded model that answers one conversation at a time.

    software: runtime, version and type computed in. context: tokens of a conversation, its answer
    included.
    """

    software: str
    context: int

    def answer(
        self, messages: Sequence[Message], sampling: Sampling, stop: threading.Event
    ) -> Generator[str, None, None]:
        """Yield the answer piece by piece; soon after ``stop`` is set, no more.

        ContextFullError if the conversation does not fit, another GemquantError if the template
        refuses it.
        """


class TransformersChat:
    """A model of transformers that answers; text is rendered and tokenized here."""

    def __init__(
        self, runtime: Transformers, text: TextInterface, *, context: int, compiled: bool
    ) -> None:
        self.runtime, self.software, self.context = runtime, runtime.software, context
        self._text, self._compiled = text, compiled

    def answer(
        self, messages: Sequence[Message], sampling: Sampling, stop: threading.Event
    ) -> Generator[str, None, None]:
        """Yield the answer piece by piece."""
        text = self._text
        ids = text.encode(text.render(messages, add_generation_prompt=True))
        room = self.context - len(ids)
        if room < 1:
            raise ContextFullError(
                f"{len(ids)} tokens leave no room for an answer in a context of {self.context}"
            )

        def produce(put: Callable[[int], None]) -> None:
            self.runtime.sample(
                ids,
                sampling,
                end_tokens=sorted(text.end_tokens),
                limit=min(room, sampling.max_tokens),
                compiled=self._compiled,
                put=put,
                stop=stop,
            )

        def pieces() -> Generator[str, None, None]:
            with closing(stream_from_callback(produce, stop)) as tokens:
                yield from text_pieces(text.tokenizer, text.without_thoughts(ids, tokens))

        return pieces()


_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""Gemma's name of a token that is one byte of a character."""


def text_pieces(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Text of tokens as they come; bytes that are not UTF-8 become U+FFFD, special tokens nothing.

    tokenizers' DecodeStream refuses such bytes, since they change how earlier ones are decoded.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        if byte := _BYTE.fullmatch(tokenizer.id_to_token(token) or ""):
            piece = utf8.decode(bytes.fromhex(byte[1]))
        else:
            piece = utf8.decode(b"", final=True) + tokenizer.decode([token])
        if piece:
            yield piece
    if rest := utf8.decode(b"", final=True):
        yield rest


class Session:
    """Messages in order; the system message, if there is one, first."""

    def __init__(
        self,
        model: ChatModel,
        sampling: Sampling,
        system: str | None,
        media: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """media: images and sounds of the first question, as parts of a message."""
        self._model, self._sampling, self._media = model, sampling, media
        self._opening: list[Message] = []
        if system is not None:
            self._opening = [{"role": "system", "content": system}]
        self.messages: list[Message] = list(self._opening)

    def restart(self) -> None:
        """Forget everything except the system message."""
        self.messages = list(self._opening)

    def ask(self, question: str, show: Callable[[str], None]) -> bool:
        """Pass the answer's pieces to ``show``; return whether it was completed.

        An interrupt ends the answer; the part already shown stays in the conversation. If nothing
        was shown, the question is dropped too, since roles must alternate.
        """
        content: object = question
        if self._media and self.messages == self._opening:
            content = [*self._media, {"type": "text", "text": question}]
        messages: list[Message] = [*self.messages, {"role": "user", "content": content}]
        shown: list[str] = []
        completed = True
        with closing(self._model.answer(messages, self._sampling, threading.Event())) as answer:
            try:
                for piece in answer:
                    shown.append(piece)
                    show(piece)
            except KeyboardInterrupt:
                completed = False
        if shown:
            self.messages = [*messages, {"role": "assistant", "content": "".join(shown)}]
        return completed
