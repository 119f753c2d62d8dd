"""``gemquant show``: print what an artifact is, and its certificates."""

from __future__ import annotations

from pathlib import Path

import click

from gemquant.cli.flags import artifacts_argument, flags, output_flags
from gemquant.errors import echo


@click.command(
    "show",
    epilog="""\b
Examples:
  gemquant show gemma-2-2b-awq
  gemquant show gemma-2-2b-gguf                 # every type in the folder
  gemquant show gemma-2-2b-gguf/Q4_K_M gemma-2-2b-awq
  gemquant show gemma-2-2b-awq --json | jq .manifest.certificates""",
)
@flags(
    artifacts_argument(),
    *output_flags(),
)
def command(artifacts: tuple[Path, ...], *, as_json: bool, quiet: bool) -> None:
    """Print what an artifact is and what it lost, or compare several.

    ARTIFACT is a folder that gemquant wrote, a file inside, or a folder of several artifacts.
    Reads manifest.json only; `gemquant verify` checks the files.
    """
    from gemquant.cli.artifacts import opened, require_there

    require_there(artifacts)
    from gemquant.cli import render

    del quiet  # there is no progress to silence
    found = opened(artifacts)
    render.artifacts(found, as_json=as_json)
    several = len({each.path for each in found}) > 1  # one folder: a set from the Hub
    if several and not as_json and all(each.manifest.container == "gguf" for each in found):
        echo(f"next: {render.push_command(found)}")
