"""Fits speed and memory of Rockchip's NPUs to the vendor's own measurements, Gemma 2 left out.

Source: https://github.com/airockchip/rknn-llm, benchmark.md of release 1.3.0 (maximum clocks, 128
tokens in, 64 out, optimization level 0); shapes from each model's config.json on the Hub. Left out
are models that are no plain decoders (RWKV, MiniCPM3, mixtures of experts, Gemma 3n, multimodal).

A token takes read bytes / bandwidth + a constant. Memory is linears and head in the dtype, with a
float32 scale a row or a group, 192 tokens of cache, a constant, and so many bytes for each token of
the vocabulary. Both by least squares of relative errors.

Run: python tests/golden/make_rockchip.py > tests/golden/rockchip.json
"""

from __future__ import annotations

import json
import sys

import numpy as np

# layers, hidden, intermediate, heads, key-value heads, head_dim, vocabulary
SHAPES = {
    "Qwen2 0.5B": (24, 896, 4864, 14, 2, 64, 151936),
    "MiniCPM4 0.5B": (24, 1024, 4096, 16, 2, 64, 73448),
    "Qwen3 0.6B": (28, 1024, 3072, 16, 8, 128, 151936),
    "TinyLLAMA 1.1B": (22, 2048, 5632, 32, 4, 64, 32000),
    "Qwen2.5 1.5B": (28, 1536, 8960, 12, 2, 128, 151936),
    "InternLM2 1.8B": (24, 2048, 8192, 16, 8, 128, 92544),
    "Phi3 3.8B": (32, 3072, 8192, 32, 32, 96, 32064),
    "ChatGLM3 6B": (28, 4096, 13696, 32, 2, 128, 65024),
    "Gemma2 2B": (26, 2304, 9216, 8, 4, 256, 256000),
}

# tokens a second, MB of memory
MEASURED = {
    "rk3588 w8a8": {
        "Qwen2 0.5B": (41.58, 669.56),
        "MiniCPM4 0.5B": (45.34, 534.82),
        "Qwen3 0.6B": (32.91, 791.11),
        "TinyLLAMA 1.1B": (24.43, 1093.66),
        "Qwen2.5 1.5B": (16.69, 1689.21),
        "InternLM2 1.8B": (15.45, 1775.56),
        "Phi3 3.8B": (7.45, 3758.34),
        "ChatGLM3 6B": (4.98, 5985.99),
        "Gemma2 2B": (10.37, 2779.22),
    },
    "rk3576 w8a8": {
        "Qwen2 0.5B": (21.73, 678.43),
        "MiniCPM4 0.5B": (23.28, 541.17),
        "Qwen3 0.6B": (17.17, 796.26),
        "TinyLLAMA 1.1B": (12.18, 1092.87),
        "InternLM2 1.8B": (7.86, 1782.05),
        "Phi3 3.8B": (3.74, 3767.28),
        "ChatGLM3 6B": (2.48, 5967.63),
        "Gemma2 2B": (5.24, 2784.78),
    },
    "rk3576 w4a16": {
        "Qwen2 0.5B": (32.56, 443.44),
        "MiniCPM4 0.5B": (34.57, 334.68),
        "Qwen3 0.6B": (24.85, 512.71),
        "TinyLLAMA 1.1B": (19.71, 601.09),
        "InternLM2 1.8B": (13.55, 975.04),
        "Phi3 3.8B": (6.58, 1995.78),
        "ChatGLM3 6B": (4.63, 3023.39),
        "Gemma2 2B": (9.14, 1542.14),
    },
    "rk3576 w4a16_g128": {
        "Qwen2 0.5B": (30.33, 463.23),
        "MiniCPM4 0.5B": (32.66, 374.36),
        "Qwen3 0.6B": (23.48, 545.35),
        "TinyLLAMA 1.1B": (18.08, 690.76),
        "InternLM2 1.8B": (12.05, 1070.44),
        "Phi3 3.8B": (6.06, 2151.47),
        "ChatGLM3 6B": (4.14, 3253.12),
        "Gemma2 2B": (8.27, 1629.59),
    },
}
HELD_OUT = "Gemma2 2B"
TOKENS = 192
MIB = 1 << 20


def read_bytes(shape: tuple[int, ...], bits: int, group: int | None) -> float:
    layers, hidden, inner, heads, kv, head_dim, vocabulary = shape
    rows = layers * (2 * inner + 2 * hidden + head_dim * (heads + 2 * kv))
    weights = layers * hidden * (2 * head_dim * (heads + kv) + 3 * inner)
    table = vocabulary * hidden
    scales = rows + vocabulary if group is None else (weights + table) / group
    return (weights + table) * bits / 8 + 4 * scales


def cache(shape: tuple[int, ...]) -> int:
    layers, _, _, _, kv, head_dim, _ = shape
    return TOKENS * layers * kv * head_dim * 4


def fit(columns: list[tuple[float, float]], values: list[float]) -> tuple[float, float]:
    design, target = np.array(columns), np.array(values)
    solved = np.linalg.lstsq(design / target[:, None], np.ones(len(target)), rcond=None)[0]
    return float(solved[0]), float(solved[1])


def main() -> None:
    found = {}
    for name, table in MEASURED.items():
        bits = 4 if "w4" in name else 8
        group = 128 if "g128" in name else None
        size = {model: read_bytes(SHAPES[model], bits, group) for model in table}
        models = [model for model in table if model != HELD_OUT]
        base, per_gb = fit(
            [(1.0, size[m] / 1e9) for m in models], [1e3 / table[m][0] for m in models]
        )
        # Relative to the whole of the memory, not to what is left of it.
        left = [table[m][1] * MIB - size[m] - cache(SHAPES[m]) for m in models]
        weight = np.array([1 / table[m][1] for m in models])
        design = np.array([(MIB, SHAPES[m][-1]) for m in models]) * weight[:, None]
        runtime, vocabulary = np.linalg.lstsq(design, np.array(left) * weight, rcond=None)[0]
        predicted = 1e3 / (base + per_gb * size[HELD_OUT] / 1e9)
        memory = (
            size[HELD_OUT]
            + cache(SHAPES[HELD_OUT])
            + runtime * MIB
            + vocabulary * SHAPES[HELD_OUT][-1]
        ) / MIB
        found[name] = {
            "milliseconds_per_token": round(base, 2),
            "gb_per_second": round(1e3 / per_gb, 2),
            "runtime_mib": round(float(runtime), 1),
            "vocabulary_bytes": round(float(vocabulary), 1),
            "gemma2_2b": {
                "tokens_per_second": [table[HELD_OUT][0], round(predicted, 2)],
                "memory_mib": [table[HELD_OUT][1], round(memory, 1)],
            },
            "models": len(models),
        }
    json.dump(found, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
