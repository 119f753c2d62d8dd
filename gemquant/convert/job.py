"""One job while it runs: blocks in, tensors out to its writer, the artifact closed at the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from torch import Tensor

from gemquant.calibration.statistics import ActivationRanges
from gemquant.calibration.stream import RowsOf, UnheldWeights, runs_of_rows
from gemquant.calibration.windows import TokenWindows
from gemquant.convert.finalize import ArtifactFacts, write_config
from gemquant.convert.plan import SMALL_FILES_BYTES, PlannedJob
from gemquant.convert.resume import RunCheckpoint
from gemquant.core.artifact import (
    ActivationRangeRecord,
    RoutedRecord,
    staged,
)
from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.core.protocols import (
    FLOAT16_LIMIT,
    Block,
    QuantizedSpec,
    QuantizedWeight,
    RoutedTokens,
    RowChunks,
    Writer,
)
from gemquant.core.weights import ChunkedWeight, QuantizedRows, ReadWeights, Stackable
from gemquant.formats.checkpoint import Checkpoint
from gemquant.measure.quality.divergence import Table
from gemquant.measure.quality.embeddings import dense_modules
from gemquant.measure.quality.streams import head_name
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import (
    DENSE,
    FINAL_NORM,
    PER_LAYER_NORM,
    PER_LAYER_TABLE,
    layer_prefix,
    table_structure,
)
from gemquant.numerics import native
from gemquant.numerics.precision import narrowed


@contextmanager
def open_job(
    planned: PlannedJob,
    checkpoint: Checkpoint,
    skeleton: Skeleton,
    *,
    certified: bool,
    saved: RunCheckpoint | None = None,
) -> Iterator[JobWriter]:
    """Open a job's writer in a scratch folder, which becomes the artifact if all goes well.

    certified: a certificate will be measured, so quantized tables stay in memory.
    saved: what an interrupted run has left, and where this one saves.
    """
    staging = staged(
        planned.job.out,
        force=planned.job.force,
        needed_bytes=planned.total_bytes + SMALL_FILES_BYTES,
        token=None if saved is None else saved.token,
        keeps=None if saved is None else saved.is_resumable,
    )
    finished = 0 if saved is None or saved.state is None else saved.state.layers
    with staging as folder, _writer(planned, folder, finished) as writer:
        yield JobWriter(planned, checkpoint, skeleton, folder, writer, certified=certified)


def _writer(planned: PlannedJob, folder: Path, finished: int) -> AbstractContextManager[Writer]:
    """A new writer, or that of an interrupted run which has stored the first layers."""
    create, header = planned.job.exporter.create, planned.header
    if finished == 0:
        return create(folder, header)
    for path in folder.iterdir():
        if path.is_dir():  # from the end of a run; written again
            shutil.rmtree(path)
        elif path.name not in planned.file_sizes:
            path.unlink()
    prefixes = tuple(map(layer_prefix, range(finished)))
    return create(folder, header, [name for name in header.layout if name.startswith(prefixes)])


class JobWriter:
    """One job's writer, and what it must remember of its tables for the certificate."""

    def __init__(
        self,
        planned: PlannedJob,
        checkpoint: Checkpoint,
        skeleton: Skeleton,
        folder: Path,
        writer: Writer,
        *,
        certified: bool,
    ) -> None:
        self.layout = planned.header.layout
        self._planned = planned
        self._quantizer = planned.job.quantizer
        self._container = planned.job.exporter.container(planned.header.config)
        self._float = self._container.float_dtype
        self._checkpoint = checkpoint
        self._skeleton = skeleton
        self._folder = folder
        self._writer = writer
        self._certified = certified
        self._tables: dict[str, ChunkedWeight] = {}
        self._rows_written: dict[str, int] = {}

    def quantizes(self, name: str) -> bool:
        """Whether a table, the embedding or the head, is stored as codes."""
        return isinstance(self.layout.get(name), QuantizedSpec)

    def copy_table(self, name: str) -> None:
        """Write the embedding or the head run by run, in the type that the container stores."""
        self._writer.write({name: self._table(name)})

    def quantize_rows(self, name: str, block: Block) -> None:
        """Write the next rows of a table; codes stay in memory for a certificate only.

        Those of the per-layer table never do: it is half of a model.
        """
        run = self._quantizer.quantize(block, self._container)[name]
        if isinstance(run, Tensor) or not isinstance(run, Stackable):
            raise TypeError(f"{name}: announced as quantized; came as {type(run).__name__}.")
        start = self._rows_written.get(name, 0)
        self._writer.write({name: QuantizedRows(start, run)})
        self._rows_written[name] = start + run.shape[0]
        if self._certified and name != PER_LAYER_TABLE:
            spec = self.layout[name]
            assert isinstance(spec, QuantizedSpec)
            self._tables.setdefault(name, ChunkedWeight(spec.shape)).append(run)

    def quantize(self, block: Block) -> Mapping[str, Tensor | QuantizedWeight]:
        """Write a layer; return its parameters by short name, as they are stored.

        Without a certificate nothing is returned: then they need not stay in memory.
        """
        decided = self._quantizer.quantize(block, self._container)
        stored: dict[str, Tensor | QuantizedWeight] = {}
        for name in block.weights:
            value = decided.get(name)
            if value is None:
                value = narrowed(block.prefix + name, block.weights[name], self._float)
            self._writer.write({block.prefix + name: value})
            if self._certified:
                stored[name] = value
        return stored

    def decoded(self, stored: Mapping[str, Tensor | QuantizedWeight]) -> Mapping[str, Tensor]:
        """A layer's parameters as a loader will see them, in the compute type, each when read."""
        return ReadWeights(stored, lambda name: self._decoded(stored[name]))

    def flush(self) -> None:
        """Make every layer that was written durable."""
        self._writer.flush()

    def write_outer_norms(self) -> None:
        """Write the norms that belong to no layer."""
        for name in (PER_LAYER_NORM, FINAL_NORM):
            if name in self.layout:
                tensor = narrowed(name, self._checkpoint.tensor(name), self._float)
                self._writer.write({name: tensor})

    @property
    def has_towers(self) -> bool:
        """Whether the artifact is multimodal."""
        return bool(self._planned.header.towers)

    def write_towers(self) -> None:
        """Copy a multimodal checkpoint's towers, tensor by tensor."""
        for name in self._planned.header.towers:
            assert self._checkpoint.towers is not None
            self._writer.write({name: self._checkpoint.towers.tensor(name)})

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor outside the layers."""
        return self._checkpoint.shape(name) if name in DENSE else self.layout[name].shape

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor outside the layers as stored, decoded: a ``RowSource``."""
        if name in self._tables:
            return self._tables[name].rows(name, start, stop)
        if self.quantizes(name):  # the per-layer table: quantized once more
            part = {name: RowsOf(name, start, stop)}
            unheld = UnheldWeights(self._checkpoint, part, self._skeleton.device)
            block = Block(-1, "", table_structure(name), unheld, {}, source=unheld)
            return self._decoded(self._quantizer.quantize(block, self._container)[name])
        spec = self.layout.get(name)
        dtype = self._float if spec is None or isinstance(spec, QuantizedSpec) else spec.dtype
        return self._checkpoint.rows(name, start, stop, dtype)

    def final_norm(self) -> Tensor:
        """The final norm's weight as stored, in the compute type."""
        return self._decoded(self.rows(FINAL_NORM, 0, self.shape(FINAL_NORM)[0]))

    @property
    def dense(self) -> Sequence[Tensor]:
        """Weights of an embedding model's Dense modules as stored, or else the checkpoint's."""
        return dense_modules(self, self._checkpoint.config)

    def head_table(self) -> Table:
        """The head as stored, decoded run by run."""
        name = head_name(self._planned.header.config)
        return lambda start, stop: self._decoded(self.rows(name, start, stop))

    def close(
        self,
        certificate: LevelEvaluation | None,
        *,
        calibration: TokenWindows | None,
        ranges: ActivationRanges,
        routed: Mapping[int, RoutedTokens],
    ) -> None:
        """Write what goes with the weights: configuration, tokenizer, manifest, card."""
        job, header = self._planned.job, self._planned.header
        config = self._writer.finish()
        if not self._container.self_contained:
            write_config(self._folder, config, self._accompanying_files())
        # A folder that its own reader cannot open must never get its final name.
        job.exporter.open(self._folder)
        ArtifactFacts(
            checkpoint=self._checkpoint,
            recipe=job.recipe,
            container=job.exporter.name,
            quantizer=job.quantizer.name,
            layout=header.layout,
            float_dtype=str(self._float).removeprefix("torch."),
            file_bytes=self._planned.total_bytes,
            per_layer_embedding=self._planned.per_layer_embedding,
            towers=self._planned.tower_records,
            calibration=calibration if job.quantizer.needs else None,
            certificates=() if certificate is None else (certificate,),
            libraries={"gemquant-kernels": native.version()},
            fallbacks=self._planned.fallbacks,
            grid=self._planned.grid,
            activation_range=_activation_range(ranges) if job.quantizer.needs else None,
            routed=[
                RoutedRecord(layer=layer, tokens=each.tokens, least=each.least, few=each.few)
                for layer, each in (routed.items() if job.quantizer.needs else ())
            ],
        ).finalize(self._folder)

    def _accompanying_files(self) -> Mapping[str, bytes]:
        header, towers = self._planned.header, self._checkpoint.towers
        processors = towers.processor_files if towers is not None and header.towers else {}
        modules = self._checkpoint.modules
        if modules is not None:
            processors = {**processors, **modules.contents()}
        return {**processors, **(header.origin.tokenizer_files if header.origin else {})}

    def _decoded(self, value: Tensor | QuantizedWeight) -> Tensor:
        tensor = value if isinstance(value, Tensor) else value.dequantize()
        return tensor.to(self._skeleton.device, self._skeleton.dtype)

    def _table(self, name: str) -> RowChunks:
        rows, columns = self._checkpoint.shape(name)

        def chunks() -> Iterator[Tensor]:
            for start, stop in runs_of_rows(rows, columns):
                yield narrowed(name, self._checkpoint.rows(name, start, stop), self._float)

        return RowChunks((rows, columns), self._float, chunks)


def _activation_range(ranges: ActivationRanges) -> ActivationRangeRecord | None:
    largest, where = ranges.worst()
    if not where:
        return None
    return ActivationRangeRecord(largest=largest, where=where, fits_float16=largest < FLOAT16_LIMIT)
