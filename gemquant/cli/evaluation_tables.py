"""Evaluations as tables: what was lost on each slice, and in which layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemquant.cli.render import losses, print_json, print_tables, table, verbose
from gemquant.core.resources import human_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from gemquant.core.artifact import Artifact
    from gemquant.core.artifact.evaluation import (
        ArtifactEvaluation,
        EvaluationDocument,
        LayerErrors,
        LevelEvaluation,
        TensorCost,
    )
    from gemquant.core.tables import Table
    from gemquant.measure.quality.evaluation import Evaluation, EvaluationRequest


def print_document(document: EvaluationDocument) -> None:
    """Print each slice of one artifact, or of several with ``-v``; last, all artifacts together."""
    from gemquant.core.artifact.losses import comparisons, overall_legend

    suite = document.suite
    own = suite.name == "recipe"
    text = "the text of its recipe" if own else f"suite {suite.name}, version {suite.version}"
    print_tables(f"Against {document.original.ref}, on {text}.")
    for artifact in document.artifacts:
        for level in artifact.levels:
            if len(document.artifacts) == 1 or verbose() or level.not_run or level.layers_own:
                print_tables("", *_level(artifact, level, document.original.architecture))
    for name, rows in comparisons(document.artifacts):
        rows.title = f"Level {name}"
        print_tables("", rows)
    for each in document.artifacts:
        if each.made_by is not None:
            print_tables(f"{each.name}, {each.container} {each.scheme}, by others: {each.made_by}.")
    words = overall_legend(level for each in document.artifacts for level in each.levels)
    print_tables(words if len(document.artifacts) == 1 else f"{words} Each slice: -v.")


def _level(
    artifact: ArtifactEvaluation, level: LevelEvaluation, model_type: str
) -> Sequence[Table | str]:
    from gemquant.core.artifact.losses import collapse_hint

    size = f"{human_bytes(artifact.size_bytes)}, {artifact.bits_per_weight:.2f} bits per weight"
    parts = losses([level], title=f"{artifact.name}: {size}; level {level.level}")
    if level.layers_own:
        parts += ["", _layers(level)]
    if level.tensors:
        parts += ["", _tensors(level), *_larger_types(artifact, level.tensors, model_type)]
    elif not level.layers_own and (hint := collapse_hint(level, artifact.name)):
        parts.append(hint)
    return parts


def _tensors(level: LevelEvaluation) -> Table:
    """What the costliest tensors lose alone."""
    numbers = ("KL mean alone", "own error")
    rows = table("tensor", *numbers, title="Most costly tensors, one at a time", numbers=numbers)
    for cost in level.tensors:
        own = "—" if cost.own_error is None else f"{cost.own_error:.5f}"
        rows.add_row(cost.tensor, f"{cost.kl_mean:.5f}", own)
    return rows


def _larger_types(
    artifact: ArtifactEvaluation, tensors: Sequence[TensorCost], model_type: str
) -> Iterator[str]:
    """The options that store what costs most in a larger type, where the quantizer has them."""
    from gemquant.convert.plugins import quantizer_type
    from gemquant.core.artifact.losses import costliest
    from gemquant.core.options import options_of
    from gemquant.errors import GemquantError

    try:
        known = {option.name for option in options_of(quantizer_type(artifact.quantizer))}
    except GemquantError:  # a plug-in that is not installed, or no quantizer of ours
        return
    modules = [cost.tensor for cost in costliest(tensors) if cost.kl_mean > 0]
    if "tensor_type" in known:
        flags = _larger_ggml_types(modules, artifact.scheme, model_type)
    elif "skip" in known:
        flags = _skipping(modules)
    else:
        return
    if flags:
        yield f"To lose less, make it again with {' '.join(flags)}"


def _larger_ggml_types(modules: Sequence[str], scheme: str, model_type: str) -> list[str]:
    from gemquant.formats.gguf.names import to_gguf
    from gemquant.models.experts import expert_number
    from gemquant.models.structure import EMBEDDING, HEAD, PER_LAYER_TABLE

    larger = "BF16" if "Q8_0" in scheme else "Q8_0"
    tables = {
        EMBEDDING: "--embedding-type",
        HEAD: "--output-type",
        PER_LAYER_TABLE: "--per-layer-embedding-type",
    }
    flags: dict[str, None] = {}
    for module in modules:
        if table := tables.get(f"{module}.weight"):
            flags[f"{table} {larger}"] = None
            continue
        names = [f"{module}.weight"]
        if expert_number(f"{module}.up_proj") is not None:  # one tensor has those of all experts
            layer = module.rpartition(".")[0]
            names = [f"{layer}.gate_up_proj", f"{layer}.down_proj"]
        for name in names:
            flags[f"--tensor-type '{to_gguf(name, model_type)}={larger}'"] = None
    return list(flags)


def _skipping(modules: Sequence[str]) -> list[str]:
    from gemquant.models.experts import expert_number
    from gemquant.models.structure import EMBEDDING, HEAD, PER_LAYER_TABLE

    tables = {EMBEDDING: "embedding", PER_LAYER_TABLE: "embedding", HEAD: "head"}
    words: dict[str, None] = {}
    patterns: dict[str, None] = {}
    for module in modules:
        short = module.removeprefix("model.")
        if table := tables.get(f"{module}.weight"):
            words[f"--no-quantize-{table}"] = None
        elif expert_number(f"{module}.up_proj") is not None:
            # Loaders have one scheme for all experts of a layer.
            patterns[f"{short.rpartition('.')[0]}.*"] = None
        else:
            patterns[short] = None
    return [*words, *([f"--skip '{','.join(patterns)}'"] if patterns else [])]


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
                "tokens": each.positions.numel(),
            }
            for each in evaluation.slices
        ],
        "artifacts": [
            {
                "name": artifact_name(each),
                "path": str(each.path),
                "levels": _levels(each, board, evaluation.request),
            }
            for each in evaluation.artifacts
        ],
        "output": None if output is None else str(output),
    }


def _levels(
    artifact: Artifact, board: str | None, request: EvaluationRequest
) -> list[dict[str, str | None]]:
    """Each level that would be in the document; ``not_run``: why it could not be measured."""
    from gemquant.measure.quality.native import NativeRuntime

    if board is not None:
        return [{"level": "native", "runtime": f"librkllmrt at {board}", "not_run": None}]
    levels: list[dict[str, str | None]] = [
        {"level": "reference", "runtime": "torch", "not_run": None}
    ]
    if request.native:
        container = artifact.manifest.container
        runtime, not_run = NativeRuntime.available(container, request.runtime)
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
