"""What a job will write, from headers alone: layout, sizes, and everything that forbids it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from gemquant.convert.resume import interrupted_at_the_end
from gemquant.core.artifact import (
    Fallback,
    GridRecord,
    TableRecord,
    TowerRecord,
    grid_record,
)
from gemquant.core.artifact.staging import interrupted_bytes, output_problems
from gemquant.core.options import problems_with
from gemquant.core.protocols import (
    ArtifactHeader,
    Exporter,
    PlainSpec,
    QuantizedSpec,
    Quantizer,
    Weights,
)
from gemquant.core.recipe import Recipe
from gemquant.core.scheme import Scheme
from gemquant.core.weights import BlockScheme
from gemquant.errors import GemquantError, OutputError, UnsupportedError, UsageError, refuse
from gemquant.formats.checkpoint import Checkpoint
from gemquant.formats.source_model import Origin
from gemquant.models.architecture import (
    architecture_of,
    kept_reason,
    linear_shapes,
    tensor_shapes,
)
from gemquant.models.structure import DENSE, DENSE_MODULES, EMBEDDING, HEAD, PER_LAYER_TABLE

# Tokenizer, card, configuration and manifest: a generous guess.
SMALL_FILES_BYTES = 64_000_000


@dataclass(frozen=True)
class Job:
    """One artifact to make: an algorithm for this model, a container, and a place."""

    quantizer: Quantizer
    exporter: Exporter
    out: Path
    recipe: Recipe
    force: bool = False


@dataclass(frozen=True)
class PlannedJob:
    """A job that passed every check, and what it will write; no weight has been read.

    file_sizes: bytes of each weight file.
    """

    job: Job
    header: ArtifactHeader
    file_sizes: Mapping[str, int]

    @property
    def total_bytes(self) -> int:
        """Size of all weight files."""
        return sum(self.file_sizes.values())

    @property
    def tower_records(self) -> Sequence[TowerRecord]:
        """What the artifact has besides its text model."""
        return self.job.exporter.tower_records(self.header)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over the number of weights, of the text model."""
        text_bytes = self.total_bytes - sum(tower.bytes for tower in self.tower_records)
        return 8 * text_bytes / sum(prod(s.shape) for s in self.header.layout.values())

    @property
    def per_layer_embedding(self) -> TableRecord | None:
        """What the table of per-layer inputs takes; None where there is none."""
        layout = dict(self.header.layout)
        if (table := layout.pop(PER_LAYER_TABLE, None)) is None:
            return None
        weights = prod(table.shape)
        if isinstance(table, PlainSpec):
            size = weights * table.dtype.itemsize
        elif isinstance(table.scheme, BlockScheme):
            size = table.shape[0] * table.scheme.type.row_bytes(table.shape[1])
        else:  # with what the file's header says of it, some hundred bytes
            rest = self.job.exporter.file_sizes(replace(self.header, layout=layout))
            size = self.total_bytes - sum(rest.values())
        return TableRecord(weights=weights, bytes=size, bits_per_weight=8 * size / weights)

    @property
    def schemes(self) -> list[Scheme]:
        """The different schemes, in the order of the layers."""
        specs = self.header.layout.values()
        return list(dict.fromkeys(s.scheme for s in specs if isinstance(s, QuantizedSpec)))

    @property
    def quantized(self) -> Sequence[str]:
        """Names of the weights stored as codes."""
        return [n for n, spec in self.header.layout.items() if isinstance(spec, QuantizedSpec)]

    @property
    def kept(self) -> Sequence[str]:
        """Names of the matrices kept in floating point."""
        return [
            n
            for n, spec in self.header.layout.items()
            if isinstance(spec, PlainSpec) and len(spec.shape) == 2
        ]

    @property
    def grid(self) -> GridRecord | None:
        """How much of the checkpoint lies on a 4-bit grid; None where nobody looked."""
        use = self.job.quantizer.grid_use
        stored = self.job.exporter.container(self.header.config).scale_dtype
        return grid_record(use, str(stored).removeprefix("torch.")) if use.surveyed else None

    @property
    def fallbacks(self) -> Sequence[Fallback]:
        """Weights not stored as requested: the quantizer's, and what is kept in 16 bits."""
        kept = {name: kept_reason(name) for name in self.kept if self.quantized}
        stored = str(self.job.exporter.container(self.header.config).float_dtype)
        return [
            *self.job.quantizer.fallbacks,
            *(
                Fallback(
                    module=name.removesuffix(".weight"),
                    stored=stored.removeprefix("torch."),
                    reason=reason,
                )
                for name, reason in kept.items()
                if reason is not None
            ),
        ]


def linear_weights(weights: Weights) -> dict[str, tuple[int, int]]:
    """Full names and shapes (out, in) of all decoder linears."""
    return linear_shapes(weights.config)


def plan(jobs: Sequence[Job], checkpoint: Checkpoint) -> list[PlannedJob]:
    """Check and lay out every job; raises all problems of all jobs at once."""
    problems: list[GemquantError] = []
    planned = []
    linears = linear_weights(checkpoint)
    # Some of the folders may stand already; whether they are this run's is checked when it runs.
    ending = interrupted_at_the_end(jobs[0].out)
    for job in jobs:
        job_problems = [
            *problems_with(job.quantizer),
            *job.quantizer.problems(linears),
        ]
        job_problems += _embedding_problems(job, checkpoint)
        if holds_towers(job, checkpoint):
            assert checkpoint.towers is not None
            job_problems += checkpoint.towers.problems()
        header = _header(job, checkpoint)
        # Sizes of an impossible layout mean nothing, and its problems would come twice.
        if not job_problems:
            job_problems = list(job.exporter.problems(header))
        needed = 0
        if not job_problems:
            planned.append(PlannedJob(job, header, job.exporter.file_sizes(header)))
            needed = planned[-1].total_bytes + SMALL_FILES_BYTES - interrupted_bytes(job.out)
        problems += job_problems
        problems += output_problems(job.out, force=job.force or ending, needed_bytes=max(0, needed))
    refuse([*problems, *_shared_folders(jobs)])
    return planned


def _embedding_problems(job: Job, checkpoint: Checkpoint) -> Iterator[GemquantError]:
    """Why a container cannot hold an embedding model."""
    architecture, name = architecture_of(checkpoint.config), job.exporter.name
    if not architecture.embeds:
        return
    if job.quantizer.scheme_for(HEAD, (1, 1)) is not None:
        yield UsageError(f"--quantize-head: an {architecture.name} has no head.")
    if not job.exporter.holds_embeddings:
        yield UnsupportedError(
            f"{name}: no loader of this container is known for an {architecture.name}.",
            hint="Use gemquant gguf, or awq, rtn, bitsandbytes or cast with --target cpu.",
        )
    elif (
        checkpoint.modules is None and not job.exporter.container(checkpoint.config).self_contained
    ):
        yield UnsupportedError(
            f"{checkpoint.ref}: a GGUF has not the files of sentence-transformers, which {name} "
            "needs.",
            hint="Start from the folder or the Hub id, or use gemquant gguf.",
        )


def _shared_folders(jobs: Sequence[Job]) -> list[GemquantError]:
    counts = Counter(os.path.abspath(job.out) for job in jobs)  # noqa: PTH100 (as staging does)
    return [
        OutputError(f"{out} is the folder of {count} jobs.", hint="Give each its own with -o.")
        for out, count in counts.items()
        if count > 1
    ]


def _header(job: Job, checkpoint: Checkpoint) -> ArtifactHeader:
    """Every tensor in the order of the forward pass; a head that is quantized is untied first."""
    config = dict(checkpoint.config)
    container = job.exporter.container(config)
    rows, columns = checkpoint.shape(EMBEDDING)
    layout: dict[str, PlainSpec | QuantizedSpec] = {}
    for name, shape in tensor_shapes(config).items():
        layout[name] = PlainSpec(shape, container.float_dtype)
        if name in DENSE and not container.self_contained:
            layout[name] = PlainSpec(shape, checkpoint.stored_dtype(name))
        elif len(shape) == 2 and name != HEAD:
            matrix = (shape[0], shape[1])
            scheme = job.quantizer.scheme_for(name, matrix)
            if scheme is not None:
                layout[name] = QuantizedSpec(matrix, scheme)
            elif name in DENSE:
                del layout[name]
                config[DENSE_MODULES] = {}
    head_scheme = job.quantizer.scheme_for(HEAD, (rows, columns))
    if head_scheme is not None and not architecture_of(config).embeds:
        config["tie_word_embeddings"] = False
        layout[HEAD] = QuantizedSpec((rows, columns), head_scheme)
    origin = Origin(checkpoint, job.recipe.chat_template)
    facts = job.quantizer.facts(job.recipe)
    towers: dict[str, PlainSpec] = {}
    if (read := checkpoint.towers) is not None and holds_towers(job, checkpoint):
        towers = {n: PlainSpec(read.shape(n), read.stored_dtype(n)) for n in read.names()}
    return ArtifactHeader(config, layout, origin, job.quantizer.label, facts, towers)


def holds_towers(job: Job, checkpoint: Checkpoint) -> bool:
    """Whether the artifact will be multimodal, as the checkpoint is."""
    wanted = job.exporter.holds_towers and not job.recipe.text_only
    return wanted and checkpoint.towers is not None
