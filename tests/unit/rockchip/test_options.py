"""What a chip or a release does not take is refused, each with the rule."""

from __future__ import annotations

from typing import Any

import pytest

from gemquant.core.targets import load_target, load_toolkit
from gemquant.models.config import text_config
from gemquant.rockchip.options import (
    RkllmOptions,
    memory_problems,
    option_problems,
    release_problems,
    resolved,
)
from tests.helpers.tiny_gemma import Kind, tiny_config
from tests.unit.rockchip.conftest import Converting


def of(target: str, **options: Any) -> list[str]:
    npu = load_target(target).npu
    assert npu is not None
    return [
        str(problem) for problem in option_problems(resolved(RkllmOptions(**options), npu), npu)
    ]


def config(kind: Kind, **overrides: Any) -> dict[str, Any]:
    return dict(text_config({**tiny_config(kind), **overrides}))


def test_the_targets_own_dtype_and_all_cores_are_the_default() -> None:
    for target, dtype, cores in (("rk3588", "w8a8", 3), ("rk3576", "w4a16", 2)):
        npu = load_target(target).npu
        assert npu is not None
        options = resolved(RkllmOptions(), npu)
        assert (options.quantized_dtype, options.npu_cores) == (dtype, cores)
        assert not list(option_problems(options, npu))


@pytest.mark.parametrize(
    ("target", "options", "complaint"),
    [
        (
            "rk3588",
            {"quantized_dtype": "w4a16"},
            "rk3588 supports w8a8, w8a8_g128, w8a8_g256, w8a8_g512",
        ),
        ("rk3588", {"hybrid_rate": 1.0}, "--hybrid-rate 1: must be at least 0 and below 1."),
        ("rk3588", {"hybrid_rate": -0.1}, "--hybrid-rate -0.1: must be at least 0"),
        ("rk3588", {"npu_cores": 4}, "--npu-cores 4: rk3588 supports 1, 2, 3."),
        ("rk3562", {"npu_cores": 2}, "--npu-cores 2: rk3562 supports 1."),
        ("rk3588", {"max_context": 5000}, "hint: Use --max-context 4992."),
        ("rk3588", {"max_context": 32768}, "hint: Use --max-context 16384."),
        ("rk3588", {"algorithm": "grq"}, "--algorithm grq: rk3588 supports normal for w8a8."),
        (
            "rk3588",
            {"gptq": True},
            "--gptq: needs 8 bits in groups (w8a8_g128, w8a8_g256, w8a8",
        ),
        (
            "rk3588",
            {"gptq": True, "quantized_dtype": "w8a8_g128", "hybrid_rate": 0.5},
            "--gptq with --hybrid-rate 0.5: the toolkit would quantize some layers again.",
        ),
        (
            "rk3562",
            {"quantized_dtype": "w4a8_g32", "hybrid_rate": 0.5},
            "w4a8_g32 does not support --hybrid-rate",
        ),
    ],
)
def test_what_a_chip_does_not_take(target: str, options: dict[str, Any], complaint: str) -> None:
    (problem,) = of(target, **options)
    assert complaint in problem


def test_every_bad_option_is_reported_at_once() -> None:
    bad = {"quantized_dtype": "w4a16", "hybrid_rate": 1.0, "npu_cores": 4, "max_context": 5000}
    assert len(of("rk3588", **bad)) == 4


@pytest.mark.parametrize(
    ("version", "kind", "options", "complaint"),
    [
        ("1.1.4", "gemma3_text", {}, "rkllm-toolkit 1.1.4 does not read gemma3_text."),
        ("1.0.1", "gemma2", {}, "rkllm-toolkit 1.0.1 does not read gemma2."),
        ("1.0.1", "gemma", {"hybrid_rate": 0.5}, "--hybrid-rate 0.5: rkllm-toolkit 1.0.1 has no"),
        ("1.0.1", "gemma", {"npu_cores": 1}, "--npu-cores 1: rkllm-toolkit 1.0.1 has no"),
        ("1.1.4", "gemma", {"max_context": 4096}, "--max-context 4096: rkllm-toolkit 1.1.4 has no"),
        ("1.0.1", "gemma", {"quantized_dtype": "w8a8_g128"}, "1.0.1 has no w8a8_g128."),
        (
            "1.1.4",
            "gemma",
            {"quantized_dtype": "w8a8_g128", "gptq": True},
            "--gptq: rkllm-toolkit 1.1.4 imports 8-bit GPTQ checkpoints with groups of none.",
        ),
    ],
)
def test_what_a_release_does_not_take(
    converting: Converting, version: str, kind: Kind, options: dict[str, Any], complaint: str
) -> None:
    model = config(
        kind, hidden_size=512, head_dim=256, num_attention_heads=2, intermediate_size=512
    )
    (problem,) = release_problems(converting(version, **options), model)
    assert complaint in str(problem)


def test_the_next_release_that_reads_the_model_is_named(converting: Converting) -> None:
    (problem,) = release_problems(converting("1.1.4"), config("gemma3_text"))
    assert problem.hint == "Use rkllm-toolkit 1.2.0 or newer."


def test_of_gemma_4_only_models_with_per_layer_inputs_are_read_by_1_3_0(
    converting: Converting,
) -> None:
    assert list(release_problems(converting("1.3.0"), config("gemma4_e"))) == []
    (older,) = release_problems(converting("1.2.3"), config("gemma4_e"))
    assert str(older) == (
        "rkllm-toolkit 1.2.3 does not read gemma4_text+per-layer-inputs.\n"
        "  hint: Use rkllm-toolkit 1.3.0 or newer."
    )
    kinds: dict[Kind, str] = {
        "gemma4_text": "gemma4_text",
        "gemma4_moe": "gemma4_text+experts",
        "gemma4_unified": "gemma4_unified_text",
    }
    for kind, named in kinds.items():
        (problem,) = release_problems(converting("1.3.0"), config(kind))
        assert str(problem) == f"rkllm-toolkit 1.3.0 does not read {named}."


def test_1_0_1_converts_heads_of_256_that_make_up_the_hidden_size(converting: Converting) -> None:
    problems = [str(p) for p in release_problems(converting("1.0.1"), config("gemma"))]
    size, heads = problems
    assert "whose heads together (256) equal the hidden size (128)." in size
    assert heads == "rkllm-toolkit 1.0.1 converts head sizes 256, not 32."


def test_conversion_beyond_the_hosts_memory_is_refused() -> None:
    toolkit = load_toolkit("rkllm-toolkit")
    (problem,) = memory_problems(toolkit, 9_000_000_000, host_bytes=16 * 10**9)
    assert "converting needs about 45.0 GB of memory; the limit is 16.0 GB." in str(problem)
    assert not list(memory_problems(toolkit, 1_000_000_000, host_bytes=16 * 10**9))
