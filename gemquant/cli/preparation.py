"""From a request to a job: open the model, choose the container, read the text, plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gemquant.calibration.windows import TokenWindows, calibration_windows, evaluation_windows
from gemquant.cli.request import Request
from gemquant.convert import pipeline
from gemquant.convert.plan import Job, JobPlan, linear_weights, plan
from gemquant.convert.plugins import exporter
from gemquant.convert.resume import Resumption, layers_kept
from gemquant.convert.run_identity import run_identity
from gemquant.core.artifact import Artifact
from gemquant.core.family import Family, Member
from gemquant.core.progress import Progress
from gemquant.core.protocols import Quantizer
from gemquant.core.recipe import Recipe
from gemquant.core.resources import require_device
from gemquant.core.scheme import Scheme, label
from gemquant.errors import ProblemCollector, refuse
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.formats.source_model import model_name
from gemquant.models.architecture import architecture_of
from gemquant.models.chat import ChatTemplate, choose_template
from gemquant.models.structure import EMBEDDING
from gemquant.numerics.native.gram import has_bfloat16_products


@dataclass(frozen=True)
class Prepared:
    """Jobs that have passed every check; nothing of the weights but headers has been read.

    restart: an interrupted run of the same is forgotten.
    """

    checkpoint: Checkpoint
    plans: Sequence[JobPlan]
    calibration: TokenWindows | None
    evaluation: Sequence[TokenWindows]
    restart: bool = False

    def tell_of_interrupted(self, progress: Progress) -> None:
        """Say how far an interrupted run of the same has come."""
        layers = layers_kept([each.job.out for each in self.plans], self._resumption)
        if layers:
            progress.note(
                f"an interrupted run is kept; layers 1 to {layers} of it need not be done again"
            )

    @property
    def _resumption(self) -> Resumption:
        jobs = [each.job for each in self.plans]
        identity = run_identity(jobs, self.checkpoint, self.calibration, self.evaluation)
        return Resumption(identity, restart=self.restart)

    def run(self, progress: Progress) -> Sequence[Artifact]:
        """Make the artifacts, or the rest of them if an interrupted run has made a part."""
        jobs = [each.job for each in self.plans]
        recipe = jobs[0].recipe
        return pipeline.run(
            jobs,
            self.checkpoint,
            calibration=self.calibration,
            evaluation=self.evaluation,
            device=recipe.device,
            compute_dtype=getattr(torch, recipe.dtype),
            calibration_dtype=getattr(torch, recipe.calib_dtype),
            progress=progress,
            resumption=self._resumption,
        )


def prepare(request: Request, progress: Progress) -> Prepared:
    """Check everything that can go wrong before the first weight is read; report all at once."""
    torch.set_num_threads(request.threads)
    progress.note(f"opening {request.recipe.model}")
    checkpoint = open_checkpoint(request.recipe.model, lora=request.recipe.lora)
    if checkpoint.packed_formats:
        progress.note(
            f"caution: {request.recipe.model} was quantized before "
            f"({', '.join(checkpoint.packed_formats)}); what that lost stays lost."
        )
    problems = ProblemCollector()
    problems.attempt(lambda: require_device(request.recipe.device))
    problems.attempt(lambda: refuse(request.quantizer.problems(linear_weights(checkpoint))))
    members = problems.attempt(lambda: members_of(request, checkpoint))
    jobs = problems.attempt(lambda: jobs_for(request, members.value, checkpoint))
    planned = problems.attempt(lambda: plan(jobs.value, checkpoint))
    template = problems.attempt(lambda: chat_template(request.recipe, checkpoint))
    calibration = problems.attempt(lambda: read_calibration(request, checkpoint, template.value))
    evaluation = problems.attempt(
        lambda: read_evaluation(request.recipe, checkpoint, template.value)
    )
    problems.refuse()
    for note in dict.fromkeys(note for member in members.value for note in member.notes):
        progress.note(note)
    for job in jobs.value:
        warn_if_nothing_loads_it(request, job, checkpoint, progress)
    return Prepared(checkpoint, planned.value, calibration.value, evaluation.value, request.restart)


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


def members_of(request: Request, checkpoint: Checkpoint) -> Sequence[Member]:
    """Return what a command asks for: one artifact, unless its quantizer stands for several."""
    quantizer = request.quantizer
    if isinstance(quantizer, Family):
        refuse(quantizer.problems(linear_weights(checkpoint)))
        return quantizer.members(checkpoint.config)
    return [Member("", quantizer, request.recipe.options)]


def jobs_for(request: Request, members: Sequence[Member], checkpoint: Checkpoint) -> Sequence[Job]:
    """Make a job of each member; several of them have a folder each inside the one asked for."""
    jobs = []
    for member in members:
        job = job_for(request, member, checkpoint)
        if request.output is not None and len(members) > 1:
            job = dataclasses.replace(job, out=request.output / member.label)
        jobs.append(job)
    return jobs


def job_for(request: Request, member: Member, checkpoint: Checkpoint) -> Job:
    """Choose the container, by the generation of Gemma unless one was asked for, and the place."""
    quantizer = member.quantizer
    recipe = dataclasses.replace(request.recipe, options=member.options)
    schemes = schemes_of(quantizer, checkpoint)
    name = recipe.exporter or request.target.default_exporter(
        checkpoint.config["model_type"], schemes
    )
    made = exporter(name, recipe.options)
    labels = [member.label] if member.label else list(filter(None, map(label, schemes)))
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
    schemes = schemes_of(job.quantizer, checkpoint)
    generation, name = checkpoint.config["model_type"], job.exporter.name
    if not request.target.runtimes(name, generation, schemes):
        progress.note(
            f"caution: no runtime of target {request.target.name} is known to load {name} with "
            f"these options for {generation}; see: gemquant targets {request.target.name}"
        )


def schemes_of(quantizer: Quantizer, checkpoint: Checkpoint) -> Sequence[Scheme]:
    """Return the different schemes that a quantizer will use, in the order of the layers."""
    rows, columns = checkpoint.shape(EMBEDDING)
    matrices = {**linear_weights(checkpoint), EMBEDDING: (rows, columns)}
    schemes = (quantizer.scheme_for(name, shape) for name, shape in matrices.items())
    return list(dict.fromkeys(scheme for scheme in schemes if scheme is not None))


def default_output(ref: str, quantizer: str, labels: Sequence[str]) -> str:
    """Name a folder after the model and what is done to it.

    >>> default_output("google/gemma-2-2b@main", "awq", ["w4-g128"])
    'gemma-2-2b-awq-w4-g128'
    """
    return "-".join([model_name(ref), quantizer, *labels])


# ---------------------------------------------------------------- text


def chat_template(recipe: Recipe, checkpoint: Checkpoint) -> ChatTemplate:
    """Return the template asked for, by name or from a file, or else the checkpoint's own."""
    source = choose_template(
        recipe.chat_template,
        checkpoint.chat_template(),
        architecture_of(checkpoint.config).chat_template,
    )
    return ChatTemplate(source, checkpoint.special_tokens())


def read_calibration(
    request: Request, checkpoint: Checkpoint, template: ChatTemplate
) -> TokenWindows | None:
    """Read the calibration text, if the quantizer needs any."""
    if not request.quantizer.needs:
        return None
    return calibration_text(request.recipe, checkpoint, template)


def calibration_text(
    recipe: Recipe, checkpoint: Checkpoint, template: ChatTemplate
) -> TokenWindows:
    """Read the calibration text and cut it into windows."""
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
    recipe: Recipe, checkpoint: Checkpoint, template: ChatTemplate
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
