"""``gemquant eval``: compare quantized artifacts with the original model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.artifacts import downloaded, folders_at, is_set, require_there
from gemquant.cli.board import board_flags, board_problems, connect
from gemquant.cli.flags import (
    artifacts_argument,
    complete_suite,
    document_flag,
    evaluation_flags,
    flag,
    flags,
    machine_flags,
    output_flags,
    runtime_flag,
    window_flags,
)
from gemquant.cli.settings import problems_of, setting, threads_of
from gemquant.core.progress import print_end, reporter
from gemquant.errors import ProblemCollector, UsageError, refuse

if TYPE_CHECKING:
    from gemquant.calibration.suites import SuiteText
    from gemquant.core.artifact import Artifact

SETTINGS = (
    *("against", "eval_windows", "eval_positions", "eval_slices", "seq_len", "seed", "device"),
    *("dtype", "precision", "native", "runtime", "by_layer"),
)
"""Flags that are fields of the request, by the same names."""


@click.command(
    "eval",
    epilog="""\b
Examples:
  gemquant eval gemma-2-2b-awq
  gemquant eval gemma-2-2b-awq gemma-2-2b-nf4 --suite default --output evaluation.json
  gemquant eval gemma-2-2b-awq --against google/gemma-2-2b --suite long --no-native
  gemquant eval gemma-2-2b-awq --suite long --dry-run
  gemquant eval gemma-2-2b-awq --suite my-text.jsonl --by-layer
  gemquant eval gemma-2-2b-gguf --referee bartowski/gemma-2-2b-it-GGUF:Q4_K_M
  gemquant eval gemma-2-2b-awq --runtime vllm
  gemquant eval gemma-2-2b-awq --eval-slices english,code --json
  gemquant eval gemma-2-2b-it-rkllm --board ssh://rock@rock-5b.local --seq-len 256""",
)
@flags(
    artifacts_argument(),
    setting(
        "--against",
        metavar="MODEL",
        instead="the model the artifacts were made from",
        help="The original.",
    ),
    click.Option(
        ["--referee"],
        multiple=True,
        metavar="FILE.gguf|FOLDER|HUB",
        help="An artifact that others made of the same original, to measure alike; repeatable. On "
        "the Hub: OWNER/NAME, or OWNER/NAME:Q4_K_M for a GGUF file.",
    ),
    setting(
        "--suite",
        metavar="default|long|multilingual|chat|code|FILE",
        instead="the text of the artifacts' own recipe",
        help="Text to measure on: a suite's name, or your own .txt or .jsonl file.",
        complete=complete_suite,
    ),
    setting(
        "--precision",
        type=float,
        metavar="SHARE",
        help="Add windows until half the interval of every KL mean is this share of it, such as "
        "0.1, or the text ends.",
    ),
    document_flag("all figures, window by window,"),
    flag("--dry-run", "Print what would be measured; measure nothing."),
    flag(
        "--by-layer",
        "Also measure each layer's own error, given the original's hidden states, and name the "
        "tensors that cost most, with the options that store them in a larger type.",
    ),
    click.Option(
        ["--native/--no-native"],
        default=True,
        show_default=True,
        help="Also run each artifact in the runtime it is made for, where that is installed.",
    ),
    runtime_flag(),
    *board_flags(),
    *evaluation_flags(
        inherited="the suite's, or the artifacts'", positions="all of a suite, or the artifacts'"
    ),
    *window_flags(inherited="the suite's, or the artifacts'"),
    *machine_flags(inherited="the artifacts'"),
    *output_flags(),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """Compare quantized artifacts with the original model.

    ARTIFACT is a folder that gemquant wrote, a file inside, a folder of several artifacts, or a
    repository of artifacts on the Hub, by its id or downloaded.
    Streams the original and all artifacts made from it through the same evaluation windows in one
    pass and prints perplexity, KL divergence and top-1 agreement with 95 % intervals: level
    reference. The windows are those of the artifacts' own certificates, or a suite's. Then loads
    each artifact in the runtime it is made for and measures it on the same windows: level native.
    --referee puts artifacts of others into the same table: GGUF, MLX, compressed-tensors,
    bitsandbytes, AWQ, GPTQ, and what their metadata says of who made them.
    RKLLM files run on a board only and cannot be read back, so they have level native alone.
    """
    threads, output = threads_of(params, problems_of(ctx)), params["output"]
    refuse(problems_of(ctx))
    require_there(params["artifacts"])
    quiet, as_json = params["quiet"], params["as_json"]
    with reporter(quiet=quiet or params["dry_run"]) as progress:
        progress.start("checking the artifacts", 0)
        problems = ProblemCollector()
        folders, sets = _places(params["artifacts"], problems)

        from gemquant.cli import evaluation_tables, render
        from gemquant.convert.plugins import open_weights
        from gemquant.core.artifact.evaluation import EvaluationDocument
        from gemquant.core.artifact.staged_files import document_problems, write_document
        from gemquant.measure.quality.evaluation import (
            Evaluation,
            EvaluationRequest,
            name_problems,
        )
        from gemquant.measure.quality.referees import open_referee
        from gemquant.rockchip.evaluate import measure_on_board

        problems += document_problems(output, EvaluationDocument)
        suite = problems.attempt(lambda: _suite(params))
        scratch = Path(ctx.with_resource(TemporaryDirectory()))
        artifacts = _opened(folders, sets, scratch, problems)
        if params["referee"] and params["board"] is not None:
            problems.append(UsageError("--referee: not on a board.", hint="Leave out --board."))
        opened = [problems.attempt(partial(open_referee, ref)) for ref in params["referee"]]
        referees = [each.value for each in opened if each.succeeded]
        if not artifacts:
            problems.refuse()
        problems += [*name_problems(artifacts, referees), *board_problems(artifacts, params)]
        request = EvaluationRequest(
            suite=suite.value if suite.succeeded else None,
            **{name: params[name] for name in SETTINGS},
        )
        recipe = problems.attempt(lambda: request.recipe(artifacts))
        problems.attempt(lambda: refuse(recipe.value.problems()))
        problems += request.problems()
        problems.refuse()
        board = None
        if params["board"] is not None and not params["dry_run"]:
            board = connect(params, progress)
        evaluation = Evaluation.open(artifacts, request, recipe.value, threads, progress, referees)
        if params["dry_run"]:
            plan = evaluation_tables.plan(evaluation, params["board"], output)
            evaluation_tables.print_plan(plan, as_json=as_json)
            return
        if board is None:
            document = evaluation.measure(open_weights, progress)
        else:
            document = measure_on_board(evaluation, board, progress)
    if output is not None:
        write_document(output, document)
    if as_json:
        render.print_json(document.model_dump(mode="json"))
    else:
        evaluation_tables.print_document(document)
    print_end(*([f"gemquant report {output} --html report.html"] if output else []), quiet=quiet)


def _places(
    paths: Sequence[Path], problems: ProblemCollector
) -> tuple[Sequence[Path], Sequence[Path]]:
    """Folders of artifacts, and of repositories; raises if there is none of them."""
    attempts = [problems.attempt(partial(downloaded, path)) for path in paths]
    places = [each.value for each in attempts if each.succeeded]
    sets = [path for path in places if path not in paths or is_set(path)]
    found = [problems.attempt(partial(folders_at, path)) for path in places if path not in sets]
    folders = dict.fromkeys(folder for each in found if each.succeeded for folder in each.value)
    if not folders and not sets:
        problems.refuse()
    return list(folders), sets


def _opened(
    folders: Sequence[Path], sets: Sequence[Path], scratch: Path, problems: ProblemCollector
) -> list[Artifact]:
    """The artifacts. scratch: for links to the files of repositories."""
    from gemquant.core.artifact import Artifact
    from gemquant.core.artifact.finalize import members

    found = [problems.attempt(partial(Artifact.open, path)) for path in folders]
    several = [
        problems.attempt(partial(members, path, scratch / str(number)))
        for number, path in enumerate(sets)
    ]
    alone = [each.value for each in found if each.succeeded]
    return [*alone, *(one for each in several if each.succeeded for one in each.value)]


def _suite(params: Mapping[str, Any]) -> SuiteText | None:
    """The suite asked for, with the slices, windows and length asked for; None for the recipe's."""
    from gemquant.calibration.suites import SuiteText

    if params["suite"] is None:
        return None
    return SuiteText.named(params["suite"]).reduced(
        slices=params["eval_slices"], windows=params["eval_windows"], seq_len=params["seq_len"]
    )
