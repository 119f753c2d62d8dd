"""Whether an artifact is what its manifest describes, and who signed it.

Signatures are OpenSSF model signatures with a key pair, over the manifest and every file that it
lists. The package ``model-signing`` reads and writes them; the format is a Sigstore bundle, so that
its own program and this one verify each other's signatures. Source: https://sigstore.dev and
https://github.com/sigstore/model-transparency.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from gemquant.convert.plugins import open_weights
from gemquant.core.artifact import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    Artifact,
    Manifest,
    read_manifest,
)
from gemquant.core.artifact.card import CARD_FILE
from gemquant.core.artifact.finalize import (
    IMATRIX_ENDING,
    MANIFESTS,
    PICTURES,
    accompanies,
    file_problems,
    files_in,
    linked,
    manifests_in,
)
from gemquant.core.artifact.manifest import gguf_files
from gemquant.core.protocols import Silence, Weights
from gemquant.core.targets import conversion_problems
from gemquant.core.untrusted import UntrustedFile
from gemquant.errors import (
    ArtifactError,
    GemquantError,
    ProblemCollector,
    RuntimeMissingError,
    UsageError,
    refuse,
)
from gemquant.formats import llamafile_record as llamafile
from gemquant.formats.checkpoint.files import read_json_object
from gemquant.runtimes.text import read_tokenizer

INSTALL = "pip install 'gemquant[signing]'"
CREATE_KEYS = (
    "openssl ecparam -genkey -name prime256v1 -noout -out signing.key && "
    "openssl ec -in signing.key -pubout -out signing.pub"
)
_REJECTED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError)
"""What the package raises for an invalid signature, or one that differs."""
_SIGNATURE_LIMIT_BYTES = 64_000_000
_TOKENIZER = "tokenizer.json"
_CONFIGURATIONS = {"tokenizer_config.json", "generation_config.json"}
_BITS_TOLERANCE = 0.01
_KEY_LIMIT_BYTES = 100_000


def artifact_problems(path: Path) -> list[GemquantError]:
    """Everything wrong with an artifact: hashes of all files, then the structure.

    path: a folder, also one of several GGUF files from the Hub, or a llamafile.
    """
    try:
        if (path / MANIFESTS).is_dir():
            return _set_problems(path)
        if path.is_file():
            llamafile.verify(path, progress=Silence())
            return []
        artifact = Artifact.open(path)
        if artifact.manifest.conversion is not None:
            return [*conversion_problems(path, artifact.manifest)]
        return [*_structure_problems(artifact)]
    except GemquantError as error:
        return [_of_the_artifact(part) for part in error.parts]


def _of_the_artifact(problem: GemquantError) -> GemquantError:
    """What reading an artifact found, in the class of errors of artifacts."""
    if isinstance(problem, RuntimeMissingError):
        return problem
    return ArtifactError(problem.message, hint=problem.hint)


def _structure_problems(artifact: Artifact) -> Iterator[GemquantError]:
    """Open weights and tokenizer, and compare them with what the manifest says of them."""
    manifest, weights = artifact.manifest, open_weights(artifact)
    found = weights.config["model_type"]
    if found != manifest.architecture:
        yield ArtifactError(
            f"{artifact.path}: its manifest says {manifest.architecture}, its weights are {found}."
        )
    said, bits = manifest.quantization.bits_per_weight, _bits_per_weight(manifest, weights)
    if bits and abs(said - bits) > _BITS_TOLERANCE * bits:
        yield ArtifactError(
            f"{artifact.path}: its manifest says {said:.3f} bits per weight; it has {bits:.3f}."
        )
    if manifest.container == "gguf" or _TOKENIZER in manifest.files:
        read_tokenizer(artifact.path, manifest.container)
    for name in _CONFIGURATIONS & manifest.files.keys():
        read_json_object(artifact.path / name)


def _bits_per_weight(manifest: Manifest, weights: Weights) -> float:
    """Stored bits over the number of weights; 0 where they lie in files of another form."""
    text = gguf_files(manifest)
    if manifest.container != "gguf":
        text = [name for name in manifest.files if name.endswith(".safetensors")]
    stored = sum(manifest.files[name].bytes for name in text)
    return 8 * stored / sum(math.prod(weights.shape(name)) for name in weights.names())


def _set_problems(folder: Path) -> list[GemquantError]:
    """Compare a downloaded set with its manifests; no file may be there that none lists."""
    problems = ProblemCollector()
    known = {CARD_FILE, *PICTURES}
    for name in manifests_in(folder):
        read = problems.attempt(partial(read_manifest, folder, name))
        if not read.succeeded:
            continue
        known |= {name, *read.value.files}
        differing = file_problems(folder, read.value, read.value.files)
        problems += differing
        if not differing:
            problems.attempt(partial(_open_alone, folder, read.value))
    problems += [
        ArtifactError(f"{name} is in {folder}, but in none of its manifests.")
        for name in sorted(files_in(folder))
        if name not in known and not accompanies(name) and not name.endswith(IMATRIX_ENDING)
    ]
    return [*dict.fromkeys(problems)]


def _open_alone(folder: Path, manifest: Manifest) -> None:
    """Open one artifact of a set, as if no other were there."""
    files = {name: (folder / name).resolve() for name in manifest.files}
    with tempfile.TemporaryDirectory() as alone:
        refuse(_structure_problems(linked(manifest, files, Path(alone))))


# ---------------------------------------------------------------- signatures


def signature_path(artifact: Path) -> Path:
    """Default path of a signature: in the folder, under the one name that no manifest lists."""
    return artifact / SIGNATURE_FILE


def signature_problems(
    artifact: Path, signature: Path | None, public_key: Path
) -> list[GemquantError]:
    """Everything wrong with a signature. signature: None for the artifact's own."""
    try:
        verify_signature(
            artifact, signature=signature or signature_path(artifact), public_key=public_key
        )
    except GemquantError as error:
        return list(error.parts)
    return []


def verify_signature(artifact: Path, *, signature: Path, public_key: Path) -> None:
    """Raise ArtifactError unless the key signed exactly this folder.

    A signature lists the files that it ignores; it must cover the manifest and all files in it.
    """
    signing = signing_library()
    config = signing.verifying.Config()
    problems: list[GemquantError] = [*key_problems(public_key, "public")]
    if not problems:
        try:
            config.use_elliptic_key_verifier(public_key=public_key)
        except (ValueError, TypeError, AttributeError) as error:
            problems.append(bad_key(public_key, "public", error))
    refuse(problems)
    content = _read(signature)
    from cryptography.exceptions import InvalidSignature

    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints a note about old signatures
            config.verify(artifact, signature)
    except InvalidSignature as error:
        raise ArtifactError(f"{signature} was not made with the key of {public_key}.") from error
    except _REJECTED as error:
        raise ArtifactError(f"{signature} does not match {artifact}: {error}") from error
    required = {MANIFEST_FILE, *read_manifest(artifact).files}
    uncovered = sorted(required - _covered(signature, content))
    if uncovered:
        raise ArtifactError(
            f"{signature} leaves out {', '.join(uncovered[:5])}: it must cover {MANIFEST_FILE} and "
            "every file in it."
        )


def _covered(signature: Path, content: bytes) -> set[str]:
    """Names of the signed files; parts of a file are NAME:FROM:TO."""
    try:
        payload = base64.b64decode(json.loads(content)["dsseEnvelope"]["payload"])
        statement: Any = json.loads(payload)
        names = {each["name"] for each in statement["predicate"]["resources"]}
        if statement["predicate"]["serialization"]["method"] == "shards":
            names = {name.rsplit(":", 2)[0] for name in names}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(
            f"{signature} does not list the files that it covers.", hint="Sign the artifact again."
        ) from error
    return names


def _read(signature: Path) -> bytes:
    hint = "Pass its path with --signature."
    return UntrustedFile(signature, _SIGNATURE_LIMIT_BYTES, ArtifactError, hint).bytes()


def key_problems(path: Path, kind: str) -> list[GemquantError]:
    """Problems of a key file: missing, not a file, too large."""
    hint, label = f"To create a pair: {CREATE_KEYS}", f"{path}: not a {kind} key"
    problems = ProblemCollector()
    problems.attempt(UntrustedFile(path, _KEY_LIMIT_BYTES, hint=hint, label=label).bytes)
    return problems


def bad_key(path: Path, kind: str, error: Exception) -> UsageError:
    """The error for a key that the library rejects."""
    if isinstance(error, TypeError) and "password" in str(error).lower():
        return UsageError(
            f"{path} is encrypted, or has no password: {error}",
            hint="Set the password in the environment variable GEMQUANT_KEY_PASSWORD.",
        )
    return UsageError(
        f"{path}: not the {kind} half of an elliptic curve key (P-256, P-384, P-521) in PEM.",
        hint=f"To create a pair: {CREATE_KEYS}",
    )


def signing_library() -> Any:
    """The package model_signing; RuntimeMissingError without it."""
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
