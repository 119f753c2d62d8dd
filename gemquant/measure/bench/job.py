"""What the measuring process is asked, and what it answers: JSON over its stdin and stdout."""

from __future__ import annotations

from gemquant.core.json_document import Record
from gemquant.measure.bench.document import Figures


class Job(Record):
    """One measurement."""

    runtime: str
    mode: str
    path: str
    container: str
    device: str
    dtype: str
    threads: int
    prompt: tuple[int, ...]
    new_tokens: int
    repetitions: int
    warm_up_runs: int


class Answer(Record):
    """What came of it: figures, or why there are none.

    Anonymous memory is looked at from outside, and filled in there.
    """

    software: str | None = None
    figures: Figures | None = None
    failed: str | None = None
    exit_code: int = 1
