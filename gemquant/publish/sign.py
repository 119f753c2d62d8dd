"""Signing an artifact: its manifest and every file that it lists."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gemquant.core.artifact import SIGNATURE_FILE
from gemquant.core.artifact.finalize import HUB_RECORDS
from gemquant.core.artifact.staged_files import file_problems, staged_files
from gemquant.errors import ArtifactError, GemquantError, OutputError, refuse
from gemquant.publish.verify import (
    artifact_problems,
    bad_key,
    key_problems,
    signature_path,
    signing_library,
)


def sign(
    artifact: Path,
    *,
    private_key: Path,
    signature: Path,
    password: bytes | None = None,
    force: bool = False,
) -> None:
    """Verify an artifact and write its signature.

    private_key: PEM of an elliptic curve key, P-256, P-384 or P-521. password: of an encrypted one.
    force: replace a signature. UsageError for the key, OutputError for the path, ArtifactError for
    an invalid artifact.
    """
    signing = signing_library()
    problems = [
        *_path_problems(artifact, signature),
        *file_problems(
            [signature], replaceable=[signature] if force else [], needed_bytes=1_000_000
        ),
        *key_problems(private_key, "private"),
    ]
    config = signing.signing.Config()
    if not problems:
        try:
            # Annotated as text, but passed to a function that takes bytes.
            config.use_elliptic_key_signer(private_key=private_key, password=password)
        except (ValueError, TypeError, AttributeError) as error:
            problems.append(bad_key(private_key, "private", error))
    refuse(problems)
    refuse(artifact_problems(artifact))
    ignored = [SIGNATURE_FILE, HUB_RECORDS]
    config.set_hashing_config(signing.hashing.Config().set_ignored_paths(paths=ignored))
    with tempfile.TemporaryDirectory() as scratch:
        temporary = Path(scratch) / SIGNATURE_FILE
        try:
            config.sign(artifact, temporary)
        except (ValueError, OSError) as error:
            raise ArtifactError(f"{artifact} cannot be signed: {error}") from error
        content = temporary.read_bytes()
    with staged_files([signature]) as folder:
        (folder / signature.name).write_bytes(content)


def _path_problems(artifact: Path, signature: Path) -> list[GemquantError]:
    inside = signature.resolve().is_relative_to(artifact.resolve())
    if inside and signature.resolve() != signature_path(artifact).resolve():
        return [
            OutputError(
                f"{signature} lies in the artifact, where a signature is called {SIGNATURE_FILE}.",
                hint="Omit --output, or choose a path outside the folder.",
            )
        ]
    return []
