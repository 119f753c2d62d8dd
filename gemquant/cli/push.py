"""``gemquant push``: an artifact to the Hugging Face Hub."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from gemquant.cli.artifacts import artifact_folders, require_there
from gemquant.cli.flags import flags, output_flags
from gemquant.core.progress import Lines
from gemquant.core.protocols import Silence
from gemquant.errors import UsageError, echo

if TYPE_CHECKING:
    from gemquant.publish.push import Layout, Pushed, Upload


@click.command(
    "push",
    epilog="""\b
Examples:
  gemquant push gemma-2-2b-awq me/gemma-2-2b-awq --dry-run
  gemquant push gemma-2-2b-awq me/gemma-2-2b-awq
  gemquant push gemma-2-2b-gguf me/gemma-2-2b-GGUF
  gemquant push gemma-2-2b-gguf-IQ4_XS me/gemma-2-2b-GGUF --add
  gemquant push gemma-2-2b-quants me/gemma-2-2b-quantized --layout folders
  gemquant push gemma-2-2b-quants me --layout repositories
  gemquant push gemma-2-2b-awq me/gemma-2-2b --revision w4-g128 --public""",
)
@click.argument(
    "artifacts", metavar="ARTIFACT...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.argument("repository", metavar="OWNER/NAME")
@click.option(
    "--add",
    is_flag=True,
    help="Add to what the repository holds, and renew its card and picture.",
)
@click.option(
    "--layout",
    type=click.Choice(["files", "folders", "repositories"]),
    help="Of several artifacts: GGUF files next to one another, a folder each, or a repository "
    "OWNER/FOLDER each.  [default: files where all are GGUF, else folders]",
)
@click.option(
    "--private/--public",
    default=True,
    show_default=True,
    help="Visibility of a new repository; an existing one must have it already.",
)
@click.option(
    "--revision",
    default="main",
    show_default=True,
    metavar="BRANCH",
    help="Branch to commit to; created if missing.",
)
@click.option("--message", metavar="TEXT", help="Commit message.  [default: Upload NAME]")
@click.option(
    "--public-key",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Include ARTIFACT/model.sig, which must be from this key's private half.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Make the branch exactly this artifact: overwrite files and delete all others.",
)
@click.option("--dry-run", is_flag=True, help="List the files to send, and send nothing.")
@flags(*output_flags())
def command(
    artifacts: tuple[Path, ...],
    repository: str,
    *,
    add: bool,
    layout: str | None,
    private: bool,
    revision: str,
    message: str | None,
    public_key: Path | None,
    replace: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Upload artifacts to the Hugging Face Hub.

    Verifies the artifact, then sends manifest.json and the files that it lists, nothing else;
    refuses an artifact without its licence's notice and terms. Several artifacts of one model, or a
    folder of them, go to one branch with one card, a table and a picture: a commit for each, then
    one for the card. One artifact is one commit. Rerun it after an interruption: files that the Hub
    has are not sent twice. The token is that of `hf auth login`, or HF_TOKEN.
    """
    require_there(artifacts)
    import huggingface_hub
    from huggingface_hub import utils

    from gemquant.cli import render
    from gemquant.publish.push import Destination, prepare_upload, present_set, push

    folders = _folders(artifacts, repository)
    progress = Silence() if quiet else Lines()
    api = huggingface_hub.HfApi()
    apart = layout == "repositories"
    if apart and (add or "/" in repository):
        raise UsageError(
            f"--layout repositories: {'--add does not go with it' if add else repository}.",
            hint=f"Name the owner alone: gemquant push {shlex.join(map(str, artifacts))} "
            f"{repository.partition('/')[0]} --layout repositories",
        )
    parts = [[each] for each in folders] if apart else [folders]
    # Without a terminal our lines replace the library's progress bars.
    had_bars = not utils.are_progress_bars_disabled()
    if quiet or not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        uploads = []
        for part in parts:  # all are checked before anything is sent
            name = f"{repository}/{part[0].resolve().name}" if apart else repository
            destination = Destination(name, revision, private=private)
            present = present_set(destination, api) if add else None
            progress.note(f"verifying {', '.join(map(str, part))}")
            named = part[0].resolve().name if len(part) == 1 else f"{len(part)} artifacts"
            upload = prepare_upload(
                part,
                destination,
                message=f"Upload {named}" if message is None else message,
                public_key=public_key,
                present=present,
                layout=None if apart else cast("Layout | None", layout),
            )
            uploads.append(upload)
        pushed = [
            None if dry_run else push(each, api, replace=replace, progress=progress)
            for each in uploads
        ]
    finally:
        if had_bars:
            utils.enable_progress_bars()
    documents = [_document(*pair) for pair in zip(uploads, pushed, strict=True)]
    if as_json:
        render.print_json(documents if apart else documents[0])
        return
    for pair in zip(uploads, pushed, strict=True):
        _print(*pair)


def _folders(artifacts: tuple[Path, ...], repository: str) -> list[Path]:
    """The artifacts; UsageError where the two arguments are swapped."""
    if Path(repository).is_dir() and not any(path.exists() for path in artifacts):
        raise UsageError(
            f"{repository} is a folder, and {artifacts[0]} is none.",
            hint=f"The artifact comes first: gemquant push {repository} {artifacts[0]}",
        )
    return artifact_folders(artifacts)


def _document(upload: Upload, pushed: Pushed | None) -> dict[str, object]:
    destination = upload.destination
    return {
        "paths": [str(each.path) for each in upload.artifacts],
        "repository": destination.repository,
        "revision": destination.revision,
        "private": destination.private,
        "message": upload.message,
        "files": [
            {"name": file.name, "bytes": file.size, "sha256": file.sha256} for file in upload.files
        ],
        "pushed": None
        if pushed is None
        else {
            "url": pushed.url,
            "commit": pushed.commit,
            "sent": list(pushed.sent),
            "deleted": list(pushed.deleted),
        },
    }


def _print(upload: Upload, pushed: Pushed | None) -> None:
    from gemquant.cli import render
    from gemquant.core.resources import human_bytes

    if pushed is not None:
        sent = (
            f"{len(pushed.sent)} of {len(upload.files)} files sent" if pushed.sent else "unchanged"
        )
        deleted = f", {len(pushed.deleted)} deleted" if pushed.deleted else ""
        echo(f"{pushed.url}: {sent}{deleted}, commit {pushed.commit}")
        return
    destination = upload.destination
    listing = render.table("file", "bytes", "sha256", numbers=("bytes",))
    for file in upload.files:
        listing.add_row(file.name, str(file.size), f"{file.sha256[:16]}…")
    visibility = "private" if destination.private else "public"
    render.print_tables(
        f"Would push to {destination.repository}, branch {destination.revision}, {visibility}: "
        f"{upload.message}",
        listing,
        *_card(upload),
        f"{len(upload.files)} files, {human_bytes(upload.total_bytes)}. Nothing was sent.",
    )


def _card(upload: Upload) -> list[str]:
    """The card of a collection, up to its commands; that of one artifact lies in its folder."""
    if not any(file.commit for file in upload.files):
        return []
    card = next(file for file in upload.files if file.name == "README.md").content().decode()
    body = card.partition("\n---\n")[2].partition("\n## How to run")[0]
    return ["", "README.md begins:", body]
