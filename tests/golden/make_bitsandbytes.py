"""Write bitsandbytes.safetensors: what bitsandbytes makes of weights chosen to be awkward.

Run with torch 2.13.0 and bitsandbytes 0.50.2 on an x86-64 CPU:
python tests/golden/make_bitsandbytes.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

FILE = Path(__file__).parent / "bitsandbytes.safetensors"
BLOCK_SIZES = (64, 128, 256, 1024)


def awkward(rows: int = 24, columns: int = 130) -> Tensor:
    """Zeros, denormals, values on thresholds, one outlier a block, rows that end inside a block."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) / 16
    weight[0] = 0
    weight[1, :64] = 1e-42
    weight[2, :64] = -3e-39
    weight[3] = -0.0
    weight[4, ::64] = 40
    weight[5, 0] = -1e30
    weight[6, ::2] = 1e-7
    for row, values in ((8, nf4_thresholds()), (10, fp4_thresholds())):
        weight[row, 0] = 1  # at the start of a block of 64: 8 · 130 and 10 · 130 are near one
        weight[row, 32 : 32 + 15] = values
    return weight


def nf4_thresholds() -> Tensor:
    import bitsandbytes.functional as bnb

    values = bnb.get_4bit_type("nf4", device="cpu")
    return (values[1:] + values[:-1]) / 2


def fp4_thresholds() -> Tensor:
    import bitsandbytes.functional as bnb

    values = bnb.get_4bit_type("fp4", device="cpu").sort().values
    return (values[1:] + values[:-1]) / 2


def main() -> None:
    import bitsandbytes.functional as bnb

    weight = awkward()
    tensors = {"weight": weight}
    for codes in ("nf4", "fp4"):
        for size in BLOCK_SIZES:
            packed, state = bnb.quantize_4bit(
                weight, blocksize=size, quant_type=codes, compress_statistics=False
            )
            tensors[f"{codes}.{size}.packed"] = packed.flatten()
            tensors[f"{codes}.{size}.scales"] = state.absmax
    # Many small scales, so that more than one of their own blocks exists.
    scales = torch.rand(600, generator=torch.Generator().manual_seed(1)) ** 4
    scales[256:512] = 0
    centred = scales - scales.mean()
    centred[256:512] = 0
    codes, state = bnb.quantize_blockwise(centred, blocksize=256)
    tensors |= {"scales": centred, "scales.codes": codes, "scales.scales": state.absmax}
    rows = weight.clamp(-60000, 60000)
    codes, largest, _ = bnb.int8_vectorwise_quant(rows.half())
    tensors |= {"rows": rows, "rows.codes": codes, "rows.scales": largest}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, FILE)


if __name__ == "__main__":
    main()
