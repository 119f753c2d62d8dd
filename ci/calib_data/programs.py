"""Source files, cut at empty lines between definitions."""

from __future__ import annotations

import re
from pathlib import Path

from documents import Document, as_texts, sections

LEFT_OUT = re.compile(
    r"test|tables?\b|unicode_data|vendor|generated|__pycache__|idlelib|pydoc_data"
)


def sources(root: Path, *patterns: str, leave_out: str = "^$") -> list[Document]:
    """Files that match a pattern, except tests, tables and generated code."""
    files = sorted(path for pattern in patterns for path in root.glob(pattern) if path.is_file())
    pieces: list[str] = []
    for path in files:
        inside = str(path.relative_to(root))
        if LEFT_OUT.search(inside) or re.search(leave_out, inside):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        pieces += sections(text, longest=3000, empty_lines=2)
    return as_texts(pieces)
