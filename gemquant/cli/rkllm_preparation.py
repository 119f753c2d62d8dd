"""Everything that ``gemquant rkllm`` checks before the first weight is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemquant.errors import Attempt, GemquantError, ProblemCollector, UsageError
from gemquant.rockchip.options import RkllmOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gemquant.calibration.windows import TokenWindows
    from gemquant.cli.quantizer_options import QuantizerRequest
    from gemquant.convert.external.options import ToolSettings
    from gemquant.core.recipe import Recipe
    from gemquant.core.targets.toolkit import Toolkit, ToolkitVersion
    from gemquant.formats.checkpoint import Checkpoint
    from gemquant.models.chat import ChatTemplate
    from gemquant.rockchip.rkllm import RkllmJob
    from gemquant.runtimes.worker import Interpreter

CONTAINER = "rkllm"
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A job that has passed every check. interpreter: None where it is only prepared."""

    job: RkllmJob
    checkpoint: Checkpoint
    interpreter: Interpreter | None


def checked(request: QuantizerRequest, tool: ToolSettings, given: dict[str, Any]) -> Prepared:
    """Check everything that can be known before the first weight is read."""
    import torch

    from gemquant.calibration.prompts import calibration_prompts
    from gemquant.convert.estimate.candidate import weight_count
    from gemquant.convert.prepare import (
        calibration_dtype,
        calibration_text,
        chat_template,
        read_evaluation,
    )
    from gemquant.core.artifact import output_problems
    from gemquant.core.targets.toolkit import load_toolkit
    from gemquant.errors import refuse
    from gemquant.formats.checkpoint import open_checkpoint
    from gemquant.formats.source_model import model_name
    from gemquant.rockchip import options as rules
    from gemquant.rockchip import rkllm
    from gemquant.rockchip.calls import file_name, takes_prompts
    from gemquant.rockchip.smoothing import smooths

    torch.set_num_threads(request.threads)
    recipe, asked = request.recipe, request.quantizers[0]
    assert isinstance(asked, RkllmOptions)
    problems = ProblemCollector()
    npu = problems.attempt(lambda: rules.npu_of(request.target))
    problems.refuse()
    options = rules.resolved(asked, npu.value)
    problems.attempt(lambda: refuse(rules.option_problems(options, npu.value)))
    opened = problems.attempt(lambda: open_checkpoint(recipe.model, lora=recipe.lora))
    toolkit = load_toolkit(npu.value.toolkit)
    # An unknown dtype has been told; the others' rules are checked with the target's own.
    dtype = npu.value.dtype(options.quantized_dtype) or npu.value.dtype(npu.value.default_dtype)
    assert dtype is not None
    config = problems.attempt(lambda: opened.value.config)
    able = problems.attempt(
        lambda: toolkit.converting(npu.value.platform, config.value["model_type"], dtype.name)
    )
    python = problems.attempt(lambda: _interpreter(given, toolkit, able.value))
    release = problems.attempt(lambda: _release(given["toolkit_version"], toolkit, able, python))
    made = problems.attempt(
        lambda: rules.Conversion(npu.value, toolkit, release.value, dtype, options)
    )
    problems.attempt(lambda: refuse(rules.release_problems(made.value, config.value)))
    problems.attempt(lambda: refuse(rkllm.reading_problems(made.value, opened.value)))
    if not given["prepare_only"]:
        problems.attempt(
            lambda: refuse(
                rules.memory_problems(
                    toolkit, weight_count(config.value), host_bytes=tool.memory_bytes
                )
            )
        )
    template = problems.attempt(lambda: chat_template(recipe, opened.value))
    traced = options.gptq or smooths(dtype, options)
    windows = problems.attempt(
        lambda: calibration_text(recipe, opened.value, template.value) if traced else None
    )
    emulated = problems.attempt(
        lambda: read_evaluation(
            dataclasses.replace(recipe, eval_windows=options.emulate), opened.value, template.value
        )
    )
    simulated = problems.attempt(
        lambda: _simulated(options, recipe, opened.value, template.value, given)
    )
    takes_none = made.succeeded and not takes_prompts(made.value)
    prompts = problems.attempt(
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
    name = problems.attempt(lambda: file_name(model_name(recipe.model), made.value))
    out = problems.attempt(lambda: request.output or Path(name.value.removesuffix(".rkllm")))
    problems.attempt(
        lambda: refuse(output_problems(out.value, force=request.force, needed_bytes=0))
    )
    problems.refuse()
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
        template=template.value.source,
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
    template: ChatTemplate,
    given: dict[str, Any],
) -> Sequence[TokenWindows]:
    """Evaluation text for the toolkit's simulator."""
    from gemquant.convert.prepare import read_evaluation

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
    from gemquant.rockchip.toolkit import choose_toolkit

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
    from gemquant.rockchip.toolkit import release_of

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
