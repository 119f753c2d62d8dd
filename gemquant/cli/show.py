"""``gemquant show``: print what an artifact is, and its certificates."""

from __future__ import annotations

from pathlib import Path

import click

from gemquant.cli.flags import output_flags


def _show(artifact: Path, *, as_json: bool, quiet: bool) -> None:
    from gemquant.cli import render
    from gemquant.core.artifact import Artifact, read_manifest

    del quiet  # there is no progress to silence
    render.artifact(Artifact(artifact, read_manifest(artifact)), as_json=as_json)


command = click.Command(
    "show",
    callback=_show,
    params=[click.Argument(["artifact"], type=click.Path(path_type=Path)), *output_flags()],
    help="""Print what an artifact is and what it lost.

    Reads manifest.json only; `gemquant verify` checks the files.""",
    epilog="""\b
Examples:
  gemquant show gemma-2-2b-awq
  gemquant show gemma-2-2b-awq --json | jq .manifest.certificates""",
)
