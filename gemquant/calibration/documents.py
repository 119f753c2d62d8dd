"""Documents of calibration text: JSON lines, the user's FILE.txt or FILE.jsonl, hf: data sets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import CalibrationError, GemquantError, RuntimeMissingError, UsageError, refuse

LONGEST_LINE = 16_000_000
"""Bytes of one line of JSON."""

MOST_PROBLEMS = 20
"""Bad lines reported one by one; the rest are counted."""

ROLES = ("system", "user", "assistant", "model")


@dataclass(frozen=True)
class Plain:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns that the model's chat template makes into text: {"role": …, "content": …}."""

    messages: tuple[Mapping[str, str], ...]


Document = Plain | Conversation


class BadLineError(ValueError):
    """A line that is not a document, with the reason."""


def parse_lines(content: bytes, source: str) -> tuple[list[Document], list[GemquantError]]:
    """Read JSON lines: {"text": …} or {"messages": […]} each; empty lines are skipped.

    Returns the documents and one error for each bad line, with its number.
    """
    documents: list[Document] = []
    problems: list[GemquantError] = []
    bad = 0
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            if line.strip():
                documents.append(_document(line))
        except BadLineError as why:
            bad += 1
            if bad <= MOST_PROBLEMS:
                problems.append(CalibrationError(f"{source}, line {number}: {why}."))
    if bad > MOST_PROBLEMS:
        problems.append(CalibrationError(f"{source}: {bad - MOST_PROBLEMS} more bad lines."))
    return documents, problems


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
        keys = ", ".join(sorted(map(str, record))[:8]) or "none"
        raise BadLineError(f'needs either "text" or "messages"; its keys are: {keys}')
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


LARGEST_FILE = 1 << 30
"""Bytes; calibration reads far less, and the file is held in memory."""


def read_user_file(path: Path, *, flag: str = "--calib") -> list[Document]:
    """The documents of a file.

    FILE.txt: UTF-8; form feeds separate documents, a file without any is one document.
    FILE.jsonl: on each line {"text": …} or {"messages": [{"role": …, "content": …}, …]}.
    flag: the flag that named the file, for messages.
    Raises CalibrationError; for JSON lines, every bad line at once.
    """
    source = f"{flag} {path}"
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise CalibrationError(
            f"{source}: the name ends in {path.suffix or 'no suffix'}; known are .txt and .jsonl.",
            hint='Plain text goes into FILE.txt, {"text": …} or {"messages": […]} into FILE.jsonl.',
        )
    hint = None
    with suppress(OSError):
        if path.stat().st_size > LARGEST_FILE:
            hint = f"Take a part of it: head -c 100M {path} > part{path.suffix}"
    content = UntrustedFile(path, LARGEST_FILE, CalibrationError, hint, source).bytes()
    if path.suffix.lower() == ".jsonl":
        documents, problems = parse_lines(content, source)
        refuse(problems)
    else:
        documents = [Plain(part) for part in _decoded(content, source).split("\f")]
    documents = [d for d in documents if not (isinstance(d, Plain) and not d.text.strip())]
    if not documents:
        raise CalibrationError(f"{source}: holds no text.", hint="Give a file with text in it.")
    return documents


def _decoded(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CalibrationError(
            f"{source}, line {line}: byte {error.start} is not UTF-8.",
            hint="Convert it: iconv -f latin1 -t utf-8 FILE.txt > FILE-utf8.txt",
        ) from None


PREFIX = "hf:"
MOST_ROWS = 4000
"""Rows read from the start of a split; the seed draws their order."""
MOST_CHARACTERS = 64_000_000


def read_hub_dataset(source: str) -> list[Document]:
    """The first rows of a split as documents.

    source: ``hf:DATASET``, ``hf:DATASET:SPLIT`` (default: train) or ``hf:DATASET:SPLIT:COLUMN``
    (default: ``text`` or ``messages``, whichever the rows have).
    Raises RuntimeMissingError without the ``datasets`` package, UsageError for a malformed source,
    CalibrationError if the data set cannot be reached or has no such split or column.
    """
    name, split, column = _parts(source)
    try:
        import datasets
    except ImportError:
        raise RuntimeMissingError(
            f"--calib {source}: needs the package datasets, which is not installed.",
            hint="pip install 'datasets>=4'",
        ) from None
    try:
        stream = datasets.load_dataset(name, split=split, streaming=True)
        rows = list(islice(stream, MOST_ROWS))
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        why = " ".join(str(error).split())[:300]
        raise CalibrationError(
            f"--calib {source}: cannot be read from the Hub: {why}",
            hint="Check the name and the network, or use a file: --calib FILE.jsonl",
        ) from None
    return _documents(rows, column, source)


def _parts(source: str) -> tuple[str, str, str | None]:
    name, *others = source.removeprefix(PREFIX).split(":")
    if not name or len(others) > 2 or "" in others:
        raise UsageError(
            f"--calib {source}: not of the form hf:DATASET[:SPLIT[:COLUMN]].",
            hint="For example: --calib hf:roneneldan/TinyStories:validation:text",
        )
    return name, others[0] if others else "train", others[1] if len(others) > 1 else None


def _documents(
    rows: Iterable[Mapping[str, Any]], column: str | None, source: str
) -> list[Document]:
    documents: list[Document] = []
    characters = 0
    for number, row in enumerate(rows, 1):
        key = column or ("messages" if "messages" in row and "text" not in row else "text")
        if key not in row:
            raise CalibrationError(
                f"--calib {source}: no column {key}; there are {', '.join(map(str, row))}.",
                hint="Name one: --calib hf:DATASET:SPLIT:COLUMN",
            )
        try:
            document = document_of({"messages" if isinstance(row[key], list) else "text": row[key]})
        except BadLineError as why:
            raise CalibrationError(f"--calib {source}, row {number}: {why}.") from None
        if isinstance(document, Plain):
            characters += len(document.text)
        if not isinstance(document, Plain) or document.text.strip():
            documents.append(document)
        if characters > MOST_CHARACTERS:
            break
    if not documents:
        raise CalibrationError(f"--calib {source}: the rows hold no text.")
    return documents
