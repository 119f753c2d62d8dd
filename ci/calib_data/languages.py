"""Text in languages other than English."""

from __future__ import annotations

from pathlib import Path

from documents import Document, as_texts, sections
from markup import html_text

HANDBOOK = "usr/share/doc/debian-handbook/html"


def handbook(root: Path, language: str) -> list[Document]:
    """The handbook in one language, without the paragraphs left in English."""
    english = {p for page in _pages(root, "en-US") for p in _paragraphs(page)}
    texts = []
    for page in _pages(root, language):
        translated = [p for p in _paragraphs(page) if language == "en-US" or p not in english]
        texts += list(sections("\n\n".join(translated), longest=2500))
    return as_texts(texts)


def _pages(root: Path, language: str) -> list[Path]:
    return sorted((root / HANDBOOK / language).glob("sect.*.html"))


def _paragraphs(page: Path) -> list[str]:
    text = html_text(page.read_text(encoding="utf-8"))
    return [" ".join(p.split()) for p in text.split("\n\n") if len(p) > 60]


def node_help(root: Path, language: str) -> list[Document]:
    """Help pages of Node-RED's nodes in one language."""
    files = sorted((root / "package" / "locales" / language).glob("**/*.html"))
    texts = (_help(path.read_text(encoding="utf-8")) for path in files)
    return as_texts(piece for text in texts for piece in sections(text, longest=2500, shortest=200))


def _help(page: str) -> str:
    # The help is HTML within <script type="text/html">, which a parser takes for a program.
    return html_text(page.replace("<script", "<section").replace("</script", "</section"))
