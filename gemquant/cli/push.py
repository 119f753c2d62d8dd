"""``gemquant push``: an artifact to the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemquant.cli.flags import flags, output_flags
from gemquant.cli.progress import Lines
from gemquant.core.progress import Silence
from gemquant.errors import echo

if TYPE_CHECKING:
    from gemquant.publish.push import Pushed, Upload


@click.command(
    "push",
    epilog="""\b
Examples:
  gemquant push gemma-2-2b-awq me/gemma-2-2b-awq --dry-run
  gemquant push gemma-2-2b-awq me/gemma-2-2b-awq
  gemquant push gemma-2-2b-awq me/gemma-2-2b --revision w4-g128 --public""",
)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
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
    artifact: Path,
    repository: str,
    *,
    private: bool,
    revision: str,
    message: str | None,
    public_key: Path | None,
    replace: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Upload an artifact to the Hugging Face Hub, in one commit.

    Verifies the artifact, then sends manifest.json and the files that it lists, nothing else;
    refuses an artifact without the Gemma notice and terms. Rerun it after an interruption: files
    that the Hub has are not sent twice. The token is that of `hf auth login`, or HF_TOKEN.
    """
    import huggingface_hub
    from huggingface_hub import utils

    from gemquant.cli import render
    from gemquant.publish.push import Destination, prepare_upload, push

    progress = Silence() if quiet else Lines()
    progress.note(f"verifying {artifact}")
    upload = prepare_upload(
        artifact,
        Destination(repository, revision, private=private),
        message=f"Upload {artifact.name}" if message is None else message,
        public_key=public_key,
    )
    pushed = None
    if not dry_run:
        # Without a terminal our lines replace the library's progress bars.
        had_bars = not utils.are_progress_bars_disabled()
        if quiet or not sys.stderr.isatty():
            utils.disable_progress_bars()
        try:
            pushed = push(upload, huggingface_hub.HfApi(), replace=replace, progress=progress)
        finally:
            if had_bars:
                utils.enable_progress_bars()
    if as_json:
        render.print_json(_document(upload, pushed))
    else:
        _print(upload, pushed)


def _document(upload: Upload, pushed: Pushed | None) -> dict[str, object]:
    destination = upload.destination
    return {
        "path": str(upload.artifact.path),
        "repository": destination.repository,
        "revision": destination.revision,
        "private": destination.private,
        "message": upload.message,
        "files": [
            {"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in upload.files
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
        listing.add_row(file.name, str(file.bytes), file.sha256)
    visibility = "private" if destination.private else "public"
    render.print_tables(
        f"Would push to {destination.repository}, branch {destination.revision}, {visibility}: "
        f"{upload.message}",
        listing,
        f"{len(upload.files)} files, {human_bytes(upload.total_bytes)}. Nothing was sent.",
    )
