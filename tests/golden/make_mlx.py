"""Makes ``mlx.safetensors``: what MLX itself stores for given weights, and decodes again.

Nothing of gemquant runs here. Made with mlx 0.32.4, its CPU build:

    pip install 'mlx[cpu]==0.32.4' numpy safetensors
    python tests/golden/make_mlx.py
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file

OUTPUT = Path(__file__).with_name("mlx.safetensors")
VERSION = "0.32.4"
ROWS, COLUMNS = 16, 128


def weights() -> np.ndarray:
    """Heavy-tailed rows, and rows that try the rule's edges; exact in bfloat16."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    values *= 0.02 * (1 + values**2)
    values[0] = 0
    values[1], values[2] = 3, -3
    values[3], values[4] = np.abs(values[3]) + 1, -np.abs(values[4]) - 1
    values[5] *= 1e-6
    values[6] = np.tile([-1.0, 1.0], COLUMNS // 2)
    values[7] = np.abs(values[7])
    return np.array(mx.array(values).astype(mx.bfloat16).astype(mx.float32))


def main() -> None:
    installed = importlib.metadata.version("mlx")
    if installed != VERSION:
        raise SystemExit(f"mlx {installed} is installed; the golden file is of {VERSION}.")
    given = weights()
    tensors = {"weight": given}
    for bits in (2, 3, 4, 5, 6, 8):
        for group_size in (32, 64, 128):
            case = f"w{bits}g{group_size}"
            stored = mx.quantize(
                mx.array(given).astype(mx.bfloat16), group_size=group_size, bits=bits
            )
            packed, scales, biases = (stored[0], *(part.astype(mx.float32) for part in stored[1:]))
            for name, array in (("weight", packed), ("scales", scales), ("biases", biases)):
                tensors[f"{case}.{name}"] = np.array(array)
            if group_size == 64:
                decoded = mx.dequantize(packed, scales, biases, group_size=64, bits=bits)
                tensors[f"{case}.decoded"] = np.array(decoded)
    save_file(tensors, OUTPUT, metadata={"made_with": f"mlx {VERSION}"})
    OUTPUT.chmod(0o644)


if __name__ == "__main__":
    main()
