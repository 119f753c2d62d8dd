"""One job on its way: blocks in, tensors out to its writer, and the artifact closed at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemquant.calibration.statistics import ActivationRanges
from gemquant.calibration.stream import ROWS_AT_ONCE
from gemquant.calibration.windows import TokenWindows
from gemquant.convert.manifest_facts import calibration_record, library_versions, source_record
from gemquant.convert.plan import SMALL_FILES_BYTES, JobPlan
from gemquant.convert.resume import Unfinished
from gemquant.core.artifact import (
    ActivationRangeRecord,
    Fallback,
    Manifest,
    finalize,
    quantization_record,
    staged,
)
from gemquant.core.artifact.evaluation import LevelEvaluation, SliceEvaluation
from gemquant.core.protocols import (
    FLOAT16_LIMIT,
    Block,
    QuantizedSpec,
    QuantizedWeight,
    Resumable,
    ResumableWriter,
    RowChunks,
    RowSource,
    Writer,
)
from gemquant.core.weights import ChunkedWeight, QuantizedRows, Stackable
from gemquant.errors import OutputError
from gemquant.formats.checkpoint import Checkpoint
from gemquant.measure.quality.divergence import Table
from gemquant.measure.quality.streams import head_name, reference_runtime
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import EMBEDDING, FINAL_NORM, layer_prefix
from gemquant.numerics import native
from gemquant.numerics.precision import narrowed


@contextmanager
def producing(
    plan: JobPlan,
    checkpoint: Checkpoint,
    skeleton: Skeleton,
    *,
    measured: bool,
    unfinished: Unfinished | None = None,
) -> Iterator[Production]:
    """Open a job's writer in a scratch folder that becomes the artifact if all goes well.

    measured: a certificate is wanted, so what was stored of the tables is kept at hand.
    unfinished: what an interrupted run has left, and what is to be left of this one.
    """
    needed = plan.total_bytes + SMALL_FILES_BYTES
    staging = staged(
        plan.job.out,
        force=plan.job.force,
        needed_bytes=needed,
        token=None if unfinished is None else unfinished.token,
        keeps=None if unfinished is None else unfinished.keeps,
    )
    finished = 0 if unfinished is None or unfinished.state is None else unfinished.state.layers
    with staging as folder, _writer(plan, folder, finished) as writer:
        yield Production(plan, checkpoint, skeleton, folder, writer, measured=measured)


def _writer(plan: JobPlan, folder: Path, finished: int) -> AbstractContextManager[Writer]:
    """A new writer, or that of an interrupted run which has stored the first layers."""
    exporter = plan.job.exporter
    if finished == 0:
        return exporter.create(folder, plan.header)
    assert isinstance(exporter, Resumable)
    for path in folder.iterdir():
        if path.name not in plan.file_sizes:  # from the end of a run, and made again
            path.unlink()
    prefixes = tuple(map(layer_prefix, range(finished)))
    stored = [name for name in plan.header.layout if name.startswith(prefixes)]
    return exporter.reopen(folder, plan.header, stored)


class Production:
    """One job's writer, and what it must remember of its tables for the certificate."""

    def __init__(
        self,
        plan: JobPlan,
        checkpoint: Checkpoint,
        skeleton: Skeleton,
        folder: Path,
        writer: Writer,
        *,
        measured: bool,
    ) -> None:
        self.plan = plan
        self.container = plan.job.exporter.container(plan.header.config)
        self._checkpoint = checkpoint
        self._skeleton = skeleton
        self._folder = folder
        self._writer = writer
        self._measured = measured
        self._tables: dict[str, ChunkedWeight] = {}
        self._rows_written: dict[str, int] = {}

    def quantizes(self, name: str) -> bool:
        """Whether a table, the embedding or the head, is stored as codes."""
        return isinstance(self.plan.header.layout.get(name), QuantizedSpec)

    def copy_table(self, name: str) -> None:
        """Write the embedding or the head run by run, in the type that the container stores."""
        self._writer.write({name: self._table(name)})

    def quantize_rows(self, name: str, block: Block) -> None:
        """Write the next rows of a table; its codes are kept for the certificate alone."""
        run = self.plan.job.quantizer.quantize(block, self.container)[name]
        if isinstance(run, Tensor) or not isinstance(run, Stackable):
            raise TypeError(f"{name}: announced as quantized; came as {type(run).__name__}.")
        start = self._rows_written.get(name, 0)
        self._writer.write({name: QuantizedRows(start, run)})
        self._rows_written[name] = start + run.shape[0]
        if self._measured:
            spec = self.plan.header.layout[name]
            assert isinstance(spec, QuantizedSpec)
            self._tables.setdefault(name, ChunkedWeight(spec.shape)).append(run)

    def quantize(self, block: Block) -> Mapping[str, Tensor | QuantizedWeight]:
        """Write a layer; return its parameters by short name, as they are stored."""
        decided = self.plan.job.quantizer.quantize(block, self.container)
        stored = {
            name: decided[name]
            if name in decided
            else narrowed(block.prefix + name, block.weights[name], self._float)
            for name in block.weights
        }
        self._writer.write({block.prefix + name: value for name, value in stored.items()})
        return stored

    def decoded(self, stored: Mapping[str, Tensor | QuantizedWeight]) -> dict[str, Tensor]:
        """A layer's parameters as a loader will see them, in the compute type."""
        return {name: self._decoded(value) for name, value in stored.items()}

    def flush(self) -> None:
        """Ask the disk to keep every layer that was written; the exporter is ``Resumable``."""
        assert isinstance(self._writer, ResumableWriter)
        self._writer.flush()

    def write_final_norm(self) -> None:
        """Write the norm before the head."""
        self._writer.write({FINAL_NORM: self._norm()})

    def embedding(self) -> tuple[RowSource, torch.dtype | None]:
        """The embedding as stored, and the type to round its rows to where they come unrounded."""
        if EMBEDDING in self._tables:
            return self._tables[EMBEDDING], None
        return self._checkpoint, self._float

    def final_norm(self) -> Tensor:
        """The final norm's weight as stored, in the compute type."""
        return self._decoded(self._norm())

    def head_table(self) -> Table:
        """The head as stored, decoded run by run."""
        name = head_name(self.plan.header.config)
        held = self._tables.get(name)

        def rows(start: int, stop: int) -> Tensor:
            if held is not None:
                return self._decoded(held.rows(name, start, stop))
            return self._decoded(self._checkpoint.rows(name, start, stop, self._float))

        return rows

    def close(
        self,
        slices: tuple[SliceEvaluation, ...],
        *,
        calibration: TokenWindows | None,
        ranges: ActivationRanges,
    ) -> None:
        """Write everything beside the weights: configuration, tokenizer, manifest, card."""
        config = self._writer.finish()
        if not self.container.self_contained:
            self._write_beside(config)
        # A folder that its own reader cannot open must never get its final name.
        self.plan.job.exporter.open(self._folder)
        runtime = reference_runtime(self._skeleton)
        certificate = LevelEvaluation(level="reference", runtime=runtime, slices=slices)
        manifest = self._manifest((certificate,) if slices else (), calibration, ranges)
        finalize(self._folder, manifest, original_card=self._checkpoint.provenance.card)

    def _write_beside(self, config: Mapping[str, Any]) -> None:
        origin = self.plan.header.origin
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        files = {**(origin.tokenizer_files if origin else {}), "config.json": text.encode()}
        for name, content in files.items():
            try:
                (self._folder / name).write_bytes(content)
            except OSError as error:
                raise OutputError(f"{self._folder / name}: {error.strerror}.") from error

    @property
    def _float(self) -> torch.dtype:
        return self.container.float_dtype

    def _decoded(self, value: Tensor | QuantizedWeight) -> Tensor:
        tensor = value if isinstance(value, Tensor) else value.dequantize()
        return tensor.to(self._skeleton.device, self._skeleton.dtype)

    def _norm(self) -> Tensor:
        return narrowed(FINAL_NORM, self._checkpoint.tensor(FINAL_NORM), self._float)

    def _table(self, name: str) -> RowChunks:
        rows, columns = self._checkpoint.shape(name)

        def chunks() -> Iterator[Tensor]:
            for start in range(0, rows, ROWS_AT_ONCE):
                stop = min(start + ROWS_AT_ONCE, rows)
                yield narrowed(name, self._checkpoint.rows(name, start, stop), self._float)

        return RowChunks((rows, columns), self._float, chunks)

    def _manifest(
        self,
        certificates: tuple[LevelEvaluation, ...],
        calibration: TokenWindows | None,
        ranges: ActivationRanges,
    ) -> Manifest:
        checkpoint, job = self._checkpoint, self.plan.job
        largest, where = ranges.worst()
        return Manifest(
            container=job.exporter.name,
            architecture=checkpoint.config["model_type"],
            base_model=checkpoint.provenance.base_model,
            license=checkpoint.provenance.license,
            source=source_record(checkpoint),
            recipe=job.recipe.to_dict(),
            quantization=quantization_record(
                job.quantizer.name,
                self.plan.header.layout,
                float_dtype=str(self._float).removeprefix("torch."),
                file_bytes=self.plan.total_bytes,
            ),
            fallbacks=tuple(
                Fallback(
                    module=name.removesuffix(".weight"), stored=each.stored, reason=each.reason
                )
                for each in self.plan.substitutions
                for name in each.names
            ),
            calibration=calibration_record(calibration if job.quantizer.needs else None),
            activation_range=ActivationRangeRecord(
                largest=largest, where=where, fits_float16=largest < FLOAT16_LIMIT
            )
            if where and job.quantizer.needs
            else None,
            certificates=certificates,
            libraries={**library_versions(), "gemquant-kernels": native.version()},
        )
