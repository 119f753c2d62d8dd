"""``gemquant report``: evaluations and the gate's verdict, for people and for CI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gemquant.cli.flags import flag, flags, output_flags
from gemquant.cli.settings import problems_of, setting
from gemquant.core.progress import reporter
from gemquant.errors import (
    GemquantError,
    OutputError,
    ProblemCollector,
    UsageError,
    echo,
)

if TYPE_CHECKING:
    from gemquant.measure.report.document import Report

T = TypeVar("T")

FORMS = ("markdown", "junit", "html")
"""Parameters that name a file to write."""

STDOUT = Path("-")


def _file(flag: str, help: str) -> click.Parameter:
    return setting(flag, type=click.Path(path_type=Path), metavar="FILE", help=help)


@click.command(
    "report",
    epilog="""\b
Examples:
  gemquant report evaluation.json --html report.html
  gemquant report evaluation.json --verdict verdict.json --markdown - >> "$GITHUB_STEP_SUMMARY"
  gemquant report evaluation.json --verdict verdict.json --baseline ci/baselines/gemma.json \\
    --bench bench.json --junit junit.xml --html report.html""",
)
@flags(
    click.Argument(
        ["evaluations"],
        nargs=-1,
        metavar="[EVALUATION]...",
        type=click.Path(path_type=Path),
    ),
    _file("--verdict", "Output of `gemquant gate --output`."),
    _file("--bench", "Output of `gemquant bench --json`."),
    _file("--baseline", "A baseline, whose history is shown."),
    _file("--markdown", "Markdown, for a pull request and $GITHUB_STEP_SUMMARY; - for stdout."),
    setting(
        "--markdown-limit",
        type=int,
        instead="GitHub's limit of a step summary, 1048576",
        metavar="BYTES",
        help="Largest Markdown; 65536 for a pull request's comment.",
    ),
    _file("--junit", "JUnit XML of the verdict; - for stdout."),
    _file("--html", "One page with everything in it; - for stdout."),
    flag("--force", "Replace existing files."),
    *output_flags(),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """Report evaluations and the gate's verdict as Markdown, JUnit XML and HTML.

    EVALUATION is a file of `gemquant eval --output`; figures of several files are in one table only
    where they may be compared. Exits with 0 when everything is written, whatever the verdict:
    `gemquant gate` is the command that fails. docs/reports.md describes the forms.
    """
    from gemquant.core.artifact.staged_files import write_files

    outputs = {form: params[form] for form in FORMS if params[form] is not None}
    with reporter(quiet=params["quiet"]) as progress:
        problems = problems_of(ctx)
        problems += _problems(params, outputs)
        report = _report(params, problems)
        problems.refuse()
        texts = {form: _text(form, report, params["markdown_limit"]) for form in outputs}
        written = {form: path for form, path in outputs.items() if path != STDOUT}
        write_files({path: texts[form] for form, path in written.items()})
        for form, path in written.items():
            progress.note(f"{path}: {form}, {len(texts[form])} bytes")
    _print(report, outputs, texts, as_json=params["as_json"])


def _report(params: Mapping[str, Any], problems: ProblemCollector) -> Report:
    from gemquant.core.artifact.evaluation import EvaluationDocument
    from gemquant.measure.bench.document import Benchmark
    from gemquant.measure.gate.baseline import Baseline
    from gemquant.measure.gate.verdict import Verdict
    from gemquant.measure.report.document import Source, SourceKind, assemble

    def read(kind: SourceKind, path: Path | None, reader: Callable[[Path], T]) -> Source[T] | None:
        if path is None:
            return None
        attempt = problems.attempt(lambda: Source.read(kind, path, reader))
        return attempt.value if attempt.succeeded else None

    evaluations = [
        read("evaluation", path, EvaluationDocument.read) for path in params["evaluations"]
    ]
    verdict = read("verdict", params["verdict"], Verdict.read)
    benchmark = read("benchmark", params["bench"], Benchmark.read)
    baseline = read("baseline", params["baseline"], Baseline.read)
    problems.refuse()
    return assemble(
        [each for each in evaluations if each is not None],
        verdict=verdict,
        benchmark=benchmark,
        baseline=baseline,
    )


def _problems(params: Mapping[str, Any], outputs: Mapping[str, Path]) -> list[GemquantError]:
    """Everything that forbids the outputs, or that is missing for them."""
    from gemquant.core.artifact.staging import place_problems
    from gemquant.measure.report.markdown import SMALLEST_LIMIT_BYTES

    problems: list[GemquantError] = []
    if not params["evaluations"]:
        problems.append(
            UsageError(
                "EVALUATION: missing.",
                hint="Measure first: gemquant eval ARTIFACT… --output evaluation.json",
            )
        )
    if not outputs:
        problems.append(
            UsageError(
                "Nothing to write: no --markdown, --junit or --html.",
                hint="Try: --markdown -",
            )
        )
    if params["junit"] is not None and params["verdict"] is None:
        problems.append(
            UsageError(
                "--junit: needs --verdict; without one nothing could pass or fail.",
                hint="gemquant gate … --output verdict.json",
            )
        )
    limit = params["markdown_limit"]
    if limit is not None and limit < SMALLEST_LIMIT_BYTES:
        problems.append(
            UsageError(f"--markdown-limit {limit}: must be at least {SMALLEST_LIMIT_BYTES}.")
        )
    on_stdout = [form for form, path in outputs.items() if path == STDOUT]
    if len(on_stdout) + params["as_json"] > 1:
        problems.append(UsageError("-: only one thing can go to stdout.", hint="Name files."))
    files = [path.absolute() for path in outputs.values() if path != STDOUT]
    for path in dict.fromkeys(files):
        if files.count(path) > 1:
            problems.append(UsageError(f"{path}: named for two reports."))
        problems += _replacement_problems(path, force=params["force"])
        problems += place_problems(path, needed_bytes=0)
    return problems


def _replacement_problems(path: Path, *, force: bool) -> list[GemquantError]:
    if path.is_symlink():
        return [OutputError(f"{path} is a symbolic link.", hint="Name the file itself.")]
    if path.is_dir():
        return [OutputError(f"{path} is a folder.", hint="Name a file in it.")]
    if path.exists() and not path.is_file():
        return [OutputError(f"{path} is not a regular file.", hint="Name another file.")]
    if path.exists() and not force:
        return [OutputError(f"{path} exists.", hint="Give --force to replace it.")]
    return []


def _text(form: str, report: Report, limit: int | None) -> bytes:
    match form:
        case "markdown":
            from gemquant.measure.report.markdown import SUMMARY_LIMIT_BYTES, to_markdown

            return to_markdown(report, limit_bytes=limit or SUMMARY_LIMIT_BYTES).encode()
        case "junit":
            from gemquant.measure.report.junit import to_junit

            return to_junit(report)
        case _:
            from gemquant.measure.report.html import to_html

            return to_html(report).encode()


def _print(
    report: Report,
    outputs: Mapping[str, Path],
    texts: Mapping[str, bytes],
    *,
    as_json: bool,
) -> None:
    from gemquant.cli.render import counted, print_json, print_tables

    for form, path in outputs.items():
        if path == STDOUT:
            echo(texts[form].decode(), nl=False)
            return
    outcome = None if report.verdict is None else report.verdict.outcome
    if as_json:
        written = [
            {"form": form, "path": str(path), "bytes": len(texts[form])}
            for form, path in outputs.items()
        ]
        print_json({"verdict": outcome, "written": written})
        return
    artifacts = sum(len(each.artifacts) for each in report.comparisons)
    print_tables(
        f"{counted(artifacts, 'artifact')}; verdict: {outcome or 'none given'}. "
        f"Written: {', '.join(str(path) for path in outputs.values())}."
    )
