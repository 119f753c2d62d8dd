"""``gemquant gate``: compare artifacts with a baseline, and fail if they are worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.artifacts import artifact_folders
from gemquant.cli.flags import document_flag, flag, flags, output_flags, path_flag
from gemquant.cli.settings import problems_of, setting, threads_of
from gemquant.core.progress import reporter
from gemquant.errors import (
    GemquantError,
    NotComparableError,
    ProblemCollector,
    RegressionError,
    UsageError,
    refuse,
)

if TYPE_CHECKING:
    from gemquant.core.artifact.evaluation import EvaluationDocument
    from gemquant.measure.gate.baseline import Baseline
    from gemquant.measure.gate.budget import Budgets
    from gemquant.measure.gate.verdict import Verdict
    from gemquant.measure.quality.evaluation import EvaluationRequest


FIRST_SUITE = "default"
"""The suite of a baseline's first measurement."""


@click.command(
    "gate",
    epilog="""\b
Examples:
  gemquant gate gemma-awq --baseline ci/baselines/gemma.json
  gemquant gate eval.json --baseline ci/baselines/gemma.json --budget ci/budgets.toml --json
  gemquant gate eval.json --baseline ci/baselines/gemma.json --update-baseline --reason 'clip'""",
)
@flags(
    click.Argument(
        ["artifacts"],
        nargs=-1,
        required=True,
        metavar="ARTIFACT|EVAL.json...",
        type=click.Path(exists=True, path_type=Path),
    ),
    click.Option(
        ["--baseline"],
        required=True,
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="What to compare with; docs/baseline.md describes it.",
    ),
    path_flag("--budget", "Allowed losses, as TOML; docs/gate.md lists the keys and the defaults."),
    path_flag("--bench", "Output of `gemquant bench --json`: compare peak memory and speed too."),
    flag("--update-baseline", "Judge nothing; put the new figures into the baseline."),
    click.Option(["--reason"], metavar="TEXT", help="Why, for the baseline's history."),
    document_flag("the verdict, for `gemquant report`,"),
    setting(
        "--threads",
        type=int,
        instead="physical cores",
        metavar="N",
        help="Processor threads, where artifacts are measured.",
    ),
    *output_flags(),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """Fail if artifacts are worse than their baseline.

    Compares the figures of `gemquant eval` with a baseline in the repository, window by window on
    the same tokens: likelihood, divergence and agreement of every slice, size, bytes, and with
    --bench memory and speed. An artifact's folder is measured first, as the baseline was. Exit code
    10: a loss is significant and not shown to be within budget. Exit code 11: too few windows to
    decide, or another original, other tokens or another level. The message names slice, metric and
    layer.
    """
    from gemquant.measure.bench.document import Benchmark
    from gemquant.measure.gate.baseline import Baseline
    from gemquant.measure.gate.budget import Budgets, read_budgets

    path: Path = params["baseline"]
    refuse(_problems(params))
    problems = ProblemCollector()
    needs_baseline = path.exists() or not params["update_baseline"]
    read = problems.attempt(lambda: Baseline.read(path) if needs_baseline else None)
    allowed = problems.attempt(
        lambda: read_budgets(params["budget"]) if params["budget"] else Budgets()
    )
    speeds = problems.attempt(lambda: Benchmark.read(params["bench"]) if params["bench"] else None)
    baseline = read.value if read.succeeded else None
    folders = [path for path in dict.fromkeys(params["artifacts"]) if path.is_dir()]
    files = [path for path in dict.fromkeys(params["artifacts"]) if not path.is_dir()]
    documents = _documents(files, problems)
    if folders and not problems:
        documents += _measured(folders, baseline, params, problems_of(ctx))
    problems += _name_problems(documents)
    if not problems:
        known = [each.evaluation for each in baseline.artifacts] if baseline else []
        problems += allowed.value.problems([*known, *(a for d in documents for a in d.artifacts)])
    problems.refuse()
    budgets, benchmark = allowed.value, speeds.value
    if params["update_baseline"]:
        _update(params, documents, baseline, benchmark)
        return
    assert baseline is not None
    _judge(params, documents, baseline, budgets, benchmark)


def _problems(params: dict[str, Any]) -> list[GemquantError]:
    problems: list[GemquantError] = []
    reason = (params["reason"] or "").strip()
    if params["update_baseline"] and not reason:
        problems.append(
            UsageError(
                "--update-baseline needs --reason TEXT.",
                hint="Write why the figures may change; the baseline's history records it.",
            )
        )
    if params["reason"] is not None and not params["update_baseline"]:
        problems.append(
            UsageError("--reason is for --update-baseline; without it nothing is written.")
        )
    if params["update_baseline"] and params["output"]:
        problems.append(UsageError("--output: an update judges nothing, so there is no verdict."))
    return problems


def _documents(paths: list[Path], problems: ProblemCollector) -> list[EvaluationDocument]:
    from gemquant.core.artifact.evaluation import EvaluationDocument

    attempts = [problems.attempt(partial(EvaluationDocument.read, path)) for path in paths]
    return [attempt.value for attempt in attempts if attempt.succeeded]


def _measured(
    folders: list[Path],
    baseline: Baseline | None,
    params: dict[str, Any],
    problems: list[GemquantError],
) -> list[EvaluationDocument]:
    """Measure artifacts as `gemquant eval` does, on what the baseline names."""
    from gemquant.convert.plugins import open_weights
    from gemquant.core.artifact import Artifact
    from gemquant.measure.quality.evaluation import Evaluation, name_problems

    threads = threads_of(params, problems)
    refuse(problems)
    found = artifact_folders(folders)
    artifacts = [Artifact.open(path) for path in found]
    refuse(name_problems(artifacts))
    request = _request(baseline, [path.resolve().name for path in found])
    recipe = request.recipe(artifacts)
    refuse(recipe.problems())
    with reporter(quiet=params["quiet"]) as progress:
        evaluation = Evaluation.open(artifacts, request, recipe, threads, progress)
        return [evaluation.measure(open_weights, progress)]


def _request(baseline: Baseline | None, names: Sequence[str]) -> EvaluationRequest:
    """The request that measures what a baseline holds.

    names: of the artifacts; those that the baseline does not hold are measured like its first one.
    Without a baseline: the default suite, and the settings of the artifacts' own recipe.
    """
    from gemquant.calibration.suites import SuiteText
    from gemquant.measure.quality.evaluation import RECIPE, EvaluationRequest

    if baseline is None:
        return EvaluationRequest(suite=SuiteText.named(FIRST_SUITE))
    entries = [each for each in baseline.artifacts if each.name in names] or baseline.artifacts[:1]
    levels = [
        level for each in entries for level in each.evaluation.levels if level.not_run is None
    ]
    # Level reference is of the whole suite; a runtime may have been measured on less.
    slices = next((each.slices for each in levels if each.level == "reference"), levels[0].slices)
    windows, seq_len = slices[0].window_count, slices[0].seq_len
    measured = slices[0].windows.tokens[0]
    chosen = tuple(each.slice for each in slices)
    suite = None
    if baseline.suite.name != RECIPE:
        suite = SuiteText.named(baseline.suite.name).reduced(
            slices=chosen, windows=windows, seq_len=seq_len
        )
    settings: Mapping[str, Any] = entries[0].settings
    return EvaluationRequest(
        suite=suite,
        eval_windows=windows,
        eval_positions=measured if measured < seq_len - 1 else 0,
        eval_slices=chosen,
        seq_len=seq_len,
        seed=settings.get("seed"),
        device=settings.get("device"),
        dtype=settings.get("dtype"),
        native=any(each.level == "native" for each in levels),
    )


def _name_problems(documents: list[EvaluationDocument]) -> list[GemquantError]:
    names = [artifact.name for document in documents for artifact in document.artifacts]
    problems: list[GemquantError] = [
        UsageError(f"{name!r} was measured twice; an artifact is known by its name.")
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    problems += [
        UsageError(
            f"{artifact.name!r} is an embedding model: the gate judges predictions.",
            hint="gemquant eval measures its embeddings.",
        )
        for document in documents
        for artifact in document.artifacts
        if any(level.embeddings for level in artifact.levels)
    ]
    if documents and not names:
        problems.append(UsageError("No artifact was measured: the documents are empty."))
    return problems


def _update(
    params: dict[str, Any],
    documents: list[EvaluationDocument],
    before: Baseline | None,
    benchmark: Any,
) -> None:
    from gemquant.cli import gate_tables, render
    from gemquant.measure.gate.update import head_commit, updated, write_baseline

    path: Path = params["baseline"]
    baseline = updated(
        documents,
        before,
        reason=params["reason"].strip(),
        commit=head_commit(path.absolute().parent),
        benchmark=benchmark,
    )
    write_baseline(path, baseline)
    if params["as_json"]:
        render.print_json(baseline.history[-1].model_dump(mode="json"))
    else:
        gate_tables.update(baseline, path)


def _judge(
    params: dict[str, Any],
    documents: list[EvaluationDocument],
    baseline: Baseline,
    budgets: Budgets,
    benchmark: Any,
) -> None:
    from gemquant.cli import gate_tables, render
    from gemquant.core.artifact.staged_files import document_problems, write_document
    from gemquant.measure.gate.gate import judge
    from gemquant.measure.gate.verdict import Verdict

    output: Path | None = params["output"]
    refuse(document_problems(output, Verdict))
    verdict = judge(documents, baseline, budgets, file=str(params["baseline"]), benchmark=benchmark)
    if output is not None:
        write_document(output, verdict)
    if params["as_json"]:
        render.print_json(verdict.model_dump(mode="json"))
    else:
        gate_tables.verdict(verdict)
    _end(verdict)


def _end(verdict: Verdict) -> None:
    """Raise the error of the verdict: every reason, and its exit code."""
    kind: type[GemquantError] | None = {
        RegressionError.exit_code: RegressionError,
        NotComparableError.exit_code: NotComparableError,
    }.get(verdict.exit_code)
    if kind is None:
        return
    reasons = [
        f"{artifact.name!r}, {artifact.outcome}: {reason}."
        for artifact in verdict.artifacts
        for reason in artifact.reasons
    ]
    raise kind("\n  ".join(reasons))
