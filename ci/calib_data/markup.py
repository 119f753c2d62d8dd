"""HTML pages and reStructuredText to plain text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

BLOCKS = {"p", "div", "section", "li", "ul", "ol", "dl", "dt", "dd", "table", "tr", "blockquote"}
BLOCKS |= {"h1", "h2", "h3", "h4", "h5", "h6", "pre", "figure", "article", "main", "body"}
SKIPPED = {"script", "style", "nav", "head", "footer", "header", "svg", "button", "noscript"}
SKIPPED_CLASSES = {"headerlink", "tooltip", "docnav", "sphinxsidebar", "related", "toc"}
SKIPPED_CLASSES |= {"test-arrow", "viewcode-link", "information", "fancy", "clipboard"}
VOID = {"br", "img", "hr", "meta", "link", "input", "col", "wbr", "area", "base", "source"}


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.open: list[tuple[str, bool]] = []
        self.pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "br":
            self.parts.append("\n")
        classes = set((dict(attrs).get("class") or "").split())
        if tag == "img" and "math" in classes:  # a formula, drawn; its source is the alternative
            self.handle_data(f"${dict(attrs).get('alt') or ''}$")
        if tag in VOID:
            return
        hidden = tag in SKIPPED or bool(classes & SKIPPED_CLASSES)
        self.open.append((tag, hidden or (bool(self.open) and self.open[-1][1])))
        self.pre += tag == "pre"
        if tag in BLOCKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag not in [name for name, _ in self.open]:
            return
        while self.open:
            name, _ = self.open.pop()
            self.pre -= name == "pre"
            if name == tag:
                break
        if tag in BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not (self.open and self.open[-1][1]):
            words = data if self.pre else re.sub(r"\s+", " ", data)
            starts_line = not self.pre and self.parts and self.parts[-1].endswith("\n")
            self.parts.append(words.lstrip() if starts_line else words)


def html_text(page: str) -> str:
    """The words of a page, one paragraph a block; preformatted text keeps its lines."""
    parser = _Text()
    parser.feed(page)
    text = "".join(parser.parts)
    return re.sub(r"\n[ \t]*\n\s*?(?=\S| +\S)", "\n\n", text).strip()


def rst_text(source: str) -> str:
    """Drop roles, targets and directives from reStructuredText; code blocks are kept."""
    source = re.sub(r"(?m)^\.\. (?:_.*:|index::.*|only::.*|contents::.*|highlight.*)$", "", source)
    source = re.sub(r"(?m)^\.\. [\w-]+::.*$(?:\n[ \t]+:\w+:.*$)*", "", source)
    source = re.sub(r"(?m)^   \.\. contents::$", "", source)
    source = re.sub(r":[\w:+-]+:`~?!?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", source)
    source = re.sub(r"`([^`<]+?)\s*<[^`]*>`__?", r"\1", source)
    source = re.sub(r"(?m)^\|(.*)$", r"\1", source)
    return source.replace("``", "`").replace("::\n", ":\n")
