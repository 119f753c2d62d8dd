"""The words of a report, and the figures of checks in their metrics' units."""

from __future__ import annotations

from collections.abc import Mapping

from gemquant.core.resources import human_bytes
from gemquant.core.tables import number, percent
from gemquant.measure.gate.verdict import Check, Metric, Outcome

METRICS: Mapping[Metric, str] = {
    "nll_increase": "NLL increase, nats/token",
    "kl_mean": "KL mean, nats/token",
    "kl_mean_ceiling": "KL mean in itself, nats/token",
    "top1": "top-1 same",
    "size": "size",
    "bytes_changed": "bytes changed",
    "peak_memory": "peak memory",
    "decode_speed": "decode speed, tokens/s",
}
NOTHING = 1e-5
"""Nats per token; an increase below is shown as 0."""
OUTCOMES: Mapping[Outcome, str] = {
    "pass": "pass",
    "regression": "regression",
    "inconclusive": "inconclusive",
    "not-comparable": "not comparable",
    "reported": "not gated",
}


def measured(check: Check, value: float | None) -> str:
    """A figure of a check in its metric's own unit."""
    if value is None:
        return "—"
    match check.metric:
        case "top1":
            return percent(value)
        case "size" | "peak_memory":
            return human_bytes(round(value))
        case "bytes_changed":
            return "yes" if value else "no"
        case _:
            return number(value)


def increase(check: Check, value: float | None) -> str:
    """An increase in the budget's unit."""
    if value is None:
        return "—"
    match check.metric:
        case "size" | "peak_memory" | "decode_speed":
            return f"{_signed(100 * value)} %"
        case "top1":
            return f"{_signed(100 * value)} pp"
        case "bytes_changed":
            return "yes" if value else "no"
        case _ if abs(value) < NOTHING:
            return "0"
        case _:
            return f"{'+' if value >= 0 else '−'}{number(abs(value))}"


def budget(check: Check) -> str:
    """The budget, which somebody wrote down, in no more digits than that."""
    match check.metric:
        case _ if check.budget is None:
            return "—"
        case "size" | "peak_memory" | "decode_speed":
            return f"{100 * check.budget:g} %"
        case "top1":
            return f"{100 * check.budget:g} pp"
        case "bytes_changed":
            return "yes" if check.budget else "no"
        case _:
            return f"{check.budget:g}"


def _signed(value: float) -> str:
    text = f"{value:+z.2f}".replace("-", "−")
    return "0" if text == "+0.00" else text


def increase_interval(check: Check) -> str:
    """The increase's confidence bounds, or a dash where nothing was sampled."""
    if check.low is None or check.high is None:
        return "—"
    return f"{increase(check, check.low)} to {increase(check, check.high)}"


def place(check: Check) -> str:
    """Where a check looks: a slice, a runtime, or the artifact as a whole."""
    if check.slice is not None:
        return check.slice
    if check.where is not None:
        return check.where
    return "all slices" if check.level is not None else "artifact"
