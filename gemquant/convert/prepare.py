"""From a request to jobs that passed every check: open the model, read the text, plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import torch

from gemquant.calibration.statistics import has_bfloat16_products
from gemquant.calibration.stream import carried_bytes
from gemquant.calibration.windows import (
    Packer,
    TokenWindows,
    calibration_windows,
    chat_template,
    evaluation_text,
)
from gemquant.convert import pipeline
from gemquant.convert.finalize import library_versions, tokens_without_row
from gemquant.convert.plan import Job, PlannedJob, linear_weights, plan
from gemquant.convert.plugins import exporter
from gemquant.convert.resume import ResumePolicy, resumable_layers, run_identity
from gemquant.core.artifact import MANIFEST_FILE, Artifact, read_manifest
from gemquant.core.options import problems_with, recorded_options
from gemquant.core.protocols import GridUse, Progress, Quantizer
from gemquant.core.recipe import Recipe
from gemquant.core.resources import require_device
from gemquant.core.scheme import Scheme, label
from gemquant.core.targets import Target
from gemquant.errors import Attempt, ProblemCollector, UsageError, refuse
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.formats.source_model import model_name
from gemquant.models.architecture import loading_kind
from gemquant.models.chat import ChatTemplate
from gemquant.models.structure import EMBEDDING
from gemquant.quantizers.qat import Survey, survey_grids


@dataclass(frozen=True)
class JobRequest:
    """One artifact to make.

    recipe: complete but for the exporter, which may depend on the model's generation, and for the
        quantizer's options. output: its folder; None for a name made from the model and the scheme,
        in ``within``. labelled: its label is one more folder, as with one of several GGUF types.
    """

    recipe: Recipe
    quantizer: Quantizer
    target: Target
    output: Path | None = None
    within: Path = Path()
    labelled: bool = False


@dataclass(frozen=True)
class ConversionRequest:
    """Artifacts to make from one model in one pass.

    jobs: their recipes agree in all but quantizer, options, target and exporter. restart: discard
        an interrupted run. only_missing: leave out what stands already, made by the same recipe.
    """

    jobs: Sequence[JobRequest]
    threads: int
    force: bool = False
    restart: bool = False
    only_missing: bool = False


@dataclass(frozen=True)
class PreparedConversion:
    """Planned jobs and all that they read; of the weights only headers have been read.

    finished: artifacts that stand already. With nothing else to make, nothing is planned.
    """

    planned: Sequence[PlannedJob]
    checkpoint: Checkpoint
    calibration: TokenWindows | None
    evaluation: Sequence[TokenWindows]
    resume: ResumePolicy
    finished: Sequence[Artifact] = ()

    @classmethod
    def of(
        cls,
        planned: Sequence[PlannedJob],
        checkpoint: Checkpoint,
        calibration: TokenWindows | None,
        evaluation: Sequence[TokenWindows],
        *,
        restart: bool,
        finished: Sequence[Artifact] = (),
    ) -> PreparedConversion:
        """Identify the pass, so that it resumes an interrupted one of the same jobs alone."""
        jobs = [each.job for each in planned]
        identity = run_identity(jobs, checkpoint, calibration, evaluation)
        policy = ResumePolicy(identity, restart=restart)
        return cls(planned, checkpoint, calibration, evaluation, policy, finished)

    @property
    def resumable_layers(self) -> int:
        """How many layers an interrupted run of the same has finished."""
        return resumable_layers([each.job.out for each in self.planned], self.resume)

    @property
    def evaluated_bytes(self) -> int:
        """Memory of what one stream of the evaluation windows holds from layer to layer."""
        tokens = sum(windows.ids.numel() for windows in self.evaluation)
        return self._stream_bytes(tokens, self.planned[0].job.recipe.dtype)

    @property
    def carried_bytes(self) -> int:
        """Memory of all that the streams of windows hold from layer to layer, at most."""
        held = self.evaluated_bytes * (1 + len(self.planned))
        if self.calibration is not None:
            dtype = self.planned[0].job.recipe.calib_dtype
            held += self._stream_bytes(self.calibration.ids.numel(), dtype)
        return held

    def _stream_bytes(self, tokens: int, dtype: str) -> int:
        return carried_bytes(self.checkpoint.config, tokens, getattr(torch, dtype))

    def run(self, progress: Progress) -> Sequence[Artifact]:
        """Make the artifacts, or the rest of them where an interrupted run made a part."""
        if not self.planned:
            return self.finished
        recipe = self.planned[0].job.recipe
        made = pipeline.run(
            self.planned,
            self.checkpoint,
            calibration=self.calibration,
            evaluation=self.evaluation,
            device=recipe.device,
            compute_dtype=getattr(torch, recipe.dtype),
            calibration_dtype=getattr(torch, recipe.calib_dtype),
            progress=progress,
            resume=self.resume,
        )
        return [*self.finished, *made]


class OpenedModel(ProblemCollector):
    """A recipe's model and the texts that it names, with every problem found on the way."""

    def __init__(self, recipe: Recipe, *, threads: int, progress: Progress) -> None:
        super().__init__()
        torch.set_num_threads(threads)
        self.recipe, self._progress = recipe, progress
        self.checkpoint = open_checkpoint(recipe.model, lora=recipe.lora)
        self.attempt(lambda: require_device(recipe.device))
        longest = self.checkpoint.config["max_position_embeddings"]
        if recipe.seq_len > longest:
            self.append(
                UsageError(
                    f"--seq-len {recipe.seq_len}: the model's context is {longest} tokens.",
                    hint=f"--seq-len {longest} at most",
                )
            )

    @cached_property
    def template(self) -> Attempt[ChatTemplate]:
        """The chat template, for text and artifact."""
        return self.attempt(lambda: chat_template(self.recipe, self.checkpoint))

    @cached_property
    def grids(self) -> Survey:
        """Looks for matrices on a 4-bit grid, once."""
        return cache(partial(survey_grids, self.checkpoint, self._progress))

    def calibration(self) -> Attempt[TokenWindows]:
        """The calibration text."""
        self._progress.start("reading the calibration text", 0)
        recipe = self.recipe
        packer = self.attempt(lambda: Packer.of(recipe, self.checkpoint, self.template.value))
        return self.attempt(lambda: calibration_windows(packer.value, recipe.calib, recipe.samples))

    def evaluation(self) -> Attempt[Sequence[TokenWindows]]:
        """The evaluation text; empty without a certificate."""
        if self.recipe.eval_windows:
            self._progress.start("reading the evaluation text", 0)
        return self.attempt(
            lambda: evaluation_text(self.recipe, self.checkpoint, self.template.value)
        )


def prepare(request: ConversionRequest, progress: Progress) -> PreparedConversion:
    """Check everything that can go wrong before the first weight is read; raise all at once."""
    shared = request.jobs[0].recipe
    model = OpenedModel(shared, threads=request.threads, progress=progress)
    checkpoint = model.checkpoint
    quantizers = [
        model.attempt(partial(_quantizer_for, each.quantizer, checkpoint, model.grids))
        for each in request.jobs
    ]
    requested = list(zip(request.jobs, quantizers, strict=True))
    jobs = [
        model.attempt(partial(_job, each, quantizer, checkpoint, force=request.force))
        for each, quantizer in requested
    ]
    finished: list[Artifact] = []
    if request.only_missing and not request.force:
        found = [
            model.attempt(partial(standing, job.value.out, job.value.recipe, checkpoint))
            for job in jobs
            if job.succeeded
        ]
        finished = [each.value for each in found if each.succeeded and each.value is not None]
        folders = {each.path for each in finished}
        jobs = [job for job in jobs if not (job.succeeded and job.value.out in folders)]
    planned = model.attempt(lambda: plan([job.value for job in jobs], checkpoint) if jobs else [])
    calibrated = any(not job.succeeded or job.value.quantizer.needs for job in jobs)
    calibration = model.calibration() if calibrated else None
    evaluation = model.evaluation() if jobs else Attempt(())
    model.refuse()
    uses = [job.value.quantizer.grid_use for job in jobs]
    if again := _quantized_again(checkpoint, uses):
        progress.note(
            f"caution: {shared.model} is quantized already ({', '.join(again)}); what was lost "
            "then stays lost."
        )
    if (beyond := tokens_without_row(checkpoint)) is not None:
        progress.note(f"{beyond}.")
    for note in dict.fromkeys(note for job in jobs for note in job.value.quantizer.notes):
        progress.note(note)
    targets = {id(quantizer.value): each.target for each, quantizer in requested}
    for made in planned.value:
        _warn_if_nothing_loads_it(targets[id(made.job.quantizer)], made, progress)
    exporters = [each.job.exporter for each in planned.value if not each.header.towers]
    note_towers(
        {each.name: each.without_towers for each in exporters}, checkpoint, shared, progress
    )
    return PreparedConversion.of(
        planned.value,
        checkpoint,
        None if calibration is None else calibration.value,
        evaluation.value,
        restart=request.restart,
        finished=finished,
    )


def note_towers(
    containers: Mapping[str, str], checkpoint: Checkpoint, recipe: Recipe, progress: Progress
) -> None:
    """Say which containers leave the towers out unasked, each with its reason."""
    if checkpoint.towers is None or recipe.text_only:
        return
    for container, reason in containers.items():
        progress.note(
            f"{container}: the towers are left out, for {reason}; the text model is converted."
        )


def _quantizer_for(quantizer: Quantizer, checkpoint: Checkpoint, survey: Survey) -> Quantizer:
    """Decide what depends on the model, and then on whether it lies on a 4-bit grid."""
    return quantizer.for_model(checkpoint.config).with_grids(survey)


def _quantized_again(checkpoint: Checkpoint, uses: Sequence[GridUse]) -> list[str]:
    """Formats of matrices that are quantized already and not carried over to every artifact."""
    carried = [use.carried for use in uses]
    packed = checkpoint.packed.items()
    return sorted({kind for name, kind in packed if not all(name in each for each in carried)})


def standing(out: Path, recipe: Recipe, checkpoint: Checkpoint) -> Artifact | None:
    """The artifact at ``out``, if the same recipe made it from the same weights."""
    if not (out / MANIFEST_FILE).is_file():
        return None
    manifest = read_manifest(out)
    same = (
        manifest.recipe == recipe.to_dict()
        and library_versions().items() <= manifest.libraries.items()
        and manifest.source.revision == checkpoint.revision
        and manifest.source.files == checkpoint.source_digest()
    )
    return Artifact.open(out) if same else None


def _job(
    request: JobRequest, attempt: Attempt[Quantizer], checkpoint: Checkpoint, *, force: bool
) -> Job:
    """Choose the container, by the generation of Gemma unless one was named, and the folder."""
    quantizer, linears = attempt.value, linear_weights(checkpoint)
    quantized = [name for name, shape in linears.items() if quantizer.scheme_for(name, shape)]
    generation = loading_kind(checkpoint.config, quantized)
    options, schemes = recorded_options(quantizer), schemes_of(quantizer, checkpoint)
    problems = ProblemCollector()
    chosen = problems.attempt(
        lambda: request.recipe.exporter or request.target.default_exporter(generation, schemes)
    )
    if not chosen.succeeded:  # such a job is not planned, so its other problems are found here
        refuse([*problems_with(quantizer), *quantizer.problems(linears), *problems])
    container = exporter(chosen.value, options)
    labels = [quantizer.label] if quantizer.label else list(filter(None, map(label, schemes)))
    if not schemes:
        float_dtype = container.container(checkpoint.config).float_dtype
        labels = [str(float_dtype).removeprefix("torch.")]
    recipe = dataclasses.replace(
        request.recipe,
        options=options,
        exporter=chosen.value,
        calib_dtype=calibration_dtype(request.recipe),
    )
    name = default_output(checkpoint.ref, recipe.quantizer, labels)
    out = request.output or request.within / name
    if request.labelled:
        out /= quantizer.label
    return Job(quantizer, container, out, recipe, force)


def schemes_of(quantizer: Quantizer, checkpoint: Checkpoint) -> Sequence[Scheme]:
    """The different schemes that a quantizer will use, in the order of the layers."""
    rows, columns = checkpoint.shape(EMBEDDING)
    matrices = {**linear_weights(checkpoint), EMBEDDING: (rows, columns)}
    schemes = (quantizer.scheme_for(name, shape) for name, shape in matrices.items())
    return list(dict.fromkeys(scheme for scheme in schemes if scheme is not None))


def _warn_if_nothing_loads_it(target: Target, planned: PlannedJob, progress: Progress) -> None:
    """Warn if a container that was named suits no runtime of the target."""
    name = planned.job.exporter.name
    generation = loading_kind(planned.header.config, planned.quantized)
    if not target.runtimes(name, generation, planned.schemes):
        progress.note(
            f"caution: no runtime of target {target.name} is known to load {name} with these "
            f"options for {generation}; see: gemquant targets {target.name}"
        )


def default_output(ref: str, quantizer: str, labels: Sequence[str]) -> str:
    """Name a folder after the model and what is done to it.

    >>> default_output("google/gemma-2-2b@main", "awq", ["w4-g128"])
    'gemma-2-2b-awq-w4-g128'
    """
    return "-".join([model_name(ref), quantizer, *labels])


def calibration_dtype(recipe: Recipe) -> str:
    """Name the type that calibration windows are traced in: bfloat16 where that is fast.

    Gemma's own type; what is lost in it does not show in the statistics of thousands of tokens.
    """
    if recipe.calib_dtype != "auto":
        return recipe.calib_dtype
    on_gpu = recipe.device.startswith("cuda") and torch.cuda.is_bf16_supported()
    fast = on_gpu or (recipe.device == "cpu" and has_bfloat16_products())
    return "bfloat16" if fast else recipe.dtype
