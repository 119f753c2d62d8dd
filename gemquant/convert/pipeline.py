"""The whole program: a checkpoint streams through once; every artifact is written and measured.

checkpoint ──blocks──▶ trace (statistics) ──▶ quantizers ──▶ exporters ──▶ artifacts
                            │                                              │
                            └──── evaluation windows, original ‖ quantized ┘
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

from gemquant.calibration.trace import Trace
from gemquant.calibration.windows import TokenWindows
from gemquant.convert.job import Production, producing
from gemquant.convert.plan import Job, JobPlan, plan
from gemquant.convert.resume import Resumption, RunState, Unfinished, unfinished
from gemquant.core.artifact import Artifact, read_manifest
from gemquant.core.artifact.evaluation import SliceEvaluation
from gemquant.core.progress import Progress, Silence
from gemquant.core.protocols import Resumable
from gemquant.errors import CalibrationError
from gemquant.formats.checkpoint import Checkpoint
from gemquant.measure.quality.streams import EvaluationStreams, final_norm, head_table
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import EMBEDDING, HEAD
from gemquant.numerics.precision import fast_products

__all__ = ["Job", "JobPlan", "plan", "run"]

CALIBRATION, ORIGINAL, CANDIDATE = "calibration", "original", "candidate."
TABLES = {EMBEDDING: "quantizing the embedding", HEAD: "quantizing the head"}


@fast_products()
def run(
    jobs: Sequence[Job],
    checkpoint: Checkpoint,
    *,
    calibration: TokenWindows | None,
    evaluation: Sequence[TokenWindows],
    device: str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    calibration_dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    resumption: Resumption | None = None,
) -> list[Artifact]:
    """Stream the checkpoint once and finish every job, or leave nothing behind.

    calibration: may be None if no quantizer needs statistics. evaluation: slices for the
    certificate; none for no certificate. calibration_dtype: the type of the calibration windows'
    activations, where it is another. resumption: an interrupted run keeps its finished layers, and
    one of the same identity goes on behind them; None to keep nothing. All problems of all jobs are
    raised before any work.
    """
    progress = progress or Silence()
    plans = plan(jobs, checkpoint)
    needs = _required_statistics(jobs, calibration)
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
        held=bool(evaluation),
    )

    with ExitStack() as stack:
        kept = stack.enter_context(_kept(jobs, resumption, progress))
        productions = [
            stack.enter_context(
                producing(made, checkpoint, skeleton, measured=bool(evaluation), unfinished=kept)
            )
            for made in plans
        ]
        _write_table(EMBEDDING, productions, trace, progress)
        streams = EvaluationStreams(skeleton, evaluation) if evaluation else None
        first = _begin(kept, checkpoint, trace, streams, productions)

        progress.start("quantizing layers", skeleton.layers)
        if first:
            progress.note(f"going on behind layer {first}, where the interrupted run stopped")
            progress.advance("quantizing layers", first)
        for block in trace.blocks():
            for number, production in enumerate(productions):
                stored = production.quantize(block)
                if streams is not None:
                    streams.candidates[number].advance(block.index, production.decoded(stored))
                del stored
            if streams is not None:
                streams.original.advance(block.index, block.weights)
            progress.advance("quantizing layers")
            finished = block.index + 1
            del block  # before the next one is read
            _keep(kept, finished, trace, streams, productions)

        for production in productions:
            production.write_final_norm()
        _write_table(HEAD, productions, trace, progress)
        results: list[tuple[SliceEvaluation, ...]] = [() for _ in productions]
        if streams is not None:
            progress.note("comparing predictions")
            original, *candidates = streams.predictors(
                [(final_norm(checkpoint, skeleton), head_table(checkpoint, skeleton))]
                + [(made.final_norm(), made.head_table()) for made in productions]
            )
            results = streams.score(original, candidates, seed=jobs[0].recipe.seed)
        for production, slices in zip(productions, results, strict=True):
            production.close(slices, calibration=calibration, ranges=trace.activation_ranges)
    # Every file was hashed as it was sealed; only what stands in the manifest is read again.
    return [Artifact(job.out, read_manifest(job.out)) for job in jobs]


# ---------------------------------------------------------------- interrupted and gone on with


def _kept(
    jobs: Sequence[Job], resumption: Resumption | None, progress: Progress
) -> AbstractContextManager[Unfinished | None]:
    """What an interrupted run of these jobs has kept; None where nothing is to be kept."""
    if resumption is None or not all(isinstance(job.exporter, Resumable) for job in jobs):
        return nullcontext()
    return unfinished([job.out for job in jobs], resumption, progress)


def _begin(
    kept: Unfinished | None,
    checkpoint: Checkpoint,
    trace: Trace,
    streams: EvaluationStreams | None,
    productions: Sequence[Production],
) -> int:
    """Begin all streams where an interrupted run stopped, else at the embedding.

    Returns the index of the first layer to quantize.
    """
    state = None if kept is None else kept.state
    if state is None:
        if streams is not None:
            streams.embed(checkpoint, [production.embedding() for production in productions])
        return 0
    trace.go_on(state.layers, state.hidden.get(CALIBRATION), state.reach)
    if streams is not None:
        candidates = [state.hidden[f"{CANDIDATE}{n}"] for n in range(len(productions))]
        streams.resume(state.hidden[ORIGINAL], candidates)
    return state.layers


def _keep(
    kept: Unfinished | None,
    finished: int,
    trace: Trace,
    streams: EvaluationStreams | None,
    productions: Sequence[Production],
) -> None:
    """Keep all that crosses from the finished layers to the next, if it is time."""
    if kept is None or not kept.due():
        return
    hidden = {CALIBRATION: trace.hidden} if trace.hidden is not None else {}
    if streams is not None:
        hidden[ORIGINAL] = streams.original.hidden
        hidden |= {f"{CANDIDATE}{n}": each.hidden for n, each in enumerate(streams.candidates)}
    for production in productions:
        production.flush()
    kept.save(RunState(finished, hidden, trace.activation_ranges.layers))


# ---------------------------------------------------------------- tables, statistics


def _write_table(
    name: str, productions: Sequence[Production], trace: Trace, progress: Progress
) -> None:
    """Write the embedding or the head of every job that has one, a run of rows at a time."""
    having = [made for made in productions if name in made.plan.header.layout]
    for production in having:
        if not production.quantizes(name):
            production.copy_table(name)
    quantizing = [production for production in having if production.quantizes(name)]
    if not quantizing:
        return
    task = TABLES[name]
    progress.start(task, trace.table_runs(name))
    for block in trace.table(name):
        for production in quantizing:
            production.quantize_rows(name, block)
        progress.advance(task)


def _required_statistics(jobs: Sequence[Job], calibration: TokenWindows | None) -> frozenset[str]:
    needs = frozenset[str]().union(*(job.quantizer.needs for job in jobs))
    if needs and calibration is None:
        names = ", ".join(sorted({job.quantizer.name for job in jobs if job.quantizer.needs}))
        raise CalibrationError(f"{names}: calibration text is needed, but there is none.")
    return needs
