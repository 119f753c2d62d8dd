"""What ``import gemquant`` offers of publishing: verify, describe and push finished artifacts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi

from gemquant.core.progress import Lines
from gemquant.core.protocols import Silence
from gemquant.errors import UsageError, refuse
from gemquant.publish.card import make_card, write_card
from gemquant.publish.collection import collection_card
from gemquant.publish.push import Destination, Layout, Pushed, prepare_upload, present_set
from gemquant.publish.push import push as push_upload
from gemquant.publish.verify import artifact_problems, signature_problems


def verify(
    artifact: str | Path,
    *,
    public_key: str | Path | None = None,
    signature: str | Path | None = None,
) -> None:
    """Raise ArtifactError that lists all that is wrong with an artifact, or with its signature.

    artifact: a folder, also of several GGUF files from the Hub, or a llamafile. public_key: also
    check a signature: ``signature``, or the artifact's own.
    """
    path = Path(artifact)
    refuse(artifact_problems(path))
    if public_key is not None:
        chosen = None if signature is None else Path(signature)
        refuse(signature_problems(path, chosen, Path(public_key)))


def card(
    *artifacts: str | Path,
    evaluation: str | Path | None = None,
    tasks: str | Path | None = None,
    output: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Write the card of one artifact, or one for several; return the README.md.

    evaluation, tasks: documents to show and to store, of one artifact. output: the folder of a card
    for several, by default the one that holds them all. force: replace a README.md of yours there.
    """
    paths = [Path(each) for each in artifacts]
    if not paths:
        raise UsageError("card: names no artifact.")
    if len(paths) == 1:
        documents = [None if each is None else Path(each) for each in (evaluation, tasks)]
        write_card(make_card(paths[0], evaluation=documents[0], tasks=documents[1]))
        return paths[0] / "README.md"
    if evaluation is not None or tasks is not None:
        raise UsageError("evaluation, tasks: the card of several shows their certificates.")
    parents = [str(each.resolve().parent) for each in paths]
    folder = Path(output or os.path.commonpath(parents))
    write_card(collection_card(paths, folder, force=force))
    return folder / "README.md"


def push(
    artifacts: str | Path | Sequence[str | Path],
    repository: str,
    *,
    layout: Layout | None = None,
    private: bool = True,
    revision: str = "main",
    message: str | None = None,
    public_key: str | Path | None = None,
    add: bool = False,
    replace: bool = False,
    progress: bool = True,
) -> Pushed:
    """Upload one artifact, or several of one model, to ``OWNER/NAME`` on the Hugging Face Hub.

    layout: of several, ``files`` or ``folders``. add: to what the repository holds. replace: make
    the branch exactly this. public_key: include signatures, made with its private half. The token
    is that of ``hf auth login``, or HF_TOKEN. Raises what ``gemquant push`` reports.
    """
    given = [artifacts] if isinstance(artifacts, str | Path) else artifacts
    paths = [Path(each) for each in given]
    api, destination = HfApi(), Destination(repository, revision, private=private)
    named = paths[0].resolve().name if len(paths) == 1 else f"{len(paths)} artifacts"
    upload = prepare_upload(
        paths,
        destination,
        message=f"Upload {named}" if message is None else message,
        public_key=None if public_key is None else Path(public_key),
        present=present_set(destination, api) if add else None,
        layout=layout,
    )
    return push_upload(upload, api, replace=replace, progress=Lines() if progress else Silence())
