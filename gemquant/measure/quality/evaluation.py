"""Evaluate finished artifacts: the request, the text, the run, and the document."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import gemquant
from gemquant.calibration.suites import SuiteText
from gemquant.calibration.text import VERSION
from gemquant.calibration.windows import TokenWindows, chat_template, evaluation_text, stream_digest
from gemquant.core.artifact import Artifact
from gemquant.core.artifact.evaluation import (
    ArtifactEvaluation,
    EvaluationDocument,
    LevelEvaluation,
    OriginalRecord,
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
from gemquant.numerics.bootstrap import RESAMPLES

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
    native: also run each artifact in its runtime. runtime: the one to take, where several load it.
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
    native: bool = True
    runtime: str | None = None
    by_layer: bool = False

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
        return dataclasses.replace(recipes[0], **values)


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
    recipe = dataclasses.replace(recipe, seq_len=tokens, eval_seq_len=tokens)
    if source.revision is not None:
        model = f"{source.ref.partition('@')[0]}@{source.revision}"
        recipe = dataclasses.replace(recipe, model=model)
    if recipe.eval_windows == 0:
        recipe = dataclasses.replace(recipe, eval_windows=DEFAULT_EVAL_WINDOWS)
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
    suite: SuiteRecord
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
        slices = _windows(request, recipe, original)
        suite = SuiteRecord(
            name=RECIPE if request.suite is None else request.suite.name,
            version=VERSION if request.suite is None else request.suite.version,
            token_stream=stream_digest([windows.ids for windows in slices]),
        )
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
        return cls(artifacts, request, recipe, original, slices, suite, referees)

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
        recipe = self.recipe
        measured = measure(
            self.original,
            subjects,
            self.slices,
            seed=recipe.seed,
            by_layer=self.request.by_layer,
            device=recipe.device,
            compute_dtype=getattr(torch, recipe.dtype),
            progress=progress,
        )
        return EvaluationDocument(
            gemquant=gemquant.__version__,
            suite=self.suite,
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
        if runtime.not_run is None:
            self.note_continuation(runtime.runtime, runtime.generate(self.prompt), progress)
        return nullcontext(runtime)


def _windows(
    request: EvaluationRequest, recipe: Recipe, original: Checkpoint
) -> Sequence[TokenWindows]:
    template = chat_template(recipe, original)
    if request.suite is not None:
        bos = original.config["bos_token_id"]
        slices = request.suite.token_windows(
            original.tokenizer(), seed=recipe.seed, bos=bos, chat_template=template
        )
        return [windows.sampled(request.eval_positions or 0) for windows in slices]
    if recipe.eval_windows == 0:
        raise UsageError(
            "--eval-windows 0: an empty suite; nothing would be measured.",
            hint="--suite default, or --eval-windows 4",
        )
    return evaluation_text(recipe, original, template)


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
