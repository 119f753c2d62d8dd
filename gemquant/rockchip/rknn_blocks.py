"""Decoder blocks as ONNX files of static shape, with what goes in and what comes out of each.

The library's own layer is traced, its mask and rotary tables constants. The mask adds the mildest
of MASKS that leaves the layer's output as it is, instead of the type's least number: an int8 range
then still resolves the scores (measured: 19 dB with −60 against 3 dB with −10000).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gemquant.calibration.stream import embed_windows, layer_weights
from gemquant.core.progress import Progress
from gemquant.errors import RuntimeMissingError, UnsupportedError
from gemquant.formats.checkpoint import Checkpoint
from gemquant.models.skeleton import Skeleton
from gemquant.models.structure import layer_parameters, layer_prefix
from gemquant.numerics.precision import fast_products

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
    names, written = layer_parameters(checkpoint.config), []
    last = max(layers)
    progress.start("running the original", last + 1)
    for index in range(last + 1):
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
