"""Targets: shipped data is valid, defaults follow the generation and the scheme."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gemquant.convert.plugins import plugins
from gemquant.core.protocols import PER_CHANNEL, AffineScheme, Scheme
from gemquant.core.targets import load_target, targets
from gemquant.core.weights import BlockScheme, CodebookScheme, RowwiseScheme
from gemquant.errors import UnsupportedError, UsageError
from gemquant.numerics.ggml_types import TYPES

W4 = AffineScheme(4, 128, symmetric=False)


def test_the_shipped_targets_are_these() -> None:
    assert [target.name for target in targets()] == [
        "cpu", "cuda", "mps", "rk3562", "rk3576", "rk3588", "rv1126b",
    ]  # fmt: skip


def test_every_container_of_a_shipped_target_has_an_exporter() -> None:
    assert {name for target in targets() for name in target.exporters} <= set(plugins("exporter"))


@pytest.mark.parametrize(
    ("generation", "scheme", "exporter"),
    [
        ("gemma", W4, "awq-gemm"),
        ("gemma2", W4, "compressed-tensors"),
        ("gemma3_text", W4, "compressed-tensors"),
        ("gemma", AffineScheme(8, 128, symmetric=True), "compressed-tensors"),
        ("gemma", AffineScheme(4, PER_CHANNEL, symmetric=True), "compressed-tensors"),
        ("gemma2", AffineScheme(4, 64, symmetric=True), "compressed-tensors"),
        ("gemma2", CodebookScheme("nf4", 64, nested=True), "bitsandbytes"),
        ("gemma3_text", RowwiseScheme(6.0), "bitsandbytes"),
    ],
)
def test_the_default_container_on_cuda(generation: str, scheme: Scheme, exporter: str) -> None:
    assert load_target("cuda").default_exporter(generation, [scheme]) == exporter


@pytest.mark.parametrize("generation", ["gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_mlx_is_the_default_container_on_mps(generation: str, bits: int) -> None:
    scheme = AffineScheme(bits, 64, symmetric=False)
    assert load_target("mps").default_exporter(generation, [scheme]) == "mlx"


@pytest.mark.parametrize("target", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("generation", ["gemma", "gemma2", "gemma3_text"])
def test_every_format_of_ggml_is_held_by_gguf_everywhere(target: str, generation: str) -> None:
    schemes = [BlockScheme(kind) for kind in TYPES.values()]
    assert load_target(target).default_exporter(generation, schemes) == "gguf"


def test_no_runtime_on_cuda_loads_gemma3_from_the_awq_container() -> None:
    assert load_target("cuda").runtimes("awq-gemm", "gemma3_text", [W4]) == ()


def test_a_scheme_that_no_runtime_loads_is_refused_with_what_is_accepted() -> None:
    with pytest.raises(UnsupportedError) as raised:
        load_target("cpu").default_exporter("gemma2", [AffineScheme(5, 100, symmetric=False)])
    assert str(raised.value) == (
        "5 bits, groups of 100, zero points: no runtime of target cpu loads that for gemma2.\n"
        "  hint: Accepted are compressed-tensors: 3/4/8 bits, groups of a row/32/64/128, "
        "zero points/symmetric; bitsandbytes: 8 bits LLM.int8, groups of a row; "
        "bitsandbytes: 4 bits NF4, groups of 64/128/256/512/1024/2048/4096; "
        "bitsandbytes: 4 bits FP4, groups of 64/128/256/512/1024/2048/4096; gguf: F32/F16/BF16/"
        "Q4_0/Q4_1/Q5_0/Q5_1/Q8_0/Q2_K/Q3_K/Q4_K/Q5_K/Q6_K/IQ4_NL/IQ4_XS."
    )


def test_per_layer_inputs_on_a_target_without_them_are_refused_with_targets_that_load_them(
    tmp_path: Path,
) -> None:
    text = (Path(__file__).parents[3] / "targets" / "cpu.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace('"gemma4_text+per-layer-inputs", ', ""))
    with pytest.raises(UnsupportedError) as raised:
        load_target("mine", [tmp_path]).default_exporter("gemma4_text+per-layer-inputs", [W4])
    assert str(raised.value) == (
        "target mine: no runtime is known to load gemma4_text+per-layer-inputs.\n"
        "  hint: These targets have one: cpu, cuda, mps."
    )


def test_an_unknown_target_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"--target cudda: no such target.\n.*mean cuda\?"):
        load_target("cudda")


def test_an_exporter_that_the_target_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match="--exporter awq-gemm: not a container of target cpu"):
        load_target("cpu").container("awq-gemm")


def test_a_users_target_wins_over_a_shipped_one(tmp_path: Path) -> None:
    shipped = load_target("cpu")
    text = (Path(__file__).parents[3] / "targets" / "cpu.toml").read_text()
    (tmp_path / "cpu.toml").write_text(text.replace(shipped.description, "mine"))
    assert load_target("cpu", [tmp_path]).description == "mine"


def test_every_problem_of_a_target_file_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('dtypes = []\ncolour = "red"\n[preference]\ngemma4 = []\n')
    with pytest.raises(UsageError) as raised:
        load_target("mine", [tmp_path])
    for key in ("description:", "dtypes:", "containers:", "colour:", "preference.gemma4"):
        assert key in raised.value.message


def test_a_preference_for_a_container_that_is_not_there_is_refused(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "targets" / "cpu.toml").read_text()
    text = re.sub(r"gemma2 = \[.*\]", 'gemma2 = ["stone"]', text)
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=r"preference\.gemma2 names 'stone', not a container"):
        load_target("mine", [tmp_path])
