"""``gemquant llamafile``: pack a GGUF and its runtime into one executable."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemquant.cli.flags import complete_model, flags, output_flags
from gemquant.core.progress import reporter
from gemquant.errors import ProblemCollector, UsageError

if TYPE_CHECKING:
    from gemquant.core.protocols import Progress
    from gemquant.formats.llamafile import Llamafile, LlamafilePlan, Mode

MODES = ("chat", "server", "cli")


@click.command(
    "llamafile",
    epilog="""\b
Examples:
  gemquant llamafile gemma.gguf --runtime ./llamafile-0.10.1 -o gemma.llamafile
  gemquant llamafile gemma.gguf --runtime ./llamafile-0.10.1 --mode server --arg -c --arg 8192
  gemquant llamafile gemma.gguf --runtime ./llamafile-0.10.1 --external -o gemma.exe""",
)
@click.argument("model", metavar="ARTIFACT|FILE.gguf", shell_complete=complete_model)
@click.option(
    "--runtime",
    metavar="PATH|URL",
    help="The llamafile executable, from github.com/mozilla-ai/llamafile/releases.",
)
@click.option(
    "--sha256",
    metavar="HEX",
    help="Expected hash of the runtime; required for a URL, which must be https.",
)
@click.option(
    "--arg",
    "args",
    multiple=True,
    metavar="ARG",
    help="A default argument, such as -c or 8192; repeat it for more.",
)
@click.option(
    "--mode",
    type=click.Choice(MODES),
    help="What it does when started.  [default: the runtime's: chat and server]",
)
@click.option(
    "--external",
    is_flag=True,
    help="Leave the weights in a separate file, as Windows needs from 4 GiB.",
)
@click.option(
    "--mmproj",
    metavar="FILE|none",
    help="Vision and audio towers to pack too.  [default: the artifact's]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write.  [default: the weights' name with .llamafile, here]",
)
@click.option(
    "--run/--no-run",
    default=True,
    show_default=True,
    help="Start the finished file once, with --version.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing llamafile.")
@flags(*output_flags())
def command(
    model: str,
    *,
    runtime: str | None,
    sha256: str | None,
    args: tuple[str, ...],
    mode: Mode | None,
    external: bool,
    mmproj: str | None,
    output: Path | None,
    run: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Pack a GGUF and a llamafile runtime into one executable.

    The runtime's bytes come first, unchanged; the weights are stored uncompressed, so that the
    runtime can map them. A record, FILE.json, lists what the file was built from; `gemquant verify
    FILE` compares the two.
    """
    from gemquant.formats.gguf.find import find_gguf, find_mmproj
    from gemquant.formats.llamafile import (
        LlamafileRequest,
        build_llamafile,
        plan_llamafile,
    )
    from gemquant.formats.llamafile_runtime import find_runtime

    if runtime is None:
        raise UsageError(
            "--runtime: missing.",
            hint="Download llamafile-X.Y.Z from https://github.com/mozilla-ai/llamafile/releases, "
            f"then: gemquant llamafile {model} --runtime ./llamafile-X.Y.Z",
        )
    with reporter(quiet=quiet) as progress:
        problems = ProblemCollector()
        weights = problems.attempt(lambda: find_gguf(model))
        towers = problems.attempt(lambda: find_mmproj(weights.value, mmproj))
        opened = problems.attempt(lambda: find_runtime(runtime, sha256, progress))
        problems.refuse()
        request = LlamafileRequest(
            weights=weights.value,
            runtime=opened.value,
            out=output or Path(f"{weights.value.path.stem}.llamafile"),
            mode=mode,
            extra=args,
            external=external,
            towers=towers.value.path if towers.value else None,
        )
        plan = plan_llamafile(request, force=force, progress=progress)
        _cautions(plan, progress)
        llamafile = None if dry_run else build_llamafile(plan, run=run, progress=progress)
        if llamafile and llamafile.trial and llamafile.trial.not_run is not None:
            progress.note(f"caution: not run: {llamafile.trial.not_run}")
    _print(plan, llamafile, as_json=as_json)


def _cautions(plan: LlamafilePlan, progress: Progress) -> None:
    from gemquant.core.resources import human_bytes
    from gemquant.formats.llamafile_record import ARGUMENTS_ENTRY, is_plain

    if plan.too_large_for_windows:
        progress.note(
            f"caution: {human_bytes(plan.layout.size)}: Windows starts no executable of 4 GiB "
            "or more; --external leaves the weights in a separate file"
        )
    if not all(map(is_plain, plan.request.arguments)):
        progress.note(
            "caution: only llamafile 0.10 and later reads an argument with spaces or quotes"
        )
    if any(entry.name == ARGUMENTS_ENTRY for entry in plan.request.runtime.entries):
        progress.note(f"caution: replacing the runtime's {ARGUMENTS_ENTRY}")


def _print(plan: LlamafilePlan, llamafile: Llamafile | None, *, as_json: bool) -> None:
    from gemquant.cli.render import fact_table, print_json, print_tables
    from gemquant.core.resources import human_bytes
    from gemquant.formats.llamafile_record import record_path

    request = plan.request
    if as_json:
        document = {
            "path": str(request.out),
            "bytes": plan.layout.size,
            "weights": {
                "name": request.weights_name,
                "bytes": plan.digests[request.weights_name].bytes,
                "sha256": plan.digests[request.weights_name].sha256,
                "offset": plan.offsets[request.weights_name],
            },
            "arguments": list(request.arguments),
            "starts_on_windows": not plan.too_large_for_windows,
        }
        if llamafile is not None:
            document["record"] = llamafile.record.model_dump(mode="json")
            document["not_run"] = llamafile.trial.not_run if llamafile.trial else "not asked for"
        print_json(document)
        return
    facts = fact_table()
    facts.add_row("file", f"{request.out}, {human_bytes(plan.layout.size)}")
    facts.add_row("runtime", f"{request.runtime.origin}, sha256 {request.runtime.sha256}")
    facts.add_row("entries", f"{len(request.runtime.entries)} zip entries of the runtime")
    for kind, name in zip(("weights", "towers"), request.sources, strict=False):
        offset = plan.offsets[name]
        where = "in a separate file" if offset is None else f"at byte {offset}"
        facts.add_row(kind, f"{name}, {human_bytes(plan.digests[name].bytes)}, {where}")
    facts.add_row("called with", shlex.join([*request.arguments, "..."]))
    if llamafile is None:
        print_tables(facts, "", "Nothing was written (--dry-run).")
        return
    if llamafile.record.runtime.version is not None:
        facts.add_row("--version", llamafile.record.runtime.version)
    facts.add_row("record", str(record_path(llamafile.path)))
    print_tables(facts, "", "Read back: the runtime, its entries and the weights are unchanged.")
