"""The flags of a quantizer's command: its own, made from its fields, and those of all."""

from __future__ import annotations

import os
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from gemquant.cli.flags import (
    DEFAULTS,
    CommaList,
    calibration_flags,
    complete_exporter,
    complete_target,
    evaluation_flags,
    machine_flags,
    output_flags,
    recipe_flag,
    target_folder_flag,
)
from gemquant.cli.settings import COMPUTE_DTYPE, Setting, note_renamed, setting
from gemquant.core.options import Option, former_names, options_of


class Repeated(Setting):
    """An option that may be given several times; in a recipe a list, or one text."""

    def get_default(self, ctx: click.Context, call: bool = True) -> Any:
        """Take a single text from a recipe for a list of one."""
        value = super().get_default(ctx, call=call)
        return (value,) if isinstance(value, str) else value


def quantizer_flags(quantizer: type[Any]) -> list[click.Parameter]:
    """Make one flag of each option field of a quantizer."""
    return [_option_flag(option) for option in options_of(quantizer)]


def current_flags(quantizer: type[Any], args: Sequence[str]) -> list[str]:
    """Replace former flags by current ones; note each on stderr, and former variables too."""
    renamed: dict[str, str] = {}
    for former, name in former_names(quantizer).items():
        words = former.replace("_", "-"), name.replace("_", "-")
        renamed |= {f"{dashes}{words[0]}": f"{dashes}{words[1]}" for dashes in ("--", "--no-")}
        if (variable := _variable(former)) in os.environ:
            note_renamed(variable, _variable(name))
    end = args.index("--") if "--" in args else len(args)
    current = list(args)
    for n, arg in enumerate(args[:end]):
        flag, equals, value = arg.partition("=")
        if flag in renamed:
            note_renamed(flag, renamed[flag])
            current[n] = renamed[flag] + equals + value
    return current


def _variable(name: str) -> str:
    return f"GEMQUANT_{name.upper()}"


def _option_flag(option: Option) -> click.Parameter:
    flag = "--" + option.name.replace("_", "-")
    variables = [_variable(name) for name in (option.name, option.spec.formerly) if name]
    if option.type is bool:
        return setting(
            f"{flag}/--no-{flag[2:]}",
            default=option.default,
            help=option.spec.help,
            envvar=variables,
        )
    if option.spec.repeated:
        return Repeated(
            [flag],
            multiple=True,
            default=option.default,
            metavar="TEXT",
            show_default=bool(option.default),
            help=option.spec.help,
            envvar=variables,
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
        metavar="|".join(map(str, choices)) if choices else _metavar(option),
        help=option.spec.help,
        envvar=variables,
    )


def _metavar(option: Option) -> str:
    return "SIZE" if option.spec.size else {int: "N", float: "X"}.get(option.type, "TEXT")


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
        *calibration_flags(),
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
