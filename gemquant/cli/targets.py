"""``gemquant targets``: the devices that artifacts can be made for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gemquant.cli.flags import (
    complete_target,
    defaults_flag,
    flags,
    output_flags,
    target_folder_flag,
)
from gemquant.cli.settings import problems_of, target_folders
from gemquant.errors import echo, refuse

if TYPE_CHECKING:
    from gemquant.core.targets import Npu, Target


@click.command(
    "targets",
    epilog="""\b
Examples:
  gemquant targets
  gemquant targets cuda
  gemquant targets --target-folder ./my-targets""",
)
@flags(
    click.Argument(["name"], required=False, shell_complete=complete_target),
    target_folder_flag(),
    defaults_flag(),
    *output_flags(),
)
@click.pass_context
def command(ctx: click.Context, /, **params: Any) -> None:
    """List the devices, or describe one.

    A target is a file of data; see docs/new-target.md.
    """
    from gemquant.cli import render
    from gemquant.core.targets import load_target, targets

    refuse(problems_of(ctx))
    name, as_json = params["name"], params["as_json"]
    folders = target_folders(params["target_folder"])
    chosen = [load_target(name, folders)] if name else targets(folders)
    if as_json:
        documents = [target.model_dump(mode="json") for target in chosen]
        render.print_json(documents[0] if name else documents)
    elif name:
        _describe(chosen[0])
    else:
        listing = render.table("target", "exporters", "what it is")
        for target in chosen:
            exporters = ", ".join(target.exporters) or "gemquant rkllm"
            listing.add_row(target.name, exporters, target.description)
        render.print_tables(listing)


def _describe(target: Target) -> None:
    from gemquant.cli import render
    from gemquant.core.targets import accepted_schemes

    render.print_tables(f"{target.name}: {target.description}", "")
    if target.npu is not None:
        _describe_npu(target.npu)
    if not target.containers:
        return
    defaults = render.table("generation", "default container", "then")
    for generation, (first, *rest) in target.preference.items():
        defaults.add_row(generation, first, ", ".join(rest))
    render.print_tables(defaults)
    for container in target.containers:
        lines = [f"\n{container.exporter}: {container.description}"]
        if container.choose:
            lines.append(f"  {container.choose}")
        for runtime in container.runtimes:
            lines += [
                f"  {runtime.name}",
                f"    needs    {', '.join(runtime.requires)}",
                f"    runs     {', '.join(runtime.generations)} in {', '.join(runtime.dtypes)}",
                *(f"    takes    {words}" for words in accepted_schemes(runtime)),
                *([f"    note     {runtime.note}"] if runtime.note else []),
                *(f"    source   {source}" for source in runtime.sources),
            ]
        echo("\n".join(lines))


def _describe_npu(npu: Npu) -> None:
    from gemquant.cli import render
    from gemquant.core.targets import load_toolkit

    toolkit = load_toolkit(npu.toolkit)
    kinds = list(dict.fromkeys(kind for each in toolkit.versions for kind in each.generations))
    matrix = render.table("quantized dtype", *kinds)
    for dtype in npu.dtypes:
        releases = (toolkit.converting(npu.platform, each, dtype.name) for each in kinds)
        oldest = (f"{toolkit.name} {each[0].version}" if each else "none" for each in releases)
        matrix.add_row(dtype.name, *oldest)
    cores = "/".join(map(str, npu.cores))
    render.print_tables(
        matrix,
        "",
        "  the oldest release that converts it; every later known one does too",
        f"  cores    {cores}",
        f"  hybrid   rates from 0 to below {npu.hybrid_rate_below:g}",
        f"  context  at most {npu.max_context}, a multiple of {npu.context_multiple}",
        f"  driver   {npu.driver} or newer",
        *(f"  source   {source}" for source in npu.sources),
    )
