"""What fits, how large, how fast: held against the vendor's figures and our exporters' sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemquant.convert.estimate import Estimate, EstimateRequest, estimate
from gemquant.core.targets import load_target
from gemquant.errors import UnsupportedError, UsageError
from gemquant.runtimes.chat.presets import kv_cache_bytes

FITTED = json.loads((Path(__file__).parents[2] / "golden" / "rockchip.json").read_text())
MIB = 1 << 20
BENCHMARK = EstimateRequest(memory_bytes=8 * 10**9, context=192)


def rows(target: str, config: dict[str, Any], request: EstimateRequest) -> dict[str, Estimate]:
    made, _ = estimate(load_target(target), config, request)
    return {f"{row.candidate.container} {row.candidate.scheme}": row for row in made}


# The vendor measured Gemma 2 2B; the constants were fitted to other models alone.


def test_gemma_2_2b_on_rk3588_is_within_15_percent_of_the_vendors_figures(
    gemma2_2b: dict[str, Any],
) -> None:
    row = rows("rk3588", gemma2_2b, BENCHMARK)["rkllm w8a8"]
    assert row.memory_bytes / MIB == pytest.approx(2779, rel=0.15)
    assert row.tokens_per_second_full == pytest.approx(10.37, rel=0.15)


@pytest.mark.parametrize(
    ("dtype", "memory", "speed"),
    [("w8a8", 2784.78, 5.24), ("w4a16", 1542.14, 9.14), ("w4a16_g128", 1629.59, 8.27)],
)
def test_gemma_2_2b_on_rk3576_is_within_5_percent_of_the_vendors_figures(
    gemma2_2b: dict[str, Any], dtype: str, memory: float, speed: float
) -> None:
    row = rows("rk3576", gemma2_2b, BENCHMARK)[f"rkllm {dtype}"]
    assert row.memory_bytes / MIB == pytest.approx(memory, rel=0.05)
    assert row.tokens_per_second_full == pytest.approx(speed, rel=0.05)


@pytest.mark.parametrize("name", FITTED)
def test_the_targets_hold_the_constants_that_were_fitted(name: str) -> None:
    platform, dtype = name.split()
    target = load_target(platform)
    (speed,) = (s for s in target.speeds if not s.schemes or dtype in s.schemes)
    assert speed.gb_per_second == FITTED[name]["gb_per_second"]
    assert speed.milliseconds_per_token == FITTED[name]["milliseconds_per_token"]
    if dtype == "w8a8":
        assert target.footprint is not None
        assert target.footprint.runtime_mib == FITTED[name]["runtime_mib"]
        assert target.footprint.vocabulary_bytes == FITTED[name]["vocabulary_bytes"]


def test_sliding_layers_are_counted_at_their_window_where_the_runtime_forgets_the_rest(
    gemma3_1b: dict[str, Any],
) -> None:
    # 22 layers of 512 tokens and 4 of 4096; 2 · 1 head · 256 · 2 bytes a token and layer.
    assert kv_cache_bytes(gemma3_1b, tokens=4096) == (22 * 512 + 4 * 4096) * 1024
    assert kv_cache_bytes(gemma3_1b, tokens=4096, sliding=False) == 26 * 4096 * 1024
    assert kv_cache_bytes(gemma3_1b, tokens=100) == 26 * 100 * 1024


def test_what_does_not_fit_says_by_how_much(gemma2_2b: dict[str, Any]) -> None:
    row = rows("rk3588", gemma2_2b, EstimateRequest(2 * 10**9, 4096))["rkllm w8a8"]
    assert not row.fits
    assert row.spare_bytes == 2 * 10**9 - row.memory_bytes
    # 2.61 billion weights in 8 bits, and 26 layers · 4096 tokens · 4096 bytes of cache.
    assert row.cache_bytes == 436207616
    assert row.candidate.resident_bytes == pytest.approx(2.614e9 + 0.009e9, rel=0.002)


def test_a_gguf_is_as_large_as_llama_cpp_makes_it(gemma2_2b: dict[str, Any]) -> None:
    found = rows("cpu", gemma2_2b, BENCHMARK)
    # google/gemma-2-2b as published by llama.cpp users: 1.71 GB and 2.78 GB.
    assert found["gguf Q4_K_M"].candidate.file_bytes == pytest.approx(1.71e9, rel=0.01)
    assert found["gguf Q8_0"].candidate.file_bytes == pytest.approx(2.78e9, rel=0.01)


def test_a_runtime_that_decompresses_takes_the_memory_of_the_original(
    gemma2_2b: dict[str, Any],
) -> None:
    on_cpu = rows("cpu", gemma2_2b, BENCHMARK)["compressed-tensors w4-g128"]
    assert on_cpu.candidate.file_bytes == pytest.approx(2.23e9, rel=0.01)
    assert on_cpu.candidate.resident_bytes == 2 * 2614341888
    on_gpu = rows("cuda", gemma2_2b, BENCHMARK)["compressed-tensors w4-g128"]
    assert on_gpu.candidate.resident_bytes == on_gpu.candidate.file_bytes


def test_groups_that_do_not_divide_the_linears_are_refused_with_the_reason(
    gemma2_2b: dict[str, Any],
) -> None:
    _, refused = estimate(load_target("rk3588"), gemma2_2b, BENCHMARK)
    assert [(each.scheme, each.refused) for each in refused] == [
        ("w8a8_g512", "self_attn.q_proj has 2304 inputs, not a multiple of 512")
    ]


def test_the_oldest_toolkit_that_reads_the_generation_is_named(
    gemma2_2b: dict[str, Any], gemma3_1b: dict[str, Any]
) -> None:
    for config, oldest in ((gemma2_2b, "1.1.0"), (gemma3_1b, "1.2.0")):
        row = rows("rk3588", config, BENCHMARK)["rkllm w8a8"]
        assert row.candidate.requires[0] == f"rkllm-toolkit>={oldest}"
        assert row.candidate.requires[2] == "NPU driver>=0.9.8"


def test_a_bandwidth_of_the_users_own_gives_a_bound(gemma2_2b: dict[str, Any]) -> None:
    row = rows("cpu", gemma2_2b, EstimateRequest(8 * 10**9, 1, gb_per_second=17.0))["gguf Q4_0"]
    assert row.speed.basis == "bound"
    assert row.tokens_per_second == pytest.approx(17e9 / row.candidate.token_bytes)


def test_an_unknown_device_is_refused_with_those_that_are_known(
    gemma2_2b: dict[str, Any],
) -> None:
    request = EstimateRequest(8 * 10**9, 1, device="RTX 9999")
    with pytest.raises(UsageError, match="--device-model RTX 9999: not one of RTX 3060"):
        estimate(load_target("cuda"), gemma2_2b, request)


def test_a_target_without_figures_is_refused(gemma2_2b: dict[str, Any]) -> None:
    target = load_target("cpu").model_copy(update={"footprint": None})
    with pytest.raises(UnsupportedError, match="target cpu says nothing of memory and speed"):
        estimate(target, gemma2_2b, BENCHMARK)
