"""Options declared once, as dataclass fields: flag, recipe key and manifest entry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, get_type_hints

from gemquant.core.resources import parse_size
from gemquant.errors import GemquantError, ProblemCollector, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class OptionSpec:
    """A field's rules beyond its name, type and default; see ``option``."""

    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None
    repeated: bool = False
    size: bool = False
    formerly: str | None = None
    each: bool = False


def option(
    default: T,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[T] | None = None,
    repeated: bool = False,
    size: bool = False,
    formerly: str | None = None,
    each: bool = False,
) -> T:
    """Declare a dataclass field that is also a command-line flag.

    The static type is that of the default, so that ``bits: int = option(4, "…")`` type-checks.
    repeated: a tuple whose flag is given once for each part, instead of with commas between.
    size: a number of bytes with its unit, such as 5GB; may be empty if the default is.
    formerly: the field's previous name, which flags, environment and recipes still accept.
    each: the flag may be given several times, for an artifact with each of the values.
    """
    known = tuple(choices) if choices is not None else None
    spec = OptionSpec(help, minimum, maximum, known, repeated, size, formerly, each)
    return dataclasses.field(default=default, metadata={"option": spec})


@dataclass(frozen=True)
class Option:
    """One option of a quantizer, as the command line and the documentation see it."""

    name: str
    type: type
    default: Any
    spec: OptionSpec


def options_of(owner: Any) -> list[Option]:
    """Return the options of a dataclass (type or instance) in the order of its fields."""
    cls = owner if isinstance(owner, type) else type(owner)
    hints = get_type_hints(cls)
    return [
        Option(f.name, hints[f.name], f.default, f.metadata["option"])
        for f in dataclasses.fields(cls)
        if "option" in f.metadata
    ]


def former_names(owner: Any) -> Mapping[str, str]:
    """Previous name → current name of every option that was renamed."""
    return {opt.spec.formerly: opt.name for opt in options_of(owner) if opt.spec.formerly}


def recorded_options(owner: Any) -> dict[str, Any]:
    """Every option with its value, as a recipe records them: a list for an option of ``each``."""
    values = {opt.name: (getattr(owner, opt.name), opt.spec.each) for opt in options_of(owner)}
    return {name: [value] if each else value for name, (value, each) in values.items()}


def problems_with(owner: Any) -> list[GemquantError]:
    """Return one error for every option whose value breaks its declared rule."""
    problems = ProblemCollector()
    for opt in options_of(owner):
        value, spec = getattr(owner, opt.name), opt.spec
        flag = "--" + opt.name.replace("_", "-")
        if spec.choices is not None and value not in spec.choices:
            listed = ", ".join(str(choice) for choice in spec.choices)
            problems.append(UsageError(f"{flag} {value}: must be one of {listed}."))
        elif spec.minimum is not None and value < spec.minimum:
            problems.append(UsageError(f"{flag} {value}: must be at least {spec.minimum:g}."))
        elif spec.maximum is not None and value > spec.maximum:
            problems.append(UsageError(f"{flag} {value}: must be at most {spec.maximum:g}."))
        elif spec.size and (value or opt.default):
            problems.attempt(partial(parse_size, value, flag=flag))
    return problems
