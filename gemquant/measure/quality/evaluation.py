"""Evaluate finished artifacts: the request, the text, the run, and the document."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path

import torch

import gemquant
from gemquant.calibration.suites import SuiteText
from gemquant.calibration.text import VERSION
from gemquant.calibration.windows import (
    Packer,
    TokenWindows,
    chat_template,
    embedded_texts,
    evaluation_text,
    stream_digest,
)
from gemquant.core.artifact import Artifact
from gemquant.core.artifact.evaluation import (
    ArtifactEvaluation,
    EvaluationDocument,
    LevelEvaluation,
    OriginalRecord,
    SliceEvaluation,
    SuiteRecord,
)
from gemquant.core.artifact.finalize import content_digest
from gemquant.core.artifact.manifest import scheme_label
from gemquant.core.protocols import Progress, Weights
from gemquant.core.recipe import DEFAULT_EVAL_WINDOWS, DEFAULT_SEQ_LEN, Recipe
from gemquant.core.resources import require_device
from gemquant.errors import GemquantError, UsageError, refuse
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.measure.bench.machine import machine
from gemquant.measure.quality.measure import Subject, measure
from gemquant.measure.quality.native import NativeRuntime
from gemquant.measure.quality.referees import Referee, vocabulary_problems
from gemquant.models.architecture import architecture_of
from gemquant.numerics.bootstrap import RESAMPLES
from gemquant.numerics.t_distribution import quantile

MACHINE = ("seed", "device", "dtype")
TEXT = ("eval_windows", "eval_positions", "eval_slices", "seq_len")
SHARED = ("model", "lora", "chat_template", *MACHINE)
"""Settings in which the artifacts of one run must agree; those of the text too without a suite."""

RECIPE = "recipe"
"""Name of the suite that an artifact's own recipe describes."""
PROMPT = "The capital of France is"


@dataclass(frozen=True)
class EvaluationRequest:
    """What to measure on finished artifacts; None leaves a setting to their own recipe.

    against: the original. suite: reduced to the slices, windows and length that were asked for;
    every position of it is measured, unless a number of them was asked for.
    precision: half of KL's interval over its mean, of every slice of every artifact; windows are
    added until it is reached, or the text ends. native: also run each artifact in its runtime.
    runtime: the one to take, where several load it.
    by_layer: also each layer's own error.
    """

    against: str | None = None
    suite: SuiteText | None = None
    eval_windows: int | None = None
    eval_positions: int | None = None
    eval_slices: tuple[str, ...] | None = None
    seq_len: int | None = None
    seed: int | None = None
    device: str | None = None
    dtype: str | None = None
    precision: float | None = None
    native: bool = True
    runtime: str | None = None
    by_layer: bool = False

    def problems(self) -> list[GemquantError]:
        """What is wrong with the precision."""
        if self.precision is None or 0 < self.precision < 1:
            return []
        return [UsageError(f"--precision {self.precision}: must be between 0 and 1.")]

    def recipe(self, artifacts: Sequence[Artifact]) -> Recipe:
        """Return the artifacts' recipe with this request's settings in place of its own.

        UsageError for every setting in which their recipes differ and that the request leaves open.
        """
        if not artifacts:
            raise UsageError("No artifact could be opened.")
        values = {
            name: getattr(self, name)
            for name in (*MACHINE, *TEXT)
            if getattr(self, name) is not None
        }
        if self.seq_len is not None:
            values["eval_seq_len"] = self.seq_len
        if self.against is not None:
            values["model"] = self.against
        recipes = list(map(_pinned_recipe, artifacts))
        needed = SHARED if self.suite is not None else (*SHARED, *TEXT)
        refuse(
            _differing(name, artifacts, [getattr(recipe, name) for recipe in recipes])
            for name in needed
            if name not in values
            and any(getattr(each, name) != getattr(recipes[0], name) for each in recipes)
        )
        return replace(recipes[0], **values)


def _differing(name: str, artifacts: Sequence[Artifact], values: Sequence[object]) -> UsageError:
    each = ", ".join(
        f"{artifact.path} has {value}" for artifact, value in zip(artifacts, values, strict=True)
    )
    hint = "Measure them one by one."
    if name == "model":
        hint = "Name one original for all: --against MODEL."
    elif name in TEXT:
        hint = f"Use --suite default, or give --{name.replace('_', '-')}."
    elif name in MACHINE:
        hint = f"Give --{name}."
    return UsageError(f"{name}: {each}; artifacts of one run share it.", hint=hint)


def _pinned_recipe(artifact: Artifact) -> Recipe:
    """Return an artifact's recipe for its evaluation, its model pinned to what was read."""
    source, recorded = artifact.manifest.source, artifact.manifest.recipe
    # Certificates once were of windows as long as calibration's, and of every position in them.
    recipe = Recipe.from_dict(
        {"eval_seq_len": recorded.get("seq_len", DEFAULT_SEQ_LEN), "eval_positions": 0, **recorded}
    )
    tokens = recipe.evaluation_tokens
    recipe = replace(recipe, seq_len=tokens, eval_seq_len=tokens)
    if source.revision is not None:
        model = f"{source.ref.partition('@')[0]}@{source.revision}"
        recipe = replace(recipe, model=model)
    if recipe.eval_windows == 0:
        recipe = replace(recipe, eval_windows=DEFAULT_EVAL_WINDOWS)
    return recipe


def name_problems(
    artifacts: Sequence[Artifact], referees: Sequence[Referee] = ()
) -> list[GemquantError]:
    """Artifacts of one name, which a document could not tell apart."""
    paths: dict[str, list[str]] = {}
    for artifact in artifacts:
        paths.setdefault(artifact_name(artifact), []).append(str(artifact.path))
    for referee in referees:
        paths.setdefault(referee.name, []).append(str(referee.path))
    return [
        UsageError(
            f"{', '.join(same)}: one name, {name}, for several artifacts.",
            hint="Rename a folder, or measure them one by one.",
        )
        for name, same in paths.items()
        if len(same) > 1
    ]


# ---------------------------------------------------------------- the run


@dataclass(frozen=True)
class Evaluation:
    """Artifacts and their original, opened, with the windows to measure on.

    referees: artifacts that others made, measured alike.
    """

    artifacts: Sequence[Artifact]
    request: EvaluationRequest
    recipe: Recipe
    original: Checkpoint
    slices: Sequence[TokenWindows]
    referees: Sequence[Referee] = ()

    @classmethod
    def open(
        cls,
        artifacts: Sequence[Artifact],
        request: EvaluationRequest,
        recipe: Recipe,
        threads: int,
        progress: Progress,
        referees: Sequence[Referee] = (),
    ) -> Evaluation:
        """Open the original and read the text: the suite's, or that of the artifacts' recipe.

        Notes every artifact that was made from other weight files than the original's, and every
        referee that names another base; UnsupportedError for one with another vocabulary.
        UsageError for an unknown suite or slice, or an empty one; CalibrationError for text that
        cannot be used or is too short.
        """
        require_device(recipe.device)
        torch.set_num_threads(threads)
        progress.start(f"opening {recipe.model}", 0)
        original = open_checkpoint(recipe.model, lora=recipe.lora)
        if original.prompts and request.precision is not None:
            raise UsageError(
                "--precision is of KL divergence, of which an embedding model has none.",
                hint="Give more text: --eval-windows 16",
            )
        slices = _windows(request, recipe, original)
        hashes = set(original.source_digest().values())
        for artifact in artifacts:
            if set(artifact.manifest.source.files.values()) != hashes:
                progress.note(
                    f"caution: {artifact.path} was made from other weight files than those of "
                    f"{original.ref}; the figures include the difference of the two."
                )
        tokens = original.tokenizer().get_vocab() if referees else {}
        refuse(p for each in referees for p in vocabulary_problems(each, tokens))
        for each in referees:
            if caution := each.caution(original.provenance.base_model):
                progress.note(f"caution: {caution}.")
        return cls(artifacts, request, recipe, original, slices, referees)

    @property
    def suite(self) -> SuiteRecord:
        """The text, for the record."""
        suite = self.request.suite
        return SuiteRecord(
            name=RECIPE if suite is None else suite.name,
            version=VERSION if suite is None else suite.version,
            token_stream=stream_digest([windows.ids for windows in self.slices]),
        )

    def measure(
        self, open_weights: Callable[[Artifact], Weights], progress: Progress
    ) -> EvaluationDocument:
        """Measure here: artifacts read back, and in their runtimes where the request says so."""
        subjects = [
            Subject(
                artifact_name(artifact),
                open_weights(artifact),
                self._loading(artifact.path, artifact.manifest.container, progress),
            )
            for artifact in self.artifacts
        ]
        subjects += [
            Subject(
                each.name,
                each.weights,
                self._loading(each.path, each.container, progress),
                unread=each.unread,
            )
            for each in self.referees
        ]
        return self.run(subjects, machine=machine().fingerprint, progress=progress)

    def run(
        self, subjects: Sequence[Subject], *, machine: str, progress: Progress
    ) -> EvaluationDocument:
        """Measure. machine: fingerprint of what computes natively.

        subjects: one per artifact, then one per referee.
        """
        recipe, evaluation = self.recipe, self
        measured: list[tuple[LevelEvaluation, ...]] = []
        if self.request.precision is not None:
            evaluation, measured = self._narrowed(subjects, progress, self.request.precision)
        by_layer = self.request.by_layer
        if not measured or by_layer or any(each.load is not None for each in subjects):
            measured = _measured(evaluation, subjects, progress, by_layer=by_layer)
        return EvaluationDocument(
            gemquant=gemquant.__version__,
            suite=evaluation.suite,
            original=original_record(self.original),
            settings={
                "dtype": recipe.dtype,
                "device": recipe.device,
                "seed": recipe.seed,
                "resamples": RESAMPLES,
            },
            machine=machine,
            artifacts=(
                *map(artifact_evaluation, self.artifacts, measured),
                *map(Referee.evaluation, self.referees, measured[len(self.artifacts) :]),
            ),
        )

    def _narrowed(
        self, subjects: Sequence[Subject], progress: Progress, precision: float
    ) -> tuple[Evaluation, list[tuple[LevelEvaluation, ...]]]:
        """The same on so many windows as the precision takes, and level ``reference`` of these."""
        alone, evaluation = [replace(each, load=None) for each in subjects], self
        while True:
            measured = _measured(evaluation, alone, progress, by_layer=False)
            counts = [len(windows.ids) for windows in evaluation.slices]
            needed = [
                max(windows_needed(e.slices[n], precision) for (e,) in measured if e.slices)
                for n in range(len(counts))
            ]
            short = [n for n, count in enumerate(counts) if needed[n] > count]
            if not short:
                return evaluation, measured
            every = _windows(self.request, self.recipe, self.original, at_most=max(needed))
            slices = list(evaluation.slices)
            for n in short:
                slices[n] = every[n].first(needed[n])
            if [len(windows.ids) for windows in slices] == counts:
                names = ", ".join(slices[n].name for n in short)
                progress.note(
                    f"the text ends before KL of {names} is known to {100 * precision:g}%"
                )
                return evaluation, measured
            evaluation = replace(evaluation, slices=slices)

    @property
    def prompt(self) -> list[int]:
        """A prompt that a runtime continues, to show that it works."""
        ids: list[int] = self.original.tokenizer().encode(PROMPT, add_special_tokens=False).ids
        return [self.original.config["bos_token_id"], *ids]

    def note_continuation(self, runtime: str, tokens: Sequence[int], progress: Progress) -> None:
        """Show what a runtime generated after the prompt."""
        text = self.original.tokenizer().decode(list(tokens))
        progress.note(f"{runtime} continues {PROMPT!r} with {text!r}")

    def _loading(
        self, path: Path, container: str, progress: Progress
    ) -> Callable[[], AbstractContextManager[NativeRuntime]] | None:
        """What loads an artifact; None where no runtime is asked for."""
        return partial(self._load, path, container, progress) if self.request.native else None

    def _load(
        self, path: Path, container: str, progress: Progress
    ) -> AbstractContextManager[NativeRuntime]:
        """Load an artifact in the runtime it is made for, and let it continue a prompt."""
        device = self.recipe.device
        runtime = NativeRuntime.find(path, container, device=device, runtime=self.request.runtime)
        if runtime.not_run is None and not architecture_of(self.original.config).embeds:
            self.note_continuation(runtime.runtime, runtime.generate(self.prompt), progress)
        return nullcontext(runtime)


def _measured(
    evaluation: Evaluation, subjects: Sequence[Subject], progress: Progress, *, by_layer: bool
) -> list[tuple[LevelEvaluation, ...]]:
    return measure(
        evaluation.original,
        subjects,
        evaluation.slices,
        seed=evaluation.recipe.seed,
        by_layer=by_layer,
        device=evaluation.recipe.device,
        compute_dtype=getattr(torch, evaluation.recipe.dtype),
        progress=progress,
    )


def windows_needed(measured: SliceEvaluation, precision: float) -> int:
    """About how many windows would make KL's interval so narrow, if their spread stays as it is."""
    kl, count = measured.kl_mean, measured.window_count
    low, high = kl.bounds
    if count == 1:
        return 4
    half, asked = (high - low) / 2, precision * kl.value
    if half <= asked:
        return count
    spread, needed = half * count**0.5 / quantile(0.975, count - 1), count
    for _ in range(8):  # each step takes the t of the count that it found
        needed = max(count + 1, ceil((quantile(0.975, needed - 1) * spread / asked) ** 2))
    return max(needed, ceil(1.25 * count))


def _windows(
    request: EvaluationRequest, recipe: Recipe, original: Checkpoint, at_most: int | None = None
) -> Sequence[TokenWindows]:
    """The text. at_most: windows of every slice, fewer where its text ends."""
    template = chat_template(recipe, original)
    if (suite := request.suite) is not None:
        if at_most is not None:
            suite = suite.model_copy(update={"windows": at_most, "strict": False})
        if original.prompts:
            length, count = embedded_texts(suite.seq_len, suite.windows)
            suite = suite.model_copy(update={"seq_len": length, "windows": count})
        packer = Packer.of(replace(recipe, seq_len=suite.seq_len), original, template)
        slices = suite.token_windows(packer)
        positions = 0 if original.prompts else request.eval_positions or 0
        return [windows.sampled(positions) for windows in slices]
    if recipe.eval_windows == 0:
        raise UsageError(
            "--eval-windows 0: an empty suite; nothing would be measured.",
            hint="--suite default, or --eval-windows 4",
        )
    if at_most is not None:
        recipe = replace(recipe, eval_windows=at_most)
    return evaluation_text(recipe, original, template, strict=at_most is None)


# ---------------------------------------------------------------- the record


def artifact_evaluation(
    artifact: Artifact, levels: Sequence[LevelEvaluation]
) -> ArtifactEvaluation:
    """Describe an artifact by its manifest."""
    manifest = artifact.manifest
    return ArtifactEvaluation(
        name=artifact_name(artifact),
        container=manifest.container,
        quantizer=manifest.quantization.quantizer,
        scheme=scheme_label(manifest),
        digest=content_digest(manifest),
        size_bytes=artifact.content_bytes,
        bits_per_weight=manifest.quantization.bits_per_weight,
        libraries=manifest.libraries,
        levels=tuple(levels),
    )


def artifact_name(artifact: Artifact) -> str:
    """The name of its folder."""
    return artifact.path.resolve().name


def original_record(original: Checkpoint) -> OriginalRecord:
    """Describe the model that artifacts are compared with."""
    hashes = "".join(f"{line}\n" for line in sorted(original.source_digest().values()))
    return OriginalRecord(
        ref=original.ref,
        revision=original.revision,
        architecture=original.config["model_type"],
        base_model=original.provenance.base_model,
        digest=f"sha256:{hashlib.sha256(hashes.encode()).hexdigest()}",
    )
