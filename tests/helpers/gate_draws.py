"""Draws of evaluation documents from windows that were measured, with a loss of known size.

A pool holds one slice's windows of two artifacts. A draw takes some of its pairs of windows, with
replacement; their differences are shifted and scaled so that over the whole pool they have a given
mean, and keep the shape and spread that real artifacts have.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gemquant.core.artifact.evaluation import EvaluationDocument
from gemquant.measure.gate.baseline import Baseline
from gemquant.measure.gate.budget import Budgets, Limits
from gemquant.measure.gate.gate import judge
from gemquant.measure.gate.update import updated
from gemquant.measure.gate.verdict import Verdict
from tests.helpers.tiny_evaluation import artifact, document, measured_slice

Columns = Mapping[str, Sequence[float]]
"""Of one slice: `nll` (after less before), `kl` and `top1`, an entry for each window."""

FIGURES = ("nll", "kl", "top1")


@dataclass(frozen=True)
class Pool:
    """Windows of two artifacts, slice by slice."""

    before: Mapping[str, Columns]
    now: Mapping[str, Columns]


def read_pool(path: Path) -> Pool:
    """Windows of two real artifacts, as ci/bench/gate writes them."""
    return Pool(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Rise:
    """What a draw's true mean increase is, in nats per token; agreement falls by as much.

    spread: `scaled` multiplies differences until their mean is right, as a stronger loss of the
    same kind would; `centred` moves them, so that windows differ as much as they do, about another
    mean; share: how much of that they keep then.
    """

    mean: float
    spread: Literal["scaled", "centred"]
    share: float = 1.0


def draw(
    pool: Pool, rise: Rise, *, windows: int, chance: random.Random
) -> tuple[EvaluationDocument, EvaluationDocument]:
    """Draw windows of every slice: before, and now."""
    differences = {
        (name, key): [a - b for a, b in zip(pool.now[name][key], columns[key], strict=True)]
        for name, columns in pool.before.items()
        for key in FIGURES
    }
    # One slice has few windows; how they lie about their mean is drawn from those of all slices.
    sources = [(name, n) for name, each in pool.before.items() for n in range(len(each["kl"]))]
    before: dict[str, Columns] = {}
    now: dict[str, dict[str, list[float]]] = {}
    for name, columns in pool.before.items():
        own = [chance.randrange(len(columns["kl"])) for _ in range(windows)]
        drawn = [chance.choice(sources) for _ in range(windows)]
        before[name] = {key: [columns[key][n] for n in own] for key in FIGURES}
        now[name] = {}
        for key in FIGURES:
            mean = statistics.mean(differences[name, key])
            wanted = -rise.mean if key == "top1" else rise.mean
            factor = abs(wanted / mean) if rise.spread == "scaled" else rise.share
            spread = factor * statistics.stdev(differences[name, key])
            now[name][key] = [
                known + wanted + spread * _residual(differences[source, key], n)
                for known, (source, n) in zip(before[name][key], drawn, strict=True)
            ]
    return _document(before), _document(now)


def _residual(values: Sequence[float], n: int) -> float:
    """How far one value lies from the mean, in standard deviations."""
    return (values[n] - statistics.mean(values)) / statistics.stdev(values)


def _document(slices: Mapping[str, Columns]) -> EvaluationDocument:
    one = artifact(kl={name: columns["kl"] for name, columns in slices.items()})
    level = one.levels[0]
    made = []
    for name, columns in slices.items():
        known = measured_slice(name, kl=columns["kl"])
        changes = {
            "nll_original": (0.0,) * len(columns["nll"]),
            "nll_quantized": tuple(columns["nll"]),
            "top1": tuple(columns["top1"]),
        }
        made.append(known.model_copy(update={"windows": known.windows.model_copy(update=changes)}))
    level = level.model_copy(update={"slices": tuple(made)})
    return document(one.model_copy(update={"levels": (level,)}))


def budgets(size: float) -> Budgets:
    """The same budget for every figure that is a sample."""
    return Budgets(
        budget=Limits(nll_increase=size, kl_mean=size, top1=size, bytes_changed="report")
    )


def baseline_of(before: EvaluationDocument) -> Baseline:
    return updated([before], None, reason="drawn", commit=None)


@dataclass(frozen=True)
class Rates:
    """How many of some draws ended how."""

    draws: int
    red: int
    inconclusive: int

    @property
    def caught(self) -> int:
        """Draws that did not pass."""
        return self.red + self.inconclusive


def rates(pool: Pool, rise: Rise, *, budget: float, windows: int, draws: int, seed: int) -> Rates:
    """Gate many draws; each is a whole document of all slices and metrics."""
    chance = random.Random(seed)
    verdicts: list[Verdict] = []
    for _ in range(draws):
        before, now = draw(pool, rise, windows=windows, chance=chance)
        verdicts.append(judge([now], baseline_of(before), budgets(budget), file="drawn"))
    outcomes = [each.outcome for each in verdicts]
    return Rates(draws, outcomes.count("regression"), outcomes.count("inconclusive"))
