"""Uploading an artifact to the Hugging Face Hub: checks, one commit, errors with a next step.

Every file is sent first, then one commit adds them all; until then nobody sees anything. The Hub
recognizes sent files by their hash, so an interrupted push sends only what is missing.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub import errors as hub_errors
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from gemquant.core.artifact import (
    MANIFEST_FILE,
    SIGNATURE_FILE,
    Artifact,
    Manifest,
    read_manifest,
)
from gemquant.core.artifact.card import CARD_FILE
from gemquant.core.artifact.finalize import (
    HUB_ATTRIBUTES,
    IMATRIX_ENDING,
    MANIFESTS,
    NOTICE_FILE,
    PICTURES,
)
from gemquant.core.artifact.manifest import licence_of, scheme_label
from gemquant.core.protocols import Progress
from gemquant.core.resources import human_bytes
from gemquant.errors import (
    ArtifactError,
    GemquantError,
    OutputError,
    ProblemCollector,
    UsageError,
    refuse,
)
from gemquant.formats.checkpoint.provenance import declared_license
from gemquant.models.architecture import ARCHITECTURES
from gemquant.models.licences import HEALTH_AI
from gemquant.publish.card import make_card
from gemquant.publish.collection import (
    GGUF,
    Collection,
    model_problems,
    set_problems,
    shared,
)
from gemquant.publish.verify import (
    artifact_problems,
    signature_path,
    signature_problems,
)

MAIN = "main"
Layout = Literal["files", "folders"]
"""Of several artifacts in a repository: next to one another, or each in its folder."""
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)*")


@dataclass(frozen=True)
class Destination:
    """A model repository on the Hub, and a branch of it.

    private: visibility of a new repository; an existing one must have it already.
    """

    repository: str
    revision: str = MAIN
    private: bool = True


@dataclass(frozen=True)
class UploadFile:
    """One file. name: in the repository. source: where it lies, or its content.

    commit: the artifact with which it is committed; what has none is committed last.
    """

    name: str
    source: Path | bytes
    size: int
    sha256: str
    commit: str = ""

    @classmethod
    def made(cls, name: str, content: bytes, commit: str = "") -> UploadFile:
        """A file that is written for the repository."""
        return cls(name, content, len(content), hashlib.sha256(content).hexdigest(), commit)

    def content(self) -> bytes:
        """The bytes; ArtifactError if they changed since they were verified."""
        if not isinstance(self.source, Path):
            return self.source
        try:
            content = self.source.read_bytes()
        except OSError as error:
            raise ArtifactError(f"{self.source} cannot be read: {error.strerror}.") from error
        _refuse_changed(self, hashlib.sha256(content).hexdigest())
        return content


@dataclass(frozen=True)
class Present:
    """What a branch holds already. head: the commit that was read. manifests: by place."""

    head: str
    manifests: Mapping[str, Manifest]


@dataclass(frozen=True)
class Upload:
    """Artifacts to upload, with the hashes of all files. present: what they are added to."""

    artifacts: Sequence[Artifact]
    destination: Destination
    message: str
    files: tuple[UploadFile, ...]
    present: Present | None = None

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def prepare_upload(
    artifacts: Sequence[Path],
    destination: Destination,
    *,
    message: str,
    public_key: Path | None = None,
    present: Present | None = None,
    layout: Layout | None = None,
) -> Upload:
    """Check everything without the network and list the files to send.

    artifacts: one, or several that share the branch. public_key: include the artifact's
    signature, which must be from this key's private half. present: what to add them to. layout: of
    several, by default files for GGUF alone. Raises for an invalid destination, artifact or
    signature, and for missing licence files.
    """
    together = len(artifacts) > 1 or present is not None or layout is not None
    problems = ProblemCollector(_destination_problems(destination))
    for each in artifacts:
        problems += artifact_problems(each)
    problems.refuse()
    opened = [Artifact(each, read_manifest(each)) for each in artifacts]
    for artifact in opened:
        problems += _licence_problems(artifact)
    if not message.strip():
        problems.append(UsageError("The commit message is empty."))
    known = {} if present is None else present.manifests
    if layout is None and together:
        layout = _layout(opened, known)
    if layout == "files":
        problems += set_problems(opened, [*known.values()])
        if public_key is not None:
            problems.append(
                UsageError(
                    "--public-key: a signature is of one artifact with its own card.",
                    hint="--layout folders gives each artifact a folder with its signature.",
                )
            )
    elif public_key is not None:
        for each in artifacts:
            problems += signature_problems(each, signature_path(each), public_key)
    if layout == "folders":
        problems += model_problems([each.manifest for each in opened] + [*known.values()])
        problems += _folder_problems(opened)
    problems.refuse()
    if layout == "files":
        files = _flat_files(opened, destination, known)
    elif layout == "folders":
        files = _folder_files(opened, destination, known, signed=public_key is not None)
    else:
        files = _artifact_files(opened[0], destination, signed=public_key is not None)
    return Upload(opened, destination, message.strip(), tuple(files), present)


def _artifact_files(
    artifact: Artifact, destination: Destination, *, signed: bool
) -> list[UploadFile]:
    """The manifest's files and itself; unless signed, with the repository's name on the card."""
    path, changed = artifact.path, dict[str, bytes]()
    if destination.revision == MAIN and not signed:
        changed |= make_card(path, repository=destination.repository).changed
    files = [
        UploadFile(name, path / name, record.bytes, record.sha256)
        for name, record in artifact.manifest.files.items()
        if name not in changed
    ]
    whole = {MANIFEST_FILE: path / MANIFEST_FILE}
    if signed:
        whole[SIGNATURE_FILE] = signature_path(path)
    changed = {name: file.read_bytes() for name, file in whole.items()} | changed
    return [*files, *(UploadFile.made(*each) for each in changed.items())]


def _layout(artifacts: Sequence[Artifact], present: Mapping[str, Manifest]) -> Layout:
    """That of the branch; of a new one, files where all are GGUF."""
    if present:
        return "folders" if any(name.endswith("/") for name in present) else "files"
    return "files" if all(each.manifest.container == GGUF for each in artifacts) else "folders"


def _folder_problems(artifacts: Sequence[Artifact]) -> Iterator[GemquantError]:
    names = Counter(folder_name(each) for each in artifacts)
    for name, count in names.items():
        if count > 1:
            yield UsageError(f"{count} artifacts are called {name}: rename a folder.")
        if not _FOLDER.fullmatch(name):
            yield UsageError(f"{name!r} is no name for a folder of a repository: rename it.")


def folder_name(artifact: Artifact) -> str:
    """Of an artifact in a repository of several: that of its folder."""
    return artifact.path.resolve().name


def _flat_files(
    artifacts: Sequence[Artifact], destination: Destination, present: Mapping[str, Manifest]
) -> list[UploadFile]:
    """The files of all artifacts next to one another, and those that are made for all."""
    ours = {scheme_label(each.manifest): each for each in artifacts}
    files = {
        name: UploadFile(name, each.path / name, record.bytes, record.sha256, label)
        for label, each in ours.items()
        for name, record in shared(each.manifest).files.items()
    }
    for label, each in ours.items():
        name = f"{MANIFESTS}/{label}.json"
        files[name] = UploadFile.made(name, shared(each.manifest).to_json(), label)
    return [*files.values(), *_common_files(ours, present, destination)]


def _folder_files(
    artifacts: Sequence[Artifact],
    destination: Destination,
    present: Mapping[str, Manifest],
    *,
    signed: bool,
) -> list[UploadFile]:
    """The files of each artifact in its folder as they are, and those that are made for all."""
    ours = {f"{folder_name(each)}/": each for each in artifacts}
    files = []
    for place, each in ours.items():
        for name, record in each.manifest.files.items():
            file = UploadFile(place + name, each.path / name, record.bytes, record.sha256, place)
            files.append(file)
        files += [
            UploadFile.made(place + name, (each.path / name).read_bytes(), place)
            for name in (MANIFEST_FILE, *([SIGNATURE_FILE] if signed else []))
        ]
    return [*files, *_common_files(ours, present, destination)]


def _common_files(
    artifacts: Mapping[str, Artifact], present: Mapping[str, Manifest], destination: Destination
) -> list[UploadFile]:
    """The card, its pictures, and an importance matrix that lies next to the artifacts."""
    parents = {each.path.resolve().parent for each in artifacts.values()}
    found = sorted(parents.pop().glob(f"*{IMATRIX_ENDING}")) if len(parents) == 1 else []
    matrices = {each.name: each.read_bytes() for each in found[:1]}
    collection = Collection.of(
        artifacts, present, repository=destination.repository, imatrix=next(iter(matrices), None)
    )
    made = matrices | collection.files({})
    return [UploadFile.made(*each) for each in made.items()]


def present_set(destination: Destination, api: HfApi) -> Present:
    """Read the manifests of a set on the Hub; OutputError where the branch holds none."""
    name = destination.repository
    refuse(_destination_problems(destination))
    with _explained(destination, api), TemporaryDirectory() as folder:
        head = str(api.repo_info(name, revision=destination.revision).sha)
        there = _files(api, name, head)
        small = [name for name, file in there.items() if file.size < LARGEST]
        found = {name: match for name in small if (match := _MANIFEST.fullmatch(name))}
        for file in found:
            api.hf_hub_download(name, file, revision=head, local_dir=folder)
        manifests = {m[1] or m[2]: read_manifest(Path(folder), file) for file, m in found.items()}
    if not manifests:
        raise OutputError(
            f"{name} has no {MANIFESTS}/ on {destination.revision}, nor a folder with a "
            f"{MANIFEST_FILE}: it is no collection of gemquant's.",
            hint="Push a whole set first: gemquant push FOLDER OWNER/NAME",
        )
    return Present(head, manifests)


def _refuse_changed(file: UploadFile, sha256: str) -> None:
    """Raise ArtifactError if a file changed since it was verified."""
    if sha256 != file.sha256:
        raise ArtifactError(
            f"{file.source!s} changed while it was uploaded: sha256 {sha256}, not {file.sha256}. "
            "Nothing was committed.",
            hint="gemquant verify ARTIFACT",
        )


def _destination_problems(destination: Destination) -> list[GemquantError]:
    problems: list[GemquantError] = []
    name = destination.repository
    reason = "" if name.count("/") == 1 else "it must be OWNER/NAME"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        reason = str(error)
    if reason:
        problems.append(UsageError(f"{name!r} is not the name of a Hub repository: {reason}."))
    revision = destination.revision
    if not _REVISION.fullmatch(revision) or ".." in revision or revision.startswith("refs/"):
        problems.append(UsageError(f"{revision!r} is not a valid branch name."))
    return problems


_MANIFEST = re.compile(rf"{MANIFESTS}/([\w-][\w.-]*)\.json|([\w-][\w.-]*/)manifest\.json")
_FOLDER = re.compile(r"[\w-][\w.-]*")
LARGEST = 64_000_000
"""Bytes of a manifest that is read from the Hub."""
HELD_BYTES = 10_000_000
"""Files up to this size are sent from memory; larger ones are streamed."""


@dataclass(frozen=True)
class Pushed:
    """The state of the Hub after a push. sent: files that it did not have before."""

    url: str
    commit: str
    sent: tuple[str, ...]
    deleted: tuple[str, ...]


@dataclass(frozen=True)
class _Branch:
    """A branch before the push. created: by this push."""

    head: str
    files: dict[str, RepoFile]
    created: bool


def push(upload: Upload, api: HfApi, *, replace: bool, progress: Progress) -> Pushed:
    """Create the repository if missing, send missing files, commit, compare.

    Several artifacts are a commit each, then the card: an interrupted push resumes with the next.
    replace: delete other files of the branch and overwrite differing ones, in the same commit;
    without it, either is an error. OutputError for everything that the Hub refuses.
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
        if upload.present is not None:
            if upload.present.head != branch.head:
                raise OutputError(
                    f"{destination.repository} changed during the push.", hint="Rerun the command."
                )
            foreign = []
            differing = [name for name in differing if name not in {CARD_FILE, *PICTURES}]
        if not (replace or branch.created):
            _refuse_other_content(destination, foreign, differing)
        url = f"{api.endpoint}/{destination.repository}/tree/{destination.revision}"
        if not lacking and not foreign:
            return Pushed(url, branch.head, (), ())
        head = branch.head
        commits = sorted({file.commit for file in lacking} | ({""} if foreign else set()))
        for part in [*filter(None, commits), *(each for each in commits if not each)]:
            files = [file for file in lacking if file.commit == part]
            operations = _send(files, destination, api, progress)
            progress.note(f"committing {len(files)} files to {destination.repository}")
            head = api.create_commit(
                destination.repository,
                [*operations, *(CommitOperationDelete(n) for n in foreign if not part)],
                commit_message=f"{upload.message}: {part.rstrip('/')}" if part else upload.message,
                revision=destination.revision,
                parent_commit=head,
            ).oid
        _compare(upload, api, head)
    return Pushed(url, head, tuple(file.name for file in lacking), tuple(foreign))


def _ensure_repository(destination: Destination, api: HfApi, progress: Progress) -> None:
    name = destination.repository
    try:
        private = bool(api.repo_info(name).private)
    except RepositoryNotFoundError:
        progress.note(f"creating {name}, {'private' if destination.private else 'public'}")
        api.create_repo(name, private=destination.private)
        return
    if private != destination.private:
        actual, requested = ("private", "public") if private else ("public", "private")
        raise OutputError(
            f"{name} exists and is {actual}; this push is {requested}.",
            hint=f"Use --{actual}, choose another repository, or change it on "
            f"{api.endpoint}/{name}/settings .",
        )


def _branch(destination: Destination, api: HfApi) -> _Branch:
    """The branch's head and files; a missing branch is created from main."""
    name, revision = destination.repository, destination.revision
    created = False
    try:
        info = api.repo_info(name, revision=revision)
    except RevisionNotFoundError:
        if revision == MAIN:
            raise
        api.create_branch(name, branch=revision)
        info, created = api.repo_info(name, revision=revision), True
    return _Branch(str(info.sha), _files(api, name, str(info.sha)), created)


def _files(api: HfApi, repository: str, revision: str) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repository, recursive=True, revision=revision)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _same(file: UploadFile, remote: RepoFile | None) -> bool:
    """Whether the Hub has this content: by SHA-256 for large files, else by git's hash."""
    if remote is None or remote.size != file.size:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == file.sha256
    return remote.blob_id == _git_hash(file.content())


def _git_hash(content: bytes) -> str:
    # Git's name for a blob; not a security boundary, since the Hub chose it.
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _refuse_other_content(
    destination: Destination, foreign: list[str], differing: list[str]
) -> None:
    conflicts = [
        f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if names[5:] else ''}"
        for what, names in (("other files", foreign), ("other content", differing))
        if names
    ]
    if conflicts:
        raise OutputError(
            f"{destination.repository} has other content on {destination.revision} "
            f"({'; '.join(conflicts)}).",
            hint="--add adds a GGUF file to a set of them; --replace makes the branch exactly this "
            "and deletes all other files; --revision chooses another branch.",
        )


def _send(
    files: list[UploadFile], destination: Destination, api: HfApi, progress: Progress
) -> list[CommitOperationAdd]:
    """Upload one by one, smallest first, so that a rerun sends as little as possible."""
    operations = []
    for file in sorted(files, key=lambda each: each.size):
        progress.note(f"uploading {file.name}, {human_bytes(file.size)}")
        held = file.size <= HELD_BYTES or not isinstance(file.source, Path)
        content = file.content() if held else str(file.source)
        operation = CommitOperationAdd(file.name, content)
        api.preupload_lfs_files(
            destination.repository,
            [operation],
            revision=destination.revision,
            free_memory=False,
            gitignore_content="",  # a rule in the repository must not leave a file out
        )
        # The library hashed the content that it sent.
        _refuse_changed(file, operation.upload_info.sha256.hex())
        operations.append(operation)
    return operations


def _compare(upload: Upload, api: HfApi, commit: str) -> None:
    """Raise OutputError unless the Hub has exactly the artifact's files."""
    remote = _files(api, upload.destination.repository, commit)
    wrong = [file.name for file in upload.files if not _same(file, remote.get(file.name))]
    if upload.present is None:
        wrong += sorted(set(remote) - {file.name for file in upload.files} - {HUB_ATTRIBUTES})
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
        raise _hub_error(error, destination.repository, endpoint=api.endpoint) from None


FAILURES = (hub_errors.HTTPError, OSError, ValueError, RuntimeError)
"""Base classes of what huggingface_hub and its HTTP client raise."""

TOKENS = "https://huggingface.co/settings/tokens"
_QUERY = re.compile(r"(https?://[^\s'\"?]+)\?[^\s'\"]*")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
_SHOWN = 300


def _hub_error(error: Exception, repository: str, *, endpoint: str) -> GemquantError:
    """Translate an upload error; shows no token and no signed address."""
    cause = _cause(error)
    if isinstance(cause, hub_errors.LocalTokenNotFoundError):
        return OutputError(
            "Not logged in to the Hugging Face Hub.",
            hint=f"Run hf auth login, or set HF_TOKEN, with a token that may write: {TOKENS}",
        )
    if isinstance(cause, hub_errors.OfflineModeIsEnabled):
        return OutputError(
            "HF_HUB_OFFLINE disables connections to the Hub.",
            hint="Unset it, or list the files with --dry-run.",
        )
    if isinstance(cause, hub_errors.HfHubHTTPError):
        return _http_error(cause, repository)
    if isinstance(cause, hub_errors.HTTPError | ConnectionError | TimeoutError):
        return OutputError(
            f"{endpoint} cannot be reached, or closed the connection: {_shown(cause)}",
            hint="Rerun the command when the network is back; it sends only what is missing.",
        )
    if isinstance(cause, ValueError) and "README.md" in str(cause):
        return ArtifactError(f"The Hub does not accept the card: {_shown(cause)}")
    return OutputError(
        f"{repository}: the upload failed: {_shown(cause)}",
        hint="Rerun the command; it sends only what is missing.",
    )


def _http_error(error: hub_errors.HfHubHTTPError, repository: str) -> GemquantError:
    status = error.response.status_code
    known = {
        401: (
            "The Hub does not accept the token.",
            f"hf auth login --force, with a token that may write: {TOKENS} . HF_TOKEN goes first.",
        ),
        403: (
            f"The token may not write to {repository}.",
            f"Use one with write access to {repository.partition('/')[0]}: {TOKENS}",
        ),
        404: (f"{repository} does not exist, or this token cannot see it.", "Check OWNER/NAME."),
        409: (f"Someone else is changing {repository}.", "Rerun the command."),
        412: (f"{repository} changed during the push.", "Rerun the command."),
        413: (f"{repository} is too large for the Hub: {_shown(error)}", None),
        429: ("Too many requests.", "Rerun the command in a few minutes."),
    }
    if status in known:
        message, hint = known[status]
        return OutputError(f"{message} (HTTP {status})", hint=hint)
    return OutputError(
        f"{repository}: the Hub answered HTTP {status}: {_shown(error)}",
        hint="Rerun the command; it sends only what is missing.",
    )


def _cause(error: Exception) -> Exception:
    """The original error: the library wraps failed uploads."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _shown(error: Exception) -> str:
    """The message without tokens and without query strings, which may sign an address."""
    text = _QUERY.sub(r"\1", " ".join(str(error).split())) or type(error).__name__
    token = get_token()
    if token:
        text = text.replace(token, "…")
    return _TOKEN.sub("hf_…", text)[:_SHOWN]


def _licence_problems(artifact: Artifact) -> list[GemquantError]:
    """Whether the licence's notice is present, and the card names the licence and its links.

    Source: Gemma Terms of Use, section 3.1; Apache License 2.0, section 4.
    """
    licence = licence_of(artifact.manifest)
    problems: list[GemquantError] = [
        ArtifactError(
            f"{artifact.path} has no {name}; the license ({licence.name}) requires it.",
            hint="Quantize again; gemquant writes it.",
        )
        for name in (NOTICE_FILE, CARD_FILE)
        if name not in artifact.manifest.files
    ]
    if problems:
        return problems
    notice = (artifact.path / NOTICE_FILE).read_text(encoding="utf-8", errors="replace")
    if licence.notice.strip() not in notice:
        problems.append(ArtifactError(f"{NOTICE_FILE} must contain: {licence.notice.strip()}"))
    known = [HEALTH_AI, *(each.licence for each in ARCHITECTURES.values())]
    others = {each.notice.strip(): each.name for each in known}
    problems += [
        ArtifactError(f"{NOTICE_FILE} names the terms {name!r}, which do not hold for this model.")
        for text, name in others.items()
        if text in notice and name != licence.name
    ]
    card = (artifact.path / CARD_FILE).read_text(encoding="utf-8", errors="replace")
    stated = declared_license(_front_matter(card))
    hint = f"gemquant card {artifact.path}"
    if stated != artifact.manifest.license:
        problems.append(
            ArtifactError(
                f"{CARD_FILE} states the licence {stated!r}, the manifest "
                f"{artifact.manifest.license!r}.",
                hint=hint,
            )
        )
    problems += [
        ArtifactError(f"{CARD_FILE} has no link to https://{link}.", hint=hint)
        for link in licence.links
        if link not in card
    ]
    return problems


def _front_matter(card: str) -> dict[str, object]:
    head, _, rest = card.partition("---\n")
    matter, closed, _ = rest.partition("\n---\n")
    if head or not closed:
        return {}
    try:
        metadata = yaml.safe_load(matter)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
