"""Where an option's value comes from: flag, environment, recipe, gemquant.toml, default.

The environment variable of ``--seq-len`` is ``GEMQUANT_SEQ_LEN``, and so on for every setting.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from gemquant.convert.plugins import plugins
from gemquant.core.options import former_names
from gemquant.core.recipe import SETTINGS, read_settings, suggest
from gemquant.core.resources import default_threads
from gemquant.core.untrusted import user_path
from gemquant.errors import GemquantError, ProblemCollector, UsageError, echo

DEFAULTS_FILE = Path("gemquant.toml")

# What a gemquant.toml may hold beyond a recipe's keys; each quantizer's options stand in a table.
FILE_SETTINGS: Mapping[str, tuple[type, ...]] = {
    **{key: types for key, types in SETTINGS.items() if key not in {"quantizer", "options"}},
    "threads": (int,),
    "target_folder": (str,),
}

FOREIGN = ("onnx", "rkllm")
"""Commands with options of their own whose numbers another program decides."""

COMPUTE_DTYPE = "compute_dtype"
"""The flag of a recipe's ``dtype``: the type that activations are computed in."""

OTHER_VARIABLES = (
    *("GEMQUANT_API_KEY", "GEMQUANT_CACHE", "GEMQUANT_DEBUG", "GEMQUANT_KEY_PASSWORD"),
    *("GEMQUANT_MODEL", "GEMQUANT_NATIVE", "GEMQUANT_RECIPE", "GEMQUANT_TARGET"),
    "GEMQUANT_TARGETS",
)
"""Variables besides those of a command's own flags."""

FORMER = "gemquant.former"
"""Key of ``Context.meta`` for values that were given under a flag's former name."""

PROBLEMS = "gemquant.problems"
"""Key of ``Context.meta`` under which problems gather until the command refuses them together."""


def problems_of(ctx: click.Context) -> ProblemCollector:
    """Return the problems of the command line so far."""
    problems: ProblemCollector = ctx.meta.setdefault(PROBLEMS, ProblemCollector())
    return problems


def threads_of(params: Mapping[str, Any], problems: list[GemquantError]) -> int:
    """Return ``--threads``, by default the physical cores; append what is wrong with it."""
    threads: int = params["threads"] if params["threads"] is not None else default_threads()
    if threads < 1:
        problems.append(UsageError(f"--threads {threads}: must be at least 1."))
    return threads


class Setting(click.Option):
    """An option whose bad value is reported together with everything else that is wrong."""

    def consume_value(
        self, ctx: click.Context, opts: Mapping[str, Any]
    ) -> tuple[Any, ParameterSource]:
        """Take the value given under a former name, unless the current one is given too."""
        value, source = super().consume_value(ctx, opts)
        former = ctx.meta.get(FORMER, {})
        if source is not ParameterSource.COMMANDLINE and self.name in former:
            return former[self.name], ParameterSource.COMMANDLINE
        return value, source

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Process the value; keep the complaint about a bad one for later."""
        try:
            return super().handle_parse_result(ctx, opts, args)
        except click.BadParameter as error:
            flag = max(self.opts, key=len)
            problems_of(ctx).append(UsageError(f"{flag}: {error.message}"))
        except GemquantError as error:
            problems_of(ctx).append(error)
        # A recipe's value, of another type.
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            problems_of(ctx).append(UsageError(f"{max(self.opts, key=len)}: {error}."))
        if self.expose_value and self.name:
            ctx.params[self.name] = None
        return None, args


def setting(
    *flags: str,
    type: click.ParamType[Any] | type[Any] | None = None,
    default: Any = None,
    help: str,
    metavar: str | None = None,
    instead: str | None = None,
    complete: Callable[..., list[CompletionItem]] | None = None,
    envvar: str | Sequence[str] | None = None,
    name: str | None = None,
) -> Setting:
    """Make an option that can also come from the environment, a recipe or gemquant.toml.

    instead: what holds where there is no default, in words. name: of the parameter.
    """
    longest = max((flag.partition("/")[0] for flag in flags), key=len)
    name = name or longest.lstrip("-").replace("-", "_")
    return Setting(
        [*flags, name],
        type=type,
        default=default,
        help=f"{help}  [default: {instead}]" if instead else help,
        metavar=metavar,
        show_default=default not in {None, ""},
        shell_complete=complete,
        envvar=envvar or f"GEMQUANT_{name.upper()}",
    )


def former_flag(former: str, current: str, name: str) -> click.Parameter:
    """A hidden flag that still works, with a note; name: of the current one's parameter."""

    def keep(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is not None:
            note_renamed(former, current)
            ctx.meta.setdefault(FORMER, {})[name] = value

    return click.Option(
        [former, f"former_{name}"], hidden=True, is_eager=True, expose_value=False, callback=keep
    )


def note_renamed(former: str, current: str) -> None:
    """Point out on stderr that something has another name now."""
    echo(f"note: {former} is now called {current}.", err=True)


def load_defaults(ctx: click.Context, recipe: Path | None) -> None:
    """Make a recipe's values, and beneath them those of gemquant.toml, the context's defaults."""
    quantizer = ctx.info_name if hasattr(ctx.command, "quantizer") else None
    values: dict[str, Any] = {}
    former = former_names(ctx.command.quantizer) if hasattr(ctx.command, "quantizer") else {}
    renamed = any(param.name == COMPUTE_DTYPE for param in ctx.command.params)
    known = {param.name for param in ctx.command.params} | FILE_SETTINGS.keys()
    table = f"{DEFAULTS_FILE}, [{quantizer}]"
    for place, read in (
        (table, partial(_from_file, quantizer)),
        (str(recipe), partial(_from_recipe, recipe, quantizer)),
    ):
        try:
            shared, own = read()
        except GemquantError as error:
            problems_of(ctx).append(error)
            continue
        for key in sorted(former.keys() & own.keys()):
            note_renamed(key, former[key])
        own = {former.get(key, key): value for key, value in own.items()}
        if renamed and "dtype" in shared:
            shared[COMPUTE_DTYPE] = shared.pop("dtype")
        for key in sorted(own.keys() - known) if quantizer else ():
            options = [str(p.name) for p in ctx.command.params if p.name not in FILE_SETTINGS]
            problems_of(ctx).append(
                UsageError(f"{place}: {quantizer} has no option {key}.", hint=suggest(key, options))
            )
        # A null in a manifest's recipe means: not given.
        values |= {k: v for k, v in {**shared, **own}.items() if v is not None}
    ctx.default_map = values
    _note_misspelt_variables(ctx.command)


def _note_misspelt_variables(command: click.Command) -> None:
    """Point out variables that nothing reads and that are almost the name of one."""
    read = set(OTHER_VARIABLES)
    for param in command.params:
        names = param.envvar or ()
        read |= {names} if isinstance(names, str) else set(names)
    unread = {name for name in os.environ if name.startswith("GEMQUANT_")} - read
    for name in sorted(unread):
        if close := difflib.get_close_matches(name, read, 1, 0.85):
            echo(f"note: ${name} is not read; did you mean ${close[0]}?", err=True)


def _from_file(quantizer: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the shared settings, and the quantizer's own."""
    if not DEFAULTS_FILE.is_file():
        return {}, {}
    tables: dict[str, tuple[type, ...]] = dict.fromkeys([*plugins("quantizer"), *FOREIGN], (dict,))
    values = read_settings(DEFAULTS_FILE, {**FILE_SETTINGS, **tables})
    options = values.get(quantizer, {}) if quantizer else {}
    return {k: v for k, v in values.items() if k not in tables}, options


def _from_recipe(
    recipe: Path | None, quantizer: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the shared settings, and the quantizer's own."""
    if recipe is None:
        return {}, {}
    values = read_settings(recipe, SETTINGS)
    if quantizer and values.get("quantizer", quantizer) != quantizer:
        raise UsageError(
            f"{recipe}: a recipe for {values['quantizer']}, not for {quantizer}.",
            hint=f"Run: gemquant {values['quantizer']} --recipe {recipe}",
        )
    options = values.pop("options", {})
    values.pop("quantizer", None)
    return values, options


def target_folders(folder: str | None) -> Sequence[Path]:
    """Return the user's folder of targets, if there is one; UsageError if it is no folder."""
    if folder is None:
        return ()
    path = user_path(folder)
    if not path.is_dir():
        raise UsageError(
            f"target folder {folder}: not a folder.",
            hint="It comes from $GEMQUANT_TARGETS or from target_folder in gemquant.toml.",
        )
    return (path,)
