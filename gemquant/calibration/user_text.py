"""The user's own text: FILE.txt or FILE.jsonl."""

from __future__ import annotations

from pathlib import Path

from gemquant.calibration.documents import Document, Plain, parse_lines
from gemquant.errors import CalibrationError, refuse

LARGEST_FILE = 1 << 30
"""Bytes; calibration reads far less, and the file is held in memory."""


def read_user_file(path: Path, *, flag: str = "--calib") -> list[Document]:
    """The documents of a file.

    FILE.txt: UTF-8; form feeds separate documents, a file without any is one document.
    FILE.jsonl: on each line {"text": …} or {"messages": [{"role": …, "content": …}, …]}.
    flag: what named the file, for messages.
    Raises CalibrationError; for JSON lines, every bad line at once.
    """
    source = f"{flag} {path}"
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise CalibrationError(
            f"{source}: the name ends in {path.suffix or 'no suffix'}; known are .txt and .jsonl.",
            hint='Plain text goes into FILE.txt, {"text": …} or {"messages": […]} into FILE.jsonl.',
        )
    content = _content(path, source)
    if path.suffix.lower() == ".jsonl":
        documents, problems = parse_lines(content, source)
        refuse(problems)
    else:
        documents = [Plain(part) for part in _decoded(content, source).split("\f")]
    documents = [d for d in documents if not (isinstance(d, Plain) and not d.text.strip())]
    if not documents:
        raise CalibrationError(f"{source}: holds no text.", hint="Give a file with text in it.")
    return documents


def _content(path: Path, source: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise CalibrationError(
                f"{source}: {size} bytes; at most {LARGEST_FILE} are read.",
                hint=f"Take a part of it: head -c 100M {path} > part{path.suffix}",
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise CalibrationError(f"{source}: there is no such file.") from None
    except OSError as error:
        raise CalibrationError(f"{source}: cannot be read: {error.strerror}.") from None


def _decoded(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CalibrationError(
            f"{source}, line {line}: byte {error.start} is not UTF-8.",
            hint="Convert it: iconv -f latin1 -t utf-8 FILE.txt > FILE-utf8.txt",
        ) from None
