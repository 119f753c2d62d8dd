"""The report's tables, for Markdown and HTML. A table holds figures of one level only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from gemquant.core.artifact.evaluation import ArtifactEvaluation, Level, measured_slices
from gemquant.core.artifact.losses import comparisons, loss_cells, loss_columns
from gemquant.core.resources import human_bytes
from gemquant.core.tables import Cell, Column, Table, columns, counted, number, percent
from gemquant.measure.gate.baseline import Headline
from gemquant.measure.gate.verdict import SEVERITY, Check, LayerFinding, Verdict
from gemquant.measure.report import wording
from gemquant.measure.report.document import Comparison, Report
from gemquant.measure.report.wording import METRICS, OUTCOMES

if TYPE_CHECKING:
    from gemquant.measure.bench.document import Benchmark, Spread


_CHECK_COLUMNS = columns("where; metric; outcome", "baseline; now; worse by; interval; budget")

# ---------------------------------------------------------------- the verdict


def verdict_words(verdict: Verdict) -> str:
    """Say the verdict in a sentence or two."""
    artifacts = verdict.artifacts
    bad = [each for each in artifacts if SEVERITY[each.outcome]]
    count = counted(len(artifacts), "artifact")
    baseline = verdict.baseline
    said = (
        f"{count}, all within budget"
        if not bad
        else f"{len(bad)} of {count} not shown to be within budget"
    )
    commit = f" at commit {baseline.commit}" if baseline.commit else ""
    return f"{said}, against baseline {baseline.name}{commit}."


def by_level(checks: Iterable[Check]) -> Iterator[tuple[Level | None, list[Check]]]:
    """Checks of each level apart; those without a level last."""
    groups: dict[Level | None, list[Check]] = {}
    for check in checks:
        groups.setdefault(check.level, []).append(check)
    for level in sorted(groups, key=lambda each: each is None):
        yield level, groups[level]


def all_checks(verdict: Verdict, *, passed: bool) -> Iterator[tuple[Level | None, Table]]:
    """The checks of all artifacts that passed, or did not, the worst first; a table per level."""
    pairs = [
        (artifact.name, check)
        for artifact in verdict.artifacts
        for check in artifact.checks
        if (SEVERITY[check.outcome] == 0) is passed
    ]
    pairs.sort(key=lambda pair: -SEVERITY[pair[1].outcome])
    for level, _ in by_level(check for _, check in pairs):
        table = Table([Column("artifact"), *_CHECK_COLUMNS])
        for name, check in pairs:
            if check.level == level:
                table.add_row(name, *_check_cells(check))
        yield level, table


def checks(group: Sequence[Check]) -> Table:
    """Checks of one artifact at one level."""
    notes = dict.fromkeys(
        f"{wording.place(check)}, {METRICS[check.metric]}: {check.note}"
        for check in group
        if check.note
    )
    return Table(_CHECK_COLUMNS, [_check_cells(check) for check in group], tuple(notes))


def _check_cells(check: Check) -> list[Cell]:
    return [
        Cell(wording.place(check)),
        Cell(METRICS[check.metric]),
        Cell(OUTCOMES[check.outcome], float(SEVERITY[check.outcome])),
        Cell(wording.measured(check, check.baseline), check.baseline),
        Cell(wording.measured(check, check.value), check.value),
        Cell(wording.increase(check, check.increase), check.increase),
        Cell(wording.increase_interval(check), check.low),
        Cell(wording.budget(check), check.budget),
    ]


def layers_words(findings: Sequence[LayerFinding]) -> str:
    """Say at which layer the hidden states' error rises, slice by slice."""
    levels: dict[Level, list[str]] = {}
    for each in findings:
        levels.setdefault(each.level, []).append(f"{each.layer} on {each.slice}")
    return "; ".join(
        f"level {level}: the error rises at layer {', '.join(places)}"
        for level, places in levels.items()
    )


# ---------------------------------------------------------------- evaluations


def by_level_figures(comparison: Comparison) -> Iterator[tuple[Level, Table]]:
    """What was lost, one table per level, a row per artifact and slice."""
    tables: dict[Level, Table] = {}
    for artifact in comparison.artifacts:
        for level in artifact.evaluation.levels:
            found = measured_slices(level)
            if not found:
                continue
            embeddings = bool(level.embeddings)
            head = [*columns("artifact; slice"), *loss_columns(embeddings=embeddings)]
            table = tables.setdefault(level.level, Table(head))
            for each in found:
                table.add_row(artifact.label, each.slice, *loss_cells(each))
    yield from tables.items()


def overall(comparison: Comparison) -> Iterator[tuple[Level, Table]]:
    """All artifacts over all slices, a row each; one table per level."""
    labelled = (
        each.evaluation.model_copy(update={"name": each.label}) for each in comparison.artifacts
    )
    yield from comparisons(labelled)


def _size(evaluation: ArtifactEvaluation | Headline) -> list[Cell]:
    size, bits = evaluation.size_bytes, evaluation.bits_per_weight
    return [Cell(human_bytes(size), float(size)), Cell(f"{bits:.2f}", bits)]


def not_run(comparison: Comparison) -> Iterator[str]:
    """Say which levels were not measured, and why."""
    for artifact in comparison.artifacts:
        for level in artifact.evaluation.levels:
            if level.not_run is not None:
                yield f"{artifact.label}, level {level.level}: not run, {level.not_run}"


def artifacts(comparison: Comparison) -> Table:
    """What the artifacts are."""
    rows = [
        [
            Cell(each.label),
            Cell(each.evaluation.container),
            Cell(each.evaluation.quantizer),
            Cell(each.evaluation.scheme),
            *_size(each.evaluation),
        ]
        for each in comparison.artifacts
    ]
    return Table(columns("artifact; container; quantizer; scheme", "size; bits"), rows)


# ---------------------------------------------------------------- speed, history, provenance


def benchmark(measured: Benchmark) -> Table:
    """Speed and memory of artifacts in their runtimes."""
    rows, notes = [], []
    for row in measured.rows:
        name = row.key[0]
        if row.figures is None:
            notes.append(f"{name}, {row.runtime} {row.mode}: not run, {row.not_run}")
            continue
        speed, peak = row.figures.measured, row.figures.peak_anonymous_bytes
        rows.append(
            [
                Cell(name),
                Cell(row.runtime),
                Cell(row.mode),
                Cell(human_bytes(row.size_bytes), float(row.size_bytes)),
                _speed(speed.decode_tokens_per_second),
                _speed(speed.prefill_tokens_per_second),
                _speed(speed.first_token_seconds),
                Cell("unknown") if peak is None else Cell(human_bytes(peak), float(peak)),
            ]
        )
    head = columns(
        "artifact; runtime; mode",
        "size; decode, tokens/s; prefill, tokens/s; first token, s; peak anonymous memory",
    )
    return Table(head, rows, notes)


def _speed(repetitions: Spread) -> Cell:
    low, high = number(repetitions.minimum, 3), number(repetitions.maximum, 3)
    return Cell(f"{number(repetitions.median, 3)} ({low} to {high})", repetitions.median)


def history(report: Report) -> Iterator[tuple[Level, Table]]:
    """Updates of the baseline, the newest first; one table per level."""
    head = columns("update; commit; reason; artifact", "size; bits; NLL increase; KL mean; top-1")
    tables: dict[Level, Table] = {}
    entries = () if report.baseline is None else report.baseline.document.history
    for update, entry in reversed(list(enumerate(entries, 1))):
        for each in entry.artifacts:
            tables.setdefault(each.level, Table(head)).add_row(
                Cell(str(update), float(update)),
                entry.commit or "—",
                entry.reason,
                each.name,
                *_size(each),
                Cell(number(each.nll_increase), each.nll_increase),
                Cell(number(each.kl_mean), each.kl_mean),
                Cell(percent(each.top1), each.top1),
            )
    yield from tables.items()


def provenance(report: Report) -> Table:
    """Every hash, version and setting that the figures depend on."""
    rows = [("gemquant, this report", report.gemquant)]
    rows += [(f"{each.kind} {each.name}", f"sha256:{each.sha256}") for each in report.sources]
    for comparison in report.comparisons:
        original, suite = comparison.original, comparison.suite
        rows += [
            ("original", original.ref),
            ("original, revision", original.revision or "—"),
            ("original, base model", original.base_model or "—"),
            ("original, architecture", original.architecture),
            ("original, digest", original.digest),
            ("suite", f"{suite.name}, version {suite.version}"),
            ("suite, tokens", suite.token_stream),
            *((f"setting {name}", str(value)) for name, value in comparison.settings.items()),
        ]
        for artifact in comparison.artifacts:
            evaluated, label = artifact.evaluation, artifact.label
            rows += [
                (f"{label}, digest", evaluated.digest),
                (f"{label}, gemquant", artifact.gemquant),
                (f"{label}, machine", artifact.machine),
                *((f"{label}, level {each.level}", each.runtime) for each in evaluated.levels),
                (f"{label}, made with", _versions(evaluated.libraries)),
            ]
    rows += _gate_provenance(report)
    return Table([Column("what"), Column("value")], [_fact(*row) for row in rows])


def _versions(libraries: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in libraries.items()) or "—"


def _gate_provenance(report: Report) -> Iterator[tuple[str, str]]:
    if report.verdict is not None:
        verdict = report.verdict
        yield "gate, gemquant", verdict.gemquant
        yield "gate, baseline", f"{verdict.baseline.name}, sha256:{verdict.baseline.sha256}"
        yield "gate, baseline's updates", str(verdict.baseline.updates)
        yield "gate, false alarm, all checks together", str(verdict.family_error)
        yield "gate, missing a loss of the budget's size, each check", str(verdict.error)
    if report.benchmark is not None:
        environment = report.benchmark.environment
        yield "benchmark, machine", environment.machine.fingerprint
        yield "benchmark, processor", environment.machine.processor
        for name, setting in report.benchmark.settings.model_dump().items():
            yield f"benchmark, {name}", str(setting)
        for name, version in environment.libraries.items():
            yield f"benchmark, {name}", version or "—"
    if report.baseline is not None:
        yield "baseline, original", report.baseline.document.original.digest
        yield "baseline, tokens", report.baseline.document.suite.token_stream


def _fact(name: str, value: str) -> list[Cell]:
    return [Cell(name), Cell(value)]
