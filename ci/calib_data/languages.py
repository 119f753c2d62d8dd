"""Text in languages other than English."""

from __future__ import annotations

import re
from pathlib import Path

from documents import Document, as_texts, sections
from markup import html_text

# Words that are frequent in English and rare in the handbook's other languages.
ENGLISH = frozenset(
    ["the", "of", "and", "to", "is", "that", "for", "with", "be", "this", "which", "by"]
)

OTHER_SCRIPTS = ("ar", "fa", "ja", "ru", "zh")

HANDBOOK = "usr/share/doc/debian-handbook/html"


def handbook(root: Path, language: str) -> list[Document]:
    """The handbook in one language, without the paragraphs left in English."""
    texts = []
    for page in _pages(root, language):
        translated = [p for p in _paragraphs(page) if _is_in(p, language)]
        texts += list(sections("\n\n".join(translated), longest=1800))
    return as_texts(texts)


def _is_in(paragraph: str, language: str) -> bool:
    if language[:2] in OTHER_SCRIPTS:
        return sum(not c.isascii() for c in paragraph) > 0.3 * len(paragraph)
    return _is_english(paragraph) == (language == "en-US")


def _is_english(paragraph: str) -> bool:
    words = paragraph.lower().split()
    return sum(word in ENGLISH for word in words) > 0.08 * len(words)


def _pages(root: Path, language: str) -> list[Path]:
    return sorted((root / HANDBOOK / language).glob("sect.*.html"))


def _paragraphs(page: Path) -> list[str]:
    listings = re.compile(r"<pre\b.*?</pre>", re.DOTALL)  # commands, the same in every language
    text = html_text(listings.sub("", page.read_text(encoding="utf-8")))
    return [" ".join(p.split()) for p in text.split("\n\n") if len(p) > 60]


def node_help(root: Path, language: str) -> list[Document]:
    """Help pages of Node-RED's nodes in one language."""
    files = sorted((root / "package" / "locales" / language).glob("**/*.html"))
    texts = (_help(path.read_text(encoding="utf-8")) for path in files)
    return as_texts(piece for text in texts for piece in sections(text, longest=1800, shortest=200))


def _help(page: str) -> str:
    # The help is HTML within <script type="text/html">, which a parser takes for a program.
    return html_text(page.replace("<script", "<section").replace("</script", "</section"))
