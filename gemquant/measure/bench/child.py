"""The measuring process: loads one artifact in one mode, runs it, reports, ends.

``measure`` starts it. A job comes as JSON on stdin; the answer goes to the original stdout, which
no library can write to.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gemquant.core.json_document import Record
from gemquant.core.resources import process_status
from gemquant.errors import GemquantError
from gemquant.measure.bench.document import Figures, Row, Settings, Speed, Spread
from gemquant.measure.bench.subject import Subject
from gemquant.runtimes.runtime import LoadOptions, SpeedRuntime, Timing, speed_runtime

_SECONDS_BETWEEN_SAMPLES = 0.01


class Job(Record):
    """One measurement."""

    runtime: str
    mode: str
    path: str
    container: str
    prompt: tuple[int, ...]
    settings: Settings


class Answer(Record):
    """The figures, or why there are none. ``measure`` adds the peak of anonymous memory."""

    software: str | None = None
    figures: Figures | None = None
    failed: str | None = None

    def row(
        self, subject: Subject, runtime: str, mode: str, *, tokens_as_first_mode: int | None
    ) -> Row:
        """The row of what was measured."""
        return Row(
            artifact=subject.name,
            container=subject.container,
            size_bytes=subject.size_bytes,
            runtime=runtime,
            mode=mode,
            software=self.software,
            tokens_as_first_mode=tokens_as_first_mode,
            figures=self.figures,
            not_run=self.failed,
        )


def main() -> int:
    """Read a job, measure, answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print, print to stderr
    job = Job.model_validate_json(sys.stdin.buffer.read())
    try:
        answer = run_job(job)
    except GemquantError as error:
        answer = Answer(failed=str(error))
    except MemoryError:
        answer = Answer(failed="out of memory")
    except Exception as error:  # noqa: BLE001 - libraries raise anything; it is reported
        answer = Answer(failed=f"{type(error).__name__}: {error}")
    answers.write(answer.model_dump_json())
    answers.close()
    return 0


def run_job(job: Job) -> Answer:
    """Load, warm up, repeat."""
    kind, settings = speed_runtime(job.runtime), job.settings
    kind.prepare()
    baseline = anonymous_bytes(os.getpid())
    options = LoadOptions(
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        mode=job.mode,
        max_tokens=len(job.prompt) + settings.new_tokens,
    )
    started = time.perf_counter()
    runtime = kind.load(Path(job.path), job.container, options)
    load_seconds = time.perf_counter() - started
    warm_up = _runs(runtime, job, settings.warm_up_runs)
    measured = _runs(runtime, job, settings.repetitions)
    figures = figures_of(
        warm_up,
        measured,
        prompt_tokens=len(job.prompt),
        load_seconds=load_seconds,
        baseline_anonymous_bytes=baseline,
        peak_resident_bytes=runtime.peak_resident_bytes(),
        peak_device_bytes=runtime.peak_device_bytes(),
    )
    return Answer(software=runtime.software, figures=figures)


def _runs(runtime: SpeedRuntime, job: Job, count: int) -> Sequence[Timing]:
    wanted = job.settings.new_tokens
    runs = [runtime.time(job.prompt, wanted) for _ in range(count)]
    for run in runs:
        if len(run.tokens) != wanted:
            raise ValueError(f"{len(run.tokens)} tokens were generated, not {wanted}")
    return runs


def figures_of(
    warm_up: Sequence[Timing], measured: Sequence[Timing], *, prompt_tokens: int, **others: Any
) -> Figures:
    """The figures of some runs. others: fields of Figures; those of memory are None by default."""
    first, *rest = [tuple(run.tokens) for run in (*warm_up, *measured)]
    memory = dict.fromkeys(name for name in Figures.model_fields if name.endswith("_bytes"))
    return Figures(
        measured=speed(measured, prompt_tokens=prompt_tokens),
        warm_up=speed(warm_up, prompt_tokens=prompt_tokens) if warm_up else None,
        greedy_tokens=first,
        repeatable=all(tokens == first for tokens in rest),
        **{**memory, **others},
    )


def speed(runs: Sequence[Timing], *, prompt_tokens: int) -> Speed:
    """Summarise runs of at least two new tokens each."""
    return Speed(
        first_token_seconds=Spread.of([run.first_token_seconds for run in runs]),
        prefill_tokens_per_second=Spread.of([prompt_tokens / run.prefill_seconds for run in runs]),
        decode_tokens_per_second=Spread.of(
            [(len(run.tokens) - 1) / (run.total_seconds - run.first_token_seconds) for run in runs]
        ),
    )


# ---------------------------------------------------------------- memory of a process


def anonymous_bytes(pid: int) -> int | None:
    """Return the memory of a process that the system could only swap out; None but on Linux."""
    return process_status(pid, "RssAnon:")


def _with_children(pid: int) -> int | None:
    """The same of a process and of those that it started: vLLM computes in one of its own."""
    size = anonymous_bytes(pid)
    if size is None:
        return None
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        size += sum(_with_children(int(child)) or 0 for child in children)
    return size


class PeakSampler(threading.Thread):
    """Samples another process's anonymous memory every 10 ms until stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._stopped = threading.Event()
        self.peak: int | None = None

    def run(self) -> None:
        """Sample until the process ends."""
        while not self._stopped.wait(_SECONDS_BETWEEN_SAMPLES):
            size = _with_children(self._pid)
            if size is None:
                return
            self.peak = max(self.peak or 0, size)

    def stop(self) -> None:
        """Stop sampling."""
        self._stopped.set()
        self.join()


if __name__ == "__main__":
    sys.exit(main())
