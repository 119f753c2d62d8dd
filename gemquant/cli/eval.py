"""``gemquant eval``: compare quantized artifacts with the original model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.artifacts import folders_at
from gemquant.cli.board import board_flags, board_problems, connect
from gemquant.cli.flags import (
    artifacts_argument,
    complete_suite,
    document_flag,
    evaluation_flags,
    machine_flags,
    output_flags,
    window_flags,
)
from gemquant.cli.progress import reporter
from gemquant.cli.settings import problems_of, setting, threads_of
from gemquant.errors import ProblemCollector, refuse

if TYPE_CHECKING:
    from gemquant.calibration.suites import SuiteText
    from gemquant.rockchip.board_rkllm import Board

SETTINGS = (
    *("against", "eval_windows", "eval_slices", "seq_len", "seed", "device", "dtype"),
    *("native", "by_layer"),
)
"""Flags that are fields of the request, by the same names."""


class EvalCommand(click.Command):
    """Measure, with the settings of the artifacts' recipe except where flags replace them."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        from gemquant.cli import evaluation_tables, render
        from gemquant.convert.plugins import open_weights
        from gemquant.core.artifact import Artifact
        from gemquant.core.artifact.evaluation import EvaluationDocument
        from gemquant.core.artifact.staged_files import document_problems, write_document
        from gemquant.measure.quality.evaluation import (
            Evaluation,
            EvaluationRequest,
            name_problems,
        )
        from gemquant.rockchip.evaluate import measure_on_board

        flags = ctx.params
        output: Path | None = flags["output"]
        threads = threads_of(flags, problems_of(ctx))
        refuse(problems_of(ctx))
        problems = ProblemCollector()
        found = [problems.attempt(partial(folders_at, path)) for path in flags["artifacts"]]
        folders = [folder for each in found if each.succeeded for folder in each.value]
        opened = [problems.attempt(partial(Artifact.open, path)) for path in dict.fromkeys(folders)]
        problems += document_problems(output, EvaluationDocument)
        suite = problems.attempt(lambda: _suite(flags))
        artifacts = [each.value for each in opened if each.succeeded]
        if not artifacts:
            problems.refuse()
        problems += [*name_problems(artifacts), *board_problems(artifacts, flags)]
        request = EvaluationRequest(
            suite=suite.value if suite.succeeded else None,
            **{name: flags[name] for name in SETTINGS},
        )
        recipe = problems.attempt(lambda: request.recipe(artifacts))
        problems.attempt(lambda: refuse(recipe.value.problems()))
        problems.refuse()
        board: Board | None = None
        with reporter(quiet=flags["quiet"] or flags["dry_run"]) as progress:
            if flags["board"] is not None and not flags["dry_run"]:
                board = connect(flags, progress)
            evaluation = Evaluation.open(artifacts, request, recipe.value, threads, progress)
            if flags["dry_run"]:
                plan = evaluation_tables.plan(evaluation, flags["board"], output)
                evaluation_tables.print_plan(plan, as_json=flags["as_json"])
                return
            if board is None:
                document = evaluation.measure(open_weights, progress)
            else:
                document = measure_on_board(evaluation, board, progress)
        if output is not None:
            write_document(output, document)
        if flags["as_json"]:
            render.print_json(document.model_dump(mode="json"))
        else:
            evaluation_tables.print_document(document)


def _suite(flags: Mapping[str, Any]) -> SuiteText | None:
    """The suite asked for, with the slices, windows and length asked for; None for the recipe's."""
    from gemquant.calibration.suites import SuiteText

    if flags["suite"] is None:
        return None
    return SuiteText.named(flags["suite"]).reduced(
        slices=flags["eval_slices"], windows=flags["eval_windows"], seq_len=flags["seq_len"]
    )


command = EvalCommand(
    "eval",
    params=[
        artifacts_argument(),
        setting(
            "--against",
            metavar="MODEL",
            instead="the model the artifacts were made from",
            help="The original.",
        ),
        setting(
            "--suite",
            metavar="default|long|multilingual|chat|code|FILE",
            instead="the text of the artifacts' own recipe",
            help="Text to measure on: a suite's name, or your own .txt or .jsonl file.",
            complete=complete_suite,
        ),
        document_flag("all figures, window by window,"),
        click.Option(
            ["--dry-run"], is_flag=True, help="Print what would be measured; measure nothing."
        ),
        click.Option(
            ["--by-layer"],
            is_flag=True,
            help="Also measure each layer's own error, given the original's hidden states.",
        ),
        click.Option(
            ["--native/--no-native"],
            default=True,
            show_default=True,
            help="Also run each artifact in the runtime it is made for, where that is installed.",
        ),
        *board_flags(),
        *evaluation_flags(inherited="the suite's, or the artifacts'"),
        *window_flags(inherited="the suite's, or the artifacts'"),
        *machine_flags(inherited="the artifacts'"),
        *output_flags(),
    ],
    help="""Compare quantized artifacts with the original model.

    ARTIFACT is a folder that gemquant wrote, a file inside, or a folder of several artifacts.
    Streams the original and all artifacts made from it through the same evaluation windows in one
    pass and prints perplexity, KL divergence and top-1 agreement with 95 % intervals: level
    reference. The windows are those of the artifacts' own certificates, or a suite's. Then loads
    each artifact in the runtime it is made for and measures it on the same windows: level native.
    RKLLM files run on a board only and cannot be read back, so they have level native alone.""",
    epilog="""\b
Examples:
  gemquant eval gemma-2-2b-awq
  gemquant eval gemma-2-2b-awq gemma-2-2b-nf4 --suite default --output evaluation.json
  gemquant eval gemma-2-2b-awq --against google/gemma-2-2b --suite long --no-native
  gemquant eval gemma-2-2b-awq --suite long --dry-run
  gemquant eval gemma-2-2b-awq --suite my-text.jsonl --by-layer
  gemquant eval gemma-2-2b-awq --eval-slices english,code --json
  gemquant eval gemma-2-2b-it-rkllm --board ssh://rock@rock-5b.local --seq-len 256""",
)
