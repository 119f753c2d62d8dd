"""Speed and memory of RKLLM files on a board, in the document of all benchmarks.

Seconds are counted on the board, from passing the prompt's ids to each token in the callback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from gemquant import __version__
from gemquant.core.artifact import MANIFEST_FILE, read_manifest
from gemquant.core.protocols import Progress
from gemquant.errors import ProblemCollector, UnsupportedError, UsageError, WorkerError
from gemquant.formats.checkpoint import open_checkpoint
from gemquant.measure.bench import document
from gemquant.measure.bench.child import Answer, figures_of
from gemquant.measure.bench.document import Benchmark, Environment, Range, Row, Settings, Spread
from gemquant.measure.bench.measure import digest_of, prompt_from
from gemquant.measure.bench.subject import Subject
from gemquant.rockchip.board_events import Done, Loaded, Ran, Statistics
from gemquant.rockchip.board_rkllm import CONTAINER, Board, RkllmOnBoard, model_file, on_board
from gemquant.rockchip.board_survey import Survey, survey
from gemquant.runtimes.runtime import Timing

RUNTIME, MODE = "rkllm", "npu"
TASK = "measuring on the board"


def open_subjects(names: Sequence[str]) -> list[Subject]:
    """Open the files to measure; raise all problems together."""
    problems = ProblemCollector()
    subjects = []
    for name in dict.fromkeys(names):
        subject = problems.attempt(lambda name=name: Subject.open(name))  # type: ignore[misc]
        if not subject.succeeded:
            continue
        if subject.value.container != CONTAINER:
            problems.append(
                UnsupportedError(
                    f"{name}: --board runs RKLLM files, and this is {subject.value.container}.",
                    hint=f"Without --board: gemquant bench {name}",
                )
            )
        subjects.append(subject.value)
    problems.refuse()
    return subjects


def run(
    board: Board,
    subjects: Sequence[Subject],
    settings: Settings,
    progress: Progress,
    *,
    tokenizer: str | None = None,
) -> Benchmark:
    """Measure one file after the other; a file that fails has the reason in its row.

    tokenizer: the model whose tokenizer encodes the prompt; None for that of the manifest.
    """
    prompts = {
        each.name: _prompt(each, board, tokenizer, settings.prompt_tokens) for each in subjects
    }
    samples = _Samples()
    rows: list[Row] = []
    progress.start(TASK, len(subjects))
    for each in subjects:
        try:
            with on_board(board, model_file(each.path), progress) as model:
                rows.append(_measure(each, prompts[each.name], model, settings, samples, progress))
        except WorkerError as error:
            rows.append(_row(each, Answer(failed=str(error))))
        progress.advance(TASK)
    try:
        after = survey(board.address)
    except WorkerError as error:  # the measurements count without it
        progress.note(f"the board cannot be surveyed again: {error.message}")
        after = None
    return Benchmark(
        environment=_environment(board.survey, samples),
        settings=settings,
        prompts={name: digest_of(prompt) for name, prompt in prompts.items()},
        rows=tuple(rows),
        board=_condition(board.survey, after, samples),
    )


def _prompt(subject: Subject, board: Board, tokenizer: str | None, tokens: int) -> tuple[int, ...]:
    if (Path(subject.path) / MANIFEST_FILE).is_file():
        manifest = read_manifest(subject.path)
        if manifest.conversion is not None:
            board.require_platform(manifest.conversion.platform, subject.name)
        tokenizer = tokenizer or manifest.source.ref
    if tokenizer is None:
        raise UsageError(
            f"{subject.name}: has no manifest.json that names its model.",
            hint="Name the model that its tokenizer comes from: --tokenizer MODEL",
        )
    checkpoint = open_checkpoint(tokenizer)
    return prompt_from(checkpoint.tokenizer(), checkpoint.config["bos_token_id"], tokens)


def _measure(
    subject: Subject,
    prompt: Sequence[int],
    model: RkllmOnBoard,
    settings: Settings,
    samples: _Samples,
    progress: Progress,
) -> Row:
    loaded: Loaded | None = None
    runs: list[Ran] = []
    peak: int | None = None
    events = model.generate(
        prompt,
        new_tokens=settings.new_tokens,
        repetitions=settings.repetitions,
        warm_up_runs=settings.warm_up_runs,
    )
    with closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Loaded):
                loaded = event
                samples.releases.append(event.version)
                progress.note(f"librkllmrt {event.version}: loaded in {event.seconds:.1f} s")
            elif isinstance(event, Ran):
                runs.append(event)
                samples.watched.append(event.watched)
            elif isinstance(event, Done):
                peak = event.peak_resident_bytes
    if loaded is None or any(len(run.tokens) < 2 for run in runs):
        return _row(subject, Answer(failed="fewer than two tokens were generated"))
    counted = [run for run in runs if not run.warm_up]
    figures = figures_of(
        _timings([run for run in runs if run.warm_up]),
        _timings(counted),
        prompt_tokens=len(prompt),
        load_seconds=loaded.seconds,
        peak_resident_bytes=peak,
        runtime_statistics=_statistics([run.statistics for run in counted if run.statistics]),
    )
    chosen = ", ".join(f"{name} {value}" for name, value in loaded.chosen.items())
    software = f"librkllmrt {loaded.version}" + (f"; its own choice: {chosen}" if chosen else "")
    return _row(subject, Answer(software=software, figures=figures))


def _timings(runs: Sequence[Ran]) -> list[Timing]:
    # The first token also marks the end of the prompt.
    return [
        Timing(run.tokens, run.first_token_seconds, run.first_token_seconds, run.total_seconds)
        for run in runs
    ]


def _statistics(runs: Sequence[Statistics]) -> document.RuntimeStatistics | None:
    usable = [each for each in runs if each.prefill_time_ms > 0 and each.generate_time_ms > 0]
    if not usable:
        return None
    prefill = [1000 * each.prefill_tokens / each.prefill_time_ms for each in usable]
    decode = [1000 * each.generate_tokens / each.generate_time_ms for each in usable]
    return document.RuntimeStatistics(
        prompt_tokens=int(min(each.prefill_tokens for each in usable)),
        prefill_tokens_per_second=Spread.of(prefill),
        decode_tokens_per_second=Spread.of(decode),
        peak_resident_bytes=int(max(each.memory_usage_mb for each in usable) * (1 << 20)),
    )


def _row(subject: Subject, answer: Answer) -> Row:
    return answer.row(subject, RUNTIME, MODE, tokens_as_first_mode=None)


# ---------------------------------------------------------------- the board's condition


@dataclass
class _Samples:
    """Values of the board's files after every run, and releases of its runtime."""

    watched: list[Mapping[str, int]] = field(default_factory=list)
    releases: list[str] = field(default_factory=list)

    def values(self, kind: str) -> dict[str, list[int]]:
        """Values of all files of a kind, by the name of what they describe."""
        values: dict[str, list[int]] = {}
        for sample in self.watched:
            for name, value in sample.items():
                if name.startswith(f"{kind} "):
                    values.setdefault(name.removeprefix(f"{kind} "), []).append(value)
        return values

    def ranges(self, kind: str, units: Mapping[str, float]) -> dict[str, Range]:
        """Lowest and highest value. units: what a value is divided by."""
        return {
            name: Range(
                lowest=min(values) / units.get(name, 1.0),
                highest=max(values) / units.get(name, 1.0),
            )
            for name, values in self.values(kind).items()
        }


def machine_of(board: Survey) -> document.Machine:
    """A board as the machine of a document."""
    npu = document.Accelerator(
        name=f"NPU of {board.platform or 'an unknown chip'}",
        memory_bytes=None,
        driver=board.driver,
        compute_capability=None,
    )
    return document.Machine.of(
        (npu,),
        system=board.system,
        processor=board.model or board.platform or "unknown",
        physical_cores=board.processors,
        logical_processors=board.processors or 0,
        memory_gib=None if board.memory_bytes is None else round(board.memory_bytes / (1 << 30)),
    )


def _environment(board: Survey, samples: _Samples) -> Environment:
    cpus = board.cpu_clocks
    clocks = {"NPU": board.npu, "memory": board.memory_clock}
    return Environment(
        machine=machine_of(board),
        conditions=document.Conditions(
            kernel=board.kernel,
            governor=", ".join(sorted({each.governor for each in cpus})) or None,
            clock_mhz=_span([each.hertz for each in cpus]),
            clock_limit_mhz=_span([each.highest_hertz for each in cpus]),
            power=None,
            load_average=board.load_average,
            virtual=None,
            accelerators=tuple(f"{name} {each.words()}" for name, each in clocks.items() if each),
        ),
        libraries={
            "gemquant": __version__,
            "librkllmrt": ", ".join(dict.fromkeys(samples.releases)) or None,
        },
    )


def _condition(before: Survey, after: Survey | None, samples: _Samples) -> document.Board:
    clocks = before.speed_clocks
    later = [] if after is None else after.speed_clocks
    throttling = () if after is None else after.cooling
    to_megahertz = {each.name: (1e3 if each.kind == "cpu" else 1e6) for each in clocks}
    to_celsius = {each.name: 1e3 for each in before.temperatures}
    return document.Board(
        platform=before.platform or "unknown",
        npu_driver=before.driver,
        fixed_clocks=bool(clocks and later) and all(each.is_fixed for each in (*clocks, *later)),
        clocks_before={each.name: each.words() for each in clocks},
        clocks_after={each.name: each.words() for each in later},
        celsius_before={each.name: each.celsius for each in before.temperatures},
        celsius_after={each.name: each.celsius for each in (after.temperatures if after else ())},
        clocks_mhz=samples.ranges("clock", to_megahertz),
        celsius=samples.ranges("temperature", to_celsius),
        throttled=any(max(values) > 0 for values in samples.values("cooling").values())
        or any(each.slows for each in throttling),
    )


def _span(hertz: Sequence[int | None]) -> str | None:
    known = sorted(each / 1e6 for each in hertz if each is not None)
    return f"{known[0]:.0f} to {known[-1]:.0f}" if known else None
