"""Compares two benchmarks of one machine, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field

from gemquant.core.json_document import Record
from gemquant.errors import UnsupportedError, UsageError
from gemquant.measure.bench.document import Benchmark, Figures, Row, Settings

FIGURES = ("first_token_seconds", "prefill_tokens_per_second", "decode_tokens_per_second")
SINGLE_FIGURES = (
    "load_seconds",
    "peak_anonymous_bytes",
    "peak_resident_bytes",
    "peak_device_bytes",
)


class Change(Record):
    """One figure before and after."""

    before: float = Field(description="Median, or the one value, of the earlier benchmark.")
    after: float = Field(description="The same of the later one.")
    ratio: float = Field(description="After over before.")
    overlapping: bool | None = Field(
        description="Whether the ranges of both overlap: the difference may be chance. Null for a "
        "figure that was measured once."
    )


class RowChange(Record):
    """One artifact in one mode of one runtime, before and after."""

    artifact: str = Field(description="The artifact as it was named later.")
    runtime: str = Field(description="What ran it.")
    mode: str = Field(description="How.")
    changes: Mapping[str, Change] = Field(description="Every figure that both have, by its key.")


class Comparison(Record):
    """What `gemquant bench --compare BEFORE.json` prints with `--json`."""

    rows: tuple[RowChange, ...] = Field(description="Rows that both benchmarks measured.")
    differs: tuple[str, ...] = Field(
        description="What else changed between the two: versions, conditions, prompts."
    )
    unmatched: tuple[str, ...] = Field(description="Rows that only one of them measured.")
    after: Benchmark = Field(description="The later benchmark, whole.")


def compare(before: Benchmark, after: Benchmark) -> Comparison:
    """Compare; UnsupportedError across machines, UsageError across settings or without rows."""
    _require_same_machine(before, after)
    _require_same_settings(before.settings, after.settings)
    old, new = (
        {row.key: (row, row.figures) for row in each.rows if row.figures is not None}
        for each in (before, after)
    )
    common = [key for key in new if key in old]
    if not common:
        raise UsageError(
            "The two benchmarks have no measured row in common: "
            f"{_names(old)} before, {_names(new)} after.",
            hint="Rows are matched by the last part of the artifact's path, runtime and mode.",
        )
    return Comparison(
        rows=tuple(_change(*old[key], *new[key]) for key in common),
        differs=tuple(_differences(before, after)),
        unmatched=tuple(" ".join(key) for key in {**old, **new} if (key in old) != (key in new)),
        after=after,
    )


def _require_same_machine(before: Benchmark, after: Benchmark) -> None:
    first, second = before.environment.machine, after.environment.machine
    if first.fingerprint == second.fingerprint:
        return
    facts = ("system", "processor", "physical_cores", "logical_processors", "memory_gib")
    differing = [
        f"{fact} {getattr(first, fact)} and {getattr(second, fact)}"
        for fact in facts
        if getattr(first, fact) != getattr(second, fact)
    ]
    gpus = [
        ", ".join(gpu.name for gpu in machine.accelerators) or "none" for machine in (first, second)
    ]
    if gpus[0] != gpus[1]:
        differing.append(f"accelerators {gpus[0]} and {gpus[1]}")
    raise UnsupportedError(
        "The two benchmarks are of different machines, so that their speeds cannot be compared: "
        f"{'; '.join(differing) or 'their fingerprints differ'}.",
        hint="Measure both artifacts on one machine: gemquant bench A B",
    )


def _require_same_settings(before: Settings, after: Settings) -> None:
    differing = [
        f"{name} {getattr(before, name)} and {getattr(after, name)}"
        for name in ("prompt_tokens", "new_tokens", "threads", "device", "dtype")
        if getattr(before, name) != getattr(after, name)
    ]
    if differing:
        raise UsageError(
            f"The two benchmarks measured different things: {'; '.join(differing)}.",
            hint="Measure again with the settings of the earlier benchmark.",
        )


def _names(rows: Iterable[tuple[str, str, str]]) -> str:
    return ", ".join(" ".join(key) for key in rows) or "none"


def _change(row: Row, figures: Figures, later: Row, new: Figures) -> RowChange:
    changes = {}
    for name in FIGURES:
        first, second = getattr(figures.measured, name), getattr(new.measured, name)
        changes[name] = Change(
            before=first.median,
            after=second.median,
            ratio=second.median / first.median,
            overlapping=first.minimum <= second.maximum and second.minimum <= first.maximum,
        )
    single = {"size_bytes": (row.size_bytes, later.size_bytes)}
    single |= {name: (getattr(figures, name), getattr(new, name)) for name in SINGLE_FIGURES}
    for name, (old, current) in single.items():
        if old and current is not None:
            changes[name] = Change(before=old, after=current, ratio=current / old, overlapping=None)
    return RowChange(
        artifact=later.artifact, runtime=later.runtime, mode=later.mode, changes=changes
    )


def _differences(before: Benchmark, after: Benchmark) -> list[str]:
    """Describe everything but the artifacts that may explain a change."""
    old, new = before.environment, after.environment
    differences = [
        f"{name} {old.libraries.get(name)} → {new.libraries.get(name)}"
        for name in {**old.libraries, **new.libraries}
        if old.libraries.get(name) != new.libraries.get(name)
    ]
    for name in ("kernel", "governor", "clock_limit_mhz", "power"):
        first, second = getattr(old.conditions, name), getattr(new.conditions, name)
        if first != second:
            differences.append(f"{name} {first or 'unknown'} → {second or 'unknown'}")
    drivers = [
        ", ".join(gpu.driver or "unknown" for gpu in each.machine.accelerators)
        for each in (old, new)
    ]
    if drivers[0] != drivers[1]:
        differences.append(f"driver {drivers[0]} → {drivers[1]}")
    prompts = [
        {name.rpartition("/")[2]: digest for name, digest in each.prompts.items()}
        for each in (before, after)
    ]
    differences += [
        f"the prompt of {name}"
        for name, digest in prompts[0].items()
        if prompts[1].get(name, digest) != digest
    ]
    return differences
