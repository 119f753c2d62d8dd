"""Evaluations as tables: what was lost on each slice, and in which layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemquant.cli.render import print_tables, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from gemquant.core.artifact.evaluation import (
        ArtifactEvaluation,
        EvaluationDocument,
        Interval,
        LayerErrors,
        LevelEvaluation,
        SliceEvaluation,
    )

LEGEND = "KL divergence in nats per token; [ ] is the 95 % interval over windows."


def print_document(document: EvaluationDocument) -> None:
    """Print every artifact, level by level."""
    suite = document.suite
    own = suite.name == "recipe"
    text = "the text of its recipe" if own else f"suite {suite.name}, version {suite.version}"
    print_tables(f"Against {document.original.ref}, on {text}.")
    for artifact in document.artifacts:
        for level in artifact.levels:
            print_tables("", *_level(artifact, level))
    print_tables(LEGEND)


def _level(artifact: ArtifactEvaluation, level: LevelEvaluation) -> Sequence[Table | str]:
    title = f"{artifact.name}, level {level.level} ({level.runtime})"
    if level.not_run is not None:
        return [f"{title}: not run, {level.not_run}"]
    numbers = ("tokens", "perplexity", "quantized", "KL mean", "KL 99 %", "top-1", "top-5")
    losses = table("slice", *numbers, title=title, numbers=numbers)
    for row in level.slices:
        losses.add_row(
            row.slice,
            str(sum(row.windows.tokens)),
            f"{row.perplexity_original.value:.3f}",
            f"{row.perplexity_quantized.value:.3f}",
            _figure(row, row.kl_mean, ".4f"),
            f"{row.kl_p99.value:z.3f}",
            f"{row.top1.value:.1%}",
            f"{row.top5.value:.1%}",
        )
    parts: list[Table | str] = [losses]
    if level.kl_from_reference is not None:
        figure = f"{level.kl_from_reference.value:z.5f}"
        parts.append(f"KL divergence of this level from level reference: {figure}.")
    if level.layers_own:
        parts += ["", _layers(level)]
    return parts


def _figure(row: SliceEvaluation, measured: Interval, form: str) -> str:
    """Write a figure with its interval, which a window that stands alone does not have."""
    # A divergence of nothing may come out a little below zero.
    interval = f" [{measured.low:z{form}}, {measured.high:z{form}}]"
    return f"{measured.value:z{form}}{interval if len(row.windows.tokens) > 1 else ''}"


def _layers(level: LevelEvaluation) -> Table:
    """A row per layer, each figure that of the slice where it is worst."""
    numbers = ("own error", "own cosine", "with all before", "cosine")
    rows = table("layer", *numbers, title="Errors of layers, worst slice", numbers=numbers)
    own, accumulated = _worst(level.layers_own), _worst(level.layers_accumulated)
    for number, (alone, together) in enumerate(zip(own, accumulated, strict=True)):
        rows.add_row(
            str(number),
            f"{alone[0]:.5f}",
            f"{alone[1]:.6f}",
            f"{together[0]:.5f}",
            f"{together[1]:.6f}",
        )
    return rows


def _worst(slices: Sequence[LayerErrors]) -> Sequence[tuple[float, float]]:
    relative = [max(layer) for layer in zip(*(each.relative for each in slices), strict=True)]
    cosine = [min(layer) for layer in zip(*(each.cosine for each in slices), strict=True)]
    return list(zip(relative, cosine, strict=True))
