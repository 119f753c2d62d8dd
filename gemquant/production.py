"""One job on its way: blocks in, tensors out to its writer, and the artifact closed at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from gemquant.artifact import (
    ActivationRange,
    CalibrationRecord,
    Manifest,
    Source,
    certificate_record,
    quantization_record,
    seal,
    staged,
)
from gemquant.calibration.activation_range import ActivationRangeScan
from gemquant.calibration.stream import ROWS_AT_ONCE
from gemquant.calibration.windows import TokenWindows, stream_digest
from gemquant.checkpoint import Checkpoint
from gemquant.checkpoint.tokenizer_files import with_chat_template
from gemquant.errors import OutputError
from gemquant.evaluation.divergence import Table
from gemquant.evaluation.streams import head_name, reference_runtime
from gemquant.gemma.chat import choose_template
from gemquant.gemma.skeleton import Skeleton
from gemquant.gemma.structure import EMBEDDING, FINAL_NORM, HEAD, head_structure
from gemquant.numerics.narrowing import narrowed
from gemquant.plan import SMALL_FILES_BYTES, JobPlan
from gemquant.protocols import (
    Block,
    QuantizedSpec,
    QuantizedWeight,
    RowChunks,
    Stackable,
    Statistics,
    Writer,
)
from gemquant.results import FLOAT16_LIMIT, Certificate, SliceResult

LIBRARIES = ("gemquant", "torch", "transformers", "tokenizers", "safetensors")


@contextmanager
def producing(plan: JobPlan, checkpoint: Checkpoint, skeleton: Skeleton) -> Iterator[Production]:
    """Open a job's writer in a scratch folder that becomes the artifact if all goes well."""
    needed = plan.total_bytes + SMALL_FILES_BYTES
    with (
        staged(plan.job.out, force=plan.job.force, needed_bytes=needed) as folder,
        plan.job.exporter.create(folder, plan.header) as writer,
    ):
        yield Production(plan, checkpoint, skeleton, folder, writer)


class Production:
    """One job's writer, and what it must remember of the head for the certificate."""

    def __init__(
        self,
        plan: JobPlan,
        checkpoint: Checkpoint,
        skeleton: Skeleton,
        folder: Path,
        writer: Writer,
    ) -> None:
        self.plan = plan
        self.container = plan.job.exporter.container(plan.header.config)
        self._checkpoint = checkpoint
        self._skeleton = skeleton
        self._folder = folder
        self._writer = writer
        self._head: QuantizedWeight | None = None

    def copy_embedding(self) -> None:
        """Write the embedding run by run, in the type that the container stores."""
        self._writer.write({EMBEDDING: self._table(EMBEDDING)})

    def quantize(self, block: Block) -> dict[str, Tensor]:
        """Write a layer; return its parameters as a loader will see them, in float32."""
        decided = self.plan.job.quantizer.quantize(block, self.container)
        stored = {
            name: decided[name]
            if name in decided
            else narrowed(block.prefix + name, weight, self._float)
            for name, weight in block.weights.items()
        }
        self._writer.write({block.prefix + name: value for name, value in stored.items()})
        return {name: self._decoded(value) for name, value in stored.items()}

    def finish_weights(self, head_statistics: Mapping[str, Statistics]) -> None:
        """Write the final norm and, where there is one, the head."""
        self._writer.write({FINAL_NORM: self._norm()})
        spec = self.plan.header.layout.get(HEAD)
        if isinstance(spec, QuantizedSpec):
            self._head = self._quantized_head(spec, head_statistics)
            self._writer.write({HEAD: self._head})
        elif spec is not None:
            self._writer.write({HEAD: self._table(HEAD)})

    def final_norm(self) -> Tensor:
        """The final norm's weight as stored, in the compute type."""
        return self._decoded(self._norm())

    def head_table(self) -> Table:
        """The head as stored, decoded run by run."""
        head, name = self._head, head_name(self._checkpoint.config)

        def rows(start: int, stop: int) -> Tensor:
            if head is not None:
                return self._decoded(head.rows(start, stop))
            return self._decoded(self._checkpoint.rows(name, start, stop, self._float))

        return rows

    def close(
        self,
        slices: Sequence[SliceResult],
        evaluation: Sequence[TokenWindows],
        *,
        calibration: TokenWindows | None,
        scan: ActivationRangeScan,
    ) -> None:
        """Write everything beside the weights: configuration, tokenizer, manifest, card."""
        config = self._writer.finish()
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        files = {**self._tokenizer_files(), "config.json": text.encode()}
        for name, content in files.items():
            try:
                (self._folder / name).write_bytes(content)
            except OSError as error:
                raise OutputError(f"{self._folder / name}: {error.strerror}.") from error
        # A folder that its own reader cannot open must never get its final name.
        self.plan.job.exporter.open(self._folder)
        certificates = []
        if evaluation:
            certificates.append(
                Certificate(
                    level="reference",
                    runtime=reference_runtime(self._skeleton),
                    slices=slices,
                    token_stream=stream_digest([windows.ids for windows in evaluation]),
                )
            )
        manifest = self._manifest(certificates, calibration, scan)
        seal(self._folder, manifest, original_card=self._checkpoint.provenance.card)

    def _tokenizer_files(self) -> Mapping[str, bytes]:
        files, chosen = self._checkpoint.tokenizer_files(), self.plan.job.recipe.chat_template
        if chosen is None:
            return files
        return with_chat_template(files, choose_template(chosen, self._checkpoint.chat_template()))

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

    def _quantized_head(
        self, spec: QuantizedSpec, statistics: Mapping[str, Statistics]
    ) -> QuantizedWeight:
        """Quantize the head in runs of rows: its codes are held, its weights never are."""
        source = head_name(self._checkpoint.config)
        structure = head_structure()
        parts: list[Stackable] = []
        for start in range(0, spec.shape[0], ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, spec.shape[0])
            rows = self._checkpoint.rows(source, start, stop, torch.float32)
            weights = {HEAD: rows.to(self._skeleton.device)}
            block = Block(self._skeleton.layers, "", structure, weights, statistics)
            part = self.plan.job.quantizer.quantize(block, self.container)[HEAD]
            if isinstance(part, Tensor) or not isinstance(part, Stackable):
                raise TypeError(f"{HEAD}: announced as quantized; came as {type(part).__name__}.")
            parts.append(part)
        return parts[0].stacked(parts)

    def _manifest(
        self,
        certificates: Sequence[Certificate],
        calibration: TokenWindows | None,
        scan: ActivationRangeScan,
    ) -> Manifest:
        checkpoint, job = self._checkpoint, self.plan.job
        largest, where = scan.worst()
        return Manifest(
            container=job.exporter.name,
            architecture=checkpoint.config["model_type"],
            base_model=checkpoint.provenance.base_model,
            license=checkpoint.provenance.license,
            source=Source(
                ref=checkpoint.ref,
                revision=checkpoint.revision,
                files=checkpoint.source_digest(),
            ),
            recipe=job.recipe.to_dict(),
            quantization=quantization_record(
                job.quantizer.name,
                self.plan.header.layout,
                float_dtype=str(self._float).removeprefix("torch."),
                file_bytes=self.plan.total_bytes,
            ),
            calibration=None
            if calibration is None or not job.quantizer.needs
            else CalibrationRecord(
                name=calibration.name,
                windows=calibration.ids.shape[0],
                seq_len=calibration.ids.shape[1],
                digest=calibration.digest,
            ),
            activation_range=ActivationRange(
                largest=largest, where=where, fits_float16=largest < FLOAT16_LIMIT
            )
            if where and job.quantizer.needs
            else None,
            certificates=tuple(map(certificate_record, certificates)),
            libraries={name: version(name).partition("+")[0] for name in LIBRARIES},
        )
