"""What an artifact may lose: defaults, and what holds for one artifact, slice or level."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gemquant.core.artifact.evaluation import ArtifactEvaluation, Level
from gemquant.core.untrusted import MAX_TOML_BYTES, UntrustedFile
from gemquant.errors import GemquantError, UsageError, refuse

HINT = "docs/gate.md lists the keys."

Amount = Annotated[float, Field(ge=0, strict=True)]
Budget = Amount | Literal["report"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Limits(_Table):
    """Largest increase of each metric over the baseline; "report" measures and does not gate."""

    nll_increase: Budget | None = None
    kl_mean: Budget | None = None
    kl_mean_ceiling: Budget | None = None
    top1: Budget | None = None
    size: Budget | None = None
    peak_memory: Budget | None = None
    decode_speed: Budget | None = None
    bytes_changed: Literal["fail", "report"] | None = None


DEFAULTS = Limits(
    nll_increase=0.02,
    kl_mean=0.02,
    top1=0.02,
    size=0.01,
    peak_memory=0.10,
    decode_speed=0.10,
    bytes_changed="fail",
)
"""0.02 nats are 2 % of perplexity, 0.02 of top-1 two tokens in a hundred; the last are relative."""


class Override(Limits):
    """Other limits where all that it names fits."""

    artifact: str | None = None
    slice: str | None = None
    level: Level | None = None

    def fits(self, artifact: str, slice_name: str | None, level: Level | None) -> bool:
        """Whether it holds there. A slice's override does not hold for all slices together."""
        return (
            (self.artifact is None or fnmatchcase(artifact, self.artifact))
            and (self.slice is None or self.slice == slice_name)
            and (self.level is None or self.level == level)
        )


class Budgets(_Table):
    """A budget file."""

    inconclusive: Literal["fail", "warn"] = "fail"
    levels: tuple[Level, ...] | None = None
    budget: Limits = DEFAULTS
    override: tuple[Override, ...] = ()

    def limit(
        self,
        metric: str,
        *,
        artifact: str,
        slice_name: str | None = None,
        level: Level | None = None,
    ) -> float | str | None:
        """The limit of a metric there; the last override that fits wins."""
        fitting = [each for each in self.override if each.fits(artifact, slice_name, level)]
        limits: list[float | str | None] = [
            getattr(each, metric) for each in (DEFAULTS, self.budget, *fitting)
        ]
        return next((limit for limit in reversed(limits) if limit is not None), None)

    def problems(self, known: Iterable[ArtifactEvaluation]) -> list[GemquantError]:
        """Overrides of unknown artifacts and slices; a misspelt one would quietly do nothing."""
        evaluations = list(known)
        names = {each.name for each in evaluations}
        slices = {
            measured.slice
            for each in evaluations
            for level in each.levels
            for measured in level.slices
        }
        problems: list[GemquantError] = []
        for number, each in enumerate(self.override, 1):
            pattern = each.artifact
            if pattern is not None and not any(fnmatchcase(name, pattern) for name in names):
                problems.append(
                    UsageError(
                        f"override {number} of the budgets: no artifact is called {pattern!r}; "
                        f"there are {', '.join(sorted(map(repr, names)))}."
                    )
                )
            if each.slice is not None and each.slice not in slices:
                problems.append(
                    UsageError(
                        f"override {number} of the budgets: no slice is called {each.slice!r}; "
                        f"there are {', '.join(sorted(map(repr, slices)))}."
                    )
                )
        return problems


def read_budgets(path: Path) -> Budgets:
    """Read a budget file. Reports all problems at once."""
    table = UntrustedFile(path, MAX_TOML_BYTES, hint=HINT).toml()
    try:
        return Budgets.model_validate(table)
    except ValidationError as error:
        refuse(_problems(path, error))
        raise


def _problems(path: Path, error: ValidationError) -> list[GemquantError]:
    """One problem for each place, though a place may be wrong for several types."""
    messages: dict[str, str] = {}
    for each in error.errors(include_url=False):
        # A union's members follow the key: `float`, `literal['report']`.
        keys = [
            str(part + 1 if isinstance(part, int) else part)
            for part in each["loc"]
            if not str(part).startswith(("literal[", "float", "constrained", "function"))
        ]
        place = ".".join(keys)
        earlier = f"{messages[place]}, or: " if place in messages else ""
        messages[place] = earlier + each["msg"]
    return [
        UsageError(f"{path}: {place}: {message}.", hint=HINT) for place, message in messages.items()
    ]
