"""Documents, plain or conversations, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gemquant.errors import CalibrationError, GemquantError

LONGEST_LINE = 16_000_000
"""Bytes of one line of JSON."""

MOST_PROBLEMS = 20
"""Bad lines that are named; the others are counted."""

ROLES = ("system", "user", "assistant", "model")


@dataclass(frozen=True)
class Plain:
    """Text as it stands."""

    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns that the model's chat template makes into text: {"role": …, "content": …}."""

    messages: tuple[Mapping[str, str], ...]


Document = Plain | Conversation


class BadLineError(ValueError):
    """A line that is no document; the message says why."""


def parse_lines(content: bytes, source: str) -> tuple[list[Document], list[GemquantError]]:
    """Read JSON lines: {"text": …} or {"messages": […]} each; empty lines are skipped.

    Returns the documents and one error for each bad line, with its number.
    """
    documents: list[Document] = []
    problems: list[GemquantError] = []
    bad = 0
    for number, line in _lines(content):
        try:
            documents.append(_document(line))
        except BadLineError as why:
            bad += 1
            if bad <= MOST_PROBLEMS:
                problems.append(CalibrationError(f"{source}, line {number}: {why}."))
    if bad > MOST_PROBLEMS:
        problems.append(CalibrationError(f"{source}: {bad - MOST_PROBLEMS} more bad lines."))
    return documents, problems


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield number, line


def _document(line: bytes) -> Document:
    if len(line) > LONGEST_LINE:
        raise BadLineError(f"{len(line)} bytes; a line may have at most {LONGEST_LINE}")
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadLineError(f"not UTF-8 at byte {error.start}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        why = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise BadLineError(f"not JSON: {why}") from None
    if not isinstance(record, dict):
        raise BadLineError(f"a {type(record).__name__}, not an object with text or messages")
    return document_of(record)


def document_of(record: Mapping[str, Any]) -> Document:
    """A document from a record with either ``text`` or ``messages``; BadLineError if neither."""
    if ("text" in record) == ("messages" in record):
        found = ", ".join(sorted(map(str, record))[:8]) or "none"
        raise BadLineError(f'needs either "text" or "messages"; its keys are: {found}')
    if "text" in record:
        if not isinstance(record["text"], str):
            raise BadLineError(f'"text" is a {type(record["text"]).__name__}, not a string')
        return Plain(record["text"])
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadLineError('"messages" must be a list with at least one message')
    return Conversation(tuple(_message(message, n) for n, message in enumerate(messages, 1)))


def _message(message: Any, number: int) -> Mapping[str, str]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise BadLineError(f'message {number} needs "role" and "content"')
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise BadLineError(f"message {number} has role {role!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise BadLineError(f'message {number}: "content" is a {type(content).__name__}, not text')
    return {"role": "assistant" if role == "model" else role, "content": content}
