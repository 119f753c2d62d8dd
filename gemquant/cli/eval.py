"""``gemquant eval``: measure a finished artifact against its original again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import evaluation_flags, machine_flags, output_flags, window_flags
from gemquant.cli.progress import reporter
from gemquant.cli.settings import problems_of, setting, threads_of
from gemquant.errors import refuse
from gemquant.recipe import DEFAULT_EVAL_WINDOWS, Recipe

if TYPE_CHECKING:
    from gemquant.artifact import Artifact
    from gemquant.progress import Progress
    from gemquant.results import Certificate

PROMPT = "The capital of France is"
MEASURING = ("eval_windows", "eval_slices", "seq_len", "seed", "device", "dtype")
"""Settings that the artifact's own recipe gives their defaults."""


class EvalCommand(click.Command):
    """Measure again, with the settings of the artifact's recipe unless others are given."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        from gemquant.artifact import Artifact
        from gemquant.cli import render

        given = ctx.params
        threads = threads_of(given, problems_of(ctx))
        refuse(problems_of(ctx))
        artifact = Artifact.open(given["artifact"])
        recipe = _recipe(artifact, given)
        refuse(recipe.problems())
        with reporter(quiet=given["quiet"]) as progress:
            certificates = _measure(artifact, recipe, threads, given["native"], progress)
        render.evaluation(artifact, recipe.model, certificates, as_json=given["as_json"])


def _recipe(artifact: Artifact, given: dict[str, Any]) -> Recipe:
    """Return the artifact's recipe with what was given in its place."""
    source = artifact.manifest.source
    recipe = Recipe.from_dict(artifact.manifest.recipe)
    values = {name: given[name] for name in MEASURING if given[name] is not None}
    if given["against"] is not None:
        values["model"] = given["against"]
    elif source.revision is not None:
        values["model"] = f"{source.ref.partition('@')[0]}@{source.revision}"
    if recipe.eval_windows == 0:
        values.setdefault("eval_windows", DEFAULT_EVAL_WINDOWS)
    return dataclasses.replace(recipe, **values)


def _measure(
    artifact: Artifact, recipe: Recipe, threads: int, native: bool, progress: Progress
) -> list[Certificate]:
    import torch

    from gemquant.checkpoint import open_checkpoint
    from gemquant.cli.preparation import chat_template, read_evaluation, require_device
    from gemquant.evaluation.compare import compare
    from gemquant.evaluation.native import NativeRuntime
    from gemquant.plugins import exporter

    require_device(recipe.device)
    torch.set_num_threads(threads)
    progress.note(f"opening {recipe.model}")
    original = open_checkpoint(recipe.model, lora=recipe.lora)
    container = artifact.manifest.container
    quantized = exporter(container).open(artifact.path)
    runtime = None
    if native:
        runtime = NativeRuntime.find(artifact.path, container, device=recipe.device)
    certificates = compare(
        original,
        quantized,
        read_evaluation(recipe, original, chat_template(recipe, original)),
        runtime=runtime,
        device=recipe.device,
        compute_dtype=getattr(torch, recipe.dtype),
        progress=progress,
    )
    if runtime is not None and runtime.not_run is None:
        tokenizer, bos = original.tokenizer(), original.config["bos_token_id"]
        prompt = tokenizer.encode(PROMPT, add_special_tokens=False).ids
        continued = tokenizer.decode(runtime.generate([bos, *prompt]))
        progress.note(f"{runtime.runtime} continues {PROMPT!r} with {continued!r}")
    return certificates


command = EvalCommand(
    "eval",
    params=[
        click.Argument(["artifact"], type=click.Path(path_type=Path)),
        setting(
            "--against",
            metavar="MODEL",
            instead="what the artifact was made from",
            help="The original.",
        ),
        click.Option(
            ["--native/--no-native"],
            default=True,
            show_default=True,
            help="Also run the artifact in the runtime it is made for, where that is installed.",
        ),
        *evaluation_flags(inherited="the artifact's"),
        *window_flags(inherited="the artifact's"),
        *machine_flags(inherited="the artifact's"),
        *output_flags(),
    ],
    help="""Measure an artifact against its original again.

    Streams both through the same evaluation windows, by default those of the artifact's own
    certificate, and prints what was lost: level reference. Then the artifact is loaded, whole,
    in the runtime that executes it, and measured on the same windows: level native.""",
    epilog="""\b
Examples:
  gemquant eval gemma-2-2b-awq
  gemquant eval gemma-2-2b-awq --against google/gemma-2-2b --eval-windows 32
  gemquant eval gemma-2-2b-awq --eval-slices english,code --json""",
)
