"""The flags that commands share, and those made from a quantizer's fields."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from gemquant.cli.settings import Setting, former_flag, load_defaults, setting
from gemquant.core.recipe import COMPUTE_DTYPES, Recipe
from gemquant.core.resources import parse_size
from gemquant.errors import GemquantError, UsageError, echo
from gemquant.runtimes.runtime import LOGITS_RUNTIMES

DEVICES = ("cpu", "cuda", "mps")
DEFAULTS = Recipe(model="", quantizer="")
"""The defaults of all settings: those of the recipe's fields."""


class CommaList(click.ParamType[tuple[str, ...]]):
    """Names separated by commas; a list in a recipe."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Split a string; pass a sequence on."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return tuple(value)


class Repeated(Setting):
    """An option that may be given several times; in a recipe a list, or one text."""

    def consume_value(
        self, ctx: click.Context, opts: Mapping[str, Any]
    ) -> tuple[Any, ParameterSource]:
        """Take a single text from a recipe for a list of one."""
        value, source = super().consume_value(ctx, opts)
        return ((value,) if isinstance(value, str) else value), source


class Size(click.ParamType[int]):
    """A number of bytes with its unit: 8G, 8GB, 8GiB, 500MB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a string; UsageError with the flag's name."""
        flag = max(param.opts, key=len) if param else "size"
        return value if isinstance(value, int) else parse_size(str(value), flag=flag)


# ---------------------------------------------------------------- completion

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def offering(names: Callable[[], Iterable[str]], *, files: bool = False) -> Completer:
    """Complete one of some names, also after a comma, in any case. files: or a path."""

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        found = [name for name in names() if name.lower().startswith(last.lower())]
        offered = [CompletionItem(before + comma + name) for name in found]
        return [*offered, *([CompletionItem(incomplete, type="file")] if files else [])]

    return complete


def _targets() -> Iterable[str]:
    from gemquant.core.targets import target_files

    return target_files()


def _exporters() -> Iterable[str]:
    from gemquant.convert.plugins import plugins

    return plugins("exporter")


def _file_types() -> Iterable[str]:
    from gemquant.formats.gguf.mixtures import FILE_TYPES

    return FILE_TYPES


def _texts(file: str, key: str) -> Iterable[Any]:
    import tomllib  # not gemquant.calibration, which imports torch: too slow for a key press

    from gemquant.core.resources import data_folder

    text = (data_folder("calib_data") / file).read_text(encoding="utf-8")
    entries: Iterable[Any] = tomllib.loads(text)[key]
    return entries


def _slices() -> Iterable[str]:
    files = _texts("index.toml", "files")
    return dict.fromkeys(each["kind"] for each in files if each["split"] == "evaluation")


complete_target = offering(_targets)
complete_exporter = offering(_exporters)
complete_type = offering(_file_types)
complete_suite = offering(lambda: _texts("suites.toml", "suites"), files=True)
complete_calibration = offering(lambda: _texts("index.toml", "mixtures"), files=True)
complete_slices = offering(_slices)
complete_template = offering(
    lambda: ("stock", "system", "system-in-user", "systemgemma2"), files=True
)
complete_model = offering(lambda: ("sample:gemma-3-270m",), files=True)


# ---------------------------------------------------------------- shared by all commands


Function = TypeVar("Function", bound=Callable[..., Any])


def flags(*params: click.Parameter) -> Callable[[Function], Function]:
    """Add shared parameters to a command's function, as ``click.option`` adds one."""

    def add(function: Function) -> Function:
        vars(function).setdefault("__click_params__", []).extend(reversed(params))
        return function

    return add


class StderrHandler(logging.Handler):
    """Writes to whatever stderr is at that moment, every message once."""

    def __init__(self) -> None:
        super().__init__()
        self._written: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        line = self.format(record)
        if line not in self._written:
            self._written.add(line)
            echo(line, err=True)


def _set_verbosity(ctx: click.Context, param: click.Parameter, count: int) -> int:
    verbosity = 2 if os.environ.get("GEMQUANT_DEBUG") else min(count, 2)
    logger = logging.getLogger("gemquant")
    quiet = ctx.params.get("quiet") and not verbosity
    levels = (logging.ERROR if quiet else logging.WARNING, logging.INFO, logging.DEBUG)
    logger.setLevel(levels[verbosity])
    form = "%(levelname)s %(name)s: %(message)s" if verbosity else "note: %(message)s"
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter(form))
    logger.handlers, logger.propagate = [handler], False
    return count


def output_flags() -> list[click.Parameter]:
    """``--json``, ``-q`` and ``-v``, the same everywhere."""
    return [
        click.Option(
            ["--json", "as_json"],
            is_flag=True,
            help="Print one JSON document on stdout instead of tables.",
        ),
        click.Option(["-q", "--quiet"], is_flag=True, help="No progress and no notes on stderr."),
        click.Option(
            ["-v", "--verbose"],
            count=True,
            expose_value=False,
            callback=_set_verbosity,
            help="Log more to stderr; twice also prints tracebacks.",
        ),
    ]


def flag(name: str, help: str) -> click.Option:
    """Make an option without a value."""
    return click.Option([name], is_flag=True, help=help)


def path_flag(name: str, help: str, *, metavar: str = "FILE") -> click.Option:
    """Make an option that names a file, or with ``metavar="DIR"`` a folder."""
    return click.Option([name], type=click.Path(path_type=Path), metavar=metavar, help=help)


def document_flag(contents: str) -> click.Parameter:
    """``-o``, ``--output``: save one JSON document, staged by ``write_document``.

    contents: what the document holds, in words.
    """
    return click.Option(
        ["-o", "--output"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Save {contents} as one JSON document.",
    )


def _use_recipe(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    load_defaults(ctx, value)


def recipe_flag() -> click.Parameter:
    """``--recipe``; it is read first, since it gives the other flags their defaults."""
    return click.Option(
        ["--recipe"],
        type=click.Path(dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        envvar="GEMQUANT_RECIPE",
        callback=_use_recipe,
        metavar="FILE",
        help="Take settings from a TOML or JSON recipe, or an artifact's manifest.json; flags win.",
    )


def defaults_flag() -> click.Parameter:
    """No flag at all: a hidden, eager hook that reads gemquant.toml for commands without recipe."""
    return click.Option(
        ["--defaults"],
        hidden=True,
        is_eager=True,
        expose_value=False,
        is_flag=True,
        callback=lambda ctx, param, value: load_defaults(ctx, None),
    )


def artifacts_argument() -> click.Argument:
    """ARTIFACT…, which ``cli.artifacts`` finds."""
    return click.Argument(
        ["artifacts"],
        metavar="ARTIFACT...",
        nargs=-1,
        required=True,
        type=click.Path(path_type=Path),
    )


def target_folder_flag() -> click.Parameter:
    """``--target-folder``: targets of the user's own."""
    return setting(
        "--target-folder",
        metavar="DIR",
        help="Folder of further target files; they win over shipped ones of the same name.",
        envvar="GEMQUANT_TARGETS",
    )


def model_argument() -> click.Parameter:
    """MODEL; it may come from a recipe instead, so that its absence is reported with the rest."""
    return click.Argument(
        ["model"],
        required=False,
        envvar="GEMQUANT_MODEL",
        metavar="[MODEL]",
        type=str,
        shell_complete=complete_model,
    )


def machine_flags(
    inherited: str | None = None, *, name: str = "dtype", former: bool = True
) -> list[click.Parameter]:
    """Where and how activations are computed.

    inherited: what gives the defaults, in words. name: the parameter of ``--compute-dtype``.
    former: accept ``--dtype`` for it.
    """
    return [
        setting(
            "--device",
            default=None if inherited else DEFAULTS.device,
            instead=inherited,
            metavar="cpu|cuda|mps",
            help="Where activations are computed and scales searched.",
        ),
        *([former_flag("--dtype", "--compute-dtype", name)] if former else []),
        setting(
            "--compute-dtype",
            name=name,
            default=None if inherited else DEFAULTS.dtype,
            instead=inherited,
            metavar="|".join(COMPUTE_DTYPES),
            help="Type that activations are computed in.",
            envvar=["GEMQUANT_COMPUTE_DTYPE", *(["GEMQUANT_DTYPE"] if former else [])],
        ),
        threads_flag(),
    ]


def threads_flag(help: str = "Processor threads.") -> click.Parameter:
    """``--threads``."""
    return setting("--threads", "-t", type=int, instead="physical cores", metavar="N", help=help)


def runtime_flags(dtypes: Sequence[str], *, default: str, help: str) -> list[click.Parameter]:
    """Where and how an artifact's runtime computes. default, help: of ``--compute-dtype``."""
    return [
        setting("--device", default="cpu", metavar="cpu|cuda|mps", help="Where runtimes compute."),
        former_flag("--dtype", "--compute-dtype", "dtype"),
        setting(
            "--compute-dtype",
            name="dtype",
            default=default,
            metavar="|".join(dtypes),
            help=help,
            envvar=["GEMQUANT_COMPUTE_DTYPE", "GEMQUANT_DTYPE"],
        ),
        threads_flag("Processor threads of the runtime."),
    ]


def runtime_flag() -> click.Parameter:
    """``--runtime``: which of several runtimes executes an artifact."""
    return setting(
        "--runtime",
        type=click.Choice(LOGITS_RUNTIMES),
        instead="the first that loads the artifact",
        metavar="NAME",
        help=f"What executes the artifact: {', '.join(LOGITS_RUNTIMES)}.",
    )


def evaluation_flags(
    inherited: str | None = None, positions: str | None = None
) -> list[click.Parameter]:
    """What the certificate is measured on.

    inherited: what gives the defaults, in words, where ``--seq-len`` is that of the evaluation.
    positions: what gives that of ``--eval-positions``.
    """
    own_length = setting(
        "--eval-seq-len",
        type=int,
        default=DEFAULTS.eval_seq_len,
        metavar="N",
        help="Tokens in each evaluation window, <bos> included; never more than --seq-len.",
    )
    return [
        setting(
            "--eval-windows",
            type=int,
            default=None if inherited else DEFAULTS.eval_windows,
            instead=inherited,
            metavar="N",
            help="Windows per evaluation slice.",
        ),
        *([] if inherited else [own_length]),
        setting(
            "--eval-positions",
            type=int,
            default=None if positions else DEFAULTS.eval_positions,
            instead=positions,
            metavar="N",
            help="Predictions measured in each window, spread over it; 0 for all.",
        ),
        setting(
            "--eval-slices",
            type=CommaList(),
            instead=inherited or "all",
            metavar="NAME,…",
            help="Evaluation slices.",
            complete=complete_slices,
        ),
    ]


def calibration_flags() -> list[click.Parameter]:
    """The text that statistics are gathered on, and how it is cut and traced."""
    return [
        setting(
            "--calib",
            default=DEFAULTS.calib,
            metavar="NAME|FILE|hf:DATASET",
            help="Calibration text: a mixture's name, a .txt or .jsonl file, or a Hub dataset.",
            complete=complete_calibration,
        ),
        setting(
            "--samples",
            type=int,
            default=DEFAULTS.samples,
            metavar="N",
            help="Calibration windows.",
        ),
        setting(
            "--calib-dtype",
            default=DEFAULTS.calib_dtype,
            metavar="auto|float32|bfloat16",
            help="Type of the calibration windows' activations. auto: bfloat16 where the device "
            "multiplies it natively, and the recipe records which.",
        ),
        *window_flags(),
    ]


def window_flags(inherited: str | None = None) -> list[click.Parameter]:
    """How text is cut into windows; ``inherited`` says what gives the defaults."""
    return [
        setting(
            "--seq-len",
            type=int,
            default=None if inherited else DEFAULTS.seq_len,
            instead=inherited,
            metavar="N",
            help="Tokens in each window, <bos> included.",
        ),
        setting(
            "--seed",
            type=int,
            default=None if inherited else DEFAULTS.seed,
            instead=inherited,
            metavar="N",
            help="Order in which documents are drawn.",
        ),
    ]


# ---------------------------------------------------------------- checks of values


def too_small(params: Mapping[str, Any], smallest: Mapping[str, int]) -> list[GemquantError]:
    """Numbers below the least that their option allows, by the option's name."""
    return [
        UsageError(f"--{name.replace('_', '-')} {params[name]}: must be at least {least}.")
        for name, least in smallest.items()
        if params[name] is not None and params[name] < least
    ]


def unknown_place(params: Mapping[str, Any], dtypes: Sequence[str]) -> list[GemquantError]:
    """Values of ``--device`` and ``--compute-dtype`` that do not exist."""
    problems: list[GemquantError] = []
    if params["device"] and params["device"].partition(":")[0] not in DEVICES:
        problems.append(
            UsageError(f"--device {params['device']}: must be one of {', '.join(DEVICES)}.")
        )
    if params["dtype"] not in {None, *dtypes}:
        problems.append(
            UsageError(f"--compute-dtype {params['dtype']}: must be one of {', '.join(dtypes)}.")
        )
    return problems
