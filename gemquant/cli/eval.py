"""``gemquant eval``: measure finished artifacts against their original again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.board import board_flags, board_problems, connect
from gemquant.cli.flags import (
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
    from gemquant.cli.eval_request import EvaluationText
    from gemquant.core.artifact import Artifact
    from gemquant.core.artifact.evaluation import EvaluationDocument
    from gemquant.core.progress import Progress
    from gemquant.core.recipe import Recipe
    from gemquant.formats.checkpoint import Checkpoint
    from gemquant.measure.quality.measure import Measured
    from gemquant.measure.quality.native import NativeRuntime

PROMPT = "The capital of France is"


class EvalCommand(click.Command):
    """Measure again, with the settings of the artifacts' recipe unless others are given."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        from gemquant.cli import eval_plan, evaluation_tables, render
        from gemquant.cli.eval_request import (
            asked_suite,
            name_problems,
            shared_recipe,
        )
        from gemquant.core.artifact import Artifact
        from gemquant.core.artifact.evaluation import EvaluationDocument
        from gemquant.core.artifact.staged_files import document_problems, write_document
        from gemquant.rockchip.board.rkllm import prepared_problems

        given = ctx.params
        threads = threads_of(given, problems_of(ctx))
        refuse(problems_of(ctx))
        refuse(prepared_problems(given["artifacts"]))
        problems = ProblemCollector()
        opened = [problems.attempt(partial(Artifact.open, path)) for path in given["artifacts"]]
        problems += document_problems(given["output"], EvaluationDocument)
        problems.attempt(lambda: asked_suite(given))
        artifacts = [each.value for each in opened if each.succeeded]
        problems += [*name_problems(artifacts), *board_problems(artifacts, given)]
        shared = problems.attempt(partial(shared_recipe, artifacts, given))
        problems.attempt(lambda: refuse(shared.value.problems()))
        problems.refuse()
        recipe = shared.value
        if given["dry_run"]:
            planned = eval_plan.evaluation_plan(artifacts, recipe, given)
            eval_plan.print_plan(planned, as_json=given["as_json"])
            return
        with reporter(quiet=given["quiet"]) as progress:
            document = measure_artifacts(artifacts, recipe, given, threads, progress)
        if given["output"] is not None:
            write_document(given["output"], document)
        if given["as_json"]:
            render.print_json(document.model_dump(mode="json"))
        else:
            evaluation_tables.print_document(document)


def measure_artifacts(
    artifacts: Sequence[Artifact],
    recipe: Recipe,
    given: dict[str, Any],
    threads: int,
    progress: Progress,
) -> EvaluationDocument:
    """Measure artifacts of one recipe. given: the parameters of this command, by name."""
    import torch

    import gemquant
    from gemquant.cli.eval_request import evaluation_text, other_files
    from gemquant.core.artifact.evaluation import EvaluationDocument
    from gemquant.core.resources import require_device
    from gemquant.formats.checkpoint import open_checkpoint
    from gemquant.measure.bench.machine import machine
    from gemquant.measure.quality.records import artifact_evaluation, artifact_name, original_record
    from gemquant.measure.quality.slices import level_evaluations
    from gemquant.numerics.bootstrap import RESAMPLES
    from gemquant.rockchip.bench import machine_of
    from gemquant.rockchip.evaluate import measured_on_board, require_platforms

    require_device(recipe.device)
    board = None if given["board"] is None else connect(given, progress)
    if board is not None:
        require_platforms(artifacts, board)
    torch.set_num_threads(threads)
    progress.note(f"opening {recipe.model}")
    original = open_checkpoint(recipe.model, lora=recipe.lora)
    text = evaluation_text(recipe, given, original)
    for note in other_files(artifacts, original):
        progress.note(note)
    if board is not None:
        measured = measured_on_board(
            artifacts, board, original, text.slices, recipe, PROMPT, progress
        )
    else:
        measured = _measured(artifacts, recipe, given, original, text, progress)
    return EvaluationDocument(
        gemquant=gemquant.__version__,
        suite=text.record,
        original=original_record(original),
        settings={
            "dtype": recipe.dtype,
            "device": recipe.device,
            "seed": recipe.seed,
            "resamples": RESAMPLES,
        },
        machine=(machine() if board is None else machine_of(board.survey)).fingerprint,
        artifacts=tuple(
            artifact_evaluation(
                artifact, level_evaluations(artifact_name(artifact), each, seed=recipe.seed)
            )
            for artifact, each in zip(artifacts, measured, strict=True)
        ),
    )


def _measured(
    artifacts: Sequence[Artifact],
    recipe: Recipe,
    given: dict[str, Any],
    original: Checkpoint,
    text: EvaluationText,
    progress: Progress,
) -> list[Measured]:
    """Measure artifacts whose weights are read back, and their runtimes where those are here."""
    import torch

    from gemquant.convert.plugins import exporter
    from gemquant.measure.quality.measure import Subject, measure
    from gemquant.measure.quality.records import artifact_name

    subjects = [
        Subject(
            artifact_name(each),
            exporter(each.manifest.container).open(each.path),
            partial(_runtime, each, original, recipe.device, progress) if given["native"] else None,
        )
        for each in artifacts
    ]
    return measure(
        original,
        subjects,
        text.slices,
        by_layer=given["by_layer"],
        device=recipe.device,
        compute_dtype=getattr(torch, recipe.dtype),
        progress=progress,
    )


def _runtime(
    artifact: Artifact, original: Checkpoint, device: str, progress: Progress
) -> NativeRuntime:
    """Load an artifact in the runtime it is made for, and let it continue a prompt."""
    from gemquant.measure.quality.native import NativeRuntime

    runtime = NativeRuntime.find(artifact.path, artifact.manifest.container, device=device)
    if runtime.not_run is None:
        tokenizer, bos = original.tokenizer(), original.config["bos_token_id"]
        prompt = tokenizer.encode(PROMPT, add_special_tokens=False).ids
        continued = tokenizer.decode(runtime.generate([bos, *prompt]))
        progress.note(f"{runtime.runtime} continues {PROMPT!r} with {continued!r}")
    return runtime


command = EvalCommand(
    "eval",
    params=[
        click.Argument(
            ["artifacts"],
            metavar="ARTIFACT...",
            nargs=-1,
            required=True,
            type=click.Path(path_type=Path),
        ),
        setting(
            "--against",
            metavar="MODEL",
            instead="what the artifacts were made from",
            help="The original.",
        ),
        setting(
            "--suite",
            metavar="default|long|multilingual|chat|code|FILE",
            instead="the text of the artifacts' own recipe",
            help="Text to measure on: a suite's name, or a .txt or .jsonl file of your own.",
            complete=complete_suite,
        ),
        document_flag("all figures, window by window,"),
        click.Option(
            ["--dry-run"], is_flag=True, help="Say what would be measured; measure nothing."
        ),
        click.Option(
            ["--by-layer"],
            is_flag=True,
            help="Also measure each layer's own error, fed with the original's hidden states.",
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
    help="""Measure artifacts against their original again.

    Streams the original and all artifacts, which were made from it, through the same evaluation
    windows in one pass, and prints what was lost: level reference. The windows are those of the
    artifacts' own certificates, or a suite's. Then each artifact is loaded, whole, in the runtime
    that executes it, and measured on the same windows: level native. An RKLLM file can be run on
    a board alone, and its weights cannot be read back: it has that level only.""",
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
