from __future__ import annotations

import pytest

from gemquant.calibration.documents import Conversation, Plain, parse_lines


def test_text_and_messages_are_read_and_empty_lines_skipped():
    documents, problems = parse_lines(
        b'{"text": "caf\xc3\xa9"}\n\n'
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "model", "content": "b"}]}\n',
        "x.jsonl",
    )
    assert documents == [
        Plain("café"),
        Conversation(
            ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
        ),
    ]
    assert problems == []


BAD = {
    b"{": "not JSON",
    b"[1]": "a list, not an object with text or messages",
    b'{"txt": "a"}': 'needs either "text" or "messages"; its keys are: txt',
    b'{"text": "a", "messages": []}': 'needs either "text" or "messages"',
    b'{"text": 1}': '"text" is a int, not a string',
    b'{"messages": []}': "must be a list with at least one message",
    b'{"messages": [{"role": "user"}]}': 'message 1 needs "role" and "content"',
    b'{"messages": [{"role": "bot", "content": "a"}]}': "role 'bot'; known are system, user",
    b'{"messages": [{"role": "user", "content": ["a"]}]}': '"content" is a list, not text',
    b'{"text": "\xff"}': "not UTF-8 at byte 10",
    b"[" * 100_000: "nested too deeply",
}


@pytest.mark.parametrize("line", BAD, ids=[why[:30] for why in BAD.values()])
def test_a_bad_line_is_named_with_its_number(line: bytes):
    documents, (problem,) = parse_lines(b'{"text": "fine"}\n' + line + b"\n", "x.jsonl")
    assert documents == [Plain("fine")]
    assert problem.message.startswith("x.jsonl, line 2: ")
    assert BAD[line] in problem.message


def test_every_bad_line_is_found_and_those_past_twenty_are_counted():
    _, problems = parse_lines(b"no\n" * 25, "x.jsonl")
    assert len(problems) == 21
    assert problems[19].message.startswith("x.jsonl, line 20: ")
    assert problems[20].message == "x.jsonl: 5 more bad lines."
