"""What the gate decided, check by check; ``gemquant report`` draws it.

The JSON Schema in ``docs/verdict.schema.json`` is generated from these models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from gemquant.core.artifact.evaluation import Level, OriginalRecord, SuiteRecord
from gemquant.core.json_document import Document, Record
from gemquant.errors import NotComparableError, RegressionError

Metric = Literal[
    "nll_increase",
    "kl_mean",
    "kl_mean_ceiling",
    "top1",
    "size",
    "bytes_changed",
    "peak_memory",
    "decode_speed",
]
Outcome = Literal["pass", "regression", "inconclusive", "not-comparable", "reported"]

SEVERITY: Mapping[Outcome, int] = {
    "reported": 0,
    "pass": 0,
    "inconclusive": 1,
    "not-comparable": 2,
    "regression": 3,
}
"""The outcome of a whole is the worst of its parts."""


class Check(Record):
    """One figure of one artifact, held against the baseline and its budget."""

    metric: Metric = Field(
        description="`nll_increase`, `kl_mean` (nats per token), `top1` (fraction of tokens): "
        "against the baseline on the same windows. `kl_mean_ceiling`: the divergence itself. "
        "`size`, `peak_memory`, `decode_speed`: relative to the baseline. `bytes_changed`: whether "
        "the artifact's digest differs."
    )
    level: Level | None = Field(default=None, description="Null for metrics without a level.")
    slice: str | None = Field(
        default=None,
        description="Null: all slices together, each token weighing the same, or the artifact as "
        "a whole.",
    )
    where: str | None = Field(
        default=None, description="Runtime and mode of a benchmark; null for other figures."
    )
    baseline: float | None = Field(description="The baseline's figure, in the metric's unit.")
    value: float | None = Field(description="The figure now.")
    increase: float | None = Field(
        description="How much worse it is, in the unit of the budget: above zero is worse, also "
        "where a lower figure is (`top1`, `decode_speed`)."
    )
    low: float | None = Field(
        default=None,
        description="Lower confidence bound of the increase; a loss is significant where it is "
        "above zero. Null where nothing was sampled.",
    )
    high: float | None = Field(
        default=None,
        description="Upper confidence bound of the increase; within budget where it is at most the "
        "budget. Null where nothing was sampled.",
    )
    windows: int | None = Field(default=None, description="Pairs of windows; null without any.")
    windows_needed: int | None = Field(
        default=None,
        description="About how many windows would decide, if they spread as these do. Only where "
        "the outcome is `inconclusive`.",
    )
    budget: float | None = Field(description="Largest increase allowed; null where none is set.")
    outcome: Outcome = Field(
        description="`pass`: shown to be within budget. `regression`: worse, and not shown to be "
        "within budget. `inconclusive`: neither. `reported`: not gated."
    )
    note: str | None = Field(default=None, description="Reason that the figures do not show.")


class LayerFinding(Record):
    """The layer at which the hidden states' error rises most above the baseline's."""

    level: Level = Field(description="Where it was measured.")
    slice: str = Field(description="On which tokens.")
    layer: int = Field(ge=0, description="Number of the decoder layer, from 0.")
    baseline: float = Field(description="Relative error after that layer, in the baseline.")
    value: float = Field(description="The same now.")
    ratio_before: float = Field(
        description="Squared error over the baseline's after the previous layer; 1 for the first."
    )
    ratio: float = Field(description="Squared error over the baseline's after the layer.")


class ArtifactVerdict(Record):
    """One artifact against its entry in the baseline."""

    name: str = Field(description="Its name, by which it is found in the baseline.")
    digest: str = Field(description="Of the artifact as it is now.")
    baseline_digest: str | None = Field(description="Of the baseline's; null where it has none.")
    outcome: Outcome = Field(description="The worst of its checks.")
    reasons: tuple[str, ...] = Field(
        default=(),
        description="In words, worst first: what got worse, in which slice, metric and layer, what "
        "could not be decided, or why nothing could be compared.",
    )
    checks: tuple[Check, ...] = Field(default=(), description="Every figure that was compared.")
    layers: tuple[LayerFinding, ...] = Field(
        default=(), description="Where the error rises, one per slice that is not `pass`."
    )


class BaselineReference(Record):
    """The baseline that was compared with."""

    name: str = Field(description="Its file's name.")
    sha256: str = Field(description="Of the file's bytes, hexadecimal.")
    suite: SuiteRecord = Field(description="The text it was measured on.")
    original: OriginalRecord = Field(description="The model before.")
    updates: int = Field(ge=0, description="Number of entries in its history.")
    reason: str | None = Field(description="Reason of the last update; null without history.")
    commit: str | None = Field(description="Commit of the last update, where it is known.")


class Verdict(Document):
    """All that one run of ``gemquant gate`` decided."""

    noun: ClassVar[str] = "verdict"
    hint: ClassVar[str] = "Verdicts are written by `gemquant gate … --output FILE`."
    place: ClassVar[str] = "to `gemquant report` as --verdict"

    gemquant: str = Field(description="The program's version.")
    outcome: Outcome = Field(description="The worst of all artifacts.")
    exit_code: int = Field(
        description="What the gate exits with: 0 pass, 10 regression, 11 inconclusive or not "
        "comparable. 0 for an inconclusive outcome where the budgets say `warn`."
    )
    family_error: float = Field(
        description="Probability, over all checks of this document together, of calling equal "
        "artifacts a regression."
    )
    error: float = Field(
        description="Probability, for each check, of passing an increase as large as its budget."
    )
    baseline: BaselineReference = Field(description="What was compared with.")
    artifacts: tuple[ArtifactVerdict, ...] = Field(description="In the order given.")
    notes: tuple[str, ...] = Field(
        default=(), description="What else differs: machines, versions, artifacts not measured."
    )


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of a whole from those of its parts.

    >>> worst(["pass", "inconclusive", "reported"])
    'inconclusive'
    >>> worst(["reported"])
    'pass'
    """
    return max(("pass", *outcomes), key=lambda outcome: SEVERITY[outcome])


def exit_code(outcome: Outcome, *, inconclusive: Literal["fail", "warn"]) -> int:
    """What a process ends with.

    >>> exit_code("regression", inconclusive="fail")
    10
    >>> exit_code("inconclusive", inconclusive="fail")
    11
    """
    if outcome == "regression":
        return RegressionError.exit_code
    if outcome == "not-comparable" or (outcome == "inconclusive" and inconclusive == "fail"):
        return NotComparableError.exit_code
    return 0
