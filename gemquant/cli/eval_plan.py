"""``gemquant eval --dry-run``: the windows, the levels, and what would run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemquant.cli.render import print_json, print_tables, table

if TYPE_CHECKING:
    from gemquant.core.artifact import Artifact
    from gemquant.core.recipe import Recipe


def evaluation_plan(
    artifacts: Sequence[Artifact], recipe: Recipe, given: dict[str, Any]
) -> dict[str, Any]:
    """Read the text and the original's headers, and say what would be measured."""
    from gemquant.cli.eval_request import evaluation_text
    from gemquant.core.resources import require_device
    from gemquant.formats.checkpoint import open_checkpoint
    from gemquant.measure.quality.records import artifact_name

    require_device(recipe.device)
    original = open_checkpoint(recipe.model, lora=recipe.lora)
    text = evaluation_text(recipe, given, original)
    return {
        "original": original.ref,
        "suite": text.record.model_dump(mode="json"),
        "slices": [
            {
                "slice": each.name,
                "windows": each.ids.shape[0],
                "seq_len": each.ids.shape[1],
                "tokens": each.ids.shape[0] * (each.ids.shape[1] - 1),
            }
            for each in text.slices
        ],
        "artifacts": [
            {"name": artifact_name(each), "path": str(each.path), "levels": _levels(each, given)}
            for each in artifacts
        ],
        "output": None if given["output"] is None else str(given["output"]),
    }


def _levels(artifact: Artifact, given: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """Each level that would be in the document; ``not_run`` where it would say why not."""
    from gemquant.measure.quality.native import NativeRuntime

    if given["board"] is not None:
        return [{"level": "native", "runtime": f"librkllmrt at {given['board']}", "not_run": None}]
    levels: list[dict[str, str | None]] = [
        {"level": "reference", "runtime": "torch", "not_run": None}
    ]
    if given["native"]:
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
            said = level["runtime"]
            if level["not_run"] is not None:
                said += f": would not run, {level['not_run']}"
            levels.add_row(artifact["name"], level["level"], said)
    suite = plan["suite"]
    print_tables(
        f"Against {plan['original']}; text: {suite['name']}, version {suite['version']}.",
        text,
        "",
        levels,
        "",
        "Nothing was measured (--dry-run).",
    )
