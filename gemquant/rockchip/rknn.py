"""Level ``rknn-sim``: decoder blocks in rknn-toolkit2's simulator, a second opinion on int8.

It quantizes norms and softmax too, and rounds by rules of its own: not what RKLLM computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from gemquant.core.progress import Progress
from gemquant.errors import RuntimeMissingError, UsageError
from gemquant.rockchip.programs import PROGRAMS
from gemquant.runtimes.worker import Interpreter, Limits, Tool, run_tool

if TYPE_CHECKING:
    from torch import Tensor

    from gemquant.formats.checkpoint import Checkpoint

TOOLKIT = "rknn-toolkit2"
PROGRAM = PROGRAMS / "rknn_simulate.py"
NOTE = "A second opinion on int8, not RKLLM: this simulator quantizes norms and softmax too."
INSTALL = """\
python3.11 -m venv rknn-venv
    rknn-venv/bin/pip install torch numpy==1.26.4 onnx==1.18.0 protobuf==4.25.4 'setuptools<80'
    rknn-venv/bin/pip install psutil ruamel.yaml scipy tqdm fast-histogram opencv-python-headless
    rknn-venv/bin/pip install --no-deps rknn-toolkit2==2.5.0"""


class _Answer(BaseModel):
    """Base of what the program answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Ratios(_Answer):
    """Signal to noise in decibels: of the block's output, and of what it adds to its input.

    None where the simulator's output is not finite.
    """

    output_db: float | None
    update_db: float | None


class SimulatedBlock(_Answer):
    """One decoder layer against its float32 self. mask: added where nothing is attended to."""

    layer: int
    mask: float
    float16: Ratios
    int8: Ratios


class Simulation(_Answer):
    """All of it, with what computed it."""

    blocks: tuple[SimulatedBlock, ...]
    toolkit: str
    python: str


def rknn_interpreter(python: str | None) -> Interpreter:
    """Ask the Python that was named; RuntimeMissingError where it has no rknn-toolkit2."""
    if python is None:
        raise UsageError(
            f"--python: missing; {TOOLKIT} needs an environment of its own.", hint=INSTALL
        )
    found = Interpreter.ask(python, (TOOLKIT,))
    if found.packages[TOOLKIT] is None:
        raise RuntimeMissingError(
            f"--python {python}: {TOOLKIT} is not installed in it.", hint=INSTALL
        )
    return found


def chosen_layers(asked: str | None, count: int) -> list[int]:
    """Read a list of layers; the first, the middle and the last where none was given.

    >>> chosen_layers(None, 26), chosen_layers("3,0", 26)
    ([0, 13, 25], [0, 3])
    """
    if asked is None:
        return sorted({0, count // 2, count - 1})
    parts = [part.strip() for part in asked.split(",")]
    wrong = [part for part in parts if not part.isdecimal() or int(part) >= count]
    if wrong:
        raise UsageError(
            f"--layers {asked}: {', '.join(wrong) or 'nothing'} is none of 0 to {count - 1}.",
            hint="As in: --layers 0,12,25",
        )
    return sorted({int(part) for part in parts})


def simulate(
    checkpoint: Checkpoint,
    layers: Sequence[int],
    *,
    platform: str,
    calibration: Tensor,
    compared: Tensor,
    interpreter: Interpreter,
    limits: Limits,
    threads: int,
    progress: Progress,
) -> Simulation:
    """Write the blocks, run the simulator on each, return what it lost; nothing stays on disk."""
    from gemquant.rockchip.rknn_blocks import write_blocks

    with TemporaryDirectory(prefix="gemquant-rknn.") as scratch:
        blocks = write_blocks(
            checkpoint,
            layers,
            calibration=calibration,
            compared=compared,
            folder=Path(scratch) / "blocks",
            progress=progress,
        )
        job = {
            "platform": platform,
            "blocks": [
                {
                    key: str(value) if isinstance(value, Path) else value
                    for key, value in asdict(block).items()
                }
                for block in blocks
            ],
        }
        return run_tool(
            Tool(TOOLKIT, PROGRAM),
            job,
            Simulation,
            interpreter=interpreter,
            limits=limits,
            folder=Path(scratch),
            threads=threads,
            progress=progress,
        )
