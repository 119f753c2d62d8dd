"""What a quantizer's command line asks for, checked as far as that goes without the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import DEFAULTS
from gemquant.cli.settings import COMPUTE_DTYPE, problems_of, target_folders, threads_of
from gemquant.core.options import options_of, problems_with
from gemquant.core.protocols import Quantizer
from gemquant.core.recipe import Recipe
from gemquant.errors import GemquantError, UsageError, refuse

if TYPE_CHECKING:
    from gemquant.core.targets.target import Target


@dataclass(frozen=True)
class Request:
    """One artifact to make.

    recipe: complete but for the exporter, which may depend on the model's generation.
    output: None for a name made from the model and the scheme.
    """

    recipe: Recipe
    quantizer: Quantizer
    target: Target
    output: Path | None
    threads: int
    dry_run: bool
    force: bool
    restart: bool


def read_request(ctx: click.Context, quantizer_type: type[Any]) -> Request:
    """Read a command's parameters; raise everything that is wrong with them at once."""
    from gemquant.core.targets.target import load_target

    given = ctx.params
    problems = problems_of(ctx)
    refused = {name for name, value in given.items() if value is None}

    options = {o.name: o for o in options_of(quantizer_type)}
    # An option whose value was refused keeps its default, so that the others are checked too.
    values = {name: o.default if name in refused else given[name] for name, o in options.items()}
    quantizer = quantizer_type(**values)
    problems += problems_with(quantizer)

    if not given["model"]:
        problems.append(
            UsageError(
                "MODEL: missing.",
                hint=f"Name a folder, a Hub id, a GGUF file or a sample, "
                f"as in: gemquant {ctx.info_name} sample:gemma-3-270m",
            )
        )
    recipe = _recipe(ctx, {name: getattr(quantizer, name) for name in options})
    problems += recipe.problems()
    threads = threads_of(given, problems)
    try:
        target = load_target(given["target"] or "", target_folders(given["target_folder"]))
        if given.get("exporter") is not None:
            target.container(given["exporter"])
    except GemquantError as error:
        refuse([*problems, error])
        raise
    refuse(problems)
    return Request(
        recipe=recipe,
        quantizer=quantizer,
        target=target,
        output=given["output"],
        threads=threads,
        dry_run=given["dry_run"],
        force=given["force"],
        restart=given.get("restart", False),
    )


def _recipe(ctx: click.Context, options: dict[str, Any]) -> Recipe:
    given = dict(ctx.params)
    if COMPUTE_DTYPE in given and COMPUTE_DTYPE not in options:
        given["dtype"] = given[COMPUTE_DTYPE]
    values = {
        name: given[name] if given.get(name) is not None else getattr(DEFAULTS, name)
        for name in RECIPE_FLAGS
    }
    if given["no_eval"]:
        values["eval_windows"] = 0
    return Recipe(
        model=given["model"] or "", quantizer=str(ctx.info_name), options=options, **values
    )


RECIPE_FLAGS: Sequence[str] = (
    "target",
    "exporter",
    "calib",
    "samples",
    "seq_len",
    "seed",
    "eval_windows",
    "eval_slices",
    "device",
    "dtype",
    "calib_dtype",
    "lora",
    "chat_template",
)
"""Flags whose values go into the recipe under the same name."""
