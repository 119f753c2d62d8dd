"""``gemquant tasks``: lm-eval benchmarks on an artifact, in the runtime that executes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.artifacts import missing
from gemquant.cli.flags import (
    CommaList,
    complete_model,
    document_flag,
    flag,
    flags,
    output_flags,
    path_flag,
    runtime_flag,
    runtime_flags,
    too_small,
    unknown_place,
)
from gemquant.cli.settings import problems_of, setting, threads_of
from gemquant.core.progress import print_end, reporter
from gemquant.core.resources import require_device
from gemquant.errors import CalibrationError, GemquantError, UsageError, refuse

if TYPE_CHECKING:
    from gemquant.measure.tasks.measure import TasksRequest

TASKS = ("mmlu", "hellaswag", "piqa", "winogrande", "arc_challenge", "gsm8k")
DTYPES = ("float32", "bfloat16", "float16")
SMALLEST = {"limit": 1, "num_fewshot": 0, "max_length": 16, "batch_size": 1, "seed": 0}


@click.command(
    "tasks",
    epilog="""\b
Examples:
  gemquant tasks gemma-2-2b-awq --tasks hellaswag,arc_challenge --limit 200
  gemquant tasks gemma-2-2b-awq --tasks mmlu --num-fewshot 5 --device cuda --batch-size 16
  gemquant tasks gemma-3-1b-it-gguf --tasks gsm8k --apply-chat-template --no-original
  gemquant tasks gemma-2-2b-awq --tasks my_task --task-folder ./tasks -o tasks.json""",
)
@flags(
    click.Argument(["artifact"], metavar="ARTIFACT", shell_complete=complete_model),
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
    flag("--no-original", "Measure only the artifact: half the time."),
    setting("--limit", type=int, instead="all", metavar="N", help="First samples of each task."),
    setting(
        "--num-fewshot",
        type=int,
        instead="each task's own",
        metavar="N",
        help="Examples before each question; tasks fixed at 0 stay there.",
    ),
    flag(
        "--apply-chat-template",
        "Put prompts into the model's chat template, examples as earlier turns.",
    ),
    path_flag(
        "--task-folder",
        "Folder of your own task files (YAML); their data may be local files.",
        metavar="DIR",
    ),
    flag("--allow-task-code", "Let files of --task-folder run the Python that they name."),
    path_flag(
        "--published", "TOML or JSON of published figures, in addition to Google's model cards."
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
        help="Windows per forward pass of transformers; more pay off on a GPU.",
    ),
    setting("--seed", type=int, default=0, metavar="N", help="Seed of examples and intervals."),
    runtime_flag(),
    *runtime_flags(
        DTYPES,
        default="float32",
        help="Type that transformers computes in, for both models.",
    ),
    document_flag("the scores"),
    *output_flags(),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """Run lm-eval benchmarks on an artifact, in the runtime that executes it.

    The original answers the same questions in transformers. Each score is printed with its standard
    error, the drop with a paired 95 % interval, and the drop from the model card's figure if both
    were measured alike. A task whose data cannot be read is skipped, with the reason. docs/tasks.md
    describes task files and what is compared.
    """
    with reporter(quiet=params["quiet"]) as progress:
        progress.start(f"opening {params['artifact']}", 0)

        from gemquant.cli import render, tasks_tables
        from gemquant.core.artifact.staged_files import document_problems, write_document
        from gemquant.measure.tasks import harness
        from gemquant.measure.tasks.document import TasksDocument

        problems = problems_of(ctx)
        threads = threads_of(params, problems)
        problems += [*_problems(params), *document_problems(params["output"], TasksDocument)]
        refuse(problems)
        harness.version()
        refuse(harness.misspelt(params["tasks"], params["task_folder"]))
        refuse(missing([params["artifact"]]))

        from gemquant.measure.tasks.measure import measure, open_subjects

        request = _request(params)
        require_device(params["device"])
        import torch

        torch.set_num_threads(threads)
        document = measure(request, open_subjects(request), progress)
    if params["output"] is not None:
        write_document(params["output"], document)
    if params["as_json"]:
        render.print_json(document.model_dump(mode="json"))
    else:
        tasks_tables.tasks(document)
    print_end(quiet=params["quiet"])
    if document.artifact is None:
        raise CalibrationError(
            "No task could be run: the data of none could be read.",
            hint="Run once with a network, which fills the cache, or give --task-folder.",
        )


def _problems(params: dict[str, Any]) -> list[GemquantError]:
    problems = [*too_small(params, SMALLEST), *unknown_place(params, DTYPES)]
    if not params["tasks"]:
        problems.append(UsageError("--tasks: names no task.", hint=f"--tasks {','.join(TASKS)}"))
    if params["against"] is not None and params["no_original"]:
        problems.append(UsageError("--against and --no-original exclude each other."))
    if params["allow_task_code"] and params["task_folder"] is None:
        problems.append(UsageError("--allow-task-code: needs --task-folder."))
    return problems


def _request(params: dict[str, Any]) -> TasksRequest:
    from gemquant.measure.tasks.document import Settings
    from gemquant.measure.tasks.measure import TasksRequest
    from gemquant.measure.tasks.published import read_figures, shipped_figures

    figures = shipped_figures()
    if params["published"] is not None:
        figures += read_figures(params["published"])
    settings = {name: params[name] for name in Settings.model_fields if name in params}
    return TasksRequest(
        artifact=params["artifact"],
        tasks=tuple(dict.fromkeys(params["tasks"])),
        settings=Settings(
            chat_template=params["apply_chat_template"],
            task_code=params["allow_task_code"],
            **settings,
        ),
        against=params["against"],
        runtime=params["runtime"],
        with_original=not params["no_original"],
        folder=params["task_folder"],
        figures=figures,
    )
