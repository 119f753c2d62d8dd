"""OpenSSF model signatures with a key pair: over the manifest and every file that it lists.

The package ``model-signing`` makes and reads them; the format is a Sigstore bundle, so its own
program verifies ours and ours verifies what it signed. Source: https://sigstore.dev and
https://github.com/sigstore/model-transparency.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from gemquant.core.artifact import MANIFEST_FILE, SIGNATURE_FILE, read_manifest
from gemquant.core.artifact.finalize import HUB_RECORDS
from gemquant.core.artifact.staged_files import file_problems, staged_files
from gemquant.errors import (
    ArtifactError,
    GemquantError,
    OutputError,
    RuntimeMissingError,
    UsageError,
    refuse,
)
from gemquant.publish.verification import artifact_problems

INSTALL = "pip install 'gemquant[signing]'"
MAKE_KEYS = (
    "openssl ecparam -genkey -name prime256v1 -noout -out signing.key && "
    "openssl ec -in signing.key -pubout -out signing.pub"
)
_REJECTED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError)
"""What the package raises over a signature that is none, or that differs."""
_SIGNATURE_LIMIT_BYTES = 64_000_000
_KEY_LIMIT_BYTES = 100_000


def signature_place(artifact: Path) -> Path:
    """Where a signature is kept: in the folder, under the one name that the manifest leaves out."""
    return artifact / SIGNATURE_FILE


def sign(
    artifact: Path,
    *,
    private_key: Path,
    signature: Path,
    password: bytes | None = None,
    force: bool = False,
) -> None:
    """Sign an artifact that is what its manifest says, and verify what was written.

    private_key: PEM of an elliptic curve key, P-256, P-384 or P-521. password: of an encrypted one.
    force: replace a signature. Raises UsageError for the key, OutputError for the place,
    ArtifactError where the artifact is not whole.
    """
    signing = _library()
    replaceable = [signature] if force else []
    problems = [
        *_place_problems(artifact, signature),
        *file_problems([signature], replaceable=replaceable, needed_bytes=1_000_000),
        *_key_problems(private_key, "private"),
    ]
    config = signing.signing.Config()
    if not problems:
        try:
            # Annotated as text, but handed on to a function that wants bytes.
            config.use_elliptic_key_signer(private_key=private_key, password=password)
        except (ValueError, TypeError, AttributeError) as error:
            problems.append(_bad_key(private_key, "private", error))
    refuse(problems)
    refuse(artifact_problems(artifact))
    ignored = [SIGNATURE_FILE, HUB_RECORDS]
    config.set_hashing_config(signing.hashing.Config().set_ignored_paths(paths=ignored))
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / SIGNATURE_FILE
        try:
            config.sign(artifact, made)
        except (ValueError, OSError) as error:
            raise ArtifactError(f"{artifact} cannot be signed: {error}") from error
        content = made.read_bytes()
    with staged_files([signature]) as place:
        (place / signature.name).write_bytes(content)


def verify_signature(artifact: Path, *, signature: Path, public_key: Path) -> None:
    """Raise ArtifactError unless the signature was made with the key, over this very folder.

    A signature names what it leaves out; one that leaves out the manifest or a file of it is
    refused, whoever made it.
    """
    signing = _library()
    config = signing.verifying.Config()
    problems: list[GemquantError] = [*_key_problems(public_key, "public")]
    if not problems:
        try:
            config.use_elliptic_key_verifier(public_key=public_key)
        except (ValueError, TypeError, AttributeError) as error:
            problems.append(_bad_key(public_key, "public", error))
    refuse(problems)
    content = _read(signature)
    from cryptography.exceptions import InvalidSignature

    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints where a signature is of old form
            config.verify(artifact, signature)
    except InvalidSignature as error:
        raise ArtifactError(f"{signature} was not made with the key of {public_key}.") from error
    except _REJECTED as error:
        raise ArtifactError(f"{signature} does not hold for {artifact}: {error}") from error
    uncovered = sorted(_must_be_covered(artifact) - _covered(signature, content))
    if uncovered:
        raise ArtifactError(
            f"{signature} leaves out {', '.join(uncovered[:5])}: it must cover {MANIFEST_FILE} and "
            "every file in it."
        )


def _must_be_covered(artifact: Path) -> set[str]:
    return {MANIFEST_FILE, *read_manifest(artifact).files}


def _covered(signature: Path, content: bytes) -> set[str]:
    """Names of the signed files; parts of a file are named NAME:FROM:TO."""
    try:
        payload = base64.b64decode(json.loads(content)["dsseEnvelope"]["payload"])
        statement: Any = json.loads(payload)
        names = {each["name"] for each in statement["predicate"]["resources"]}
        if statement["predicate"]["serialization"]["method"] == "shards":
            names = {name.rsplit(":", 2)[0] for name in names}
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise ArtifactError(
            f"{signature} does not say which files it covers.", hint="Sign the artifact again."
        ) from error
    return names


def _place_problems(artifact: Path, signature: Path) -> list[GemquantError]:
    inside = signature.resolve().is_relative_to(artifact.resolve())
    if inside and signature.resolve() != signature_place(artifact).resolve():
        return [
            OutputError(
                f"{signature} lies in the artifact, where a signature is called {SIGNATURE_FILE}.",
                hint="Leave --output out, or name a place outside the folder.",
            )
        ]
    return []


def _key_problems(path: Path, kind: str) -> list[GemquantError]:
    """A key that is no file, or far too large for one."""
    try:
        if path.stat().st_size <= _KEY_LIMIT_BYTES and path.is_file():
            return []
        reason = f"not a PEM file of at most {_KEY_LIMIT_BYTES} bytes"
    except OSError as error:
        reason = str(error.strerror)
    return [UsageError(f"{path}: no {kind} key: {reason}.", hint=f"To make a pair: {MAKE_KEYS}")]


def _bad_key(path: Path, kind: str, error: Exception) -> UsageError:
    if isinstance(error, TypeError) and "password" in str(error).lower():
        return UsageError(
            f"{path} is encrypted, or is not and a password was given: {error}",
            hint="Give the password in the environment variable GEMQUANT_KEY_PASSWORD.",
        )
    return UsageError(
        f"{path}: not the {kind} half of an elliptic curve key (P-256, P-384, P-521) in PEM.",
        hint=f"To make a pair: {MAKE_KEYS}",
    )


def _read(signature: Path) -> bytes:
    try:
        if signature.stat().st_size > _SIGNATURE_LIMIT_BYTES:
            raise ArtifactError(f"{signature}: too large for a signature.")
        return signature.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{signature}: no signature can be read ({error.strerror}).",
            hint="Name it with --signature.",
        ) from error


def _library() -> Any:
    try:
        import model_signing
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise RuntimeMissingError(
            f"Signatures need the package model-signing ({error}).", hint=INSTALL
        ) from error
    return model_signing
