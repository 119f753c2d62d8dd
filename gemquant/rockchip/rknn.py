"""Decoder blocks in rknn-toolkit2's simulator, a second opinion on int8.

The simulator quantizes norms and softmax too, and rounds by its own rules: not what RKLLM computes.
Blocks are ONNX files of static shape. The library's layer is traced with its mask and rotary tables
as constants. The mask adds the mildest of MASKS that leaves the layer's output as it is, instead of
the type's least number: an int8 range then still resolves the scores (measured: 19 dB with −60
against 3 dB with −10000).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from gemquant.calibration.stream import embed_windows, layer_weights
from gemquant.core.progress import Progress
from gemquant.errors import RuntimeMissingError, UnsupportedError, UsageError
from gemquant.formats.checkpoint import Checkpoint
from gemquant.models.architecture import layer_parameters
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import layer_prefix
from gemquant.numerics.precision import fast_products
from gemquant.rockchip.programs import PROGRAMS
from gemquant.runtimes.worker import Interpreter, Limits, Tool, run_tool

if TYPE_CHECKING:
    from torch import Tensor

    from gemquant.formats.checkpoint import Checkpoint

MASKS = (-60.0, -120.0, -250.0, -500.0, -1000.0, -10000.0)
SAME = 1e-4
"""Norm of the difference, as a share of the output's, that a mask may make: 80 dB."""

OPSET = 17


@dataclass(frozen=True)
class BlockFiles:
    """One block on disk. dataset: a list of inputs to calibrate with, one file a line. mask: what
    is added to the scores of positions that are not attended to.
    """

    layer: int
    mask: float
    model: Path
    dataset: Path
    input: Path
    expected: Path


class _Traceable(nn.Module):
    """A layer whose only input is its hidden states."""

    def __init__(self, layer: nn.Module, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer = layer
        self.arguments = arguments

    def forward(self, hidden: Tensor) -> Tensor:
        """(1, tokens, hidden) to the same."""
        output: Tensor = self.layer(hidden, **self.arguments)
        return output


@fast_products()
def write_blocks(
    checkpoint: Checkpoint,
    layers: Sequence[int],
    *,
    calibration: Tensor,
    compared: Tensor,
    folder: Path,
    progress: Progress,
) -> list[BlockFiles]:
    """Carry windows through the model and write the chosen layers as they pass.

    calibration: token ids (windows, tokens). compared: (1, tokens), what the block is judged by.
    RuntimeMissingError without the package onnx.
    """
    _require_onnx()
    skeleton = Skeleton(checkpoint.config, eager=True)
    stream = embed_windows(skeleton, checkpoint, torch.cat([calibration, compared]))
    written = []
    last = max(layers)
    progress.start("running the original", last + 1)
    for index in range(last + 1):
        names = layer_parameters(checkpoint.config, index)
        weights = layer_weights(checkpoint, layer_prefix(index), names, skeleton)
        before = stream.hidden.clone() if index in layers else None
        stream.advance(index, weights)
        if before is not None:
            layer = folder / str(index)
            written.append(_write(layer, index, skeleton, weights, before, stream.hidden[-1:]))
        progress.advance("running the original")
    return written


def traceable(
    skeleton: Skeleton, index: int, weights: Mapping[str, Tensor], *, tokens: int, mask: float
) -> nn.Module:
    """One layer with weights, constants for all its other arguments, and a mask of that value."""
    arguments = dict(skeleton.arguments(index, tokens))
    arguments["attention_mask"] = torch.where(arguments["attention_mask"] < 0, mask, 0.0)
    layer = copy.deepcopy(skeleton.module(index)).to_empty(device="cpu")
    layer.load_state_dict(dict(weights), assign=True)
    return _Traceable(layer, arguments).eval()


def _mildest(
    skeleton: Skeleton,
    index: int,
    weights: Mapping[str, Tensor],
    given: Tensor,
    expected: Tensor,
) -> tuple[float, nn.Module]:
    """The first mask that changes nothing, and the layer with it."""
    for mask in MASKS:
        block = traceable(skeleton, index, weights, tokens=given.shape[1], mask=mask)
        with torch.no_grad():
            difference = (block(given) - expected).norm()
        if difference < SAME * expected.norm():
            return mask, block
    raise UnsupportedError(
        f"layer {index}: scores are so large that a mask of {MASKS[-1]:g} lets some through."
    )


def _write(
    folder: Path,
    index: int,
    skeleton: Skeleton,
    weights: Mapping[str, Tensor],
    before: Tensor,
    expected: Tensor,
) -> BlockFiles:
    mask, block = _mildest(skeleton, index, weights, before[-1:], expected)
    folder.mkdir(parents=True)
    model, dataset = folder / "block.onnx", folder / "dataset.txt"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of every shape that it takes for constant
        torch.onnx.export(
            block,
            (before[-1:],),
            str(model),
            input_names=["hidden"],
            output_names=["output"],
            opset_version=OPSET,
            dynamo=False,
        )
    files = [folder / f"{number}.npy" for number in range(len(before))]
    for file, hidden in zip(files, before, strict=True):
        np.save(file, hidden[None].numpy())
    dataset.write_text("".join(f"{file}\n" for file in files[:-1]))
    np.save(folder / "expected.npy", expected.numpy())
    return BlockFiles(index, mask, model, dataset, files[-1], folder / "expected.npy")


def _require_onnx() -> None:
    try:
        metadata.version("onnx")
    except metadata.PackageNotFoundError:
        raise RuntimeMissingError(
            "onnx: not installed; blocks are written with it.",
            hint="Run: pip install 'gemquant[onnx]'",
        ) from None


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
    from gemquant.rockchip.rknn import write_blocks

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
