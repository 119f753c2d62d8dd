"""Results on stdout: tables for people, or one JSON document. Numbers are rounded only here."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich import table as rich_table
from rich.console import Console

from gemquant.core.resources import human_bytes
from gemquant.core.scheme import describe
from gemquant.core.tables import Column, Table, matrices
from gemquant.core.tables import counted as counted  # noqa: PLC0414 - for the other tables
from gemquant.errors import echo, inert

if TYPE_CHECKING:
    from gemquant.core.artifact import Artifact, LevelEvaluation, Manifest

MATRICES_NAMED = 4
WIDTH = 120


def print_json(document: Any) -> None:
    """Print one JSON document."""
    echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_tables(*parts: Table | str) -> None:
    """Print tables and lines; 120 columns where stdout is no terminal."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDTH
    with console.capture() as printed:
        for part in parts:
            if isinstance(part, str):
                console.print(inert(part), soft_wrap=True)
            else:
                console.print(_rich(part))
    lines = "\n".join(line.rstrip() for line in printed.get().splitlines())
    click.echo(lines)  # noqa: TID251 - the styles are rich's, and all text is inert


def _rich(table: Table) -> rich_table.Table:
    """A plain table; numbers are aligned to the right."""
    drawn = rich_table.Table(
        title=None if table.title is None else inert(table.title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        show_header=table.show_header,
    )
    for column in table.columns:
        drawn.add_column(
            column.name,
            justify="right" if column.numeric else "left",
            no_wrap=column.numeric,
            overflow="fold",
        )
    for row in table.rows:
        drawn.add_row(*(inert(cell.text) for cell in row))
    return drawn


def table(*names: str, title: str | None = None, numbers: Sequence[str] = ()) -> Table:
    """Make a table; columns named in ``numbers`` are numeric."""
    return Table([Column(name, numeric=name in numbers) for name in names], title=title)


def fact_table() -> Table:
    """A table of names and values, without a head."""
    return Table([Column(""), Column("")], show_header=False)


# ---------------------------------------------------------------- artifacts


def artifacts(finished: Sequence[Artifact], *, as_json: bool) -> None:
    """Print finished artifacts; in JSON one is a document, several are a list of them."""
    if as_json and len(finished) > 1:
        print_json([_artifact_document(each) for each in finished])
        return
    for each in finished:
        artifact(each, as_json=as_json)


def _artifact_document(made: Artifact) -> dict[str, Any]:
    return {"path": str(made.path), "manifest": made.manifest.model_dump(mode="json")}


def artifact(made: Artifact, *, as_json: bool) -> None:
    """Print a finished artifact: what it is, and what was lost in it."""
    if as_json:
        print_json(_artifact_document(made))
    else:
        print_tables(f"{made.path}", *_facts(made.manifest), "")
        print_certificates(made.manifest.certificates)
        if not made.manifest.certificates:
            print_tables("No certificate (--no-eval).")


def print_certificates(levels: Sequence[LevelEvaluation]) -> None:
    """Print a table per level; an emulation's corners as a range, with -v as a table."""
    from gemquant.core.artifact import emulated_corners
    from gemquant.core.artifact.losses import bracket_table

    corners = emulated_corners(levels)
    for level in levels:
        if level not in corners:
            print_tables(*losses([level], title=f"Certificate, level {level.level}"), "")
    if corners and (first := corners[0].emulation):
        title = f"Certificate, level emulated, {first.dtype}, not the device"
        if logging.getLogger("gemquant").isEnabledFor(logging.INFO):
            print_tables(*losses(corners, title=title), "")
            return
        title += f"; mean over {counted(len(corners[0].slices), 'slice')}"
        details = "KL divergence in nats per token; every corner and slice with -v."
        print_tables(bracket_table(corners, title=title), details, "")


def losses(levels: Sequence[LevelEvaluation], *, title: str) -> list[Table | str]:
    """Lay out what was lost, at one level or in a bracket; title: without the runtime."""
    from gemquant.core.artifact.losses import from_reference, legend, loss_table

    title = f"{title} ({levels[0].runtime}{'; the others likewise' if len(levels) > 1 else ''})"
    if levels[0].not_run is not None:
        return [f"{title}: not run, {levels[0].not_run}"]
    distance = from_reference(levels[0])
    return [loss_table(levels, title=title), legend(levels), *([distance] if distance else [])]


def _facts(manifest: Manifest) -> list[Table | str]:
    quantization = manifest.quantization
    facts = fact_table()
    facts.add_row("model", _origin(manifest))
    facts.add_row("container", f"{manifest.container}, {quantization.float_dtype}")
    for scheme in quantization.schemes:
        facts.add_row(
            quantization.quantizer,
            f"{describe(scheme)}: {matrices(scheme.modules)}",
        )
    if quantization.unquantized and quantization.schemes:
        facts.add_row(
            "remaining", f"{named(quantization.unquantized)} in {quantization.float_dtype}"
        )
    if not quantization.schemes:
        facts.add_row(quantization.quantizer, f"everything in {quantization.float_dtype}")
    facts.add_row(
        "size",
        f"{human_bytes(sum(file.bytes for file in manifest.files.values()))}, "
        f"{quantization.bits_per_weight:.2f} bits per weight over all",
    )
    if manifest.conversion is not None:
        conversion = manifest.conversion
        facts.add_row("platform", f"{conversion.platform}, {conversion.dtype}")
        facts.add_row(
            "toolkit", f"{conversion.tool} {conversion.version}, Python {conversion.python}"
        )
        facts.add_row(
            "needs", f"librkllmrt {conversion.runtime}, NPU driver {conversion.driver} or newer"
        )
        for call in conversion.calls:
            passed = ", ".join(f"{key}={value!r}" for key, value in call.arguments.items())
            facts.add_row("passed", f"{call.function}({passed})")
    if manifest.smoothing is not None:
        folds = counted(len(manifest.smoothing.folds), "scale")
        facts.add_row("smoothing", f"{folds} folded, in {manifest.smoothing.float_dtype}")
    if manifest.calibration is not None:
        calibration = manifest.calibration
        facts.add_row(
            "calibration",
            f"{calibration.name}, {calibration.windows} × {calibration.seq_len} tokens",
        )
    if manifest.activation_range is not None:
        seen = manifest.activation_range
        verdict = "fits" if seen.fits_float16 else "does not fit; use bfloat16"
        facts.add_row(
            "float16",
            f"{verdict}: largest activation {seen.largest:,.0f} of {seen.limit:,.0f}, "
            f"at {seen.where}",
        )
    parts: list[Table | str] = [facts]
    from gemquant.core.artifact import fallbacks_by_reason

    groups = fallbacks_by_reason(manifest).items()
    return [*parts, *fallback_table((modules, *why) for why, modules in groups)]


def fallback_table(groups: Iterable[tuple[Sequence[str], str, str]]) -> list[Table | str]:
    """List layers that are not stored as requested: names, format and reason."""
    fallbacks = table("layer", "stored as", "because", title="Fallbacks")
    for names, stored, reason in groups:
        modules = [name.removesuffix(".weight") for name in names]
        more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
        fallbacks.add_row(modules[0] + more, stored, reason)
    return ["", fallbacks] if fallbacks.row_count else []


def named(matrices: Sequence[str]) -> str:
    """Name a few matrices; count many."""
    if not matrices:
        return "norms alone"
    return ", ".join(matrices) if len(matrices) <= MATRICES_NAMED else f"{len(matrices)} matrices"


def _origin(manifest: Manifest) -> str:
    source = manifest.source
    revision = f" at {source.revision}" if source.revision else ""
    base = f", from {manifest.base_model}" if manifest.base_model not in {None, source.ref} else ""
    return f"{source.ref}{revision}{base} ({manifest.architecture})"
