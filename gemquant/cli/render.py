"""Results on stdout: tables for people, or one JSON document. Numbers are rounded only here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from gemquant.core.resources import human_bytes
from gemquant.core.scheme import INTEGER, PER_CHANNEL, Scheme, describe

if TYPE_CHECKING:
    from gemquant.core.artifact import Artifact, CertificateRecord, Manifest
    from gemquant.core.artifact.certificates import MeasurementRecord, SliceRecord

MATRICES_NAMED = 4


def print_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_tables(*parts: Table | str) -> None:
    """Print tables and lines; 100 columns where stdout is no terminal."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 100
    with console.capture() as printed:
        for part in parts:
            console.print(part, soft_wrap=isinstance(part, str))
    click.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))


def table(*columns: str, title: str | None = None, numbers: Sequence[str] = ()) -> Table:
    """Make a plain table; columns named in ``numbers`` are aligned to the right."""
    made = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for column in columns:
        right = column in numbers
        made.add_column(
            column, justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    return made


def fact_table() -> Table:
    """A table of what is what, without a head."""
    facts = table("", "")
    facts.show_header = False
    return facts


# ---------------------------------------------------------------- artifacts


def artifacts(made: Sequence[Artifact], *, as_json: bool) -> None:
    """Print finished artifacts; in JSON one is a document, several are a list of them."""
    if as_json and len(made) > 1:
        print_json([_artifact_document(each) for each in made])
        return
    for each in made:
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
            print_tables("No certificate: it was not asked for.")


def print_certificates(records: Sequence[CertificateRecord]) -> None:
    """Print a table per level; the corners of an emulation's bracket are one table."""
    from gemquant.core.artifact import emulated_corners

    corners = emulated_corners(records)
    for record in records:
        if record not in corners:
            print_tables(*certificate(record), "")
    if corners:
        print_tables(*_bracket(corners), "")


def _bracket(corners: Sequence[CertificateRecord]) -> list[Table | str]:
    """Lay out a bracket: a row per corner and slice."""
    first = corners[0].emulation
    assert first is not None
    numbers = ("perplexity", "quantized", "KL mean", "KL 99.9 %", "top-1 same")
    title = f"Certificate, level emulated: {first.dtype}, not the device"
    words = ("smoothing", "activations", "head", "slice")
    losses = table(*words, *numbers, title=title, numbers=numbers)
    for each in corners:
        assert each.emulation is not None
        for row in each.slices:
            losses.add_row(
                "yes" if each.emulation.smoothing else "no",
                each.emulation.activations,
                each.emulation.head,
                *_losses(row),
            )
    return [losses, _LEGEND, f"{corners[0].runtime}; the others likewise."]


_LEGEND = "KL divergence in nats per token; ± is the standard error over windows."


def _losses(row: SliceRecord) -> Iterator[str]:
    """A slice's name, and each figure ± its standard error."""
    alone = row.windows == 1
    yield row.slice
    yield f"{row.perplexity_original.value:.3f}"
    yield f"{row.perplexity_quantized.value:.3f}"
    yield _figure(row.kl_mean, ".4f", alone=alone)
    yield _figure(row.kl_p999, ".3f", alone=alone)
    yield _figure(row.top1_agreement, ".2%", alone=alone)


def _facts(manifest: Manifest) -> list[Table | str]:
    quantization = manifest.quantization
    facts = fact_table()
    facts.add_row("model", _origin(manifest))
    facts.add_row("container", f"{manifest.container}, {quantization.float_dtype}")
    for scheme in quantization.schemes:
        facts.add_row(
            quantization.quantizer,
            f"{scheme_words(scheme)}: {counted(len(scheme.modules), 'layer')}",
        )
    if quantization.unquantized and quantization.schemes:
        facts.add_row("kept", f"{named(quantization.unquantized)} in {quantization.float_dtype}")
    if not quantization.schemes:
        facts.add_row(quantization.quantizer, f"everything in {quantization.float_dtype}")
    facts.add_row(
        "size",
        f"{human_bytes(sum(file.bytes for file in manifest.files.values()))}, "
        f"{quantization.bits_per_weight:.2f} bits per weight over all",
    )
    if manifest.conversion is not None:
        made = manifest.conversion
        facts.add_row("platform", f"{made.platform}, {made.dtype}")
        facts.add_row("toolkit", f"{made.tool} {made.version}, Python {made.python}")
        facts.add_row("needs", f"librkllmrt {made.runtime}, NPU driver {made.driver} or newer")
        for call in made.calls:
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
    """What is not stored as asked: names, what as, and why; many of a kind are counted."""
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


def counted(count: int, noun: str) -> str:
    """Write a number of things."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _origin(manifest: Manifest) -> str:
    source = manifest.source
    revision = f" at {source.revision}" if source.revision else ""
    base = f", from {manifest.base_model}" if manifest.base_model not in {None, source.ref} else ""
    return f"{source.ref}{revision}{base} ({manifest.architecture})"


def scheme_words(scheme: Scheme) -> str:
    """Name a scheme in words."""
    if scheme.codes != INTEGER:
        return describe(scheme)
    groups = (
        "one scale per row"
        if scheme.group_size == PER_CHANNEL
        else f"groups of {scheme.group_size}"
    )
    return f"{scheme.bits} bits, {groups}, {'symmetric' if scheme.symmetric else 'zero points'}"


def certificate(record: CertificateRecord) -> list[Table | str]:
    """Lay out what was lost, at one level: a row per slice, each figure ± its standard error."""
    title = f"Certificate, level {record.level} ({record.runtime})"
    if record.not_run is not None:
        return [f"{title}: not run, {record.not_run}"]
    numbers = ("tokens", "perplexity", "quantized", "KL mean", "KL 99.9 %", "top-1 same")
    losses = table("slice", *numbers, title=title, numbers=numbers)
    for row in record.slices:
        name, *figures = _losses(row)
        losses.add_row(name, str(row.tokens), *figures)
    parts: list[Table | str] = [losses, _LEGEND]
    if record.kl_from_reference is not None:
        figure = _figure(record.kl_from_reference, ".5f", alone=False)
        parts.append(f"KL divergence of this level from level reference: {figure}.")
    return parts


def _figure(measured: MeasurementRecord, form: str, *, alone: bool) -> str:
    """Write a figure with its standard error, which a window that stands alone does not have."""
    error = "" if alone else f" ± {measured.standard_error:{form}}"
    # A divergence of nothing may come out a little below zero.
    return f"{measured.value:z{form}}{error}"
