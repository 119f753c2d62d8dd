from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence

import pytest

from gemquant.errors import UsageError
from gemquant.models.chat import Message
from gemquant.runtimes.chat.session import Session
from gemquant.runtimes.sampling import Sampling, stream_from_callback


class Echo:
    """Answers with the number of messages; remembers what it was asked."""

    software, context = "echo", 100

    def __init__(self) -> None:
        self.asked: list[Sequence[Message]] = []

    def answer(
        self, messages: Sequence[Message], sampling: Sampling, stop: threading.Event
    ) -> Generator[str, None, None]:
        self.asked.append(list(messages))
        yield "heard "
        yield str(len(messages))


def test_every_turn_is_remembered():
    engine = Echo()
    session = Session(engine, Sampling(), None)
    assert session.ask("a", lambda _: None)
    assert session.ask("b", lambda _: None)
    assert engine.asked[1] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "heard 1"},
        {"role": "user", "content": "b"},
    ]


def test_a_new_conversation_keeps_the_systems_words():
    engine = Echo()
    session = Session(engine, Sampling(), "Be brief.")
    session.ask("a", lambda _: None)
    session.restart()
    session.ask("b", lambda _: None)
    assert engine.asked[1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "b"},
    ]


def interrupting_after(count: int) -> Callable[[str], None]:
    heard: list[str] = []

    def say(piece: str) -> None:
        heard.append(piece)
        if len(heard) == count:
            raise KeyboardInterrupt

    return say


def test_an_interrupted_answer_stays_as_far_as_it_went():
    session = Session(Echo(), Sampling(), None)
    assert not session.ask("a", interrupting_after(1))
    assert session.messages[-1] == {"role": "assistant", "content": "heard "}


def test_a_question_that_failed_is_forgotten():
    class Failing(Echo):
        def answer(
            self, messages: Sequence[Message], sampling: Sampling, stop: threading.Event
        ) -> Generator[str, None, None]:
            raise UsageError("no")
            yield ""

    session = Session(Failing(), Sampling(), None)
    with pytest.raises(UsageError):
        session.ask("a", lambda _: None)
    assert session.messages == []


def test_pieces_come_while_they_are_made():
    more = threading.Event()

    def produce(put: Callable[[str], None]) -> None:
        put("first")
        assert more.wait(10)
        put("second")

    pieces = stream_from_callback(produce, threading.Event())
    assert next(pieces) == "first"
    more.set()
    assert list(pieces) == ["second"]


def test_who_takes_no_more_stops_the_other_thread():
    stop, ended = threading.Event(), threading.Event()

    def produce(put: Callable[[str], None]) -> None:
        while not stop.is_set():
            put("more")
        ended.set()

    pieces = stream_from_callback(produce, stop)
    next(pieces)
    pieces.close()
    assert ended.wait(10)


def test_a_failure_in_the_other_thread_is_raised_in_this_one():
    def produce(put: Callable[[str], None]) -> None:
        put("a")
        raise UsageError("no more")

    pieces = stream_from_callback(produce, threading.Event())
    assert next(pieces) == "a"
    with pytest.raises(UsageError, match="no more"):
        next(pieces)
