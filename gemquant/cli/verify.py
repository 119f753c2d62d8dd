"""``gemquant verify``: hash artifacts again, check their structure, and who signed them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gemquant.cli.flags import output_flags
from gemquant.cli.progress import reporter
from gemquant.core.progress import Silence
from gemquant.errors import GemquantError, UsageError, refuse


def _verify(
    artifacts: tuple[Path, ...],
    *,
    signature: Path | None,
    public_key: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    from gemquant.cli import render

    _refuse_half_a_question(artifacts, signature, public_key)
    problems: list[GemquantError] = []
    results: list[dict[str, Any]] = []
    with reporter(quiet=quiet) as progress:
        for path in artifacts:
            progress.note(f"verifying {path}")
            found = _problems(path)
            if public_key is not None:
                found += _signature_problems(path, signature, public_key)
            problems += found
            result = {"path": str(path), "valid": not found, "problems": [str(p) for p in found]}
            if public_key is not None:
                result["signed_by"] = None if found else str(public_key)
            results.append(result)
    if as_json:
        render.print_json(results)
    else:
        for result in results:
            signed = f", signed by {result['signed_by']}" if result.get("signed_by") else ""
            click.echo(f"{result['path']}: {'valid' if result['valid'] else 'not valid'}{signed}")
    refuse(problems)


def _refuse_half_a_question(
    artifacts: tuple[Path, ...], signature: Path | None, public_key: Path | None
) -> None:
    problems: list[GemquantError] = []
    if signature is not None and public_key is None:
        problems.append(
            UsageError(
                "--signature without --public-key: a signature says nothing without the key.",
                hint="gemquant verify ARTIFACT --signature FILE --public-key KEY",
            )
        )
    if signature is not None and len(artifacts) > 1:
        problems.append(
            UsageError(
                f"--signature names one file for {len(artifacts)} artifacts.",
                hint="Leave it out where each artifact carries its own model.sig.",
            )
        )
    if public_key is not None:
        problems += [
            UsageError(f"{path} is a file: only folders are signed.")
            for path in artifacts
            if path.is_file()
        ]
    refuse(problems)


def _problems(path: Path) -> list[GemquantError]:
    """Check one artifact. A file is a llamafile."""
    from gemquant.formats.llamafile.record import verify
    from gemquant.publish.verification import artifact_problems

    if not path.is_file():
        return artifact_problems(path)
    try:
        verify(path, progress=Silence())
    except GemquantError as error:
        return [error]
    return []


def _signature_problems(
    path: Path, signature: Path | None, public_key: Path
) -> list[GemquantError]:
    from gemquant.publish.signature import signature_place, verify_signature

    try:
        place = signature_place(path) if signature is None else signature
        verify_signature(path, signature=place, public_key=public_key)
    except GemquantError as error:
        return [error]
    return []


command = click.Command(
    "verify",
    callback=_verify,
    params=[
        click.Argument(["artifacts"], nargs=-1, required=True, type=click.Path(path_type=Path)),
        click.Option(
            ["--public-key"],
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="Check the signature too: it must have been made with this key's private half.",
        ),
        click.Option(
            ["--signature"],
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="The signature, where it is not ARTIFACT/model.sig.",
        ),
        *output_flags(),
    ],
    help="""Hash artifacts again and check their structure.

    Every file must be the one that the manifest describes, and the container must hold every
    tensor of the model; a model.sig and the Hub's own .gitattributes and .cache/huggingface may
    stand beside them. With --public-key the signature must hold for the manifest and all files
    (extra signing). A llamafile is compared with the record beside it. Exits with 6 if anything
    differs.""",
    epilog="""\b
Examples:
  gemquant verify gemma-2-2b-awq
  gemquant verify build/* --json
  gemquant verify gemma-2-2b-awq --public-key signing.pub
  gemquant verify gemma.llamafile""",
)
