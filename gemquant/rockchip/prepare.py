"""Check everything that can go wrong in an RKLLM conversion before the first weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemquant.calibration.prompts import calibration_prompts
from gemquant.calibration.windows import Packer, TokenWindows, evaluation_text
from gemquant.convert.candidates import weight_count
from gemquant.convert.prepare import OpenedModel, calibration_dtype, note_towers, standing
from gemquant.core.artifact import output_problems
from gemquant.core.protocols import Progress
from gemquant.core.recipe import Recipe
from gemquant.core.targets import Target, Toolkit, ToolkitVersion, load_toolkit
from gemquant.errors import Attempt, GemquantError, ProblemCollector, UsageError, refuse
from gemquant.formats.checkpoint import Checkpoint
from gemquant.formats.source_model import model_name
from gemquant.models.architecture import loading_kind
from gemquant.rockchip.artifact import PREPARED, prepared_record
from gemquant.rockchip.board_rkllm import CONTAINER, SUFFIX
from gemquant.rockchip.calls import file_name, takes_prompts
from gemquant.rockchip.options import (
    Conversion,
    RkllmOptions,
    memory_problems,
    npu_of,
    option_problems,
    release_problems,
    resolved,
)
from gemquant.rockchip.rkllm import RkllmJob, needed_bytes, reading_problems
from gemquant.rockchip.smoothing import smooths
from gemquant.rockchip.toolkit import choose_toolkit, release_of
from gemquant.runtimes.worker import Interpreter


@dataclass(frozen=True)
class RkllmRequest:
    """One model to convert. recipe: without options and container. within: the folder of a default
    output. only_missing: take what stands already.

    toolkit: the Python that has it, or ``auto``. toolkit_version: None for that of the toolkit, or
    the newest suitable one. memory_bytes: limit of the toolkit.
    """

    recipe: Recipe
    options: RkllmOptions
    target: Target
    output: Path | None
    threads: int
    force: bool
    prepare_only: bool
    toolkit: str
    toolkit_version: str | None
    memory_bytes: int
    within: Path = Path()
    only_missing: bool = False


@dataclass(frozen=True)
class PreparedRkllm:
    """A job that passed every check.

    interpreter: None if the toolkit's input is the result. finished: whether that, or the artifact,
    stands already.
    """

    job: RkllmJob
    checkpoint: Checkpoint
    interpreter: Interpreter | None
    finished: bool = False


def prepare(request: RkllmRequest, progress: Progress) -> PreparedRkllm:
    """Open the model, choose a release, read all text; raise all problems at once."""
    npu = npu_of(request.target)
    options = resolved(request.options, npu)
    problems = ProblemCollector(option_problems(options, npu))
    opened = problems.attempt(
        lambda: OpenedModel(request.recipe, threads=request.threads, progress=progress)
    )
    if not opened.succeeded:
        problems.refuse()
    model = opened.value
    model[:0] = problems
    recipe, checkpoint = request.recipe, model.checkpoint
    toolkit = load_toolkit(npu.toolkit)
    # With an unknown dtype the other rules are checked for the target's default.
    dtype = npu.dtype(options.quantized_dtype) or npu.dtype(npu.default_dtype)
    assert dtype is not None
    config = model.attempt(lambda: checkpoint.config)
    converting = model.attempt(
        lambda: toolkit.converting(npu.platform, loading_kind(config.value), dtype.name)
    )
    interpreter = model.attempt(
        lambda: (
            None
            if request.prepare_only
            else choose_toolkit(request.toolkit, toolkit, converting.value)
        )
    )
    release = model.attempt(
        lambda: _release(request.toolkit_version, toolkit, converting, interpreter)
    )
    conversion = model.attempt(lambda: Conversion(npu, toolkit, release.value, dtype, options))
    model.attempt(lambda: refuse(release_problems(conversion.value, config.value)))
    model.attempt(lambda: refuse(reading_problems(conversion.value, checkpoint)))
    if not request.prepare_only:
        limit = request.memory_bytes
        model.attempt(
            lambda: refuse(memory_problems(toolkit, weight_count(config.value), host_bytes=limit))
        )
    elif options.simulate:
        model.append(
            UsageError(
                f"--simulate {options.simulate}: nothing is run with --prepare-only.",
                hint="Omit one of them.",
            )
        )
    traced = options.gptq or smooths(dtype, options)
    windows = model.calibration() if traced else None
    emulated = model.attempt(lambda: _slices(model, options.emulate))
    simulated = model.attempt(lambda: _slices(model, options.simulate))
    without_prompts = conversion.succeeded and not takes_prompts(conversion.value)
    prompts = model.attempt(lambda: [] if without_prompts else _prompts(model))
    name = model.attempt(lambda: file_name(model_name(recipe.model), conversion.value))
    out = model.attempt(lambda: request.output or request.within / name.value.removesuffix(SUFFIX))
    full = dataclasses.replace(
        recipe,
        options=dataclasses.asdict(options),
        exporter=CONTAINER,
        eval_windows=0,
        calib_dtype=calibration_dtype(recipe) if traced else recipe.calib_dtype,
    )
    found = model.attempt(lambda: _stands(out.value, full, checkpoint))
    finished = request.only_missing and not request.force and found.succeeded and found.value
    if not finished:
        model.attempt(
            lambda: refuse(output_problems(out.value, force=request.force, needed_bytes=0))
        )
    model.refuse()
    note_towers({CONTAINER: "rkllm-toolkit loads text models"}, checkpoint, recipe, progress)
    job = RkllmJob(
        recipe=full,
        conversion=conversion.value,
        out=out.value,
        file=name.value,
        force=request.force,
        template=model.template.value.source,
        prompts=prompts.value,
        windows=None if windows is None else windows.value,
        simulated=simulated.value,
        emulated=emulated.value,
    )
    if not finished:
        space = needed_bytes(job, checkpoint)
        refuse(output_problems(job.out, force=request.force, needed_bytes=space))
    return PreparedRkllm(job, checkpoint, interpreter.value, finished)


def _stands(out: Path, recipe: Recipe, checkpoint: Checkpoint) -> bool:
    """Whether the same recipe has made the artifact, or the toolkit's input, at ``out``."""
    if (out / PREPARED).is_file():
        return prepared_record(out).manifest.recipe == recipe.to_dict()
    return standing(out, recipe, checkpoint) is not None


def _slices(model: OpenedModel, windows: int) -> Sequence[TokenWindows]:
    """Evaluation slices of so many windows, every position measured; empty for 0."""
    recipe = dataclasses.replace(
        model.recipe, eval_windows=windows, eval_positions=0, eval_seq_len=model.recipe.seq_len
    )
    return evaluation_text(recipe, model.checkpoint, model.template.value)


def _prompts(model: OpenedModel) -> Sequence[Mapping[str, str]]:
    packer = Packer.of(model.recipe, model.checkpoint, model.template.value)
    return calibration_prompts(packer, model.recipe.calib, model.recipe.samples)


def _release(
    version: str | None,
    toolkit: Toolkit,
    converting: Attempt[tuple[ToolkitVersion, ...]],
    interpreter: Attempt[Interpreter | None],
) -> ToolkitVersion:
    """The release to call: the named one, that of the interpreter, or the newest suitable one."""
    named = toolkit.version(version) if version else None
    if version and named is None:
        known = ", ".join(each.version for each in toolkit.versions)
        raise UsageError(f"--toolkit-version {version}: known are {known}.")
    python = interpreter.outcome
    if isinstance(python, GemquantError):
        if named is None:
            raise python
        return named  # so that its rules are checked too
    if python is None:
        return named or (converting.value or toolkit.versions)[-1]
    release = release_of(python, toolkit)
    if named not in (None, release):
        raise UsageError(
            f"--toolkit-version {version}: {python.path} has {release.version}.",
            hint="Omit --toolkit-version, or name another --toolkit.",
        )
    return release
