"""Events of the program on a board, one JSON object a line; other lines are ignored."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from gemquant.core.json_document import Record
from gemquant.errors import WorkerError

MAX_LINE_BYTES = 16_000_000
"""Enough for a row of logits over a million tokens, in base64."""


class Started(Record):
    """The program started."""

    event: Literal["started"]
    python: str


class Loaded(Record):
    """The model is loaded. chosen: extended parameters that the runtime set itself."""

    event: Literal["loaded"]
    seconds: Annotated[float, Field(ge=0)]
    version: str
    chosen: Mapping[str, int]


class Statistics(Record):
    """The runtime's statistics of a run."""

    prefill_time_ms: Annotated[float, Field(ge=0)]
    prefill_tokens: Annotated[float, Field(ge=0)]
    generate_time_ms: Annotated[float, Field(ge=0)]
    generate_tokens: Annotated[float, Field(ge=0)]
    memory_usage_mb: Annotated[float, Field(ge=0)]


class Ran(Record):
    """One prompt was continued. watched: values of system files afterwards."""

    event: Literal["run"]
    warm_up: bool
    tokens: Annotated[tuple[int, ...], Field(min_length=1)]
    first_token_seconds: Annotated[float, Field(gt=0)]
    total_seconds: Annotated[float, Field(gt=0)]
    statistics: Statistics | None
    watched: Mapping[str, int]


class Rows(Record):
    """Logits of some tokens of a window: (rows, columns) float32, little-endian, in base64."""

    event: Literal["logits"]
    window: Annotated[int, Field(ge=0)]
    first: Annotated[int, Field(ge=0)]
    rows: Annotated[int, Field(ge=1)]
    columns: Annotated[int, Field(ge=2)]
    crc32: int
    data: str

    def content(self) -> bytes:
        """The bytes; WorkerError if they arrived damaged."""
        try:
            content = base64.b64decode(self.data, validate=True)
        except binascii.Error:
            content = b""
        if len(content) != 4 * self.rows * self.columns or zlib.crc32(content) != self.crc32:
            raise WorkerError("Logits from the board arrived damaged.")
        return content


class Windowed(Record):
    """All logits of a window were sent."""

    event: Literal["window"]
    index: Annotated[int, Field(ge=0)]
    watched: Mapping[str, int]


class Failed(Record):
    """The program failed. error: the reason."""

    event: Literal["failed"]
    error: Annotated[str, Field(max_length=4000)]


class Done(Record):
    """The program finished."""

    event: Literal["done"]
    peak_resident_bytes: int | None


Event = Started | Loaded | Ran | Rows | Windowed | Failed | Done

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def read_event(line: bytes) -> Event | None:
    """Parse a line; None if it is not an event."""
    if not line.startswith(b'{"event": '):
        return None
    try:
        return _EVENT.validate_json(line)
    except ValidationError:
        return None
