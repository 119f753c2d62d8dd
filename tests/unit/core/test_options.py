"""Options: declared once, checked by their own rules."""

from __future__ import annotations

from dataclasses import dataclass

from gemquant.core.options import former_names, option, options_of, problems_with


@dataclass(frozen=True)
class Sample:
    bits: int = option(4, "Bits.", choices=(3, 4, 8))
    ratio: float = option(0.5, "Ratio.", minimum=0.25, maximum=1.0)
    skip_head: bool = option(False, "Skip.")
    internal: int = 7


@dataclass(frozen=True)
class Renamed(Sample):
    passes: int = option(1, "Passes.", formerly="rounds")


def test_options_are_the_declared_fields_in_order() -> None:
    assert [(o.name, o.type, o.default) for o in options_of(Sample)] == [
        ("bits", int, 4),
        ("ratio", float, 0.5),
        ("skip_head", bool, False),
    ]


def test_former_names_lead_to_current_ones() -> None:
    assert former_names(Renamed) == {"rounds": "passes"}
    assert former_names(Sample) == {}


def test_defaults_break_no_rule() -> None:
    assert problems_with(Sample()) == []


def test_every_broken_rule_is_reported() -> None:
    problems = problems_with(Sample(bits=5, ratio=2.0))
    assert [p.message for p in problems] == [
        "--bits 5: must be one of 3, 4, 8.",
        "--ratio 2.0: must be at most 1.",
    ]


def test_a_value_below_the_minimum_is_reported() -> None:
    assert [p.message for p in problems_with(Sample(ratio=0.0))] == [
        "--ratio 0.0: must be at least 0.25."
    ]
