"""RKLLM files measured on a board, in the same document as everything else.

Seconds are counted on the board, from passing the prompt's ids to each token in the callback.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from gemquant import __version__
from gemquant.core.progress import Progress
from gemquant.errors import WorkerError
from gemquant.measure.bench.child import speed
from gemquant.measure.bench.document import (
    Accelerator,
    Benchmark,
    Board,
    Conditions,
    Environment,
    Figures,
    Machine,
    Range,
    Row,
    RuntimeStatistics,
    Settings,
    Spread,
)
from gemquant.measure.bench.measure import digest_of
from gemquant.measure.bench.subject import Subject
from gemquant.rockchip.board import BoardAddress, Survey, survey
from gemquant.rockchip.board.events import Done, Loaded, Ran, Statistics
from gemquant.rockchip.board.rkllm import BoardRuntime, RkllmOnBoard, on_board, rkllm_file
from gemquant.rockchip.board.survey import Clock
from gemquant.runtimes.runtime import Timing

RUNTIME, MODE = "rkllm", "npu"
MEASURING = "measuring on the board"


@dataclass(frozen=True)
class BoardSubject:
    """A file to measure, and the prompt's ids."""

    subject: Subject
    prompt: tuple[int, ...]


@dataclass
class _Watched:
    """What was looked at after every run."""

    samples: list[Mapping[str, int]] = field(default_factory=list)
    releases: list[str] = field(default_factory=list)

    def ranges(self, kind: str, units: Mapping[str, float]) -> dict[str, Range]:
        found: dict[str, list[float]] = {}
        for sample in self.samples:
            for name, value in sample.items():
                if name.startswith(f"{kind} "):
                    short = name.removeprefix(f"{kind} ")
                    found.setdefault(short, []).append(value / units.get(short, 1.0))
        return {name: Range(lowest=min(v), highest=max(v)) for name, v in found.items()}

    def throttled(self) -> bool:
        return any(
            value > 0
            for sample in self.samples
            for name, value in sample.items()
            if name.startswith("cooling ")
        )


def run(
    board: BoardAddress,
    told: Survey,
    runtime: BoardRuntime,
    subjects: Sequence[BoardSubject],
    settings: Settings,
    progress: Progress,
) -> Benchmark:
    """Measure one file after the other; one that fails leaves its reason in its row."""
    watched = _Watched()
    rows: list[Row] = []
    progress.start(MEASURING, len(subjects))
    for each in subjects:
        try:
            file = rkllm_file(each.subject.path)
            with on_board(board, told, runtime, file, progress) as there:
                rows.append(_measured(each, there, settings, watched, progress))
        except WorkerError as error:
            rows.append(_row(each.subject, None, None, str(error)))
        progress.advance(MEASURING)
    try:
        after = survey(board)
    except WorkerError as error:  # what was measured is worth more than how it looked afterwards
        progress.note(f"how the board is afterwards is not known: {error.message}")
        after = None
    return Benchmark(
        environment=_environment(told, watched),
        settings=settings,
        prompts={each.subject.name: digest_of(each.prompt) for each in subjects},
        rows=tuple(rows),
        board=_board(told, after, watched),
    )


def _measured(
    each: BoardSubject,
    there: RkllmOnBoard,
    settings: Settings,
    watched: _Watched,
    progress: Progress,
) -> Row:
    loaded: Loaded | None = None
    runs: list[Ran] = []
    peak: int | None = None
    events = there.generate(
        each.prompt,
        new_tokens=settings.new_tokens,
        repetitions=settings.repetitions,
        warm_up_runs=settings.warm_up_runs,
    )
    with closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Loaded):
                loaded = event
                watched.releases.append(event.version)
                progress.note(f"librkllmrt {event.version}: loaded in {event.seconds:.1f} s")
            elif isinstance(event, Ran):
                runs.append(event)
                watched.samples.append(event.watched)
            elif isinstance(event, Done):
                peak = event.peak_resident_bytes
    if loaded is None or any(len(run.tokens) < 2 for run in runs):
        return _row(each.subject, None, None, "fewer than two tokens were generated")
    return _row(each.subject, _software(loaded), _figures(each, loaded, runs, peak), None)


def _figures(each: BoardSubject, loaded: Loaded, runs: Sequence[Ran], peak: int | None) -> Figures:
    counted = [run for run in runs if not run.warm_up]
    warm_up = [run for run in runs if run.warm_up]
    prompt_tokens = len(each.prompt)
    first, *others = [run.tokens for run in runs]
    return Figures(
        load_seconds=loaded.seconds,
        measured=speed(_timings(counted), prompt_tokens=prompt_tokens),
        warm_up=speed(_timings(warm_up), prompt_tokens=prompt_tokens) if warm_up else None,
        baseline_anonymous_bytes=None,
        peak_anonymous_bytes=None,
        peak_resident_bytes=peak,
        peak_device_bytes=None,
        greedy_tokens=first,
        repeatable=all(tokens == first for tokens in others),
        runtime_statistics=_statistics([run.statistics for run in counted if run.statistics]),
    )


def _timings(runs: Sequence[Ran]) -> list[Timing]:
    # The first token is the first that is heard of the prompt's end.
    return [
        Timing(run.tokens, run.first_token_seconds, run.first_token_seconds, run.total_seconds)
        for run in runs
    ]


def _statistics(told: Sequence[Statistics]) -> RuntimeStatistics | None:
    usable = [each for each in told if each.prefill_time_ms > 0 and each.generate_time_ms > 0]
    if not usable:
        return None
    return RuntimeStatistics(
        prompt_tokens=int(min(each.prefill_tokens for each in usable)),
        prefill_tokens_per_second=Spread.of(
            [1000 * each.prefill_tokens / each.prefill_time_ms for each in usable]
        ),
        decode_tokens_per_second=Spread.of(
            [1000 * each.generate_tokens / each.generate_time_ms for each in usable]
        ),
        peak_resident_bytes=int(max(each.memory_usage_mb for each in usable) * (1 << 20)),
    )


def _software(loaded: Loaded) -> str:
    chosen = ", ".join(f"{name} {value}" for name, value in loaded.chosen.items())
    return f"librkllmrt {loaded.version}" + (f"; its own choice: {chosen}" if chosen else "")


def _row(
    subject: Subject, software: str | None, figures: Figures | None, not_run: str | None
) -> Row:
    return Row(
        artifact=subject.name,
        container=subject.container,
        size_bytes=subject.size_bytes,
        runtime=RUNTIME,
        mode=MODE,
        software=software,
        tokens_as_first_mode=None,
        figures=figures,
        not_run=not_run,
    )


# ---------------------------------------------------------------- where it ran


def machine_of(told: Survey) -> Machine:
    """A board as the machine of a document."""
    npu = Accelerator(
        name=f"NPU of {told.platform or 'an unknown chip'}",
        memory_bytes=None,
        driver=told.driver,
        compute_capability=None,
    )
    facts = {
        "system": told.system,
        "processor": told.model or told.platform or "unknown",
        "physical_cores": told.processors,
        "logical_processors": told.processors or 0,
        "memory_gib": None if told.memory_bytes is None else round(told.memory_bytes / (1 << 30)),
    }
    digest = {**facts, "accelerators": [npu.model_dump(exclude={"driver"})]}
    fingerprint = hashlib.sha256(json.dumps(digest, sort_keys=True).encode()).hexdigest()
    return Machine.model_validate({**facts, "accelerators": (npu,), "fingerprint": fingerprint})


def _environment(told: Survey, watched: _Watched) -> Environment:
    cpus = [each for each in told.clocks if each.kind == "cpu"]
    return Environment(
        machine=machine_of(told),
        conditions=Conditions(
            kernel=told.kernel,
            governor=", ".join(sorted({each.governor for each in cpus})) or None,
            clock_mhz=_span(each.hertz for each in cpus),
            clock_limit_mhz=_span(each.highest_hertz for each in cpus),
            power=None,
            load_average=told.load_average,
            virtual=None,
            accelerators=tuple(
                f"{name} {each.words()}"
                for name, each in (("NPU", told.npu), ("memory", told.memory_clock))
                if each is not None
            ),
        ),
        libraries={
            "gemquant": __version__,
            "librkllmrt": ", ".join(dict.fromkeys(watched.releases)) or None,
        },
    )


def _board(before: Survey, after: Survey | None, watched: _Watched) -> Board:
    clocks = _decisive(before)
    later = [] if after is None else _decisive(after)
    a_megahertz = {each.name: (1e3 if each.kind == "cpu" else 1e6) for each in clocks}
    a_degree = {each.name: 1e3 for each in before.temperatures}
    return Board(
        platform=before.platform or "unknown",
        npu_driver=before.driver,
        fixed_clocks=bool(clocks and later) and all(each.is_fixed for each in (*clocks, *later)),
        clocks_before={each.name: each.words() for each in clocks},
        clocks_after={each.name: each.words() for each in later},
        celsius_before={each.name: each.celsius for each in before.temperatures},
        celsius_after={each.name: each.celsius for each in (after.temperatures if after else ())},
        clocks_mhz=watched.ranges("clock", a_megahertz),
        celsius=watched.ranges("temperature", a_degree),
        throttled=watched.throttled()
        or any(each.slows for each in (after.cooling if after else ())),
    )


def _decisive(told: Survey) -> list[Clock]:
    cpus = [each for each in told.clocks if each.kind == "cpu"]
    return cpus + [each for each in (told.npu, told.memory_clock) if each is not None]


def _span(hertz: Iterable[int | None]) -> str | None:
    known = sorted(each / 1e6 for each in hertz if each is not None)
    return f"{known[0]:.0f} to {known[-1]:.0f}" if known else None
