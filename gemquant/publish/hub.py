"""Uploading to the Hub: every file first, then one commit that has them all.

A file that was sent is known to the Hub by its hash, so a push that was interrupted sends only what
is missing; until the commit, nobody sees anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from gemquant.core.artifact.finalize import HUB_ATTRIBUTES
from gemquant.core.progress import Progress
from gemquant.core.resources import human_bytes
from gemquant.errors import OutputError
from gemquant.publish.hub_problems import FAILURES, hub_problem
from gemquant.publish.upload import (
    MAIN,
    Destination,
    Upload,
    UploadFile,
    content_of,
    refuse_changed,
)

HELD_BYTES = 10_000_000
"""Files up to this size are held in memory, and sent as checked; larger ones are streamed."""


@dataclass(frozen=True)
class Pushed:
    """What the Hub has. sent: files that it did not have before; none if all were there."""

    url: str
    commit: str
    sent: tuple[str, ...]
    deleted: tuple[str, ...]


@dataclass(frozen=True)
class _Branch:
    """What a branch holds before the push. made: by this push, so that its content is nobody's."""

    head: str
    files: dict[str, RepoFile]
    made: bool


def push(upload: Upload, api: HfApi, *, replace: bool, progress: Progress) -> Pushed:
    """Make the repository where there is none, send what it lacks, commit once, compare.

    replace: other files of the branch are deleted and differing ones overwritten, in the same
    commit; without it, either is refused. Raises OutputError for all that the Hub refuses.
    """
    destination = upload.destination
    with _explained(destination, api):
        api.whoami()
        _ensure_repository(destination, api, progress)
        branch = _branch(destination, api)
        lacking = [file for file in upload.files if not _same(file, branch.files.get(file.name))]
        names = {file.name for file in upload.files}
        foreign = sorted(set(branch.files) - names - {HUB_ATTRIBUTES})
        differing = sorted(file.name for file in lacking if file.name in branch.files)
        if not (replace or branch.made):
            _refuse_other_content(destination, foreign, differing)
        url = f"{api.endpoint}/{destination.repository}/tree/{destination.revision}"
        if not lacking and not foreign:
            return Pushed(url, branch.head, (), ())
        operations = _send(lacking, destination, api, progress)
        progress.note(f"committing {len(lacking)} files to {destination.repository}")
        commit = api.create_commit(
            destination.repository,
            [*operations, *(CommitOperationDelete(name) for name in foreign)],
            commit_message=upload.message,
            revision=destination.revision,
            parent_commit=branch.head,
        )
        _compare(upload, api, commit.oid)
    return Pushed(url, commit.oid, tuple(file.name for file in lacking), tuple(foreign))


def _ensure_repository(destination: Destination, api: HfApi, progress: Progress) -> None:
    name = destination.repository
    try:
        private = bool(api.repo_info(name).private)
    except RepositoryNotFoundError:
        progress.note(f"making {name}, {'private' if destination.private else 'public'}")
        api.create_repo(name, private=destination.private)
        return
    if private != destination.private:
        seen, asked = ("private", "public") if private else ("public", "private")
        raise OutputError(
            f"{name} exists and is {seen}; the push was to be {asked}.",
            hint=f"Give --{seen}, choose another repository, or change it on "
            f"{api.endpoint}/{name}/settings .",
        )


def _branch(destination: Destination, api: HfApi) -> _Branch:
    """The branch's head and files; the branch is made from main where it is not there."""
    name, revision = destination.repository, destination.revision
    made = False
    try:
        info = api.repo_info(name, revision=revision)
    except RevisionNotFoundError:
        if revision == MAIN:
            raise
        api.create_branch(name, branch=revision)
        info, made = api.repo_info(name, revision=revision), True
    return _Branch(str(info.sha), _files(api, name, str(info.sha)), made)


def _files(api: HfApi, repository: str, revision: str) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repository, recursive=True, revision=revision)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _same(file: UploadFile, there: RepoFile | None) -> bool:
    """Whether the Hub has this very content: by SHA-256 for large files, else by git's hash."""
    if there is None or there.size != file.bytes:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == file.sha256
    return there.blob_id == _git_hash(content_of(file))


def _git_hash(content: bytes) -> str:
    # Git's own name for a blob; nothing rests on its strength, since the Hub chose it.
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _refuse_other_content(
    destination: Destination, foreign: list[str], differing: list[str]
) -> None:
    told = [
        f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if names[5:] else ''}"
        for what, names in (("other files", foreign), ("other content", differing))
        if names
    ]
    if told:
        raise OutputError(
            f"{destination.repository} holds something else on {destination.revision} "
            f"({'; '.join(told)}).",
            hint="--replace makes the branch exactly this artifact, deleting what is not in it; "
            "--revision chooses another branch.",
        )


def _send(
    files: list[UploadFile], destination: Destination, api: HfApi, progress: Progress
) -> list[CommitOperationAdd]:
    """Upload one by one, the smallest first: what was sent need not be sent again."""
    operations = []
    for file in sorted(files, key=lambda each: each.bytes):
        progress.note(f"uploading {file.name}, {human_bytes(file.bytes)}")
        content = content_of(file) if file.bytes <= HELD_BYTES else str(file.path)
        operation = CommitOperationAdd(file.name, content)
        api.preupload_lfs_files(
            destination.repository,
            [operation],
            revision=destination.revision,
            free_memory=False,
            gitignore_content="",  # a rule in the repository must not leave a file out
        )
        # Hashed by the library as it was read for sending.
        refuse_changed(file, operation.upload_info.sha256.hex())
        operations.append(operation)
    return operations


def _compare(upload: Upload, api: HfApi, commit: str) -> None:
    """What the Hub says it has must be the artifact, file by file."""
    there = _files(api, upload.destination.repository, commit)
    wrong = [file.name for file in upload.files if not _same(file, there.get(file.name))]
    wrong += sorted(set(there) - {file.name for file in upload.files} - {HUB_ATTRIBUTES})
    if wrong:
        raise OutputError(
            f"{upload.destination.repository} at {commit} is not the artifact: "
            f"{', '.join(wrong[:5])}.",
            hint="Push again with --replace.",
        )


@contextmanager
def _explained(destination: Destination, api: HfApi) -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        raise hub_problem(error, destination.repository, endpoint=api.endpoint) from None
