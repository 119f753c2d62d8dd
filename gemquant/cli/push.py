"""``gemquant push``: an artifact to the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemquant.cli.flags import output_flags
from gemquant.cli.progress import Lines
from gemquant.core.progress import Silence

if TYPE_CHECKING:
    from gemquant.publish.hub import Pushed
    from gemquant.publish.upload import Upload


def _push(
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
    from gemquant.cli import render
    from gemquant.publish.upload import Destination, prepare_upload

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
        import huggingface_hub
        from huggingface_hub import utils

        from gemquant.publish.hub import push

        # Its own bars count bytes; where there is no terminal to draw on, our lines are enough.
        shown = not utils.are_progress_bars_disabled()
        if quiet or not sys.stderr.isatty():
            utils.disable_progress_bars()
        try:
            pushed = push(upload, huggingface_hub.HfApi(), replace=replace, progress=progress)
        finally:
            if shown:
                utils.enable_progress_bars()
    if as_json:
        render.print_json(_document(upload, pushed))
    else:
        _print(upload, pushed)


def _document(upload: Upload, pushed: Pushed | None) -> dict[str, object]:
    to = upload.destination
    return {
        "path": str(upload.artifact.path),
        "repository": to.repository,
        "revision": to.revision,
        "private": to.private,
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
        click.echo(f"{pushed.url}: {sent}{deleted}, commit {pushed.commit}")
        return
    to = upload.destination
    listing = render.table("file", "bytes", "sha256", numbers=("bytes",))
    for file in upload.files:
        listing.add_row(file.name, str(file.bytes), file.sha256)
    seen = "private" if to.private else "public"
    render.print_tables(
        f"Would push to {to.repository}, branch {to.revision}, {seen}: {upload.message}",
        listing,
        f"{len(upload.files)} files, {human_bytes(upload.total_bytes)}. Nothing was sent.",
    )


command = click.Command(
    "push",
    callback=_push,
    params=[
        click.Argument(["artifact"], type=click.Path(path_type=Path)),
        click.Argument(["repository"], metavar="OWNER/NAME"),
        click.Option(
            ["--private/--public"],
            default=True,
            show_default=True,
            help="Who may see a repository that is made; one that exists must be so already.",
        ),
        click.Option(
            ["--revision"],
            default="main",
            show_default=True,
            metavar="BRANCH",
            help="Branch to commit to; made where it is not there.",
        ),
        click.Option(["--message"], metavar="TEXT", help="Commit message; 'Upload NAME' if none."),
        click.Option(
            ["--public-key"],
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="Take ARTIFACT/model.sig along, if it was made with this key's private half.",
        ),
        click.Option(
            ["--replace"],
            is_flag=True,
            help="Make the branch exactly this artifact: overwrite, and delete what is not in it.",
        ),
        click.Option(
            ["--dry-run"], is_flag=True, help="List what would be sent, and send nothing."
        ),
        *output_flags(),
    ],
    help="""Upload an artifact to the Hugging Face Hub, in one commit.

    Sends manifest.json and the files that it lists, nothing else, after verifying them; refuses an
    artifact without the Gemma notice and terms. Run it again after an interruption: what the Hub
    has is not sent twice. The token is that of `hf auth login`, or HF_TOKEN.""",
    epilog="""\b
Examples:
  gemquant push gemma-2-2b-awq me/gemma-2-2b-awq --dry-run
  gemquant push gemma-2-2b-awq me/gemma-2-2b-awq
  gemquant push gemma-2-2b-awq me/gemma-2-2b --revision w4-g128 --public""",
)
