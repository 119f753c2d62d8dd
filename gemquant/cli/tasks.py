"""``gemquant tasks``: benchmarks of lm-eval on an artifact, in the runtime that executes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.checks import too_small, unknown_place
from gemquant.cli.flags import CommaList, output_flags
from gemquant.cli.progress import reporter
from gemquant.cli.settings import problems_of, setting, threads_of
from gemquant.errors import CalibrationError, GemquantError, OutputError, UsageError, refuse

if TYPE_CHECKING:
    from gemquant.measure.tasks.document import TasksDocument
    from gemquant.measure.tasks.measure import Request

TASKS = ("mmlu", "hellaswag", "piqa", "winogrande", "arc_challenge", "gsm8k")
DTYPES = ("float32", "bfloat16", "float16")
SMALLEST = {"limit": 1, "num_fewshot": 0, "max_length": 16, "batch_size": 1, "seed": 0}


class TasksCommand(click.Command):
    """Let an artifact and its original answer the same questions; print what was lost."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        from gemquant.cli import render, tasks_tables

        given = ctx.params
        problems = problems_of(ctx)
        threads = threads_of(given, problems)
        refuse([*problems, *_problems(given)])
        request = _request(given)
        _require_parts(given["device"])
        import torch

        torch.set_num_threads(threads)
        with reporter(quiet=given["quiet"]) as progress:
            from gemquant.measure.tasks.measure import measure, open_subjects

            document = measure(request, open_subjects(request), progress)
        if given["output"] is not None:
            _write(given["output"], document)
        if given["as_json"]:
            render.print_json(document.model_dump(mode="json"))
        else:
            tasks_tables.tasks(document)
        if document.artifact is None:
            raise CalibrationError(
                "No task could be run: the data of none was reached.",
                hint="Run once with a network, which fills the cache, or give --task-folder.",
            )


def _problems(given: dict[str, Any]) -> list[GemquantError]:
    problems = [*too_small(given, SMALLEST), *unknown_place(given, DTYPES)]
    if not given["tasks"]:
        problems.append(UsageError("--tasks: names no task.", hint=f"--tasks {','.join(TASKS)}"))
    if given["against"] is not None and given["no_original"]:
        problems.append(UsageError("--against and --no-original exclude each other."))
    if given["allow_task_code"] and given["task_folder"] is None:
        problems.append(
            UsageError("--allow-task-code: concerns --task-folder, which is not given.")
        )
    output = given["output"]
    if output is not None and not output.parent.is_dir():
        problems.append(OutputError(f"--output {output}: {output.parent} is not a folder."))
    return problems


def _request(given: dict[str, Any]) -> Request:
    from gemquant.measure.tasks.document import Settings
    from gemquant.measure.tasks.measure import Request
    from gemquant.measure.tasks.published import read_figures, shipped_figures

    figures = shipped_figures()
    if given["published"] is not None:
        figures += read_figures(given["published"])
    return Request(
        artifact=given["artifact"],
        tasks=tuple(dict.fromkeys(given["tasks"])),
        settings=Settings(
            limit=given["limit"],
            num_fewshot=given["num_fewshot"],
            chat_template=given["apply_chat_template"],
            max_length=given["max_length"],
            batch_size=given["batch_size"],
            device=given["device"],
            dtype=given["dtype"],
            seed=given["seed"],
            task_code=given["allow_task_code"],
        ),
        against=given["against"],
        with_original=not given["no_original"],
        folder=given["task_folder"],
        figures=figures,
    )


def _require_parts(device: str) -> None:
    """Refuse where lm-eval or the device is not there, before anything is opened."""
    from gemquant.measure.tasks import harness

    harness.version()
    if device != "cpu":
        from gemquant.cli.preparation import require_device

        require_device(device)


def _write(path: Path, document: TasksDocument) -> None:
    try:
        path.write_bytes(document.to_json())
    except OSError as error:
        raise OutputError(f"--output {path}: {error.strerror}.") from error


command = TasksCommand(
    "tasks",
    params=[
        click.Argument(["artifact"], metavar="ARTIFACT"),
        setting(
            "--tasks",
            type=CommaList(),
            default=",".join(TASKS),
            metavar="NAME,…",
            help="Tasks, groups and tags of lm-eval, or of --task-folder.",
        ),
        setting(
            "--against",
            metavar="MODEL",
            instead="what the artifact was made from",
            help="The original.",
        ),
        click.Option(
            ["--no-original"], is_flag=True, help="Measure the artifact alone: half the time."
        ),
        setting(
            "--limit", type=int, instead="all", metavar="N", help="First samples of each task."
        ),
        setting(
            "--num-fewshot",
            type=int,
            instead="each task's own",
            metavar="N",
            help="Examples before each question; tasks that are fixed at 0 stay there.",
        ),
        click.Option(
            ["--apply-chat-template"],
            is_flag=True,
            help="Put prompts into the model's chat template, examples as earlier turns.",
        ),
        click.Option(
            ["--task-folder"],
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Folder of task files (YAML) of your own; its data may be local files.",
        ),
        click.Option(
            ["--allow-task-code"],
            is_flag=True,
            help="Let files of --task-folder run the Python that they name.",
        ),
        click.Option(
            ["--published"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="TOML or JSON of published figures, beside those of Google's model cards.",
        ),
        setting(
            "--max-length",
            type=int,
            default=8192,
            metavar="N",
            help="Longest window in tokens, <bos> included; never more than the model's own.",
        ),
        setting(
            "--batch-size",
            type=int,
            default=1,
            metavar="N",
            help="Windows in one forward pass of transformers; more pay on a GPU.",
        ),
        setting(
            "--seed", type=int, default=0, metavar="N", help="Of the examples and the intervals."
        ),
        setting(
            "--device", default="cpu", metavar="cpu|cuda|mps", help="Where the runtimes compute."
        ),
        setting(
            "--dtype",
            default="float32",
            metavar="|".join(DTYPES),
            help="Type that transformers computes in, for both models.",
        ),
        setting(
            "--threads",
            type=int,
            instead="physical cores",
            metavar="N",
            help="Processor threads of the runtimes.",
        ),
        click.Option(
            ["--output"],
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="Also write the JSON document.",
        ),
        *output_flags(),
    ],
    help="""Run benchmarks of lm-eval on an artifact, in the runtime that executes it.

    The original answers the same questions in transformers; each score is printed with its standard
    error, the drop with a paired 95 % interval, and the drop from the model card's figure where
    both were measured alike. A task whose data cannot be reached is skipped, with the reason.
    docs/tasks.md describes task files and what is compared.""",
    epilog="""\b
Examples:
  gemquant tasks gemma-2-2b-awq --tasks hellaswag,arc_challenge --limit 200
  gemquant tasks gemma-2-2b-awq --tasks mmlu --num-fewshot 5 --device cuda --batch-size 16
  gemquant tasks gemma-3-1b-it-gguf --tasks gsm8k --apply-chat-template --no-original
  gemquant tasks gemma-2-2b-awq --tasks my_task --task-folder ./tasks --output tasks.json""",
)
