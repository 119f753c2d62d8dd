"""The process that measures: loads one artifact in one mode, runs it, answers, ends.

Run by ``measure``; a job as JSON comes on stdin, the answer goes out on the stdout that this
process was given, which nothing foreign can write to.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gemquant.errors import GemquantError
from gemquant.measure.bench.document import Figures, Speed, Spread
from gemquant.measure.bench.engine import Engine, Load, Timing
from gemquant.measure.bench.job import Answer, Job
from gemquant.measure.bench.memory import anonymous_bytes, peak_resident_bytes
from gemquant.measure.bench.runtimes import runtime


def main() -> int:
    """Read a job, measure, answer."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints, prints to stderr
    job = Job.model_validate_json(sys.stdin.buffer.read())
    try:
        answer = measured(job)
    except GemquantError as error:
        answer = Answer(failed=str(error), exit_code=error.exit_code)
    except MemoryError:
        answer = Answer(failed="out of memory")
    except Exception as error:  # noqa: BLE001 - foreign code raises anything; it is reported
        answer = Answer(failed=f"{type(error).__name__}: {error}")
    answers.write(answer.model_dump_json())
    answers.close()
    return 0


def measured(job: Job) -> Answer:
    """Load, warm up, repeat."""
    kind = runtime(job.runtime)
    kind.prepare()
    baseline = anonymous_bytes(os.getpid())
    started = time.perf_counter()
    engine = kind.load(
        Load(
            path=Path(job.path),
            container=job.container,
            mode=job.mode,
            device=job.device,
            dtype=job.dtype,
            threads=job.threads,
            tokens=len(job.prompt) + job.new_tokens,
        )
    )
    loaded = time.perf_counter() - started
    warm_up = _runs(engine, job, job.warm_up_runs)
    counted = _runs(engine, job, job.repetitions)
    first, *others = [tuple(run.tokens) for run in (*warm_up, *counted)]
    figures = Figures(
        load_seconds=loaded,
        measured=speed(counted, prompt_tokens=len(job.prompt)),
        warm_up=speed(warm_up, prompt_tokens=len(job.prompt)) if warm_up else None,
        baseline_anonymous_bytes=baseline,
        peak_anonymous_bytes=None,
        peak_resident_bytes=peak_resident_bytes(),
        peak_device_bytes=engine.peak_device_bytes(),
        greedy_tokens=first,
        repeatable=all(tokens == first for tokens in others),
    )
    return Answer(software=engine.software, figures=figures)


def _runs(engine: Engine, job: Job, count: int) -> Sequence[Timing]:
    runs = [engine.generate(job.prompt, job.new_tokens) for _ in range(count)]
    for run in runs:
        if len(run.tokens) != job.new_tokens:
            raise ValueError(f"{len(run.tokens)} tokens were generated, not {job.new_tokens}")
    return runs


def speed(runs: Sequence[Timing], *, prompt_tokens: int) -> Speed:
    """Speeds of some runs of at least two new tokens each."""
    return Speed(
        first_token_seconds=Spread.of([run.first_token_seconds for run in runs]),
        prefill_tokens_per_second=Spread.of([prompt_tokens / run.prefill_seconds for run in runs]),
        decode_tokens_per_second=Spread.of(
            [(len(run.tokens) - 1) / (run.total_seconds - run.first_token_seconds) for run in runs]
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
