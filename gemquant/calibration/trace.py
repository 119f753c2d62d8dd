"""The calibration pass: every decoder layer once, with statistics of its inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gemquant.calibration.statistics import (
    ActivationRanges,
    RelativeGatherer,
    StatisticsGatherer,
    pooled,
)
from gemquant.calibration.stream import (
    RowsOf,
    Stream,
    UnheldWeights,
    embed_windows,
    runs_of_rows,
)
from gemquant.calibration.windows import TokenWindows
from gemquant.core.protocols import (
    FLOAT16_LIMIT,
    ActivationRange,
    Block,
    Progress,
    RoutedTokens,
    Statistics,
    Weights,
)
from gemquant.errors import CalibrationError
from gemquant.formats.gguf.imatrix import ImportanceEntry, ImportanceMatrix
from gemquant.formats.gguf.names import experts_of
from gemquant.models.architecture import layer_structure
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LAYER_SCALAR,
    LayerStructure,
    head_structure,
    layer_prefix,
    table_structure,
)
from gemquant.numerics.precision import fast_products

SAMPLED_TOKENS = 512
HELD_BYTES = 1 << 29
"""A calibrated layer of at most so many bytes in float32 is read once and held."""


class Trace:
    """Streams the unquantized model's calibration windows, one layer in memory at a time.

    calibration: None where no quantizer needs statistics; blocks then carry none.
    gram: gather Gram matrices too. sampled: store some of the inputs themselves.
    """

    def __init__(
        self,
        weights: Weights,
        skeleton: Skeleton,
        calibration: TokenWindows | None,
        *,
        gram: bool,
        sampled: bool = False,
    ) -> None:
        self._weights = weights
        self._skeleton = skeleton
        self._calibration = calibration
        self._gram = gram
        self._every = _spacing(calibration) if sampled and calibration is not None else 0
        self._stream: Stream | None = None
        self._first = 0
        self.activation_ranges = ActivationRanges()
        self.routed: dict[int, RoutedTokens] = {}

    @property
    def layers(self) -> int:
        """How many blocks there are."""
        return self._skeleton.layers

    @property
    def stream(self) -> Stream | None:
        """The calibration windows; None without calibration."""
        if self._stream is None and self._calibration is not None:
            self._stream = embed_windows(self._skeleton, self._weights, self._calibration.ids)
        return self._stream

    def go_on(
        self,
        finished: int,
        ranges: Mapping[int, ActivationRange],
        routed: Mapping[int, RoutedTokens],
    ) -> None:
        """Leave out the first layers, of which an earlier run has saved these."""
        self._first = finished
        self.activation_ranges.layers |= ranges
        self.routed |= routed

    def blocks(self) -> Iterator[Block]:
        """Yield every decoder layer that is not left out with the statistics of its inputs."""
        stream = self.stream
        for index in range(self._first, self._skeleton.layers):
            structure = layer_structure(self._weights.config, index)
            prefix, names = layer_prefix(index), list(structure.shapes)
            source, device = self._weights, self._skeleton.device
            weights = UnheldWeights.of_layer(source, prefix, names, device)
            if stream is not None and _layer_bytes(structure) <= HELD_BYTES:
                weights = UnheldWeights.of_layer(source, prefix, names, device, dict(weights))
            statistics: dict[str, Statistics] = {}
            activation_range: ActivationRange | None = None
            if stream is not None:
                gatherers = self._gatherers(structure, weights)
                observer = self.activation_ranges.observer(index, prefix)
                with self._skeleton.observing(index, inputs=gatherers, outputs=observer):
                    stream.advance(index, weights)
                self._require_finite(prefix)
                for group in structure.groups:
                    shared = gatherers.pop(group.reader).result()
                    statistics |= dict.fromkeys((group.reader, *group.linears), shared)
                    if self._gram and group.normed is not None:
                        gram = gatherers.pop(name := group.normed[0]).result().gram
                        statistics[name] = replace(shared, gram=gram)
                    # What gate and up produce together is the output of no module.
                    observer(f"{group.reader} (input)", shared.max_abs)
                if LAYER_SCALAR in structure.shapes:  # nor is the residual stream before this
                    scalar = weights[LAYER_SCALAR].abs().clamp(min=FLOAT16_LIMIT**-2)
                    observer(f"{LAYER_SCALAR} (input)", observer.seen[""].float() / scalar)
                activation_range = observer.close()
                if structure.stacks:
                    self._divide_among_experts(index, statistics, gatherers)
                del gatherers, observer, shared
            yield Block(
                index,
                prefix,
                structure,
                weights,
                statistics,
                activation_range,
                source=weights,
            )
            del statistics

    def _gatherers(
        self, structure: LayerStructure, weights: Mapping[str, Tensor]
    ) -> dict[str, StatisticsGatherer]:
        """One for every input of a layer's linears, by what reads it.

        A linear whose output is normed has one more.

        Of experts that read one input, each has one more for the tokens that reach it, without a
        Gram matrix: so many would need more memory than the rest of the run, and at equal memory
        the layer's is best (ci/bench/experts).
        """
        shapes, device, every = structure.linear_shapes, self._skeleton.device, self._every
        gatherers: dict[str, StatisticsGatherer] = {}
        for group in structure.groups:
            width = shapes[group.linears[0]][1]
            gatherers[group.reader] = StatisticsGatherer(
                width, gram=self._gram, device=device, every=every
            )
            if self._gram and group.normed is not None:
                name, head_dim = group.normed
                weight = weights[f"{name}.weight"].to(device, self._skeleton.dtype)
                eps = self._skeleton.text_config["rms_norm_eps"]
                gatherers[name] = RelativeGatherer(weight, head_dim, eps)
            if group.observed:
                gatherers |= {
                    linear: StatisticsGatherer(width, gram=False, device=device, every=every)
                    for linear in group.linears
                    if linear.endswith(".gate_proj")
                }
        return gatherers

    def _divide_among_experts(
        self,
        index: int,
        statistics: dict[str, Statistics],
        gatherers: Mapping[str, StatisticsGatherer],
    ) -> None:
        """Give every expert's linears statistics of its own tokens, or its layer's.

        gatherers: of what gate and up read, for the tokens that reach each expert.
        """
        downs = [name for name in statistics if name.endswith(".down_proj") and "experts." in name]
        whole = pooled([statistics[name] for name in downs])
        tokens = tuple(statistics[name].tokens for name in downs)
        self.routed[index] = RoutedTokens(tokens, whole.max_abs.shape[0] // 2)
        few = self.routed[index].few
        for expert, down in enumerate(downs):
            if expert in few:
                statistics[down] = whole
                continue
            prefix = down.removesuffix("down_proj")
            own = gatherers[f"{prefix}gate_proj"].result()
            own = replace(own, gram=statistics[f"{prefix}gate_proj"].gram)
            statistics |= {f"{prefix}gate_proj": own, f"{prefix}up_proj": own}

    def table_runs(self, name: str) -> int:
        """How many blocks ``table`` will yield."""
        rows, columns = self._weights.shape(self._source(name))
        return sum(1 for _ in runs_of_rows(rows, columns))

    def table(self, name: str) -> Iterator[Block]:
        """Yield a table or, after the last block, the head in runs of rows.

        A tied head is made of the embedding's rows.
        """
        source, head = self._source(name), name == HEAD
        structure = head_structure() if head else table_structure(name)
        statistics = self.head_statistics() if head else {}
        index = self._skeleton.layers if head else -1
        rows, columns = self._weights.shape(source)
        for start, stop in runs_of_rows(rows, columns):
            part = {name: RowsOf(source, start, stop)}
            unheld = UnheldWeights(self._weights, part, self._skeleton.device)
            yield Block(index, "", structure, unheld, statistics, source=unheld)

    def head_statistics(self) -> Mapping[str, Statistics]:
        """Statistics of the head's input, after the last block; empty without calibration."""
        if self._stream is None:
            return {}
        norm = self._weights.tensor(FINAL_NORM, torch.float32)
        norm = norm.to(self._skeleton.device, self._skeleton.dtype)
        gatherer = StatisticsGatherer(norm.shape[0], gram=self._gram, device=self._skeleton.device)
        for window in self._stream.hidden:
            gatherer(self._skeleton.final_norm(norm, window))
        (group,) = head_structure().groups
        return {group.linears[0]: gatherer.result()}

    def _source(self, name: str) -> str:
        tied = self._weights.config["tie_word_embeddings"]
        return EMBEDDING if name == HEAD and tied else name

    def _require_finite(self, prefix: str) -> None:
        assert self._stream is not None
        if not torch.isfinite(self._stream.hidden).all():
            raise CalibrationError(
                f"{prefix.rstrip('.')}: the activations are not finite in {self._skeleton.dtype}.",
                hint="Trace in float32: --calib-dtype float32.",
            )


def _layer_bytes(structure: LayerStructure) -> int:
    return sum(map(math.prod, structure.shapes.values())) * torch.float32.itemsize


def _spacing(calibration: TokenWindows) -> int:
    """One input of so many makes the sample; odd, so that it falls on every place of a window."""
    return max(1, calibration.ids.numel() // SAMPLED_TOKENS) | 1


@fast_products()
def computed_importance(
    trace: Trace, windows: TokenWindows, config: Mapping[str, Any], progress: Progress
) -> ImportanceMatrix:
    """Trace a text for its importance matrix: the sums of squares of every linear's inputs.

    windows: what the trace reads. config: the model's, for llama.cpp's names.
    """
    entries: dict[str, ImportanceEntry] = {}
    where = experts_of(config)
    progress.start("tracing layers", trace.layers)
    for block in trace.blocks():
        experts: dict[str, dict[int, Statistics]] = {}
        for linear in block.structure.linears:
            tensor, expert = where[f"{block.prefix}{linear}.weight"]
            experts.setdefault(tensor, {})[expert] = block.statistics[linear]
        entries |= {
            n: ImportanceEntry.of(*(each[e] for e in sorted(each))) for n, each in experts.items()
        }
        progress.advance("tracing layers")
    return ImportanceMatrix(
        entries,
        datasets=(windows.name,),
        chunks=windows.ids.shape[0],
        chunk_tokens=windows.ids.shape[1],
    )
