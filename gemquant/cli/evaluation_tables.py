"""Evaluations as tables: what was lost on each slice, and in which layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemquant.cli.render import losses, print_json, print_tables, table, verbose
from gemquant.core.resources import human_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gemquant.core.artifact import Artifact
    from gemquant.core.artifact.evaluation import (
        ArtifactEvaluation,
        EvaluationDocument,
        LayerErrors,
        LevelEvaluation,
    )
    from gemquant.core.tables import Table
    from gemquant.measure.quality.evaluation import Evaluation


def print_document(document: EvaluationDocument) -> None:
    """Print each slice of one artifact, or of several with ``-v``; last, all artifacts together."""
    from gemquant.core.artifact.losses import OVERALL, comparisons

    suite = document.suite
    own = suite.name == "recipe"
    text = "the text of its recipe" if own else f"suite {suite.name}, version {suite.version}"
    print_tables(f"Against {document.original.ref}, on {text}.")
    for artifact in document.artifacts:
        for level in artifact.levels:
            if len(document.artifacts) == 1 or verbose() or level.not_run or level.layers_own:
                print_tables("", *_level(artifact, level))
    for name, rows in comparisons(document.artifacts):
        rows.title = f"Level {name}"
        print_tables("", rows)
    print_tables(OVERALL if len(document.artifacts) == 1 else f"{OVERALL} Each slice: -v.")


def _level(artifact: ArtifactEvaluation, level: LevelEvaluation) -> Sequence[Table | str]:
    size = f"{human_bytes(artifact.size_bytes)}, {artifact.bits_per_weight:.2f} bits per weight"
    parts = losses([level], title=f"{artifact.name}: {size}; level {level.level}")
    return [*parts, "", _layers(level)] if level.layers_own else parts


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


# ---------------------------------------------------------------- gemquant eval --dry-run


def plan(evaluation: Evaluation, board: str | None, output: Path | None) -> dict[str, Any]:
    """Describe the windows, the levels, and what would compute them."""
    from gemquant.measure.quality.evaluation import artifact_name

    return {
        "original": evaluation.original.ref,
        "suite": evaluation.suite.model_dump(mode="json"),
        "slices": [
            {
                "slice": each.name,
                "windows": each.ids.shape[0],
                "seq_len": each.ids.shape[1],
                "tokens": each.ids.shape[0] * (each.ids.shape[1] - 1),
            }
            for each in evaluation.slices
        ],
        "artifacts": [
            {
                "name": artifact_name(each),
                "path": str(each.path),
                "levels": _levels(each, board, native=evaluation.request.native),
            }
            for each in evaluation.artifacts
        ],
        "output": None if output is None else str(output),
    }


def _levels(artifact: Artifact, board: str | None, *, native: bool) -> list[dict[str, str | None]]:
    """Each level that would be in the document; ``not_run``: why it could not be measured."""
    from gemquant.measure.quality.native import NativeRuntime

    if board is not None:
        return [{"level": "native", "runtime": f"librkllmrt at {board}", "not_run": None}]
    levels: list[dict[str, str | None]] = [
        {"level": "reference", "runtime": "torch", "not_run": None}
    ]
    if native:
        runtime, not_run = NativeRuntime.available(artifact.manifest.container)
        levels.append({"level": "native", "runtime": runtime, "not_run": not_run})
    return levels


def print_plan(plan: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a plan as tables, or as one document."""
    if as_json:
        print_json(plan)
        return
    text = table("slice", "windows", "tokens each", "predicted", numbers=("windows", "predicted"))
    for each in plan["slices"]:
        text.add_row(*(str(each[key]) for key in ("slice", "windows", "seq_len", "tokens")))
    levels = table("artifact", "level", "computed by")
    for artifact in plan["artifacts"]:
        for level in artifact["levels"]:
            missing = level["not_run"]
            runtime = level["runtime"] + (f": would not run, {missing}" if missing else "")
            levels.add_row(artifact["name"], level["level"], runtime)
    suite = plan["suite"]
    print_tables(
        f"Against {plan['original']}; text: {suite['name']}, version {suite['version']}.",
        text,
        "",
        levels,
        "",
        "Nothing was measured (--dry-run).",
    )
