"""``gemquant imatrix``: how much each input column counts, in a file that llama.cpp reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import (
    DEFAULTS,
    calibration_flags,
    machine_flags,
    model_argument,
    output_flags,
)
from gemquant.cli.progress import reporter
from gemquant.cli.settings import problems_of, setting, threads_of
from gemquant.core.recipe import Recipe
from gemquant.core.resources import require_device
from gemquant.errors import OutputError, UsageError, refuse

if TYPE_CHECKING:
    from gemquant.core.progress import Progress
    from gemquant.formats.gguf.imatrix import ImportanceMatrix

SETTINGS = ("calib", "samples", "seq_len", "seed", "device", "dtype", "lora", "calib_dtype")


class ImatrixCommand(click.Command):
    """Trace calibration text through a model and write what its inputs add up to."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        given = ctx.params
        recipe, out, threads = _request(ctx)
        from gemquant.cli import render
        from gemquant.formats.gguf.imatrix import write_imatrix

        with reporter(quiet=given["quiet"]) as progress:
            matrix = _compute(recipe, threads, progress)
        write_imatrix(out, matrix)
        counts = [entry.count for entry in matrix.entries.values()]
        told = {
            "path": str(out),
            "entries": len(counts),
            "tokens": max(counts),
            "text": matrix.datasets[0],
            "chunks": matrix.chunks,
            "chunk_tokens": matrix.chunk_tokens,
        }
        if given["as_json"]:
            render.print_json(told)
        else:
            render.print_tables(
                f"{out}: {told['entries']} linears over {told['tokens']} tokens of {told['text']}, "
                f"{matrix.chunks} chunks of {matrix.chunk_tokens}."
            )


def _request(ctx: click.Context) -> tuple[Recipe, Path, int]:
    given, problems = ctx.params, problems_of(ctx)
    values = {
        name: given[name] if given[name] is not None else getattr(DEFAULTS, name)
        for name in SETTINGS
    }
    recipe = Recipe(model=given["model"] or "", quantizer="imatrix", **values)
    problems += recipe.problems()
    if not given["model"]:
        problems.append(
            UsageError(
                "MODEL: missing.", hint="As in: gemquant imatrix sample:gemma-3-270m -o FILE"
            )
        )
    threads = threads_of(given, problems)
    out: Path | None = given["output"]
    if out is None:
        problems.append(UsageError("--output: missing.", hint="As in: -o my-gemma.imatrix.gguf"))
    elif out.exists() and not given["force"]:
        problems.append(
            OutputError(f"{out} exists.", hint="Give --force to replace it, or another -o.")
        )
    elif not out.absolute().parent.is_dir():
        problems.append(OutputError(f"{out.absolute().parent}: no such folder."))
    refuse(problems)
    assert out is not None
    return recipe, out, threads


def _compute(recipe: Recipe, threads: int, progress: Progress) -> ImportanceMatrix:
    import torch

    from gemquant.calibration.trace import Trace, computed_importance
    from gemquant.cli.preparation import (
        calibration_dtype,
        calibration_text,
        chat_template,
    )
    from gemquant.formats.checkpoint import open_checkpoint
    from gemquant.models.skeleton import Skeleton

    require_device(recipe.device)
    torch.set_num_threads(threads)
    progress.note(f"opening {recipe.model}")
    checkpoint = open_checkpoint(recipe.model, lora=recipe.lora)
    windows = calibration_text(recipe, checkpoint, chat_template(recipe, checkpoint))
    dtype: Any = getattr(torch, calibration_dtype(recipe))
    skeleton = Skeleton(checkpoint.config, device=recipe.device, dtype=dtype)
    trace = Trace(checkpoint, skeleton, windows, gram=False)
    return computed_importance(trace, windows, checkpoint.config["model_type"], progress)


command = ImatrixCommand(
    "imatrix",
    params=[
        model_argument(),
        setting(
            "--output",
            "-o",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="GGUF to write, which llama-quantize and `gemquant gguf --imatrix` read.",
        ),
        *calibration_flags(),
        setting("--lora", metavar="DIR|HUB-ID", help="PEFT adapter to merge into the weights."),
        *machine_flags(),
        click.Option(["--force"], is_flag=True, help="Replace an existing file."),
        *output_flags(),
    ],
    help="""Compute an importance matrix for llama.cpp's quantization.

    Σx² of every linear's inputs over the calibration text. `gemquant gguf --importance` computes
    the same on its way; a file serves other tools, or several runs.""",
    epilog="""\b
Examples:
  gemquant imatrix google/gemma-2-2b -o gemma-2-2b.imatrix.gguf
  gemquant imatrix ./my-gemma --calib my-text.txt --samples 64 -o my-gemma.imatrix.gguf
  gemquant gguf ./my-gemma --imatrix my-gemma.imatrix.gguf""",
)
