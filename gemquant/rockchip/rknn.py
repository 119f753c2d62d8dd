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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gemquant.calibration.stream import embed_windows, stream_layers
from gemquant.calibration.windows import Packer, calibration_windows, evaluation_windows
from gemquant.core.json_document import Record
from gemquant.core.protocols import Progress
from gemquant.core.recipe import DEFAULT_CALIBRATION
from gemquant.core.targets import load_target
from gemquant.errors import ProblemCollector, RuntimeMissingError, UnsupportedError, UsageError
from gemquant.formats.checkpoint import Checkpoint, open_checkpoint
from gemquant.models.architecture import architecture_of
from gemquant.models.chat import ChatTemplate
from gemquant.models.skeleton import Skeleton
from gemquant.numerics.precision import fast_products
from gemquant.rockchip.options import npu_of
from gemquant.rockchip.programs import PROGRAMS
from gemquant.runtimes.worker import Interpreter, Limits, Tool, run_tool

TOOLKIT = "rknn-toolkit2"
NOTE = "A second opinion on int8, not RKLLM: this simulator quantizes norms and softmax too."
INSTALL = """\
python3.11 -m venv rknn-venv
    rknn-venv/bin/pip install torch numpy==1.26.4 onnx==1.18.0 protobuf==4.25.4 'setuptools<80'
    rknn-venv/bin/pip install psutil ruamel.yaml scipy tqdm fast-histogram opencv-python-headless
    rknn-venv/bin/pip install --no-deps rknn-toolkit2==2.5.0"""


@dataclass(frozen=True)
class SimulationRequest:
    """Decoder layers to simulate. layers: numbers separated by commas, None for three of them.

    tokens: of a window. samples: calibration windows. python: has rknn-toolkit2.
    """

    model: str | None
    target: str
    layers: str | None
    tokens: int
    samples: int
    python: str | None


class Ratios(Record):
    """Signal to noise in decibels: of the block's output, and of what it adds to its input.

    None if the simulator's output is not finite.
    """

    output_db: float | None
    update_db: float | None


class SimulatedBlock(Record):
    """One decoder layer compared with itself in float32. mask: added to masked scores."""

    layer: int
    mask: float
    float16: Ratios
    int8: Ratios


class Simulation(Record):
    """All blocks, and the versions that computed them."""

    blocks: tuple[SimulatedBlock, ...]
    toolkit: str
    python: str


def simulate(
    request: SimulationRequest, problems: ProblemCollector, limits: Limits, progress: Progress
) -> Simulation:
    """Check the request, write the blocks, simulate each; nothing stays on disk.

    problems: of the command line; those of the request are raised with them.
    """
    npu = problems.attempt(lambda: npu_of(load_target(request.target)))
    interpreter = problems.attempt(lambda: rknn_interpreter(request.python))
    opened = problems.attempt(lambda: _open(request.model))
    layers = problems.attempt(
        lambda: chosen_layers(request.layers, opened.value.config["num_hidden_layers"])
    )
    windows = problems.attempt(lambda: _windows(request, opened.value))
    problems.refuse()
    calibration, compared = windows.value
    with TemporaryDirectory(prefix="gemquant-rknn.") as scratch:
        blocks = write_blocks(
            opened.value,
            layers.value,
            calibration=calibration,
            compared=compared,
            folder=Path(scratch) / "blocks",
            progress=progress,
        )
        return run_tool(
            Tool(TOOLKIT, PROGRAMS / "rknn_simulate.py"),
            {"platform": npu.value.platform, "blocks": blocks},
            Simulation,
            interpreter=interpreter.value,
            limits=limits,
            folder=Path(scratch),
            threads=1,
            progress=progress,
        )


def rknn_interpreter(python: str | None) -> Interpreter:
    """The named Python; RuntimeMissingError if it has no rknn-toolkit2."""
    if python is None:
        raise UsageError(f"--python: missing; {TOOLKIT} needs its own environment.", hint=INSTALL)
    interpreter = Interpreter.ask(python, (TOOLKIT,))
    if interpreter.packages[TOOLKIT] is None:
        raise RuntimeMissingError(
            f"--python {python}: {TOOLKIT} is not installed in it.", hint=INSTALL
        )
    return interpreter


def chosen_layers(layers: str | None, count: int) -> list[int]:
    """Parse a list of layers; by default the first, the middle and the last.

    >>> chosen_layers(None, 26), chosen_layers("3,0", 26)
    ([0, 13, 25], [0, 3])
    """
    if layers is None:
        return sorted({0, count // 2, count - 1})
    parts = [part.strip() for part in layers.split(",")]
    invalid = [part for part in parts if not part.isdecimal() or int(part) >= count]
    if invalid:
        raise UsageError(
            f"--layers {layers}: {', '.join(invalid) or 'nothing'} is none of 0 to {count - 1}.",
            hint="As in: --layers 0,12,25",
        )
    return sorted({int(part) for part in parts})


def _open(model: str | None) -> Checkpoint:
    if not model:
        raise UsageError("MODEL: missing.", hint="As in: gemquant rknn-sim google/gemma-2-2b")
    return open_checkpoint(model)


def _windows(request: SimulationRequest, checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Calibration windows, and one window of another text to compare."""
    stock = ChatTemplate(architecture_of(checkpoint.config).chat.template("stock"))
    bos = checkpoint.config["bos_token_id"]
    packer = Packer(checkpoint.tokenizer(), request.tokens, bos, stock)
    (compared,) = evaluation_windows(packer, ("english",), 1)
    calibration = calibration_windows(packer, DEFAULT_CALIBRATION, request.samples)
    return calibration.ids, compared.ids


# ---------------------------------------------------------------- blocks


MASKS = (-60.0, -120.0, -250.0, -500.0, -1000.0, -10000.0)
SAME = 1e-4
"""Largest change that a mask may make, relative to the norm of the output: 80 dB."""

OPSET = 17


class _Traceable(nn.Module):
    """A layer whose only input is its hidden states."""

    def __init__(self, layer: nn.Module, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.layer, self.arguments = layer, arguments

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
) -> list[dict[str, Any]]:
    """Stream windows through the model and write the chosen layers.

    calibration: token ids (windows, tokens). compared: (1, tokens), the window to simulate.
    RuntimeMissingError without the package onnx.
    """
    _require_onnx()
    skeleton = Skeleton(checkpoint.config, eager=True)
    stream = embed_windows(skeleton, checkpoint, torch.cat([calibration, compared]))
    written = []
    inputs = stream.hidden.clone() if 0 in layers else None
    count, task = max(layers) + 1, "running the original"
    for index, weights in stream_layers(stream, checkpoint, progress, task, layers=count):
        if inputs is not None:
            outputs = stream.hidden[-1:]
            written.append(_write(folder / str(index), index, skeleton, weights, inputs, outputs))
        inputs = stream.hidden.clone() if index + 1 in layers else None
    return written


def traceable(
    skeleton: Skeleton, index: int, weights: Mapping[str, Tensor], *, tokens: int, mask: float
) -> nn.Module:
    """One layer with its weights, and constants for all other arguments; mask: of that value."""
    arguments = dict(skeleton.arguments(index, tokens))
    arguments["attention_mask"] = torch.where(arguments["attention_mask"] < 0, mask, 0.0)
    layer = copy.deepcopy(skeleton.module(index)).to_empty(device="cpu")
    layer.load_state_dict(dict(weights), assign=True)
    return _Traceable(layer, arguments).eval()


def _mildest(
    skeleton: Skeleton,
    index: int,
    weights: Mapping[str, Tensor],
    hidden: Tensor,
    expected: Tensor,
) -> tuple[float, nn.Module]:
    """The first mask that does not change the output, and the layer with it."""
    for mask in MASKS:
        block = traceable(skeleton, index, weights, tokens=hidden.shape[1], mask=mask)
        with torch.no_grad():
            difference = (block(hidden) - expected).norm()
        if difference < SAME * expected.norm():
            return mask, block
    raise UnsupportedError(f"layer {index}: its scores are too large for a mask of {MASKS[-1]:g}.")


def _write(
    folder: Path,
    index: int,
    skeleton: Skeleton,
    weights: Mapping[str, Tensor],
    before: Tensor,
    expected: Tensor,
) -> dict[str, Any]:
    """Write a block; its layer, the mask that it was traced with, and its files.

    dataset: lists the calibration inputs, one file a line.
    """
    mask, block = _mildest(skeleton, index, weights, before[-1:], expected)
    folder.mkdir(parents=True)
    model, dataset = folder / "block.onnx", folder / "dataset.txt"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of every constant shape
        torch.onnx.export(
            block,
            (before[-1:],),
            str(model),
            input_names=["hidden"],
            output_names=["output"],
            opset_version=OPSET,
            dynamo=False,
        )
    files = [str(folder / f"{number}.npy") for number in range(len(before))]
    for file, hidden in zip(files, before, strict=True):
        np.save(file, hidden[None].numpy())
    dataset.write_text("".join(f"{file}\n" for file in files[:-1]))
    np.save(folder / "expected.npy", expected.numpy())
    paths = {"model": model, "dataset": dataset, "expected": folder / "expected.npy"}
    texts = {name: str(path) for name, path in paths.items()}
    return {"layer": index, "mask": mask, "input": files[-1], **texts}


def _require_onnx() -> None:
    try:
        metadata.version("onnx")
    except metadata.PackageNotFoundError:
        raise RuntimeMissingError(
            "onnx: not installed; it writes the blocks.",
            hint="Run: pip install 'gemquant[onnx]'",
        ) from None
