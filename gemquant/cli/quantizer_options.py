"""A quantizer's command line: flags made from its fields and those of all, read into a request."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import (
    DEFAULTS,
    CommaList,
    Repeated,
    calibration_flags,
    complete_exporter,
    complete_target,
    complete_template,
    complete_type,
    evaluation_flags,
    machine_flags,
    offering,
    output_flags,
    recipe_flag,
    target_folder_flag,
)
from gemquant.cli.settings import (
    COMPUTE_DTYPE,
    note_renamed,
    problems_of,
    setting,
    target_folders,
    threads_of,
)
from gemquant.core.options import (
    Option,
    former_names,
    options_of,
    problems_with,
    recorded_options,
)
from gemquant.core.recipe import Recipe
from gemquant.errors import ProblemCollector, UsageError

if TYPE_CHECKING:
    from gemquant.core.targets import Target

RECIPE_FLAGS = (
    "target",
    "exporter",
    "calib",
    "samples",
    "seq_len",
    "seed",
    "eval_windows",
    "eval_seq_len",
    "eval_positions",
    "eval_slices",
    "device",
    "calib_dtype",
    "lora",
    "chat_template",
    "text_only",
)
"""Flags whose values go into the recipe under the same name."""


class OptionsCommand(click.Command):
    """A command with the options of a dataclass, which gemquant.toml holds in a table."""

    def __init__(self, *args: Any, quantizer: type[Any], **kwargs: Any) -> None:
        """quantizer: the dataclass."""
        self.quantizer = quantizer
        super().__init__(*args, **kwargs)


def quantizer_flags(quantizer: type[Any]) -> list[click.Parameter]:
    """Make one flag of each option field of a quantizer."""
    return [_option_flag(option) for option in options_of(quantizer)]


def current_flags(quantizer: type[Any], args: Sequence[str]) -> list[str]:
    """Replace former flags by current ones; note each on stderr, and former variables too."""
    renamed: dict[str, str] = {}
    for former, name in former_names(quantizer).items():
        if former == COMPUTE_DTYPE:  # a shared flag has the name now; recipes are translated
            continue
        words = former.replace("_", "-"), name.replace("_", "-")
        renamed |= {f"{dashes}{words[0]}": f"{dashes}{words[1]}" for dashes in ("--", "--no-")}
        if (variable := _variable(former)) in os.environ:
            note_renamed(variable, _variable(name))
    return renamed_flags(args, renamed)


def renamed_flags(args: Sequence[str], names: Mapping[str, str], *, note: bool = True) -> list[str]:
    """Replace flags by those that they stand for. note: say so on stderr."""
    end = args.index("--") if "--" in args else len(args)
    current = list(args)
    for n, arg in enumerate(args[:end]):
        flag, equals, value = arg.partition("=")
        if flag in names:
            if note:
                note_renamed(flag, names[flag])
            current[n] = names[flag] + equals + value
    return current


def _variable(name: str) -> str:
    return f"GEMQUANT_{name.upper()}"


def _option_flag(option: Option) -> click.Parameter:
    flag, spec = "--" + option.name.replace("_", "-"), option.spec
    names = [option.name, *([spec.formerly] if spec.formerly not in {None, COMPUTE_DTYPE} else [])]
    variables = [_variable(str(name)) for name in names]
    if option.type is bool:
        return setting(
            f"{flag}/--no-{flag[2:]}", default=option.default, help=spec.help, envvar=variables
        )
    if spec.repeated or spec.each:
        default = (option.default,) if spec.each else option.default
        return Repeated(
            [flag],
            multiple=True,
            default=default,
            metavar="TEXT",
            show_default=bool(default),
            help=spec.help,
            envvar=variables,
            shell_complete=complete_type if spec.each else None,
        )
    if typing.get_origin(option.type) is tuple:
        return setting(
            flag,
            type=CommaList(),
            default=",".join(option.default) or None,
            metavar="NAME,…",
            help=spec.help,
        )
    return setting(
        flag,
        type=option.type,
        default=option.default,
        metavar="|".join(map(str, spec.choices)) if spec.choices else _metavar(option),
        help=spec.help,
        complete=offering(lambda: map(str, spec.choices or ())),
        envvar=variables,
    )


def _metavar(option: Option) -> str:
    return "SIZE" if option.spec.size else {int: "N", float: "X"}.get(option.type, "TEXT")


class _Adapters(click.types.StringParamType):
    """Adapters in an environment variable are separated by commas, as paths may have spaces."""

    envvar_list_splitter = ","


def lora_flag() -> click.Parameter:
    """``--lora``, the same everywhere."""
    return Repeated(
        ["--lora"],
        type=_Adapters(),
        multiple=True,
        metavar="DIR|HUB-ID[=WEIGHT]",
        help="Adapter of peft or mlx-lm to merge into the weights; several are merged in turn.",
        envvar="GEMQUANT_LORA",
    )


def common_flags(quantizer: type[Any]) -> list[click.Parameter]:
    """All other flags of a quantizer's command."""
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
        lora_flag(),
        setting(
            "--chat-template",
            metavar="NAME|FILE",
            instead="the checkpoint's",
            help="Chat template for chat text and for the artifact: stock, system, system-in-user, "
            "systemgemma2, or a file.",
            complete=complete_template,
        ),
        setting(
            "--text-only/--no-text-only",
            default=False,
            help="Leave the vision and audio towers of a multimodal Gemma out.",
        ),
        *evaluation_flags(),
        click.Option(["--no-eval"], is_flag=True, help="Write no certificate."),
        *machine_flags(
            name=COMPUTE_DTYPE, former=all(o.name != "dtype" for o in options_of(quantizer))
        ),
        recipe_flag(),
        target_folder_flag(),
        click.Option(
            ["--dry-run"], is_flag=True, help="Check everything, print the plan, write nothing."
        ),
        click.Option(["--force"], is_flag=True, help="Replace an existing output folder."),
        *output_flags(),
    ]


@dataclass(frozen=True)
class QuantizerRequest:
    """What a quantizer's command line requests, checked as far as possible without the model.

    recipe: complete but for the exporter, which may depend on the model's generation.
    quantizers: one for each artifact. output: None for a name made from model and scheme.
    """

    recipe: Recipe
    quantizers: Sequence[Any]
    target: Target
    output: Path | None
    threads: int
    dry_run: bool
    force: bool
    restart: bool

    def check_place(self) -> None:
        """Raise what the paths of model and adapters show, before torch is loaded to open them."""
        from gemquant.formats.checkpoint.recognition import check_adapter, check_place

        problems = ProblemCollector()
        problems.attempt(lambda: check_place(self.recipe.model))
        for ref in self.recipe.lora:
            problems.attempt(partial(check_adapter, ref))
        problems.refuse()

    @property
    def common(self) -> dict[str, Any]:
        """What every program's request has."""
        names = ("recipe", "target", "output", "threads", "force")
        return {name: getattr(self, name) for name in names}


def read_request(
    ctx: click.Context, quantizer_type: type[Any], *, exporter: str | None = None
) -> QuantizerRequest:
    """Read a command's parameters; raise everything that is wrong with them at once.

    exporter: the container, where the command has no choice.
    """
    from gemquant.core.targets import load_target

    params = ctx.params
    problems = problems_of(ctx)
    quantizers = _quantizers(ctx, quantizer_type)
    for quantizer in quantizers:
        problems += problems_with(quantizer)
    if not params["model"]:
        problems.append(
            UsageError(
                "MODEL: missing.",
                hint=f"Name a folder, a Hub id, a GGUF file or a sample, "
                f"as in: gemquant {ctx.info_name} sample:gemma-3-270m",
            )
        )
    values = {name: params[name] for name in RECIPE_FLAGS if params.get(name) is not None}
    if params.get(COMPUTE_DTYPE) is not None:
        values["dtype"] = params[COMPUTE_DTYPE]
    if exporter is not None:
        values["exporter"] = exporter
    if params.get("no_eval"):
        values["eval_windows"] = 0
    recipe = Recipe(
        model=params["model"] or "",
        quantizer=str(ctx.info_name),
        options=recorded_options(quantizers[0]),
        **values,
    )
    problems += recipe.problems()
    threads = threads_of(params, problems)
    folders = problems.attempt(lambda: target_folders(params["target_folder"]))
    target = problems.attempt(lambda: load_target(params["target"] or "", folders.value))
    if recipe.exporter is not None:
        problems.attempt(lambda: target.value.container(str(recipe.exporter)))
    problems.refuse()
    return QuantizerRequest(
        recipe=recipe,
        quantizers=quantizers,
        target=target.value,
        output=params["output"],
        threads=threads,
        dry_run=params["dry_run"],
        force=params["force"],
        restart=params.get("restart", False),
    )


def _quantizers(ctx: click.Context, quantizer_type: type[Any]) -> list[Any]:
    """One quantizer, or one for each value of an option that stands for an artifact each.

    An option whose value was refused has its default, so that the others are checked too.
    """
    options = options_of(quantizer_type)
    values = {
        o.name: o.default if ctx.params.get(o.name) is None else ctx.params[o.name] for o in options
    }
    several = next((o for o in options if o.spec.each), None)
    if several is None:
        return [quantizer_type(**values)]
    flag = "--" + several.name.replace("_", "-")
    texts = ctx.params.get(several.name) or ()
    names = [part.strip() for text in texts for part in text.split(",")]
    counts: dict[str, int] = {}
    for name in filter(None, names):
        counts[name.upper()] = counts.get(name.upper(), 0) + 1
    problems = problems_of(ctx)
    problems += [
        UsageError(f"{flag} {name}: given {count} times.")
        for name, count in counts.items()
        if count > 1
    ]
    if not counts:
        problems.append(UsageError(f"{flag}: missing.", hint=f"As in: {flag} {several.default}"))
    chosen = list(counts) or [several.default]
    return [quantizer_type(**{**values, several.name: name}) for name in chosen]
