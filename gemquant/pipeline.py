"""The whole program: a checkpoint streams through once; every artifact is written and measured.

checkpoint ──blocks──▶ trace (statistics) ──▶ quantizers ──▶ exporters ──▶ artifacts
                            │                                              │
                            └──── evaluation windows, original ‖ quantized ┘
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch

from gemquant.artifact import Artifact
from gemquant.calibration.trace import Trace
from gemquant.calibration.windows import TokenWindows
from gemquant.checkpoint import Checkpoint
from gemquant.errors import CalibrationError
from gemquant.evaluation.streams import EvaluationStreams, final_norm, head_table
from gemquant.gemma.skeleton import Skeleton
from gemquant.numerics.products import fast_products
from gemquant.plan import Job, JobPlan, plan
from gemquant.production import producing
from gemquant.progress import Progress, Silence
from gemquant.results import SliceResult

__all__ = ["Job", "JobPlan", "plan", "run"]


@fast_products()
def run(
    jobs: Sequence[Job],
    checkpoint: Checkpoint,
    *,
    calibration: TokenWindows | None,
    evaluation: Sequence[TokenWindows],
    device: str = "cpu",
    compute_dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> list[Artifact]:
    """Stream the checkpoint once and finish every job, or leave nothing behind.

    calibration: may be None if no quantizer needs statistics. evaluation: slices for the
    certificate; none for no certificate. All problems of all jobs are raised before any work.
    """
    progress = progress or Silence()
    plans = plan(jobs, checkpoint)
    needs = _required_statistics(jobs, calibration)
    skeleton = Skeleton(checkpoint.config, device=device, dtype=compute_dtype)
    trace = Trace(checkpoint, skeleton, calibration if needs else None, gram="gram" in needs)

    with ExitStack() as stack:
        productions = [stack.enter_context(producing(made, checkpoint, skeleton)) for made in plans]
        for production in productions:
            production.copy_embedding()
        streams = EvaluationStreams(skeleton, evaluation) if evaluation else None
        if streams is not None:
            dtypes = [production.container.float_dtype for production in productions]
            streams.embed(checkpoint, [(checkpoint, dtype) for dtype in dtypes])

        progress.start("quantizing layers", skeleton.layers)
        for block in trace.blocks():
            for number, production in enumerate(productions):
                effective = production.quantize(block)
                if streams is not None:
                    streams.candidates[number].advance(block.index, effective)
                del effective
            if streams is not None and streams.original is not None:
                streams.original.advance(block.index, block.weights)
            progress.advance("quantizing layers")
            del block  # before the next one is read

        head_statistics = trace.head_statistics()
        for production in productions:
            production.finish_weights(head_statistics)
        results: list[list[SliceResult]] = [[] for _ in productions]
        if streams is not None:
            progress.note("comparing predictions")
            original, *candidates = streams.predictors(
                [(final_norm(checkpoint, skeleton), head_table(checkpoint, skeleton))]
                + [(made.final_norm(), made.head_table()) for made in productions]
            )
            results = streams.score(original, candidates)
        for production, slices in zip(productions, results, strict=True):
            production.close(slices, evaluation, calibration=calibration, scan=trace.scan)
    return [Artifact.open(job.out) for job in jobs]


def _required_statistics(jobs: Sequence[Job], calibration: TokenWindows | None) -> frozenset[str]:
    needs = frozenset[str]().union(*(job.quantizer.needs for job in jobs))
    if needs and calibration is None:
        names = ", ".join(sorted({job.quantizer.name for job in jobs if job.quantizer.needs}))
        raise CalibrationError(f"{names}: calibration text is needed, but there is none.")
    return needs
