"""What a tool says on its stdout: one JSON object a line, of these kinds and no other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

MAX_LINE_BYTES = 65536


class _Event(BaseModel):
    """Base of all events: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Started(_Event):
    """A task of ``total`` steps begins."""

    event: Literal["start"]
    task: Annotated[str, Field(max_length=200)]
    total: Annotated[int, Field(ge=1, le=10**9)]


class Advanced(_Event):
    """Some steps of a task that has begun are done."""

    event: Literal["advance"]
    task: Annotated[str, Field(max_length=200)]
    amount: Annotated[int, Field(ge=0, le=10**9)] = 1


class Noted(_Event):
    """Something worth a line of its own."""

    event: Literal["note"]
    text: Annotated[str, Field(max_length=2000)]


class Failed(_Event):
    """The tool gave up, and why."""

    event: Literal["failed"]
    error: Annotated[str, Field(max_length=4000)]


class Done(_Event):
    """The result's file is complete."""

    event: Literal["done"]


Event = Started | Advanced | Noted | Failed | Done

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def read_event(line: bytes) -> Event | None:
    """Return the event of a line, or None where the line is none."""
    if len(line) > MAX_LINE_BYTES:
        return None
    try:
        return _EVENT.validate_json(line)
    except ValidationError:
        return None
