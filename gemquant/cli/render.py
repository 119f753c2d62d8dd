"""Results on stdout: tables for people, or one JSON document. Numbers are rounded only here."""

from __future__ import annotations

import json
import logging
import operator
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from gemquant.core.resources import human_bytes
from gemquant.core.scheme import INTEGER, describe
from gemquant.core.tables import Cell, Column, Table, matrices
from gemquant.core.tables import counted as counted  # noqa: PLC0414 - for the other tables
from gemquant.errors import echo, inert

if TYPE_CHECKING:
    from gemquant.core.artifact import (
        Artifact,
        GridRecord,
        LevelEvaluation,
        Manifest,
        TowerRecord,
    )
    from gemquant.core.artifact.manifest import Quantization

MATRICES_NAMED = 4
_GAP = "  "


def print_json(document: Any) -> None:
    """Print one JSON document."""
    echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_tables(*parts: Table | str) -> None:
    """Print tables and lines. They are wrapped in a terminal only, and never inside a word."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for part in parts:
        if not isinstance(part, str):
            echo("\n".join(_lines(part, width)))
        elif width is None or "\n" in part:
            echo(part)
        else:
            indent = " " * (len(part) - len(part.lstrip()))
            echo("\n".join(_wrapped(part, width, indent)))


def _lines(table: Table, width: int | None, *, tied: bool = True) -> Iterator[str]:
    """Lay out a table; numbers are aligned to the right. width: None for any.

    tied: intervals are not wrapped; where that is too wide, they are.
    """
    head = [column.name for column in table.columns] if table.show_header else []
    rows = [
        [_shown(cell, column, tied=tied) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    widths, least = [], []
    for number in range(len(table.columns)):
        texts = [row[number] for row in rows]
        shown = [*texts, *head[number : number + 1]]
        words = [word for text in shown for word in re.split("[ \n]", text)]
        widths.append(max(map(_width, shown), default=0))
        least.append(max(map(_width, words), default=0))
    most = sys.maxsize if width is None else width - len(_GAP) * (len(widths) - 1)
    if tied and sum(least) > most:
        yield from _lines(table, width, tied=False)
        return
    while sum(widths) > most and any(map(operator.gt, widths, least)):
        widest = max(range(len(widths)), key=lambda n: (widths[n] > least[n], widths[n]))
        widths[widest] -= 1
    if table.title:
        yield table.title
    for row in ([head] if head else []) + rows:
        cells = [_wrapped(text, width) for text, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            padded = []
            for text, room, column in zip(parts, widths, table.columns, strict=True):
                blank = " " * (room - cell_len(text))
                padded.append(blank + text if column.numeric else text + blank)
            yield _GAP.join(padded).rstrip().replace("\xa0", " ")


def _width(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _shown(cell: Cell, column: Column, *, tied: bool) -> str:
    """The text; a figure is wrapped only before its interval, or in it."""
    text = inert(cell.text)
    inside = "" if tied else "(?<!,)"
    return re.sub(rf"{inside} (?!\[|to )", "\xa0", text) if column.numeric else text


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    if _width(text) <= width:
        return text.split("\n")
    return textwrap.wrap(
        text, width, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent
    )


def verbose() -> bool:
    """Whether ``-v`` was given: print every row, not the summary alone."""
    return logging.getLogger("gemquant").isEnabledFor(logging.INFO)


def table(*names: str, title: str | None = None, numbers: Sequence[str] = ()) -> Table:
    """Make a table; columns named in ``numbers`` are numeric."""
    return Table([Column(name, numeric=name in numbers) for name in names], title=title)


def fact_table() -> Table:
    """A table of names and values, without a head."""
    return Table([Column(""), Column("")], show_header=False)


# ---------------------------------------------------------------- artifacts


def artifacts(finished: Sequence[Artifact], *, as_json: bool) -> None:
    """Print one artifact whole, or several in one table; in JSON several are a list."""
    if len(finished) == 1:
        artifact(finished[0], as_json=as_json)
    elif as_json:
        print_json([_artifact_document(each) for each in finished])
    else:
        _print_set(finished)


def push_command(finished: Sequence[Artifact]) -> str:
    """What publishes one artifact, or a folder of several GGUF files of one model."""
    from gemquant.core.artifact.manifest import model_name

    if len(finished) == 1:
        path = finished[0].path
        return f"gemquant push {shlex.quote(str(path))} ME/{path.resolve().name}"
    paths = " ".join(shlex.quote(str(path)) for path in {each.path.parent for each in finished})
    return f"gemquant push {paths} ME/{model_name(finished[0].manifest)}-GGUF"


def _print_set(several: Sequence[Artifact]) -> None:
    """Print artifacts side by side, the largest first."""
    from gemquant.core.artifact.losses import (
        compared_cells,
        compared_columns,
        headline,
        overall_legend,
    )
    from gemquant.core.artifact.manifest import (
        artifact_label,
        gguf_files,
        model_name,
        original_bytes,
    )

    ggufs = all(each.manifest.container == "gguf" for each in several)
    last = "file" if ggufs else "folder"
    lines = [headline(each.manifest.certificates) for each in several]
    first = Column("type" if ggufs else "quantizer")
    rows = Table([first, *compared_columns(lines), Column(last)])
    for each in sorted(several, key=lambda each: -each.content_bytes):
        manifest = each.manifest
        file = next(iter(gguf_files(manifest)), "")
        bits = manifest.quantization.bits_per_weight
        level = headline(manifest.certificates)
        label = artifact_label(manifest)
        rows.add_row(label, *compared_cells(each.content_bytes, bits, level), str(each.path / file))
    names = dict.fromkeys(model_name(each.manifest) for each in several)
    before = human_bytes(original_bytes(several[0].manifest))
    size = f" (in bfloat16: {before})" if len(names) == 1 else ""
    folders = {each.path for each in several}
    parents = folders if len(folders) == 1 else {each.parent for each in folders}
    place = str(parents.pop()) if len(parents) == 1 else "."
    count = counted(len(several), "file" if ggufs else "artifact")
    print_tables(f"{place}: {count} of {', '.join(names)}{size}", rows, overall_legend(lines))


def _artifact_document(made: Artifact) -> dict[str, Any]:
    return {"path": str(made.path), "manifest": made.manifest.model_dump(mode="json")}


def artifact(made: Artifact, *, as_json: bool) -> None:
    """Print a finished artifact: what it is, and what was lost in it."""
    from gemquant.core.artifact.losses import collapse_hint, headline

    if as_json:
        print_json(_artifact_document(made))
    else:
        print_tables(f"{made.path}", *_facts(made.manifest), "")
        print_certificates(made.manifest.certificates)
        level = headline(made.manifest.certificates)
        if level is not None and (hint := collapse_hint(level, shlex.quote(str(made.path)))):
            print_tables(hint)
        if not made.manifest.certificates:
            print_tables("No certificate (--no-eval).")
        elif made.manifest.towers:
            print_tables("The certificate is of the text model.")


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
    rows, words = loss_table(levels, title=title), legend(levels)
    slices = [each for level in levels for each in level.slices]
    if len({(each.window_count, each.token_count) for each in slices}) == 1:
        kept = [n for n, each in enumerate(rows.columns) if each.name not in {"windows", "tokens"}]
        cells = [[row[n] for n in kept] for row in rows.rows]
        rows = Table([rows.columns[n] for n in kept], cells, title=title)
        count, tokens = counted(slices[0].window_count, "window"), f"{slices[0].token_count:,}"
        if slices[0].token_count < slices[0].predicted_count:
            tokens = f"{tokens} of {slices[0].predicted_count:,}"
        words = f"{words} Each slice: {count}, {tokens} predicted tokens."
    distance = from_reference(levels[0])
    return [rows, words, *([distance] if distance else [])]


def _facts(manifest: Manifest) -> list[Table | str]:
    from gemquant.core.artifact.manifest import scheme_label

    quantization = manifest.quantization
    facts = fact_table()
    facts.add_row("model", _origin(manifest))
    stored = scheme_label(manifest) if manifest.container == "gguf" else quantization.float_dtype
    facts.add_row("container", f"{manifest.container}, {stored}")
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
        f"{quantization.bits_per_weight:.2f} bits per weight over all{_stored_bits(manifest)}",
    )
    if table := _table_of_inputs(quantization):
        size = f": {each}" if (each := manifest.per_layer_embedding) else ""
        facts.add_row("table", f"of per-layer inputs, in {table}{size}")
    for tower in manifest.towers:
        facts.add_row(tower.name, tower_facts(tower))
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
    add_grid(facts, manifest.grid)
    if manifest.tokens_without_row is not None:
        facts.add_row("tokens", str(manifest.tokens_without_row))
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


def _table_of_inputs(quantization: Quantization) -> str | None:
    """How the table of per-layer inputs is stored; None where there is none."""
    from gemquant.models.structure import PER_LAYER_TABLE

    name = PER_LAYER_TABLE.removesuffix(".weight")
    if name in quantization.unquantized:
        return quantization.float_dtype
    return next((describe(s) for s in quantization.schemes if name in s.modules), None)


def tower_facts(tower: TowerRecord) -> str:
    """What a tower is, in a table of facts."""
    size = human_bytes(tower.bytes)
    how = "" if tower.name.endswith(".gguf") else "as it was: "
    return f"{how}{counted(tower.tensors, 'tensor')} in {tower.dtype}, {size}"


def add_grid(facts: Table, grid: GridRecord | None) -> None:
    """Say how much lies on a 4-bit grid, how much of that is carried over, and how exactly."""
    if grid is None:
        return
    words = str(grid)
    if grid.carried:
        exact = "exact" if grid.scale_error == 0 else f"scales off by up to {grid.scale_error:.2%}"
        words += f"; carried over: {matrices(grid.carried)}, {exact}"
    elif grid.on_grid:
        words += "; none is carried over"
    facts.add_row("grid", words)


def _stored_bits(manifest: Manifest) -> str:
    """Bits in the quantized matrices alone, where one scheme with groups determines them."""
    options = manifest.recipe.get("options")
    nested = isinstance(options, dict) and options.get("double_quantization")
    match manifest.quantization.schemes:
        case [scheme] if scheme.group_size > 0 and scheme.codes in {INTEGER, "nf4", "fp4"}:
            overhead = 16 if scheme.symmetric else 16 + scheme.bits
            if scheme.codes != INTEGER:
                overhead = 8 if nested else 32
            bits = scheme.bits + overhead / scheme.group_size
            return f" (about {bits:.1f} in the {matrices(scheme.modules)})"
    return ""


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
