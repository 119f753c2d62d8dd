"""What a dry run prints: where everything would go, how it would be stored, and its size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gemquant.cli.render import (
    counted,
    fact_table,
    fallback_table,
    named,
    print_json,
    print_tables,
    table,
)
from gemquant.core.protocols import QuantizedSpec
from gemquant.core.resources import human_bytes
from gemquant.core.scheme import describe
from gemquant.core.tables import Table
from gemquant.core.weights import BlockScheme

if TYPE_CHECKING:
    from gemquant.convert.plan import JobPlan
    from gemquant.numerics.ggml.types import GgmlType


def plans(planned: Sequence[JobPlan], *, as_json: bool) -> None:
    """Print what jobs would write; nothing has been written."""
    if as_json:
        documents = [_plan_document(each) for each in planned]
        print_json(documents[0] if len(documents) == 1 else documents)
        return
    for each in planned:
        print_tables(*_plan(each), "")
    print_tables("Nothing was written (--dry-run).")


def _plan_document(planned: JobPlan) -> dict[str, Any]:
    return {
        "path": str(planned.job.out),
        "recipe": planned.job.recipe.to_dict(),
        "bits_per_weight": planned.bits_per_weight,
        "file_sizes": dict(planned.file_sizes),
        "quantized": list(planned.quantized),
        "kept": list(planned.kept),
        "fallbacks": [
            {"modules": list(each.names), "stored": each.stored, "reason": each.reason}
            for each in planned.substitutions
        ],
    }


def _plan(planned: JobPlan) -> list[Table | str]:
    job, schemes = planned.job, _schemes(planned)
    facts = fact_table()
    facts.add_row("model", job.recipe.model)
    facts.add_row("folder", str(job.out))
    facts.add_row("container", f"{job.exporter.name}, for {job.recipe.target}")
    formats = _formats(planned)
    if not formats:
        for words, count in schemes.items():
            facts.add_row(job.recipe.quantizer, f"{words}: {counted(count, 'layer')}")
    kept = [name.removesuffix(".weight") for name in planned.kept]
    if kept and schemes:
        facts.add_row("kept", named(kept))
    if not schemes:
        dtype = job.exporter.container(planned.header.config).float_dtype
        facts.add_row(job.recipe.quantizer, f"everything in {str(dtype).removeprefix('torch.')}")
    facts.add_row(
        "size",
        f"{human_bytes(planned.total_bytes)} in {', '.join(planned.file_sizes)}; "
        f"{planned.bits_per_weight:.2f} bits per weight over all",
    )
    substitutions = [(s.names, s.stored, s.reason) for s in planned.substitutions]
    return [facts, *formats, *fallback_table(substitutions)]


def _formats(planned: JobPlan) -> list[Table | str]:
    """What each of ggml's formats takes of a file; nothing for other containers."""
    weights: Counter[GgmlType] = Counter()
    matrices: Counter[GgmlType] = Counter()
    for spec in planned.header.layout.values():
        if isinstance(spec, QuantizedSpec) and isinstance(spec.scheme, BlockScheme):
            weights[spec.scheme.type] += spec.shape[0] * spec.shape[1]
            matrices[spec.scheme.type] += 1
    if not weights:
        return []
    numbers = ("matrices", "weights", "size", "bits per weight")
    formats = table("format", *numbers, numbers=numbers)
    for kind, count in weights.most_common():
        size = human_bytes(round(count * kind.bits / 8))
        formats.add_row(kind.name, str(matrices[kind]), f"{count:,}", size, f"{kind.bits:g}")
    return ["", formats]


def _schemes(planned: JobPlan) -> Mapping[str, int]:
    """Count the layers of each scheme, by the scheme's words."""
    layout = planned.header.layout
    specs = (layout[name] for name in planned.quantized)
    return Counter(describe(spec.scheme) for spec in specs if isinstance(spec, QuantizedSpec))
