"""compressed-tensors ``pack-quantized``, read: any width to 8 bits, safetensors.

A Linear(in, out) is ``weight_packed`` int32 (out, ceil(in · bits / 32)), ``weight_scale``
(out, groups), ``weight_shape`` int64 (2) and, unless symmetric, ``weight_zero_point`` int32
(ceil(out · bits / 32), groups), packed down the rows. The library subtracts 2**(bits − 1) from
codes and zero points when it unpacks both, so the unsigned ones are stored as they are.

Source: compressed-tensors 0.20 ``compressors/pack_quantized/``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gemquant.core.scheme import PER_CHANNEL, describe
from gemquant.core.weights import AffineScheme, AffineWeight
from gemquant.errors import CheckpointError, ProblemCollector, UnsupportedError, listed
from gemquant.formats.safetensors_reader import SafetensorsFiles
from gemquant.numerics.packing import packed_width, unpack_bits

FORMAT = "pack-quantized"
PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"
ZERO_POINT, ORDER = "weight_zero_point", "weight_g_idx"
_SUFFIXES = {PACKED, SCALE, SHAPE, ZERO_POINT, ORDER}
_SCALE_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_ROWS_AT_ONCE = 32
"""Zero points of so many rows fill whole words, whatever their width."""


def stored_shapes(scheme: AffineScheme, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of a matrix's tensors, by suffix; a zero point only where it is not the middle."""
    rows, columns = shape
    groups = scheme.groups(columns)
    shapes: dict[str, tuple[int, ...]] = {
        PACKED: (rows, packed_width(columns, scheme.bits)),
        SCALE: (rows, groups),
        SHAPE: (2,),
    }
    if not scheme.symmetric:
        shapes[ZERO_POINT] = (packed_width(rows, scheme.bits), groups)
    return shapes


def group_scheme(weights: Mapping[str, Any]) -> AffineScheme:
    """The scheme that the ``weights`` of a group of ``quantization_config`` describe."""
    size = weights["group_size"] if weights["strategy"] == "group" else PER_CHANNEL
    return AffineScheme(weights["num_bits"], size, weights["symmetric"])


def unpacked(
    scheme: AffineScheme, columns: int, packed: Tensor, scales: Tensor, zero_points: Tensor | None
) -> AffineWeight:
    """Some rows from their words; zero_points: (rows, groups) uint8, None for the middle."""
    if zero_points is None:
        zero_points = torch.full(scales.shape, 2 ** (scheme.bits - 1), dtype=torch.uint8)
    return AffineWeight(scheme, unpack_bits(packed, scheme.bits, columns), scales, zero_points)


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix of a checkpoint. stored: names of its tensors, by suffix."""

    scheme: AffineScheme
    shape: tuple[int, int]
    stored: Mapping[str, str]

    def rows(self, files: SafetensorsFiles, start: int, stop: int) -> AffineWeight:
        """Rows ``start`` to ``stop`` as codes and scales."""
        start, stop = max(start, 0), min(stop, self.shape[0])
        scale = self.stored[SCALE]
        return unpacked(
            self.scheme,
            self.shape[1],
            files.read(self.stored[PACKED], start, stop, torch.int32),
            files.read(scale, start, stop, files.stored_dtype(scale)),
            self._zero_points(files, start, stop) if ZERO_POINT in self.stored else None,
        )

    def _zero_points(self, files: SafetensorsFiles, start: int, stop: int) -> Tensor:
        bits, first = self.scheme.bits, start // _ROWS_AT_ONCE
        last = -(-stop // _ROWS_AT_ONCE)
        words = files.read(self.stored[ZERO_POINT], first * bits, last * bits, torch.int32)
        rows = min(last * _ROWS_AT_ONCE, self.shape[0]) - first * _ROWS_AT_ONCE
        skipped = start - first * _ROWS_AT_ONCE
        whole = unpack_bits(words.t().contiguous(), bits, rows).t()
        return whole[skipped : skipped + stop - start].contiguous()


def packed_matrices(
    files: SafetensorsFiles, names: dict[str, str], quantization: Any
) -> dict[str, PackedMatrix]:
    """Take the packed matrices out of ``names`` (text model's name → stored), by weight.

    quantization: ``quantization_config``, whose groups must describe every matrix. Raises what is
    missing, contradictory or not supported, all at once.
    """
    parts: dict[str, dict[str, str]] = {}
    for name in list(names):
        module, _, suffix = name.rpartition(".")
        if suffix in _SUFFIXES:
            parts.setdefault(module, {})[suffix] = names.pop(name)
    if not parts:
        return {}
    schemes = _schemes(quantization)
    problems = ProblemCollector()
    found = {
        f"{module}.weight": problems.attempt(partial(_matrix, files, stored, schemes))
        for module, stored in parts.items()
    }
    problems.refuse()
    return {name: matrix.value for name, matrix in found.items()}


def _schemes(quantization: Any) -> list[AffineScheme]:
    """The schemes of all groups; UnsupportedError for what is not decoded here."""
    try:
        groups = quantization["config_groups"].values()
        formats = [group.get("format") or quantization["format"] for group in groups]
        weights = [group["weights"] for group in groups]
        other = [str(each) for each in formats if each != FORMAT]
        other += [f"{w['type']} codes" for w in weights if w.get("type", "int") != "int"]
        other += [
            f"groups by {w['strategy']}"
            for w in weights
            if w["strategy"] not in {"group", "channel"}
        ]
        other += [key for key in ("transform_config",) if quantization.get(key)]
        schemes = [group_scheme(each) for each in weights]
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"config.json: quantization_config is not that of compressed-tensors: {error!r}."
        ) from None
    if other:
        raise UnsupportedError(
            f"the checkpoint is quantized already, by compressed-tensors as {listed(other)}; read "
            f"are integers in {FORMAT}, in groups or by channel.",
            hint="Start from the original weights, in bfloat16, float16 or float32.",
        )
    for scheme in schemes:
        bits, size = scheme.bits, scheme.group_size
        whole = type(bits) is int and type(size) is int and type(scheme.symmetric) is bool
        if not whole or not 1 <= bits <= 8 or size < PER_CHANNEL or size == 0:
            raise CheckpointError(f"config.json: quantization_config: {scheme} is no scheme.")
    return schemes


def _matrix(
    files: SafetensorsFiles, stored: Mapping[str, str], schemes: Iterable[AffineScheme]
) -> PackedMatrix:
    """One matrix, by the scheme that its tensors' shapes show."""
    module = next(iter(stored.values())).rpartition(".")[0]
    if ORDER in stored:
        raise UnsupportedError(
            f"{stored[ORDER]}: groups of input channels in the order of their activations "
            "(act-order) are not read.",
            hint="Start from the original weights, or quantize them with actorder: static.",
        )
    if missing := [each for each in (PACKED, SCALE, SHAPE) if each not in stored]:
        raise CheckpointError(
            f"{module}: {listed(missing)} of a packed matrix is missing.",
            hint="Download the checkpoint again.",
        )
    shapes = {suffix: files.shapes[name] for suffix, name in stored.items()}
    types = {suffix: files.stored_dtype(name) for suffix, name in stored.items()}
    words = {PACKED: torch.int32, SHAPE: torch.int64, ZERO_POINT: torch.int32}
    odd = [s for s, dtype in words.items() if types.get(s, dtype) != dtype]
    if odd or types[SCALE] not in _SCALE_TYPES or shapes[SHAPE] != (2,):
        raise CheckpointError(f"{module}: types of a packed matrix are wrong: {types}.")
    rows, columns = files.tensor(stored[SHAPE]).tolist()
    for scheme in schemes:
        whole = scheme.group_size == PER_CHANNEL or columns % scheme.group_size == 0
        if whole and rows > 0 < columns and stored_shapes(scheme, (rows, columns)) == shapes:
            return PackedMatrix(scheme, (rows, columns), stored)
    raise CheckpointError(
        f"{module}: {_listed(shapes)} for {(rows, columns)} weights: config.json describes "
        f"{listed([describe(each) for each in schemes])}."
    )


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return listed([f"{suffix} {shape}" for suffix, shape in shapes.items() if suffix != SHAPE])
