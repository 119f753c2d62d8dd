"""Conversations: questions and answers as turns of user and assistant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import yaml
from documents import Document, as_chat, tidy
from markup import html_text, rst_text
from mathematics import worked_problems
from prose import encyclopedia

ABOUT = ("Tell me about {}.", "What can you say about {}?", "Explain briefly: {}", "{}?")
ERROR = (
    "What does the Rust compiler mean by error {}?",
    "My Rust program does not compile, the compiler says {}. What is wrong?",
    "Explain error {} of rustc, please.",
    "{} in Rust, how do I fix that?",
)
SOLVE = ("{}", "Please solve this: {}", "I need help with an exercise. {}", "{} Only the result.")


def small_talk(root: Path, *files: str) -> list[Document]:
    """chatterbot-corpus conversations as they stand; an unanswered last turn is left out."""
    conversations = []
    for path in sorted(p for name in files for p in root.glob(f"chatterbot_corpus/data/{name}")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            said = [str(turn) for turn in turns if turn]
            conversations.append(said[: len(said) // 2 * 2])
    return _grouped(conversations, 4)


def compiler_errors(root: Path) -> list[Document]:
    """Rust's error index: one question and its explanation with examples."""
    (path,) = root.glob("usr/share/doc/rust-doc/html/error-index.html")
    entries = path.read_text(encoding="utf-8").split('<div class="error-described">')[1:]
    conversations = []
    for number, entry in enumerate(entries):
        code, _, explanation = html_text(entry).partition("\n")
        if 200 < len(explanation) < 6000 and "no longer emitted" not in explanation:
            conversations.append((ERROR[number % 4].format(code), explanation))
    return as_chat(conversations)


def about_articles(root: Path, half: int) -> list[Document]:
    """Wikipedia summaries as answers; of every other article."""
    articles = list(encyclopedia(root, "en-us", shortest=550))[half::2]
    return as_chat((ABOUT[n % 4].format(title), text) for n, (title, text) in enumerate(articles))


def exercises(root: Path) -> list[Document]:
    """Worked problems, three of a kind in one conversation."""
    problems = worked_problems(root, each=3)
    turns = [
        (SOLVE[n % 4].format(tidy(problem).rstrip(" =")), solution)
        for n, (_, problem, solution) in enumerate(problems)
    ]
    return _grouped(turns, 3)


def frequent_questions(root: Path, *patterns: str) -> list[Document]:
    """FAQ in reStructuredText, two questions of a section in one conversation."""
    turns: list[tuple[str, str]] = []
    for path in sorted(p for pattern in patterns for p in root.glob(pattern)):
        turns += _questions(path.read_text(encoding="utf-8"))
    return _grouped(turns, 2)


def _questions(source: str) -> Iterator[tuple[str, str]]:
    headings = list(re.finditer(r"(?m)^(\S.*\?)\n([-=~^]{4,})$", source))
    for heading, following in pairwise([*headings, None]):
        answer = source[heading.end() : following.start() if following else len(source)]
        answer = re.split(r"(?m)^.*\n[=*-]{6,}$", answer)[0]
        if 80 < len(answer) < 6000:
            yield rst_text(heading[1]), rst_text(answer)


def _grouped(conversations: Iterable[Iterable[str]], count: int) -> list[Document]:
    unique = [turns for turns in dict.fromkeys(tuple(c) for c in conversations) if turns]
    groups = (unique[n : n + count] for n in range(0, len(unique), count))
    return as_chat([turn for turns in group for turn in turns] for group in groups)
