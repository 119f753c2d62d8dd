"""RKLLM files compared with their original on a board: level ``native``.

Tokens go to the board and float32 logits come back, bit by bit; the vendor's runtime does the rest.
What its logits leave out, such as a softcap, would show as divergence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gemquant.core.artifact import Artifact
from gemquant.core.artifact.evaluation import EvaluationDocument
from gemquant.core.protocols import Progress
from gemquant.errors import ArtifactError, WorkerError
from gemquant.measure.quality.evaluation import Evaluation, artifact_name
from gemquant.measure.quality.measure import Subject
from gemquant.measure.quality.native import GENERATED_TOKENS, NativeRuntime
from gemquant.rockchip.bench import machine_of
from gemquant.rockchip.board_events import Done, Loaded, Ran, Rows, Started
from gemquant.rockchip.board_rkllm import (
    NOT_READABLE,
    Board,
    RkllmOnBoard,
    longest_window,
    model_file,
    on_board,
    rows_of,
)
from gemquant.rockchip.programs.rkllm_structures import layout_of

POSITIONS_AT_ONCE = 128
"""Positions to compare together; each comparison reads the whole head of the original."""


def measure_on_board(
    evaluation: Evaluation, board: Board, progress: Progress
) -> EvaluationDocument:
    """Measure every artifact on a board; refuse artifacts for another chip than the board's."""
    for artifact in evaluation.artifacts:
        if artifact.manifest.conversion is not None:
            board.require_platform(artifact.manifest.conversion.platform, str(artifact.path))
    subjects = [
        Subject(
            artifact_name(artifact),
            None,
            partial(_runtime, artifact, board, evaluation, progress),
            unread=NOT_READABLE,
            not_finite_hint="gemma-3-4b needed --quantized-dtype w8a8_g128 or --hybrid-rate 0.25.",
        )
        for artifact in evaluation.artifacts
    ]
    fingerprint = machine_of(board.survey).fingerprint
    return evaluation.run(subjects, machine=fingerprint, progress=progress)


@contextmanager
def _runtime(
    artifact: Artifact, board: Board, evaluation: Evaluation, progress: Progress
) -> Iterator[NativeRuntime]:
    """Copy an artifact to the board and let it continue a prompt."""
    with on_board(board, model_file(artifact.path), progress) as model:
        runner = RkllmRunner.start(
            model,
            vocabulary=evaluation.original.config["vocab_size"],
            prompt=evaluation.prompt,
            new_tokens=GENERATED_TOKENS,
        )
        evaluation.note_continuation(runner.software, runner.beginning, progress)
        yield NativeRuntime(runner.software, None if runner.not_run else runner, runner.not_run)


@dataclass(frozen=True)
class RkllmRunner:
    """A file on a board. software: runtime and version. beginning: first generated tokens."""

    model: RkllmOnBoard
    software: str
    version: str
    vocabulary: int
    beginning: tuple[int, ...]
    max_tokens: int | None = None

    @classmethod
    def start(
        cls, model: RkllmOnBoard, *, vocabulary: int, prompt: Sequence[int], new_tokens: int
    ) -> RkllmRunner:
        """Continue a prompt, which also reports the release; WorkerError if it fails."""
        loaded, ran = _continue(model, prompt, new_tokens)
        survey = model.board.survey
        chip = f"{survey.platform or 'an unknown chip'}, NPU driver {survey.driver or 'unknown'}"
        software = f"librkllmrt {loaded.version} on {chip}"
        return cls(model, software, loaded.version, vocabulary, ran.tokens)

    @property
    def max_window(self) -> int | None:
        """Largest window, in tokens, whose logits fit the board's limit."""
        return longest_window(self.vocabulary)

    @property
    def not_run(self) -> str | None:
        """Why there is nothing to compare, or None."""
        if layout_of(self.version).logits:
            return None
        return (
            f"librkllmrt {self.version} has no logits, which came with 1.2.0; convert with toolkit "
            "1.2.0 or newer, and install its runtime"
        )

    def generate(self, prompt: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """Return the tokens that follow a prompt, greedily."""
        return list(_continue(self.model, prompt, max_new_tokens)[1].tokens)

    def logit_chunks(self, ids: Tensor) -> Iterator[Tensor]:
        """Yield the logits that predict a token: (positions, vocabulary) float32.

        ids: (windows, tokens). The next chunk overwrites the last. ArtifactError for another
        vocabulary; WorkerError for missing rows.
        """
        windows, tokens = ids.shape
        buffer = np.empty((POSITIONS_AT_ONCE, self.vocabulary), dtype=np.float32)
        filled, expected = 0, 0
        events = self.model.logits(ids.tolist())
        with closing(events):  # type: ignore[type-var]
            for event in events:
                if not isinstance(event, Rows):
                    continue
                if event.window * tokens + event.first != expected:
                    raise WorkerError("Logits came from the board in another order.")
                if event.columns != self.vocabulary:
                    raise ArtifactError(
                        f"{self.software}: logits over {event.columns} tokens, and the model "
                        f"has {self.vocabulary}."
                    )
                expected += event.rows
                # The last token of a window predicts nothing known.
                rows = rows_of(event)[: tokens - 1 - event.first]
                while len(rows):
                    part = rows[: POSITIONS_AT_ONCE - filled]
                    buffer[filled : filled + len(part)] = part
                    filled, rows = filled + len(part), rows[len(part) :]
                    if filled == POSITIONS_AT_ONCE:
                        yield torch.from_numpy(buffer)
                        filled = 0
        if expected != windows * tokens:
            raise WorkerError(f"The board sent logits of {expected} of {ids.numel()} tokens.")
        if filled:
            yield torch.from_numpy(buffer[:filled])


def _continue(model: RkllmOnBoard, prompt: Sequence[int], new_tokens: int) -> tuple[Loaded, Ran]:
    match [*model.generate(prompt, new_tokens=new_tokens)]:
        case [Started(), Loaded() as loaded, *_, Ran() as ran, Done()]:
            return loaded, ran
    raise WorkerError("The board did not report what it generated.")
