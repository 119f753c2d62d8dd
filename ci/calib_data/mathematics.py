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
        for node in ast.walk(tree):  # mpmath keeps most of its documentation in plain strings
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                if isinstance(node.value.value, str):
                    texts += sections(textwrap.dedent(node.value.value))
    return as_texts(texts)


def statements(path: Path, *, skip: int = 0) -> list[Document]:
    """Metamath: each theorem's comment and statement, without its compressed proof."""
    database = path.read_text(encoding="ascii")
    pattern = re.compile(r"\$\(\s+([^$]{60,900}?)\s+\$\)\s+(\S+) \$p (\|- [^$]+?) \$=")
    found = [
        f"{label}: {' '.join(comment.split())}\n  {' '.join(statement.split())}"
        for comment, label, statement in pattern.findall(database)[skip:]
    ]
    return as_texts(sections("\n\n".join(found), longest=2500))


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
                if len(problem) + len(solution) > 25:
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
        for piece in sections("\n\n".join([title, *problems]), longest=2500, shortest=200)
    )
