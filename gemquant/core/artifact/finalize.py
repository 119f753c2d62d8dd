"""Finalize a folder into an artifact, and check that it is still the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from pydantic import ValidationError

from gemquant.core.artifact.card import CARD_FILE, inherited_from, render_card
from gemquant.core.artifact.manifest import (
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    licence_of,
    model_name,
    scheme_label,
)
from gemquant.core.untrusted import UntrustedFile, hub_repository, wrong_fields
from gemquant.errors import ArtifactError, GemquantError, OutputError, refuse

NOTICE_FILE = "NOTICE"
SIGNATURE_FILE = "model.sig"
"""A signature of the finished folder, made after the manifest, which therefore cannot list it."""
HUB_ATTRIBUTES = ".gitattributes"
"""What the Hub adds to every repository, and so to every download."""
HUB_RECORDS = ".cache/huggingface"
"""Where `hf download` stores its records; nothing that loads a model looks there."""
_MANIFEST_LIMIT_BYTES = 64_000_000


MANIFESTS = "manifests"
"""Folder of a repository with several artifacts: a manifest each."""
PICTURES = tuple(f"size-and-loss{dark}.{kind}" for dark in ("", "-dark") for kind in ("svg", "png"))
"""Pictures of such a repository's card."""
IMATRIX_ENDING = ".imatrix.gguf"
"""How the name of an importance matrix ends that lies next to several artifacts."""
EVALUATION_FILE = "evaluation.json"
TASKS_FILE = "tasks.json"
"""What was measured later, as the card shows it."""
ABOUT_FILES = frozenset({CARD_FILE, EVALUATION_FILE, TASKS_FILE})


@dataclass(frozen=True)
class Artifact:
    """A finished folder whose every file is the one that its manifest describes."""

    path: Path
    manifest: Manifest

    @property
    def content_bytes(self) -> int:
        """Size of all files but the card and what it shows."""
        return sum(file.bytes for file in content_files(self.manifest).values())

    @classmethod
    def open(cls, path: Path) -> Self:
        """Check sizes and hashes of all files; ArtifactError lists every difference.

        A signature may be in the folder, and the files that a download from the Hub adds.
        """
        manifest = read_manifest(path)
        present = {name for name in files_in(path) if not accompanies(name)}
        problems: list[GemquantError] = [
            ArtifactError(f"{name} is in {path}, but not in its {MANIFEST_FILE}.")
            for name in sorted(present - set(manifest.files))
        ]
        for name, record in manifest.files.items():
            if name not in present:
                problems.append(ArtifactError(f"{name} is missing from {path}."))
            else:
                problems += _differences(path / name, name, record)
        refuse(problems)
        return cls(path, manifest)


def finalize(folder: Path, manifest: Manifest, *, original_card: str | None = None) -> Manifest:
    """Write the model card and the notice of the licence, hash every file, write the manifest last.

    manifest: complete but for ``files``.
    original_card: the source's README.md, front matter included; its body follows ours.
    """
    try:
        notice = licence_of(manifest).notice
        (folder / NOTICE_FILE).write_text(notice, encoding="utf-8")
        records = {name: _record(folder / name) for name in files_in(folder)}
        described = manifest.model_copy(update={"files": dict(sorted(records.items()))})
        card = render_card(described, inherited=inherited_from(original_card))
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        records[CARD_FILE] = _record(folder / CARD_FILE)
        complete = manifest.model_copy(update={"files": dict(sorted(records.items()))})
        (folder / MANIFEST_FILE).write_bytes(complete.to_json())
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}.") from error
    return complete


def with_updated_files(manifest: Manifest, changed: Mapping[str, bytes]) -> Manifest:
    """The manifest with new records of some files, which are to be written as these bytes."""
    records = dict(manifest.files)
    for name, content in changed.items():
        digest = hashlib.sha256(content).hexdigest()
        records[name] = FileRecord(sha256=digest, bytes=len(content))
    return manifest.model_copy(update={"files": dict(sorted(records.items()))})


def content_files(manifest: Manifest) -> dict[str, FileRecord]:
    """All files but the card and what it shows, which may be renewed: another card makes no other
    artifact.
    """
    return {name: file for name, file in manifest.files.items() if name not in ABOUT_FILES}


def content_digest(manifest: Manifest) -> str:
    """``sha256:`` over the names and hashes of those files, in alphabetical order."""
    lines = sorted(f"{name} {file.sha256}\n" for name, file in content_files(manifest).items())
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def file_problems(path: Path, manifest: Manifest, names: Iterable[str]) -> list[GemquantError]:
    """Every difference between some of an artifact's files and its manifest."""
    return [
        problem
        for name in names
        if name in manifest.files
        for problem in _differences(path / name, name, manifest.files[name])
    ]


def read_manifest(path: Path, name: str = MANIFEST_FILE) -> Manifest:
    """Read ``manifest.json`` without looking at the other files."""
    file = path / name
    label = f"{path} is not an artifact: {name}"
    content = UntrustedFile(file, _MANIFEST_LIMIT_BYTES, ArtifactError, label=label).bytes()
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        wrong = wrong_fields(error, "document")
        raise ArtifactError(f"{file} is not a manifest that this version reads: {wrong}.") from None
    refuse([problem for name in manifest.files for problem in _name_problems(file, name)])
    return manifest


def manifests_in(folder: Path) -> list[str]:
    """Names of the manifests of several artifacts in one folder; none in other folders."""
    return [f"{MANIFESTS}/{file.name}" for file in sorted((folder / MANIFESTS).glob("*.json"))]


def members(folder: Path, scratch: Path) -> list[Artifact]:
    """The artifacts of a repository, each as links in a folder of its own.

    A download may be links into the Hub's cache. ArtifactError lists what differs.
    """
    found = []
    for name in manifests_in(folder) or [MANIFEST_FILE]:
        manifest = read_manifest(folder, name)
        files = {each: (folder / each).resolve() for each in manifest.files}
        refuse(
            [p for each, f in files.items() for p in _differences(f, each, manifest.files[each])]
        )
        called = f"{model_name(manifest)}-{scheme_label(manifest)}"
        found.append(linked(manifest, files, scratch / called))
    return found


def linked(manifest: Manifest, files: Mapping[str, Path], alone: Path) -> Artifact:
    """An artifact as links to files that lie among others."""
    for name, file in files.items():
        (alone / name).parent.mkdir(parents=True, exist_ok=True)
        (alone / name).symlink_to(file)
    return Artifact(alone, manifest)


def accompanies(name: str) -> bool:
    """Whether a file may be in an artifact that does not list it."""
    unlisted = {MANIFEST_FILE, SIGNATURE_FILE, HUB_ATTRIBUTES}
    return name in unlisted or name.startswith(f"{HUB_RECORDS}/")


def _name_problems(file: Path, name: str) -> Iterator[ArtifactError]:
    """A name must stay inside the folder on every system."""
    parts = PurePosixPath(name)
    if not name or "\\" in name or ":" in name or parts.is_absolute() or ".." in parts.parts:
        yield ArtifactError(f"{file} names {name!r}, which is not a file inside the artifact.")


def _in_hub_cache(path: Path, name: str) -> bool:
    """Whether a file is one of a snapshot in a Hub cache, which links to the cache's ``blobs``."""
    folder = path.parents[name.count("/")]
    blobs = folder.resolve().parent.parent / "blobs"
    return hub_repository(folder) is not None and path.resolve().is_relative_to(blobs)


def _differences(path: Path, name: str, record: FileRecord) -> Iterator[ArtifactError]:
    if not path.is_file() or (path.is_symlink() and not _in_hub_cache(path, name)):
        yield ArtifactError(f"{name} is not a regular file.")
        return
    size = path.stat().st_size
    if size != record.bytes:
        yield ArtifactError(
            f"{name} is not the file the manifest describes: {size} bytes, not {record.bytes}."
        )
        return
    digest = _sha256(path)
    if digest != record.sha256:
        yield ArtifactError(
            f"{name} is not the file the manifest describes: sha256 {digest}, not {record.sha256}."
        )


def files_in(folder: Path) -> Iterator[str]:
    """Names of all that is not a folder, with forward slashes, links included."""
    for root, folders, files in os.walk(folder):
        base = Path(root)
        for name in (*files, *(sub for sub in folders if (base / sub).is_symlink())):
            yield (base / name).relative_to(folder).as_posix()


def _record(path: Path) -> FileRecord:
    return FileRecord(sha256=_sha256(path), bytes=path.stat().st_size)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from error
