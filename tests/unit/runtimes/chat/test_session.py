from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence

import pytest

from gemquant.errors import UsageError
from gemquant.models.chat import Message
from gemquant.runtimes.chat.session import Session, text_pieces
from gemquant.runtimes.sampling import Sampling, stream_from_callback
from gemquant.runtimes.text import TextInterface
from tests.helpers.tiny_gemma import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


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


@pytest.mark.parametrize(
    ("names", "pieces"),
    [
        (["<0xE2>", "<0x82>", "<0xAC>", "▁hello"], ["€", " hello"]),
        (["<0xE2>", "<0x82>", "<0xAC>", "<0xE2>", "▁hello"], ["€", "\ufffd hello"]),
        (["<0xE2>", "<0xE2>", "<0x82>", "<0xAC>"], ["\ufffd", "€"]),
        (["<0xFF>", "▁the", "<0xF0>", "<0x9F>"], ["\ufffd", " the", "\ufffd"]),
        (["▁the", "<end_of_turn>", "<0xE2>", "<end_of_turn>"], [" the", "\ufffd"]),
    ],
)
def test_any_bytes_become_text(names: list[str], pieces: list[str]) -> None:
    tokens = [TOKENIZER.token_to_id(name) for name in names]
    assert list(text_pieces(TOKENIZER, tokens)) == pieces


def test_pieces_together_are_what_tokenizers_decodes() -> None:
    text = "hello wörld 🦊, the quick brown fox: jumps €5\nover"
    tokens = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert "".join(text_pieces(TOKENIZER, tokens)) == TOKENIZER.decode(tokens) == text


@pytest.mark.parametrize(
    ("prompt", "tokens", "said"),
    [
        ([9], [4, 7, 8, 5, 10, 11], [10, 11]),
        ([9, 4, 7, 5], [10], [10]),
        ([9, 4, 7], [8, 5, 10, 4, 8], [10]),
        ([9], [10, 5, 11], [10, 11]),
    ],
    ids=["before", "empty-in-prompt", "begun-in-prompt", "end-alone"],
)
def test_thoughts_are_no_part_of_an_answer(
    prompt: list[int], tokens: list[int], said: list[int]
) -> None:
    text = TextInterface(TOKENIZER, 2, frozenset({1}), None, 512, thought=(4, 5))
    assert list(text.without_thoughts(prompt, tokens)) == said


def test_a_model_without_thoughts_says_everything() -> None:
    text = TextInterface(TOKENIZER, 2, frozenset({1}), None, 512)
    assert list(text.without_thoughts([9, 4], [7, 4, 5])) == [7, 4, 5]


def test_a_token_beyond_the_tokenizer_is_no_text() -> None:
    assert list(text_pieces(TOKENIZER, [10**6])) == []
