"""Calibration text from a data set on the Hugging Face Hub: hf:DATASET[:SPLIT[:COLUMN]]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from gemquant.calibration.documents import BadLineError, Document, Plain, document_of
from gemquant.errors import CalibrationError, RuntimeMissingError, UsageError

PREFIX = "hf:"
MOST_ROWS = 4000
"""Rows read from the start of a split; the seed draws their order."""
MOST_CHARACTERS = 64_000_000


def read_hub_dataset(source: str) -> list[Document]:
    """The first rows of a split as documents.

    source: ``hf:DATASET``, ``hf:DATASET:SPLIT`` (default: train) or ``hf:DATASET:SPLIT:COLUMN``
    (default: ``text`` or ``messages``, whichever the rows have).
    Raises RuntimeMissingError without the ``datasets`` package, UsageError for a malformed source,
    CalibrationError if the data set cannot be reached or has no such split or column.
    """
    name, split, column = _parts(source)
    try:
        import datasets
    except ImportError:
        raise RuntimeMissingError(
            f"--calib {source}: needs the package datasets, which is not installed.",
            hint="pip install 'datasets>=4'",
        ) from None
    try:
        stream = datasets.load_dataset(name, split=split, streaming=True)
        rows = list(islice(stream, MOST_ROWS))
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        why = " ".join(str(error).split())[:300]
        raise CalibrationError(
            f"--calib {source}: cannot be read from the Hub: {why}",
            hint="Check the name and the network, or give a file: --calib FILE.jsonl",
        ) from None
    return _documents(rows, column, source)


def _parts(source: str) -> tuple[str, str, str | None]:
    name, *others = source.removeprefix(PREFIX).split(":")
    if not name or len(others) > 2 or "" in others:
        raise UsageError(
            f"--calib {source}: not of the form hf:DATASET[:SPLIT[:COLUMN]].",
            hint="For example: --calib hf:roneneldan/TinyStories:validation:text",
        )
    return name, others[0] if others else "train", others[1] if len(others) > 1 else None


def _documents(
    rows: Iterable[Mapping[str, Any]], column: str | None, source: str
) -> list[Document]:
    documents: list[Document] = []
    characters = 0
    for number, row in enumerate(rows, 1):
        key = column or ("messages" if "messages" in row and "text" not in row else "text")
        if key not in row:
            raise CalibrationError(
                f"--calib {source}: no column {key}; there are {', '.join(map(str, row))}.",
                hint="Name one: --calib hf:DATASET:SPLIT:COLUMN",
            )
        try:
            document = document_of({"messages" if isinstance(row[key], list) else "text": row[key]})
        except BadLineError as why:
            raise CalibrationError(f"--calib {source}, row {number}: {why}.") from None
        if isinstance(document, Plain):
            characters += len(document.text)
        if not isinstance(document, Plain) or document.text.strip():
            documents.append(document)
        if characters > MOST_CHARACTERS:
            break
    if not documents:
        raise CalibrationError(f"--calib {source}: the rows hold no text.")
    return documents
