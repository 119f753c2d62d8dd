"""Benchmarks as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gemquant.cli.render import counted, print_json, print_tables, table
from gemquant.core.resources import human_bytes
from gemquant.core.tables import number

if TYPE_CHECKING:
    from gemquant.measure.bench.compare import Comparison
    from gemquant.measure.bench.document import Benchmark, Row, Spread
    from gemquant.measure.bench.measure import Measurement

UNKNOWN = "unknown"
CROWDED = 0.8
"""Load average before measuring from which on other programs took much of a processor."""


def plan(planned: Sequence[Measurement], *, as_json: bool) -> None:
    """Print what would be measured."""
    columns = ("artifact", "container", "runtime", "mode")
    values = [
        (each.subject.name, each.subject.container, each.runtime, each.mode) for each in planned
    ]
    if as_json:
        print_json(
            [
                {**dict(zip(columns, row, strict=True)), "not_run": each.not_run}
                for row, each in zip(values, planned, strict=True)
            ]
        )
        return
    listing = table(*columns, "")
    for row, each in zip(values, planned, strict=True):
        listing.add_row(*row, f"not run: {each.not_run}" if each.not_run else "would be measured")
    print_tables(listing, "", "Nothing was measured (--dry-run).")


def benchmark(measured: Benchmark) -> None:
    """Print settings, surroundings and all rows."""
    settings = measured.settings
    threads = f"{counted(settings.threads, 'thread')}, " if settings.threads else ""
    columns = ("artifact", "runtime", "mode")
    speed_columns = ("first token ms", "prefill tok/s", "decode tok/s")
    size_columns = ("size", "load s", "allocated", "resident", "device", "tokens same")
    speeds = table(*columns, *speed_columns, numbers=speed_columns)
    sizes = table(*columns, *size_columns, numbers=size_columns)
    for row in measured.rows:
        figures, same = row.figures, row.tokens_as_first_mode
        if figures is None:
            continue
        speeds.add_row(
            row.artifact,
            row.runtime,
            row.mode,
            _spread(figures.measured.first_token_seconds, scale=1000),
            _spread(figures.measured.prefill_tokens_per_second),
            _spread(figures.measured.decode_tokens_per_second),
        )
        sizes.add_row(
            row.artifact,
            row.runtime,
            row.mode,
            human_bytes(row.size_bytes),
            f"{figures.load_seconds:.2f}",
            _size(figures.peak_anonymous_bytes),
            _size(figures.peak_resident_bytes),
            _size(figures.peak_device_bytes),
            "" if same is None else f"{same} of {len(figures.greedy_tokens)}",
        )
    print_tables(
        f"{settings.prompt_tokens} prompt tokens, {settings.new_tokens} new ones; median "
        f"[range] of {settings.repetitions} runs after {settings.warm_up_runs} to warm up; "
        f"{threads}{settings.device}, {settings.dtype}",
        *_surroundings(measured),
        "",
        speeds,
        "",
        sizes,
        "",
        *_remarks(measured),
        *_board(measured),
    )


def _surroundings(measured: Benchmark) -> Iterator[str]:
    machine, now = measured.environment.machine, measured.environment.conditions
    virtual = ", virtual" if now.virtual else ""
    load = UNKNOWN if now.load_average is None else f"{now.load_average:.2f}"
    yield (
        f"{machine.processor}, {machine.physical_cores or UNKNOWN} cores{virtual}, "
        f"{machine.memory_gib or UNKNOWN} GiB; {machine.system}, kernel {now.kernel}"
    )
    yield (
        f"governor {now.governor or UNKNOWN}; clock {now.clock_mhz or UNKNOWN} MHz, at most "
        f"{now.clock_limit_mhz or UNKNOWN}; power {now.power or UNKNOWN}; load average {load}"
    )
    for index, gpu in enumerate(machine.accelerators):
        condition = now.accelerators[index] if index < len(now.accelerators) else UNKNOWN
        yield f"{gpu.name}, driver {gpu.driver or UNKNOWN}; {condition}"


def _remarks(measured: Benchmark) -> Iterator[str]:
    yield "allocated: peak of anonymous memory; resident: mapped weights count too."
    load = measured.environment.conditions.load_average
    if load is not None and load >= CROWDED:
        yield (
            f"caution: load average {load:.2f} before measuring: other programs took processor "
            "time, so these speeds are too low."
        )
    if any(row.tokens_as_first_mode is not None for row in measured.rows):
        yield "tokens same: how many from the first on equal those of the runtime's first mode."
    not_run: dict[tuple[str, str], list[str]] = {}
    for row in measured.rows:
        if row.figures is not None and not row.figures.repeatable:
            yield (
                f"caution: {row.artifact}, {row.runtime} {row.mode}: runs generated different "
                "tokens"
            )
        if row.not_run is not None:
            mode = f"{row.runtime} {row.mode}".rstrip()
            not_run.setdefault((mode, row.not_run), []).append(row.artifact)
    for (mode, reason), artifacts in not_run.items():
        yield f"not run: {mode} of {', '.join(artifacts)}: {reason}"


def _board(measured: Benchmark) -> Iterator[str]:
    """Describe clocks and temperatures of a board, and the runtime's own figures."""
    board = measured.board
    if board is None:
        return
    clocks = [f"{n} {r.lowest:.0f} to {r.highest:.0f} MHz" for n, r in board.clocks_mhz.items()]
    celsius = [f"{n} {r.lowest:.0f} to {r.highest:.0f} °C" for n, r in board.celsius.items()]
    yield f"after every run: {', '.join([*clocks, *celsius]) or 'the board reports nothing'}"
    if not board.fixed_clocks:
        yield (
            "caution: clocks were not fixed at their highest; "
            "gemquant doctor --board explains how to fix them."
        )
    if board.throttled:
        yield "caution: the board slowed down because of heat: cool it, and measure again."
    for row in measured.rows:
        yield from _board_row(row, measured.settings.prompt_tokens, measured.settings.new_tokens)


def _board_row(row: Row, prompt_tokens: int, new_tokens: int) -> Iterator[str]:
    statistics = row.figures and row.figures.runtime_statistics
    if statistics:
        yield (
            f"{row.artifact}, by the runtime's own clock: prefill "
            f"{_spread(statistics.prefill_tokens_per_second)} tok/s, decode "
            f"{_spread(statistics.decode_tokens_per_second)} tok/s, "
            f"{_size(statistics.peak_resident_bytes)}"
        )
        if statistics.prompt_tokens != prompt_tokens:
            yield (
                f"caution: {row.artifact}: the runtime computed {statistics.prompt_tokens} prompt "
                f"tokens instead of {prompt_tokens}."
            )
    if row.figures and len(row.figures.greedy_tokens) != new_tokens:
        yield (
            f"{row.artifact}: the text ended after {len(row.figures.greedy_tokens)} of "
            f"{new_tokens} new tokens; runtimes before 1.3.0 cannot continue after its end."
        )


def comparison(compared: Comparison) -> None:
    """Print what changed, a line for each figure."""
    numbers = ("before", "after", "ratio")
    changes = table("artifact", "runtime", "mode", "figure", *numbers, "", numbers=numbers)
    for row in compared.rows:
        for name, change in row.changes.items():
            before, after = (_figure(name, value) for value in (change.before, change.after))
            changes.add_row(
                row.artifact,
                row.runtime,
                row.mode,
                name.replace("_", " "),
                before,
                after,
                f"{change.ratio:.3f}",
                "ranges overlap" if change.overlapping else "",
            )
    lines = ["", "ratio: after over before. The same machine and settings."]
    lines += [f"differs: {what}" for what in compared.differs]
    lines += [f"measured only once: {what}" for what in compared.unmatched]
    print_tables(changes, *lines)


def _spread(measured: Spread, *, scale: float = 1.0) -> str:
    """Write a median with its range, to three figures."""
    median, low, high = (
        number(value * scale, 3) for value in (measured.median, measured.minimum, measured.maximum)
    )
    return f"{median} [{low}–{high}]"


def _figure(name: str, value: float) -> str:
    return human_bytes(int(value)) if name.endswith("_bytes") else number(value, 3)


def _size(count: int | None) -> str:
    return "–" if count is None else human_bytes(count)
