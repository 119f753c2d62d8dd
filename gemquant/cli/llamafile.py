"""``gemquant llamafile``: pack a GGUF and its runtime into one executable."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemquant.cli.flags import output_flags
from gemquant.cli.gathering import Gathering
from gemquant.cli.progress import reporter
from gemquant.errors import UsageError

if TYPE_CHECKING:
    from gemquant.core.progress import Progress
    from gemquant.formats.llamafile.build import Made, Mode, Plan
    from gemquant.formats.llamafile.runtime import Runtime

MODES = ("chat", "server", "cli")


def _llamafile(
    model: str,
    *,
    runtime: str,
    sha256: str | None,
    args: tuple[str, ...],
    mode: Mode | None,
    external: bool,
    output: Path | None,
    run: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from gemquant.formats.gguf.find import find_gguf
    from gemquant.formats.llamafile import build as making

    with reporter(quiet=quiet) as progress:
        gathering = Gathering()
        weights = gathering.attempt(lambda: find_gguf(model))
        opened = gathering.attempt(lambda: _runtime(runtime, sha256, progress))
        gathering.refuse()
        request = making.Request(
            weights=weights.value,
            runtime=opened.value,
            out=output or Path(f"{weights.value.path.stem}.llamafile"),
            mode=mode,
            extra=args,
            external=external,
        )
        planned = making.plan(request, force=force, progress=progress)
        _cautions(planned, progress)
        made = None if dry_run else making.make(planned, run=run, progress=progress)
        if made is not None and made.trial is not None and made.trial.not_run is not None:
            progress.note(f"caution: not run: {made.trial.not_run}")
    _print(planned, made, as_json=as_json)


def _runtime(named: str, sha256: str | None, progress: Progress) -> Runtime:
    """Open the runtime, downloading it first where it is a URL."""
    from gemquant.formats.llamafile.download import download, is_url, require_https
    from gemquant.formats.llamafile.runtime import checked_sha256, open_runtime

    expected = None if sha256 is None else checked_sha256(sha256)
    if not is_url(named):
        path = Path(named).expanduser()
        return open_runtime(path, origin=path.name, sha256=expected)
    require_https(named)
    if expected is None:
        raise UsageError(
            f"--runtime {named}: a URL needs --sha256.",
            hint="Copy the hash from where the runtime is published, not from the download.",
        )
    return open_runtime(download(named, expected, progress), origin=named, sha256=expected)


def _cautions(planned: Plan, progress: Progress) -> None:
    from gemquant.core.resources import human_bytes
    from gemquant.formats.llamafile.arguments import is_plain
    from gemquant.formats.llamafile.reading import ARGUMENTS_ENTRY

    if planned.too_large_for_windows:
        progress.note(
            f"caution: {human_bytes(planned.layout.size)}: Windows starts no executable of 4 GiB "
            "or more; --external keeps the weights in a file beside it"
        )
    if not all(map(is_plain, planned.request.arguments)):
        progress.note(
            "caution: an argument with spaces or quotes is read by llamafile 0.10 and later only"
        )
    if any(entry.name == ARGUMENTS_ENTRY for entry in planned.request.runtime.entries):
        progress.note(f"caution: the runtime's own {ARGUMENTS_ENTRY} is replaced")


def _print(planned: Plan, made: Made | None, *, as_json: bool) -> None:
    from gemquant.cli.render import print_json, print_tables, table
    from gemquant.core.resources import human_bytes
    from gemquant.formats.llamafile.record import record_path

    request = planned.request
    if as_json:
        document = {
            "path": str(request.out),
            "bytes": planned.layout.size,
            "weights": {
                "name": request.weights_name,
                "bytes": planned.digests.bytes,
                "sha256": planned.digests.sha256,
                "offset": planned.offset,
            },
            "arguments": list(request.arguments),
            "starts_on_windows": not planned.too_large_for_windows,
        }
        if made is not None:
            document["record"] = made.record.model_dump(mode="json")
            document["not_run"] = made.trial.not_run if made.trial else "not asked for"
        print_json(document)
        return
    facts = table("", "")
    facts.show_header = False
    facts.add_row("file", f"{request.out}, {human_bytes(planned.layout.size)}")
    facts.add_row("runtime", f"{request.runtime.origin}, sha256 {request.runtime.sha256}")
    facts.add_row("kept", f"{len(request.runtime.entries)} zip entries of the runtime's own")
    where = f"at byte {planned.offset}" if planned.offset else "in its own file, to be kept beside"
    size = human_bytes(planned.digests.bytes)
    facts.add_row("weights", f"{request.weights_name}, {size}, {where}")
    facts.add_row("called with", shlex.join([*request.arguments, "..."]))
    if made is None:
        print_tables(facts, "", "Nothing was written (--dry-run).")
        return
    if made.record.runtime.version is not None:
        facts.add_row("--version", made.record.runtime.version)
    facts.add_row("record", str(record_path(made.path)))
    print_tables(facts, "", "Read back: the runtime, its entries and the weights are unchanged.")


command = click.Command(
    "llamafile",
    callback=_llamafile,
    params=[
        click.Argument(["model"], metavar="ARTIFACT|FILE.gguf"),
        click.Option(
            ["--runtime"],
            metavar="PATH|URL",
            required=True,
            help="The llamafile executable, from github.com/mozilla-ai/llamafile/releases.",
        ),
        click.Option(
            ["--sha256"],
            metavar="HEX",
            help="What the runtime must hash to; needed for a URL, which must be https.",
        ),
        click.Option(
            ["--arg", "args"],
            multiple=True,
            metavar="ARG",
            help="A default argument, such as -c or 8192; repeat it for more.",
        ),
        click.Option(
            ["--mode"],
            type=click.Choice(MODES),
            help="What it does when started.  [default: the runtime's: chat and server]",
        ),
        click.Option(
            ["--external"],
            is_flag=True,
            help="Leave the weights in a file beside the executable, as Windows needs from 4 GiB.",
        ),
        click.Option(
            ["-o", "--output"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="File to write.  [default: the weights' name with .llamafile, here]",
        ),
        click.Option(
            ["--run/--no-run"],
            default=True,
            show_default=True,
            help="Start the finished file once, with --version.",
        ),
        click.Option(
            ["--dry-run"], is_flag=True, help="Check everything, print the plan, write nothing."
        ),
        click.Option(["--force"], is_flag=True, help="Replace an existing llamafile."),
        *output_flags(),
    ],
    help="""Pack a GGUF and a llamafile runtime into one executable.

    The runtime's bytes come first, unchanged; the weights lie uncompressed where the runtime can
    map them. Beside the file a record, FILE.json, says what it was put together from, and `gemquant
    verify FILE` compares the two.""",
    epilog="""\b
Examples:
  gemquant llamafile gemma.gguf --runtime ./llamafile-0.10.1 -o gemma.llamafile
  gemquant llamafile gemma.gguf --runtime ./llamafile-0.10.1 --mode server --arg -c --arg 8192
  gemquant llamafile gemma.gguf --runtime ./llamafile-0.10.1 --external -o gemma.exe""",
)
