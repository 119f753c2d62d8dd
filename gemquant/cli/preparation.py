"""From a request to a job: open the model, choose the container, read the text, plan."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gemquant import pipeline
from gemquant.artifact import Artifact
from gemquant.calibration.windows import TokenWindows, calibration_windows, evaluation_windows
from gemquant.checkpoint import Checkpoint, open_checkpoint
from gemquant.cli.gathering import Gathering
from gemquant.cli.request import Request
from gemquant.errors import UsageError, refuse
from gemquant.gemma.chat import choose_template
from gemquant.numerics.native.gram import has_bfloat16_products
from gemquant.plan import Job, JobPlan, linear_weights, plan
from gemquant.plugins import exporter
from gemquant.progress import Progress
from gemquant.protocols import Quantizer
from gemquant.recipe import Recipe
from gemquant.scheme import Scheme, label


@dataclass(frozen=True)
class Prepared:
    """A job that has passed every check; nothing of the weights but headers has been read."""

    checkpoint: Checkpoint
    job: Job
    plan: JobPlan
    calibration: TokenWindows | None
    evaluation: Sequence[TokenWindows]

    def run(self, progress: Progress) -> Artifact:
        """Make the artifact."""
        recipe = self.job.recipe
        (artifact,) = pipeline.run(
            [self.job],
            self.checkpoint,
            calibration=self.calibration,
            evaluation=self.evaluation,
            device=recipe.device,
            compute_dtype=getattr(torch, recipe.dtype),
            calibration_dtype=getattr(torch, recipe.calib_dtype),
            progress=progress,
        )
        return artifact


def prepare(request: Request, progress: Progress) -> Prepared:
    """Check everything that can go wrong before the first weight is read; report all at once."""
    torch.set_num_threads(request.threads)
    progress.note(f"opening {request.recipe.model}")
    checkpoint = open_checkpoint(request.recipe.model, lora=request.recipe.lora)
    quantizer, gathering = request.quantizer, Gathering()
    gathering.attempt(lambda: require_device(request.recipe.device))
    gathering.attempt(lambda: refuse(quantizer.problems(linear_weights(checkpoint))))
    job = gathering.attempt(lambda: job_for(request, checkpoint))
    planned = gathering.attempt(lambda: plan([job.value], checkpoint)[0])
    template = gathering.attempt(lambda: chat_template(request.recipe, checkpoint))
    calibration = gathering.attempt(lambda: read_calibration(request, checkpoint, template.value))
    evaluation = gathering.attempt(
        lambda: read_evaluation(request.recipe, checkpoint, template.value)
    )
    gathering.refuse()
    warn_if_nothing_loads_it(request, job.value, checkpoint, progress)
    return Prepared(checkpoint, job.value, planned.value, calibration.value, evaluation.value)


def require_device(device: str) -> None:
    """Raise UsageError if this machine, or this torch, has no such device."""
    kind, _, number = device.partition(":")
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if int(number or 0) >= present[kind]:
        raise UsageError(
            f"--device {device}: not on this machine, or not in torch {torch.__version__}.",
            hint="Leave --device out to compute on the processor.",
        )


def calibration_dtype(recipe: Recipe) -> str:
    """Name the type that calibration windows are traced in: bfloat16 where that is fast.

    Gemma's own type; what is lost in it does not show in the statistics of thousands of tokens.
    """
    if recipe.calib_dtype != "auto":
        return recipe.calib_dtype
    on_gpu = recipe.device.startswith("cuda") and torch.cuda.is_bf16_supported()
    fast = on_gpu or (recipe.device == "cpu" and has_bfloat16_products())
    return "bfloat16" if fast else recipe.dtype


# ---------------------------------------------------------------- container and place


def job_for(request: Request, checkpoint: Checkpoint) -> Job:
    """Choose the container, by the generation of Gemma unless one was asked for, and the place."""
    recipe, quantizer = request.recipe, request.quantizer
    schemes = schemes_of(quantizer, linear_weights(checkpoint))
    name = recipe.exporter or request.target.default_exporter(
        checkpoint.config["model_type"], schemes
    )
    made = exporter(name, recipe.options)
    labels = list(filter(None, map(label, schemes)))
    if not schemes:
        labels = [str(made.container(checkpoint.config).float_dtype).removeprefix("torch.")]
    return Job(
        quantizer=quantizer,
        exporter=made,
        out=request.output or Path(default_output(checkpoint.ref, recipe.quantizer, labels)),
        recipe=dataclasses.replace(recipe, exporter=name, calib_dtype=calibration_dtype(recipe)),
        force=request.force,
    )


def warn_if_nothing_loads_it(
    request: Request, job: Job, checkpoint: Checkpoint, progress: Progress
) -> None:
    """Say so if a container that was asked for by name suits no runtime of the target."""
    schemes = schemes_of(job.quantizer, linear_weights(checkpoint))
    generation, name = checkpoint.config["model_type"], job.exporter.name
    if not request.target.runtimes(name, generation, schemes):
        progress.note(
            f"caution: no runtime of target {request.target.name} is known to load {name} with "
            f"these options for {generation}; see: gemquant targets {request.target.name}"
        )


def schemes_of(quantizer: Quantizer, linears: Mapping[str, tuple[int, int]]) -> Sequence[Scheme]:
    """Return the different schemes that a quantizer will use, in the order of the layers."""
    schemes = (quantizer.scheme_for(name, shape) for name, shape in linears.items())
    return list(dict.fromkeys(scheme for scheme in schemes if scheme is not None))


def default_output(ref: str, quantizer: str, labels: Sequence[str]) -> str:
    """Name a folder after the model and what is done to it.

    >>> default_output("google/gemma-2-2b@main", "awq", ["w4-g128"])
    'gemma-2-2b-awq-w4-g128'
    """
    model = ref.removeprefix("sample:").partition("@")[0].rstrip("/").rpartition("/")[2]
    parts = [re.sub(r"[^\w.-]+", "-", model.removesuffix(".gguf")), quantizer]
    return "-".join([*parts, *labels])


# ---------------------------------------------------------------- text


def chat_template(recipe: Recipe, checkpoint: Checkpoint) -> str:
    """Return the template asked for, by name or from a file, or else the checkpoint's own."""
    return choose_template(recipe.chat_template, checkpoint.chat_template())


def read_calibration(
    request: Request, checkpoint: Checkpoint, template: str
) -> TokenWindows | None:
    """Read the calibration text, if the quantizer needs any."""
    if not request.quantizer.needs:
        return None
    recipe = request.recipe
    return calibration_windows(
        checkpoint.tokenizer(),
        source=recipe.calib,
        samples=recipe.samples,
        seq_len=recipe.seq_len,
        seed=recipe.seed,
        bos=checkpoint.config["bos_token_id"],
        chat_template=template,
    )


def read_evaluation(
    recipe: Recipe, checkpoint: Checkpoint, template: str
) -> Sequence[TokenWindows]:
    """Read the evaluation text, if a certificate is wanted."""
    if recipe.eval_windows == 0:
        return ()
    return evaluation_windows(
        checkpoint.tokenizer(),
        slices=recipe.eval_slices,
        windows=recipe.eval_windows,
        seq_len=recipe.seq_len,
        seed=recipe.seed,
        bos=checkpoint.config["bos_token_id"],
        chat_template=template,
    )
