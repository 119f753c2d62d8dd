"""``gemquant imatrix``: how much each input column counts, in a file that llama.cpp reads."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from gemquant.cli.flags import (
    calibration_flags,
    flag,
    flags,
    machine_flags,
    model_argument,
    output_flags,
)
from gemquant.cli.quantizer_options import lora_flag
from gemquant.cli.settings import problems_of, setting, threads_of
from gemquant.core.progress import print_end, reporter
from gemquant.core.recipe import Recipe
from gemquant.errors import OutputError, UsageError


@click.command(
    "imatrix",
    epilog="""\b
Examples:
  gemquant imatrix google/gemma-2-2b -o gemma-2-2b.imatrix.gguf
  gemquant imatrix ./my-gemma --calib my-text.txt --samples 64 -o my-gemma.imatrix.gguf
  gemquant gguf ./my-gemma --imatrix my-gemma.imatrix.gguf""",
)
@flags(
    model_argument(),
    setting(
        "--output",
        "-o",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="GGUF to write, which llama-quantize and `gemquant gguf --imatrix` read.",
    ),
    *calibration_flags(),
    lora_flag(),
    *machine_flags(),
    flag("--force", "Replace an existing file."),
    *output_flags(),
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    model: str | None,
    output: Path | None,
    force: bool,
    quiet: bool,
    as_json: bool,
    **params: Any,
) -> None:
    """Compute an importance matrix (imatrix) for llama.cpp.

    Σx² of every linear's inputs over the calibration text. `gemquant gguf --importance` computes
    the same during quantization; a file serves other tools, or several runs.
    """
    from gemquant.formats.checkpoint.recognition import check_place

    problems = problems_of(ctx)
    threads = threads_of(params, problems)
    del params["threads"]
    values = {name: value for name, value in params.items() if value is not None}
    recipe = Recipe(model=model or "", quantizer="imatrix", **values)
    problems += recipe.problems()
    if not model:
        hint = "As in: gemquant imatrix sample:gemma-3-270m -o FILE"
        problems.append(UsageError("MODEL: missing.", hint=hint))
    if output is None:
        problems.append(UsageError("--output: missing.", hint="As in: -o my-gemma.imatrix.gguf"))
    elif output.exists() and not force:
        hint = "Give --force to replace it, or another -o."
        problems.append(OutputError(f"{output} exists.", hint=hint))
    elif not output.absolute().parent.is_dir():
        problems.append(OutputError(f"{output.absolute().parent}: no such folder."))
    problems.refuse()
    assert output is not None
    check_place(recipe.model)  # before torch is loaded

    with reporter(quiet=quiet) as progress:
        progress.start(f"opening {model}", 0)

        from gemquant.cli import render
        from gemquant.convert.imatrix import compute_imatrix
        from gemquant.formats.gguf.imatrix import write_imatrix

        matrix = compute_imatrix(recipe, threads, progress)
    write_imatrix(output, matrix)
    counts = [max(entry.counts) for entry in matrix.entries.values()]
    document = {
        "path": str(output),
        "entries": len(counts),
        "tokens": max(counts),
        "text": matrix.datasets[0],
        "chunks": matrix.chunks,
        "chunk_tokens": matrix.chunk_tokens,
    }
    if as_json:
        render.print_json(document)
        return
    render.print_tables(
        f"{output}: {len(counts)} linears over {max(counts)} tokens of {matrix.datasets[0]}, "
        f"{matrix.chunks} chunks of {matrix.chunk_tokens}."
    )
    words = shlex.quote(str(model)), shlex.quote(str(output))
    print_end(f"gemquant gguf {words[0]} --imatrix {words[1]}", quiet=quiet)
