"""Evaluation documents in pairs, for the gate."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from gemquant.core.artifact.evaluation import EvaluationDocument, LayerErrors, LevelEvaluation
from gemquant.measure.gate.baseline import Baseline
from gemquant.measure.gate.budget import Budgets, Limits
from gemquant.measure.gate.update import updated
from tests.helpers.tiny_evaluation import artifact, document

KL_ALONE = Budgets(
    budget=Limits(nll_increase="report", top1="report", kl_mean=0.02, bytes_changed="report")
)
"""One metric, so that a test has one reason."""


def divergences(count: int = 8, *, seed: int = 0, rise: float = 0.0) -> list[float]:
    """Mean divergence of some windows, all higher by about ``rise``."""
    noise, change = random.Random(seed), random.Random(seed + 1)
    return [
        noise.gauss(0.1, 0.02) + (change.gauss(rise, rise / 5) if rise else 0.0)
        for _ in range(count)
    ]


def measured(
    kl: Mapping[str, Sequence[float]] | None = None, *, name: str = "gemma-awq"
) -> EvaluationDocument:
    """A document of one artifact; two slices of eight windows where none are given."""
    given = kl or {"english": divergences(), "code": divergences(seed=7)}
    return document(artifact(name, kl=given))


def baseline_of(*documents: EvaluationDocument, reason: str = "first") -> Baseline:
    """A baseline that holds what was measured."""
    return updated(documents, None, reason=reason, commit=None)


def with_level(made: EvaluationDocument, **changes: object) -> EvaluationDocument:
    """The document with its artifact's only level changed."""
    (one,) = made.artifacts
    level = one.levels[0].model_copy(update=changes)
    return with_artifact(made, levels=(level,))


def with_artifact(made: EvaluationDocument, **changes: object) -> EvaluationDocument:
    """The document with its only artifact changed."""
    (one,) = made.artifacts
    return made.model_copy(update={"artifacts": (one.model_copy(update=changes),)})


def level_with_errors(relative: Sequence[float]) -> LevelEvaluation:
    """A level of one slice, english, with these errors behind its layers."""
    errors = LayerErrors(slice="english", relative=tuple(relative), cosine=(1.0,) * len(relative))
    return LevelEvaluation(level="reference", runtime="torch", layers_accumulated=(errors,))
