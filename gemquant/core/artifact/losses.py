"""What was lost, as every table and every card shows it: the same columns everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from gemquant.core.artifact.evaluation import (
    ArtifactEvaluation,
    EmbeddingEvaluation,
    Level,
    LevelEvaluation,
    SliceEvaluation,
    TensorCost,
    measured_slices,
)
from gemquant.core.resources import human_bytes
from gemquant.core.tables import Cell, Column, Table, columns, interval, number

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_FIGURES = "windows; tokens; perplexity; quantized; KL mean; KL 99.9 %; top-1"
_TEXT_TASK = ("text-generation", "Text generation")
_EMBEDDING_TASK = ("sentence-similarity", "Sentence similarity")
_COSINE = "Cosine similarity to the original's embedding"
_EMBEDDED = "texts; cosine mean; cosine 1 %; same first; of 10 in common; rank correlation"
_CORNER = "smoothing; activations; head; slice"
DIGITS = 6
"""Significant digits in the Hub's metadata; the manifest has all of them."""


def loss_table(levels: Sequence[LevelEvaluation], *, title: str | None = None) -> Table:
    """A row per slice of one level, or of all corners of an emulation's bracket."""
    corners = any(level.emulation is not None for level in levels)
    figures = _EMBEDDED if any(level.embeddings for level in levels) else _FIGURES
    table = Table(columns(_CORNER if corners else "slice", figures), title=title)
    for level in levels:
        corner: list[str] = []
        if level.emulation is not None:
            smoothing = "yes" if level.emulation.smoothing else "no"
            corner = [smoothing, level.emulation.activations, level.emulation.head]
        for each in measured_slices(level):
            table.add_row(*corner, each.slice, *loss_cells(each))
    return table


def bracket_table(corners: Sequence[LevelEvaluation], *, title: str) -> Table:
    """The bracket of an emulation in a row or two: means over the slices, best to worst corner."""
    table = Table([*columns("", "KL mean, best to worst; top-1, best to worst")], title=title)
    for smoothing, words in ((True, "with smoothing"), (False, "without smoothing")):
        found = [e for e in corners if e.emulation and e.emulation.smoothing is smoothing]
        if not found:
            continue
        divergence = sorted(fmean(each.kl_mean.value for each in e.slices) for e in found)
        top1 = sorted(fmean(each.top1.value for each in e.slices) for e in found)
        table.add_row(
            words,
            f"{number(divergence[0])} to {number(divergence[-1])}",
            f"{top1[-1]:.0%} to {top1[0]:.0%}",
        )
    return table


def loss_cells(measured: SliceEvaluation | EmbeddingEvaluation) -> list[Cell]:
    """The figures of one slice, in the order of ``loss_columns``."""
    if isinstance(measured, EmbeddingEvaluation):
        return _embedding_cells(measured)
    before, after = measured.perplexity_original.value, measured.perplexity_quantized.value
    return [
        Cell(str(measured.window_count), float(measured.window_count)),
        Cell(f"{measured.token_count:,}", float(measured.token_count)),
        Cell(number(before), before),
        Cell(number(after), after),
        Cell(interval(measured.kl_mean), measured.kl_mean.value),
        Cell(interval(measured.kl_p999), measured.kl_p999.value),
        Cell(interval(measured.top1, as_percent=True), measured.top1.value),
    ]


def _embedding_cells(measured: EmbeddingEvaluation) -> list[Cell]:
    shares = (measured.top1, measured.overlap)
    figures = (measured.cosine_mean, measured.cosine_p01)
    return [
        Cell(str(measured.text_count), float(measured.text_count)),
        *(Cell(interval(each), each.value) for each in figures),
        *(Cell(interval(each, as_percent=True), each.value) for each in shares),
        Cell(interval(measured.spearman), measured.spearman.value),
    ]


def loss_columns(*, embeddings: bool = False) -> list[Column]:
    """The columns of ``loss_cells``."""
    return columns("slice", _EMBEDDED if embeddings else _FIGURES)[1:]


def _mean(figures: Iterable[tuple[int, float]]) -> float:
    """Mean over (count, value), each value as often as it counts."""
    counted = list(figures)
    return sum(count * value for count, value in counted) / sum(count for count, _ in counted)


@dataclass(frozen=True)
class OverallEmbeddings:
    """Figures over the texts of all slices; cosine_p01: of the slice where it is lowest."""

    cosine: float
    cosine_p01: float
    top1: float

    @classmethod
    def of(cls, level: LevelEvaluation) -> OverallEmbeddings:
        """Weigh each slice by its texts."""
        slices = level.embeddings
        return cls(
            _mean((each.text_count, each.cosine_mean.value) for each in slices),
            min(each.cosine_p01.value for each in slices),
            _mean((each.text_count, each.top1.value) for each in slices),
        )

    @property
    def cells(self) -> list[Cell]:
        """The figures, under the columns of ``compared_columns``."""
        return [
            Cell(number(self.cosine, 4), self.cosine),
            Cell(number(self.cosine_p01, 4), self.cosine_p01),
            Cell(f"{100 * self.top1:.1f} %", self.top1),
        ]

    @property
    def results(self) -> Sequence[tuple[str, str, float]]:
        """The figures for the Hub: (metric, words, value)."""
        return (
            ("cosine_similarity", f"{_COSINE}, mean", self.cosine),
            ("cosine_similarity", f"{_COSINE}, 1 %", self.cosine_p01),
            ("top1_agreement", "Same first document as the original", self.top1),
        )


@dataclass(frozen=True)
class Overall:
    """Figures over the tokens of all slices; kl_p999: of the slice where it is highest."""

    kl_mean: float
    kl_p999: float
    top1: float

    @classmethod
    def of(cls, level: LevelEvaluation) -> Overall:
        """Weigh each slice by its tokens."""
        return cls(
            _mean((each.token_count, each.kl_mean.value) for each in level.slices),
            max(each.kl_p999.value for each in level.slices),
            _mean((each.token_count, each.top1.value) for each in level.slices),
        )

    @property
    def cells(self) -> list[Cell]:
        """The figures, under the columns of ``compared_columns``."""
        return [
            Cell(number(self.kl_mean, 3), self.kl_mean),
            Cell(number(self.kl_p999, 3), self.kl_p999),
            Cell(f"{100 * self.top1:.1f} %", self.top1),
        ]

    @property
    def results(self) -> Sequence[tuple[str, str, float]]:
        """The figures for the Hub: (metric, words, value)."""
        return (
            ("kl_divergence", "KL divergence from the original, mean, nats", self.kl_mean),
            ("kl_divergence", "KL divergence from the original, 99.9 %, nats", self.kl_p999),
            ("top1_agreement", "Same first token as the original", self.top1),
        )


def overall(level: LevelEvaluation) -> Overall | OverallEmbeddings:
    """Figures over all slices of a level."""
    return OverallEmbeddings.of(level) if level.embeddings else Overall.of(level)


def overall_legend(levels: Iterable[LevelEvaluation | None]) -> str:
    """What figures over all slices are."""
    if any(level.embeddings for level in levels if level is not None):
        return "Over all slices; cosine 1 % that of the worst slice."
    return OVERALL


OVERALL = "Over all slices; KL in nats per token, KL 99.9 % that of the worst slice."


def comparisons(artifacts: Iterable[ArtifactEvaluation]) -> Iterator[tuple[Level, Table]]:
    """A row per artifact, over all slices, the largest first; one table for each level."""
    measured = [
        (artifact, level)
        for artifact in artifacts
        for level in artifact.levels
        if measured_slices(level) and level.emulation is None
    ]
    for name in dict.fromkeys(level.level for _, level in measured):
        levels = [level for _, level in measured]
        table = Table([Column("artifact"), *compared_columns(levels)])
        for artifact, level in sorted(measured, key=lambda pair: -pair[0].size_bytes):
            if level.level == name:
                cells = compared_cells(artifact.size_bytes, artifact.bits_per_weight, level)
                table.add_row(artifact.name, *cells)
        yield name, table


def compared_columns(levels: Iterable[LevelEvaluation | None]) -> list[Column]:
    """The columns of ``compared_cells``."""
    if any(level.embeddings for level in levels if level is not None):
        return columns("", "size; bits; cosine mean; cosine 1 %; same first")[1:]
    return columns("", "size; bits; KL mean; KL 99.9 %; top-1")[1:]


def compared_cells(size: int, bits: float, level: LevelEvaluation | None) -> list[Cell]:
    """Bytes, bits per weight and figures of one artifact; dashes where nothing was measured."""
    return [
        Cell(human_bytes(size), float(size)),
        Cell(f"{bits:.2f}", bits),
        *(overall(level).cells if level is not None else [Cell("—")] * 3),
    ]


def headline(levels: Iterable[LevelEvaluation]) -> LevelEvaluation | None:
    """The level that stands for an artifact: reference, or else the first that was measured."""
    measured = [each for each in levels if measured_slices(each) and each.emulation is None]
    return min(measured, key=lambda each: each.level != "reference", default=None)


def legend(levels: Sequence[LevelEvaluation]) -> str:
    """A sentence or two under a table of losses."""
    if any(level.embeddings for level in levels):
        documents = max(each.documents for level in levels for each in level.embeddings)
        return (
            "Cosine similarity of each text's two embeddings. Half of the texts are queries, each "
            f"of which ranks {documents} documents of all slices: whether the first is the same, "
            "how many of the first ten are, and Spearman's correlation of all ranks. [ ] is the "
            "95 % interval over texts."
        )
    counts = {each.window_count for level in levels for each in level.slices}
    unit = "KL divergence in nats per token"
    if counts == {1}:
        return f"{unit}. One window: no interval."
    alone = " One window: no interval." if 1 in counts else ""
    return f"{unit}; [ ] is the 95 % interval over windows.{alone}"


def from_reference(level: LevelEvaluation) -> str | None:
    """How far the runtime's own arithmetic moves predictions, in a sentence."""
    if level.kl_from_reference is None:
        return None
    return (
        "KL divergence of this level from level reference: "
        f"{interval(level.kl_from_reference)} nats per token."
    )


LARGE_KL = 0.5
"""Nats per token, over all slices: a model that has lost its way. Good 4 bits are below 0.1."""


def collapse_hint(level: LevelEvaluation, artifact: str) -> str | None:
    """What to type where an artifact's divergence is large; None where it is not.

    artifact: its name or path, as it is typed.
    """
    if not level.slices or level.emulation or Overall.of(level).kl_mean < LARGE_KL:
        return None
    return (
        f"This divergence is large. gemquant eval {artifact} --by-layer names the tensors that "
        "cost most."
    )


def costliest(tensors: Sequence[TensorCost]) -> list[TensorCost]:
    """The first of them that make half of the sum, at most four."""
    chosen: list[TensorCost] = []
    for cost in tensors:
        if len(chosen) == 4 or 2 * sum(c.kl_mean for c in chosen) >= sum(
            c.kl_mean for c in tensors
        ):
            break
        chosen.append(cost)
    return chosen


def eval_results(levels: Sequence[LevelEvaluation], **dataset_args: Any) -> Iterator[EvalResult]:
    """Entries of the Hub's model-index: the same figures, each with its level in its name.

    dataset_args: what else identifies the text.
    """
    from huggingface_hub import EvalResult

    for level in levels:
        name = _level_name(level)
        for measured in level.embeddings:
            yield from _embedding_results(measured, level, dataset_args)
        for each in level.slices:
            figures = {
                ("perplexity", "Perplexity after quantization"): each.perplexity_quantized,
                ("perplexity", "Perplexity of the original"): each.perplexity_original,
                ("kl_divergence", "KL divergence from the original, mean, nats"): each.kl_mean,
                ("kl_divergence", "KL divergence from the original, 99.9 %, nats"): each.kl_p999,
                ("top1_agreement", "Same first token as the original"): each.top1,
            }
            counts = {"windows": each.window_count, "tokens": each.token_count}
            for (metric, words), figure in figures.items():
                bounds = [rounded(end) for end in figure.bounds]
                yield EvalResult(
                    task_type=_TEXT_TASK[0],
                    task_name=_TEXT_TASK[1],
                    dataset_type="gemquant-evaluation-text",
                    dataset_name=f"gemquant evaluation text, {each.slice}",
                    dataset_config=each.slice,
                    dataset_revision=each.token_stream or None,
                    dataset_args={**dataset_args, **counts},
                    metric_type=metric,
                    metric_name=f"{words} (level {name})",
                    metric_config=name,
                    metric_value=rounded(figure.value),
                    metric_args={
                        "runtime": level.runtime,
                        **({"interval_95": bounds} if each.window_count > 1 else {}),
                    },
                )


def _embedding_results(
    measured: EmbeddingEvaluation, level: LevelEvaluation, dataset_args: Mapping[str, Any]
) -> Iterator[EvalResult]:
    from huggingface_hub import EvalResult

    name = _level_name(level)
    figures = {
        ("cosine_similarity", f"{_COSINE}, mean"): measured.cosine_mean,
        ("cosine_similarity", f"{_COSINE}, 1 %"): measured.cosine_p01,
        ("top1_agreement", "Same first document as the original"): measured.top1,
        ("spearman", "Rank correlation with the original"): measured.spearman,
    }
    for (metric, words), figure in figures.items():
        yield EvalResult(
            task_type=_EMBEDDING_TASK[0],
            task_name=_EMBEDDING_TASK[1],
            dataset_type="gemquant-evaluation-text",
            dataset_name=f"gemquant evaluation text, {measured.slice}",
            dataset_config=measured.slice,
            dataset_revision=measured.token_stream,
            dataset_args={**dataset_args, "texts": measured.text_count},
            metric_type=metric,
            metric_name=f"{words} (level {name})",
            metric_config=name,
            metric_value=rounded(figure.value),
            metric_args={
                "runtime": level.runtime,
                "interval_95": [rounded(end) for end in figure.bounds],
            },
        )


def _level_name(level: LevelEvaluation) -> str:
    """Name a level, and the corner of its bracket: figures of two must not look the same."""
    corner = level.emulation
    if corner is None:
        return level.level
    return f"{level.level}, activations {corner.activations}, head {corner.head}"


def rounded(value: float) -> float:
    """A figure with six significant digits."""
    return float(f"{value:.{DIGITS}g}")


def overall_results(label: str, level: LevelEvaluation) -> Iterator[EvalResult]:
    """Entries of the model-index for one of several artifacts: the figures of their table."""
    from huggingface_hub import EvalResult

    name, whole = _level_name(level), overall(level)
    task, task_name = _EMBEDDING_TASK if level.embeddings else _TEXT_TASK
    for metric, words, value in whole.results:
        yield EvalResult(
            task_type=task,
            task_name=task_name,
            dataset_type="gemquant-evaluation-text",
            dataset_name="gemquant evaluation text, all slices",
            dataset_args={"slices": [each.slice for each in measured_slices(level)]},
            metric_type=metric,
            metric_name=f"{words} ({label}, level {name})",
            metric_config=label,
            metric_value=rounded(value),
            metric_args={"runtime": level.runtime},
        )
