"""What would be uploaded: the manifest and the files that it lists, and nothing else."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from gemquant.core.artifact import MANIFEST_FILE, SIGNATURE_FILE, Artifact, read_manifest
from gemquant.errors import ArtifactError, GemquantError, ProblemCollector, UsageError
from gemquant.publish.licence import licence_problems
from gemquant.publish.signature import signature_place, verify_signature
from gemquant.publish.verification import artifact_problems

MAIN = "main"
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)*")


@dataclass(frozen=True)
class Destination:
    """A model repository on the Hub, and a branch of it.

    private: who may see a repository that is made; one that exists must be so already.
    """

    repository: str
    revision: str = MAIN
    private: bool = True


@dataclass(frozen=True)
class UploadFile:
    """One file. name: in the repository, as in the artifact."""

    name: str
    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Upload:
    """An artifact on its way: every file by name, hashes known before anything is sent."""

    artifact: Artifact
    destination: Destination
    message: str
    files: tuple[UploadFile, ...]

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)


def prepare_upload(
    artifact: Path, destination: Destination, *, message: str, public_key: Path | None = None
) -> Upload:
    """Check everything that can be checked here, and list what would be sent; sends nothing.

    public_key: take the artifact's signature along, if it was made with this key's private half.
    Raises for a bad destination, an artifact that ``gemquant verify`` rejects, missing licence
    files, a signature that does not hold.
    """
    problems = ProblemCollector()
    problems += [*_destination_problems(destination), *artifact_problems(artifact)]
    problems.refuse()
    opened = Artifact(artifact, read_manifest(artifact))
    problems += licence_problems(opened)
    if not message.strip():
        problems.append(UsageError("The commit message is empty."))
    place = signature_place(artifact)
    if public_key is not None:
        problems.attempt(lambda: verify_signature(artifact, signature=place, public_key=public_key))
    problems.refuse()
    files = [
        UploadFile(name, artifact / name, record.bytes, record.sha256)
        for name, record in opened.manifest.files.items()
    ]
    files.append(_hashed(MANIFEST_FILE, artifact / MANIFEST_FILE))
    if public_key is not None:
        files.append(_hashed(SIGNATURE_FILE, place))
    return Upload(opened, destination, message.strip(), tuple(files))


def content_of(file: UploadFile) -> bytes:
    """A file's bytes, which must still be those that were verified."""
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{file.path} cannot be read: {error.strerror}.") from error
    refuse_changed(file, hashlib.sha256(content).hexdigest())
    return content


def refuse_changed(file: UploadFile, sha256: str) -> None:
    """Raise ArtifactError where a file is no longer what was verified."""
    if sha256 != file.sha256:
        raise ArtifactError(
            f"{file.path} changed while it was uploaded: sha256 {sha256}, not {file.sha256}. "
            "Nothing was committed.",
            hint="gemquant verify ARTIFACT",
        )


def _hashed(name: str, path: Path) -> UploadFile:
    content = path.read_bytes()
    return UploadFile(name, path, len(content), hashlib.sha256(content).hexdigest())


def _destination_problems(destination: Destination) -> list[GemquantError]:
    problems: list[GemquantError] = []
    name = destination.repository
    try:
        validate_repo_id(name)
        valid = name.count("/") == 1
        reason = "" if valid else "it must be OWNER/NAME"
    except HFValidationError as error:
        valid, reason = False, str(error)
    if not valid:
        problems.append(UsageError(f"{name!r} is no repository of the Hub: {reason}."))
    revision = destination.revision
    if not _REVISION.fullmatch(revision) or ".." in revision or revision.startswith("refs/"):
        problems.append(UsageError(f"{revision!r} is no branch's name."))
    return problems
