"""``gemquant quantizers``: the algorithms, their options and where they come from."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import click

from gemquant.cli.flags import flags, output_flags
from gemquant.convert.plugins import plugins, quantizer_type
from gemquant.core.options import options_of


@click.command(
    "quantizers",
    epilog="""\b
Examples:
  gemquant quantizers
  gemquant quantizers --json""",
)
@flags(*output_flags())
def command(*, as_json: bool, quiet: bool) -> None:
    """List the quantizers and their options.

    A quantizer may come from another package; see docs/new-quantizer.md.
    """
    from gemquant.cli import render

    del quiet  # there is no progress to silence
    quantizers = [_facts(name) for name in plugins("quantizer")]
    if as_json:
        render.print_json(quantizers)
        return
    for quantizer in quantizers:
        options = render.table("option", "default", "what it is")
        for option in quantizer["options"]:
            options.add_row(option["flag"], _written(option["default"]), option["help"])
        title = f"{quantizer['name']}: {quantizer['summary']} [{quantizer['package']}]"
        render.print_tables(title, options, "")


def _written(default: Any) -> str:
    """A default as it is typed."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return ", ".join(default) if isinstance(default, tuple) else str(default)


def _facts(name: str) -> dict[str, Any]:
    cls = quantizer_type(name)
    return {
        "name": name,
        "summary": inspect.cleandoc(cls.__doc__ or "").split("\n", 1)[0],
        "package": plugins("quantizer")[name].package,
        "options": [
            {
                "flag": "--" + option.name.replace("_", "-"),
                "default": option.default,
                **dataclasses.asdict(option.spec),
            }
            for option in options_of(cls)
        ],
    }
