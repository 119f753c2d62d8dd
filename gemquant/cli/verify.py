"""``gemquant verify``: hash artifacts again, check their structure, and who signed them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gemquant.cli.artifacts import folders_at, opened, require_there
from gemquant.cli.flags import artifacts_argument, flags, output_flags
from gemquant.core.progress import reporter
from gemquant.errors import ArtifactError, GemquantError, UsageError, echo, refuse


@click.command(
    "verify",
    epilog="""\b
Examples:
  gemquant verify gemma-2-2b-awq
  gemquant verify build/* --json
  gemquant verify gemma-2-2b-awq --public-key signing.pub
  gemquant verify gemma.llamafile""",
)
@click.option(
    "--public-key",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also check the signature: it must be from this key's private half.",
)
@click.option(
    "--signature",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The signature.  [default: ARTIFACT/model.sig]",
)
@flags(artifacts_argument(), *output_flags())
def command(
    artifacts: tuple[Path, ...],
    *,
    signature: Path | None,
    public_key: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Verify the hashes and structure of artifacts.

    ARTIFACT is a folder that gemquant wrote, a folder of several, a set from the Hub, a llamafile.
    Every file must be the one that the manifest describes, and the container must hold every
    tensor of the model. A model.sig and the Hub's .gitattributes and .cache/huggingface may be in
    the folder too. With --public-key the signature must be valid for the manifest and all files
    (extra signing). A llamafile is compared with its record. Exits with 6 if anything differs.
    """
    require_there(artifacts)
    from gemquant.cli import render
    from gemquant.publish.verify import artifact_problems, signature_problems

    found = {folder: problems for path in artifacts for folder, problems in _found(path).items()}
    refuse(_usage_problems(tuple(found), signature, public_key))
    all_problems: list[GemquantError] = []
    results: list[dict[str, Any]] = []
    with reporter(quiet=quiet) as progress:
        for path, missing in found.items():
            progress.start(f"verifying {path}", 0)
            problems = missing or artifact_problems(path)
            if public_key is not None and not missing:
                problems += signature_problems(path, signature, public_key)
            all_problems += problems
            texts = [str(problem) for problem in problems]
            result: dict[str, Any] = {"path": str(path), "valid": not problems, "problems": texts}
            manifests = [] if problems or path.is_file() else [e.manifest for e in opened([path])]
            if beyond := [each.tokens_without_row for each in manifests if each.tokens_without_row]:
                result["notes"] = [*dict.fromkeys(map(str, beyond))]
            if public_key is not None:
                result["signed_by"] = None if problems else str(public_key)
            results.append(result)
    if as_json:
        render.print_json(results)
    else:
        for result in results:
            signed = f", signed by {result['signed_by']}" if result.get("signed_by") else ""
            notes = "".join(f"; note: {note}" for note in result.get("notes", ()))
            echo(f"{result['path']}: {'valid' if result['valid'] else 'not valid'}{signed}{notes}")
    refuse(all_problems)


def _found(path: Path) -> dict[Path, list[GemquantError]]:
    """The artifacts, llamafile or downloaded set at a path; else the path and what is wrong."""
    from gemquant.core.artifact.finalize import MANIFESTS

    if (path / MANIFESTS).is_dir():
        return {path: []}
    try:
        return {folder: [] for folder in folders_at(path)}
    except ArtifactError as error:
        return {path: [] if path.is_file() else [error]}


def _usage_problems(
    artifacts: tuple[Path, ...], signature: Path | None, public_key: Path | None
) -> list[GemquantError]:
    problems: list[GemquantError] = []
    if signature is not None and public_key is None:
        problems.append(
            UsageError(
                "--signature without --public-key: a signature proves nothing without the key.",
                hint="gemquant verify ARTIFACT --signature FILE --public-key KEY",
            )
        )
    if signature is not None and len(artifacts) > 1:
        problems.append(
            UsageError(
                f"--signature names one file for {len(artifacts)} artifacts.",
                hint="Omit it if each artifact has its own model.sig.",
            )
        )
    if public_key is not None:
        problems += [
            UsageError(f"{path} is a file: only folders are signed.")
            for path in artifacts
            if path.is_file()
        ]
    return problems
