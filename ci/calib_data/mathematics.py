"""Mathematical text: documentation with formulas, formal statements, worked problems."""

from __future__ import annotations

import ast
import importlib
import inspect
import random
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from documents import Document, as_texts, sections


def docstrings(root: Path, pattern: str) -> list[Document]:
    """Docstrings of more than a few lines, as documents."""
    texts: list[str] = []
    for path in sorted(root.glob(pattern)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                texts += sections(inspect.cleandoc(ast.get_docstring(node) or ""))
        # mpmath keeps most of its documentation in plain strings.
        assigned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Assign)]
        for value in assigned:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts += sections(textwrap.dedent(value.value))
    return as_texts(texts)


def with_formulas(documents: list[Document]) -> list[Document]:
    """The documents that have at least three formulas between dollar signs."""
    return [document for document in documents if document["text"].count("$") >= 6]


def statements(path: Path, *, skip: int = 0) -> list[Document]:
    """Metamath: each theorem's comment and statement, without its compressed proof."""
    database = path.read_text(encoding="ascii")
    pattern = re.compile(r"\$\(\s+([^$]{60,900}?)\s+\$\)\s+(\S+) \$p (\|- [^$]+?) \$=")
    found = [
        f"{label}: {' '.join(comment.split())}\n  {' '.join(statement.split())}"
        for comment, label, statement in pattern.findall(database)[skip:]
    ]
    return as_texts(sections("\n\n".join(found), longest=1800))


def worked_problems(root: Path, *, each: int) -> Iterator[tuple[str, str, str]]:
    """(title, problem, solution) from mathgenerator, ``each`` of every kind, always the same."""
    sys.path.insert(0, str(root))
    try:
        generators = importlib.import_module("mathgenerator").genList
        for number, (_, title, generate, *_) in enumerate(generators):
            for again in range(each):
                random.seed(1000 * number + again)
                try:
                    problem, solution = (str(part) for part in generate())
                except IndexError:  # the package's "Expanding" fails on some coefficients
                    continue
                if 25 < len(problem) + len(solution) < 250:
                    yield title, problem, solution
    finally:
        sys.path.remove(str(root))


def problem_sheets(root: Path, *, each: int) -> list[Document]:
    """Problems of one kind with their answers, a sheet a document."""
    sheets: dict[str, list[str]] = {}
    for title, problem, solution in worked_problems(root, each=each):
        sheets.setdefault(title, []).append(f"Problem. {problem}\nAnswer. {solution}")
    return as_texts(
        piece
        for title, problems in sheets.items()
        for piece in sections("\n\n".join([title, *problems]), longest=1800, shortest=200)
    )
