"""Plan the measurements, run each in its own process, collect the rows."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gemquant.core.protocols import Progress
from gemquant.core.resources import PACKAGE, require_device
from gemquant.errors import (
    CalibrationError,
    GemquantError,
    ProblemCollector,
    RuntimeMissingError,
    UsageError,
    refuse,
)
from gemquant.measure.bench.child import Answer, Job, PeakSampler
from gemquant.measure.bench.document import Benchmark, Row, Settings
from gemquant.measure.bench.machine import environment
from gemquant.measure.bench.subject import Subject
from gemquant.runtimes.runtime import SPEED_RUNTIMES, speed_runtime, speed_runtimes

logger = logging.getLogger(__name__)

_READ_AT_ONCE = 1 << 24
_LINES_SHOWN = 6


@dataclass(frozen=True)
class BenchRequest:
    """What to measure on this machine. runtimes, modes: None for all that apply."""

    artifacts: tuple[str, ...]
    settings: Settings
    runtimes: Sequence[str] | None = None
    modes: Sequence[str] | None = None

    def plan(self) -> list[Measurement]:
        """Open the artifacts and plan; every problem of them at once."""
        require_device(self.settings.device)
        problems = ProblemCollector()
        opened = [problems.attempt(partial(_open, name)) for name in dict.fromkeys(self.artifacts)]
        problems.refuse()
        return plan(
            [each.value for each in opened],
            device=self.settings.device,
            runtimes=self.runtimes,
            modes=self.modes,
        )


def _open(name: str) -> Subject:
    subject = Subject.open(name)
    if subject.container == "rkllm":
        raise UsageError(
            f"{name}: only a board runs RKLLM files.",
            hint=f"gemquant bench {name} --board ssh://USER@HOST",
        )
    from gemquant.runtimes.text import require_text

    require_text(name, subject.path, subject.container)
    return subject


@dataclass(frozen=True)
class Measurement:
    """One process to run, or the reason why it is not run."""

    subject: Subject
    runtime: str
    mode: str
    not_run: str | None = None


def plan(
    subjects: Sequence[Subject],
    *,
    device: str,
    runtimes: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
) -> list[Measurement]:
    """Plan every artifact in every runtime and mode, or in those that were named.

    UsageError for an unknown name, RuntimeMissingError if nothing at all could be run.
    """
    refuse(_unknown(runtimes, SPEED_RUNTIMES, "--runtimes"))
    planned = []
    for subject in subjects:
        each = [
            mode
            for name in speed_runtimes(subject.container)
            if runtimes is None or name in runtimes
            for mode in _modes(subject, name, device)
        ]
        # What lacks a runtime that nobody named is listed only if it has no other.
        planned += [mode for mode in each if mode.mode or runtimes is not None] or each
    known = dict.fromkeys(each.mode for each in planned if each.mode)
    if known:  # otherwise nothing can be run at all, whatever was named
        refuse(_unknown(modes, known, "--modes"))
    chosen = [each for each in planned if modes is None or each.mode in (*modes, "")]
    if not any(each.not_run is None for each in chosen):
        reasons = "; ".join(dict.fromkeys(f"{each.runtime}: {each.not_run}" for each in chosen))
        containers = ", ".join(dict.fromkeys(subject.container for subject in subjects))
        raise RuntimeMissingError(
            f"Nothing can be measured: {reasons or f'no runtime is known for {containers}'}.",
            hint="gemquant doctor lists what is installed, and how to install the rest.",
        )
    return chosen


def _modes(subject: Subject, name: str, device: str) -> list[Measurement]:
    runtime = speed_runtime(name)
    reason = runtime.unavailable(subject.container, device)
    if reason is not None:
        return [Measurement(subject, name, "", reason)]
    modes = runtime.modes(subject.path, device)
    return [Measurement(subject, name, mode.name, mode.not_run) for mode in modes]


def _unknown(names: Sequence[str] | None, known: Iterable[str], flag: str) -> list[GemquantError]:
    return [
        UsageError(f"{flag} {name}: must be one of {', '.join(known)}.")
        for name in names or ()
        if name not in known
    ]


def prompt_of(subject: Subject, tokens: int) -> tuple[int, ...]:
    """Return the first tokens of the English evaluation text, after one BOS.

    UsageError if the text has fewer.
    """
    from gemquant.runtimes.text import read_tokenizer

    tokenizer, bos = read_tokenizer(subject.path, subject.container)
    return prompt_from(tokenizer, bos, tokens)


def prompt_from(tokenizer: Any, bos: int, tokens: int) -> tuple[int, ...]:
    """Do the same with a tokenizer (of the package ``tokenizers``) and its BOS."""
    from gemquant.calibration.windows import Packer, evaluation_windows

    try:
        (windows,) = evaluation_windows(Packer(tokenizer, tokens, bos, None), ["english"], 1)
    except CalibrationError as error:
        raise UsageError(f"--prompt-tokens {tokens}: {error.message}") from error
    return tuple(windows.ids[0].tolist())


def run(planned: Sequence[Measurement], settings: Settings, progress: Progress) -> Benchmark:
    """Measure one after the other; a measurement that fails leaves its reason in its row."""
    prompts = {
        subject.name: prompt_of(subject, settings.prompt_tokens)
        for subject in {each.subject.name: each.subject for each in planned}.values()
    }
    packages = dict.fromkeys(
        package for each in planned for package in speed_runtime(each.runtime).packages
    )
    machine = environment(list(packages))
    rows: list[Row] = []
    progress.start("measuring", len(planned))
    for each in planned:
        answer = Answer(failed=each.not_run)
        if each.not_run is None:
            progress.note(f"{each.subject.name}: {each.runtime}, {each.mode}")
            answer = measure(each, settings, prompts[each.subject.name])
        rows.append(_row(each, answer, rows))
        progress.advance("measuring")
    return Benchmark(
        environment=machine,
        settings=settings,
        prompts={name: digest_of(ids) for name, ids in prompts.items()},
        rows=tuple(rows),
    )


def _row(each: Measurement, answer: Answer, earlier: Sequence[Row]) -> Row:
    figures = answer.figures
    firsts = [
        row.figures.greedy_tokens
        for row in earlier
        if (row.artifact, row.runtime) == (each.subject.name, each.runtime) and row.figures
    ]
    same = None
    if figures is not None and firsts:
        pairs = zip(figures.greedy_tokens, firsts[0], strict=True)
        same = next((n for n, (a, b) in enumerate(pairs) if a != b), len(firsts[0]))
    return answer.row(each.subject, each.runtime, each.mode, tokens_as_first_mode=same)


def digest_of(ids: Sequence[int]) -> str:
    """Return the SHA-256 of token ids (int32, little-endian)."""
    numbers = array("i", ids)
    if sys.byteorder == "big":
        numbers.byteswap()
    return hashlib.sha256(numbers.tobytes()).hexdigest()


# ---------------------------------------------------------------- one process


def measure(each: Measurement, settings: Settings, prompt: Sequence[int]) -> Answer:
    """Run one measurement in a process that ends with it, whatever happens."""
    for file in each.subject.files:
        _read(file)
    job = Job(
        runtime=each.runtime,
        mode=each.mode,
        path=str(each.subject.path.resolve()),
        container=each.subject.container,
        prompt=tuple(prompt),
        settings=settings,
    )
    # -P: no module may come from the current folder.
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "gemquant.measure.bench.child"],
        env=_environment(settings.threads),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        sampler = PeakSampler(process.pid)
        sampler.start()
        try:
            output, errors = process.communicate(job.model_dump_json().encode())
        finally:
            process.kill()
            process.wait()
            sampler.stop()
    log = errors.decode("utf-8", errors="replace")
    logger.debug("%s", log)
    answer = _answer(process.returncode, output, log)
    if answer.figures is None:
        return answer
    figures = answer.figures.model_copy(update={"peak_anonymous_bytes": sampler.peak})
    return answer.model_copy(update={"figures": figures})


def _answer(code: int, output: bytes, log: str) -> Answer:
    if code == 0:
        try:
            return Answer.model_validate_json(output)
        except ValidationError:
            return Answer(failed=f"the measuring process answered {output[:80]!r}")
    last = " / ".join(log.strip().splitlines()[-_LINES_SHOWN:])
    ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    return Answer(failed=f"the measuring process ended {ended}: {last or 'it logged nothing'}")


def _read(file: Path) -> None:
    """Bring a file into the system's cache, as far as it has room."""
    with file.open("rb", buffering=0) as stream:
        while stream.read(_READ_AT_ONCE):
            pass


def _environment(threads: int) -> dict[str, str]:
    """Return our environment, offline, with the number of threads and this very gemquant."""
    count, path = str(threads), os.environ.get("PYTHONPATH")
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *([path] if path else [])]),
    }
