"""``gemquant run``: many artifacts of one checkpoint in one pass, from a recipe or a preset."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.external import tool_settings
from gemquant.cli.flags import Size, flag, flags, offering, output_flags, target_folder_flag
from gemquant.cli.flags import threads_flag as threads
from gemquant.cli.settings import problems_of, target_folders, threads_of
from gemquant.convert.external_options import (
    AutoAwqOptions,
    ExternalRequest,
    ImatrixOptions,
    OnnxOptions,
)
from gemquant.convert.run_recipe import RunJob, RunRecipe, preset, preset_names
from gemquant.core.progress import print_end, reporter
from gemquant.core.resources import human_bytes, parse_size
from gemquant.errors import GemquantError, ProblemCollector, UsageError, echo
from gemquant.rockchip.options import AUTO, RkllmOptions

if TYPE_CHECKING:
    from gemquant.convert.duration import Duration
    from gemquant.convert.run import PlannedRun, RunRequest, ToolStep
    from gemquant.core.artifact import Artifact
    from gemquant.core.protocols import Progress
    from gemquant.core.targets import Target

TOOLS = {
    "onnx": OnnxOptions,
    "rkllm": RkllmOptions,
    "autoawq": AutoAwqOptions,
    "imatrix": ImatrixOptions,
}
"""Jobs that run after the passes, and their options."""
RECIPES = (".toml", ".json")


@click.command(
    "run",
    epilog="""\b
RECIPE is a TOML or JSON file; see docs/run.md. With --preset, or a recipe that names no model, the
arguments are models: folders, Hub ids, GGUF files or sample:gemma-3-270m.

\b
Examples:
  gemquant run my-recipe.toml
  gemquant run my-recipe.toml --dry-run
  gemquant run sample:gemma-3-270m --preset publish -o gemma-3-270m-GGUF
  gemquant run google/gemma-3-1b-it --preset cuda --preset apple
  gemquant run my-recipe.toml --only 'gguf-Q4*' --only awq
  gemquant run --preset publish --show > my-recipe.toml""",
)
@flags(
    click.Argument(["arguments"], nargs=-1, metavar="[RECIPE|MODEL]..."),
    click.Option(
        ["--preset"],
        multiple=True,
        metavar="NAME",
        shell_complete=offering(preset_names),
        help=f"Recipe that comes along; repeatable: {', '.join(preset_names())}.",
    ),
    flag("--show", "Print the recipes and stop."),
    click.Option(
        ["--output", "-o"],
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder of the artifacts' folders.  [default: the recipe's, or here]",
    ),
    click.Option(
        ["--only"],
        multiple=True,
        metavar="PATTERN",
        help="Make only jobs whose quantizer or title matches, as 'gguf-Q4*'; repeatable.",
    ),
    click.Option(
        ["--skip"], multiple=True, metavar="PATTERN", help="Leave such jobs out; repeatable."
    ),
    click.Option(
        ["--memory"],
        type=Size(),
        metavar="SIZE",
        help="Memory that the jobs of one pass may hold; more jobs take further passes.  "
        "[default: four fifths of the machine's]",
    ),
    threads(),
    click.Option(
        ["--engine"],
        type=click.Choice(["local", "ray"]),
        default="local",
        help="Where the jobs run: here, or as tasks on the nodes of a Ray cluster (extra ray).",
    ),
    click.Option(
        ["--address"],
        metavar="HOST:PORT",
        help="Head node of the cluster.  [default: RAY_ADDRESS, or this machine alone]",
    ),
    click.Option(
        ["--copy-to"],
        metavar="URL",
        help="Copy each finished artifact to this URL of fsspec too, such as s3://bucket/folder; "
        "its manifest arrives last.",
    ),
    target_folder_flag(),
    flag("--no-eval", "Write no certificates."),
    click.Option(
        ["--restart"], is_flag=True, help="Start over instead of resuming an interrupted run."
    ),
    click.Option(
        ["--dry-run"], is_flag=True, help="Check everything, print the plan, write nothing."
    ),
    click.Option(["--force"], is_flag=True, help="Make artifacts again that stand already."),
    *output_flags(),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """Many artifacts of one checkpoint in one pass, from a recipe or a preset.

    Every layer is read, traced and evaluated once for all jobs. What stands already, made by the
    same recipe, is left alone, and an interrupted run resumes. With --output, README.md there
    is one card for all: a table, a picture, what fits which memory, how to run each.
    """
    problems, quiet = problems_of(ctx), params["quiet"]
    recipes = _recipes(params["arguments"], params["preset"], problems)
    if params["show"]:
        problems.refuse()
        for recipe in recipes:
            echo(Path(recipe.source).read_text(encoding="utf-8"), nl=False)
        return
    jobs = [job for recipe in recipes for job in recipe.expand(TOOLS, problems)]
    jobs = _chosen(jobs, params["only"], params["skip"], problems)
    if params["no_eval"]:
        jobs = [job.without_evaluation() for job in jobs]
    count = threads_of(params, problems)
    folders = problems.attempt(lambda: target_folders(params["target_folder"]))
    engine = _engine(params["engine"], params["address"], problems)
    output = params["output"] or next((Path(r.output) for r in recipes if r.output), Path())
    problems.refuse()
    with reporter(quiet=quiet) as progress:
        progress.start("checking the jobs", 0)

        from gemquant.cli import render
        from gemquant.convert.run import RunRequest, default_memory, plan_run

        request = RunRequest(
            jobs,
            output,
            folders.value,
            count,
            params["memory"] or default_memory(),
            tool_step,
            force=params["force"],
            restart=params["restart"],
            copy_to=params["copy_to"],
        )
        planned = plan_run(request, progress)
        made = None
        if not params["dry_run"]:
            if engine is not None:
                made = engine(request, planned, progress)
            else:
                made = list(request.copied(planned.run(progress), progress))
        named = params["output"] is not None or any(recipe.output for recipe in recipes)
        card = named and made and _write_card(output, progress)
    if made is None:
        _print_plan(planned, as_json=params["as_json"])
        return
    if params["as_json"]:
        render.artifacts(made, as_json=True)
    else:
        _print_by_kind(made)
    print_end(*_next_commands(made, output if card else None), quiet=quiet)


def _engine(
    name: str, address: str | None, problems: ProblemCollector
) -> Callable[[RunRequest, PlannedRun, Progress], list[Artifact]] | None:
    """What makes the artifacts elsewhere; None where that is here."""
    if name == "local":
        if address is not None:
            problems.append(UsageError(f"--address {address}: needs --engine ray."))
        return None

    from gemquant.convert.cluster import Cluster, check_installed, run_on

    problems.attempt(check_installed)
    return partial(run_on, Cluster(address))


@dataclass(frozen=True)
class _Step:
    """What a checked job of another program does."""

    title: str
    out: Path
    finished: bool
    duration: Callable[[], Duration]
    run: Callable[[Path, Progress], Artifact | None]


def tool_step(job: RunJob, target: Target, request: RunRequest, progress: Progress) -> ToolStep:
    """Check a job that runs when the passes are over, mostly another program's."""
    if job.recipe.quantizer == "imatrix":
        from gemquant.convert.imatrix import ImatrixStep

        return ImatrixStep.of(job, request, progress)
    given, recipe = job.tool or {}, job.recipe
    problems = ProblemCollector()
    memory = given.get("tool_memory")
    size = problems.attempt(lambda: memory and parse_size(memory, flag=f"{job.place}: tool_memory"))
    minutes = {"tool_minutes": given.get("tool_minutes"), "tool_memory": size.outcome}
    tool = tool_settings({**given, **minutes}, problems)
    problems.refuse()
    shared: dict[str, Any] = {
        "recipe": recipe,
        "options": job.quantizer,
        "target": target,
        "output": None if job.name is None else request.folder / job.name,
        "threads": request.threads,
        "force": request.force,
        "within": request.folder,
        "only_missing": True,
    }
    if recipe.quantizer == "rkllm":
        from gemquant.rockchip import rkllm
        from gemquant.rockchip.prepare import RkllmRequest
        from gemquant.rockchip.prepare import prepare as prepare_rkllm

        made = prepare_rkllm(
            RkllmRequest(
                **shared,
                prepare_only=given.get("prepare_only", False),
                toolkit=given.get("toolkit", AUTO),
                toolkit_version=given.get("toolkit_version"),
                memory_bytes=tool.memory_bytes,
            ),
            progress,
        )

        def convert(_: Path, progress: Progress) -> Artifact | None:
            if made.finished:
                return None
            if made.interpreter is None:
                rkllm.prepare_only(made.job, made.checkpoint, progress)
                return None
            return rkllm.convert(
                made.job,
                made.checkpoint,
                interpreter=made.interpreter,
                limits=tool.limits,
                threads=request.threads,
                progress=progress,
            )

        def duration() -> Duration:
            prepared = rkllm.preparing(made.job, made.checkpoint)
            if made.interpreter is None:
                return prepared
            return prepared.joined(rkllm.converting(made.job, made.checkpoint))

        return _Step(job.title, made.job.out, made.finished, duration, convert)

    from gemquant.convert import autoawq, onnx
    from gemquant.convert.duration import external_duration
    from gemquant.convert.external import build, prepare_external

    check = onnx.check if recipe.quantizer == "onnx" else autoawq.check
    prepared = prepare_external(ExternalRequest(**shared, tool=tool), check, progress)
    return _Step(
        job.title,
        prepared.out,
        prepared.finished is not None,
        partial(external_duration, prepared),
        lambda shared, progress: build(prepared, progress, shared=shared),
    )


def _recipes(
    arguments: Sequence[str], presets: Sequence[str], problems: ProblemCollector
) -> list[RunRecipe]:
    """The recipes that were named, each with the models that were."""
    files = [Path(each) for each in arguments if Path(each).suffix.lower() in RECIPES]
    models = [each for each in arguments if Path(each).suffix.lower() not in RECIPES]
    if not files and not presets:
        problems.append(
            UsageError(
                "RECIPE: missing.",
                hint="Name a .toml file, or a model and a preset: gemquant run "
                f"{shlex.join(models) or 'sample:gemma-3-270m'} --preset publish",
            )
        )
    found: list[RunRecipe] = []
    for name in presets:
        chosen = problems.attempt(partial(preset, name))
        files += [chosen.value] if chosen.succeeded else []
    for file in files:
        read = problems.attempt(partial(RunRecipe.load, file))
        found += [read.value.for_models(models)] if read.succeeded else []
    return found


def _chosen(
    jobs: Sequence[RunJob], only: Sequence[str], skip: Sequence[str], problems: ProblemCollector
) -> list[RunJob]:
    """Jobs that match a pattern of ``only``, if there is any, and none of ``skip``."""

    def matches(job: RunJob, pattern: str) -> bool:
        names = (job.title, job.recipe.quantizer)
        return any(fnmatchcase(name.lower(), pattern.lower()) for name in names)

    titles = ", ".join(dict.fromkeys(job.title for job in jobs))
    problems += [
        UsageError(f"{option} {pattern}: matches no job.", hint=f"They are: {titles}.")
        for option, patterns in (("--only", only), ("--skip", skip))
        for pattern in patterns
        if jobs and not any(matches(job, pattern) for job in jobs)
    ]
    chosen = [
        job
        for job in jobs
        if (not only or any(matches(job, each) for each in only))
        and not any(matches(job, each) for each in skip)
    ]
    if jobs and not chosen and not problems:
        problems.append(UsageError("--only and --skip leave no job.", hint=f"They are: {titles}."))
    return chosen


def _print_by_kind(made: Sequence[Artifact]) -> None:
    """One table for the artifacts of each model."""
    from gemquant.cli import render
    from gemquant.core.artifact.manifest import model_name

    for name in dict.fromkeys(model_name(each.manifest) for each in made):
        render.artifacts([e for e in made if model_name(e.manifest) == name], as_json=False)


def _write_card(output: Path, progress: Progress) -> bool:
    """One card for all artifacts in the folder, if there are several of one model."""
    from gemquant.cli.artifacts import artifact_folders
    from gemquant.publish.card import write_card
    from gemquant.publish.collection import collection_card
    from gemquant.publish.picture import INSTALL, installed

    folders = artifact_folders([output])
    if len(folders) < 2:
        return False
    try:
        write_card(collection_card(folders, output))
    except GemquantError as error:
        progress.note(f"no card of all artifacts: {error.message}")
        return False
    note = "" if installed() else f"; a picture of size against loss needs matplotlib: {INSTALL}"
    progress.note(f"{output / 'README.md'}: the card of {len(folders)} artifacts{note}")
    return True


def _next_commands(made: Sequence[Artifact], collection: Path | None) -> list[str]:
    """What to type next. collection: a folder with one card for all."""
    folders = dict.fromkeys(str(each.path.parent) for each in made)
    words = shlex.join(folders)
    if collection is None:
        return [f"gemquant show {words}", f"gemquant report {words}"]
    name = collection.resolve().name
    return [f"gemquant show {words}", f"gemquant push {shlex.quote(str(collection))} ME/{name}"]


def _print_plan(planned: PlannedRun, *, as_json: bool) -> None:
    """Print what would be made in which pass, and what that takes."""
    from gemquant.cli.render import print_json, print_tables, table
    from gemquant.convert.duration import Duration, pass_duration, prepared_so_far
    from gemquant.convert.run import held_bytes

    durations = [pass_duration(each) for each in planned.passes]
    later = [step.duration() for step in planned.steps if not step.finished]
    whole = reduce(Duration.joined, [*durations, *later], prepared_so_far())
    documents: list[dict[str, Any]] = []
    numbers = ("size", "bits per weight")
    rows = table("pass", "folder", "container", *numbers, numbers=numbers)
    for number, each in enumerate(planned.passes, 1):
        jobs = []
        for job in each.planned:
            size, bits = job.total_bytes, job.bits_per_weight
            out, container = str(job.job.out), job.job.exporter.name
            jobs.append(
                {
                    "path": out,
                    "recipe": job.job.recipe.to_dict(),
                    "bytes": size,
                    "bits_per_weight": bits,
                }
            )
            rows.add_row(str(number), out, container, human_bytes(size), f"{bits:.2f}")
        for artifact in each.finished:
            bits = artifact.manifest.quantization.bits_per_weight
            size, path = artifact.content_bytes, str(artifact.path)
            container = artifact.manifest.container
            rows.add_row("made", path, container, human_bytes(size), f"{bits:.2f}")
        document = {"model": each.checkpoint.ref, "jobs": jobs, "memory_bytes": held_bytes(each)}
        document["seconds_estimate"] = durations[number - 1].document()
        documents.append(
            {**document, "finished": [str(artifact.path) for artifact in each.finished]}
        )
    total = sum(job.total_bytes for each in planned.passes for job in each.planned)
    if as_json:
        steps = [{"path": str(s.out), "job": s.title, "made": s.finished} for s in planned.steps]
        reasons = list(planned.reasons)
        seconds = whole.document()
        print_json(
            {
                "passes": documents,
                "steps": steps,
                "bytes": total,
                "reasons": reasons,
                "seconds_estimate": seconds,
            }
        )
        return
    memory = max(map(held_bytes, planned.passes), default=0)
    for step in planned.steps:
        stands = "made" if step.finished else "later"
        rows.add_row(stands, str(step.out), step.title, "", "")
    resumed = [each.resumable_layers for each in planned.passes if each.planned]
    print_tables(
        rows,
        f"{human_bytes(total)} to write; about {human_bytes(memory)} of memory.",
        f"time: {whole}.",
        *(f"{reason}." for reason in planned.reasons),
        *(f"An interrupted pass will be resumed after layer {n}." for n in resumed if n),
        "Nothing was written (--dry-run).",
    )
