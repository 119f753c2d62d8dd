"""Benchmarks as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gemquant.cli.render import counted, print_json, print_tables, table
from gemquant.core.resources import human_bytes

if TYPE_CHECKING:
    from gemquant.core.tables import Table
    from gemquant.measure.bench.compare import Comparison
    from gemquant.measure.bench.document import Benchmark, Row, Spread
    from gemquant.measure.bench.measure import Measurement

UNKNOWN = "unknown"
CROWDED = 0.8
"""Load average before measuring from which on others took a good part of a processor."""


def plan(planned: Sequence[Measurement], *, as_json: bool) -> None:
    """Print what would be measured."""
    if as_json:
        print_json(
            [
                {
                    "artifact": each.subject.name,
                    "container": each.subject.container,
                    "runtime": each.runtime,
                    "mode": each.mode,
                    "not_run": each.not_run,
                }
                for each in planned
            ]
        )
        return
    listing = table("artifact", "container", "runtime", "mode", "")
    for each in planned:
        told = f"not run: {each.not_run}" if each.not_run else "would be measured"
        listing.add_row(each.subject.name, each.subject.container, each.runtime, each.mode, told)
    print_tables(listing, "", "Nothing was measured (--dry-run).")


def benchmark(measured: Benchmark) -> None:
    """Print settings, surroundings and all rows."""
    settings = measured.settings
    print_tables(
        f"{settings.prompt_tokens} prompt tokens, {settings.new_tokens} new ones; median "
        f"[range] of {settings.repetitions} runs after {settings.warm_up_runs} to warm up; "
        f"{_threads(settings.threads)}{settings.device}, {settings.dtype}",
        *_surroundings(measured),
        "",
        _speeds(measured.rows),
        "",
        _sizes(measured.rows),
        *_remarks(measured),
        *_board(measured),
    )


def _surroundings(measured: Benchmark) -> list[str]:
    machine, now = measured.environment.machine, measured.environment.conditions
    cores = f"{machine.physical_cores or UNKNOWN} cores"
    virtual = ", virtual" if now.virtual else ""
    load = UNKNOWN if now.load_average is None else f"{now.load_average:.2f}"
    where = (
        f"{machine.processor}, {cores}{virtual}, {machine.memory_gib or UNKNOWN} GiB; "
        f"{machine.system}, kernel {now.kernel}"
    )
    how = (
        f"governor {now.governor or UNKNOWN}; clock {now.clock_mhz or UNKNOWN} MHz, at most "
        f"{now.clock_limit_mhz or UNKNOWN}; power {now.power or UNKNOWN}; load average {load}"
    )
    lines = [where, how]
    for gpu, told in zip(
        machine.accelerators,
        [*now.accelerators, *[UNKNOWN] * len(machine.accelerators)],
        strict=False,
    ):
        lines.append(f"{gpu.name}, driver {gpu.driver or UNKNOWN}; {told}")
    return lines


def _speeds(rows: Sequence[Row]) -> Table:
    numbers = ("first token ms", "prefill tok/s", "decode tok/s")
    made = table("artifact", "runtime", "mode", *numbers, numbers=numbers)
    for row in rows:
        if row.figures is not None:
            measured = row.figures.measured
            made.add_row(
                row.artifact,
                row.runtime,
                row.mode,
                spread(measured.first_token_seconds, scale=1000),
                spread(measured.prefill_tokens_per_second),
                spread(measured.decode_tokens_per_second),
            )
    return made


def _sizes(rows: Sequence[Row]) -> Table:
    numbers = ("size", "load s", "allocated", "resident", "device", "tokens same")
    made = table("artifact", "runtime", "mode", *numbers, numbers=numbers)
    for row in rows:
        if row.figures is not None:
            figures = row.figures
            same = row.tokens_as_first_mode
            made.add_row(
                row.artifact,
                row.runtime,
                row.mode,
                human_bytes(row.size_bytes),
                f"{figures.load_seconds:.2f}",
                size(figures.peak_anonymous_bytes),
                size(figures.peak_resident_bytes),
                size(figures.peak_device_bytes),
                "" if same is None else f"{same} of {len(figures.greedy_tokens)}",
            )
    return made


def _remarks(measured: Benchmark) -> list[str]:
    rows = measured.rows
    remarks = ["", "allocated: peak of anonymous memory; resident: mapped weights count too."]
    load = measured.environment.conditions.load_average
    if load is not None and load >= CROWDED:
        remarks.append(
            f"caution: load average {load:.2f} before measuring: where others took processor time, "
            "these speeds are too low."
        )
    if any(row.tokens_as_first_mode is not None for row in rows):
        remarks.append(
            "tokens same: how many from the first on are those of the runtime's first mode."
        )
    for row in rows:
        if row.figures is not None and not row.figures.repeatable:
            name = f"{row.artifact}, {row.runtime} {row.mode}"
            remarks.append(f"caution: {name}: runs generated different tokens")
    not_run: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.not_run is not None:
            way = f"{row.runtime} {row.mode}".rstrip()
            not_run.setdefault((way, row.not_run), []).append(row.artifact)
    for (way, reason), artifacts in not_run.items():
        remarks.append(f"not run: {way} of {', '.join(artifacts)}: {reason}")
    return remarks


def _threads(count: int) -> str:
    return f"{counted(count, 'thread')}, " if count else ""


def _board(measured: Benchmark) -> list[str]:
    """What a board's clocks and heat did, and what its runtime counted itself."""
    board = measured.board
    if board is None:
        return []
    celsius = [f"{n} {r.lowest:.0f} to {r.highest:.0f} °C" for n, r in board.celsius.items()]
    clocks = [f"{n} {r.lowest:.0f} to {r.highest:.0f} MHz" for n, r in board.clocks_mhz.items()]
    lines = [
        f"after every run: {', '.join([*clocks, *celsius]) or 'nothing to be read of the board'}"
    ]
    if not board.fixed_clocks:
        lines.append(
            "caution: clocks were not fixed at their highest; "
            "gemquant doctor --board says how to fix them."
        )
    if board.throttled:
        lines.append("caution: the board slowed down because of heat: cool it, and measure again.")
    for row in measured.rows:
        told = row.figures and row.figures.runtime_statistics
        if told:
            lines.append(
                f"{row.artifact}, by the runtime's own clock: prefill "
                f"{spread(told.prefill_tokens_per_second)} tok/s, decode "
                f"{spread(told.decode_tokens_per_second)} tok/s, {size(told.peak_resident_bytes)}"
            )
            given = measured.settings.prompt_tokens
            if told.prompt_tokens != given:
                lines.append(
                    f"caution: {row.artifact}: the runtime computed {told.prompt_tokens} prompt "
                    f"tokens where {given} went in."
                )
        new = measured.settings.new_tokens
        if row.figures and len(row.figures.greedy_tokens) != new:
            lines.append(
                f"{row.artifact}: the text ended after {len(row.figures.greedy_tokens)} of {new} "
                "new tokens, which runtimes before 1.3.0 cannot be kept from."
            )
    return lines


def comparison(made: Comparison) -> None:
    """Print what changed, a line for each figure."""
    numbers = ("before", "after", "ratio")
    changes = table("artifact", "runtime", "mode", "figure", *numbers, "", numbers=numbers)
    for row in made.rows:
        for name, change in row.changes.items():
            changes.add_row(
                row.artifact,
                row.runtime,
                row.mode,
                name.replace("_", " "),
                _figure(name, change.before),
                _figure(name, change.after),
                f"{change.ratio:.3f}",
                "ranges overlap" if change.overlapping else "",
            )
    lines = ["", "ratio: after over before. The same machine and settings."]
    lines += [f"differs: {what}" for what in made.differs]
    lines += [f"measured once only: {what}" for what in made.unmatched]
    print_tables(changes, *lines)


def spread(measured: Spread, *, scale: float = 1.0) -> str:
    """Write a median with its range, to three figures."""
    median, low, high = (
        significant(value * scale)
        for value in (measured.median, measured.minimum, measured.maximum)
    )
    return f"{median} [{low}–{high}]"


def significant(value: float) -> str:
    """Write a number with three figures, or all of its integer part.

    >>> significant(0.01234), significant(47.26), significant(12345.6)
    ('0.0123', '47.3', '12346')
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size(count: int | None) -> str:
    """Write a size, or that there is none."""
    return "–" if count is None else human_bytes(count)


def _figure(name: str, value: float) -> str:
    return human_bytes(int(value)) if name.endswith("_bytes") else significant(value)
