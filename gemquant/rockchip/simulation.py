"""Level ``vendor-sim``: the toolkit's simulator predicts the evaluation windows.

Logits arrive in files of a few positions each. The program waits while some are unread, and each is
removed once scored, so neither memory nor disk use grows with the number of windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemquant.core.artifact.evaluation import LevelEvaluation
from gemquant.core.protocols import Progress
from gemquant.errors import WorkerError

if TYPE_CHECKING:
    from torch import Tensor

    from gemquant.core.targets import ToolkitVersion
    from gemquant.measure.quality.runtime_logits import RuntimeLogits

FOLDER, TASK = "logits", "simulating"
CHUNK_BYTES = 64_000_000
HEADER_BYTES = 1024
WAYS = {
    "get_logits": "get_logits, the vendor's simulator",
    "evaluator": "its Evaluator: int8 rows, dynamically quantized activations, head included",
}


def simulation_job(release: ToolkitVersion, expected: RuntimeLogits) -> dict[str, Any]:
    """The simulation part of the job: method, windows, positions per file."""
    return {
        "way": release.simulator,
        "windows": expected.windows.tolist(),
        "positions": max(1, CHUNK_BYTES // (4 * expected.vocabulary)),
        "folder": FOLDER,
    }


def certificate(toolkit: str, release: ToolkitVersion, scored: RuntimeLogits) -> LevelEvaluation:
    """The certificate of the simulator's predictions."""
    assert release.simulator is not None
    runtime = f"{toolkit} {release.version}, {WAYS[release.simulator]}"
    return LevelEvaluation(level="vendor-sim", runtime=runtime, slices=scored.results())


@dataclass
class LogitsScorer:
    """Progress that scores each file of logits when the program reports it."""

    progress: Progress
    folder: Path
    expected: RuntimeLogits
    number: int = 0

    def start(self, task: str, total: int) -> None:
        """Forward."""
        self.progress.start(task, total)

    def advance(self, task: str, amount: int = 1) -> None:
        """Score the files that were written."""
        if task == TASK:
            for _ in range(amount):
                path = self.folder / f"{self.number}.npy"
                self.expected.add(_read(path, self.expected.vocabulary))
                path.unlink()
                self.number += 1
        self.progress.advance(task, amount)

    def note(self, text: str) -> None:
        """Forward."""
        self.progress.note(text)


def _read(path: Path, vocabulary: int) -> Tensor:
    """Logits of one file, (positions, vocabulary) float32."""
    import numpy as np
    import torch

    limit = max(CHUNK_BYTES, 4 * vocabulary) + HEADER_BYTES
    if path.is_symlink() or not path.is_file() or path.stat().st_size > limit:
        raise WorkerError(f"{path.name}: missing, or larger than announced.")
    try:
        logits = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise WorkerError(f"{path.name}: not logits: {error}.") from None
    if logits.dtype != np.float32:
        raise WorkerError(f"{path.name}: logits in {logits.dtype}, not float32.")
    return torch.from_numpy(logits)
