"""The base of all JSON documents: how they are checked, written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import GemquantError, UsageError

_LIMIT_BYTES = 256_000_000
"""Largest document that is read; far above two hundred artifacts on a thousand windows each."""


class Record(BaseModel):
    """Base of all records: immutable, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Document(Record):
    """Base of the records that are files.

    noun: what a file of this kind is called. place: where commands take it. hint: what writes it.
    """

    noun: ClassVar[str] = "document"
    place: ClassVar[str] = ""
    hint: ClassVar[str] = ""

    schema_version: Literal[1] = Field(default=1, description="Version of this document's layout.")

    def to_json(self) -> bytes:
        """Canonical bytes: keys in the order of this document, two spaces, a newline."""
        text = json.dumps(
            self.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False
        )
        return (text + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a user's file. UsageError names it and what is wrong in it."""
        file = UntrustedFile(path, _LIMIT_BYTES, hint=cls.hint)
        try:
            return file.record(cls)
        except UsageError:
            if other := _other_kind(file, cls):
                raise UsageError(
                    f"{path} is {_article(other)}, not {_article(cls)}.",
                    hint=f"Swapped? It is given {other.place}.",
                ) from None
            raise


def _article(kind: type[Document]) -> str:
    return f"an {kind.noun}" if kind.noun.startswith("e") else f"a {kind.noun}"


def _other_kind(file: UntrustedFile, kind: type[Document]) -> type[Document] | None:
    """The kind of document that a file is instead, by its keys."""
    try:
        keys = set(file.json()) - set(Document.model_fields)
    except (GemquantError, TypeError):
        return None
    known = [each for each in Document.__subclasses__() if each is not kind and each.place]
    return next((each for each in known if _required(each) <= keys <= set(each.model_fields)), None)


def _required(kind: type[Document]) -> set[str]:
    return {name for name, field in kind.model_fields.items() if field.is_required()}
