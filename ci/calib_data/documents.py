"""Whole works cut into documents of a few thousand characters, and an even sample of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Document = dict[str, Any]

LONGEST = 2400
SHORTEST = 400


def tidy(text: str, *, empty_lines: int = 1) -> str:
    """NFC, Unix line ends, no trailing blanks, no control characters, few empty lines in a row."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ufeff]", "", text)
    text = re.sub(r"[ \t\xa0]+\n", "\n", text)
    newlines = "\n" * (empty_lines + 1)
    return re.sub(newlines + r"\n+", newlines, text).strip("\n ")


def sections(
    text: str, *, longest: int = LONGEST, shortest: int = SHORTEST, empty_lines: int = 1
) -> Iterator[str]:
    """Cut at empty lines into pieces of at most ``longest`` characters; drop what is too short."""
    piece: list[str] = []
    size = 0
    for paragraph in tidy(text, empty_lines=empty_lines).split("\n\n"):
        if size and size + len(paragraph) > longest:
            if size >= shortest:
                yield "\n\n".join(piece).strip("\n")
            piece, size = [], 0
        if len(paragraph) <= longest:
            piece.append(paragraph)
            size += len(paragraph) + 2
    if size >= shortest:
        yield "\n\n".join(piece).strip("\n")


def as_texts(texts: Iterable[str]) -> list[Document]:
    """Documents {"text": …}, the first of each repeated text only."""
    return [{"text": text} for text in dict.fromkeys(texts)]


def as_chat(conversations: Iterable[Sequence[str]]) -> list[Document]:
    """Documents {"messages": […]}: turns of user and assistant in alternation, user first."""
    unique = dict.fromkeys(tuple(tidy(turn) for turn in turns) for turns in conversations)
    return [
        {
            "messages": [
                {"role": ("user", "assistant")[n % 2], "content": turn}
                for n, turn in enumerate(turns)
            ]
        }
        for turns in unique
        if len(turns) >= 2 and len(turns) % 2 == 0 and all(turns)
    ]


def evenly(documents: Sequence[Document], budget: int, size_of: Any) -> list[Document]:
    """Every k-th document, so that about ``budget`` bytes come from the whole of the source."""
    total = sum(size_of(document) for document in documents)
    if total <= budget:
        return list(documents)
    keep = budget / total
    return [d for n, d in enumerate(documents) if int((n + 1) * keep) > int(n * keep)]
