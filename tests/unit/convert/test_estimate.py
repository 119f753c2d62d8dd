"""What fits, how large, how fast: held against the vendor's figures and our exporters' sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemquant.convert.candidates import active_weights, table_size, weight_count
from gemquant.convert.estimate import Estimate, EstimateRequest, estimate
from gemquant.core.targets import load_target
from gemquant.errors import UnsupportedError, UsageError
from gemquant.models.structure import PER_LAYER_TABLE
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


@pytest.mark.parametrize("gemma4", ["E2B"], indirect=True)
@pytest.mark.parametrize(
    ("target", "dtype", "memory", "speed"),
    [
        ("rk3588", "w8a8", 2498.7, 11.12),
        ("rk3576", "w8a8", 2548.73, 5.56),
        ("rk3576", "w4a16", 1463.42, 9.23),
        ("rk3576", "w4a16_g128", 1564.91, 8.27),
    ],
)
def test_gemma_4_e2b_on_npus_is_within_8_and_18_percent_of_the_vendors_figures(
    gemma4: dict[str, Any], target: str, dtype: str, memory: float, speed: float
) -> None:
    row = rows(target, gemma4, BENCHMARK)[f"rkllm {dtype}"]
    assert row.memory_bytes / MIB == pytest.approx(memory, rel=0.08)  # without the table
    assert row.tokens_per_second_full == pytest.approx(speed, rel=0.18)


@pytest.mark.parametrize(
    ("gemma4", "weights", "active", "table", "full", "sliding"),
    [
        # Layers with a cache · 2 · heads · head size · tokens · 2 bytes.
        ("E2B", 4.63, 2.28, 262144 * 8960, 3 * 2 * 512 * 8192, 12 * 2 * 256 * 1024),
        ("E4B", 7.46, 4.64, 262144 * 10752, 4 * 2 * 1024 * 8192, 20 * 2 * 512 * 1024),
        ("12B", 11.91, 11.91, 0, 8 * 2 * 512 * 8192, 40 * 2 * 2048 * 2048),
        ("26B-A4B", 25.23, 3.82, 0, 5 * 2 * 1024 * 8192, 25 * 2 * 2048 * 2048),
        ("31B", 30.70, 30.70, 0, 10 * 2 * 2048 * 8192, 50 * 2 * 4096 * 2048),
    ],
    indirect=["gemma4"],
)
def test_weights_and_both_caches_of_every_gemma_4(
    gemma4: dict[str, Any], weights: float, active: float, table: int, full: int, sliding: int
) -> None:
    assert weight_count(gemma4) / 1e9 == pytest.approx(weights, abs=0.005)
    assert active_weights(gemma4) / 1e9 == pytest.approx(active, abs=0.005)
    assert table_size(gemma4, PER_LAYER_TABLE) == table
    row = rows("cpu", gemma4, EstimateRequest(None, 4096))["gguf Q4_K_M"]
    assert (row.full_cache_bytes, row.cache_bytes) == (full, full + sliding)


@pytest.mark.parametrize("gemma4", ["E2B"], indirect=True)
def test_the_table_of_per_layer_inputs_is_in_memory_and_read_by_rows(
    gemma4: dict[str, Any],
) -> None:
    found = rows("mps", gemma4, BENCHMARK)
    for scheme, table in (("gguf Q4_K_M", 2348810240 * 17 // 16), ("mlx w4-g64", 2 * 2348810240)):
        made = found[scheme].candidate
        assert made.table_bytes == table
        assert made.resident_bytes == made.file_bytes
        assert made.token_bytes == pytest.approx(made.file_bytes - table, rel=1e-4)


@pytest.mark.parametrize("gemma4", ["26B-A4B"], indirect=True)
def test_all_experts_are_in_memory_and_a_token_reads_8_of_128(gemma4: dict[str, Any]) -> None:
    found = rows("cuda", gemma4, BENCHMARK)
    plain, packed = found["gguf BF16"].candidate, found["compressed-tensors w4-g64"].candidate
    folder = found["safetensors bfloat16"].candidate
    assert plain.resident_bytes == pytest.approx(2 * 25.23e9, rel=1e-3)
    assert plain.token_bytes == pytest.approx(2 * 3.82e9, rel=5e-3)
    assert folder.token_bytes == pytest.approx(2 * 3.82e9, rel=2e-3)
    # 120 of 128 experts of 30 layers, 4.25 bits a weight.
    unread = 120 * 30 * 3 * 704 * 2816 * 4.25 / 8
    assert packed.token_bytes == pytest.approx(packed.file_bytes - unread, rel=5e-3)
    assert packed.command == "gemquant awq MODEL --bits 4 --group-size 64 --symmetric"


@pytest.mark.parametrize("gemma4", ["31B"], indirect=True)
def test_what_no_release_of_a_toolkit_reads_is_refused(gemma4: dict[str, Any]) -> None:
    made, refused = estimate(load_target("rk3588"), gemma4, BENCHMARK)
    assert not made
    assert refused[0].refused == "no version of rkllm-toolkit converts gemma4_text so"


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
