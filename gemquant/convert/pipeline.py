"""The whole program: a checkpoint streams through once; every artifact is written and measured.

checkpoint ──blocks──▶ trace (statistics) ──▶ quantizers ──▶ exporters ──▶ artifacts
                            │                                              │
                            └──── evaluation windows, original ‖ quantized ┘
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gemquant.calibration.stream import Stream
from gemquant.calibration.trace import Trace
from gemquant.calibration.windows import TokenWindows
from gemquant.convert.job import JobWriter, open_job
from gemquant.convert.plan import PlannedJob
from gemquant.convert.resume import (
    ResumePolicy,
    RunCheckpoint,
    RunState,
    finish_interrupted,
    open_run_checkpoint,
)
from gemquant.core.artifact import Artifact, read_manifest
from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.core.protocols import Progress, RoutedTokens, Silence
from gemquant.errors import CalibrationError, listed
from gemquant.formats.checkpoint import Checkpoint
from gemquant.measure.quality.embeddings import dense_modules
from gemquant.measure.quality.streams import (
    EvaluationStreams,
    final_norm,
    head_table,
    reference_runtime,
)
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import (
    DENSE,
    EMBEDDING,
    HEAD,
    PER_LAYER_PROJECTION,
    PER_LAYER_TABLE,
)
from gemquant.numerics.precision import fast_products

CALIBRATION, ORIGINAL, CANDIDATE = "calibration", "original", "candidate."
SEALING = "writing and hashing files"
TOWERS = "copying the towers"
FIRST_TABLES = (EMBEDDING, PER_LAYER_TABLE, PER_LAYER_PROJECTION, *DENSE)
TABLES = {
    EMBEDDING: "quantizing the embedding",
    PER_LAYER_TABLE: "quantizing the per-layer embedding",
    PER_LAYER_PROJECTION: "quantizing the per-layer projection",
    HEAD: "quantizing the head",
    **dict.fromkeys(DENSE, "quantizing a Dense module"),
}


@fast_products()
def run(
    planned: Sequence[PlannedJob],
    checkpoint: Checkpoint,
    *,
    calibration: TokenWindows | None,
    evaluation: Sequence[TokenWindows],
    device: str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    calibration_dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    resume: ResumePolicy | None = None,
) -> list[Artifact]:
    """Stream the checkpoint once and finish every job, or leave no partial output.

    calibration: may be None if no quantizer needs statistics. evaluation: slices for the
    certificate; empty for no certificate. calibration_dtype: the type of the calibration windows'
    activations, if not ``compute_dtype``. resume: save finished layers, and continue an interrupted
    run of the same identity; None to save nothing.
    """
    progress = progress or Silence()
    outs = [each.job.out for each in planned]
    if resume is not None and finish_interrupted(outs, resume, force=planned[0].job.force):
        progress.note("the interrupted run was complete; its artifacts have their names now")
        return _finished(outs)
    needs = _required_statistics(planned, calibration)
    skeleton = Skeleton(checkpoint.config, device=device, dtype=compute_dtype)
    tracing = skeleton
    if calibration_dtype not in (None, compute_dtype):
        tracing = Skeleton(checkpoint.config, device=device, dtype=calibration_dtype)
    trace = Trace(
        checkpoint,
        tracing,
        calibration if needs else None,
        gram="gram" in needs,
        sampled="sample" in needs,
    )

    with ExitStack() as stack:
        saved = stack.enter_context(_run_checkpoint(planned, resume, progress))
        writers = [
            stack.enter_context(
                open_job(job, checkpoint, skeleton, certified=bool(evaluation), saved=saved)
            )
            for job in planned
        ]
        # First, so that what is wrong with them ends a run before its hours.
        _write_towers([writer for writer in writers if writer.has_towers], progress)
        _write_tables(FIRST_TABLES, writers, trace, progress)
        streams = EvaluationStreams(skeleton, evaluation) if evaluation else None
        first = _start_streams(saved, checkpoint, trace, streams, writers, progress)

        progress.start("quantizing layers", skeleton.layers)
        if first:
            progress.note(f"resuming after layer {first}, where the interrupted run stopped")
            progress.advance("quantizing layers", first)
        for block in trace.blocks():
            for number, writer in enumerate(writers):
                stored = writer.quantize(block)
                if streams is not None:
                    streams.candidates[number].advance(block.index, writer.decoded(stored))
                del stored
            if streams is not None:
                streams.original.advance(block.index, block.weights)
            progress.advance("quantizing layers")
            finished = block.index + 1
            del block  # before the next one is read
            _save(saved, finished, trace, streams, writers)

        _note_routed(trace.routed, progress)
        for writer in writers:
            writer.write_outer_norms()
        _write_tables([HEAD], writers, trace, progress)
        certificates: list[LevelEvaluation | None] = [None for _ in writers]
        if streams is not None:
            seed = planned[0].job.recipe.seed
            certificates = [*_certificates(streams, checkpoint, skeleton, writers, seed, progress)]
        progress.start(SEALING, len(writers))
        for writer, certificate in zip(writers, certificates, strict=True):
            writer.close(
                certificate,
                calibration=calibration,
                ranges=trace.activation_ranges,
                routed=trace.routed,
            )
            progress.advance(SEALING)
        if saved is not None:
            saved.complete(skeleton.layers, outs)
    return _finished(outs)


def _certificates(
    streams: EvaluationStreams,
    checkpoint: Checkpoint,
    skeleton: Skeleton,
    writers: Sequence[JobWriter],
    seed: int,
    progress: Progress,
) -> Iterator[LevelEvaluation]:
    """What every artifact loses, by its predictions or by its embeddings."""
    certificate = partial(LevelEvaluation, level="reference", runtime=reference_runtime(skeleton))
    norm = final_norm(checkpoint, skeleton)
    if skeleton.architecture.embeds:
        dense = dense_modules(checkpoint, checkpoint.config)
        before, *others = streams.embeddings(
            [(norm, dense), *((writer.final_norm(), writer.dense) for writer in writers)]
        )
        for other in others:
            yield certificate(embeddings=streams.embedding_figures(before, other, seed=seed))
        return
    original, *candidates = streams.predictors(
        [(norm, head_table(checkpoint, skeleton))]
        + [(writer.final_norm(), writer.head_table()) for writer in writers]
    )
    for slices in streams.score(original, candidates, seed=seed, progress=progress):
        yield certificate(slices=slices)


def _finished(outs: Sequence[Path]) -> list[Artifact]:
    # Every file was hashed when it was finalized; only the manifest is read again.
    return [Artifact(out, read_manifest(out)) for out in outs]


def _note_routed(routed: Mapping[int, RoutedTokens], progress: Progress) -> None:
    """Note how many tokens reached experts, and which took their layer's statistics."""
    if not routed:
        return
    experts = sum(len(each.tokens) for each in routed.values())
    few = [f"{layer}.{expert}" for layer, each in routed.items() for expert in each.few]
    least = min(each.least for each in routed.values())
    progress.note(
        f"{len(few)} of {experts} experts were reached by fewer than {least} calibration tokens "
        f"and take their layer's statistics (layer.expert): {listed(few, 12)}"
        if few
        else f"each of {experts} experts was reached by at least {least} calibration tokens"
    )


# ---------------------------------------------------------------- resume


def _run_checkpoint(
    planned: Sequence[PlannedJob], resume: ResumePolicy | None, progress: Progress
) -> AbstractContextManager[RunCheckpoint | None]:
    """What an interrupted run of these jobs has saved; None where nothing is saved."""
    if resume is None or not all(each.job.exporter.resumable for each in planned):
        return nullcontext()
    return open_run_checkpoint([each.job.out for each in planned], resume, progress)


def _start_streams(
    saved: RunCheckpoint | None,
    checkpoint: Checkpoint,
    trace: Trace,
    streams: EvaluationStreams | None,
    writers: Sequence[JobWriter],
    progress: Progress,
) -> int:
    """Start all streams where an interrupted run stopped, else at the embedding.

    Returns the index of the first layer to quantize.
    """
    state = None if saved is None else saved.state
    if streams is not None:
        progress.start("embedding the text", 0)
        streams.embed(checkpoint, [(writer, None) for writer in writers])
    if state is None:
        return 0
    trace.go_on(state.layers, state.reach, state.routed)
    for name, stream in _named_streams(trace, streams).items():
        stream.restore(name, state.hidden)
    return state.layers


def _named_streams(trace: Trace, streams: EvaluationStreams | None) -> dict[str, Stream]:
    """Every stream by the name under which it is saved."""
    named = {CALIBRATION: trace.stream} if trace.stream is not None else {}
    if streams is not None:
        named[ORIGINAL] = streams.original
        named |= {f"{CANDIDATE}{n}": each for n, each in enumerate(streams.candidates)}
    return named


def _save(
    saved: RunCheckpoint | None,
    finished: int,
    trace: Trace,
    streams: EvaluationStreams | None,
    writers: Sequence[JobWriter],
) -> None:
    """Save all that crosses from the finished layers to the next, if it is time."""
    if saved is None or not saved.due():
        return
    hidden: dict[str, Tensor] = {}
    for name, stream in _named_streams(trace, streams).items():
        hidden |= stream.state(name)
    for writer in writers:
        writer.flush()
    saved.save(RunState(finished, hidden, trace.activation_ranges.layers, trace.routed))


# ---------------------------------------------------------------- tables, statistics


def _write_tables(
    names: Sequence[str], writers: Sequence[JobWriter], trace: Trace, progress: Progress
) -> None:
    for name in names:
        _write_table(name, writers, trace, progress)


def _write_towers(writers: Sequence[JobWriter], progress: Progress) -> None:
    if writers:
        progress.start(TOWERS, len(writers))
    for writer in writers:
        writer.write_towers()
        progress.advance(TOWERS)


def _write_table(name: str, writers: Sequence[JobWriter], trace: Trace, progress: Progress) -> None:
    """Write the embedding or the head of every job that has one, a run of rows at a time."""
    having = [writer for writer in writers if name in writer.layout]
    quantizing = [writer for writer in having if writer.quantizes(name)]
    for writer in having:
        if not writer.quantizes(name):
            writer.copy_table(name)
    if not quantizing:
        return
    task = TABLES[name]
    progress.start(task, trace.table_runs(name))
    for block in trace.table(name):
        for writer in quantizing:
            writer.quantize_rows(name, block)
        progress.advance(task)


def _required_statistics(
    planned: Sequence[PlannedJob], calibration: TokenWindows | None
) -> frozenset[str]:
    quantizers = [each.job.quantizer for each in planned]
    needs = frozenset[str]().union(*(quantizer.needs for quantizer in quantizers))
    if needs and calibration is None:
        names = ", ".join(sorted({quantizer.name for quantizer in quantizers if quantizer.needs}))
        raise CalibrationError(f"{names}: calibration text is needed, but there is none.")
    return needs
