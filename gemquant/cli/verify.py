"""``gemquant verify``: hash artifacts again and check their structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gemquant.cli.flags import output_flags
from gemquant.cli.progress import reporter
from gemquant.errors import GemquantError, refuse
from gemquant.progress import Silence


def _verify(artifacts: tuple[Path, ...], *, as_json: bool, quiet: bool) -> None:
    from gemquant.cli import render

    problems: list[GemquantError] = []
    results: list[dict[str, Any]] = []
    with reporter(quiet=quiet) as progress:
        for path in artifacts:
            progress.note(f"verifying {path}")
            found = _problems(path)
            problems += found
            results.append(
                {"path": str(path), "valid": not found, "problems": [str(p) for p in found]}
            )
    if as_json:
        render.print_json(results)
    else:
        for result in results:
            click.echo(f"{result['path']}: {'valid' if result['valid'] else 'not valid'}")
    refuse(problems)


def _problems(path: Path) -> list[GemquantError]:
    """Check one artifact: hashes of all files, then the structure. A file is a llamafile."""
    from gemquant.artifact import Artifact
    from gemquant.errors import Problems
    from gemquant.llamafile.reading import verify
    from gemquant.plugins import exporter

    try:
        if path.is_file():
            verify(path, progress=Silence())
            return []
        artifact = Artifact.open(path)
        # What its vendor's tool wrote is in no published format; the hashes have been compared.
        if artifact.manifest.conversion is None:
            exporter(artifact.manifest.container).open(path)
    except Problems as several:
        return list(several.problems)
    except GemquantError as error:
        return [error]
    return []


command = click.Command(
    "verify",
    callback=_verify,
    params=[
        click.Argument(["artifacts"], nargs=-1, required=True, type=click.Path(path_type=Path)),
        *output_flags(),
    ],
    help="""Hash artifacts again and check their structure.

    Every file must be the one that the manifest describes, and the container must hold every
    tensor of the model. A llamafile is compared with the record beside it. Exits with 6 if anything
    differs.""",
    epilog="""\b
Examples:
  gemquant verify gemma-2-2b-awq
  gemquant verify build/* --json
  gemquant verify gemma.llamafile""",
)
