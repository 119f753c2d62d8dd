"""Tables for people, and how figures are written in them; rounding happens here and nowhere before.

A ``Table`` is printed by rich in a terminal, and as Markdown and HTML in cards and reports. Names
come from files that others wrote: control characters and those that turn the direction of writing
are shown as their code points.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

_HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
_LONGEST_NAME = 160
_LONGEST_CELL = 600
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~!$&])")
_MENTION = re.compile(r"@|(?<=:)//|(?<=www)\.")


@dataclass(frozen=True)
class Column:
    """Head of a column; numbers are aligned to the right and sorted by value."""

    name: str
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """The text, and what it is sorted by."""

    text: str
    key: float | None = None


@dataclass
class Table:
    """Rows under columns; the first cell of a row names it."""

    columns: Sequence[Column]
    rows: list[list[Cell]] = field(default_factory=list)
    notes: Sequence[str] = ()
    title: str | None = None
    show_header: bool = True

    def add_row(self, *cells: str | Cell) -> None:
        """Add a row."""
        self.rows.append([Cell(cell) if isinstance(cell, str) else cell for cell in cells])

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return len(self.rows)


def columns(words: str, numeric: str = "") -> list[Column]:
    """Columns from two lists of names, separated by semicolons."""
    return [
        *(Column(name.strip()) for name in words.split(";")),
        *(Column(name.strip(), numeric=True) for name in numeric.split(";") if name),
    ]


# ---------------------------------------------------------------- text and Markdown


def visible(text: str, *, longest: int = _LONGEST_NAME) -> str:
    r"""One line without characters that cannot be seen, cut to a length.

    >>> visible("a\n  b\u202ec\x00")
    'a b⟨U+202E⟩c⟨U+0000⟩'
    """
    shown = "".join(
        f"⟨U+{ord(each):04X}⟩" if unicodedata.category(each) in _HIDDEN else each
        for each in " ".join(text.split())
    )
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def escaped(text: str, *, longest: int = _LONGEST_NAME, links: bool = False) -> str:
    r"""Text that Markdown shows as it is, also in a table.

    links: leave addresses and mentions as they are; otherwise GitHub makes nothing of them.

    >>> escaped("a|b <script>") == r"a\|b \<script\>"
    True
    """
    plain = _MARKDOWN.sub(r"\\\1", visible(text, longest=longest))
    if links:
        return plain
    # A zero-width space keeps GitHub from notifying people and from making links.
    return _MENTION.sub(lambda found: found[0][:1] + "\u200b" + found[0][1:], plain)


def markdown(table: Table) -> Iterator[str]:
    """Lines of a table in Markdown: the head as one, then one for each row."""
    rule = "|".join("---:" if column.numeric else "---" for column in table.columns)
    yield f"{_row(column.name for column in table.columns)}\n|{rule}|"
    for row in table.rows:
        yield _row(cell.text for cell in row)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(escaped(cell, longest=_LONGEST_CELL) for cell in cells)} |"


def counted(count: int, noun: str) -> str:
    """A number of things.

    >>> counted(1, "artifact"), counted(2, "artifact")
    ('1 artifact', '2 artifacts')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def matrices(names: Collection[str]) -> str:
    """How many weight matrices these are, and in how many decoder layers.

    >>> matrices(["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "lm_head"])
    '3 matrices (1 layer)'
    """
    layers = {name.split(".")[2] for name in names if name.startswith("model.layers.")}
    total = "1 matrix" if len(names) == 1 else f"{len(names)} matrices"
    return f"{total} ({counted(len(layers), 'layer')})" if layers else total


# ---------------------------------------------------------------- figures


class Bounded(Protocol):
    """A figure with its interval."""

    @property
    def value(self) -> float:
        """The figure."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends of the interval; the value itself where there is none."""


def number(value: float, digits: int = 4) -> str:
    """A figure with so many significant digits, never in powers of ten unless it is tiny.

    >>> number(0.12345), number(22.0), number(1234567.0), number(0.0000123), number(-0.0)
    ('0.1235', '22.00', '1,234,567', '1.230e-05', '0')
    """
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if whole:
        return f"{value:,.{max(0, digits - whole)}f}"
    return f"{value:.{digits - 1 - _exponent(value)}f}"


def percent(value: float) -> str:
    """A fraction as a percentage.

    >>> percent(0.80874)
    '80.87 %'
    """
    return f"{100 * value:.2f} %"


def interval(figure: Bounded, *, as_percent: bool = False) -> str:
    """A figure with its interval in brackets, to two significant digits of the interval's width.

    Without an interval the figure stands alone.

    >>> from gemquant.core.artifact.evaluation import Interval
    >>> interval(Interval(value=0.012345, low=0.0111, high=0.0136))
    '0.0123 [0.0111, 0.0136]'
    >>> interval(Interval(value=0.8767, low=0.851, high=0.8999), as_percent=True)
    '87.7 % [85.1, 90.0]'
    >>> interval(Interval(value=0.1))
    '0.1000'
    """
    low, high = figure.bounds
    if low == high:
        return percent(figure.value) if as_percent else number(figure.value)
    value, low, high = ((100 if as_percent else 1) * x for x in (figure.value, low, high))
    if max(abs(low), abs(high)) < 1e-4:
        return f"{value:z.2e} [{low:z.2e}, {high:z.2e}]"
    most = 2 if as_percent else 3 - _exponent(value or high - low)
    decimals = max(0, min(1 - _exponent((high - low) / 2), most))
    texts = [f"{each:z,.{decimals}f}" for each in (value, low, high)]
    return f"{texts[0]}{' %' if as_percent else ''} [{texts[1]}, {texts[2]}]"


def _exponent(value: float) -> int:
    """Power of ten of the first digit.

    >>> _exponent(0.05), _exponent(0.5)
    (-2, -1)
    """
    return math.floor(math.log10(abs(value)))
