"""Figures of an artifact as a whole: size, bytes, and how it ran; no sample of text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from gemquant.core.artifact.evaluation import ArtifactEvaluation
from gemquant.measure.bench.document import Benchmark
from gemquant.measure.gate.baseline import BaselineEntry, BenchFigures
from gemquant.measure.gate.budget import Budgets
from gemquant.measure.gate.verdict import Check, Metric, Outcome

COMPARED_SETTINGS = ("prompt_tokens", "new_tokens", "threads", "device", "dtype")
PEAKS = {"peak_anonymous_bytes": None, "peak_device_bytes": "on the accelerator"}
"""Peaks of memory, and the note that a check of each carries."""


def size_check(artifact: ArtifactEvaluation, entry: BaselineEntry, budgets: Budgets) -> Check:
    """Size of all files, relative to the baseline's."""
    before, now = entry.evaluation.size_bytes, artifact.size_bytes
    return _relative("size", before, now, budgets.limit("size", artifact=artifact.name))


def bytes_check(
    artifact: ArtifactEvaluation, machine: str, entry: BaselineEntry, budgets: Budgets
) -> Check:
    """Whether the bytes are still those that the last recorded reason explains.

    Processors and library versions differ in the last bits, and so do then the bytes: it is gated
    only where both are the baseline's.
    """
    changed = artifact.digest != entry.evaluation.digest
    outcome: Outcome = "regression" if changed else "pass"
    note = "bytes changed, and no reason is recorded" if changed else None
    if changed:
        old, new = entry.evaluation.libraries, artifact.libraries
        differing = _differences(old, new)
        excuse = None
        if budgets.limit("bytes_changed", artifact=artifact.name) != "fail":
            excuse = "the budgets say so"
        elif not old or not new:
            excuse = "the libraries that made it are not known"
        elif differing:
            excuse = f"made with other libraries: {differing}"
        elif machine != entry.machine:
            excuse = "another machine, whose arithmetic may differ"
        if excuse is not None:
            outcome, note = "reported", f"bytes changed; not gated: {excuse}"
    return Check(
        metric="bytes_changed",
        baseline=None,
        value=None,
        increase=float(changed),
        budget=0.0 if outcome != "reported" else None,
        outcome=outcome,
        note=note,
    )


def bench_figures(benchmark: Benchmark, name: str) -> tuple[BenchFigures, ...]:
    """How fast an artifact ran, in every mode of every runtime that was measured."""
    settings = {key: getattr(benchmark.settings, key) for key in COMPARED_SETTINGS}
    return tuple(
        BenchFigures(
            runtime=row.runtime,
            mode=row.mode,
            settings=settings,
            machine=benchmark.environment.machine.fingerprint,
            decode_tokens_per_second=row.figures.measured.decode_tokens_per_second.values,
            peak_anonymous_bytes=row.figures.peak_anonymous_bytes,
            peak_device_bytes=row.figures.peak_device_bytes,
        )
        for row in benchmark.rows
        if row.key[0] == name and row.figures is not None
    )


def bench_checks(
    name: str, now: Sequence[BenchFigures], entry: BaselineEntry, budgets: Budgets
) -> Iterator[Check]:
    """Memory and speed against the baseline's, mode by mode."""
    before = {(each.runtime, each.mode): each for each in entry.bench}
    for new in now:
        old = before.get((new.runtime, new.mode))
        if old is None:
            continue
        settings = _differences(old.settings, new.settings)
        excuse = f"other settings: {settings}" if settings else None
        memory = budgets.limit("peak_memory", artifact=name)
        where = f"{new.runtime}, {new.mode}"
        for kind, note in PEAKS.items():
            old_peak, new_peak = getattr(old, kind), getattr(new, kind)
            if old_peak and new_peak is not None:
                yield _relative(
                    "peak_memory", old_peak, new_peak, memory, where=where, note=note, excuse=excuse
                )
        if old.machine != new.machine:
            excuse = "another machine, whose speed says nothing about the artifact"
        speed = budgets.limit("decode_speed", artifact=name)
        yield _speed(old, new, speed, where=where, excuse=excuse)


def _speed(
    old: BenchFigures,
    new: BenchFigures,
    limit: float | str | None,
    *,
    where: str,
    excuse: str | None,
) -> Check:
    """Loss of decoding speed; repetitions whose ranges overlap decide nothing."""
    before, now = old.decode_tokens_per_second, new.decode_tokens_per_second
    medians = statistics.median(before), statistics.median(now)
    check = _relative("decode_speed", *medians, limit, worse=-1, where=where, excuse=excuse)
    if check.outcome == "regression" and max(now) >= min(before):
        return check.model_copy(
            update={"outcome": "inconclusive", "note": "the repetitions' ranges overlap"}
        )
    return check


def _differences(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """Name what differs, as "torch 2.1 → 2.2"; empty if nothing does."""
    return ", ".join(
        f"{name} {old.get(name)} → {new.get(name)}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    )


def _relative(
    metric: Metric,
    before: float,
    now: float,
    limit: float | str | None,
    *,
    worse: int = 1,
    where: str | None = None,
    note: str | None = None,
    excuse: str | None = None,
) -> Check:
    increase = worse * (now - before) / before if before else 0.0
    budget = limit if isinstance(limit, float) and excuse is None else None
    outcome: Outcome = "reported"
    if budget is not None:
        outcome = "pass" if increase <= budget else "regression"
    elif excuse is None:
        excuse = "the budgets say so"
    notes = [note, f"not gated: {excuse}" if budget is None else None]
    return Check(
        metric=metric,
        where=where,
        baseline=before,
        value=now,
        increase=increase,
        budget=budget,
        outcome=outcome,
        note="; ".join(filter(None, notes)) or None,
    )
