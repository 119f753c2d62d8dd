"""``gemquant awq MODEL`` and the like: one command per quantizer, made from its fields."""

from __future__ import annotations

import inspect
import shlex
from collections import Counter
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import model_argument
from gemquant.cli.quantizer_options import (
    common_flags,
    current_flags,
    quantizer_flags,
    read_request,
)
from gemquant.convert.plugins import quantizer_type
from gemquant.core.progress import print_end, reporter

if TYPE_CHECKING:
    from gemquant.convert.duration import Duration
    from gemquant.convert.plan import PlannedJob
    from gemquant.core.artifact import Artifact
    from gemquant.core.recipe import Recipe
    from gemquant.core.tables import Table
    from gemquant.numerics.ggml_types import GgmlType

MODEL = """\b
MODEL is a folder, a Hub id with optional @REVISION, a GGUF file, or sample:gemma-3-270m.

"""
EXAMPLES = """\b
Examples:
  gemquant NAME sample:gemma-3-270m
  gemquant NAME google/gemma-2-2b --target cuda -o gemma-2-2b-NAME
  gemquant NAME ./my-gemma --lora ./my-adapter --calib my-text.jsonl
  gemquant NAME google/gemma-3-1b-it --dry-run
"""


class QuantizerCommand(click.Command):
    """Checks everything, then runs the pipeline and prints the certificate."""

    def __init__(self, name: str, *, more: Sequence[click.Parameter] = ()) -> None:
        """Make the command of a quantizer. more: flags beyond those of every quantizer."""
        self.quantizer = quantizer_type(name)
        super().__init__(
            name,
            params=[
                model_argument(),
                *quantizer_flags(self.quantizer),
                *more,
                click.Option(
                    ["--restart"],
                    is_flag=True,
                    help="Start over instead of resuming an interrupted run.",
                ),
                *common_flags(self.quantizer),
            ],
            help=help_of(self.quantizer),
            epilog=MODEL + getattr(self.quantizer, "examples", EXAMPLES).replace("NAME", name),
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Accept former spellings of flags."""
        return super().parse_args(ctx, current_flags(self.quantizer, args))

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        request, quiet = read_request(ctx, self.quantizer), ctx.params["quiet"]
        request.check_place()
        with reporter(quiet=quiet) as progress:
            progress.start(f"opening {request.recipe.model}", 0)

            from gemquant.cli import render
            from gemquant.convert.prepare import ConversionRequest, JobRequest, prepare
            from gemquant.core.resources import human_bytes

            labelled = request.output is not None and len(request.quantizers) > 1
            conversion = ConversionRequest(
                [
                    JobRequest(
                        request.recipe, each, request.target, request.output, labelled=labelled
                    )
                    for each in request.quantizers
                ],
                threads=request.threads,
                force=request.force,
                restart=request.restart,
            )
            prepared = prepare(conversion, progress)
            if request.dry_run:
                carried = human_bytes(prepared.carried_bytes)
                progress.note(f"the windows carry at most {carried} from layer to layer")
                if layers := prepared.resumable_layers:
                    progress.note(f"an interrupted run will be resumed after layer {layers}")
                from gemquant.convert.duration import pass_duration, prepared_so_far

                duration = prepared_so_far().joined(pass_duration(prepared))
                artifacts = None
            else:
                artifacts = prepared.run(progress)
        if artifacts is None:
            print_plan(prepared.planned, duration, as_json=ctx.params["as_json"])
        else:
            render.artifacts(artifacts, as_json=ctx.params["as_json"])
            print_end(*next_commands(artifacts), quiet=quiet)


def next_commands(artifacts: Sequence[Artifact]) -> list[str]:
    """What to type when artifacts are finished; several lie in one folder."""
    from gemquant.cli.render import push_command

    path = artifacts[0].path if len(artifacts) == 1 else artifacts[0].path.parent
    return [f"gemquant show {shlex.quote(str(path))}", push_command(artifacts)]


def help_of(quantizer: type[Any]) -> str:
    """Turn a docstring into help text, its lines unchanged."""
    first, *rest = inspect.cleandoc(quantizer.__doc__ or "").split("\n\n")
    return "\n\n".join([first, *(f"\b\n{paragraph}" for paragraph in rest)])


# ---------------------------------------------------------------- --dry-run


def print_plan(planned: Sequence[PlannedJob], duration: Duration, *, as_json: bool) -> None:
    """Print what jobs would write: where, how it is stored, its size; and how long all take."""
    from gemquant.cli.render import print_json, print_tables

    if as_json:
        seconds = {"seconds_estimate": duration.document()}
        documents = [{**_plan_document(each), **seconds} for each in planned]
        print_json(documents[0] if len(documents) == 1 else documents)
        return
    for each in planned:
        print_tables(*_plan(each), "")
    print_tables(f"time: {duration}.", "Nothing was written (--dry-run).")


def _fallbacks(planned: PlannedJob) -> dict[tuple[str, str], list[str]]:
    """Modules by what they are stored as and why."""
    groups: dict[tuple[str, str], list[str]] = {}
    for each in planned.fallbacks:
        groups.setdefault((each.stored, each.reason), []).append(each.module)
    return groups


def _plan_document(planned: PlannedJob) -> dict[str, Any]:
    return {
        "path": str(planned.job.out),
        "recipe": planned.job.recipe.to_dict(),
        "bits_per_weight": planned.bits_per_weight,
        "file_sizes": dict(planned.file_sizes),
        "per_layer_embedding": table.model_dump()
        if (table := planned.per_layer_embedding) is not None
        else None,
        "towers": [each.model_dump() for each in planned.tower_records],
        "quantized": list(planned.quantized),
        "kept": list(planned.kept),
        "grid": None if planned.grid is None else planned.grid.model_dump(mode="json"),
        "fallbacks": [
            {"modules": modules, "stored": stored, "reason": reason}
            for (stored, reason), modules in _fallbacks(planned).items()
        ],
    }


def _plan(planned: PlannedJob) -> list[Table | str]:
    from gemquant.cli.render import add_grid, fact_table, fallback_table, named, tower_facts
    from gemquant.core.protocols import QuantizedSpec
    from gemquant.core.resources import human_bytes
    from gemquant.core.scheme import describe
    from gemquant.core.tables import matrices
    from gemquant.models.structure import PER_LAYER_TABLE

    job, layout = planned.job, planned.header.layout
    schemes: dict[str, list[str]] = {}
    for name in planned.quantized:
        if isinstance(spec := layout[name], QuantizedSpec):
            schemes.setdefault(describe(spec.scheme), []).append(name)
    facts = fact_table()
    facts.add_row("model", job.recipe.model)
    facts.add_row("folder", str(job.out))
    facts.add_row("container", f"{job.exporter.name}, for {job.recipe.target}")
    formats = _formats(planned)
    if not formats:
        for words, names in schemes.items():
            facts.add_row(job.recipe.quantizer, f"{words}: {matrices(names)}")
    unquantized = [name.removesuffix(".weight") for name in planned.kept]
    if unquantized and schemes:
        facts.add_row("remaining", named(unquantized))
    if not schemes:
        dtype = job.exporter.container(planned.header.config).float_dtype
        facts.add_row(job.recipe.quantizer, f"everything in {str(dtype).removeprefix('torch.')}")
    facts.add_row(
        "size",
        f"{human_bytes(planned.total_bytes)} in {', '.join(planned.file_sizes)}; "
        f"{planned.bits_per_weight:.2f} bits per weight over all",
    )
    if (table := layout.get(PER_LAYER_TABLE)) is not None:
        stored = describe(table.scheme) if isinstance(table, QuantizedSpec) else str(table.dtype)
        share = prod(table.shape) / sum(prod(spec.shape) for spec in layout.values())
        facts.add_row(
            "table",
            f"{share:.0%} of the weights are the table of per-layer inputs, in "
            f"{stored.removeprefix('torch.')}: {planned.per_layer_embedding}",
        )
    for tower in planned.tower_records:
        facts.add_row(tower.name, tower_facts(tower))
    add_grid(facts, planned.grid)
    facts.add_row("certificate", _certificate(job.recipe))
    groups = _fallbacks(planned).items()
    return [facts, *formats, *fallback_table((modules, *why) for why, modules in groups)]


def _certificate(recipe: Recipe) -> str:
    from gemquant.core.tables import counted

    if recipe.eval_windows == 0:
        return "none (--eval-windows 0, or --no-eval)"
    slices = "all slices" if recipe.eval_slices is None else ", ".join(recipe.eval_slices)
    windows, tokens = counted(recipe.eval_windows, "window"), recipe.evaluation_tokens
    few = 0 < recipe.eval_positions < tokens - 1
    measured = f", {recipe.eval_positions} predictions of each" if few else ""
    return f"{windows} of {tokens} tokens of {slices}{measured}"


def _formats(planned: PlannedJob) -> list[Table | str]:
    """How much of a file each of ggml's formats takes; nothing for other containers."""
    from gemquant.cli.render import table
    from gemquant.core.protocols import QuantizedSpec
    from gemquant.core.resources import human_bytes
    from gemquant.core.weights import BlockScheme

    weights: Counter[GgmlType] = Counter()
    matrices: Counter[GgmlType] = Counter()
    for spec in planned.header.layout.values():
        if isinstance(spec, QuantizedSpec) and isinstance(spec.scheme, BlockScheme):
            weights[spec.scheme.type] += spec.shape[0] * spec.shape[1]
            matrices[spec.scheme.type] += 1
    if not weights:
        return []
    numbers = ("matrices", "weights", "size", "bits per weight")
    formats = table("format", *numbers, numbers=numbers)
    for kind, count in weights.most_common():
        size = human_bytes(round(count * kind.bits / 8))
        formats.add_row(kind.name, str(matrices[kind]), f"{count:,}", size, f"{kind.bits:g}")
    return ["", formats]
