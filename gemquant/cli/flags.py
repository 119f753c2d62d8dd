"""The flags that commands share, and those made from a quantizer's fields."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from gemquant.cli.settings import COMPUTE_DTYPE, Setting, load_defaults, setting
from gemquant.options import Option, options_of
from gemquant.recipe import COMPUTE_DTYPES, Recipe

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

    def get_default(self, ctx: click.Context, call: bool = True) -> Any:
        """Take a single text from a recipe for a list of one."""
        value = super().get_default(ctx, call=call)
        return (value,) if isinstance(value, str) else value


def complete_target(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the names of the shipped targets."""
    from gemquant.target import target_files

    return [CompletionItem(name) for name in target_files() if name.startswith(incomplete)]


def complete_exporter(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the names of the exporters."""
    from gemquant.plugins import plugins

    return [CompletionItem(name) for name in plugins("exporter") if name.startswith(incomplete)]


# ---------------------------------------------------------------- shared by all commands


def _set_verbosity(ctx: click.Context, param: click.Parameter, count: int) -> int:
    from gemquant.cli.logs import show_logs

    show_logs(count)
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


def target_folder_flag() -> click.Parameter:
    """``--target-folder``: targets of the user's own."""
    return setting(
        "--target-folder",
        metavar="DIR",
        help="Folder of further target files; they win over shipped ones of the same name.",
        envvar="GEMQUANT_TARGETS",
    )


def machine_flags(inherited: str | None = None, *, dtype: str = "--dtype") -> list[click.Parameter]:
    """Where and how activations are computed.

    inherited: what gives the defaults, in words. dtype: the flag of the type computed in.
    """
    return [
        setting(
            "--device",
            default=None if inherited else DEFAULTS.device,
            instead=inherited,
            metavar="cpu|cuda|mps",
            help="Where activations are computed and scales searched.",
        ),
        setting(
            dtype,
            default=None if inherited else DEFAULTS.dtype,
            instead=inherited,
            metavar="|".join(COMPUTE_DTYPES),
            help="Type that activations are computed in.",
        ),
        setting(
            "--threads",
            type=int,
            instead="physical cores",
            metavar="N",
            help="Processor threads.",
        ),
    ]


def evaluation_flags(inherited: str | None = None) -> list[click.Parameter]:
    """What the certificate is measured on; ``inherited`` says what gives the defaults."""
    return [
        setting(
            "--eval-windows",
            type=int,
            default=None if inherited else DEFAULTS.eval_windows,
            instead=inherited,
            metavar="N",
            help="Windows per evaluation slice.",
        ),
        setting(
            "--eval-slices",
            type=CommaList(),
            instead=inherited or "all",
            metavar="NAME,…",
            help="Evaluation slices.",
        ),
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


# ---------------------------------------------------------------- of a quantizer


def quantizer_flags(quantizer: type[Any]) -> list[click.Parameter]:
    """Make one flag of each option field of a quantizer."""
    return [_option_flag(option) for option in options_of(quantizer)]


def _option_flag(option: Option) -> click.Parameter:
    flag = "--" + option.name.replace("_", "-")
    if option.type is bool:
        return setting(f"{flag}/--no-{flag[2:]}", default=option.default, help=option.spec.help)
    if option.spec.repeated:
        return Repeated(
            [flag],
            multiple=True,
            default=option.default,
            metavar="TEXT",
            show_default=bool(option.default),
            help=option.spec.help,
            envvar=f"GEMQUANT_{option.name.upper()}",
        )
    if typing.get_origin(option.type) is tuple:
        return setting(
            flag,
            type=CommaList(),
            default=",".join(option.default) or None,
            metavar="NAME,…",
            help=option.spec.help,
        )
    choices = option.spec.choices
    return setting(
        flag,
        type=option.type,
        default=option.default,
        metavar="|".join(map(str, choices)) if choices else _metavar(option.type),
        help=option.spec.help,
    )


def _metavar(kind: type) -> str:
    return {int: "N", float: "X"}.get(kind, "TEXT")


def common_flags(quantizer: type[Any]) -> list[click.Parameter]:
    """All other flags of a quantizer's command."""
    own = {option.name for option in options_of(quantizer)}
    dtype = "--" + (COMPUTE_DTYPE if "dtype" in own else "dtype").replace("_", "-")
    return [
        setting(
            "--target",
            default=getattr(quantizer, "target", DEFAULTS.target),
            metavar="NAME",
            help="Device to make the artifact for; see `gemquant targets`.",
            complete=complete_target,
        ),
        setting(
            "--exporter",
            "--format",
            metavar="NAME",
            instead="what the target prefers for this Gemma",
            help="Container.",
            complete=complete_exporter,
        ),
        setting(
            "--output",
            "-o",
            type=click.Path(path_type=Path),
            metavar="DIR",
            instead="MODEL-QUANTIZER-SCHEME, here",
            help="Folder to write.",
        ),
        setting(
            "--calib",
            default=DEFAULTS.calib,
            metavar="NAME|FILE|hf:DATASET",
            help="Calibration text: a mixture's name, a .txt or .jsonl file, or a Hub dataset.",
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
        setting(
            "--lora",
            metavar="DIR|HUB-ID",
            help="PEFT adapter to merge into the weights.",
        ),
        setting(
            "--chat-template",
            metavar="NAME|FILE",
            instead="the checkpoint's",
            help="Chat template for chat text and for the artifact: stock, system, system-in-user, "
            "systemgemma2, or a file.",
        ),
        *evaluation_flags(),
        click.Option(["--no-eval"], is_flag=True, help="Write no certificate."),
        *machine_flags(dtype=dtype),
        recipe_flag(),
        target_folder_flag(),
        click.Option(
            ["--dry-run"], is_flag=True, help="Check everything, print the plan, write nothing."
        ),
        click.Option(["--force"], is_flag=True, help="Replace an existing output folder."),
        *output_flags(),
    ]
