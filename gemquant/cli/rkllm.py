"""``gemquant rkllm``: a file for Rockchip's NPUs, made by the vendor's toolkit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import model_argument
from gemquant.cli.foreign import ToolSettings, tool_flags, tool_settings
from gemquant.cli.gathering import Attempt, Gathering
from gemquant.cli.progress import reporter
from gemquant.cli.quantize import MODEL, help_of
from gemquant.cli.quantizer_flags import common_flags, quantizer_flags
from gemquant.cli.request import Request, read_request
from gemquant.cli.settings import problems_of, setting
from gemquant.errors import GemquantError, UsageError
from gemquant.foreign.rkllm_options import RkllmOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemquant.calibration.windows import TokenWindows
    from gemquant.checkpoint import Checkpoint
    from gemquant.foreign.rkllm import RkllmJob
    from gemquant.recipe import Recipe
    from gemquant.toolkit import Toolkit, ToolkitVersion
    from gemquant.workers import Interpreter

CONTAINER = "rkllm"
AUTO = "auto"
NOT_HERE = {
    "exporter",
    "calib_dtype",
    "eval_windows",
    "eval_slices",
    "no_eval",
    "device",
    "dtype",
    "python",
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A job that has passed every check. interpreter: None where it is only prepared."""

    job: RkllmJob
    checkpoint: Checkpoint
    interpreter: Interpreter | None


class RkllmCommand(click.Command):
    """Checks everything, prepares, converts, and prints what the toolkit was given."""

    quantizer = RkllmOptions

    def invoke(self, ctx: click.Context) -> None:
        """Run the command."""
        given = ctx.params
        given |= {"python": None, "no_eval": True}
        tool = tool_settings(given, problems_of(ctx))
        request = read_request(ctx, RkllmOptions)

        from gemquant.cli import render, rkllm_tables
        from gemquant.foreign import rkllm

        with reporter(quiet=given["quiet"]) as progress:
            progress.note(f"opening {request.recipe.model}")
            prepared = _prepared(request, tool, given)
            job, checkpoint = prepared.job, prepared.checkpoint
            if request.dry_run:
                _print_plan(prepared, as_json=given["as_json"])
                return
            if prepared.interpreter is None:
                made_ready = rkllm.prepare_only(job, checkpoint, progress)
                rkllm_tables.print_prepared(job, made_ready, as_json=given["as_json"])
                return
            made = rkllm.convert(
                job,
                checkpoint,
                interpreter=prepared.interpreter,
                limits=tool.limits,
                threads=request.threads,
                progress=progress,
            )
        render.artifact(made, as_json=given["as_json"])


def _prepared(request: Request, tool: ToolSettings, given: dict[str, Any]) -> Prepared:
    """Check everything that can be known before the first weight is read."""
    import torch

    from gemquant.artifact import output_problems
    from gemquant.calibration.prompts import calibration_prompts
    from gemquant.checkpoint import open_checkpoint
    from gemquant.cli.preparation import (
        calibration_dtype,
        calibration_text,
        chat_template,
        read_evaluation,
    )
    from gemquant.errors import refuse
    from gemquant.forecast.candidate import weight_count
    from gemquant.foreign import rkllm, rkllm_rules
    from gemquant.foreign.rkllm_calls import file_name, takes_prompts
    from gemquant.foreign.rkllm_smoothing import smooths
    from gemquant.origin import model_name
    from gemquant.toolkit import load_toolkit

    torch.set_num_threads(request.threads)
    recipe, asked = request.recipe, request.quantizer
    assert isinstance(asked, RkllmOptions)
    gathering = Gathering()
    npu = gathering.attempt(lambda: rkllm_rules.npu_of(request.target))
    gathering.refuse()
    options = rkllm_rules.resolved(asked, npu.value)
    gathering.attempt(lambda: refuse(rkllm_rules.option_problems(options, npu.value)))
    opened = gathering.attempt(lambda: open_checkpoint(recipe.model, lora=recipe.lora))
    toolkit = load_toolkit(npu.value.toolkit)
    # An unknown dtype has been told; the others' rules are checked with the target's own.
    dtype = npu.value.dtype(options.quantized_dtype) or npu.value.dtype(npu.value.default_dtype)
    assert dtype is not None
    config = gathering.attempt(lambda: opened.value.config)
    able = gathering.attempt(
        lambda: toolkit.converting(npu.value.platform, config.value["model_type"], dtype.name)
    )
    python = gathering.attempt(lambda: _interpreter(given, toolkit, able.value))
    release = gathering.attempt(lambda: _release(given["toolkit_version"], toolkit, able, python))
    made = gathering.attempt(
        lambda: rkllm_rules.Conversion(npu.value, toolkit, release.value, dtype, options)
    )
    gathering.attempt(lambda: refuse(rkllm_rules.release_problems(made.value, config.value)))
    gathering.attempt(lambda: refuse(rkllm.reading_problems(made.value, opened.value)))
    if not given["prepare_only"]:
        gathering.attempt(
            lambda: refuse(
                rkllm_rules.memory_problems(
                    toolkit, weight_count(config.value), host_bytes=tool.memory_bytes
                )
            )
        )
    template = gathering.attempt(lambda: chat_template(recipe, opened.value))
    traced = options.gptq or smooths(dtype, options)
    windows = gathering.attempt(
        lambda: calibration_text(recipe, opened.value, template.value) if traced else None
    )
    emulated = gathering.attempt(
        lambda: read_evaluation(
            dataclasses.replace(recipe, eval_windows=options.emulate), opened.value, template.value
        )
    )
    simulated = gathering.attempt(
        lambda: _simulated(options, recipe, opened.value, template.value, given)
    )
    takes_none = made.succeeded and not takes_prompts(made.value)
    prompts = gathering.attempt(
        lambda: (
            []
            if takes_none
            else calibration_prompts(
                opened.value.tokenizer(),
                source=recipe.calib,
                samples=recipe.samples,
                seq_len=recipe.seq_len,
                seed=recipe.seed,
                chat_template=template.value,
            )
        )
    )
    name = gathering.attempt(lambda: file_name(model_name(recipe.model), made.value))
    out = gathering.attempt(lambda: request.output or Path(name.value.removesuffix(".rkllm")))
    gathering.attempt(
        lambda: refuse(output_problems(out.value, force=request.force, needed_bytes=0))
    )
    gathering.refuse()
    job = rkllm.RkllmJob(
        recipe=dataclasses.replace(
            recipe,
            options=dataclasses.asdict(options),
            exporter=CONTAINER,
            eval_windows=0,
            calib_dtype=calibration_dtype(recipe) if traced else recipe.calib_dtype,
        ),
        conversion=made.value,
        out=out.value,
        file=name.value,
        force=request.force,
        template=template.value,
        prompts=prompts.value,
        windows=windows.value,
        simulated=simulated.value,
        emulated=emulated.value,
    )
    space = rkllm.needed_bytes(job, opened.value)
    refuse(output_problems(job.out, force=request.force, needed_bytes=space))
    return Prepared(job, opened.value, python.value)


def _simulated(
    options: RkllmOptions,
    recipe: Recipe,
    checkpoint: Checkpoint,
    template: str,
    given: dict[str, Any],
) -> Sequence[TokenWindows]:
    """Evaluation text for the toolkit's simulator."""
    from gemquant.cli.preparation import read_evaluation

    if options.simulate and given["prepare_only"]:
        raise UsageError(
            f"--simulate {options.simulate}: nothing is run with --prepare-only.",
            hint="Leave one of them out.",
        )
    wanted = dataclasses.replace(recipe, eval_windows=options.simulate)
    return read_evaluation(wanted, checkpoint, template)


def _interpreter(
    given: dict[str, Any], toolkit: Toolkit, able: tuple[ToolkitVersion, ...]
) -> Interpreter | None:
    """Find the Python that has the toolkit; None where nothing is to be converted."""
    from gemquant.foreign.rkllm_toolkit import choose_toolkit

    if given["prepare_only"]:
        return None
    return choose_toolkit(given["toolkit"] or AUTO, toolkit, able)


def _release(
    number: str | None,
    toolkit: Toolkit,
    able: Attempt[tuple[ToolkitVersion, ...]],
    python: Attempt[Interpreter | None],
) -> ToolkitVersion:
    """Choose the release to make calls for: what was named, has been found, or is the newest."""
    from gemquant.foreign.rkllm_toolkit import release_of

    named = toolkit.version(number) if number else None
    if number and named is None:
        known = ", ".join(each.version for each in toolkit.versions)
        raise UsageError(f"--toolkit-version {number}: known are {known}.")
    interpreter = python.outcome
    if isinstance(interpreter, GemquantError):
        if named is None:
            raise interpreter
        return named  # its rules are told as well
    if interpreter is None:
        return named or (able.value or toolkit.versions)[-1]
    release = release_of(interpreter, toolkit)
    if named not in (None, release):
        raise UsageError(
            f"--toolkit-version {number}: {interpreter.path} has {release.version}.",
            hint="Leave --toolkit-version out, or name another --toolkit.",
        )
    return release


# ---------------------------------------------------------------- what is printed


def _print_plan(prepared: Prepared, *, as_json: bool) -> None:
    from gemquant.cli import render
    from gemquant.forecast.candidate import weight_count
    from gemquant.foreign.rkllm import needed_bytes, worker_job
    from gemquant.foreign.rkllm_file import size_range
    from gemquant.resources import human_bytes

    job, config = prepared.job, prepared.checkpoint.config
    conversion = job.conversion
    low, high = size_range(conversion, config)
    rough = conversion.toolkit.conversion
    memory = int(rough.bytes_per_weight * weight_count(config))
    facts = {
        "path": str(job.out),
        "file": job.file,
        "file_bytes_expected": [low, high],
        "toolkit": f"{conversion.toolkit.name} {conversion.release.version}",
        "needed_bytes": needed_bytes(job, prepared.checkpoint),
        "conversion_memory_bytes_estimate": memory,
        "job": worker_job(job, prepared.checkpoint),
    }
    if as_json:
        render.print_json(facts)
        return
    listing = render.table("", "")
    listing.show_header = False
    listing.add_row("file", f"{job.out}/{job.file}")
    listing.add_row("size", f"{human_bytes(low)} to {human_bytes(high)} are to be expected")
    listing.add_row("toolkit", str(facts["toolkit"]))
    listing.add_row("runtime", f"librkllmrt {conversion.release.version}")
    listing.add_row("driver", f"{conversion.release.driver} or newer")
    listing.add_row("memory", f"about {human_bytes(memory)}, an estimate")
    for call in worker_job(job, prepared.checkpoint)["calls"]:
        listing.add_row(
            call["function"], ", ".join(f"{k}={v!r}" for k, v in call["arguments"].items())
        )
    render.print_tables(listing, "", "Nothing was written (--dry-run).")


command = RkllmCommand(
    "rkllm",
    params=[
        model_argument(),
        *quantizer_flags(RkllmOptions),
        setting(
            "--toolkit",
            default=AUTO,
            metavar="PYTHON|auto",
            help="Python of the environment that holds rkllm-toolkit; auto looks for one.",
        ),
        click.Option(
            ["--prepare-only"],
            is_flag=True,
            help="Write what the toolkit reads, and the program that calls it; convert nothing.",
        ),
        setting(
            "--toolkit-version",
            metavar="X.Y.Z",
            instead="that of --toolkit, or with --prepare-only the newest that converts this",
            help="Release to prepare for; where a toolkit converts, the one that it must be.",
        ),
        *(flag for flag in tool_flags(own_python="") if flag.name not in NOT_HERE),
        *(flag for flag in common_flags(RkllmOptions) if flag.name not in NOT_HERE),
    ],
    help=help_of(RkllmOptions),
    epilog=MODEL
    + """\b
Examples:
  gemquant rkllm google/gemma-2-2b-it --toolkit ./rkllm-venv/bin/python
  gemquant rkllm google/gemma-2-9b-it --lora ./my-adapter --quantized-dtype w8a8_g128
  gemquant rkllm google/gemma-3-1b-it --prepare-only -o gemma-for-rkllm
  gemquant rkllm google/gemma-2-2b-it --gptq --quantized-dtype w8a8_g256 --prepare-only
  gemquant rkllm google/gemma-2-2b-it --simulate 2
  gemquant rkllm google/gemma-2-2b-it --no-smooth --emulate 0 --prepare-only
  gemquant rkllm google/gemma-2-2b-it --target rk3576 --hybrid-rate 0.25 --dry-run""",
)
