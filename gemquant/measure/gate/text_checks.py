"""Figures that were measured on a sample of text: likelihood, divergence, agreement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import sub

from gemquant.core.artifact.evaluation import Level, LevelEvaluation, SliceEvaluation
from gemquant.measure.gate.budget import Budgets
from gemquant.measure.gate.t_interval import Increase, Stratum, increase
from gemquant.measure.gate.verdict import Check, Metric, Outcome

ALPHA = 0.025
"""Risk of passing an increase as large as its budget, for each check: an artifact passes where all
of its checks do, so their number makes the risk smaller (an intersection-union test)."""

FAMILY_ALPHA = 0.002
"""Risk of calling equal artifacts a regression, for all checks together: each gets an equal share
(Bonferroni). A fifth of the 1 % that is promised, since few windows may be far from normal."""


@dataclass(frozen=True)
class Figure:
    """One column of windows. worse: what makes a difference count as a loss, +1 or −1."""

    values: Callable[[SliceEvaluation], Sequence[float]]
    worse: int


def _nll_increase(measured: SliceEvaluation) -> Sequence[float]:
    columns = measured.windows
    # Of the same document: what another processor does to the original alone cancels.
    return tuple(map(sub, columns.nll_quantized, columns.nll_original))


FIGURES: Mapping[Metric, Figure] = {
    "nll_increase": Figure(_nll_increase, +1),
    "kl_mean": Figure(lambda measured: measured.windows.kl_mean, +1),
    "top1": Figure(lambda measured: measured.windows.top1, -1),
}
CEILING: tuple[Metric, Figure] = ("kl_mean_ceiling", FIGURES["kl_mean"])
"""A limit on the figure itself, checked only where a budget sets one."""


@dataclass(frozen=True)
class TextCheck:
    """One figure of one slice, or of all, against the baseline's; not yet judged.

    ceiling: the limit is on the figure itself, not on its increase.
    """

    metric: Metric
    level: Level
    slice: str | None
    baseline: float
    value: float
    increase: Increase
    budget: float | str | None
    ceiling: bool = False

    @property
    def gated(self) -> bool:
        """Whether it has a limit."""
        return isinstance(self.budget, float)

    def judge(self, family_alpha: float) -> Check:
        """Hold it against its budget. family_alpha: this check's share of the family's risk."""
        low, high = self.increase.low(family_alpha), self.increase.high(ALPHA)
        budget = self.budget if isinstance(self.budget, float) else None
        outcome, note = self._outcome(low, high, budget)
        needed = None
        if outcome == "inconclusive" and budget is not None and not self.ceiling:
            needed = self.increase.windows_to_decide(budget, alpha=ALPHA, family_alpha=family_alpha)
        return Check(
            metric=self.metric,
            level=self.level,
            slice=self.slice,
            baseline=self.baseline,
            value=self.value,
            increase=self.increase.mean,
            low=low,
            high=high,
            windows=self.increase.windows,
            windows_needed=needed,
            budget=budget,
            outcome=outcome,
            note=note,
        )

    def _outcome(
        self, low: float | None, high: float | None, budget: float | None
    ) -> tuple[Outcome, str | None]:
        if budget is None:
            return "reported", "not gated: the budgets say so"
        if not self.ceiling and self.increase.identical:
            return "pass", "identical in every window"
        if low is None or high is None:
            return "inconclusive", "a single window bounds nothing"
        if high <= budget:
            return "pass", None
        if low > (budget if self.ceiling else 0):
            return "regression", None
        return "inconclusive", None


def text_checks(
    artifact: str, before: LevelEvaluation, now: LevelEvaluation, budgets: Budgets
) -> Iterator[TextCheck]:
    """Every figure of every slice, and of all slices together; both measured the same tokens."""
    pairs = [
        (old, next(new for new in now.slices if new.slice == old.slice)) for old in before.slices
    ]
    rows = [(old.slice, [(old, new)]) for old, new in pairs]
    # One slice alone is all of them.
    for name, row in [*rows, *([(None, pairs)] if len(pairs) > 1 else [])]:
        limit = partial(budgets.limit, artifact=artifact, slice_name=name, level=before.level)
        for metric, figure in (*FIGURES.items(), CEILING):
            ceiling = metric == CEILING[0]
            budget = limit(metric)
            if ceiling and not isinstance(budget, float):
                continue
            old, new = (strata(figure, side) for side in zip(*row, strict=True))
            differences = [
                Stratum(a.tokens, [figure.worse * d for d in map(sub, b.values, a.values)])
                for a, b in zip(old, new, strict=True)
            ]
            yield TextCheck(
                metric=metric,
                level=before.level,
                slice=name,
                baseline=increase(old).mean,
                value=increase(new).mean,
                increase=increase(new if ceiling else differences),
                budget=budget,
                ceiling=ceiling,
            )


def strata(figure: Figure, measured: Sequence[SliceEvaluation]) -> list[Stratum]:
    """A figure of every slice's windows."""
    return [Stratum(each.windows.tokens, figure.values(each)) for each in measured]
