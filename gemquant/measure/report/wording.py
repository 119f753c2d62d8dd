"""Figures and names as people read them; rounding happens here and nowhere before.

Names come from files that others wrote. What no reader should act on, control characters and those
that turn the direction of writing, is shown as its code point.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping

from gemquant.core.artifact.evaluation import Interval
from gemquant.core.resources import human_bytes
from gemquant.core.results import Level
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
OUTCOMES: Mapping[Outcome, str] = {
    "pass": "pass",
    "regression": "regression",
    "inconclusive": "inconclusive",
    "not-comparable": "not comparable",
    "reported": "not gated",
}
LEVELS: Mapping[Level, str] = {
    "reference": "Stored weights, decoded and run in torch: what quantization alone costs.",
    "native": "The finished artifact in the runtime that its container is made for.",
    "emulated": "A model of the device's arithmetic; not the device.",
    "vendor-sim": "The vendor's own simulator; not the device.",
}
_HIDDEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
_LONGEST_NAME = 160


def visible(text: str, *, longest: int = _LONGEST_NAME) -> str:
    r"""One line without characters that cannot be seen, cut to a length.

    >>> visible("a\n  b\u202ec\x00")
    'a b⟨U+202E⟩c⟨U+0000⟩'
    """
    shown = "".join(
        f"⟨U+{ord(each):04X}⟩" if unicodedata.category(each) in _HIDDEN else each
        for each in " ".join(text.split())
    )
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def number(value: float, digits: int = 4) -> str:
    """A figure with so many significant digits, never in powers of ten unless it is tiny.

    >>> number(0.12345), number(22.0), number(1234567.0), number(0.0000123), number(-0.0)
    ('0.1235', '22.00', '1,234,567', '1.230e-05', '0')
    """
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if whole:
        return f"{value:,.{max(0, digits - whole)}f}"
    return f"{value:.{digits - 1 - _exponent(value)}f}"


def _exponent(value: float) -> int:
    """Power of ten of the first digit.

    >>> _exponent(0.05), _exponent(0.5)
    (-2, -1)
    """
    return int(f"{value:e}".split("e")[1])


def percent(value: float) -> str:
    """A fraction as a percentage.

    >>> percent(0.80874)
    '80.87 %'
    """
    return f"{100 * value:.2f} %"


def spread(interval: Interval, write: Callable[[float], str] = number) -> str:
    """A figure with its interval.

    >>> spread(Interval(value=0.1, low=0.09, high=0.11), percent)
    '10.00 % (9.00 % to 11.00 %)'
    """
    return f"{write(interval.value)} ({write(interval.low)} to {write(interval.high)})"


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
    """An increase or a budget in the budget's unit."""
    if value is None:
        return "—"
    match check.metric:
        case "size" | "peak_memory" | "decode_speed":
            return f"{_signed(100 * value)} %"
        case "top1":
            return f"{_signed(100 * value)} pp"
        case "bytes_changed":
            return "yes" if value else "no"
        case _:
            return f"{'+' if value >= 0 else '−'}{number(abs(value))}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


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
