"""Pack small integers into 32-bit words, as the runtimes' kernels read them.

This module only moves bits: scales, zero points and rounding belong to
``numerics.affine``. Words are little-endian, as every supported host is.
"""

from __future__ import annotations

import torch
from torch import Tensor

AWQ_GEMM_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble i of a word holds column 8 c + AWQ_GEMM_ORDER[i].

The kernel unpacks two nibbles at once into the halves of a register; this order leaves the eight
columns in sequence. Source: AutoAWQ ``awq/utils/packing_utils.py``.
"""

_AWQ_GEMM_INVERSE = tuple(AWQ_GEMM_ORDER.index(i) for i in range(8))


def packed_width(count: int, bits: int) -> int:
    """Return how many 32-bit words hold ``count`` values of ``bits`` bits, without gaps."""
    return -(-count * bits // 32)


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack each row into words, low bits first, without gaps: value i starts at bit i · bits.

    values: (rows, n) uint8 below 2**bits, 1 ≤ bits ≤ 8.
    Returns (rows, ceil(n · bits / 32)) int32; the last word is filled up with zeros. Where bits
    does not divide 32 a value may straddle two words.
    """
    rows, count = values.shape
    per_word_group = 32 if 32 % bits else 32 // bits
    padding = -count % per_word_group
    if padding:
        values = torch.nn.functional.pad(values, (0, padding))
    words = reinterpreted(_to_bytes(values, bits), torch.int32).view(rows, -1)
    return words[:, : packed_width(count, bits)].contiguous()


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """Undo pack_bits: (rows, ceil(count · bits / 32)) int32 to (rows, count) uint8."""
    octets = reinterpreted(words, torch.uint8).view(words.shape[0], -1)
    if bits == 8:
        return octets[:, :count].contiguous()
    if bits == 4:
        pairs = torch.stack((octets & 0xF, octets >> 4), dim=-1)
        return pairs.view(words.shape[0], -1)[:, :count].contiguous()
    padding = -octets.shape[1] % bits
    octets = torch.nn.functional.pad(octets, (0, padding)).view(words.shape[0], -1, bits)
    lanes = torch.zeros(octets.shape[:2], dtype=torch.int64, device=words.device)
    for i in range(bits):
        lanes |= octets[..., i].to(torch.int64) << (8 * i)
    values = [((lanes >> (bits * i)) & (2**bits - 1)).to(torch.uint8) for i in range(8)]
    return torch.stack(values, dim=-1).view(words.shape[0], -1)[:, :count].contiguous()


def pack_awq_gemm(values: Tensor) -> Tensor:
    """Pack 4-bit codes or zero points for AWQ's GEMM kernels, transposed.

    values: (out, n) uint8 below 16, out divisible by 8; n is the number of input channels for
        codes, of groups for zero points.
    Returns (n, out / 8) int32.
    """
    out, count = values.shape
    words = values.t().reshape(count, out // 8, 8)[..., list(AWQ_GEMM_ORDER)]
    return pack_bits(words.reshape(count, out), 4)


def unpack_awq_gemm(words: Tensor) -> Tensor:
    """Undo pack_awq_gemm: (n, out / 8) int32 to (out, n) uint8."""
    count, width = words.shape
    nibbles = unpack_bits(words, 4, 8 * width).view(count, width, 8)
    return nibbles[..., list(_AWQ_GEMM_INVERSE)].reshape(count, 8 * width).t().contiguous()


def _to_bytes(values: Tensor, bits: int) -> Tensor:
    """Pack (rows, n) into (rows, n · bits / 8) uint8; eight values fill ``bits`` bytes."""
    if bits == 8:
        return values
    if bits == 4:
        return values[:, 0::2] | (values[:, 1::2] << 4)
    eights = values.reshape(values.shape[0], -1, 8)
    lanes = torch.zeros(eights.shape[:2], dtype=torch.int64, device=values.device)
    for i in range(8):
        lanes |= eights[..., i].to(torch.int64) << (bits * i)
    octets = lanes.view(torch.uint8).view(*eights.shape)[..., :bits]
    return octets.contiguous().view(values.shape[0], -1)


def reinterpreted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Read a tensor's bytes, row after row, as another type, in one dimension.

    torch asks for a unit stride and an aligned offset even where a dimension of size one makes
    them meaningless; a copy settles both.
    """
    flat = tensor.reshape(-1)
    if flat.stride(0) != 1 or flat.storage_offset() * flat.element_size() % dtype.itemsize:
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(dtype)
