"""What is known of the vendor's converter agrees with the targets that name it."""

from __future__ import annotations

import itertools

import pytest

from gemquant.convert.plugins import plugins
from gemquant.core.protocols import AffineScheme
from gemquant.core.targets import load_target, load_toolkit, targets
from gemquant.errors import UnsupportedError, UsageError

NPUS = [target for target in targets() if target.npu is not None]


@pytest.mark.parametrize(
    ("generation", "dtype", "oldest"),
    [
        ("gemma", "w8a8", "1.0.1"),
        ("gemma", "w8a8_g128", "1.1.0"),
        ("gemma2", "w8a8", "1.1.0"),
        ("gemma3_text", "w8a8", "1.2.0"),
    ],
)
def test_the_oldest_release_that_converts_for_rk3588(
    generation: str, dtype: str, oldest: str
) -> None:
    found = load_toolkit("rkllm-toolkit").converting("rk3588", generation, dtype)
    assert found[0].version == oldest
    assert found[-1].version == "1.3.0"


@pytest.mark.parametrize("target", NPUS, ids=lambda target: target.name)
def test_every_dtype_of_a_chip_is_one_of_the_newest_release(target: object) -> None:
    npu = next(each.npu for each in NPUS if each is target)
    assert npu is not None
    newest = load_toolkit(npu.toolkit).newest
    assert {dtype.name for dtype in npu.dtypes} <= set(newest.dtypes)
    assert npu.platform in newest.platforms
    assert {a for dtype in npu.dtypes for a in dtype.algorithms} <= set(newest.algorithms)
    assert npu.dtype(npu.default_dtype) is not None


def test_every_release_has_the_three_functions_and_only_grows() -> None:
    versions = sorted(load_toolkit("rkllm-toolkit").versions, key=lambda v: v.key)
    for older, newer in itertools.pairwise(versions):
        for function in ("load", "build", "export", "generations", "platforms", "dtypes"):
            assert set(getattr(older, function)) <= set(getattr(newer, function)), newer.version
        assert older.released < newer.released


def test_other_quantizers_are_sent_to_the_command_that_serves_an_npu() -> None:
    with pytest.raises(UnsupportedError, match="gemquant rkllm MODEL --target rk3588"):
        load_target("rk3588").default_exporter("gemma2", [AffineScheme(4, 128, symmetric=False)])
    with pytest.raises(UsageError, match="gemquant rkllm MODEL --target rk3588"):
        load_target("rk3588").container("gguf")
    assert "rkllm" not in plugins("exporter")


def test_an_unknown_toolkit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"nothing\.toml"):
        load_toolkit("nothing")
